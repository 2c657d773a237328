"""Part e: launches per step, and the share of the time in which the GPU is idle.

Which is what kernels do not take of a step, by the profiler, of the time of a step without it: with
it, launching takes longer.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packs import BLOCK, GPU, TRIALS, fitting_configs, speed, steps
from report import Report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workload import Workload

from mlpsubmit.training import Monitor, Progress
from mlpsubmit.training.oom import release_memory

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch")
IDLE_TARGET = 0.05


class Window(Monitor):
    """Profiles a training between two of its steps.

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


def kernel_spans(events: Iterable[Any]) -> list[tuple[float, float]]:
    """Return when kernels begin and end, in microseconds, in their order."""
    return sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    )


def busy_time(spans: Sequence[tuple[float, float]]) -> float:
    """Return the microseconds in which a kernel runs, or several."""
    busy, end = 0.0, -math.inf
    for begin, finish in spans:
        busy += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return busy


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
    pack, monitor = Workload(width, configs, batch, trials=TRIALS), Window(3 * BLOCK, 4 * BLOCK)
    with steps(replayed=replayed):
        pack.train(5 * BLOCK, {"PRECISION": precision}, monitor=monitor)
    events = monitor.profiler.events() or []
    launched = sum(event.name.startswith(LAUNCHES) for event in events)
    busy, kernels = busy_time(kernel_spans(events)) / BLOCK, slowest(events)
    for name, number, time in kernels:
        print(f"    {time:8.1f} us {number:7.1f} x  {name}", flush=True)
    with steps(replayed=replayed):
        seconds = configs / speed(pack, 2 if width > 256 else 10, {"PRECISION": precision})
    idle, wanted = 1 - 1e-6 * busy / seconds, replayed and GPU
    report.add(
        f"width {width} x {configs}, {precision}, {'replayed' if replayed else 'eager'}",
        f"{launched / BLOCK:.1f} launches per step, GPU idle {idle:.1%}",
        target=f"idle under {IDLE_TARGET:.0%}" if wanted else "",
        passed=idle < IDLE_TARGET if wanted else None,
        launches_per_step=launched / BLOCK,
        idle=idle,
        busy_microseconds=busy,
        microseconds=1e6 * seconds,
        kernels=kernels,
    )


def main(file: Path) -> None:
    report = Report("e", file)
    for width in (64, 256, 512, 8192) if GPU else (8,):
        measure(width, True, report)
        release_memory()
    if GPU:
        measure(8192, True, report, "tf32")
    for width, precision in ((64, "fp32"), (8192, "tf32")) if GPU else ((8, "fp32"),):
        measure(width, False, report, precision)
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
