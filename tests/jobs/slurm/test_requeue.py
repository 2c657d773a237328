"""What a batch script does once its task has ended, with a scontrol that answers as it is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlpsubmit.jobs.slurm.requeue import FUNCTION, NAME, REQUEUE

#: Answers by turns, one line of the file `answers` each: a state, "done" or "down".
SCONTROL = """\
#!/bin/bash
echo "$*" >> asked
answer=$(sed -n "$(wc -l < asked)p" answers)
case "$answer" in
    down) echo "no answer" >&2; exit 1 ;;
    done) ;;
    *) echo "JobId=44 ArrayJobId=41 JobState=$answer Reason=None" ;;
esac
"""
SHOW, AGAIN = "show job --oneliner 41_3", "requeue 41_3"
STATE = "interrupted in the job state"


@pytest.mark.parametrize("strict", ["", "set -euo pipefail"])
@pytest.mark.parametrize(
    ("ended", "answers", "asked", "code", "shown"),
    [
        (1, [], [], 1, ""),
        (137, [], [], 137, ""),
        (REQUEUE, ["RUNNING", "done"], [SHOW, AGAIN], 0, f"{STATE} RUNNING\nrequeued\n"),
        (REQUEUE, ["COMPLETING"], [SHOW], 0, f"{STATE} COMPLETING\n"),
        (
            REQUEUE,
            ["down", "RUNNING", "down", "COMPLETING"],
            [SHOW, SHOW, AGAIN, SHOW],
            0,
            f"not requeued: no answer\n{STATE} RUNNING\nno answer\n{STATE} COMPLETING\n",
        ),
        (
            REQUEUE,
            ["down"] * 6,
            [SHOW] * 6,
            0,
            "not requeued: no answer\n" * 6 + "continue with mlpsubmit resume\n",
        ),
    ],
)
def test_what_was_interrupted_and_not_cancelled_is_queued_again(
    strict: str,
    ended: int,
    answers: list[str],
    asked: list[str],
    code: int,
    shown: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    lines = [*FUNCTION, "sleep() { :; }", strict, f"(exit {ended}) || {NAME} $?"]
    script = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_ARRAY_JOB_ID": "41",
            "SLURM_ARRAY_TASK_ID": "3",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = tmp_path / "asked"
    assert (found.read_text().splitlines() if found.exists() else []) == asked
    assert (script.returncode, script.stdout) == (code, shown)
