"""Train one pack of a plan: half as many configs at a time if it runs out of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.probe import smoke_test
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.gpus import device_name
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.pack_results import Arrays, joined, stack_arrays
from mlpsubmit.jobs.plan import PackRange, Plan
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.jobs.throughput.roofline import Roofline
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.monitor import StateError
from mlpsubmit.training.oom import is_crowded, ran_out_of_memory, release_memory
from mlpsubmit.training.seeds import data_seed, streams

__all__ = ["OutOfMemory", "TaskContext", "train_pack"]


@dataclass(frozen=True)
class TaskContext:
    """The context that all packs of a task share.

    Attributes:
        data: the entries of the data function.
        stop: set when the task is to save its pack and stop.
        roofline: the ideal time of model-steps; None if it was not measured.
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
    checked: set[tuple[int, ...]] = field(default_factory=set)


class OutOfMemory(UserError):
    """A config that does not fit into the memory even alone."""


def train_pack(context: TaskContext, pack: PackRange) -> Arrays:
    """Train a pack, from its checkpoint if there is one; return the arrays of its result.

    Raises:
        Interrupted: if the task is to stop; the state of the pack is saved.
        OutOfMemory: if not even one config fits.
    """
    sweep, base = context.sweep, context.sweep.base
    indices = context.plan.indices(pack)
    configs = [sweep.config(int(index)) for index in indices]
    entries = [context.data.entries(config) for config in configs]
    file = context.run.checkpoint(pack.name)
    checkpoint = Checkpoint.load(file, context.device.type, len(configs))
    monitor = TaskMonitor(
        checkpoint,
        context.stop,
        context.heartbeat,
        context.meter,
        60 * base.checkpoint_minutes,
        verbose=base.verbose,
    )
    _smoke_test(context, configs[0], entries[0])
    _PackTraining(context, pack.name, configs, entries, checkpoint, monitor).run()
    return {
        "index": indices,
        "key": np.array([key.tobytes().hex() for key in sweep.keys(indices)], dtype="S32"),
        **joined(checkpoint.finished, len(indices), halved=checkpoint.parts.halved),
    }


@dataclass
class _PackTraining:
    """The training of one pack, part by part.

    Attributes:
        configs, entries: (K,) of the pack; an entry is what the data function gave for a config.
        rows: the rows of the configs that are assembled or in training now.
    """

    context: TaskContext
    name: str
    configs: Sequence[Config]
    entries: Sequence[Mapping[str, Any]]
    checkpoint: Checkpoint
    monitor: TaskMonitor
    rows: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Train the remaining parts."""
        while self.checkpoint.parts.left:
            if not self._fits():
                # Out here, no traceback holds the dead tensors any more.
                self._halve()

    def _fits(self) -> bool:
        """Train the first part; return whether it fitted into memory."""
        try:
            self._train_part()
        except StateError as error:
            print(f"pack {self.name}: starting anew: {error}", flush=True)
            self.checkpoint.discard()
            self.monitor.restart()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if len(self.rows) == 1:
                self._rejoin()
                alone = self.configs[self.rows[0]]
                raise _does_not_fit(alone, self.context.device, error) from error
            return False
        return True

    def _train_part(self) -> None:
        """Assemble the configs of the first part, and train those that have no result yet."""
        checkpoint, device = self.checkpoint, self.context.device
        if checkpoint.parts.halved or is_crowded(device):
            # Earlier stacks are held by cycles; Python's collector does not see their size.
            release_memory()
        part, done = checkpoint.parts.left[0], checkpoint.done
        self.rows = [row for row in part if row not in done]
        # Even draws from torch's global generator, which the docs advise against, are repeated.
        torch.manual_seed(data_seed(self.configs[part[0]].hyperparameters.seed))
        configs, entries = [self.configs[row] for row in part], [self.entries[row] for row in part]
        for stack in assemble(self.context.sweep, configs, entries, device):
            rows = [part[row] for row in stack.rows]
            if done.issuperset(rows):
                continue
            self.rows = rows
            roofline = self.context.roofline
            step_ideal = None if roofline is None else roofline.ideal_seconds(stack)
            self.monitor.begin_stack(len(rows), step_ideal)
            # An optimizer of the user's, which trains one config at a time, may draw from these.
            seed = stack.hyperparameters[0].seed
            torch.manual_seed(streams(seed, stack.trials[0]).optimizer)
            trained = stack.train(self.monitor)
            self.monitor.finish_stack(stack_arrays(rows, trained, self.monitor.seconds))
        checkpoint.parts.drop_first()

    def _halve(self) -> None:
        """Continue with half as many configs at a time, also in the attempts that follow."""
        release_memory()
        parts, heartbeat = self.checkpoint.parts, self.context.heartbeat
        heartbeat.update(halved=heartbeat["halved"] + (not parts.halved), progressed=True)
        size = parts.halve(self.rows, self.checkpoint.done)
        self.monitor.restart()
        print(
            f"pack {self.name}: out of memory with {len(self.rows)} configs; "
            f"continuing with {size} at a time",
            flush=True,
        )
        self.monitor.save(None)

    def _rejoin(self) -> None:
        """Save all remaining configs as one part: a device with more memory may hold it."""
        self.checkpoint.parts.rejoin(self.checkpoint.done)
        self.monitor.restart()
        self.monitor.save(None)


def _smoke_test(context: TaskContext, config: Config, entry: Mapping[str, Any]) -> None:
    """Call the functions of a training before it, so that an error in one costs nothing."""
    try:
        smoke_test(context.sweep, config, entry, context.device, context.checked)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        release_memory()  # the training will raise it again, or continue with fewer configs


def _does_not_fit(config: Config, device: torch.device, error: Exception) -> OutOfMemory:
    settings = config.hyperparameters
    sets = "N_SAMPLES" if settings.online else "N_SAMPLES or N_TEST"
    more = "a GPU with more memory" if device.type == "cuda" else "more memory for each task"
    return OutOfMemory(
        f"a config with WIDTH={settings.width}, DEPTH={settings.depth}, N_SAMPLES="
        f"{settings.n_samples} does not fit into the memory of its task ({device_name(device)}), "
        f"not even alone; try a smaller {sets}, or {more}. It ended in {type(error).__name__}: "
        + (str(error).splitlines() or [""])[0]
    )
