"""Every command block of docs/slurm.md runs, in order, as somebody with a fresh account runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlpsubmit import open_run

GUIDE = Path(__file__).parents[2] / "docs" / "slurm.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_guide(study: Any) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = BLOCK.findall(GUIDE.read_text())
    assert len(blocks) == 5
    told = []
    for language, text in blocks:
        text = text.replace("gpus = 1", "gpus = 0")  # which torch could not see here
        runner = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else ["python", "-c"]
        done = subprocess.run(
            [*runner, text],
            cwd=study.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        told.append(done.stdout)
    _, doctor, launched, collected, python = told
    assert "ok   nodes" in doctor
    assert "#SBATCH --partition=gpu" in launched
    assert "results: starter.nc (8 of 8 configs)" in collected
    assert python.startswith("done ")
    run = open_run("starter", study.folder / "mlpruns")
    assert run.directory.intent(0)["template"]["name"] == "default"
    assert run.directory.submissions() == [0]
