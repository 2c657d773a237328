"""The pages that answer a question: their blocks run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: A block of Python that begins with "# name.py" is a file; all others are one script.
FILE = re.compile(r"# (\w+\.py)\n")

PAGES = (
    "custom-models.md",
    "ensembles.md",
    "epochs.md",
    "figures.md",
    "metrics.md",
    "pytorch.md",
    "random-search.md",
    "schedules.md",
    "trackers.md",
)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    environment.pop("MLPSUBMIT_RUNS", None)
    script = ""
    commands: list[list[str]] = []
    for language, text in BLOCK.findall((ROOT / "docs" / page).read_text()):
        if named := FILE.match(text):
            (tmp_path / named[1]).write_text(text)
        elif language == "bash":
            commands.append(["bash", "-euo", "pipefail", "-c", text])
        else:
            script += text
    for command in [*commands, [sys.executable, "-c", script]]:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
