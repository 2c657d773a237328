"""The sbatch scripts, word for word."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from mlpsubmit.jobs.slurm import requeue
from mlpsubmit.jobs.slurm.arrays import Array
from mlpsubmit.jobs.slurm.script import retry_script, script
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

PYTHON = shlex.quote(sys.executable)
LAST = shlex.quote(
    "import sys; here = [p for p in sys.path[:1] if not p]; del sys.path[: len(here)]; "
    "import runpy, mlpsubmit; sys.path += here; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
FUNCTION = "\n".join(requeue.FUNCTION)
RUN = Path("/runs/staircase/20260101-000000-abcdef")
TASK = f"mlpsubmit.jobs.worker {RUN} 2 5e1f"
SUBMISSION = Submission(
    RUN, "staircase.20260101-000000-abcdef", 2, 150, 1, retries=3, sweep_hash="5e1f"
)
ARRAY = Array("staircase.20260101-000000-abcdef.002.1", first=100, count=50, limit=8, after=0)


def template(**keys: object) -> Template:
    return Template.from_table(keys, Path("mine.toml"))


def test_the_whole_script_of_an_array() -> None:
    asked = template(
        partition="gpu",
        account="lab",
        qos="long",
        constraint="a100|h100",
        time="04:00:00",
        gpus=1,
        cpus=6,
        mem="16G",
        setup=["module load cuda", "export WHERE='here'"],
        sbatch={"exclude": "n3", "exclusive": True, "mail-type": "END"},
    )
    assert (
        script(asked, SUBMISSION, ARRAY, after=["41", "42"])
        == f"""\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-49%8
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=6
#SBATCH --dependency=afterany:41:42
#SBATCH --exclude=n3
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --job-name=staircase.20260101-000000-abcdef.002.1
#SBATCH --mail-type=END
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output={RUN}/submissions/002/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=04:00:00

# setup
trap : TERM
{FUNCTION}
module load cuda
export WHERE='here'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {RUN}/submissions/002/%A_%a_%t_log.out --export=ALL --open-mode=append \
--cpus-per-task=6 {PYTHON} -u -c {LAST} {TASK} $((100 + SLURM_ARRAY_TASK_ID)) || end_task $?
"""
    )


def test_what_is_not_asked_for_is_left_to_the_cluster() -> None:
    text = script(template(gpus=0), SUBMISSION, ARRAY)
    absent = ("account", "partition", "qos", "time", "mem", "gpus", "wckey", "dependency", "error")
    assert [name for name in absent if f"--{name}" in text] == []


def test_a_short_time_limit_leaves_most_of_it_for_training() -> None:
    assert "--signal=USR2@15\n" in script(template(time=1), SUBMISSION, ARRAY)
    assert "--signal=USR2@300\n" in script(template(time=60, notice=300), SUBMISSION, ARRAY)


def test_paths_with_spaces_stay_one_word() -> None:
    spaced = Submission(Path("/my runs/s/r"), "s.r", 0, 1, 1, sweep_hash="5e1f")
    text = script(template(), spaced, ARRAY)
    assert "#SBATCH --output='/my runs/s/r/submissions/000/%A_%a_0_log.out'" in text
    assert text.rstrip().endswith(
        "mlpsubmit.jobs.worker '/my runs/s/r' 0 5e1f $((100 + SLURM_ARRAY_TASK_ID)) || end_task $?"
    )


def test_the_payload_of_a_task_is_small_however_many_configs() -> None:
    assert len(script(template(), SUBMISSION, ARRAY)) < 4096


def test_the_job_that_resumes_asks_for_little() -> None:
    asked = template(partition="gpu", gpus=4, mem="200G", time="2-0", helper_partition="cpu")
    helper = asked.for_helper(15, "2G")
    text = retry_script(helper, SUBMISSION, ["41", "43"])
    for line in (
        "--partition=cpu",
        "--dependency=afterany:41:43",
        "--cpus-per-task=1",
        "--mem=2G",
        "--time=00:15:00",
        "--job-name=staircase.20260101-000000-abcdef.002.retry",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "gpus" not in text
    assert "array" not in text
    # The hash takes the place of --trust: the job executes what was there at the submission.
    assert text.rstrip().endswith(
        f" mlpsubmit resume {RUN} --after 2 --sweep-hash 5e1f --retries 2 || end_or_wait $?"
    )


@pytest.mark.parametrize("partition", [None, "gpu"])
def test_the_job_that_resumes_goes_where_the_tasks_go(partition: str | None) -> None:
    helper = template(partition=partition).for_helper(15, "2G")
    text = retry_script(helper, SUBMISSION, ["1"])
    assert ("--partition=gpu" in text) == (partition is not None)
