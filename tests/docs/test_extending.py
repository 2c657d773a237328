"""The steps of docs/extending.md, followed in a copy of the repository: what they add works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## ([^\n]*) in five steps\n(.*?)(?=^## |\Z)", re.M | re.S)
BLOCK = re.compile(r"^( *)```(python|diff|bash)\n(.*?)^\1```", re.M | re.S)

SECTIONS = dict(SECTION.findall((ROOT / "docs" / "extending.md").read_text()))


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the unindented text of each block."""
    return [(language, textwrap.dedent(block)) for _, language, block in BLOCK.findall(text)]


def edit(checkout: Path, language: str, block: str) -> None:
    """Write the file that a block shows, or apply the block's diff."""
    first, _, rest = block.partition("\n")
    file = checkout / first.removeprefix("# ")
    if language == "python":
        assert not file.exists()
        file.write_text(rest)
        return
    # A diff replaces its context and removed lines by its context and added lines.
    hunk = rest.splitlines()
    old, new = ("".join(f"{x[1:]}\n" for x in hunk if x[0] in kept) for kept in (" -", " +"))
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {text.count(old)} times:\n{old}"
    file.write_text(text.replace(old, new))


def run(checkout: Path, command: str) -> None:
    """Run a command on the modules of a checkout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout)}
    environment.pop("MLPSUBMIT_RUNS", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_five_steps_and_runs_the_test_that_it_adds(section: str) -> None:
    text = SECTIONS[section]
    assert re.findall(r"^(\d)\. ", text, re.M) == list("12345")
    created = re.findall(r"^ *# (tests/\S+\.py)$", text, re.M)
    commands = [block for language, block in blocks(text) if language == "bash"]
    assert len(created) == 1
    assert created[0] in commands[-1].split()
    # The page of the library is generated from the docstrings of what is exported.
    assert ("python docs/library.py\n" in commands[-1]) == ("# docs/library.py" in text)


@pytest.mark.slow
def test_the_steps_can_be_followed(checkout: Path) -> None:
    """All sections in one copy, each distinct command once, all tests in one process."""
    text = "".join(SECTIONS.values())
    commands: dict[str, None] = {}
    for language, block in blocks(text):
        if language == "bash":
            commands |= dict.fromkeys(block.splitlines())
        else:
            edit(checkout, language, block)
    pytests = [command for command in commands if command.startswith("pytest -q ")]
    for command in commands:
        if command not in pytests:
            run(checkout, command)
    tests = {path for command in pytests for path in command.split()[2:]}
    added = re.findall(r"^ *\+from \S+ import (\w+) as \1$", text, re.M)
    # The examples in all other docstrings are tested where they are.
    chosen = f"-k 'not examples_do or {' or '.join(added)}'"
    run(checkout, f"pytest -q -p no:cacheprovider {chosen} {' '.join(sorted(tests))}")


def test_the_page_has_a_section_for_each_kind() -> None:
    assert list(SECTIONS) == ["A grab", "A batch function", "An executor", "A result format"]
