"""Part h: the constants that were set without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from packs import BLOCK, GPU, TRIALS, BlockTimes, fitting_configs, speed, steps
from report import Report, compact
from workload import Workload

from mlpsubmit.jobs.pack_memory import LARGEST_ON_GPU, WEIGHTS_ON_GPU
from mlpsubmit.training.accel.replay import LARGEST_RECORDED, WORTHWHILE_STEPS

#: A gain that is worth a recording; the share of the best speed from which a pack is large enough.
GAIN, ENOUGH = 0.05, 0.95


def worthwhile_steps(report: Report) -> None:
    """Measure after how many steps a recording is repaid."""
    pack = Workload(64, 16)
    blocks, eager, replayed = 8, BlockTimes(), BlockTimes()
    with steps(replayed=True):
        pack.train(2 * BLOCK, {})  # CUDA and its libraries start up
        pack.train(blocks * BLOCK, {}, monitor=replayed)
    with steps(replayed=False):
        pack.train(blocks * BLOCK, {}, monitor=eager)
    step, step_replayed = (pack.configs / times.steady_speed() for times in (eager, replayed))
    gain = step - step_replayed
    # Of the first block, all but some steps are already replayed.
    cost = replayed.first_block - eager.first_block + (BLOCK - 5) * gain
    repaid = cost / gain if gain > 0 else float("inf")
    report.add(
        "WORTHWHILE_STEPS",
        f"eager {1e6 * step:.0f} us a step, replayed {1e6 * step_replayed:.0f} us, recording "
        f"{1e3 * cost:.0f} ms: repaid after {repaid:.0f} steps",
        bound=f"now {WORTHWHILE_STEPS}",
        eager=step,
        replayed=step_replayed,
        cost=cost,
    )


def largest_recorded(report: Report) -> None:
    """Measure up to which number of weights replay gains anything."""
    gains = {}
    for width in (64, 256, 1024, 4096) if GPU else (8,):
        for configs in (4, 64):
            pack = Workload(width, configs, trials=TRIALS)
            weights = configs * width * (width + 33)
            if weights > 1 << 28:
                continue
            blocks = 4 if weights < 1 << 24 else 2
            with steps(replayed=True):
                fast = speed(pack, blocks)
            with steps(replayed=False):
                gains[weights] = fast / speed(pack, blocks) - 1
    shown = ", ".join(f"{compact(weights)}: {gain:+.0%}" for weights, gain in sorted(gains.items()))
    gaining = [weights for weights, gain in gains.items() if gain > GAIN]
    report.add(
        "LARGEST_RECORDED",
        f"gain of replay by weights: {shown}",
        bound=f"now {compact(LARGEST_RECORDED)}, measured {compact(max(gaining, default=0))}",
        gains=gains,
    )


def weights_on_gpu(report: Report) -> None:
    """Measure how many configs keep the device busy."""
    for width in (64, 256, 1024) if GPU else (8,):
        most = fitting_configs(width)
        sizes = sorted({most, *(4**i for i in range(5) if 4**i < most)})
        with steps(replayed=True):
            speeds = {size: speed(Workload(width, size, trials=TRIALS), 3) for size in sizes}
        best = max(speeds.values())
        enough = min(size for size in sizes if speeds[size] >= ENOUGH * best)
        report.add(
            f"WEIGHTS_ON_GPU, width {width}",
            ", ".join(f"{size}: {compact(found)}" for size, found in speeds.items()),
            bound=f"now {compact(WEIGHTS_ON_GPU)} weights and {LARGEST_ON_GPU} configs; "
            f"{ENOUGH:.0%} from {enough} configs = {compact(enough * width * (width + 33))} on",
            speeds=speeds,
        )


def main(file: Path) -> None:
    report = Report("h", file)
    for measure in (worthwhile_steps, largest_recorded, weights_on_gpu):
        measure(report)
        if GPU:
            torch.cuda.empty_cache()
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
