"""Part d: a sweep over eight widths, its packs side by side against one after another."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from interrupted_runs import differing, results
from packs import GPU
from report import Report
from workload import polynomials

from mlpsubmit import Run, Sweep, launch
from mlpsubmit.jobs import room

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256) if GPU else (4, 8)
STEPS = 8_000 if GPU else 100
FASTER = 3.0


def batches(bsz: int, gen: object) -> object:
    """Batch function."""
    return polynomials(32, bsz, gen)  # type: ignore[arg-type]


def trained(folder: str, name: str, most: int, steps: int = STEPS) -> tuple[Run, float]:
    """Train the sweep, in this process; return the run and the seconds of its task."""
    axes = {"WIDTH": list(WIDTHS), "trial": range(3)}
    fixed = {"N_SAMPLES": 256, "MAX_ITER": steps, "LOSS_CHECKPOINTS": []}
    before, room.MOST_SIDE_BY_SIDE = room.MOST_SIDE_BY_SIDE, most
    try:
        sweep = Sweep("beside", axes, batchfn=batches, **fixed)
        run = launch(sweep, executor="debug", keep_going=True, runs_dir=f"{folder}/{name}")
    finally:
        room.MOST_SIDE_BY_SIDE = before
    beat = run.status().tasks[0].heartbeat or {}
    return run, beat["updated"] - beat["started"]


def main(file: Path) -> None:
    report, most = Report("d", file), room.MOST_SIDE_BY_SIDE
    with tempfile.TemporaryDirectory() as folder:
        trained(folder, "warm-up", most, STEPS // 20)  # CUDA and its libraries start
        runs = {
            name: trained(folder, name, packs)
            for name, packs in (("alone", 1), ("beside", most), ("again", most))
        }
        alone, beside, again = (results(run) for run, _ in runs.values())
        ratio = runs["alone"][1] / runs["beside"][1]
        different = differing(alone, beside) + differing(beside, again)
        report.add(
            f"{len(WIDTHS)} widths x 3 trials, {STEPS} steps",
            f"{runs['beside'][1]:.1f} s, one after another {runs['alone'][1]:.1f} s: {ratio:.1f}x; "
            f"bits {'differ: ' + ', '.join(different) if different else 'equal'}",
            target=f"{FASTER:.0f}x, bits equal" if GPU else "bits equal",
            passed=not different and (ratio >= FASTER or not GPU),
            ratio=ratio,
        )
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
