"""Launch a sweep: plan it, create the run directory, submit its tasks."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.checksums import sealed
from mlpsubmit.display.output import echo
from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import abridged
from mlpsubmit.errors import BusyError, DamageError, UserError
from mlpsubmit.jobs.plan import Plan, Range, cut, make_plan
from mlpsubmit.jobs.slurm.rejections import Rejected
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import owner
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import submitted_hash, sweep_hash
from mlpsubmit.jobs.used_paths import used_paths
from mlpsubmit.runs.continuation import Continuation, find_continuation
from mlpsubmit.runs.in_training import warn_of_configs_in_training
from mlpsubmit.runs.locate import (
    RUNS_VARIABLE,
    newest_runs,
    next_launch,
    readable,
    runs_folder,
    runs_of,
    with_results,
)
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.same_device import check_executor, check_same_device, kinds_of, wanted
from mlpsubmit.runs.sharing import closed_above, group_id, share_folders, share_run
from mlpsubmit.runs.submit import missing_packs, start, submission_for, submission_lock
from mlpsubmit.spec.guard import stop_reading
from mlpsubmit.spec.ingredients import stored

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors.base import Executor
    from mlpsubmit.jobs.submission import Submission
    from mlpsubmit.runs.reuse import Reused
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["PreparedLaunch", "check_devices", "create", "launch", "prepare", "tried"]


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
    same_device: bool | None = None,
    trust: bool = False,
    group: str | None = None,
    command: Sequence[str] = (),
) -> Run:
    """Start training a sweep, and return at once.

    If the sweep is unchanged since an earlier launch, that run continues with what is missing.
    Otherwise a new run is created, which reuses the results of configs that earlier runs of the
    same name have finished.

    Args:
        executor: ``slurm``, ``local``, ``debug``, or ``auto``: SLURM if this machine belongs to a
            cluster, else local worker processes.
        tasks: the maximum number of tasks. What limits of a cluster leave no room for, it submits
            later by itself; without the argument there are no more tasks than there is room for.
        runs_dir: the folder of all runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.
        spec: the file that defines the sweep, recorded in the manifest.
        fresh: create a new run and reuse nothing.
        template: name or file of a cluster profile; see :mod:`mlpsubmit.slurm_templates`.
        slurm: keys that override those of the template, such as ``{"time": "1:00:00"}``.
        retries: how often SLURM automatically resumes what is missing when the tasks have ended.
        pdb: with ``debug``, open a debugger when a pack fails.
        keep_going: with ``debug``, train the other packs after one has failed.
        same_device: train all tasks of the run on one type of GPU, or one model of CPU, now and
            when it is resumed; by default as the template, or the run that continues, has it.
        trust: continue a run even if other users could have written the functions in it, and take
            it over from the user who has resumed it last.
        group: a Unix group whose members can read the run, and continue it.
        command: the command line, recorded in the manifest.

    Raises:
        SpecError: the functions of the spec do not fit together.
        RunError: other users could have written the functions of the run to continue; or the file
            system cannot share it with the group.
        UserError: the executor is not available, the cluster rejects the job, or the runs folder
            is not writable.
        KeyboardInterrupt: with ``debug``, a signal has ended the training, whose state is saved.
    """
    from mlpsubmit.spec.sweep import Sweep

    if not isinstance(sweep, Sweep):
        raise UserError(
            f"launch: got {sweep!r}; should be a Sweep (from a file: mlpsubmit launch spec.py)"
        )
    stop_reading(sweep)  # before the imports, which load torch
    with doing("importing torch"):
        from mlpsubmit.jobs import executors
        from mlpsubmit.runs.initial_weights import keep_initial_weights, source_folders
        from mlpsubmit.runs.manifest import manifest
        from mlpsubmit.slurm_templates import SlurmRequest
        from mlpsubmit.spec.load import pickle_sweep

    gid = None if group is None else group_id(group)
    sweep = tried(sweep, runs_dir)
    request = SlurmRequest(template, dict(slurm or {}), retries)
    chosen = executors.choose(
        *(executor, sweep.base, tasks, request),
        pdb=pdb,
        keep_going=keep_going,
        same_device=same_device,
    )
    frozen = pickle_sweep(sweep)
    folder = runs_folder(runs_dir) / sweep.name
    created = [path for path in (folder, *folder.parents) if _is_missing(path)]
    with _locked_folder(folder, created, gid):
        prepared = prepare(
            sweep, chosen, runs_dir, frozen=frozen, fresh=fresh, retries=retries, trust=trust
        )
        run = prepared.run
        if run is not None and run.status().busy:
            with contextlib.suppress(OSError):  # another user's
                run.directory.record_launch(next_launch(run.path))
            return run
        if len(prepared.missing):
            chosen.check(prepared.submission)
            check_devices(prepared)
            for line in chosen.device_lines(planned=False):
                echo(line)
        if run is None:
            reads = source_folders(sweep)
            content = manifest(sweep, spec, command, prepared.reused.count, prepared.path, reads)
            before = None if fresh else next(readable(reversed(runs_of(folder))), None)
            with doing("writing the run directory"):
                run = Run(create(content, prepared, gid))
            for line in (
                *prepared.continuation.lines,
                *_why_nothing_is_reused(before, prepared, run),
            ):
                echo(line)
        elif owner(run.path) is None:
            _restore_pickle(run.directory, frozen)
            keep_initial_weights(sweep, run.path)
            if gid is not None:
                share_run(run.path, gid)
    if gid is not None and (closed := closed_above(run.path, gid)) is not None:
        warnings.warn(
            f"--group {group}: its members cannot get to the run through {closed}; open that to "
            f"them (chgrp {group} {closed}; chmod g+x {closed}), or use another --runs-dir",
            stacklevel=2,
        )
    try:
        carried = prepared.sweep_hash if len(prepared.missing) else ""
        start(run.directory, chosen, carried, retries, checked=True, trust=trust)
    except Rejected:
        if prepared.run is None and not run.directory.submissions():
            with _locked_folder(folder, created):  # which it removes, too
                files.remove_folder(run.path)
                raise
        raise
    return run


def _why_nothing_is_reused(
    before: RunDirectory | None, prepared: PreparedLaunch, run: Run
) -> list[str]:
    """Return a line where code differs from that of the run before, which may not be on purpose."""
    from mlpsubmit.runs.reuse import code_that_differs

    if before is None or prepared.reused.count:
        return []
    names = code_that_differs(before, prepared.sweep)
    verb = "differs" if len(names) == 1 else "differ"
    how = f"how: mlpsubmit diff {before.id} {run.id}"
    line = f"no result of run {before.id} is reused: {', '.join(names)} {verb} ({how})"
    return [line] if names else []


def check_devices(prepared: PreparedLaunch) -> None:
    """Check that the tasks of a launch with same_device can all train on one device.

    Raises:
        UserError: they may get several, or others than results that are reused were made on.
    """
    executor, run = prepared.executor, prepared.run
    if run is not None and wanted(run.directory, executor):
        check_same_device(run.directory, executor)
    elif run is None and executor.same_device:
        kinds = kinds_of(prepared.reused.environments())
        check_executor(executor, kinds, "the runs that are reused")


def tried(sweep: Sweep, runs_dir: str | Path | None = None) -> Sweep:
    """Return a sweep as its functions and its process are now, after calling its functions.

    Warns of files that they read.

    Args:
        runs_dir: the folder of all runs, whose files are none of them.

    Raises:
        SpecError: the functions of the spec do not fit together.
    """
    with doing("importing torch"):
        from mlpsubmit.assembly.probe import probe
        from mlpsubmit.jobs.input_files import record
        from mlpsubmit.runs.initial_weights import source_folders, with_initial_weights
        from mlpsubmit.spec.load import noting_imports

    sweep = with_initial_weights(sweep.refreshed(), runs_dir)
    assert sweep.process is not None
    with doing("trying the functions"), sweep.process.applied(), noting_imports():
        _, read = record(partial(probe, sweep), runs_folder(runs_dir))
    # Files of the run that INIT_WEIGHTS names are read here alone: the new run has copies.
    sources = [os.path.abspath(folder) + os.sep for folder in source_folders(sweep)]
    _warn_of_files([path for path in read.paths() if not path.startswith(tuple(sources))])
    return sweep


def _warn_of_files(paths: Sequence[str]) -> None:
    """Warn of files that functions of the spec read in every task, where nothing compares them."""
    if paths:
        warnings.warn(
            f"a function of the spec other than data= reads {abridged(paths)}: keys do not "
            "cover what it holds, so a launch reuses results although it has changed; read files "
            "in data=, whose inputs are compared",
            stacklevel=4,
        )


@dataclass(frozen=True)
class PreparedLaunch:
    """A launch before anything is written: which run, and which packs to train.

    Attributes:
        frozen: the pickled sweep of a new run.
        retries: how often SLURM automatically resumes what is missing.
        trust: whether the user trusts everybody who could have written to the run.
        run: the run to continue, or None for a new one.
        path: its folder, which does not exist yet if it is new.
        plan: the packs of the run.
        missing: the numbers of the packs to train.
        reused: results of earlier runs for a new run.
        continuation: packs of a new run that continue from states which earlier ones kept.
    """

    sweep: Sweep
    executor: Executor
    frozen: bytes
    retries: int
    trust: bool
    run: Run | None
    path: Path
    plan: Plan
    missing: NDArray[np.int64]
    reused: Reused
    continuation: Continuation = field(default_factory=Continuation)

    @cached_property
    def sweep_hash(self) -> str:
        """The hash of the sweep that the tasks execute.

        Raises:
            RunError: others could have written that of the run to continue.
        """
        launched_as = os.path.abspath(self.path)
        if self.run is not None:
            launched_as = self.run.directory.sweep["launched_in"]["run"]
            with contextlib.suppress(DamageError):  # then the launch writes it again
                return sweep_hash(self.run.directory, trust=self.trust)
        return submitted_hash(self.frozen, launched_as)

    @cached_property
    def submission(self) -> Submission:
        """The submission that the executor would get, if any pack is missing."""
        new = {"name": self.sweep.name, "id": self.path.name}
        names = new if self.run is None else self.run.directory.sweep
        return submission_for(
            RunDirectory(self.path),
            names,
            self.executor,
            self.plan,
            self.missing,
            self.retries,
            self.sweep_hash,
            reads=lambda: used_paths(self.frozen, None if self.run is None else self.run.directory),
        )

    @cached_property
    def slices(self) -> Sequence[Sequence[Range]]:
        """The packs of each task, as ranges of their numbers, if any pack is missing."""
        workers = self.submission.all_workers
        return cut(self.missing, self.plan.pack_costs[self.missing], workers)


@doing("planning, and looking for results to reuse")
def prepare(
    sweep: Sweep,
    executor: Executor,
    runs_dir: str | Path | None = None,
    *,
    frozen: bytes = b"",
    fresh: bool = False,
    retries: int = 0,
    trust: bool = False,
) -> PreparedLaunch:
    """Return what a launch of a sweep has to do; nothing is written.

    Args:
        frozen: the pickled sweep; needed to create a run.

    Raises:
        UserError: files that the data function read have changed since, and there are results.
    """
    from mlpsubmit.runs.provenance import first_unchanged
    from mlpsubmit.runs.reuse import Reused

    folder = runs_folder(runs_dir) / sweep.name
    earlier = [] if fresh else list(with_results(reversed(runs_of(folder))))
    reused = Reused(sweep)
    prepared = partial(PreparedLaunch, sweep, executor, frozen, retries, trust)
    same = (run for run in earlier if _is_of(run, sweep))
    if (directory := first_unchanged(same)) is not None:
        run = Run(directory)
        if not run.damaged_reused():
            plan = Plan.from_json(directory.plan)
            return prepared(run, run.path, plan, missing_packs(directory, plan), reused)
    reused.add(earlier)
    warn_of_configs_in_training(reused.missing_keys, earlier)
    max_tasks = executor.max_tasks(make_plan(sweep, 1, 1, reused.indices).cost)
    max_workers = max_tasks * executor.workers_per_task
    memory = executor.memory(newest_runs(runs_dir))
    plan = make_plan(sweep, max_workers, 1, reused.indices, memory)
    threads = executor.threads_per_worker(min(max_workers, max(plan.packs, 1)))
    plan, continuation = find_continuation(sweep, replace(plan, threads=threads), earlier)
    path = folder / (time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3))
    return prepared(None, path, plan, np.arange(plan.packs), reused, continuation)


def _is_of(run: RunDirectory, sweep: Sweep) -> bool:
    """Return whether a run is of this very sweep, and can be continued."""
    try:
        run.check()
        if run.sweep["fingerprint"] != sweep.fingerprint:
            return False
        for number in run.submissions():
            run.jobs(number), run.intent(number), run.ended(number)
        return True
    except DamageError as error:
        warnings.warn(str(error).partition(";")[0], stacklevel=3)
        return False


def _restore_pickle(run: RunDirectory, frozen: bytes) -> None:
    """Write the sweep of a run again if the file is damaged or lost: functions of equal keys."""
    try:
        run.verify_pickle()
    except DamageError as error:
        warnings.warn(f"{error}; it is written again", stacklevel=3)
        files.publish(run.pickle, sealed(frozen), private=True)


def _is_missing(path: Path) -> bool:
    """Return whether there is nothing at a path; below a closed folder, nothing is known."""
    try:
        return not path.exists()
    except PermissionError:
        return False


@contextlib.contextmanager
def _locked_folder(folder: Path, created: Sequence[Path], gid: int | None = None) -> Iterator[None]:
    """Create and lock the folder of a sweep; if the block raises, remove the folders of the launch.

    Args:
        created: that folder and those above that did not exist before the launch, deepest first.
        gid: the group to share these with.

    Raises:
        BusyError: another launch of the sweep is in progress.
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Else a power cut takes them with all their runs; another launch may have created some.
        for path in dict.fromkeys((*created, folder, folder.parent)):
            files.sync_folder(path.parent)
        if gid is not None:
            share_folders(created, gid)
        with submission_lock(folder / run_directory.LOCK, f"the sweep {folder.name}"):
            try:
                files.refresh(folder)  # another machine may just have launched it
                files.remove_leftovers(folder)
                yield
            except BaseException:
                if created:  # while it is locked: it may be another launch's from then on
                    (folder / run_directory.LOCK).unlink(missing_ok=True)
                raise
    except BusyError:
        raise  # another launch is using what this one has created
    except BaseException as error:
        with contextlib.suppress(OSError):
            for path in created:
                path.rmdir()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder for runs with "
            f"--runs-dir or ${RUNS_VARIABLE}"
        ) from error


def create(
    content: Mapping[str, Any], prepared: PreparedLaunch, gid: int | None = None
) -> RunDirectory:
    """Publish the directory of a new run: it exists whole or not at all.

    Args:
        gid: the group to share it with.
    """
    from mlpsubmit.runs.initial_weights import keep_initial_weights

    path = prepared.path
    with files.published(path) as temporary:
        # Whatever the umask, nobody else may write to folders that code is loaded from.
        temporary.mkdir(mode=0o755)
        for name in run_directory.FOLDERS:
            (temporary / name).mkdir(mode=0o755)
        # It holds the environment variables that the spec sets, which may be secrets.
        pickled = sealed(prepared.frozen)
        files.publish(temporary / run_directory.SWEEP_PICKLE, pickled, private=True)
        plan = {"format": run_directory.FORMAT, **prepared.plan.to_json()}
        files.publish_json(temporary / run_directory.PLAN, plan)
        ingredients = stored(prepared.sweep.ingredients)
        files.publish_json(temporary / run_directory.INGREDIENTS, ingredients)
        RunDirectory(temporary).record_launch(next_launch(path))
        files.publish_json(temporary / run_directory.SWEEP_JSON, {**content, "id": path.name})
        keep_initial_weights(prepared.sweep, temporary)
        prepared.reused.write(RunDirectory(temporary))
        prepared.continuation.write(RunDirectory(temporary))
        if gid is not None:
            share_run(temporary, gid)
        RunDirectory.open(temporary)  # what could not be read is not created
    return RunDirectory.open(path)
