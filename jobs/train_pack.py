"""Train one pack of a plan, in parts if its configs cannot train together.

- If memory runs out, it trains half as many configs at a time.
- If a function raises, the configs whose functions raise are set aside, and the others are trained.
- If the processes that train it are killed, it is divided over attempts, until the configs that
  kill their process are alone; these are set aside, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mlpsubmit.assembly.assemble import StackInputs, assemble
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.assembly.probe import smoke_test
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted, crossed_at_start, diverged
from mlpsubmit.errors import UserError, error_text
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.environment import environment
from mlpsubmit.jobs.failures import RowsFailure, failures_of
from mlpsubmit.jobs.gpus import device_name
from mlpsubmit.jobs.heartbeat import Heartbeat, PackHeartbeat
from mlpsubmit.jobs.killed_packs import MOST_KILLS, pack_ends
from mlpsubmit.jobs.pack_results import Arrays, joined, stack_arrays
from mlpsubmit.jobs.plan import PackRange, Plan
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.throughput.meter import PackMeter, ThroughputMeter
from mlpsubmit.jobs.throughput.roofline import Roofline
from mlpsubmit.jobs.turns import Turns
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.culprits import FAILURES, raise_attributed, take_culprits
from mlpsubmit.training.monitor import Interrupted, StateError
from mlpsubmit.training.oom import is_crowded, ran_out_of_memory, release_memory
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import data_seed

__all__ = ["OutOfMemory", "PackOutcome", "TaskContext", "train_pack"]

#: Called with the first exception of a pack; the pack then stops.
OnFailure = Callable[[BaseException], None]


@dataclass(frozen=True)
class TaskContext:
    """The context that all packs of a task share.

    Attributes:
        data: the entries of the data function.
        stop: set when the task is to save its pack and stop.
        roofline: the ideal time of model-steps; None if it was not measured.
        turns: the packs that train side by side.
        on_failure: called with the first exception of a pack, which then stops; None to train the
            configs that do not raise.
        checked: the functions that a smoke test has passed.
    """

    run: RunDirectory
    sweep: Sweep
    plan: Plan
    device: torch.device
    data: SharedData
    stop: StopFlag
    heartbeat: Heartbeat
    meter: ThroughputMeter
    roofline: Roofline | None
    turns: Turns[bool]
    on_failure: OnFailure | None = None
    checked: set[tuple[int, ...]] = field(default_factory=set)


class OutOfMemory(UserError):
    """A config that does not fit into the memory even alone."""


@dataclass(frozen=True)
class PackOutcome:
    """The outcome of the configs of a pack.

    Attributes:
        arrays: the results of those that have one; None if none has.
        failures: of the others, unless the pack was stopped.
        checkpoint: its state; None to leave the file as it is.
        stopped: whether it was stopped at its first exception.
    """

    arrays: Arrays | None
    failures: Sequence[RowsFailure]
    checkpoint: Checkpoint | None = None
    stopped: bool = False


def train_pack(
    context: TaskContext, pack: PackRange, heartbeat: PackHeartbeat, meter: PackMeter
) -> PackOutcome:
    """Train a pack, from its checkpoint if there is one.

    Args:
        heartbeat, meter: those of the pack.

    Raises:
        Interrupted: if the task is to stop; the state of the pack is saved.
    """
    sweep, base = context.sweep, context.sweep.base
    indices = context.plan.indices(pack)
    configs = [sweep.config(int(index)) for index in indices]
    file = context.run.checkpoint(pack.name)
    checkpoint = Checkpoint.load(file, context.device.type, len(configs))
    checkpoint.enter(environment(context.device))
    if not checkpoint.parts.left and pack.name in context.run.results.failed():
        checkpoint.retry_failures()  # a process died between recording them and this
    monitor = TaskMonitor(
        checkpoint,
        context.stop,
        heartbeat,
        meter,
        60 * base.checkpoint_minutes,
        pass_on=context.turns.pass_on,
        shares_device=context.turns.several,
        verbose=base.verbose,
    )
    stopped = _PackTraining(context, pack.name, configs, checkpoint, monitor).run()
    rows = sorted(checkpoint.done)
    arrays = None
    if rows:
        keys = sweep.keys(indices[rows])
        arrays = {
            "index": indices[rows],
            "key": np.array([key.tobytes().hex() for key in keys], dtype="S32"),
            **joined(checkpoint.finished, rows, divided=checkpoint.parts.divided),
        }
    return PackOutcome(arrays, checkpoint.failures, checkpoint, stopped)


class _Stopped(Exception):
    """Raised once a pack that is to stop at its first failure has failed."""


@dataclass
class _PackTraining:
    """The training of one pack, part by part.

    Attributes:
        configs: (K,) of the pack.
        rows: the rows of the configs that are assembled or in training now.
        given: the rows that these were chosen from: the part, or the stack in training.
        entries: by row, the entries of the data function, as far as they were needed.
        smoke_tested: whether the functions have been called before the training.
    """

    context: TaskContext
    name: str
    configs: Sequence[Config]
    checkpoint: Checkpoint
    monitor: TaskMonitor
    rows: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    entries: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    smoke_tested: bool = False

    def run(self) -> bool:
        """Train the remaining parts; return whether it stopped at an exception."""
        self._account_for_ends(pack_ends(self.context.run, self.name))
        try:
            while self.checkpoint.parts.left:
                response = self._train_first()
                if response is not None:
                    # Out here, no traceback holds the dead tensors any more.
                    response()
        except _Stopped:
            return True
        return False

    def _train_first(self) -> Callable[[], None] | None:
        """Train the first part; return how to respond to its failure, if it failed."""
        part = self.checkpoint.parts.left[0]
        self.given, self.rows = part, [row for row in part if row not in self.checkpoint.done]
        try:
            self._train_part(part)
        except Interrupted:
            raise
        except StateError as error:
            echo(f"pack {self.name}: its state is discarded, starting from scratch: {error}")
            self.checkpoint.discard()
            self.monitor.restart()
        except FAILURES as error:
            if isinstance(error, StackingError) and len(self.given) > 1:
                return partial(self._separate, error.groups, error.reason)
            return self._response(error)
        return None

    def _train_part(self, part: Sequence[int]) -> None:
        """Assemble the configs of the first part, and train those that have no result yet."""
        checkpoint, device, done = self.checkpoint, self.context.device, self.checkpoint.done
        if not self.rows:  # the process of the last attempt died just after its last stack
            checkpoint.parts.drop_first()
            return
        if checkpoint.parts.halved or is_crowded(device):
            # Earlier stacks are held by cycles; Python's collector does not see their size.
            release_memory()
        self._report("loading data")
        self._load_entries(part)
        self._report("trying the functions")
        self._smoke_test()
        self._report("building networks")
        # Even draws from global generators, which the docs advise against, are repeated.
        self._seed_generators(self.configs[part[0]].hyperparameters.seed)
        stacks = self._assemble(part)
        self._report_division(stacks)
        for number, stack in enumerate(stacks):
            rows = [part[row] for row in stack.rows]
            if done.issuperset(rows):
                continue
            checkpoint.check_stack(rows)
            self.given = self.rows = rows
            roofline = self.context.roofline
            step_ideal = None if roofline is None else roofline.ideal_seconds(stack)
            self.monitor.begin_stack(len(rows), step_ideal)
            trained = stack.train(self.monitor)
            self._report_oddities(trained)
            tested = stack.hyperparameters[0].test_every is not None
            arrays = stack_arrays(rows, trained, self.monitor.seconds, tested=tested)
            self.monitor.finish_stack(arrays)
            if number + 1 < len(stacks):
                self.monitor.save(None)  # a process that is killed in the next stack kills no other
        checkpoint.parts.drop_first()
        if checkpoint.parts.left:
            self.monitor.save(None)

    # ---- before a part trains

    def _report(self, doing: str) -> None:
        """Name what is done before the training, for whoever waits for its first step."""
        self.monitor.heartbeat.update(doing=doing)

    def _load_entries(self, part: Sequence[int]) -> None:
        """Load the entries of the data function; configs for which it raises fail."""
        errors: dict[int, BaseException] = {}
        known: dict[bytes, BaseException] = {}  # to raise it again may take as long again
        for row in part:
            config = self.configs[row]
            if row in self.entries:
                continue
            if known and (same := known.get(self._data_key(config))):
                errors[row] = same
                continue
            try:
                self.entries[row] = self.context.data.entries(config)
            except Interrupted:
                raise
            except FAILURES as error:
                if ran_out_of_memory(error):
                    raise
                errors[row] = known[self._data_key(config)] = error
        self._raise_for(errors)

    def _data_key(self, config: Config) -> bytes:
        """Return a hash of what the data function gets for a config."""
        try:
            return digest(data_arguments(self.context.sweep, config))
        except UserError as error:
            return digest(str(error))

    def _smoke_test(self) -> None:
        """Call the functions of a training before it, so that an error in one costs little.

        Of one config: if that fails and is set aside, the next one is tried.
        """
        if self.smoke_tested:
            return
        row, context = self.rows[0], self.context
        try:
            entry = self.entries[row]
            smoke_test(context.sweep, self.configs[row], entry, context.device, context.checked)
        except FAILURES as error:
            if not ran_out_of_memory(error):
                take_culprits(error)  # of the one config of this test
                self._raise_for({row: error})
            release_memory()  # the training will raise it again, or continue with fewer configs
        self.smoke_tested = True

    def _assemble(self, part: Sequence[int]) -> list[StackInputs]:
        """Build the stacks of a part; configs whose functions raise fail."""
        errors: dict[int, BaseException] = {}

        def on_failure(number: int, error: BaseException) -> None:
            errors[part[number]] = error

        configs = [self.configs[row] for row in part]
        entries = [self.entries.get(row, {}) for row in part]
        stacks = assemble(self.context.sweep, configs, entries, self.context.device, on_failure)
        self._raise_for(errors)
        return stacks

    def _raise_for(self, errors: Mapping[int, BaseException]) -> None:
        """Raise the errors of rows, if there are any of rows without a result."""
        own = {self.rows.index(row): one for row, one in errors.items() if row in self.rows}
        if own:
            raise_attributed(own)

    # ---- after it has failed

    def _response(self, error: BaseException) -> Callable[[], None]:
        """Return how to continue after an exception."""
        alone = len(self.rows) == 1
        if ran_out_of_memory(error):
            if not self.context.turns.alone:
                return self._wait_for_memory
            if not alone:
                return self._halve
            raised = _does_not_fit(self.configs[self.rows[0]], self.context.device, error)
            raised.__cause__ = error
            errors: dict[int, BaseException] = {self.rows[0]: raised}
        else:
            culprits = take_culprits(error) or ({0: error} if alone else {})
            errors = {self.rows[config]: one for config, one in culprits.items()}
        if self.context.on_failure is not None:
            failures = failures_of(errors or dict.fromkeys(self.rows, error))
            return partial(self._stop, error, failures)
        if not errors:
            return partial(self._divide, f"one of them raised {error_text(error)}")
        stopped = {self.rows[config] for config in self.monitor.stopped}
        retried = sorted(stopped & errors.keys()) if not alone else []
        certain = {row: one for row, one in errors.items() if row not in retried}
        return partial(self._set_aside, failures_of(certain), retried)

    def _set_aside(self, failures: Sequence[RowsFailure], alone: Sequence[int] = ()) -> None:
        """Continue without the configs that have failed, also in the attempts that follow.

        Args:
            alone: the rows of configs that raise, but may have stopped before if they train alone.
        """
        checkpoint, failed = self.checkpoint, [row for one in failures for row in one.rows]
        checkpoint.set_aside(failures, alone)
        for failure in failures:
            echo(
                f"pack {self.name}: {counted(len(failure.rows), 'config')} failed\n"
                f"{failure.traceback or failure.error}",
            )
        rest = sum(map(len, checkpoint.parts.left))
        if rest and self.context.on_failure is None:
            echo(f"pack {self.name}: continuing with the other {rest}")
        self._begin_again(keeps_state=set(failed) == set(self.rows))

    def _divide(self, why: str) -> None:
        """Continue with parts of the configs: any of them may be the one that fails."""
        parts, count = self.checkpoint.parts, len(self.rows)
        size = parts.divide(self.rows, self.checkpoint.done)
        echo(
            f"pack {self.name}: divided {count} configs, to train {size} at a time: {why}",
        )
        self._begin_again()

    def _begin_again(self, *, keeps_state: bool = False) -> None:
        """Save the parts, and begin the first of them at step 0.

        Not at the saved state, although that would save time: it was saved at some time, by the
        clock, and a stack of fewer configs rounds differently from there on.

        Args:
            keeps_state: for the case that nothing else is to be trained, and a later resume tries
                the same stack again.
        """
        self.context.heartbeat.update(progressed=True)
        self.monitor.restart()
        if keeps_state and not self.checkpoint.parts.left:
            self.checkpoint.restore_state(self.rows)
        self.monitor.save(self.checkpoint.state)

    def _stop(self, error: BaseException, failures: Sequence[RowsFailure]) -> None:
        """Record the first failure, report it, and stop."""
        self._set_aside(failures)
        assert self.context.on_failure is not None
        self.context.on_failure(error)
        raise _Stopped

    def _seed_generators(self, seed: int) -> None:
        assert self.context.sweep.process is not None
        self.context.sweep.process.seed_generators(data_seed(seed))

    def _report_division(self, stacks: Sequence[StackInputs]) -> None:
        if len(stacks) > 1:
            count = sum(len(stack.rows) for stack in stacks)
            how = "one at a time" if len(stacks) == count else f"in {len(stacks)} stacks"
            echo(f"pack {self.name}: {count} configs train {how}: {stacks[1].reason}")

    def _report_oddities(self, trained: Trained) -> None:
        """Report and count the configs that diverged, or crossed a threshold at step 0."""
        at_start = (trained.timekeys == 0).any(axis=1)
        for counter, configs, described in (
            ("diverged", trained.status == DIVERGED, diverged),
            ("crossed_at_start", at_start, crossed_at_start),
        ):
            if count := int(configs.sum()):
                echo(f"pack {self.name}: {described(count)}")
                heartbeat = self.context.heartbeat
                heartbeat.update(**{counter: heartbeat[counter] + count})

    def _separate(self, groups: Sequence[Sequence[int]] | None, why: str) -> None:
        """Continue with the groups of configs that can be stacked, also in later attempts.

        Args:
            groups: positions in :attr:`given`; None to train each config alone.
        """
        groups = groups or [[number] for number in range(len(self.given))]
        rows = [[self.given[number] for number in group] for group in groups]
        self.checkpoint.parts.separate(rows, self.checkpoint.done)
        count = len(self.given)
        how = "one at a time" if len(groups) == count else f"in {len(groups)} parts"
        echo(f"pack {self.name}: {count} configs train {how}: {why}")
        self._begin_again()

    def _wait_for_memory(self) -> None:
        """Continue once no other pack trains beside this one."""
        count = counted(len(self.rows), "config")
        echo(f"pack {self.name}: out of memory with {count} beside other packs")
        release_memory()
        self.context.turns.wait_until_alone()
        self._begin_again()

    def _halve(self) -> None:
        """Continue with half as many configs at a time, also in the attempts that follow."""
        release_memory()
        parts, heartbeat = self.checkpoint.parts, self.context.heartbeat
        heartbeat.update(halved=heartbeat["halved"] + (not parts.halved))
        size = parts.halve(self.rows, self.checkpoint.done)
        echo(
            f"pack {self.name}: out of memory with {len(self.rows)} configs; "
            f"continuing with {size} at a time",
        )
        self._begin_again()

    # ---- after its process was killed

    def _account_for_ends(self, ends: Sequence[ProcessEnd]) -> None:
        """Divide the pack, or set its only config aside, if its processes were killed.

        Args:
            ends: of all processes so far that were killed while they trained the pack.
        """
        checkpoint, parts = self.checkpoint, self.checkpoint.parts
        new = ends[checkpoint.ends :]
        if not new or not parts.left:
            return
        self.rows = [row for row in parts.left[0] if row not in checkpoint.done]
        kills = len(new) + (parts.kills if checkpoint.progress == checkpoint.reached else 0)
        checkpoint.ends, checkpoint.reached, parts.kills = len(ends), checkpoint.progress, kills
        if new[-1].memory and len(self.rows) > 1:
            parts.suspect = True
            self._halve()
        elif kills >= MOST_KILLS or parts.suspect:
            parts.suspect = True
            error = f"its process {new[-1]}"
            if len(self.rows) == 1:
                failure = RowsFailure(self.rows, error, where=new[-1].where, killed=True)
                self._set_aside([failure])
            else:
                self._divide(error)
        # If the disk is full, this ends the task: what is not accounted for would repeat for ever.
        checkpoint.save(checkpoint.state, self.monitor.seconds)
        self.context.heartbeat.update(progressed=True)
        self.context.heartbeat.publish()  # the next process may be killed before the next beat


def _does_not_fit(config: Config, device: torch.device, error: BaseException) -> OutOfMemory:
    settings = config.hyperparameters
    sets = "N_SAMPLES" if settings.test_every is None else "N_SAMPLES or N_TEST"
    more = "a GPU with more memory" if device.type == "cuda" else "more memory for each task"
    return OutOfMemory(
        f"a config with WIDTH={settings.width}, DEPTH={settings.depth}, N_SAMPLES="
        f"{settings.n_samples} does not fit into the memory of its task ({device_name(device)}), "
        f"not even alone; try a smaller {sets}, or {more}. It ended in {type(error).__name__}: "
        + (str(error).splitlines() or [""])[0]
    )
