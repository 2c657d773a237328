"""One task: train the packs of a slice one after another, and append their results to a shard."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlpsubmit import files
from mlpsubmit.jobs.gpus import device_name, task_device
from mlpsubmit.jobs.heartbeat import (
    HEARTBEAT_SECONDS,
    SLOWEST_BEAT,
    Heartbeat,
    process_age,
)
from mlpsubmit.jobs.plan import PackRange, Plan
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.jobs.throughput.roofline import Roofline
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.jobs.train_pack import TaskContext, train_pack
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.accel.compile import sharing_compiled
from mlpsubmit.training.accel.cpu import cpu_name
from mlpsubmit.training.monitor import Interrupted

__all__ = ["run_task"]

#: Attempts in a row that may end before anything is trained.
MAX_WITHOUT_PROGRESS = 3

NO_PROGRESS = (
    f"{MAX_WITHOUT_PROGRESS} attempts in a row were ended before they had trained anything; "
    "give the tasks more time or memory when you resume (--time, --mem), or smaller packs "
    "(PACK_SIZE) or more frequent saves (CHECKPOINT_MINUTES) in a new launch"
)

#: FLOPs of a slice from which on its device is measured, which takes a second: some seconds of one
#: core.
WORTH_A_ROOFLINE = 3e11

#: Heartbeats per second of all tasks together, at most: their file system is shared.
BEATS_PER_SECOND = 20


#: Heartbeat fields at the start of an attempt.
NOTHING_DONE: dict[str, Any] = {
    "packs_done": 0,
    "packs_failed": 0,
    "halved": 0,
    "cost_done": 0.0,
    "progressed": False,
    "speeds": [],
}


def run_task(
    run: RunDirectory,
    sweep: Sweep,
    submission: int,
    index: int,
    stop: StopFlag,
    on_failure: Callable[[BaseException], None] | None = None,
) -> str:
    """Train every pack of a slice that has no result yet.

    Args:
        sweep: that of the run, as :func:`mlpsubmit.jobs.as_launched.as_launched` yields it.
        submission: which submission of the run the task belongs to.
        index: which of its slices to train.
        stop: set when the task is to save its pack and stop.
        on_failure: called with the exception of a pack that failed; the task then stops.

    Returns:
        ``done``; ``interrupted`` if ``stop`` was set, with the state of the pack saved; ``stopped``
        at a failure; or ``stuck`` if this and the attempts before it all ended before they had
        trained anything.
    """
    # Before anything loads torch's compiler, which then looks up where to put its files.
    with sharing_compiled(run.path / run_directory.COMPILED):
        name, intent = task_name(submission, index), run.intent(submission)
        plan = Plan.from_json(run.plan)
        device = task_device()
        torch.set_num_threads(plan.threads)
        data = SharedData(run, sweep, device)
        packs = _without_result(run, plan, intent["slices"][index], name)
        roofline = None
        if sum(pack.cost for pack in packs) >= WORTH_A_ROOFLINE:
            roofline = Roofline(device, sweep.base.precision)
        meter = ThroughputMeter()
        fields = {
            "task": name,
            "device": device_name(device),
            "cpu_name": cpu_name(),
            "threads": plan.threads,
            # The process of the debug executor has done other things before.
            "startup": None if intent["executor"] == "debug" else process_age(),
            "packs": len(packs),
            "without_progress": _attempts_without_progress(run, name),
            **NOTHING_DONE,
            **meter.fields(),
        }
        interval = min(len(intent["slices"]) / BEATS_PER_SECOND, SLOWEST_BEAT)
        with (
            Shard.claim(run.results.folder, name) as shard,
            Heartbeat(
                run.heartbeat(name),
                max(HEARTBEAT_SECONDS, interval),
                attempt=shard.attempt,
                **fields,
            ) as heartbeat,
        ):
            context = TaskContext(run, sweep, plan, device, data, stop, heartbeat, meter, roofline)
            return _Task(context, shard, on_failure).run(packs)


def _without_result(
    run: RunDirectory, plan: Plan, ranges: Sequence[tuple[int, int]], task: str
) -> list[PackRange]:
    """Return the packs of a slice that no earlier attempt of its task has trained."""
    packs = [plan.pack(number) for low, high in ranges for number in range(low, high)]
    finished = run.results.finished({pack.name for pack in packs}, task)
    return [pack for pack in packs if pack.name not in finished]


def _attempts_without_progress(run: RunDirectory, task: str) -> int:
    """Return how many attempts in a row before this one trained nothing."""
    last = run.last_heartbeat(task)
    return 0 if last is None or last["progressed"] else int(last["without_progress"]) + 1


@dataclass(frozen=True)
class _Task:
    """One attempt at a slice."""

    context: TaskContext
    shard: Shard
    on_failure: Callable[[BaseException], None] | None

    def run(self, packs: Sequence[PackRange]) -> str:
        """Train packs until the last, a signal, or a failure; return the outcome."""
        heartbeat = self.context.heartbeat
        without_progress = heartbeat["without_progress"]
        if without_progress >= MAX_WITHOUT_PROGRESS:
            return self._give_up()
        for pack in packs:
            try:
                proceed = self._train_or_record(pack)
            except Interrupted:
                print(f"pack {pack.name}: interrupted, its state is saved", flush=True)
                if not heartbeat["progressed"] and without_progress + 1 >= MAX_WITHOUT_PROGRESS:
                    return self._give_up()
                heartbeat.update(state="interrupted")
                return "interrupted"
            if not proceed:
                heartbeat.update(state="interrupted")
                return "stopped"
        heartbeat.update(state="done")
        return "done"

    def _give_up(self) -> str:
        """Report that further attempts would end as the last ones did."""
        print(NO_PROGRESS, flush=True)
        self.context.heartbeat.update(state="crashed", error=NO_PROGRESS)
        return "stuck"

    def _train_or_record(self, pack: PackRange) -> bool:
        """Train a pack and append its result or its failure; return whether to proceed."""
        if self.context.stop.is_set():
            raise Interrupted
        first = self.context.sweep.config(int(self.context.plan.indices(pack)[0]))
        self._report_start(pack, first)
        started = time.monotonic()
        size = pack.stop - pack.start
        try:
            workload = Workload.of(self.context.sweep, first, size, pack.cost)
            arrays = train_pack(self.context, pack)
        except Interrupted:
            raise
        except Exception as error:
            self._record_failure(pack, error)
            return self.on_failure is None
        self.shard.append(pack.name + shards.FINISHED_SUFFIX, npz_bytes(arrays))
        self.context.meter.finish_pack(workload)
        self._report_end(pack, "packs_done", speeds=self.context.meter.speeds())
        self.context.run.checkpoint(pack.name).unlink(missing_ok=True)
        seconds = time.monotonic() - started
        print(f"pack {pack.name}: {size} configs in {seconds:.1f} s", flush=True)
        return True

    def _record_failure(self, pack: PackRange, error: Exception) -> None:
        failure = {
            "indices": self.context.plan.indices(pack).tolist(),
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
        }
        self.shard.append(pack.name + shards.FAILED_SUFFIX, files.json_bytes(failure))
        self.context.meter.discard_pack()
        self._report_end(pack, "packs_failed")
        print(f"pack {pack.name}: failed\n{failure['traceback']}", flush=True)
        if self.on_failure is not None:
            self.on_failure(error)

    def _report_start(self, pack: PackRange, first: Config) -> None:
        heartbeat = self.context.heartbeat
        heartbeat.update(
            state="training",
            pack=pack.name,
            pack_started=time.time(),
            configs=pack.stop - pack.start,
            step=0,
            first_step=0,
            max_iter=first.hyperparameters.max_iter,
            loss=None,
        )
        heartbeat.publish()

    def _report_end(self, pack: PackRange, count: str, **fields: Any) -> None:
        """Count a pack that has a result or has failed."""
        heartbeat = self.context.heartbeat
        counted = {count: heartbeat[count] + 1, "cost_done": heartbeat["cost_done"] + pack.cost}
        heartbeat.update(progressed=True, **counted, **fields)
