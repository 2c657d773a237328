"""A run: see how far it is, wait for it, collect it, resume it, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.display.html import in_cell, status_html
from mlpsubmit.errors import BusyError, RunError
from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.sbatch import cancel
from mlpsubmit.jobs.slurm.task_states import Scheduler, job_ids
from mlpsubmit.jobs.status import Status, TaskStatus, read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.locate import find_run
from mlpsubmit.runs.submit import start
from mlpsubmit.spec.guard import stop_reading

if TYPE_CHECKING:
    import xarray

    from mlpsubmit.results import Layout
    from mlpsubmit.slurm_templates import Template

__all__ = ["Run", "notebook_display", "open_run", "pause"]

POLL_SECONDS = 0.5

#: For how long, and how often, a job on the cluster tries to resume a run that is busy.
RETRY_SECONDS = 600.0
RETRY_REST_SECONDS = 10.0

#: Task files that are read per second by somebody who waits.
READS_PER_SECOND = 200


@dataclass(frozen=True)
class _Asked:
    """What a run was last submitted to, and what it asked for."""

    executor: str
    tasks: int | None = None
    template: Template | None = None


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

    def _repr_html_(self) -> str:
        return _html(self.status())

    def status(self) -> Status:
        """Return how far the run is."""
        return read_status(self.directory, self._scheduler)

    def wait(self, on_status: Callable[[Status], None] | None = None) -> Status:
        """Return the status once no task lives any more, and none will without your doing.

        Args:
            on_status: called about twice a second, or less often the more tasks there are, with
                the status so far. By default a notebook shows it, and a script does nothing.
        """
        on_status = on_status or notebook_display()
        while True:
            status = self.status()
            if on_status is not None:
                on_status(status)
            if not status.running:
                return status
            time.sleep(pause(status))

    def resume(
        self,
        executor: str | None = None,
        tasks: int | None = None,
        *,
        template: str | None = None,
        slurm: Mapping[str, Any] | None = None,
        retries: int = 0,
        after: int | None = None,
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
            after: only where this submission is still the latest, and was not cancelled.
            pdb: with ``debug``, open a debugger where a pack fails.

        Returns:
            How many packs were submitted; 0 where nothing is missing.

        Raises:
            BusyError: where a task of the run still lives, or may for all that is known.
            UserError: where the executor cannot be had, or the cluster refuses the job.
        """
        from mlpsubmit.jobs import executors
        from mlpsubmit.slurm_templates import SlurmRequest
        from mlpsubmit.spec.hyperparameters import validate

        hyperparameters = validate({"devices": self.directory.sweep["devices"]})
        last = self._last_asked()
        ask = SlurmRequest(template, dict(slurm or {}), retries)
        name = executor or last.executor
        if name == "slurm" and last.executor == "slurm":
            tasks = tasks or last.tasks
        chosen = executors.choose(name, hyperparameters, tasks, ask, last.template)
        chosen.pdb = pdb
        submitted = start(self.directory, chosen, retries, after=after)
        if not submitted and (lost := self.lost_reused()):
            raise RunError(
                f"run {self.id}: {lost} results that it took over from earlier runs are damaged; "
                "launch its spec again: a new run takes over what is whole and trains those alone"
            )
        return submitted

    def retry(self, after: int, retries: int, patience: float = RETRY_SECONDS) -> int:
        """Resume what a submission to SLURM has left, as a job on the cluster does.

        Args:
            after: the number of the submission; where another has followed or it was cancelled,
                nothing is done.
            retries: how often this is to be repeated after that.
            patience: seconds for which to try again where the run or the scheduler is busy.

        Returns:
            How many packs were submitted.
        """
        end = time.monotonic() + patience
        while self.directory.superseded(after) is None:
            try:
                return self.resume("slurm", retries=retries, after=after)
            except BusyError as error:
                print(f"not yet: {error}", flush=True)
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_REST_SECONDS)
        return 0

    def _last_asked(self) -> _Asked:
        """Return what the run was last submitted to, and what it last asked SLURM for."""
        from mlpsubmit.slurm_templates import Template

        intents = [self.directory.intent(number) for number in self.directory.submissions()]
        name = str(intents[-1]["executor"]) if intents else "auto"
        asked = [intent for intent in intents if intent["executor"] == "slurm"]
        if not asked:
            return _Asked("auto" if name == "debug" else name)
        template = Template.from_json(asked[-1]["template"], str(self.path))
        return _Asked("auto" if name == "debug" else name, asked[-1]["tasks"], template)

    def lost_reused(self) -> int:
        """Return how many results taken over from earlier runs are no longer whole."""
        return int(self.directory.sweep["reused"]["configs"]) - self.directory.results.reused()

    def cancel(self) -> int:
        """Ask every living task to save its pack and stop.

        Returns:
            How many were asked.

        Raises:
            RunError: where tasks live on another machine, which signals cannot reach, or the
                scheduler does not answer.
        """
        if not self.directory.submissions():
            return 0
        asked = [task for task in self.status().tasks if task.live or task.state == "unknown"]
        number = self.directory.submissions()[-1]
        if self.directory.intent(number)["executor"] != "slurm":
            return self._signal(asked, self.directory.task_jobs(number))
        while True:
            self._cancel_jobs(number)
            latest = self.directory.submissions()[-1]
            if latest == number:
                return len(asked)
            number = latest  # a job on the cluster has resumed it meanwhile

    def _cancel_jobs(self, number: int) -> None:
        """Cancel every job of a submission, and have none go on that starts or ends meanwhile."""
        self.directory.end_submission(number, "cancelled")
        try:
            cancel(job_ids(self.directory, number))
        except SlurmUnavailable as error:
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

        A task that has not started yet has none.

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
        name = run_directory.task_name(last, int(task)) if str(task).isdecimal() else str(task)
        if name not in self._task_names():
            valid = ", ".join(list(found)[:8]) + ", ..." * (len(found) > 8) or "none yet"
            raise RunError(f"task {task}: run {self.id} has no log of it; it has logs of: {valid}")
        return {name: found[name]} if name in found else {}

    def _task_names(self) -> set[str]:
        """Return what the tasks of all submissions are called."""
        return {
            run_directory.task_name(number, index)
            for number in self.directory.submissions()
            for index in range(self.directory.tasks(number))
        }

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
            written = write(self.layout(), self.directory.results, Path(out))
            if written.suffix == ".nc":
                import xarray

                return xarray.open_dataset(written, engine="h5netcdf")
        return to_dataset(self.layout(), self.directory.results)

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
        included = sweep["included"] and decode_mask(sweep["included"], size)
        return Layout(
            dimensions=dimensions,
            thresholds=tuple(sweep["thresholds"]),
            attributes={**sweep["origin"], "run": self.id, "sweep": self.name},
            included=included,
        )


def pause(status: Status) -> float:
    """Return the seconds after which whoever waits may look at the run again."""
    return max(POLL_SECONDS, len(status.tasks) / READS_PER_SECOND)


def open_run(selector: str | Path | None = None, runs_dir: str | Path | None = None) -> Run:
    """Open a run.

    Args:
        selector: its folder; or the name of a sweep, for its latest run; or the start of a run
            id, or of the six characters that end it; or None for the latest run of all.
        runs_dir: where runs are kept; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: where the selector fits no run, or several.
    """
    stop_reading()
    return Run(RunDirectory.open(find_run(selector, runs_dir)))


def notebook_display() -> Callable[[Status], None] | None:
    """Return a function that shows a status in the running cell; None outside of notebooks."""
    show = in_cell()
    return None if show is None else lambda status: show(_html(status))


def _html(status: Status) -> str:
    """Return a status as HTML; tasks that ended well need no row of their own."""
    rows = [] if status.complete else [(t.name, t.state, t.summary) for t in status.tasks]
    reasons = (failure.error for failure in status.failures)
    return status_html(
        status.name, status.run, status.state, status.fraction, status.summary, rows, reasons
    )
