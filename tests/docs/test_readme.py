"""Every command block of the README runs, in order, as a newcomer would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(checkout: Path) -> None:
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / ".venv" / ".ready").touch()  # else make would install everything again
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    environment.pop("MLPSUBMIT_RUNS", None)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 7
    for language, text in blocks:
        runner = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else []
        if language == "python":
            runner = [str(checkout / ".venv" / "bin" / "python"), "-c"]
        elif ". .venv/bin/activate" not in text and "make" not in text:
            text = f". .venv/bin/activate\n{text}"  # the reader's terminal still has it
        done = subprocess.run(
            [*runner, text],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    for name in ("results.nc", "results.png", "starter.nc", "starter.png", "starter.csv"):
        assert (checkout / name).stat().st_size > 0
    assert "sweep = Sweep(" in (checkout / "spec.py").read_text()


def test_the_spec_that_the_readme_shows_is_the_one_that_init_writes() -> None:
    shown = next(t for k, t in BLOCK.findall((ROOT / "README.md").read_text()) if "Sweep(" in t)
    written = (ROOT / "mlpsubmit" / "cli" / "starter_spec.py.txt").read_text()
    code = re.sub(r'""".*?"""', "", written, flags=re.DOTALL)
    code = re.sub(r"^ *#.*\n", "", code, flags=re.MULTILINE)
    assert "".join(code.split()) == "".join(shown.split())
