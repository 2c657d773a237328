"""A run: its status, waiting, collecting, resuming, cancelling, logs."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mlpsubmit.display.html import in_cell, status_html
from mlpsubmit.display.loss_figure import loss_figure
from mlpsubmit.display.output import echo
from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted
from mlpsubmit.errors import BusyError, RunError, UserError, shown
from mlpsubmit.files import share_output
from mlpsubmit.jobs.as_launched import missing_folder
from mlpsubmit.jobs.heartbeat import is_alive, is_elsewhere
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.limits import NoRoom
from mlpsubmit.jobs.slurm.rejections import Rejected
from mlpsubmit.jobs.slurm.sbatch import cancel
from mlpsubmit.jobs.slurm.task_states import Scheduler, live_jobs
from mlpsubmit.jobs.status import Status, TaskStatus, read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.owners import owner
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.jobs.worker_process import terminate
from mlpsubmit.results.labels import Labels
from mlpsubmit.runs.locate import Selected, find_run
from mlpsubmit.runs.provenance import attributes, edited_spec
from mlpsubmit.runs.settings import axis_hashes, fixed_settings, grab_functions, setting_texts
from mlpsubmit.runs.submit import start
from mlpsubmit.spec.guard import stop_reading

if TYPE_CHECKING:
    import xarray
    from torch import nn

    from mlpsubmit.results import Layout
    from mlpsubmit.slurm_templates import Template

__all__ = ["Run", "notebook_display", "open_run", "poll_seconds"]

POLL_SECONDS = 0.5

#: The most tasks whose losses a notebook draws.
_CURVES = 8

#: For how long, and how often, a job on the cluster tries to resume a run that is busy.
RETRY_SECONDS = 600.0
RETRY_PAUSE_SECONDS = 10.0

#: The most task files that a process waiting for a run reads per second.
READS_PER_SECOND = 200


class Run:
    """A launched sweep, as :func:`launch` and :func:`open_run` return it.

    Attributes:
        directory: its files.
        selected: how :func:`open_run` chose it; ``str(run.selected)`` names the run and the number
            of runs of which it is the latest.
    """

    def __init__(self, directory: RunDirectory, selected: Selected | None = None) -> None:
        self.directory = directory
        self.selected = selected or Selected(directory.path)
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
        """Return the progress of the run, and the state of its tasks."""
        return read_status(self.directory, self._scheduler)

    def wait(self, on_status: Callable[[Status], None] | None = None) -> Status:
        """Wait until no task is running and no job will resume any, and return the status.

        Args:
            on_status: called with every status, about twice a second, or less often if there are
                many tasks. By default a notebook displays it, and a script does nothing.
        """
        on_status = on_status or notebook_display()
        self._scheduler.watches = True
        while True:
            status = self.status()
            if on_status is not None:
                on_status(status)
            if not status.running:
                return status
            time.sleep(poll_seconds(status))

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
        same_device: bool | None = None,
        trust: bool = False,
        submitted_hash: str = "",
    ) -> int:
        """Train the packs without a result: failed, interrupted or never started.

        Args:
            executor: ``slurm``, ``local``, ``debug`` or ``auto``; by default that of the latest
                submission.
            tasks: the maximum number of tasks.
            template: as in :func:`mlpsubmit.launch`; by default that of the latest submission to
                SLURM.
            slurm: keys that override those of the template.
            retries: how often SLURM automatically resumes what is missing after that.
            after: submit only if the submission of this number is the latest and was not
                cancelled.
            pdb: with ``debug``, open a debugger when a pack fails.
            same_device: as in :func:`mlpsubmit.launch`; by default as it was for the run so far.
            trust: execute the functions in the run even if other users could have written them,
                and take it over from the user who has resumed it last.
            submitted_hash: execute the sweep with this hash, whoever has written it, and no other.

        Returns:
            The number of packs submitted; 0 if none is missing.

        Raises:
            BusyError: a task of the run is running, or that cannot be ruled out.
            UserError: the executor is not available, or the cluster rejects the job.
            RunError: reused results are damaged; only a new launch can train these configs again.
                Or other users could have written the functions in the run.
            KeyboardInterrupt: with ``debug``, a signal has ended the training, whose state is
                saved.
        """
        with doing("importing torch"):
            from mlpsubmit.jobs import executors
            from mlpsubmit.slurm_templates import SlurmRequest
            from mlpsubmit.spec.hyperparameters import validate

        carried = submitted_hash or sweep_hash(self.directory, trust=trust)
        for warning in filter(None, (missing_folder(self.directory), edited_spec(self.directory))):
            warnings.warn(warning, stacklevel=2)
        hyperparameters = validate({"devices": self.directory.sweep["devices"]})
        last_executor, last_tasks, last_template = self._last_submission()
        request = SlurmRequest(template, dict(slurm or {}), retries)
        name = executor or last_executor
        if name == last_executor == "slurm":
            tasks = tasks or last_tasks
        chosen = executors.choose(
            *(name, hyperparameters, tasks, request, last_template),
            pdb=pdb,
            same_device=same_device,
        )
        submitted = start(self.directory, chosen, carried, retries, after=after, trust=trust)
        if not submitted and (damaged := self.damaged_reused()):
            raise RunError(
                f"run {self.id}: {counted(damaged, 'result')} reused from earlier runs cannot be "
                "read any more (damaged); launch its spec again: a new run reuses the intact ones "
                "and trains only the others"
            )
        return submitted

    def retry(self, after: int, retries: int, submitted_hash: str) -> int:
        """Submit what a submission to SLURM has left for later, or resume what it has not finished.

        In a job on the cluster. While the run is busy, keep trying for a while.

        Args:
            after: the number of the submission; nothing is done if it was cancelled or is not the
                latest.
            retries: how often SLURM resumes the run after that, unless there are tasks for later.
            submitted_hash: of the sweep that it was submitted for; no other is executed.

        Returns:
            The number of packs submitted.

        Raises:
            NoRoom: limits leave no room for even one task; later they may.
        """
        share_output(self.directory.submission(after))
        end = time.monotonic() + RETRY_SECONDS
        number = self.directory.followed(after)
        while self.directory.superseded(number) is None:
            intent = self.directory.intent(number)
            if intent.get("later"):
                retries = intent["retries"]
            try:
                packs = self.resume(
                    "slurm", retries=retries, after=number, submitted_hash=submitted_hash
                )
            except BusyError as error:
                if number != after:
                    raise NoRoom(str(error)) from None
                echo(f"not yet: {error}")
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_PAUSE_SECONDS)
            except Rejected as error:
                if not error.is_of_limit:
                    raise
                raise NoRoom(str(error)) from None
            else:
                if self.directory.followed(after) != number:
                    raise NoRoom("there is no room for a job that follows; this one will do it")
                return packs
        return 0

    def _last_submission(self) -> tuple[str, int | None, Template | None]:
        """Return the executor last submitted to, and this user's last tasks and template."""
        from mlpsubmit.slurm_templates import Template

        numbers = self.directory.submissions()
        read = {number: self.directory.readable_intent(number) for number in numbers}
        intents = [intent for intent in read.values() if intent is not None]
        own = [  # an account, a partition and commands of another user are not used
            intent
            for number, intent in read.items()
            if intent is not None and self.directory.submitter(number) is None
        ]
        name = str(intents[-1]["executor"]) if intents else "auto"
        name = "auto" if name == "debug" else name
        on_slurm = [intent for intent in own if intent["executor"] == "slurm"]
        if not on_slurm:
            return name, None, None
        try:
            template = Template(**on_slurm[-1]["template"])
        except ValidationError as error:
            raise RunError(
                f"run {self.id}: the template of its last submission is damaged ({error}); give "
                "one with --template"
            ) from None
        return name, on_slurm[-1]["tasks"], template

    def damaged_reused(self) -> int:
        """Return how many results reused from earlier runs are damaged by now."""
        results = self.directory.results
        results.verify()
        return int(self.directory.sweep["reused"]) - results.outcomes().reused

    def cancel(self) -> int:
        """Tell every running task to save its state and stop.

        Returns:
            The number of tasks that it stops.

        Raises:
            RunError: the tasks are another user's, or run on another machine, where they cannot be
                signalled; the processes are not those of the tasks; or the scheduler does not
                answer.
        """
        if not self.directory.submissions():
            return 0
        number = self.directory.submissions()[-1]
        if (other := self._other_owner(number)) is not None:
            raise RunError(
                f"run {self.id}: its tasks were submitted by {other}, and only {other} can stop "
                f"them; ask {other} to run: mlpsubmit cancel {self.path}"
            )
        if self.directory.intent(number)["executor"] != "slurm":
            tasks = self.status().tasks
            running = [task for task in tasks if task.live or task.state == "unknown"]
            return self._terminate(running, self.directory.task_jobs(number))
        while True:
            stopped = self._cancel_jobs(number)
            latest = self.directory.submissions()[-1]
            if latest == number or self._other_owner(latest) is not None:
                return stopped
            number = latest  # a job on the cluster has resumed it meanwhile

    def _cancel_jobs(self, number: int) -> int:
        """Cancel every job of a submission; a task that starts meanwhile ends at once.

        Returns:
            How many tasks were queued or running.
        """
        self.directory.end_submission(number, "cancelled")
        try:
            jobs = live_jobs(self.directory, number)
            cancel(jobs.ids)
            return jobs.tasks
        except SlurmUnavailable as error:
            raise RunError(
                f"run {self.id}: the cluster does not answer ({error}); tasks that start from now "
                "on will end at once, but running ones continue; cancel again when it answers"
            ) from None

    def _other_owner(self, number: int) -> str | None:
        """Return which other user has made a submission; None for one of this user, or for root."""
        return None if os.geteuid() == 0 else owner(self.directory.submission(number))

    def _terminate(self, tasks: list[TaskStatus], jobs: Mapping[str, Any]) -> int:
        """Send SIGTERM to the processes of tasks, and return to how many."""
        signalled, elsewhere, others = 0, set(), []
        for task in tasks:
            process = task.heartbeat or jobs.get(task.name)
            if process is None:  # jobs.json is damaged
                others.append(f"task {task.name}: {task.why}")
            elif is_elsewhere(process):
                elsewhere.add(process["host"])
            elif is_alive(process):
                why = terminate(process, self.id, task.name)
                others += [] if why is None else [f"task {task.name}: {why}"]
                signalled += why is None
        if others:
            raise RunError(
                f"run {self.id}: these processes are not its workers, and were not signalled: "
                f"{'; '.join(others)}; a process that trains a run and does other things, too, is "
                "stopped where it was started (Ctrl-C)"
            )
        if elsewhere:
            raise RunError(
                f"run {self.id} has tasks on {', '.join(sorted(elsewhere))}, which cannot be "
                "signalled from here; run mlpsubmit cancel there"
            )
        return signalled

    def logs(self, task: str | int | None = None) -> dict[str, Path]:
        """Return the log files by task name, oldest submission first.

        A task that has not started yet has none. Of several workers of a task each has one, and
        their job another one, by its id.

        Args:
            task: only the log of this task or worker: its name, or its number in the latest
                submission; or of a job.

        Raises:
            RunError: there is no such task.
        """
        names: set[str] = set()
        found = {}
        for number in self.directory.submissions():
            if self.directory.readable_intent(number) is None:
                continue
            tasks = range(self.directory.worker_count(number))
            names.update(run_directory.task_name(number, index) for index in tasks)
            for name, job in self.directory.task_jobs(number).items():
                file = self.directory.worker_log(number, name, job["id"])
                of_job = self.directory.log(number, job["id"])
                if of_job != file and of_job.is_file():  # what SLURM says, and of all its workers
                    found[job["id"]] = of_job
                    names.add(job["id"])
                if file.is_file():
                    found[name] = file
        if task is None:
            return found
        last = max(self.directory.submissions(), default=0)
        name = run_directory.task_name(last, int(task)) if str(task).isdecimal() else str(task)
        if name not in names:
            valid = ", ".join(list(found)[:8]) + ", ..." * (len(found) > 8) or "none yet"
            raise RunError(
                f"task {task}: run {self.id} has no such task; tasks with a log: {valid}"
            )
        return {name: found[name]} if name in found else {}

    def collect(self, out: str | Path | None = None, *, force: bool = False) -> xarray.Dataset:
        """Return all results so far as one labelled dataset; say how many are not there.

        Args:
            out: a file to write as well: ``.nc``, ``.zarr``, ``.parquet``, ``.csv`` or ``.pkl``.
                With ``.nc`` the returned dataset reads from it lazily, so that traces may be larger
                than RAM.
            force: replace the file even if it is not an earlier one of this run.

        Raises:
            UserError: the file has another suffix, or exists and is not of this run.
        """
        from mlpsubmit.results.export import collected

        with doing("reading the results"):
            found = self.layout(), self.directory.results.unread()
            dataset = collected(*found, out, force=force)
        say_what_is_missing(self.id, dataset)
        return dataset

    def plot(
        self,
        y: str | Sequence[str] | None = None,
        x: str | None = None,
        *,
        hue: str | None = None,
        col: str | None = None,
        row: str | None = None,
        mean: str | Sequence[str] = (),
        sel: Mapping[str, Any] | None = None,
        kind: str | None = None,
        errorbar: str | None = "se",
        context: str = "paper",
        xscale: str | None = None,
        yscale: str | None = None,
        title: str | None = None,
        out: str | Path | None = None,
        force: bool = False,
    ) -> NDArray[Any]:
        """Draw the results so far, and return the panels: matplotlib's axes, (rows, columns).

        Args:
            y: a variable, or several, and so on: see :func:`mlpsubmit.results.plot`, which draws a
                dataset with the same arguments.
            x: an axis, or ``step``.
            hue: an axis: its values are colours.
            col: an axis: its values are columns of panels.
            row: an axis: its values are rows of panels.
            mean: axes to average, besides the trials.
            sel: what to draw: ``{"noise": 0.3, "width": [64, 128], "lr": slice(0.01, 0.1)}``.
            kind: ``line``, ``heatmap`` or ``scatter``.
            errorbar: ``se``, ``sd``, ``range``, ``ci``, or None for no band.
            context: ``paper`` or ``talk``.
            xscale: ``log`` or ``linear``.
            yscale: the same.
            title: instead of the selected values.
            out: a file to write: .png, .pdf or .svg. Without, a notebook displays the figure.
            force: replace the file even if it is not a figure of this run.

        Raises:
            UserError: a name or a value does not fit the sweep; there is nothing to draw; or the
                file exists and is not of this run.
        """
        from mlpsubmit.results import plot
        from mlpsubmit.results._plot import needed, requested

        return plot(
            self.partial(needed(requested(y, {"x": x, "hue": hue}, (), None))),
            y,
            x,
            hue=hue,
            col=col,
            row=row,
            mean=mean,
            sel=sel,
            kind=kind,
            errorbar=errorbar,
            context=context,
            xscale=xscale,
            yscale=yscale,
            title=title,
            out=out,
            force=force,
        )

    def partial(self, names: Collection[str]) -> xarray.Dataset:
        """Return the results so far, of traces and large grabs those of some names only.

        The others have their dimensions, but no values.
        """
        from mlpsubmit.results.dataset import partial_dataset

        return partial_dataset(self.layout(), self.directory.results.unread(), names)

    def model(
        self,
        *,
        step: int | None = None,
        initial: bool = False,
        trust: bool = False,
        **selection: Any,
    ) -> nn.Module:
        """Return the network of one config, with the weights that SAVE_WEIGHTS has kept.

        ``model(X)`` is its output, uncentred, as grabs see it: layers multiply their outputs as
        PARAMETRIZATION and GAMMA want it. With CENTERED the network that was trained is
        ``model(X) - model0(X)``, where ``model0`` is ``run.model(initial=True, ...)``. Both are on
        the CPU, and in eval mode. Of a config that diverged there is a warning.

        Args:
            step: of the weights, with a schedule in SAVE_WEIGHTS; by default the last.
            initial: return the network at initialisation, which needs no SAVE_WEIGHTS.
            trust: execute the functions in the run even if other users could have written them.
            selection: values of axes that one config alone has, such as ``width=64, trial=0``;
                numbers also with fewer digits, as tables and legends show them.

        Raises:
            UserError: no config has these values, or several have; it has no result; or the run
                keeps no weights.
            RunError: other users could have written the functions in the run.
        """
        from mlpsubmit.runs.networks import saved_model

        return saved_model(self.directory, selection, step=step, initial=initial, trust=trust)

    def measure(self, grabs: Mapping[str, Any], *, trust: bool = False) -> xarray.Dataset:
        """Call grabs on the networks that SAVE_WEIGHTS has kept, and return them as a dataset.

        Its dimensions are those of the run; with a schedule in SAVE_WEIGHTS, and ``step``. A grab
        gets the same arguments as in the training after the same step, and so has the same values:
        offline X_tr and y_tr are the training set, online the batch of that step. If a grab takes
        one, all batches up to it are drawn again.

        Args:
            grabs: {name: function}, or {name: the name of one in grabs/}.
            trust: execute the functions in the run even if other users could have written them.

        Raises:
            UserError: the run keeps no weights.
            GrabError: a grab fails, or its result cannot be stored.
            RunError: other users could have written the functions in the run.
        """
        from mlpsubmit.runs.networks import measured

        return measured(self.directory, self.layout(), grabs, trust=trust)

    def layout(self) -> Layout:
        """Return the layout of the run's dataset: dimensions, coordinates, attributes."""
        from mlpsubmit.results import Dimension, Layout, Thresholds

        sweep = self.directory.sweep
        dimensions = tuple(
            Dimension(
                axis["dimension"],
                dict(zip(axis["names"], map(tuple, axis["values"]), strict=True)),
                axis_hashes(axis),
            )
            for axis in sweep["axes"]
        )
        shape = [dimension.size for dimension in dimensions]
        included = sweep["included"]
        return Layout(
            dimensions=dimensions,
            thresholds=tuple(sweep["thresholds"]),
            attributes={
                "sweep": self.name,
                "run": self.id,
                "created": sweep["created"],
                **attributes(self.directory),
            },
            threshold_axis=_along(sweep["threshold_axis"]),
            included=None if included is None else decode_mask(included, math.prod(shape)),
            metrics=tuple(sweep["metrics"]),
            metric_thresholds=tuple(
                Thresholds(one["name"], tuple(one["thresholds"]), _along(one["threshold_axis"]))
                for one in sweep["metric_thresholds"]
            ),
            tested=sweep["tested"],
            online=_online(sweep, shape),
            labels={name: Labels.of_json(own) for name, own in sweep["labels"].items()},
            texts=setting_texts(sweep),
            settings=fixed_settings(sweep),
            functions=grab_functions(sweep),
        )


def _along(axis: Mapping[str, Any] | None) -> tuple[str, Sequence[Sequence[float]]] | None:
    return None if axis is None else (axis["dimension"], axis["values"])


def _online(sweep: Mapping[str, Any], shape: Sequence[int]) -> bool | NDArray[np.bool_]:
    """Return whether the configs of a sweep.json train online: one value, or one for each point."""
    for number, axis in enumerate(sweep["axes"]):
        if "online" in axis["names"]:
            values = np.array(axis["values"][axis["names"].index("online")], dtype=np.bool_)
            return np.broadcast_to(np.expand_dims(values, [*range(1, len(shape) - number)]), shape)
    return bool(sweep["hyperparameters"].get("online", True))


def poll_seconds(status: Status) -> float:
    """Return how many seconds to wait until a status is read again."""
    return max(POLL_SECONDS, len(status.tasks) / READS_PER_SECOND)


def say_what_is_missing(runs: str, dataset: xarray.Dataset) -> None:
    """Print how many configs of a dataset have no result, if any: means would leave them out."""
    counts = {name: int(dataset.attrs[f"n_{name}"]) for name in ("failed", "missing")}
    if lacking := ", ".join(f"{count} {name}" for name, count in counts.items() if count):
        configs = int(dataset.attrs["n_configs"])
        have = configs - sum(counts.values())
        echo(
            f"run {runs}: {have} of {counted(configs, 'config')} have results ({lacking})", err=True
        )


def open_run(selector: str | Path | None = None, runs_dir: str | Path | None = None) -> Run:
    """Open a run.

    Args:
        selector: its folder; or the name of a sweep, for its latest run; or the first characters
            of a run id, or of the last part of one; or a folder of runs, for the latest in it; or
            None for the latest run of all. The latest is the one that was last launched or resumed.
        runs_dir: the folder of all runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: no run matches, or several do.
    """
    stop_reading()
    selected = find_run(selector, runs_dir)
    return Run(RunDirectory.open(selected.path), selected)


def as_run(run: Any, runs_dir: str | Path | None = None) -> Run:
    """Return a run that is given as such, or as :func:`open_run` takes it.

    Raises:
        UserError: it is something else.
        RunError: as :func:`open_run`.
    """
    if isinstance(run, Run):
        return run
    if not (run is None or isinstance(run, (str, Path))):
        raise UserError(f"got {shown(run)}; should be a run, its name or id, or its folder")
    return open_run(run, runs_dir)


def notebook_display() -> Callable[[Status], None] | None:
    """Return a function that displays a status in the running cell; None outside notebooks."""
    show = in_cell()
    return None if show is None else lambda status: show(_html(status))


def _html(status: Status) -> str:
    """Return a status as HTML; the tasks of a complete run are left out."""
    tasks = sorted(status.tasks, key=lambda task: task.state != "crashed")  # not all are listed
    rows = [] if status.complete else [(t.name, t.state, t.summary) for t in tasks]
    reasons = map(str, status.failure_groups)
    figure = loss_figure(tuple((t.name, t.losses) for t in status.tasks if t.losses)[:_CURVES])
    return status_html(
        *(status.name, status.run, status.state, status.fraction, status.summary),
        *(rows, reasons, figure),
    )
