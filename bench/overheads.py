"""The cost of checkpoints, heartbeats and recording, as shares of the time of a training.

    python bench/overheads.py [--repeats N] [--folder DIR] [--save]

Checkpoints: the seconds of one save of a pack as large as a plan makes it, by the seconds between
two saves; files go to a temporary folder of DIR, since a save waits for its disk. Heartbeats: the
CPU time of one and of the calls of the train loop; and the time of training with them, at a rate
at which their share is visible, against training without. Recording: model-steps per
second with traces or grabs, against final losses alone. Alternatives take turns in one process, and
figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from options import repeats_option, save_option
from results import Figure, Recording, figure
from workload import DEVICE, Stopwatch, Workload, polynomials

from mlpsubmit import Sweep
from mlpsubmit.grabs import readin_gram_trace
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from mlpsubmit.jobs.plan import make_plan
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.spec.hyperparameters import Hyperparameters

#: Width, the steps that a save follows each, and the samples per step, which no state depends on.
PACKS = ((64, 14, 256), (256, 14, 64), (1024, 14, 64), (4096, 8, 16), (8192, 4, 16))

#: The shorter a step, the more of it goes to all else.
SHORT_STEPS = Workload(width=64, configs=16)
BEATS = 0.02  # seconds between heartbeats while they are measured
CHECKPOINT_SECONDS = 60 * Hyperparameters().checkpoint_minutes

MAX_ITER = 800
TRACES = {"ONLYTHRESHOLDS": False, "GRAB_EVERY": "log:100"}
GRAB = {"trace": readin_gram_trace}
#: Settings and grabs of each way of recording; the others are compared with the first.
RECORDINGS: dict[str, tuple[Mapping[str, Any], Mapping[str, Callable[..., Any]]]] = {
    "final losses": ({}, {}),
    "losses of every step": (TRACES, {}),
    "losses, RECORD_EVERY='log:200'": ({**TRACES, "RECORD_EVERY": "log:200"}, {}),
    "a grab at the end": ({}, GRAB),
    "a grab, GRAB_EVERY='log:100'": (TRACES, GRAB),
    "a grab at every step": ({**TRACES, "GRAB_EVERY": 1}, GRAB),
}


def largest_pack(width: int, batch: int) -> Workload:
    """Return the largest pack that a plan makes of networks of a width."""
    trials = {"trial": range(1024)}
    sweep = Sweep("bench", trials, batchfn=polynomials, d=Workload.d, WIDTH=width)
    plan = make_plan(sweep, max_tasks=1, threads=1)
    return Workload(width, int(plan.pack_limits.max()), batch)


def monitor(folder: Path, pack: Workload, heartbeat: Heartbeat, interval: float) -> TaskMonitor:
    checkpoint = Checkpoint.load(folder / "pack.pt", DEVICE.type, pack.configs)
    pack_meter = ThroughputMeter().begin_pack()
    return TaskMonitor(checkpoint, threading.Event(), heartbeat.of_pack(), pack_meter, interval)


def saves(width: int, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    """Train with a save after every step and with none."""
    pack = largest_pack(width, batch)
    keeper = monitor(folder, pack, Heartbeat(folder / "beat.json", 2.0), interval=0.0)
    saving, plain = Stopwatch(keeper, wait=True), Stopwatch(wait=True)
    for stopwatch in (saving, plain):
        pack.train(steps, {}, monitor=stopwatch)
    size = keeper.checkpoint.file.stat().st_size
    keeper.checkpoint.file.unlink()
    with_save, without = (statistics.median(s.step_seconds) for s in (saving, plain))
    return {
        "width": width,
        "configs": pack.configs,
        "megabytes": size / 1e6,
        "seconds": statistics.median(saving.save_seconds),
        "slowest": max(saving.save_seconds),
        # By another way, with the effect of a save on the next step.
        "seconds_from_steps": with_save - without,
        "share": (with_save - without) / CHECKPOINT_SECONDS,
    }


def heartbeats(repeats: int, folder: Path) -> dict[str, Any]:
    """Train with heartbeats and the calls of the loop, and without."""
    slowdowns, told_shares = [], []
    for _ in range(repeats):
        plain = Stopwatch()
        SHORT_STEPS.train(MAX_ITER, {}, monitor=plain)
        with Heartbeat(folder / "beat.json", BEATS) as heartbeat:
            told = Stopwatch(monitor(folder, SHORT_STEPS, heartbeat, interval=1e9))
            SHORT_STEPS.train(MAX_ITER, {}, monitor=told)
        slowdowns.append(told.seconds / plain.seconds - 1)
        told_shares.append(told.told_seconds / told.seconds)
    publish = _cpu_seconds(Heartbeat(folder / "beat.json", BEATS).publish)
    slowdown, told_share = statistics.median(slowdowns), statistics.median(told_shares)
    return {
        "slowdown": slowdown,
        "slowdowns": slowdowns,
        "publish_seconds": publish,
        "told_share": told_share,
        "share": told_share + publish / HEARTBEAT_SECONDS,
        # By another way, with all effects of heartbeats on the loop that grow with their number.
        "share_from_totals": told_share + (slowdown - told_share) * BEATS / HEARTBEAT_SECONDS,
    }


def _cpu_seconds(function: Callable[[], Any], calls: int = 300) -> float:
    """Return the CPU time of this thread for one call."""
    begin = time.thread_time()
    for _ in range(calls):
        function()
    return (time.thread_time() - begin) / calls


def recorded(repeats: int) -> dict[str, list[float]]:
    """Train with each way of recording in turn; return its model-steps per second."""
    speeds: dict[str, list[float]] = {name: [] for name in RECORDINGS}
    for turn in range(repeats):
        # Forth and back, so that a machine that slows down does not bias the later ones.
        for name, (settings, grabs) in list(RECORDINGS.items())[:: (-1) ** turn]:
            stopwatch = Stopwatch()
            # A grab at every step takes so much of a step that few steps show it.
            steps = MAX_ITER // 4 if settings.get("GRAB_EVERY") == 1 else MAX_ITER
            SHORT_STEPS.train(steps, settings, monitor=stopwatch, grabs=grabs)
            speeds[name].append(SHORT_STEPS.configs * stopwatch.steps / stopwatch.seconds)
    return speeds


def print_saves(folder: Path) -> list[dict[str, Any]]:
    """Measure and print the cost of checkpoints."""
    default = f"of {CHECKPOINT_SECONDS / 60:g} min"
    titles = ("configs", "MB", "ms", "slowest", "by steps", default, "of 1 min")
    print(f"\n{'one save':<12}" + "".join(f"{title:>10}" for title in titles))
    results = []
    for pack in PACKS:
        one = saves(*pack, folder)
        results.append(one)
        times = [1e3 * one[name] for name in ("seconds", "slowest", "seconds_from_steps")]
        print(f"width {one['width']:<6}{one['configs']:>10}{one['megabytes']:>10.1f}", end="")
        print("".join(f"{milliseconds:>10.1f}" for milliseconds in times), end="")
        print(f"{one['share']:>10.3%}{times[2] / 60e3:>10.3%}", flush=True)
    return results


def print_heartbeats(repeats: int, folder: Path) -> dict[str, Any]:
    """Measure and print the cost of heartbeats."""
    result = heartbeats(repeats, folder)
    rounds = ", ".join(f"{slowdown:.1%}" for slowdown in result["slowdowns"])
    print(
        f"\nheartbeats: {1e6 * result['publish_seconds']:.0f} us of a CPU each, and "
        f"{result['told_share']:.3%} of the time in the calls of the loop"
    )
    print(f"every {BEATS:g} s: slower by {result['slowdown']:.2%} (rounds: {rounds})")
    print(
        f"every {HEARTBEAT_SECONDS:g} s: by {result['share_from_totals']:.3%} from that, and by "
        f"{result['share']:.3%} from the parts",
        flush=True,
    )
    return result


def print_recorded(repeats: int) -> list[Figure]:
    """Measure and print the cost of recording; return the figures."""
    speeds, found = recorded(repeats), list[Figure]()
    base = next(iter(speeds.values()))
    print(f"\n{'recorded':<36}{'model-steps/s':>14}{'of first':>10}")
    for name, own in speeds.items():
        shares = [a / b for a, b in zip(own, base, strict=True)]
        found.append(figure(name, "speed", "model-steps/s", own))
        found.append(figure(name, "of final losses", "share", shares))
        print(f"{name:<36}{found[-2].median:>14,.0f}{found[-1].median:>10.1%}")
    return found


#: What is recorded of a save, and of heartbeats, with its unit.
SAVE = {
    "configs": "configs",
    "megabytes": "10^6 bytes",
    "seconds": "s",
    "slowest": "s",
    "seconds_from_steps": "s",
    "share": "share",
}
HEARTBEAT = {"publish_seconds": "s", "share": "share", "share_from_totals": "share"}


def figures_of(saved: Sequence[Mapping[str, Any]], beats: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of saves and of heartbeats."""
    found = [
        figure(f"one save, width {one['width']}", name, unit, float(one[name]))
        for one in saved
        for name, unit in SAVE.items()
    ]
    case = f"heartbeats, width {SHORT_STEPS.width}"
    return found + [figure(case, name, unit, beats[name]) for name, unit in HEARTBEAT.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    repeats_option(parser, 3)
    parser.add_argument("--folder", type=Path, help="the folder in which to make one for the files")
    save_option(parser)
    options, recording = parser.parse_args(arguments), Recording("overheads")
    print(f"{DEVICE}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        found = figures_of(print_saves(folder), print_heartbeats(options.repeats, folder))
        found += print_recorded(options.repeats)
    recording.save(found, options.save)


if __name__ == "__main__":
    main()
