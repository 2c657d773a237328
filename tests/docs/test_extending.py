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
GENERATE = "python docs/library.py"


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


def run(checkout: Path, *arguments: str) -> None:
    """Run Python on the modules of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("MLPSUBMIT_RUNS", None)
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_five_steps_and_ends_with_its_tests(section: str) -> None:
    text = SECTIONS[section]
    assert re.findall(r"^(\d)\. ", text, re.M) == list("12345")
    blocks = [(kind, textwrap.dedent(block)) for _, kind, block in BLOCK.findall(text)]
    assert [kind for kind, _ in blocks].index("bash") == len(blocks) - 1
    *before, tests = blocks[-1][1].splitlines()
    # The page of the library is generated from the docstrings of what is exported.
    assert before == [GENERATE] * ("# docs/library.py" in text)
    created = [block.split("\n")[0] for kind, block in blocks if kind == "python"]
    assert created[-1].startswith("# tests/")
    assert created[-1].removeprefix("# ") in tests.removeprefix("pytest -q ").split()


@pytest.mark.slow
def test_the_steps_can_be_followed(checkout: Path) -> None:
    """All sections in one copy, then one run of all tests that they name."""
    text = "".join(SECTIONS.values())
    commands = []
    for _, language, indented in BLOCK.findall(text):
        block = textwrap.dedent(indented)
        if language == "bash":
            commands += block.splitlines()
        else:
            edit(checkout, language, block)
    run(checkout, *GENERATE.split()[1:])
    tests = {path for command in commands if command != GENERATE for path in command.split()[2:]}
    added = re.findall(r"^ *\+from \S+ import (\w+) as \1$", text, re.M)
    assert added == ["dead_units", "spirals"]
    # The examples in all other docstrings are tested where they are.
    chosen = f"not examples_do or {' or '.join(added)}"
    run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *sorted(tests))


def test_the_page_has_a_section_for_each_kind() -> None:
    assert list(SECTIONS) == ["A grab", "A batch function", "An executor", "A result format"]
