"""Estimates of a launch over the actual times of its run.

    python bench/estimates.py [--only TEXT] [--steps FACTOR] [--save]

Each case of ``trainloop.py`` is estimated three times: by a calibration, as ``launch --dry-run
--calibrate`` does; from the speeds of the cases before it, by scaling; and, after its run, from the
speeds of that run. The actual time is that of the longest task, from the start of its process to
its end. The first and third estimates are good within a factor of 1.5. The first is also given
without the start-up of the process, which is about the same for all cases.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from options import only_option, save_option
from results import Figure, Recording, figure
from trainloop import CASES, FURTHER, Case, swept

from mlpsubmit import Run, Sweep, launch
from mlpsubmit.jobs import executors
from mlpsubmit.jobs.throughput.estimate import Estimate
from mlpsubmit.runs.forecast import by_calibration, by_earlier_runs
from mlpsubmit.runs.launch import PreparedLaunch, prepare
from mlpsubmit.slurm_templates import SlurmRequest
from mlpsubmit.spec.load import pickle_sweep

GOOD = 1.5

#: How long a compilation takes is not estimated.
ESTIMATED = [case for case in (*CASES, *FURTHER) if not case.settings.get("COMPILE")]

#: What is recorded of a case, with its unit.
RECORDED = {
    **dict.fromkeys(("seconds", "startup_seconds", "calibrated_seconds"), "s"),
    **dict.fromkeys(("calibrated", "calibrated_training", "scaled", "earlier"), "x"),
}


@dataclass(frozen=True)
class Took:
    """The time of the longest task of a run.

    Attributes:
        seconds: from the start of its process to its end.
        startup: seconds of these before its first pack.
    """

    seconds: float
    startup: float

    @classmethod
    def by(cls, estimates: Sequence[Estimate]) -> Took:
        (estimate,) = estimates  # one device
        return cls(float(estimate.seconds.max()), estimate.startup)

    @classmethod
    def of(cls, run: Run) -> Took:
        beats = run.directory.heartbeats().values()
        spans = {b["startup"] + b["updated"] - b["started"]: b["startup"] for b in beats}
        return cls(max(spans), spans[max(spans)])

    @property
    def training(self) -> float:
        return self.seconds - self.startup


def prepared(sweep: Sweep, folder: Path) -> PreparedLaunch:
    """Return a launch of a sweep that reuses nothing, before anything is written."""
    executor = executors.choose("local", sweep.base, None, SlurmRequest())
    return prepare(sweep, executor, folder, frozen=pickle_sweep(sweep), fresh=True)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Estimate a case, train it, and estimate it again.

    Args:
        folder: where the runs of the cases before it lie.
    """
    sweep = swept(case)
    calibrated = Took.by(by_calibration(prepared(sweep, folder)))
    scaled = by_earlier_runs(prepared(sweep, folder), folder)
    run = launch(sweep, executor="local", runs_dir=folder, fresh=True)
    status = run.wait()
    if not status.complete:
        raise RuntimeError(f"{case.name}: {[f.error for f in status.failures]}")
    truth = Took.of(run)
    earlier = Took.by(by_earlier_runs(prepared(sweep, folder), folder))
    return {
        "case": case.name,
        "seconds": truth.seconds,
        "startup_seconds": truth.startup,
        "matmul_utilization": status.matmul_utilization,
        "calibrated_seconds": calibrated.seconds,
        "calibrated": calibrated.seconds / truth.seconds,
        "calibrated_training": calibrated.training / truth.training,
        "scaled": Took.by(scaled).seconds / truth.seconds if scaled else None,
        "earlier": earlier.seconds / truth.seconds,
    }


def line(result: dict[str, Any]) -> str:
    """Return a row of the table: seconds, and estimates over the actual time."""
    scaled = "-" if result["scaled"] is None else f"{result['scaled']:.2f}"
    return (
        f"{result['case']:<38}{result['seconds']:>6.1f} s{result['calibrated_seconds']:>10.1f} s"
        f"{result['calibrated']:>8.2f}{result['calibrated_training']:>10.2f}"
        f"{scaled:>8}{result['earlier']:>9.2f}"
    )


def figures(results: Sequence[dict[str, Any]]) -> list[Figure]:
    """Return the figures of all cases: estimates are over the actual time."""
    return [
        figure(result["case"], name, unit, result[name])
        for result in results
        for name, unit in RECORDED.items()
        if result[name] is not None
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    only_option(parser, (case.name for case in CASES))
    parser.add_argument(
        "--steps", type=float, default=1.0, help="factor on the steps of trainloop.py"
    )
    save_option(parser)
    options, recording = parser.parse_args(arguments), Recording("estimates")
    print(f"{'':<38}{'run':>8}{'calibrated':>12}{'ratio':>8}{'no start':>10}", end="")
    print(f"{'scaled':>8}{'earlier':>9}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in ESTIMATED:
            if options.only in case.name:
                steps = max(2, round(case.steps * options.steps))
                results.append(measure(replace(case, steps=steps), Path(folder)))
                print(line(results[-1]), flush=True)
    ratios = [result[name] for result in results for name in ("calibrated", "earlier")]
    worst = max(max(ratio, 1 / ratio) for ratio in ratios)
    print(f"the worst is off by a factor of {worst:.2f}; good are up to {GOOD}")
    recording.save(figures(results), options.save)


if __name__ == "__main__":
    main()
