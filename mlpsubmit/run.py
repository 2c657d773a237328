"""A run: see how far it is, wait for it, collect it, resume it, stop it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.finding import find_run
from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.plan import Plan, cut
from mlpsubmit.jobs.slurm.commands import NoAnswer
from mlpsubmit.jobs.slurm.refusals import Refused
from mlpsubmit.jobs.slurm.sbatch import Uncertain, cancel
from mlpsubmit.jobs.slurm.states import Scheduler, job_ids, slurm_retry
from mlpsubmit.jobs.status import Status, TaskStatus, read_status
from mlpsubmit.jobs.store import RunDirectory

if TYPE_CHECKING:
    import xarray

    from mlpsubmit.jobs.executors import Executor, Submission
    from mlpsubmit.results import Layout
    from mlpsubmit.slurm_templates import Template

__all__ = ["Run", "exclusively", "open_run", "submission_for"]

POLL_SECONDS = 0.5

#: Task files that are read per second by somebody who waits.
READS_PER_SECOND = 200


class Run:
    """A launched sweep.

    Get one from :func:`launch` or :func:`open_run`.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._scheduler = Scheduler()

    @property
    def id(self) -> str:
        """The run's id."""
        return self.directory.id

    @property
    def name(self) -> str:
        """The name of its sweep."""
        return str(self.directory.sweep["name"])

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.directory.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def status(self) -> Status:
        """Return how far the run is."""
        return read_status(self.directory, self._scheduler)

    def wait(self, on_status: Callable[[Status], None] | None = None) -> Status:
        """Return the status once no task lives any more, and none will without your doing.

        Args:
            on_status: called about twice a second, or less often the more tasks there are, with
                the status so far.
        """
        while True:
            status = self.status()
            if on_status is not None:
                on_status(status)
            if not status.running:
                return status
            time.sleep(max(POLL_SECONDS, len(status.tasks) / READS_PER_SECOND))

    def resume(
        self,
        executor: str | None = None,
        tasks: int | None = None,
        *,
        template: str | None = None,
        slurm: Mapping[str, Any] | None = None,
        retries: int = 0,
        pdb: bool = False,
    ) -> int:
        """Train what has no result: packs that failed, were interrupted or never began.

        Args:
            executor: ``slurm``, ``local``, ``debug`` or ``auto``; else what the run was last
                submitted to.
            tasks: how many tasks at most.
            template: as :func:`mlpsubmit.launch` takes it; else what the run last asked for.
            slurm: keys of the template that take the place of its own.
            retries: how often SLURM resumes by itself what is missing after that.
            pdb: with ``debug``, open a debugger where a pack fails.

        Returns:
            How many packs were submitted; 0 where nothing is missing.

        Raises:
            RunError: where a task of the run still lives, or may for all that is known.
            UserError: where the executor cannot be had, or the cluster refuses the job.
        """
        from mlpsubmit.hyperparameters import validate
        from mlpsubmit.jobs import executors
        from mlpsubmit.slurm_templates import SlurmAsk

        hyperparameters = validate({"devices": self.directory.sweep["devices"]})
        name, base = self._last_executor()
        ask = SlurmAsk(template, dict(slurm or {}))
        chosen = executors.choose(executor or name, hyperparameters, tasks, ask, base)
        chosen.pdb = pdb
        submitted = self.start(chosen, retries)
        if not submitted and (lost := self.lost_reused()):
            raise RunError(
                f"run {self.id}: {lost} results that it took over from earlier runs are damaged; "
                "launch its spec again: a new run takes over what is whole and trains those alone"
            )
        return submitted

    def _last_executor(self) -> tuple[str, Template | None]:
        """Return what the run was last submitted to, and what it last asked SLURM for."""
        from mlpsubmit.slurm_templates import Template

        intents = [self.directory.intent(number) for number in self.directory.submissions()]
        asked = [intent["template"] for intent in intents if intent["executor"] == "slurm"]
        base = Template.from_json(asked[-1], str(self.path)) if asked else None
        name = str(intents[-1]["executor"]) if intents else "auto"
        return ("auto" if name == "debug" else name), base

    def lost_reused(self) -> int:
        """Return how many results taken over from earlier runs are no longer whole."""
        return int(self.directory.sweep["reused"]["configs"]) - self.directory.reused()

    def missing_packs(self, plan: Plan) -> NDArray[np.int64]:
        """Return the numbers of the packs that have no result, having verified those that do."""
        finished = self.directory.finished(among={pack.name for pack in plan})
        return np.array([p.number for p in plan if p.name not in finished], dtype=np.int64)

    def start(self, executor: Executor, retries: int = 0, *, checked: bool = False) -> int:
        """Hand what is missing to an executor; return how many packs that is.

        Args:
            retries: how often SLURM resumes by itself what is missing after that.
            checked: whether the executor has been asked already if it would take it.

        Raises:
            RunError: where a task of the run still lives, or may for all that is known.
            UserError: where the cluster refuses the job; then the run is as it was.
        """
        with exclusively(self.path / store.PLAN, f"run {self.id}"):
            scheduler = Scheduler(exact=True)
            self._refuse_if_busy(read_status(self.directory, scheduler))
            plan = Plan.from_json(self.directory.plan)
            missing = self.missing_packs(plan)
            if len(missing):
                number = self.directory.next_submission()
                submission = submission_for(
                    self.path, self.name, number, executor, plan, missing, retries
                )
                if not checked:
                    executor.check(submission)
                self._forget_retry(scheduler)
                self._submit(executor, plan, missing, submission)
            return len(missing)

    def _refuse_if_busy(self, status: Status) -> None:
        unknown = next((task for task in status.tasks if task.state == "unknown"), None)
        if unknown is not None:
            raise RunError(
                f"run {self.id}: its tasks may still live, for {unknown.why}; try again when it "
                "does, so that nothing trains twice"
            )
        if status.busy:
            raise RunError(
                f"run {self.id} is still running; wait for it (mlpsubmit status), or stop it "
                "first: mlpsubmit cancel"
            )

    def _forget_retry(self, scheduler: Scheduler) -> None:
        """Take the job back that waits to do what is being done now."""
        submissions = self.directory.submissions()
        if submissions and self.directory.intent(submissions[-1])["executor"] == "slurm":
            retry = slurm_retry(self.directory, submissions[-1], scheduler)
            if retry is not None and retry.pending:
                with contextlib.suppress(NoAnswer):  # it will find that there is nothing to do
                    cancel([retry.id])

    def _submit(
        self, executor: Executor, plan: Plan, missing: NDArray[np.int64], submission: Submission
    ) -> None:
        """Write down what is about to be submitted, submit it, and write down each answer."""
        submission.folder.mkdir()
        intent = {
            "executor": executor.name,
            "host": socket.gethostname(),
            "created": time.time(),
            "slices": cut(missing, plan.pack_costs[missing], submission.tasks),
            **executor.intent(submission),
        }
        store.publish_json(submission.folder / store.INTENT, intent)
        executor.threads = plan.threads
        jobs: list[dict[str, Any]] = []
        try:
            for job in executor.submit(submission):
                jobs.append(job.to_json())
                store.publish_json(submission.folder / store.JOBS, {"jobs": jobs})
        except Refused:
            shutil.rmtree(submission.folder)
            raise
        except Uncertain as error:
            self.directory.end_submission(submission.number, str(error))
            raise

    def cancel(self) -> int:
        """Ask every living task to save its pack and stop.

        Returns:
            How many were asked.

        Raises:
            RunError: where tasks live on another machine, which signals cannot reach, or the
                scheduler does not answer.
        """
        submissions = self.directory.submissions()
        if not submissions:
            return 0
        asked = [task for task in self.status().tasks if task.live or task.state == "unknown"]
        if self.directory.intent(submissions[-1])["executor"] == "slurm":
            self._cancel_jobs(submissions[-1])
            return len(asked)
        return self._signal(asked, self.directory.task_jobs(submissions[-1]))

    def _cancel_jobs(self, number: int) -> None:
        """Cancel every job of a submission, and have none go on that starts or ends meanwhile."""
        self.directory.end_submission(number, "cancelled")
        try:
            cancel(list(job_ids(self.directory, number, Scheduler())))
        except NoAnswer as error:
            raise RunError(
                f"run {self.id}: the cluster does not answer ({error}); tasks that start from now "
                "on end at once, but those that run go on; cancel again when it answers"
            ) from None

    def _signal(self, tasks: list[TaskStatus], jobs: Mapping[str, Any]) -> int:
        asked, elsewhere = 0, set()
        for task in tasks:
            process = task.heartbeat or jobs[task.name]
            if process["host"] != socket.gethostname():
                elsewhere.add(process["host"])
            elif is_alive(process):
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(int(process["pid"]), signal.SIGTERM)
                    asked += 1
        if elsewhere:
            raise RunError(
                f"run {self.id} has tasks on {', '.join(sorted(elsewhere))}, which cannot be "
                "signalled from here; run mlpsubmit cancel there"
            )
        return asked

    def logs(self, task: str | int | None = None) -> dict[str, Path]:
        """Return the log files of the tasks that have one, by task, oldest submission first.

        Args:
            task: the name of a task, or its index in the latest submission.

        Raises:
            RunError: where there is no such task.
        """
        found = {}
        for number in self.directory.submissions():
            for name, job in self.directory.task_jobs(number).items():
                file = self.directory.log(number, job["id"])
                if file.exists():
                    found[name] = file
        if task is None:
            return found
        last = max(self.directory.submissions(), default=0)
        name = store.task_name(last, int(task)) if str(task).isdigit() else str(task)
        if name not in found:
            valid = ", ".join(list(found)[:8]) + ", ..." * (len(found) > 8) or "none yet"
            raise RunError(f"task {task}: run {self.id} has no log of it; it has logs of: {valid}")
        return {name: found[name]}

    def collect(self, out: str | Path | None = None) -> xarray.Dataset:
        """Return everything measured so far as one labelled dataset.

        Args:
            out: a file to write as well: ``.nc``, ``.zarr``, ``.parquet``, ``.csv`` or ``.pkl``.
                With ``.nc`` the dataset is read from it piece by piece as it is used, so that
                traces larger than the memory can be worked with.

        Raises:
            UserError: for another ending.
        """
        from mlpsubmit.results import to_dataset, write

        if out is not None:
            written = write(self.layout(), self.directory, Path(out))
            if written.suffix == ".nc":
                import xarray

                return xarray.open_dataset(written, engine="h5netcdf")
        return to_dataset(self.layout(), self.directory)

    def layout(self) -> Layout:
        """Return what the dataset of this run looks like: dimensions, coordinates, origin."""
        from mlpsubmit.results import Dimension, Layout

        sweep = self.directory.sweep
        dimensions = tuple(
            Dimension(
                axis["dimension"],
                {
                    name: tuple(values)
                    for name, values in zip(axis["names"], axis["values"], strict=True)
                },
            )
            for axis in sweep["axes"]
        )
        size = int(np.prod([len(axis["values"][0]) for axis in sweep["axes"]], dtype=np.int64))
        included = sweep["included"] and store.unpack_mask(sweep["included"], size)
        return Layout(
            dimensions=dimensions,
            thresholds=tuple(sweep["thresholds"]),
            attributes={**sweep["origin"], "run": self.id, "sweep": self.name},
            included=included,
        )


def submission_for(
    path: Path,
    sweep: str,
    number: int,
    executor: Executor,
    plan: Plan,
    missing: NDArray[np.int64],
    retries: int,
) -> Submission:
    """Return the submission of what is missing, as an executor takes it."""
    from mlpsubmit.jobs.executors import Submission

    cost = float(plan.pack_costs[missing].sum())
    tasks = executor.tasks(plan.threads, len(missing), cost)
    return Submission(path.absolute(), sweep, number, tasks, retries)


@contextlib.contextmanager
def exclusively(file: Path, what: str) -> Iterator[None]:
    """Hold a lock, or say that another process is at it.

    Raises:
        RunError: where another holds it.
    """
    try:
        with store.locked(file, wait=False):
            yield
    except BlockingIOError:
        raise RunError(
            f"{what}: another launch or resume of it is at work; wait until it is done"
        ) from None


def open_run(selector: str | Path | None = None, runs_dir: str | Path | None = None) -> Run:
    """Open a run.

    Args:
        selector: its folder; or the name of a sweep, for its latest run; or the start of a run
            id, or of the six characters that end it; or None for the latest run of all.
        runs_dir: where runs are kept; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: where the selector fits no run, or several.
    """
    return Run(RunDirectory.open(find_run(selector, runs_dir)))
