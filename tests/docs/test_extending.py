"""The steps of docs/extending.md, followed in a copy of the repository: what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## ([^\n]*) in five steps\n(.*?)(?=^## |\Z)", re.M | re.S)
BLOCK = re.compile(r"^( *)```(python|diff|bash)\n(.*?)^\1```", re.M | re.S)

SECTIONS = dict(SECTION.findall((ROOT / "docs" / "extending.md").read_text()))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git tracks."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    return tmp_path


def run(checkout: Path, command: str) -> None:
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


def apply(file: Path, hunk: list[str]) -> None:
    """Replace the context and the removed lines of a diff by its context and its added lines."""
    old, new = ("".join(f"{x[1:]}\n" for x in hunk if x[0] in kept) for kept in (" -", " +"))
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {text.count(old)} times:\n{old}"
    file.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_steps_can_be_followed(checkout: Path, section: str) -> None:
    text, touched = SECTIONS[section], set()
    assert re.findall(r"^(\d)\. ", text, re.M) == list("12345")
    for _, language, indented in BLOCK.findall(text):
        block = textwrap.dedent(indented)
        if language == "bash":
            run(checkout, block)
            continue
        first, _, rest = block.partition("\n")
        file = checkout / first.removeprefix("# ")
        touched.add(str(file.relative_to(checkout)))
        if language == "diff":
            apply(file, rest.splitlines())
        else:
            assert not file.exists()
            file.write_text(rest)
    code = " ".join(name for name in touched if not name.endswith(".md"))
    run(checkout, f"ruff format --check {code} && ruff check {code}")


def test_the_page_has_a_section_for_each_kind() -> None:
    assert list(SECTIONS) == ["A grab", "A batch function", "An executor", "A result format"]
