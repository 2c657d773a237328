"""Clock, scheduler and disk each have one seam, at which the simulation replaces them.

These are Python's ``time``, ``os`` and ``open``, looked up when they are called, and the one
function that starts SLURM's commands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlpsubmit

PACKAGE = Path(mlpsubmit.__file__).parent
SIMULATED = [PACKAGE / "files.py", *PACKAGE.glob("runs/*.py"), *(PACKAGE / "jobs").rglob("*.py")]

#: Modules whose functions are replaced, and so must not be bound when a module is imported.
REPLACED = {"time", "os", "io", "fcntl", "socket", "secrets", "shutil", "subprocess"}

#: Where processes are started, other than SLURM's commands.
STARTS_PROCESSES = {"manifest.py", "local.py", "task_command.py", "workers.py"}


def bound_at_import(tree: ast.AST) -> Iterator[str]:
    """Yield what a module binds of replaced functions: imported names, and default factories."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in REPLACED:
            names = [one.name for one in node.names if one.name.islower()]  # not of classes
            yield from (f"from {node.module} import {name}" for name in names)
        elif isinstance(node, ast.keyword) and node.arg == "default_factory":
            factory = ast.unparse(node.value)
            if factory.partition(".")[0] in REPLACED:
                yield f"default_factory={factory}"


def test_nothing_binds_the_clock_or_the_disk_at_import() -> None:
    assert len(SIMULATED) > 50
    found = {
        str(file.relative_to(PACKAGE)): [*bound_at_import(ast.parse(file.read_text()))]
        for file in SIMULATED
    }
    assert {file: names for file, names in found.items() if names} == {}


def test_one_function_starts_the_commands_of_slurm() -> None:
    users = {file.name for file in SIMULATED if "subprocess.run(" in file.read_text()}
    users |= {file.name for file in SIMULATED if "subprocess.Popen(" in file.read_text()}
    assert users - STARTS_PROCESSES == {"commands.py"}
    assert (PACKAGE / "jobs/slurm/commands.py").read_text().count("subprocess.run(") == 1


def test_no_module_of_the_product_names_the_simulation() -> None:
    names = ("virtual_time", "shared_disk", "virtual_slurm", "stub_training")
    for file in PACKAGE.rglob("*.py"):
        assert not [name for name in names if name in file.read_text()], file
