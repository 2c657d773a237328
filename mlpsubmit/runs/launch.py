"""Launching a sweep: from a plan to a run directory whose tasks are submitted."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.errors import RunError, UserError
from mlpsubmit.jobs.plan import Plan, make_plan
from mlpsubmit.jobs.slurm.rejections import Refused
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.locate import RUNS_VARIABLE, runs_folder, runs_of
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.submit import exclusively, label, missing_packs, start, submission_for
from mlpsubmit.spec.guard import stop_reading

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.jobs.submission import Submission
    from mlpsubmit.runs.reuse import Reused
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["Prepared", "create", "launch", "prepare"]


def launch(
    sweep: Sweep,
    *,
    executor: str = "auto",
    tasks: int | None = None,
    runs_dir: str | Path | None = None,
    spec: Path | None = None,
    fresh: bool = False,
    template: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    retries: int = 0,
    pdb: bool = False,
    keep_going: bool = False,
    command: Sequence[str] = (),
) -> Run:
    """Start training a sweep, and return at once.

    A sweep that is unchanged since its last launch goes on in the same run, with what is missing.
    Otherwise a new run is made, and configs that an earlier run of the same name finished are
    taken over from there.

    Args:
        executor: ``slurm``, ``local``, ``debug``, or ``auto``: SLURM where this machine belongs to
            a cluster, else this machine.
        tasks: how many tasks at most.
        runs_dir: where runs are kept; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.
        spec: the file that the sweep comes from; modules beside it travel by value.
        fresh: make a new run and take nothing over.
        template: name or file of what a SLURM task asks for; see :mod:`mlpsubmit.slurm_templates`.
        slurm: keys of the template that take the place of its own, such as ``{"time": "1:00:00"}``.
        retries: how often SLURM resumes by itself what is missing when the tasks have ended.
        pdb: with ``debug``, open a debugger where a pack fails.
        keep_going: with ``debug``, train the other packs where one has failed.
        command: the command line, kept for the record.

    Raises:
        SpecError: where the functions of the spec do not fit together.
        UserError: where the executor cannot be had, the cluster refuses the job, or the runs folder
            cannot be written.
    """
    from mlpsubmit.assembly.probe import probe
    from mlpsubmit.jobs import executors
    from mlpsubmit.runs.manifest import record
    from mlpsubmit.slurm_templates import SlurmRequest
    from mlpsubmit.spec.load import freeze
    from mlpsubmit.spec.sweep import Sweep

    if not isinstance(sweep, Sweep):
        raise UserError(
            f"launch: got {sweep!r}; should be a Sweep (from a file: mlpsubmit launch spec.py)"
        )
    stop_reading(sweep)
    sweep.reread()
    _ = sweep.fingerprint  # before any function of the user runs and fills a cache of its own
    probe(sweep)
    ask = SlurmRequest(template, dict(slurm or {}), retries)
    chosen = executors.choose(executor, sweep.base, tasks, ask)
    chosen.pdb, chosen.keep_going = pdb, keep_going
    frozen = freeze(sweep, spec and spec.parent)
    folder = runs_folder(runs_dir) / sweep.name
    with _writing(folder), _claimed(folder, f"the sweep {sweep.name}"):
        prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
        run = prepared.run
        if run is not None and run.status().busy:
            return run
        if len(prepared.missing):
            chosen.check(prepared.submission(chosen, retries))
        if run is None:
            run = Run(
                create(record(sweep, spec, command, prepared.reused.record), prepared, frozen)
            )
    try:
        start(run.directory, chosen, retries, checked=True)
    except Refused:
        if prepared.run is None and not run.directory.submissions():
            shutil.rmtree(run.path)
        raise
    return run


@dataclass(frozen=True)
class Prepared:
    """What a launch is about to do.

    Attributes:
        run: the run that goes on, or None where a new one is made.
        path: its folder, which is not there yet where it is new.
        missing: the numbers of the packs to train.
    """

    run: Run | None
    path: Path
    plan: Plan
    missing: NDArray[np.int64]
    reused: Reused

    def submission(self, executor: Executor, retries: int) -> Submission:
        """Return what the executor would get."""
        number = 0 if self.run is None else self.run.directory.next_submission()
        sweep = {"name": self.path.parent.name, "id": self.path.name}
        own = sweep if self.run is None else self.run.directory.sweep
        prefix = label(own["name"], own["id"])
        return submission_for(self.path, prefix, number, executor, self.plan, self.missing, retries)


def prepare(
    sweep: Sweep,
    executor: Executor,
    runs_dir: str | Path | None = None,
    *,
    fresh: bool = False,
) -> Prepared:
    """Find out what a launch of a sweep has to do, and change nothing."""
    from mlpsubmit.runs.reuse import Reused

    earlier = [] if fresh else _earlier(runs_folder(runs_dir) / sweep.name)
    reused = Reused(sweep)
    same = (run for run in earlier if run.sweep["fingerprint"] == sweep.fingerprint)
    if (begun := next(same, None)) is not None:
        run = Run(begun)
        if not run.lost_reused():
            plan = Plan.from_json(begun.plan)
            return Prepared(run, run.path, plan, missing_packs(begun, plan), reused)
    reused.take(earlier)
    max_tasks = executor.max_tasks(make_plan(sweep, 1, 1, reused.indices).cost)
    plan = make_plan(sweep, max_tasks, 1, reused.indices, executor.memory())
    threads = executor.threads_per_task(min(max_tasks, max(plan.packs, 1)))
    path = runs_folder(runs_dir) / sweep.name / _new_id()
    return Prepared(None, path, replace(plan, threads=threads), np.arange(plan.packs), reused)


def _new_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


def _earlier(folder: Path) -> list[RunDirectory]:
    """Return the runs of a sweep that this version can read, newest first."""
    found = []
    for path in reversed(runs_of(folder)):
        with contextlib.suppress(RunError):
            found.append(RunDirectory.open(path))
    return found


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


@contextlib.contextmanager
def _claimed(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder of a sweep; where that leads to nothing, no new folder stays behind."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with exclusively(folder / run_directory.LOCK, what):
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            if made:
                (folder / run_directory.LOCK).unlink()
            for path in made:
                path.rmdir()
        raise


def create(content: Mapping[str, Any], prepared: Prepared, frozen: bytes) -> RunDirectory:
    """Publish the directory of a new run: it exists whole or not at all."""
    path = prepared.path
    with files.published(path) as temporary:
        for name in run_directory.FOLDERS:
            (temporary / name).mkdir(parents=True)
        files.publish(temporary / run_directory.SWEEP_PICKLE, frozen)
        files.publish_json(temporary / run_directory.PLAN, prepared.plan.to_json())
        files.publish_json(temporary / run_directory.SWEEP_JSON, {**content, "id": path.name})
        prepared.reused.write(temporary / run_directory.RESULTS)
    return RunDirectory.open(path)
