"""Submit the packs of a run that have no result to an executor, so that nothing trains twice."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.display.output import echo
from mlpsubmit.display.progress import doing
from mlpsubmit.errors import BusyError, DamageError, RunError, error_text
from mlpsubmit.jobs.heartbeat import is_elsewhere
from mlpsubmit.jobs.killed_packs import add_unrecorded_ends
from mlpsubmit.jobs.liveness import patience
from mlpsubmit.jobs.plan import Plan, Range, cut, ranges_of
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.rejections import Rejected
from mlpsubmit.jobs.slurm.sbatch import OutcomeUnknown, cancel
from mlpsubmit.jobs.slurm.task_states import Scheduler, slurm_retry, slurm_tasks
from mlpsubmit.jobs.status import FINAL_STATES, Status, read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import owner
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import check_last_user, checked_sweep
from mlpsubmit.jobs.used_paths import used_paths
from mlpsubmit.runs.locate import next_launch
from mlpsubmit.runs.same_device import check_same_device, wanted

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors.base import Executor
    from mlpsubmit.jobs.submission import Submission

__all__ = ["missing_packs", "start", "submission_for", "submission_lock", "submit"]

#: How long to wait for a lock: reading the status of a run holds it for a moment.
LOCK_SECONDS = 2.0


@contextlib.contextmanager
def submission_lock(file: Path, what: str) -> Iterator[None]:
    """Hold the lock on a file while something is launched or resumed.

    Args:
        what: a name for the error message.

    Raises:
        BusyError: another process holds it, for longer than reading a status takes.
        RunError: the run has been removed.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.locked(file, wait=LOCK_SECONDS))
        except BlockingIOError:
            raise BusyError(
                f"{what}: another launch, resume or prune is in progress; wait until it is done"
            ) from None
        except FileNotFoundError:  # by prune, which held it
            raise RunError(f"{what}: has been removed; see mlpsubmit ls") from None
        yield


def missing_packs(run: RunDirectory, plan: Plan) -> NDArray[np.int64]:
    """Return the numbers of the packs without a result; checksums of the others are verified."""
    finished = run.results.finished()
    return np.array([p.number for p in plan if p.name not in finished], dtype=np.int64)


def submission_for(
    run: RunDirectory,
    names: Mapping[str, Any],
    executor: Executor,
    plan: Plan,
    missing: NDArray[np.int64],
    retries: int,
    sweep_hash: str,
    *,
    slices: int | None = None,
    reads: Callable[[], tuple[str, ...]] = tuple,
) -> Submission:
    """Return the next submission of a run: its missing packs.

    Args:
        run: its directory, which need not exist yet.
        names: the sweep's ``name`` and the run's ``id``, as in sweep.json.
        sweep_hash: the hash of the sweep that its tasks execute.
        slices: how many its packs are divided into; chosen unless given.
        reads: returns what its tasks read besides the run, for a container.

    Raises:
        UserError: limits of the cluster leave no room for it.
    """
    from mlpsubmit.jobs.submission import Submission

    each = executor.workers_per_task
    if slices is None:
        cost = float(plan.pack_costs[missing].sum())
        tasks = executor.tasks(plan.threads, len(missing), cost, retries)
        slices = min(tasks * each, len(missing))
    else:
        tasks = -(-slices // each)
    now = executor.at_once(tasks, retries)
    label = f"{names['name']}.{names['id']}"  # no other run shares it
    number = run.next_submission()
    settings = (plan.threads, retries, sweep_hash)
    return Submission(
        *(run.path.absolute(), label, number, now, *settings),
        later=tasks - now,
        reads=reads() if executor.in_container else (),
        workers_per_task=each,
        slices=slices,
    )


def start(
    run: RunDirectory,
    executor: Executor,
    sweep_hash: str,
    retries: int = 0,
    *,
    after: int | None = None,
    checked: bool = False,
    trust: bool = False,
) -> int:
    """Submit the packs without a result, and return how many there are.

    Args:
        sweep_hash: the hash of the sweep that the tasks execute.
        retries: how often SLURM automatically resumes what is missing after that.
        after: submit only if the submission of this number is the latest and was not cancelled; if
            it has left tasks for later, only these.
        checked: whether ``executor.check`` has passed already.
        trust: take the run over if another user has resumed it last.

    Raises:
        BusyError: a task of the run is running, or that cannot be ruled out.
        UserError: the cluster rejects the job; then nothing of it is left.
        RunError: the run is not writable.
    """
    _check_writable(run)
    with submission_lock(run.path / run_directory.PLAN, f"run {run.id}"):
        run.refresh()
        if after is not None and run.superseded(after) is not None:
            return 0
        status = _settled_status(run)
        _check_not_busy(run, status)
        if after is None and not trust:
            check_last_user(run)  # nobody else submits it from here on
        run.remove_leftovers()
        plan = Plan.from_json(run.plan)
        missing = missing_packs(run, plan)
        planned = [] if after is None else run.intent(after).get("later", [])
        later = _left(planned, missing)
        if not len(missing) or (planned and not later):
            if after is None:
                run.record_launch(next_launch(run.path))
            return 0
        add_unrecorded_ends(run, plan, status.tasks)
        launched_as = run.sweep["launched_in"]["run"]
        submission = submission_for(
            *(run, run.sweep, executor, plan, missing, retries, sweep_hash),
            slices=len(later) or None,
            reads=lambda: used_paths(checked_sweep(run.path, sweep_hash, launched_as), run),
        )
        executor.same_device = same_device = wanted(run, executor)
        if same_device:
            check_same_device(run, executor)
        if not checked:
            executor.check(submission)
            for line in executor.device_lines(planned=False):
                echo(line)
        _report_takeover(run)
        slices = later or cut(missing, plan.pack_costs[missing], submission.all_workers)
        for note in executor.notes(submission):
            echo(note)
        how = {"same_device": same_device, "continues": bool(later)}
        # Recorded before the submission, because the debug executor trains in it.
        with _recorded(run) if after is None else contextlib.nullcontext():
            submit(run, executor, submission, slices, after, **how)
        _cancel_retry(run)
        return sum(high - low for ranges in slices for low, high in ranges)


def _left(
    slices: Sequence[Sequence[Sequence[int]]], missing: NDArray[np.int64]
) -> list[list[Range]]:
    """Return the packs of slices that are missing, those of each slice as ranges."""
    left = [
        [
            one
            for low, high in ranges
            for one in ranges_of(missing[(missing >= low) & (missing < high)])
        ]
        for ranges in slices
    ]
    return [ranges for ranges in left if ranges]


def _check_writable(run: RunDirectory) -> None:
    """Check that this user can write wherever a resume and its tasks do.

    Raises:
        RunError: some folder is not writable, or is sticky and another user's: what has been saved
            there could not be replaced.
    """
    other = owner(run.path)
    who = "a user who may" if other is None else f"{other}, to whom it belongs"
    written = [run.path / name for name in run_directory.FOLDERS if name != run_directory.COMPILED]
    for path in (run.path, run.path / run_directory.PLAN, *written):
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)) and path.exists():
            raise RunError(
                f"run {run.id}: {path} is not writable; status and collect read it, but launch and "
                f"resume write to it: continue it as {who}, or launch its spec with another "
                "--runs-dir (runs that a group is to continue: launch --group)"
            )
    for path in written:
        whose = owner(path) if path.name != run_directory.SUBMISSIONS and path.exists() else None
        if whose is not None and os.geteuid() != 0 and path.stat().st_mode & stat.S_ISVTX:
            raise RunError(
                f"run {run.id}: {path} is sticky, so that you could not replace what {whose} and "
                f"others have saved there; ask {whose} to run: chmod -t {path}"
            )


def _report_takeover(run: RunDirectory) -> None:
    """Report that the tasks of a run are another user's than before, from now on."""
    last = max(run.submissions(), default=None)
    other = None if last is None else run.submitter(last)
    if other is not None:
        echo(
            f"run {run.id}: taken over from {other}; the missing configs will be trained in your "
            "jobs, with your template and account",
            err=True,
        )


@contextlib.contextmanager
def _recorded(run: RunDirectory) -> Iterator[None]:
    """Record a launch or resume of a run, unless the block is refused."""
    before = run.launched
    run.record_launch(next_launch(run.path))
    try:
        yield
    except (Rejected, BusyError):
        run.record_launch(before)
        raise


def _settled_status(run: RunDirectory) -> Status:
    """Return the status of a run, once processes elsewhere were watched for long enough."""
    scheduler = Scheduler(exact=True)
    status = read_status(run, scheduler)
    number = max(run.submissions(), default=None)
    intent = None if number is None else run.readable_intent(number)
    if number is None or intent is None or intent["executor"] == "slurm":
        return status
    jobs = run.task_jobs(number)
    processes: dict[str, Mapping[str, Any]] = {
        task.name: task.heartbeat or jobs.get(task.name, {}) for task in status.tasks
    }
    elsewhere = {
        name: process
        for name, process in processes.items()
        if process and process.get("state") not in FINAL_STATES and is_elsewhere(process)
    }
    if not elsewhere:
        return status
    waits = {run.heartbeat(name): patience(process) for name, process in elsewhere.items()}
    hosts = ", ".join(sorted({str(process["host"]) for process in elsewhere.values()}))
    warnings.warn(
        f"run {run.id} was started on {hosts}: waiting for up to {max(waits.values()):.0f} s for a "
        "sign of its tasks, so that nothing trains twice",
        stacklevel=4,
    )
    with doing(f"watching for a sign of the tasks on {hosts}"):
        scheduler.watch.settle(waits)
    return read_status(run, scheduler)


def _check_not_busy(run: RunDirectory, status: Status) -> None:
    unknown = next((task for task in status.tasks if task.state == "unknown"), None)
    if unknown is not None:
        raise BusyError(
            f"run {run.id}: its tasks may still be running ({unknown.why}); try again when that "
            "can be checked, so that nothing trains twice"
        )
    if status.busy:
        raise BusyError(
            f"run {run.id} is still running; wait for it to end (mlpsubmit status), or stop it "
            "first: mlpsubmit cancel"
        )


def submit(
    run: RunDirectory,
    executor: Executor,
    submission: Submission,
    slices: Sequence[Sequence[Range]],
    after: int | None,
    *,
    same_device: bool = False,
    continues: bool = False,
) -> None:
    """Record the intent on disk, submit, and record every job id that comes back.

    Args:
        slices: the packs of each worker, of those that are submitted now first.
        after: the number of the submission that this one follows by itself.
        continues: whether its tasks are those that the other has left for later.
    """
    intent = {
        "executor": executor.name,
        "host": socket.gethostname(),
        "created": time.time(),
        "gpus": executor.has_gpus,
        "same_device": same_device,
        "slices": slices[: submission.workers],
        "workers": submission.workers_per_task,
        "later": slices[submission.workers :],
        "continues": after if continues else None,
        **executor.intent(submission),
    }
    try:  # nobody else may change a script before sbatch reads it
        files.make_folder(submission.folder)
    except FileExistsError:
        raise _overtaken(run) from None
    files.sync_folder(submission.folder.parent)  # a number that tasks have must not be reused
    files.publish_json(submission.folder / run_directory.INTENT, intent)
    jobs: list[dict[str, Any]] = []
    try:
        run.intent(submission.number)  # what could not be read is not submitted
        _check_not_overtaken(run, submission, after)
        with _ends_reported(run, submission, jobs):
            for job in executor.submit(submission):
                jobs.append(job.to_json())
                files.publish_json(submission.folder / run_directory.JOBS, {"jobs": jobs})
    except (Rejected, BusyError, DamageError) as error:
        if jobs:  # cancelled by now, but some may have started: the number must not be reused
            run.end_submission(submission.number, str(error))
        else:
            files.remove_folder(submission.folder)
        raise
    except OutcomeUnknown as error:
        run.end_submission(submission.number, str(error))
        raise


@contextlib.contextmanager
def _ends_reported(
    run: RunDirectory, submission: Submission, jobs: list[dict[str, Any]]
) -> Iterator[None]:
    """Record the end of tasks that ran in this process and have not: it lives on, in a notebook."""
    why = "it ended without reporting"
    try:
        yield
    except BaseException as error:
        why = error_text(error)
        raise
    finally:
        for job in [job for job in jobs if job["pid"] == os.getpid()]:
            name = run_directory.task_name(submission.number, job["first"])
            last: Mapping[str, Any] = run.last_heartbeat(name) or job
            ended = last.get("state") in FINAL_STATES or run.overtaken(submission.number)
            if last.get("pid") == job["pid"] and not (ended or is_elsewhere(last)):
                run.record_crash(name, why)


def _check_not_overtaken(run: RunDirectory, submission: Submission, after: int | None) -> None:
    """Check once more, now that the new intent is on disk and visible to all other processes.

    - Of two that submit at once, where the file system has no locks, the later intent is the claim.
    - A cancel after this covers the new submission; an earlier one is detected here.
    - A job for which sbatch returned no answer ends at once if it starts after this; if it started
      earlier, it is running and detected here.

    Raises:
        BusyError: the run was cancelled, another process submits, or such a job is running.
    """
    if run.overtaken(submission.number):
        raise _overtaken(run)
    if after is not None and run.ended(after) is not None:
        raise BusyError(f"run {run.id}: {run.ended(after)}")
    number = _earlier_on_slurm(run)
    if number is None or len(run.task_jobs(number)) == run.worker_count(number):
        return
    tasks = slurm_tasks(run, number, run.heartbeats(number), Scheduler(exact=True))
    if any(task.live for task in tasks):
        raise BusyError(f"run {run.id}: one of its jobs that was presumed lost has started")


def _overtaken(run: RunDirectory) -> BusyError:
    return BusyError(
        f"run {run.id}: another launch or resume has just submitted it; see mlpsubmit status"
    )


def _cancel_retry(run: RunDirectory) -> None:
    """Cancel the pending job that would resume the run, which a new submission has done."""
    earlier = _earlier_on_slurm(run)
    retry = None if earlier is None else slurm_retry(run, earlier, Scheduler())
    if retry is not None and retry.pending:
        with contextlib.suppress(SlurmUnavailable):  # then it ends when it starts: superseded
            cancel([retry.id])


def _earlier_on_slurm(run: RunDirectory) -> int | None:
    """Return the number of the submission before the latest if it went to SLURM, else None."""
    earlier = run.submissions()[:-1]
    on_slurm = earlier and run.intent(earlier[-1])["executor"] == "slurm"
    return earlier[-1] if on_slurm else None
