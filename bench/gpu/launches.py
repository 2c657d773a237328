"""Part e: launches per step, and the share of the time in which the GPU is idle."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from packs import BLOCK, GPU, TRIALS, fitting_configs, steps
from report import Report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workload import Workload, polynomials

from mlpsubmit import Sweep, launch
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.training import Monitor, Progress
from mlpsubmit.training.accel.narrow_mlps import WIDEST
from mlpsubmit.training.oom import release_memory

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")
IDLE_TARGET = 0.05


def profiled() -> profile:
    """Return a profiler of kernels."""
    activity = ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU
    return profile(activities=[activity], acc_events=True)


class Window(Monitor):
    """Profiles a training, or several side by side, between two of its steps.

    The first steps record a step and check it. It starts and stops where the loop has just waited
    for the device.
    """

    def __init__(self, first: int, last: int) -> None:
        activity = ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU
        self.profiler = profile(activities=[activity], acc_events=True)
        self._waiting, self._last = [first, last], last

    def progress(self, progress: Progress) -> None:
        """Start or stop the profiler."""
        if self._waiting and progress.step == self._waiting[0]:
            is_last = self._waiting.pop(0) == self._last
            self.profiler.stop() if is_last else self.profiler.start()


def batches(bsz: int, gen: torch.Generator) -> object:
    """Batch function."""
    return polynomials(32, bsz, gen)


def kernel_spans(events: Iterable[Any]) -> list[tuple[float, float]]:
    """Return when kernels begin and end, in microseconds, in their order."""
    return sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    )


def busy_time(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the microseconds in which a kernel runs, and from the first to the end of the last."""
    if not spans:
        return 0.0, 0.0
    busy, end = 0.0, spans[0][0]
    for begin, finish in spans:
        busy += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return busy, end - spans[0][0]


def slowest(events: Iterable[Any], count: int = 12) -> list[tuple[str, float, float]]:
    """Return the kernels that take longest: name, launches per step and microseconds per step."""
    times, numbers = Counter[str](), Counter[str]()
    for event in events:
        if event.device_type == DeviceType.CUDA:
            name = event.name[:90]
            times[name] += event.time_range.elapsed_us()
            numbers[name] += 1
    return [
        (name, numbers[name] / BLOCK, float(time) / BLOCK)
        for name, time in times.most_common(count)
    ]


def side_by_side(width: int, report: Report) -> None:
    """Profile a task that trains four packs of a width at once, as those with several packs do."""
    configs, steps = (4 * fitting_configs(width), 32 * BLOCK) if GPU else (4, 3 * BLOCK)
    sweep = Sweep(
        "idle",
        {"LR": np.geomspace(0.01, 0.02, configs // TRIALS or 1), "trial": range(TRIALS)},
        batchfn=batches,
        WIDTH=width,
        N_SAMPLES=256,
        MAX_ITER=steps,
        LOSS_CHECKPOINTS=[],
    )
    window = Window(20 * BLOCK, 28 * BLOCK) if GPU else Window(BLOCK, 2 * BLOCK)
    own = TaskMonitor.progress

    def progress(monitor: TaskMonitor, progress: Progress) -> None:
        own(monitor, progress)
        window.progress(progress)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(TaskMonitor, "progress", progress),
    ):
        launch(sweep, executor="debug", runs_dir=folder)
    spans = kernel_spans(window.profiler.events() or [])
    # Without the time in which the profiler starts, while one pack waits for it.
    spans = spans[len(spans) // 3 :]
    busy, span = busy_time(spans)
    idle = 1 - busy / span if span else 0.0
    report.add(
        f"width {width} x {configs} in four packs, fp32, replayed",
        f"GPU idle {idle:.1%}",
        target=f"idle under {IDLE_TARGET:.0%}" if GPU else "",
        passed=idle < IDLE_TARGET if GPU else None,
        idle=idle,
    )


def measure(width: int, replayed: bool, report: Report, precision: str = "fp32") -> None:
    """Profile one block of a pack."""
    configs = 1 if width > 4096 else fitting_configs(width)
    batch = 1024 if width > 4096 else 256
    pack, monitor = Workload(width, configs, batch, trials=TRIALS), Window(3 * BLOCK, 4 * BLOCK)
    with steps(replayed=replayed):
        pack.train(5 * BLOCK, {"PRECISION": precision}, monitor=monitor)
    events = monitor.profiler.events() or []
    launched = sum(event.name.startswith(LAUNCHES) for event in events)
    spans = kernel_spans(events)
    busy, span = busy_time(spans[len(spans) // 8 :])  # without the profiler's start
    kernels = slowest(events)
    for name, number, time in kernels:
        print(f"    {time:8.1f} us {number:7.1f} x  {name}", flush=True)
    idle = 1 - busy / span if span else 0.0
    # Kernels of one narrow pack are shorter than the gaps between them allow: see side_by_side().
    wanted = replayed and GPU and width > WIDEST
    report.add(
        f"width {width} x {configs}, {precision}, {'replayed' if replayed else 'eager'}",
        f"{launched / BLOCK:.1f} launches per step, GPU idle {idle:.1%}",
        target=f"idle under {IDLE_TARGET:.0%}" if wanted else "",
        passed=idle < IDLE_TARGET if wanted else None,
        launches_per_step=launched / BLOCK,
        idle=idle,
        microseconds_per_step=span / BLOCK * 8 / 7,
        kernels=kernels,
    )


def main(file: Path) -> None:
    report = Report("e", file)
    for width in (64, 256, 512, 8192) if GPU else (8,):
        measure(width, True, report)
        release_memory()
    side_by_side(64 if GPU else 8, report)
    release_memory()
    if GPU:
        measure(8192, True, report, "tf32")
    for width, precision in ((64, "fp32"), (8192, "tf32")) if GPU else ((8, "fp32"),):
        measure(width, False, report, precision)
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
