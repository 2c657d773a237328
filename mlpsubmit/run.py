"""A run: launch a sweep, see how far it is, wait for it, collect it, resume it, stop it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError, UserError
from mlpsubmit.finding import RUNS_VARIABLE, find_run, runs_folder, runs_of
from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.plan import Plan, cut, make_plan
from mlpsubmit.jobs.status import Status, read_status
from mlpsubmit.jobs.store import RunDirectory

if TYPE_CHECKING:
    import xarray

    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.results import Layout
    from mlpsubmit.reuse import Reused
    from mlpsubmit.sweep import Sweep

__all__ = ["Prepared", "Run", "launch", "open_run", "prepare"]

POLL_SECONDS = 0.5


class Run:
    """A launched sweep.

    Get one from :func:`launch` or :func:`open_run`.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

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
        return read_status(self.directory)

    def wait(self, on_status: Callable[[Status], None] | None = None) -> Status:
        """Return the status once no task lives any more.

        Args:
            on_status: called about twice a second with the status so far.
        """
        while True:
            status = self.status()
            if on_status is not None:
                on_status(status)
            if not status.running:
                return status
            time.sleep(POLL_SECONDS)

    def resume(self, executor: str = "auto", tasks: int | None = None, *, pdb: bool = False) -> int:
        """Train what has no result: packs that failed, were interrupted or never began.

        Returns:
            How many packs were submitted; 0 where nothing is missing.

        Raises:
            RunError: where a task of the run still lives.
            UserError: where the executor cannot be had.
        """
        from mlpsubmit.hyperparameters import validate
        from mlpsubmit.jobs import executors

        hyperparameters = validate({"devices": self.directory.sweep["devices"]})
        chosen = executors.choose(executor, hyperparameters, tasks)
        chosen.pdb = pdb
        submitted = self._start(chosen)
        if not submitted and (lost := self.lost_reused()):
            raise RunError(
                f"run {self.id}: {lost} results that it took over from earlier runs are damaged; "
                "launch its spec again: a new run takes over what is whole and trains those alone"
            )
        return submitted

    def lost_reused(self) -> int:
        """Return how many results taken over from earlier runs are no longer whole."""
        return int(self.directory.sweep["reused"]["configs"]) - self.directory.reused()

    def missing_packs(self, plan: Plan) -> NDArray[np.int64]:
        """Return the numbers of the packs that have no result, having verified those that do."""
        finished = self.directory.finished(among={pack.name for pack in plan})
        return np.array([p.number for p in plan if p.name not in finished], dtype=np.int64)

    def _start(self, executor: Executor) -> int:
        """Hand what is missing to an executor; return how many packs that is."""
        with _exclusively(self.path / store.PLAN, f"run {self.id}"):
            if self.status().running:
                raise RunError(
                    f"run {self.id} is still running; wait for it (mlpsubmit status), or stop it "
                    "first: mlpsubmit cancel"
                )
            plan = Plan.from_json(self.directory.plan)
            missing = self.missing_packs(plan)
            if len(missing):
                self._submit(executor, plan, missing)
            return len(missing)

    def _submit(self, executor: Executor, plan: Plan, missing: NDArray[np.int64]) -> None:
        """Write down what is about to be submitted, submit it, and write down each answer."""
        number = self.directory.new_submission()
        costs = plan.pack_costs
        slots = min(executor.side_by_side(plan.threads), len(missing))
        slices = cut(missing, costs[missing], slots)
        intent = {
            "executor": executor.name,
            "host": socket.gethostname(),
            "created": time.time(),
            "cost_done": plan.cost - float(costs[missing].sum()),
            "slices": slices,
        }
        folder = self.directory.submission(number)
        store.publish_json(folder / store.INTENT, intent)
        executor.threads = plan.threads
        jobs: list[dict[str, Any]] = []
        for job in executor.submit(self.directory, number, range(len(slices))):
            jobs.append(job.to_json())
            store.publish_json(folder / store.JOBS, {"jobs": jobs})

    def cancel(self) -> int:
        """Ask every living task to save its pack and stop.

        Returns:
            How many were asked.

        Raises:
            RunError: where tasks live on another machine, which signals cannot reach.
        """
        asked, elsewhere = 0, set()
        for task in self.status().tasks:
            if task.state not in ("running", "waiting"):
                continue
            process = task.heartbeat or self._job(task.name)
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

    def _job(self, task: str) -> dict[str, Any]:
        jobs = self.directory.jobs(self.directory.submissions()[-1]) or {"jobs": []}
        found: dict[str, Any] = next(job for job in jobs["jobs"] if job["task"] == task)
        return found

    def logs(self, task: str | int | None = None) -> dict[str, Path]:
        """Return the log files of the tasks that have one, by task, oldest submission first.

        Args:
            task: the name of a task, or its index in the latest submission.

        Raises:
            RunError: where there is no such task.
        """
        found = {}
        for number in self.directory.submissions():
            for job in (self.directory.jobs(number) or {"jobs": []})["jobs"]:
                file = self.directory.log(number, job["id"])
                if file.exists():
                    found[str(job["task"])] = file
        if task is None:
            return found
        last = max(self.directory.submissions(), default=0)
        name = f"{last:03d}-{int(task):04d}" if str(task).isdigit() else str(task)
        if name not in found:
            valid = ", ".join(found) or "none yet"
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


# ---- launching ---------------------------------------------------------------------------------


def launch(
    sweep: Sweep,
    *,
    executor: str = "auto",
    tasks: int | None = None,
    runs_dir: str | Path | None = None,
    spec: Path | None = None,
    fresh: bool = False,
    pdb: bool = False,
    command: Sequence[str] = (),
) -> Run:
    """Start training a sweep, and return at once.

    A sweep that is unchanged since its last launch goes on in the same run, with what is missing.
    Otherwise a new run is made, and configs that an earlier run of the same name finished are
    taken over from there.

    Args:
        executor: ``auto``, ``local`` or ``debug``.
        tasks: how many tasks at most.
        runs_dir: where runs are kept; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.
        spec: the file that the sweep comes from; modules beside it travel by value.
        fresh: make a new run and take nothing over.
        pdb: with ``debug``, open a debugger where a pack fails.
        command: the command line, kept for the record.

    Raises:
        SpecError: where the functions of the spec do not fit together.
        UserError: where the executor cannot be had or the runs folder cannot be written.
    """
    from mlpsubmit.jobs import executors
    from mlpsubmit.loading import freeze
    from mlpsubmit.sweep import Sweep
    from mlpsubmit.training.assemble import probe

    if not isinstance(sweep, Sweep):
        raise UserError(
            f"launch: got {sweep!r}; should be a Sweep (from a file: mlpsubmit launch spec.py)"
        )
    _ = sweep.fingerprint  # before any function of the user runs and fills a cache of its own
    probe(sweep)
    chosen = executors.choose(executor, sweep.base, tasks)
    chosen.pdb = pdb
    frozen = freeze(sweep, spec and spec.parent)
    folder = runs_folder(runs_dir) / sweep.name
    with _writing(folder), _exclusively(_made(folder) / store.LOCK, f"the sweep {sweep.name}"):
        prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
        run = prepared.run
        if run is None:
            record = _record(sweep, spec, command, prepared.reused.record)
            run = Run(_create(folder, record, prepared.plan, frozen, prepared.reused))
    if not run.status().running:
        run._start(chosen)
    return run


@dataclass(frozen=True)
class Prepared:
    """What a launch is about to do.

    Attributes:
        run: the run that goes on, or None where a new one is made.
        missing: the numbers of the packs to train.
    """

    run: Run | None
    plan: Plan
    missing: NDArray[np.int64]
    reused: Reused


def prepare(
    sweep: Sweep,
    executor: Executor,
    runs_dir: str | Path | None = None,
    *,
    fresh: bool = False,
) -> Prepared:
    """Find out what a launch of a sweep has to do, and change nothing."""
    from mlpsubmit.reuse import Reused

    earlier = [] if fresh else _earlier(runs_folder(runs_dir) / sweep.name)
    reused = Reused(sweep)
    same = (run for run in earlier if run.sweep["fingerprint"] == sweep.fingerprint)
    if (begun := next(same, None)) is not None:
        run = Run(begun)
        if not run.lost_reused():
            plan = Plan.from_json(begun.plan)
            return Prepared(run, plan, run.missing_packs(plan), reused)
    reused.take(earlier)
    plan = make_plan(sweep, executor.slots, 1, reused.indices)
    threads = executor.threads_of(min(executor.slots, max(plan.packs, 1)))
    return Prepared(None, replace(plan, threads=threads), np.arange(plan.packs), reused)


def _earlier(folder: Path) -> list[RunDirectory]:
    """Return the runs of a sweep that this version can read, newest first."""
    found = []
    for path in reversed(runs_of(folder)):
        with contextlib.suppress(RunError):
            found.append(RunDirectory.open(path))
    return found


@contextlib.contextmanager
def _exclusively(file: Path, what: str) -> Iterator[None]:
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


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say of a runs folder that cannot be written how to give another."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give a folder for runs with "
            f"--runs-dir or ${RUNS_VARIABLE}"
        ) from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _create(
    folder: Path, record: Mapping[str, Any], plan: Plan, frozen: bytes, reused: Reused
) -> RunDirectory:
    """Make the run directory under another name and rename it: it exists whole or not at all."""
    run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    temporary = folder / f".{run_id}"
    try:
        for name in store.FOLDERS:
            (temporary / name).mkdir(parents=True)
        store.publish(temporary / store.SWEEP_PICKLE, frozen)
        store.publish_json(temporary / store.PLAN, plan.to_json())
        store.publish_json(temporary / store.SWEEP_JSON, {**record, "id": run_id})
        reused.write(temporary / store.RESULTS)
        store.publish_folder(temporary, folder / run_id)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return RunDirectory.open(folder / run_id)


def _record(
    sweep: Sweep, spec: Path | None, command: Sequence[str], reused: Mapping[str, int]
) -> dict[str, Any]:
    """Return what sweep.json says: for people, and for collect."""
    from mlpsubmit.provenance import origin

    base = sweep.base
    varied = {name for axis in sweep.product.axes for name in axis.names}
    included = None if sweep.included is None else store.pack_mask(sweep.included)
    return {
        "format": store.FORMAT,
        "name": sweep.name,
        "fingerprint": sweep.fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "configs": len(sweep),
        "axes": [
            {
                "dimension": axis.dimension,
                "names": list(axis.names),
                "values": [_labels(axis.values(name)) for name in axis.names],
            }
            for axis in sweep.product.axes
        ],
        "included": included,
        "reused": dict(reused),
        "thresholds": _threshold_coordinate(sweep),
        "hyperparameters": {
            name: _scalar(value) for name, value in dict(base).items() if name not in varied
        },
        "arguments": {name: _scalar(value) for name, value in sweep.arguments.items()},
        "functions": {
            "batchfn": _scalar(sweep.batchfn),
            "data": _scalar(sweep.data),
            "grabs": {name: _scalar(grab) for name, grab in sweep.grabs.items()},
            "where": _scalar(sweep.where),
        },
        "devices": base.devices,
        "origin": origin(spec, command),
    }


def _threshold_coordinate(sweep: Sweep) -> list[float]:
    """Return the thresholds, or their places in descending order where they are an axis."""
    lists = [
        value
        for axis in sweep.product.axes
        for name in axis.names
        if name in ("loss_checkpoints", "percent_thresholds")
        for value in axis.values(name)
    ]
    if not lists:
        return list(sweep.base.thresholds)
    return list(range(max(len(value or ()) for value in lists)))


def _labels(values: Sequence[Any]) -> list[Any]:
    """Return axis values as coordinates; equal labels, as of two lambdas, are numbered."""
    labels = [_scalar(value) for value in values]
    if len({(type(label), label) for label in labels}) < len(labels):
        return [f"{label} #{place}" for place, label in enumerate(labels)]
    return labels


def _scalar(value: Any) -> Any:
    """Return a value as a coordinate can hold it: a number or a string."""
    from mlpsubmit.calling import function_name

    if isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and not hasattr(value, "items"):
        return function_name(value)
    return str(value)


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
