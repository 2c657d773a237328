"""Handing what is missing of a run to an executor, so that nothing trains twice."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.errors import BusyError
from mlpsubmit.jobs.plan import Plan, cut
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.rejections import Rejected
from mlpsubmit.jobs.slurm.sbatch import OutcomeUnknown, cancel
from mlpsubmit.jobs.slurm.task_states import Scheduler, slurm_retry, slurm_tasks
from mlpsubmit.jobs.status import Status, read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.jobs.submission import Submission

__all__ = ["label", "missing_packs", "start", "submission_for", "submission_lock"]

#: How long a lock is waited for: reading the state of a run takes it for a moment.
LOCK_SECONDS = 2.0


@contextlib.contextmanager
def submission_lock(file: Path, what: str) -> Iterator[None]:
    """Hold the lock of whoever launches or resumes.

    Raises:
        BusyError: where another holds it, for longer than reading the state of a run takes.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.locked(file, wait=LOCK_SECONDS))
        except BlockingIOError:
            raise BusyError(
                f"{what}: another launch or resume of it is at work; wait until it is done"
            ) from None
        yield


def missing_packs(run: RunDirectory, plan: Plan) -> NDArray[np.int64]:
    """Return the numbers of the packs that have no result, having verified those that do."""
    finished = run.results.finished(among={pack.name for pack in plan})
    return np.array([p.number for p in plan if p.name not in finished], dtype=np.int64)


def label(name: str, run: str) -> str:
    """Return what names of jobs begin with: those of a run of a sweep, and no others."""
    return f"{name}.{run}"


def submission_for(
    path: Path,
    label: str,
    number: int,
    executor: Executor,
    plan: Plan,
    missing: NDArray[np.int64],
    retries: int,
) -> Submission:
    """Return the submission of what is missing of a run, as an executor takes it."""
    from mlpsubmit.jobs.submission import Submission

    cost = float(plan.pack_costs[missing].sum())
    tasks = executor.tasks(plan.threads, len(missing), cost)
    return Submission(path.absolute(), label, number, tasks, retries)


def start(
    run: RunDirectory,
    executor: Executor,
    retries: int = 0,
    *,
    after: int | None = None,
    checked: bool = False,
) -> int:
    """Hand what is missing to an executor; return how many packs that is.

    Args:
        retries: how often SLURM resumes by itself what is missing after that.
        after: only where this submission is still the latest, and was not cancelled.
        checked: whether the executor has been asked already if it would take it.

    Raises:
        BusyError: where a task of the run still lives, or may for all that is known.
        UserError: where the cluster refuses the job; then nothing of it is left.
    """
    with submission_lock(run.path / run_directory.PLAN, f"run {run.id}"):
        if after is not None and run.superseded(after) is not None:
            return 0
        _refuse_if_busy(run, read_status(run, Scheduler(exact=True)))
        plan = Plan.from_json(run.plan)
        missing = missing_packs(run, plan)
        if len(missing):
            number = run.next_submission()
            own = label(run.sweep["name"], run.sweep["id"])
            submission = submission_for(run.path, own, number, executor, plan, missing, retries)
            if not checked:
                executor.check(submission)
            _submit(run, executor, submission, plan, missing, after)
            _forget_retry(run, number)
        return len(missing)


def _refuse_if_busy(run: RunDirectory, status: Status) -> None:
    unknown = next((task for task in status.tasks if task.state == "unknown"), None)
    if unknown is not None:
        raise BusyError(
            f"run {run.id}: its tasks may still live, for {unknown.why}; try again where and "
            "when it does, so that nothing trains twice"
        )
    if status.busy:
        raise BusyError(
            f"run {run.id} is still running; wait for it (mlpsubmit status), or stop it "
            "first: mlpsubmit cancel"
        )


def _submit(
    run: RunDirectory,
    executor: Executor,
    submission: Submission,
    plan: Plan,
    missing: NDArray[np.int64],
    after: int | None,
) -> None:
    """Write down what is about to be submitted, submit it, and write down each answer."""
    intent = {
        "executor": executor.name,
        "host": socket.gethostname(),
        "created": time.time(),
        "slices": cut(missing, plan.pack_costs[missing], submission.tasks),
        **executor.intent(submission),
    }
    submission.folder.mkdir()
    files.publish_json(submission.folder / run_directory.INTENT, intent)
    executor.threads = plan.threads
    jobs: list[dict[str, Any]] = []
    try:
        _refuse_if_overtaken(run, submission, after)
        for job in executor.submit(submission):
            jobs.append(job.to_json())
            files.publish_json(submission.folder / run_directory.JOBS, {"jobs": jobs})
    except (Rejected, BusyError) as error:
        if jobs:  # cancelled by now, but some may have begun; their names are taken
            run.end_submission(submission.number, str(error))
        else:
            shutil.rmtree(submission.folder)
        raise
    except OutcomeUnknown as error:
        run.end_submission(submission.number, str(error))
        raise


def _refuse_if_overtaken(run: RunDirectory, submission: Submission, after: int | None) -> None:
    """Look once more, now that the new intent is on the disk for all others to see.

    - Whoever cancels the run from now on sees it; whoever did so before is seen here.
    - A job that sbatch did not answer for and that starts from now on sees it, and ends; one that
      has started before trains now.
    """
    if after is not None and run.ended(after) is not None:
        raise BusyError(f"run {run.id}: {run.ended(after)}")
    number = _earlier_on_slurm(run, submission.number)
    if number is None or len(run.task_jobs(number)) == run.tasks(number):
        return
    tasks = slurm_tasks(run, number, run.heartbeats(number), Scheduler(exact=True))
    if any(task.live for task in tasks):
        raise BusyError(f"run {run.id}: a job of it that was taken for lost has started")


def _forget_retry(run: RunDirectory, number: int) -> None:
    """Take the job back that waits to do what a submission has done now."""
    earlier = _earlier_on_slurm(run, number)
    retry = None if earlier is None else slurm_retry(run, earlier, Scheduler())
    if retry is not None and retry.pending:
        with contextlib.suppress(SlurmUnavailable):  # it will find that another has followed
            cancel([retry.id])


def _earlier_on_slurm(run: RunDirectory, number: int) -> int | None:
    """Return the submission before one, where that went to SLURM."""
    earlier = [one for one in run.submissions() if one < number]
    if not earlier or run.intent(earlier[-1])["executor"] != "slurm":
        return None
    return earlier[-1]
