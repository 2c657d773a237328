"""How an interrupted array task is queued again: by its batch script, once it has ended.

So is a job that has to wait for room to submit others: it keeps its own place in the queue.

What trains needs none of SLURM's commands, which containers seldom have: it ends with the exit code
:data:`REQUEUE`, and the shell of the batch script, which runs outside, does the rest.
"""

from __future__ import annotations

import os

__all__ = ["FUNCTION", "NAME", "REQUEUE", "WAIT", "WAIT_FUNCTION"]

#: The exit code of a worker whose task should be queued again: a "temporary failure" (sysexits.h).
REQUEUE = os.EX_TEMPFAIL

#: The name of the shell function, which gets the exit code of the task.
NAME = "end_task"

#: A signal has no sender: the time limit and preemption must be followed by another attempt,
#: scancel must not. The state of the job distinguishes them: it is RUNNING before the time limit,
#: within the grace time of a preemption and after a plain signal; it is COMPLETING, and nothing is
#: to be done, once it was cancelled or SLURM has requeued it. A requeue kills this script.
FUNCTION = f"""\
{NAME}() {{  # the task has ended with this code; {REQUEUE}: interrupted, its state is saved
    [ "$1" -eq {REQUEUE} ] || exit "$1"
    job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
    for attempt in 1 2 3 4 5 6; do
        shown=$(timeout 10 scontrol show job --oneliner "$job" 2>&1) || true
        if [[ $shown =~ JobState=([A-Z_]+) ]]; then
            echo "interrupted in the job state ${{BASH_REMATCH[1]}}"
            [ "${{BASH_REMATCH[1]}}" = RUNNING ] || exit 0
            timeout 10 scontrol requeue "$job" && echo requeued && exit 0
        else
            echo "not requeued: $shown"
        fi
        sleep 5
    done
    echo "continue with mlpsubmit resume"
    exit 0
}}""".splitlines()

#: After how many seconds a job that waits for room starts again.
WAIT_SECONDS = 300

#: The name of the shell function of such a job, which gets its exit code.
WAIT = "end_or_wait"

#: A requeue ends this script with SIGTERM, some seconds before it is killed. Without a later start
#: it would begin again as soon as a job that was queued again may.
WAIT_FUNCTION = f"""\
{WAIT}() {{  # the job has ended with this code; {REQUEUE}: there is no room for what it submits
    [ "$1" -eq {REQUEUE} ] || exit "$1"
    trap '' TERM
    for attempt in 1 2 3 4 5 6; do
        if timeout 10 scontrol requeue "$SLURM_JOB_ID"; then
            timeout 10 scontrol update JobId="$SLURM_JOB_ID" StartTime=now+{WAIT_SECONDS}
            exit 0
        fi
        sleep 5
    done
    exit "$1"
}}""".splitlines()
