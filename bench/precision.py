"""The difference of losses under PRECISION=tf32 and bf16 from those of fp32.

    python bench/precision.py [--full] [--only TEXT] [--save]

Seeds, data and settings are equal. Printed is the largest relative difference from fp32 over all
configs: of the smoothed train loss at some steps, of the final test loss offline, and of the
timekeys of thresholds at 50, 30 and 20% of the first loss. For comparison: float64, and fp32 with
another seed, that is, with other weights and data.

TF32 is a mode of NVIDIA's tensor cores since Ampere. On other devices it is emulated: training in
fp32, with the factors of every matrix product rounded to TF32, forward and backward (``tf32.py``).
bf16 is autocast to bfloat16 on any device: 7 explicit mantissa bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from options import only_option, save_option
from results import Figure, Recording, figure
from tf32 import Tf32Products
from workload import DEVICE, Workload

from mlpsubmit.training import Trained

Array = NDArray[np.float64]

STEPS = 1000
SHOWN = (1, 2, 10, 100, 1000)
HAS_TF32 = DEVICE.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
#: The last threshold is never crossed, so that all train to the end.
SETTINGS = {
    "LOSS_CHECKPOINTS": None,
    "PERCENT_THRESHOLDS": [0.5, 0.3, 0.2, 1e-12],
    "ONLYTHRESHOLDS": False,
    "EVAL_EVERY": STEPS,  # the first and the last
}


@dataclass(frozen=True)
class Case:
    """One training, repeated in every precision.

    Attributes:
        steps: gradient steps; without ``--full`` fewer for large widths.
        lr: by default mlpsubmit's; at ten times that the loss rises before it falls, and
            differences grow faster.
    """

    name: str
    workload: Workload
    steps: int = STEPS
    lr: float = 0.01

    def train(self, precision: str = "fp32", **arguments: Any) -> Trained:
        settings = {**SETTINGS, "LR": self.lr, "PRECISION": precision}
        return self.workload.train(self.steps, settings, **arguments)


def online(width: int, configs: int) -> Workload:
    return Workload(width, configs, batch=64, d=8)


def offline(width: int, configs: int) -> Workload:
    return Workload(width, configs, batch=128, d=8, test_rows=512)


CASES = (
    Case("online, width 64", online(64, 4)),
    Case("online, width 256", online(256, 2)),
    Case("online, width 1024", online(1024, 1), 200),
    Case("online, width 256, LR=0.1", online(256, 2), lr=0.1),
    Case("offline, width 64", offline(64, 4)),
    Case("offline, width 256", offline(256, 2)),
    Case("offline, width 1024", offline(1024, 1), 200),
    Case("offline, width 256, LR=0.1", offline(256, 2), lr=0.1),
)


def tf32(case: Case) -> Trained:
    """Train under TF32, or its emulation.

    Raises:
        RuntimeError: if the emulation has missed matrix products.
    """
    if HAS_TF32:
        return case.train("tf32")
    with Tf32Products() as products:
        trained = case.train()
    share = products.operations / case.workload.operations(case.steps, evaluations=2)
    if not 0.95 < share < 1.05:  # a read-out of one output may not be a matrix product
        raise RuntimeError(f"{case.name}: {share:.0%} of the products' operations were rounded")
    return trained


VARIANTS: dict[str, Callable[[Case], Trained]] = {
    "tf32": tf32,
    "bf16": lambda case: case.train("bf16"),
    "float64": lambda case: case.train(dtype=torch.float64),
    "other seed": lambda case: case.train(seed=43),
}


def differences(trained: Trained, exact: Trained) -> dict[str, Any]:
    """Return the largest relative differences from fp32 over all configs and thresholds."""
    made = trained.train_loss.shape[1]
    keys, exact_keys = trained.timekeys[:, :-1], exact.timekeys[:, :-1]
    crossed = (keys >= 0) & (exact_keys >= 0)
    moved = np.abs(np.where(crossed, keys - exact_keys, 0))
    return {
        "train_loss": {
            step: _largest(trained.train_loss[:, step - 1], exact.train_loss[:, step - 1])
            for step in (*(s for s in SHOWN if s < made), made)
        },
        "test_loss": _largest(trained.test_loss[:, -1], exact.test_loss[:, -1]),
        "timekeys": float((moved / np.maximum(exact_keys, 1)).max()),
        "timekeys_in_steps": int(moved.max()),
        "thresholds_crossed_by_one_only": int(((keys >= 0) != (exact_keys >= 0)).sum()),
    }


def _largest(values: Array, exact: Array) -> float:
    return float(np.abs(values / exact - 1).max())


def measure(case: Case) -> dict[str, Any]:
    """Train a case in every variant and compare it with fp32."""
    exact = case.train()
    return {
        "case": case.name,
        "configs": case.workload.configs,
        "steps": case.steps,
        "fp32_train_loss": exact.train_loss[:, -1].tolist(),
        "fp32_first_loss": exact.train_loss[:, 0].tolist(),
        "fp32_timekeys": exact.timekeys[:, :-1].tolist(),
        **{name: differences(variant(case), exact) for name, variant in VARIANTS.items()},
    }


def figures(results: Sequence[dict[str, Any]]) -> list[Figure]:
    """Return the differences from fp32 as figures, and how many steps thresholds moved."""
    found = []
    for result in results:
        for name in VARIANTS:
            case, own = f"{result['case']}, {name}", result[name]
            for step, difference in own["train_loss"].items():
                found.append(figure(case, f"train loss, step {step}", "relative", difference))
            if np.isfinite(own["test_loss"]):  # offline
                found.append(figure(case, "test loss", "relative", own["test_loss"]))
            found.append(figure(case, "steps of thresholds", "relative", own["timekeys"]))
            moved = float(own["timekeys_in_steps"])
            found.append(figure(case, "steps of thresholds, moved", "steps", moved))
    return found


def print_result(result: dict[str, Any]) -> None:
    for name in VARIANTS:
        found = result[name]
        cells = [_shown(found["train_loss"].get(step)) for step in SHOWN]
        cells += [_shown(found["train_loss"][result["steps"]]), _shown(found["test_loss"])]
        cells += [f"{found['timekeys']:.1%}", str(found["timekeys_in_steps"])]
        columns = "".join(f"{cell:>10}" for cell in cells)
        print(f"{result['case']:<28}{name:<12}{columns}", flush=True)


def _shown(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help=f"{STEPS} steps of every case")
    only_option(parser, (case.name for case in CASES))
    save_option(parser)
    options, recording = parser.parse_args(arguments), Recording("precision")
    print(f"{DEVICE}; TF32 is {'native' if HAS_TF32 else 'emulated'}")
    titles = [f"step {step}" for step in SHOWN] + ["last", "test", "timekeys", "in steps"]
    print(f"{'':<40}" + "".join(f"{title:>10}" for title in titles))
    results = []
    for case in CASES:
        if options.only in case.name:
            case = replace(case, steps=STEPS) if options.full else case
            results.append(measure(case))
            print_result(results[-1])
    recording.save(figures(results), options.save)


if __name__ == "__main__":
    main()
