"""What we rely on in submitit: a private function, whose text is pinned here.

For another version than the installed one, such as the oldest that pyproject.toml allows:

    pip install --no-deps --target DIR submitit==1.5.0
    PYTHONPATH=DIR pytest tests/jobs/slurm/test_submitit.py tests/jobs/slurm/test_script.py
"""

from __future__ import annotations

import re
from pathlib import Path

import submitit
from packaging.specifiers import SpecifierSet

from mlpsubmit.jobs.slurm.script import make_sbatch_string

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_only_versions_whose_text_is_known_are_allowed() -> None:
    (allowed,) = re.findall(r'"submitit([^"]+)"', PYPROJECT.read_text())
    assert submitit.__version__ in SpecifierSet(allowed)
    assert "1.6.0" not in SpecifierSet(allowed)


def test_the_text_of_every_option_that_is_used() -> None:
    text = make_sbatch_string(
        "python -m x $((7 + SLURM_ARRAY_TASK_ID))",
        Path("/a folder"),
        job_name="a.b.000",
        partition="gpu",
        account="lab",
        qos="long",
        constraint="a100|h100",
        time="04:00:00",
        mem="16G",
        cpus_per_task=6,
        gpus_per_node="a100:1",
        dependency="afterany:41",
        signal_delay_s=120,
        wckey=None,
        setup=["first", "second"],
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "exclude": "n3"},
        srun_args=["--export=ALL", "--cpus-per-task=6"],
        map_count=50,
        array_parallelism=8,
    )
    assert (
        text
        == """\
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
    )
