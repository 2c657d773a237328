"""What we rely on in submitit: a private function, whose text is pinned here.

It is the same for the oldest version that pyproject.toml allows, which `make` installs beside the
environment, and for the installed one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit
from packaging.specifiers import SpecifierSet

from mlpsubmit.jobs.slurm.script import make_sbatch_string

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


#: Where the Makefile puts the oldest version that is allowed.
OLDEST = Path(sys.prefix) / "submitit-oldest"

COMMAND = "python -m x $((7 + SLURM_ARRAY_TASK_ID))"
FOLDER = "/a folder"
OPTIONS: dict[str, Any] = {
    "job_name": "a.b.000",
    "partition": "gpu",
    "account": "lab",
    "qos": "long",
    "constraint": "a100|h100",
    "time": "04:00:00",
    "mem": "16G",
    "cpus_per_task": 6,
    "gpus_per_node": "a100:1",
    "dependency": "afterany:41",
    "signal_delay_s": 120,
    "wckey": None,
    "setup": ["first", "second"],
    "stderr_to_stdout": True,
    "additional_parameters": {"requeue": True, "exclude": "n3"},
    "srun_args": ["--export=ALL", "--cpus-per-task=6"],
    "map_count": 50,
    "array_parallelism": 8,
}

TEXT = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-49%8
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=6
#SBATCH --dependency=afterany:41
#SBATCH --exclude=n3
#SBATCH --gpus-per-node=a100:1
#SBATCH --job-name=a.b.000
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output='/a folder/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=04:00:00

# setup
first
second

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/a folder/%A_%a_%t_log.out' --export=ALL --cpus-per-task=6 \
python -m x $((7 + SLURM_ARRAY_TASK_ID))
"""


def allowed() -> str:
    (versions,) = re.findall(r'"submitit([^"]+)"', PYPROJECT.read_text())
    return str(versions)


def test_only_versions_whose_text_is_known_are_allowed() -> None:
    assert submitit.__version__ in SpecifierSet(allowed())
    assert "1.6.0" not in SpecifierSet(allowed())


def test_the_text_of_every_option_that_is_used() -> None:
    assert make_sbatch_string(COMMAND, Path(FOLDER), **OPTIONS) == TEXT


def test_the_oldest_version_writes_the_same_text() -> None:
    assert OLDEST.is_dir(), f"no {OLDEST}; make it with: make .venv/.ready"
    code = (
        f"import sys; sys.path.insert(0, {str(OLDEST)!r}); import pathlib, submitit; "
        "from submitit.slurm.slurm import _make_sbatch_string as text; "
        f"print(submitit.__version__); "
        f"print(text({COMMAND!r}, pathlib.Path({FOLDER!r}), **{OPTIONS!r}), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, _, text = done.stdout.partition("\n")
    assert re.match(rf">={re.escape(version.removesuffix('.0'))}\b", allowed())
    assert text == TEXT
