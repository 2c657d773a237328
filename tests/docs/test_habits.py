"""`make help`, the hooks before a commit, and the READMEs of folders agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

#: Folders with an idea to explain. Those of the package are named as they are imported.
PACKAGES = {
    "batchfns": "batchfns",
    "grabs": "grabs",
    "jobs": "jobs",
    "jobs.slurm": "jobs/slurm",
    "jobs.store": "jobs/store",
    "jobs.throughput": "jobs/throughput",
    "slurm_templates": "slurm_templates",
    **{
        name: f"mlpsubmit/{name.replace('.', '/')}"
        for name in ("assembly", "native", "results", "runs", "spec", "training", "training.accel")
    },
}
FOLDERS = [*PACKAGES.values(), "bench", "tests"]


def test_make_alone_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony is not None
    # Under `make test` this make is a recursive one, which would print its directory.
    command = ["make", "--no-print-directory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split() for line in done.stdout.splitlines()]
    assert [words[1] for words in listed] == phony[1].split()
    assert all(words[0] == "make" and len(words) > 3 for words in listed)


def test_the_hooks_before_a_commit_are_make_check() -> None:
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    checks = [line.strip() for line in recipe[1].replace("$(BIN)", ".venv/bin").splitlines()]
    # The hooks get the changed files as arguments, and fix what make only reports.
    plain = [re.sub(r" --check| --fix| \.$", "", line) for line in [*hooks, *checks]]
    assert plain[: len(hooks)] == plain[len(hooks) :]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_names_files_that_exist(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert 5 <= len(text.splitlines()) <= 20
    assert "**Start reading** " in text
    named = re.findall(r"`([\w./-]+(?:\.(?:py|pyi|toml|md)|/))`", text)
    assert named
    for name in named:
        assert (ROOT / folder / name).exists(), f"{folder}/README.md names {name}"


def _contract(layer: str) -> tuple[list[str], list[str]]:
    """Return the layers just below one, and the lower ones that it must not import all the same."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = [line.split(" | ") for line in contracts[0]["layers"]]
    position = next(number for number, names in enumerate(layers) if layer in names)
    forbidden = [
        name.removeprefix("mlpsubmit.")
        for contract in contracts
        if contract.get("source_modules") == [f"mlpsubmit.{layer}"]
        for name in contract["forbidden_modules"]
    ]
    return layers[position + 1], [name for name in forbidden if "." not in name]


@pytest.mark.parametrize(("package", "folder"), PACKAGES.items())
def test_what_a_folder_may_import_is_the_contract(package: str, folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    line = re.search(r"\*\*May import\*\* (.*?)\.(?= |\n)", text, re.S)
    assert line is not None
    allowed, _, exceptions = line[1].partition("except")
    layer, _, nested = package.partition(".")
    if nested:
        assert allowed == f"the same as `{layer}`"
        return
    below, forbidden = _contract(layer)
    assert "and the layers below" in allowed
    assert sorted(re.findall(r"`(\w+)`", allowed)) == sorted(below)
    assert sorted(re.findall(r"`(\w+)`", exceptions)) == sorted(forbidden)
