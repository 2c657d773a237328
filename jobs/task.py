"""One task: train the packs of a slice, and append their results to a shard.

On a CPU they train one after another, on a GPU as many side by side as fill it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mlpsubmit import files
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.environment import environment
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.jobs.gpus import device_memory, device_name, missing_gpu, task_device
from mlpsubmit.jobs.heartbeat import (
    HEARTBEAT_SECONDS,
    SLOWEST_BEAT,
    Heartbeat,
    PackHeartbeat,
    process_age,
)
from mlpsubmit.jobs.killed_packs import add_end, packs_to_train
from mlpsubmit.jobs.pack_results import Arrays
from mlpsubmit.jobs.plan import PackRange, Plan, pack_file_name
from mlpsubmit.jobs.room import Room
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.environments import (
    NOT_IDENTICAL,
    differences,
    publish_environments,
    stored_environments,
)
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.records import Intent
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.supervisor import Supervision
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.jobs.throughput.roofline import Roofline
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.jobs.train_pack import PackOutcome, TaskContext, train_pack
from mlpsubmit.jobs.trust import untrusted
from mlpsubmit.jobs.turns import Turns
from mlpsubmit.native.cpu import cpu_name
from mlpsubmit.results.names import SEVERAL, TRAINED_ON, device_kind
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.accel.compile import sharing_compiled
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
    "crossed_at_start": 0,
    "diverged": 0,
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
    supervision: Supervision | None = None,
) -> str:
    """Train every pack of a slice that has no result yet.

    Args:
        sweep: that of the run, as :func:`mlpsubmit.jobs.as_launched.as_launched` yields it.
        submission: which submission of the run the task belongs to.
        index: which of its slices to train.
        stop: set when the task is to save its pack and stop.
        on_failure: called with the exception of a pack that failed; the task then stops.
        supervision: by the parent process, which continues the task if this process is killed.

    Returns:
        ``done``; ``interrupted`` if ``stop`` was set, with the state of the pack saved;
        ``overtaken`` if another process trains these packs now, with nothing saved; ``stopped``
        at a failure; or ``stuck`` if this and the attempts before it all ended before they had
        trained anything, or if the device is not one that the task may train on.
    """
    # Before anything loads torch's compiler, which then looks up where to put its files.
    compiled = run.path / run_directory.COMPILED
    with contextlib.nullcontext() if untrusted(compiled) else sharing_compiled(compiled):
        name, intent = task_name(submission, index), run.intent(submission)
        plan = Plan.from_json(run.plan)
        device = task_device()
        torch.set_num_threads(plan.threads)
        _record_last_end(run, name, supervision)
        _remove_leftovers(run, name, intent["slices"][index])
        packs = packs_to_train(run, plan, intent["slices"][index], name)
        data = SharedData(run, sweep, device, map(plan.indices, packs), stop)
        roofline = None
        if sum(pack.cost for pack in packs) >= WORTH_A_ROOFLINE:
            roofline = Roofline(device, sweep.base.precision)
        meter = ThroughputMeter()
        interval = min(len(intent["slices"]) / BEATS_PER_SECOND, SLOWEST_BEAT)
        with (
            Shard.claim(run.results.folder, name) as shard,
            Heartbeat(
                run.heartbeat(name),
                max(HEARTBEAT_SECONDS, interval),
                overtaken=lambda: run.overtaken(submission) or shard.overtaken(),
                on_overtaken=stop.set,
                pid=None if supervision is None else supervision.pid,
                attempt=shard.attempt,
                task=name,
                # The process of the debug executor has done other things before.
                startup=None if intent["executor"] == "debug" else process_age(),
                packs=len(packs),
                without_progress=_attempts_without_progress(run, name),
                supervised=supervision is not None,
                **_machine(device, plan.threads),
                **NOTHING_DONE,
                **meter.fields(),
            ) as heartbeat,
        ):
            environments = [environment(device)]
            refusal = _refusal(run, intent, environments[0], heartbeat)
            if not refusal:
                publish_environments(shard.path, environments)
            _report_other_environments(run)
            context = TaskContext(
                *(run, sweep, plan, device, data, stop, heartbeat, meter, roofline),
                *(Turns(device), on_failure),
            )
            room = Room.of(device, sweep, plan)
            if on_failure is not None:  # a debugger is for one pack at a time
                room = replace(room, most=1)
            task = _Task(context, shard, room, supervision, environments)
            return task.give_up(refusal) if refusal else task.run(packs)


def _machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the fields of a heartbeat on what a task trains on."""
    return {
        "device": device_name(device),
        "device_memory": device_memory(device),
        "cpu_name": cpu_name(),
        "threads": threads,
    }


def _refusal(
    run: RunDirectory, intent: Intent, own: Mapping[str, Any], heartbeat: Heartbeat
) -> str:
    """Return why a task must not train on this device; empty if it may.

    Args:
        own: the environment of this process.
    """
    if intent["gpus"] and own["device"] == "cpu":
        return missing_gpu()
    if not intent["same_device"]:
        return ""
    device, host = device_kind(own), str(heartbeat["host"])
    bound = run.bind_to_device(device, str(heartbeat["task"]), host)
    if bound["device"] == device:
        return ""
    where = f", as task {bound['task']} did on {bound['host']}" if bound["task"] else ""
    return (
        f"same_device: the run trains on {bound['device']}{where}, and this task has {device} "
        f"on {host}, where it trains nothing; resume with what gets every task the same: "
        "--gpus TYPE:1, --constraint or --partition; or let results differ by rounding: "
        "--no-same-device"
    )


def _record_last_end(run: RunDirectory, task: str, supervision: Supervision | None) -> None:
    """Record how the last attempt ended if its process was killed in a pack."""
    last = run.last_heartbeat(task)
    if supervision is None or supervision.last is None:
        return
    number, end = supervision.last
    echo(f"the process {end} in pack {pack_file_name(number)}; going on")
    attempt = f"{task}.{last['attempt']}" if last else f"{task}, without a heartbeat, {time.time()}"
    add_end(run, pack_file_name(number), replace(end, attempt=attempt))


def _report_other_environments(run: RunDirectory) -> None:
    """Report that earlier results of the run were made with other versions, or another device.

    Only the first and the last files are read, because a thousand tasks may do so.
    """
    shards = run.results.shards()
    found = list[dict[str, int | str]]()
    for shard in dict.fromkeys((*shards[:2], *shards[-2:])):
        with contextlib.suppress(RunError, OSError):
            found += stored_environments(shard)
    if mixed := differences(found):
        echo(f"this run continues with {mixed}: {NOT_IDENTICAL}")


def _remove_leftovers(run: RunDirectory, task: str, ranges: Sequence[Sequence[int]]) -> None:
    """Remove the temporary files of earlier attempts of a task."""

    def owned(name: str) -> bool:
        number = name.partition(".")[0]
        return number.isdecimal() and any(low <= int(number) < high for low, high in ranges)

    for folder in (run_directory.CHECKPOINTS, run_directory.STATES):
        files.remove_leftovers(run.path / folder, owned)
    for folder in (run_directory.RESULTS, run_directory.HEARTBEATS):
        files.remove_leftovers(run.path / folder, lambda name: name.startswith(f"{task}."))


def _attempts_without_progress(run: RunDirectory, task: str) -> int:
    """Return how many attempts in a row before this one trained nothing."""
    last = run.last_heartbeat(task)
    if last is None or last.get("progressed"):
        return 0
    return int(last.get("without_progress", 0)) + 1


@dataclass(frozen=True)
class _Task:
    """One attempt at a slice.

    Attributes:
        environments: in which the results in its shard were trained, as published beside it.
        training: the packs that are in training now.
    """

    context: TaskContext
    shard: Shard
    room: Room
    supervision: Supervision | None
    environments: list[dict[str, Any]]
    training: list[PackRange] = field(default_factory=list)

    def run(self, packs: Sequence[PackRange]) -> str:
        """Train packs until the last, a signal, or a failure; return the outcome."""
        heartbeat = self.context.heartbeat
        without_progress = heartbeat["without_progress"]
        if without_progress >= MAX_WITHOUT_PROGRESS:
            return self.give_up(NO_PROGRESS)
        try:
            proceed = self._train_all(packs)
        except Interrupted:
            if heartbeat.overtaken:
                return "overtaken"
            if not heartbeat["progressed"] and without_progress + 1 >= MAX_WITHOUT_PROGRESS:
                return self.give_up(NO_PROGRESS)
            heartbeat.update(state="interrupted")
            return "interrupted"
        heartbeat.update(state="done" if proceed else "interrupted")
        return "done" if proceed else "stopped"

    def _train_all(self, packs: Sequence[PackRange]) -> bool:
        """Train packs, side by side where that pays; return whether none has stopped the task.

        Raises:
            Interrupted: if the task is to stop; the states of all packs in training are saved,
                unless another process has taken them over.
        """
        proceed, interrupted, turns = True, False, self.context.turns
        turns.several = len(packs) > 1 and self.room.fits_beside(packs[1], packs[:1])
        waiting = deque(packs)
        while True:
            while waiting and proceed and not interrupted and self._starts(waiting[0]):
                pack = waiting.popleft()
                self.training.append(pack)
                turns.start(partial(self._train_or_record, pack), partial(self._note, pack))
            if not turns:
                break
            try:
                proceed &= all(turns.take())
            except Interrupted:
                interrupted = True
        if interrupted:
            raise Interrupted
        return proceed

    def _starts(self, pack: PackRange) -> bool:
        """Return whether to start a pack now, beside those in training."""
        return self.context.turns.open and self.room.fits_beside(pack, self.training)

    def _note(self, pack: PackRange) -> None:
        """Note the pack whose functions run next: if the process is killed, it was that one."""
        if self.supervision is not None:
            self.supervision.begin_pack(pack.number)

    def give_up(self, why: str) -> str:
        """Report why no attempt on this machine would train anything."""
        echo(why)
        self.context.heartbeat.update(state="crashed", error=why)
        return "stuck"

    def _train_or_record(self, pack: PackRange) -> bool:
        """Train a pack and append its result or its failure; return whether to proceed."""
        heartbeat = self.context.heartbeat.of_pack()
        try:
            if self.context.stop.is_set():
                raise Interrupted
            return self._trained(pack, heartbeat)
        except Interrupted:
            if not self.context.heartbeat.overtaken:
                echo(f"pack {pack.name}: interrupted, its state is saved")
            raise
        finally:
            heartbeat.end()
            self.training.remove(pack)

    def _trained(self, pack: PackRange, heartbeat: PackHeartbeat) -> bool:
        first = self.context.sweep.config(int(self.context.plan.indices(pack)[0]))
        _report_start(heartbeat, pack, first)
        started, meter = time.monotonic(), self.context.meter.begin_pack()
        size = pack.stop - pack.start
        workload = Workload.of(self.context.sweep, first, size, pack.cost)
        try:
            outcome = train_pack(self.context, pack, heartbeat, meter)
        except Interrupted:
            raise
        except Exception as error:  # outside of the training of its parts, which handles its own
            failure = RowsFailure.of(error, range(size))
            echo(f"pack {pack.name}: failed\n{failure.traceback or failure.error}")
            on_failure = self.context.on_failure
            outcome = PackOutcome(None, [failure], stopped=on_failure is not None)
            if on_failure is not None:
                on_failure(error)
        finally:
            self.context.data.end_pack()
        if heartbeat.is_overtaken():
            raise Interrupted
        if outcome.checkpoint is not None:
            self._record_environments(pack, outcome.checkpoint.environments)
            outcome = replace(outcome, arrays=_with_devices(outcome))
        if outcome.failures:
            meter.discard()
            self._record_failures(pack, outcome)
            return not outcome.stopped
        assert outcome.arrays is not None  # every config has a result
        self.shard.append(pack.name + shards.FINISHED_SUFFIX, npz_bytes(outcome.arrays))
        meter.finish(workload)
        self._report_end(pack, "packs_done", speeds=self.context.meter.speeds())
        self.context.run.checkpoint(pack.name).unlink(missing_ok=True)
        self.context.run.pack_ends(pack.name).unlink(missing_ok=True)
        seconds = time.monotonic() - started
        echo(f"pack {pack.name}: {counted(size, 'config')} in {seconds:.1f} s")
        return True

    def _record_environments(self, pack: PackRange, own: Sequence[dict[str, Any]]) -> None:
        """Record all environments in which a pack was trained, before its result."""
        new = [environment for environment in own if environment not in self.environments]
        if new:
            self.environments[:0] = new
            publish_environments(self.shard.path, self.environments)
            echo(f"pack {pack.name}: was trained with {differences(own)}: {NOT_IDENTICAL}")

    def _record_failures(self, pack: PackRange, outcome: PackOutcome) -> None:
        """Append the results of a pack in which configs have failed, and then the failures.

        In this order: a process that dies in between leaves a pack that is missing. Its state
        remains, for a resume to try the failed configs again.
        """
        indices, finished = self.context.plan.indices(pack).tolist(), []
        if outcome.arrays is not None:
            self.shard.append(pack.name + shards.PARTIAL_SUFFIX, npz_bytes(outcome.arrays))
            finished = outcome.arrays["index"].tolist()
        failures = [failure.to_json(indices) for failure in outcome.failures]
        content = shards.failures_json(finished, failures)
        self.shard.append(pack.name + shards.FAILED_SUFFIX, content)
        if outcome.checkpoint is not None:
            outcome.checkpoint.retry_failures()
            outcome.checkpoint.try_to_save()
        self._report_end(pack, "packs_failed")
        failed = sum(len(failure.rows) for failure in outcome.failures)
        echo(f"pack {pack.name}: {failed} of {pack.stop - pack.start} configs failed")

    def _report_end(self, pack: PackRange, count: str, **fields: Any) -> None:
        """Count a pack that has a result or has failed."""
        heartbeat = self.context.heartbeat
        counts = {count: heartbeat[count] + 1, "cost_done": heartbeat["cost_done"] + pack.cost}
        progressed = heartbeat["progressed"]
        heartbeat.update(progressed=True, **counts, **fields)
        if not progressed:  # the process may be killed before the next beat
            heartbeat.publish()


def _with_devices(outcome: PackOutcome) -> Arrays | None:
    """Return the arrays of a pack, with its devices if it was trained on several."""
    made = [] if outcome.checkpoint is None else outcome.checkpoint.environments
    kinds = dict.fromkeys(map(device_kind, made))
    if outcome.arrays is None or len(kinds) < 2:
        return outcome.arrays
    devices = np.full(len(outcome.arrays["index"]), SEVERAL.join(kinds).encode())
    return {**outcome.arrays, TRAINED_ON: devices}


def _report_start(heartbeat: PackHeartbeat, pack: PackRange, first: Config) -> None:
    heartbeat.update(
        state="training",
        pack=pack.name,
        pack_started=time.time(),
        configs=pack.stop - pack.start,
        settled=0,
        stack=0,
        step=0,
        first_step=0,
        first_share=0.0,
        max_iter=first.hyperparameters.max_iter,
        loss=None,
        losses=[],
        doing="preparing the pack",
    )
    heartbeat.publish_soon()
