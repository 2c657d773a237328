"""Part g: TF32 and bf16 on the device against fp32, and against TF32 as emulated elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import precision
from packs import GPU
from report import Report
from tf32 import Tf32Products

from mlpsubmit.training import Trained

#: Native and emulated differences from fp32 are of the same size: within this factor.
FACTOR = 5.0


def emulated(case: precision.Case) -> Trained:
    """Train with the factors of every matrix product rounded to TF32, eagerly."""
    settings = {**precision.SETTINGS, "LR": case.lr, "COMPILE": False}
    with Tf32Products():
        return case.workload.train(case.steps, settings)


def main(file: Path) -> None:
    report = Report("g", file)
    cases = [
        case
        for case in precision.CASES
        if case.name.startswith("online") and ("256" in case.name or "1024" in case.name)
    ]
    if not GPU:
        cases = [replace(precision.CASES[0], steps=20)]
    for case in cases:
        exact = case.train()
        found = {"bf16": case.train("bf16"), "tf32": case.train("tf32"), "emulated": emulated(case)}
        last = {
            name: precision.differences(trained, exact)["train_loss"][case.steps]
            for name, trained in found.items()
        }
        report.add(
            f"{case.name}, {case.steps} steps",
            f"tf32 {last['tf32']:.1e}, bf16 {last['bf16']:.1e} from fp32",
            bound=f"tf32 emulated {last['emulated']:.1e}",
            target=f"at most {FACTOR:.0f} times the emulated" if GPU else "",
            passed=last["tf32"] <= FACTOR * last["emulated"] if GPU else None,
            **last,
        )
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
