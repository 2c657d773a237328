"""A run: launch a sweep, see how far it is, wait for it, collect it, resume it, stop it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.errors import RunError, UserError, did_you_mean
from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.plan import Plan, cut, make_plan
from mlpsubmit.jobs.status import Status, read_status
from mlpsubmit.jobs.store import RunDirectory

if TYPE_CHECKING:
    import xarray

    from mlpsubmit.results import Layout
    from mlpsubmit.sweep import Sweep

__all__ = ["Run", "launch", "open_run", "runs_folder"]

RUNS_VARIABLE = "MLPSUBMIT_RUNS"
DEFAULT_RUNS = "mlpruns"

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
        from mlpsubmit.jobs import executors

        with store.locked(self.path / store.PLAN):
            if self.status().running:
                raise RunError(
                    f"run {self.id} is still running; wait for it (mlpsubmit status), or stop it "
                    "first: mlpsubmit cancel"
                )
            plan = Plan.from_json(self.directory.plan)
            finished = self.directory.finished(verify=True)
            missing = [number for number in range(plan.packs) if f"{number:07d}" not in finished]
            if not missing:
                return 0
            chosen = executors.by_name(executor)(self._hyperparameters(), tasks)
            chosen.threads = plan.threads
            chosen.pdb = pdb
            number = self._intend(chosen.name, chosen.slots, plan, np.array(missing))
            jobs = chosen.submit(
                self.directory, number, range(len(self.directory.intent(number)["slices"]))
            )
            store.publish_json(
                self.directory.submission(number) / store.JOBS,
                {"jobs": [job.to_json() for job in jobs]},
            )
        return len(missing)

    def _hyperparameters(self) -> Any:
        """Return the hyperparameters that an executor looks at."""
        from mlpsubmit.hyperparameters import validate

        return validate({"devices": self.directory.sweep["devices"]})

    def _intend(
        self, executor: str, slots: int, plan: Plan, missing: np.ndarray[Any, np.dtype[np.int64]]
    ) -> int:
        """Write down what is about to be submitted, before anything is."""
        number = self.directory.new_submission()
        costs = plan.pack_costs
        intent = {
            "executor": executor,
            "host": socket.gethostname(),
            "created": time.time(),
            "cost_done": plan.cost - float(costs[missing].sum()),
            "slices": cut(missing, costs[missing], min(slots, len(missing))),
        }
        store.publish_json(self.directory.submission(number) / store.INTENT, intent)
        return number

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
    from mlpsubmit.training.assemble import probe

    probe(sweep)
    folder = runs_folder(runs_dir) / sweep.name
    chosen = executors.by_name(executor)(sweep.base, tasks)
    earlier = [] if fresh else [RunDirectory(path) for path in reversed(_runs(folder))]
    if earlier and earlier[0].sweep["fingerprint"] == sweep.fingerprint:
        run = Run(earlier[0])
        if not run.status().running:
            run.resume(executor, tasks, pdb=pdb)
        return run
    frozen = freeze(sweep, spec and spec.parent)
    reused = _Reused(sweep)
    for directory in earlier:
        reused.take(directory)
    plan = make_plan(sweep, chosen.slots, chosen.threads, reused.indices)
    record = _record(sweep, spec, command)
    run = Run(_create(folder, record, plan, frozen, reused))
    run.resume(executor, tasks, pdb=pdb)
    return run


def runs_folder(runs_dir: str | Path | None = None) -> Path:
    """Return where runs are kept: the argument, else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``."""
    return Path(runs_dir or os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS).expanduser()


def _create(
    folder: Path, record: Mapping[str, Any], plan: Plan, frozen: bytes, reused: _Reused
) -> RunDirectory:
    """Make the run directory under a temporary name and rename it: it exists whole or not at all.

    Raises:
        UserError: where the runs folder cannot be written.
    """
    run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    temporary = folder / f".{run_id}"
    try:
        for name in (store.DATA, store.SUBMISSIONS, store.RESULTS, store.CHECKPOINTS):
            (temporary / name).mkdir(parents=True)
        (temporary / store.HEARTBEATS).mkdir()
        store.publish(temporary / store.SWEEP_PICKLE, frozen)
        store.publish_json(temporary / store.PLAN, plan.to_json())
        store.publish_json(temporary / store.SWEEP_JSON, {**record, "id": run_id})
        reused.write(temporary / store.RESULTS)
        temporary.rename(folder / run_id)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give a folder for runs with "
            f"--runs-dir or ${RUNS_VARIABLE}"
        ) from error
    return RunDirectory.open(folder / run_id)


def _record(sweep: Sweep, spec: Path | None, command: Sequence[str]) -> dict[str, Any]:
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
                "values": [[_scalar(value) for value in axis.values(n)] for n in axis.names],
            }
            for axis in sweep.product.axes
        ],
        "included": included,
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


def _scalar(value: Any) -> Any:
    """Return a value as a coordinate can hold it: a number or a string."""
    from mlpsubmit.calling import function_name

    if isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and not hasattr(value, "items"):
        return function_name(value)
    return str(value)


class _Reused:
    """Results of earlier runs of the same name, for configs whose keys agree."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._table: tuple[Any, Any] | None = None
        self._found: dict[int, None] = {}
        self._packs: list[dict[str, Any]] = []

    @property
    def indices(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The flat indices of the configs that need no training."""
        return np.array(sorted(self._found), dtype=np.int64)

    def _sorted_keys(self) -> tuple[Any, Any]:
        """Return the keys of all configs of the sweep, sorted, and their flat indices."""
        if self._table is None:
            included = self._sweep.included
            size = self._sweep.product.size
            indices = np.arange(size) if included is None else np.flatnonzero(included)
            lanes = self._sweep.keys(indices)
            order = np.lexsort((lanes[:, 1], lanes[:, 0]))
            self._table = (lanes[order], indices[order])
        return self._table

    def take(self, directory: RunDirectory) -> None:
        """Remember the results of a run whose configs are in the sweep too."""
        for pack in directory.packs():
            rows, indices = self._matches(pack["key"])
            fresh = [i for i, index in enumerate(indices) if index not in self._found]
            if fresh:
                chosen = indices[fresh]
                self._found.update(dict.fromkeys(chosen.tolist()))
                self._packs.append(_rows(pack, rows[fresh]) | {"index": chosen})

    def _matches(self, hex_keys: Any) -> tuple[Any, Any]:
        """Return the rows of a pack whose keys the sweep has, and the flat indices there."""
        lanes, indices = self._sorted_keys()
        wanted = np.frombuffer(bytes.fromhex(b"".join(hex_keys).decode()), dtype="<u8")
        wanted = wanted.reshape(-1, 2)
        places = np.searchsorted(lanes[:, 0], wanted[:, 0])
        places = np.minimum(places, len(lanes) - 1)
        rows = np.flatnonzero((lanes[places] == wanted).all(axis=1))
        return rows, indices[places[rows]]

    def write(self, results: Path) -> None:
        """Write what was taken over as a shard of the new run."""
        if not self._packs:
            return
        with store.Shard(results / "reused.0.tar") as shard:
            for number, arrays in enumerate(self._packs):
                name = f"reused-{number:07d}{store.FINISHED_SUFFIX}"
                shard.append(name, store.npz_bytes(arrays))


def _rows(pack: store.PackResult, rows: Any) -> dict[str, Any]:
    shared = {"step", "eval_step", "grab_step"}
    return {n: pack[n] if n in shared else pack[n][rows] for n in pack.arrays()}


# ---- finding runs ------------------------------------------------------------------------------


def _runs(folder: Path) -> list[Path]:
    """Return the runs in the folder of a sweep, oldest first."""
    found = folder.glob(f"[!.]*/{store.SWEEP_JSON}")
    return sorted((file.parent for file in found), key=lambda path: (_created(path), path.name))


def _created(path: Path) -> float:
    return (path / store.SWEEP_JSON).stat().st_mtime


def open_run(selector: str | Path | None = None, runs_dir: str | Path | None = None) -> Run:
    """Open a run.

    Args:
        selector: its folder; or the name of a sweep, for its latest run; or the start of a run
            id, or of the six characters that end it; or None for the latest run of all.
        runs_dir: where runs are kept; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: where the selector fits no run, or several.
    """
    folder = runs_folder(runs_dir)
    if selector is not None and (Path(selector).is_dir() or os.sep in str(selector)):
        path = Path(selector)
        if path.parent != path and (folder / path / store.SWEEP_JSON).exists():
            path = folder / path
        return Run(RunDirectory.open(path))
    every = [path for sweep in _folders(folder) for path in _runs(sweep)]
    if not every:
        raise RunError(
            f"{folder}: holds no run; launch one (mlpsubmit launch spec.py), or say where runs "
            f"are with --runs-dir or ${RUNS_VARIABLE}"
        )
    if selector is None:
        return Run(RunDirectory.open(max(every, key=_created)))
    named = [path for path in every if path.parent.name == selector]
    if named:
        return Run(RunDirectory.open(named[-1]))
    return Run(RunDirectory.open(_by_id(str(selector), every, folder)))


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("[!.]*")) if path.is_dir())


def _by_id(selector: str, every: Sequence[Path], folder: Path) -> Path:
    fitting = [
        path
        for path in every
        if path.name.startswith(selector) or path.name.rpartition("-")[2].startswith(selector)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = "".join(f"\n  {path.parent.name}  {path.name}" for path in fitting)
        raise RunError(f"{selector}: fits {len(fitting)} runs; give more of the id:{listed}")
    names = sorted({path.parent.name for path in every})
    raise RunError(
        f"{selector}: no run of that name or id in {folder}{did_you_mean(selector, names)}; "
        f"there are runs of {', '.join(names)}"
    )
