"""Part e: launches per step, and the share of the time in which the GPU is idle."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from packs import BLOCK, GPU, TRIALS, fitting_configs, steps
from report import Report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workload import Workload

from mlpsubmit.training import Monitor, Progress

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")
IDLE_TARGET = 0.05


class OneBlock(Monitor):
    """Profiles the fourth block of a training: earlier ones record the step and check it."""

    def __init__(self) -> None:
        self.profiler = profile(
            activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU],
            acc_events=True,
        )

    def progress(self, progress: Progress) -> None:
        """Start and stop the profiler where the loop has just waited for the device."""
        if progress.step == 3 * BLOCK:
            self.profiler.start()
        elif progress.step == 4 * BLOCK:
            self.profiler.stop()


def busy_time(events: Iterable[Any]) -> tuple[float, float]:
    """Return the microseconds in which a kernel runs, and from the first to the end of the last."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    )
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


def measure(width: int, replayed: bool, report: Report, precision: str = "fp32") -> None:
    """Profile one block of a pack."""
    configs = 1 if width > 4096 else fitting_configs(width)
    batch = 1024 if width > 4096 else 256
    pack, monitor = Workload(width, configs, batch, trials=TRIALS), OneBlock()
    with steps(replayed=replayed):
        pack.train(5 * BLOCK, {"PRECISION": precision}, monitor=monitor)
    events = monitor.profiler.events() or []
    launched = sum(event.name.startswith(LAUNCHES) for event in events)
    busy, span = busy_time(events)
    kernels = slowest(events)
    for name, number, time in kernels:
        print(f"    {time:8.1f} us {number:7.1f} x  {name}", flush=True)
    idle = 1 - busy / span if span else 0.0
    wanted = replayed and GPU
    report.add(
        f"width {width} x {configs}, {precision}, {'replayed' if replayed else 'eager'}",
        f"{launched / BLOCK:.1f} launches per step, GPU idle {idle:.1%}",
        target=f"idle under {IDLE_TARGET:.0%}" if wanted else "",
        passed=idle < IDLE_TARGET if wanted else None,
        launches_per_step=launched / BLOCK,
        idle=idle,
        microseconds_per_step=span / BLOCK,
        kernels=kernels,
    )


def main(file: Path) -> None:
    report = Report("e", file)
    for width in (64, 256, 512, 8192) if GPU else (8,):
        measure(width, True, report)
        if GPU:
            torch.cuda.empty_cache()
    for width, precision in ((64, "fp32"), (8192, "tf32")) if GPU else ((8, "fp32"),):
        measure(width, False, report, precision)
    if GPU:
        measure(8192, True, report, "tf32")
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
