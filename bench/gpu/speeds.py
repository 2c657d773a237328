"""Part c: model-steps per second of packs, against the plain loop and against the card's limits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bounds import Card, flops
from packs import GPU, TRIALS, fitting_configs, speed
from reference import reference_speed
from report import Report, compact
from torch import nn
from workload import DEVICE, Workload, polynomials

from mlpsubmit.training import loss_history
from mlpsubmit.training.accel import layer_products, narrow_mlps
from mlpsubmit.training.optimizers import sgd

D = 32
NO_KERNELS = "auto, no kernels"


@dataclass(frozen=True)
class Case:
    """One pack.

    Attributes:
        blocks: of 64 steps, after the first two.
        trials: different batches in the pack; 0 for one per config.
        modes: values of COMPILE, or "auto, no kernels".
        times: required speed over the plain loop's.
        rate: required model-steps per second.
        utilization: required share of the measured matmul rate.
    """

    width: int
    blocks: int
    precision: str = "fp32"
    batch: int = 256
    trials: int = TRIALS
    modes: tuple[Any, ...] = ("auto",)
    times: float | None = None
    rate: float | None = None
    utilization: float | None = None

    def pack(self) -> Workload:
        configs = 1 if self.width > 4096 else fitting_configs(self.width)
        return Workload(self.width, configs, self.batch, D, trials=self.trials or None)

    def target(self) -> str:
        parts = [
            f"{self.times:.0f}x" if self.times else "",
            compact(self.rate) if self.rate else "",
            f"{self.utilization:.0%}" if self.utilization else "",
        ]
        return ", ".join(filter(None, parts))


CASES = (
    Case(64, 30, times=30, rate=1.5e6, modes=("auto", NO_KERNELS, True, False)),
    Case(256, 10, times=30, rate=3e5),
    Case(256, 10, "tf32"),
    Case(512, 4, times=30),
    Case(64, 15, trials=64),
    Case(64, 6, trials=0, times=30),
    Case(8192, 2, "fp32", batch=1024, utilization=0.75),
    Case(8192, 3, "tf32", batch=1024, utilization=0.60),
    Case(8192, 3, "bf16", batch=1024),
)
REHEARSED = (Case(16, 1, "bf16", times=30, rate=1.5e6, utilization=0.6, modes=("auto", False)),)


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """Train as where Triton is not installed, within the context."""
    with (
        mock.patch.object(narrow_mlps.NarrowKernel, "of", return_value=None),
        mock.patch.object(layer_products, "_fused_products", return_value=None),
        mock.patch.object(loss_history, "fused_loss_step", return_value=None),
        mock.patch.object(sgd, "sgd_step", return_value=None),
    ):
        yield


def plain_speed(case: Case) -> float:
    """Return the model-steps per second of the plain loop on this device."""
    w = case.width
    layers = (nn.Linear(D, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 1))
    batch_fn = polynomials(D, case.batch, torch.Generator(DEVICE).manual_seed(0))
    return reference_speed(
        nn.Sequential(*layers).to(DEVICE), batch_fn, lr=0.01, seconds=0.5 if GPU else 0.1
    )


def measure(case: Case, card: Card, report: Report) -> None:
    """Measure a case; the requirement is on the default, COMPILE="auto"."""
    plain, pack = plain_speed(case), case.pack()
    sharing = 1 if pack.trials is None else min(1.0, pack.trials / pack.configs)
    limits = card.bounds(case.width, case.batch, D, case.precision, sharing)
    for mode in case.modes:
        settings = {"COMPILE": "auto" if mode == NO_KERNELS else mode, "PRECISION": case.precision}
        with no_kernels() if mode == NO_KERNELS else contextlib.nullcontext():
            found = speed(pack, case.blocks if mode else 1, settings)
        share = found * flops(case.width, case.batch, D, sharing) / card.rates[case.precision]
        reached = (
            (case.times, found / plain),
            (case.rate, found),
            (case.utilization, share),
        )
        required = [value >= target for target, value in reached if target is not None]
        is_default = mode == "auto" and required
        report.add(
            f"width {case.width} x {pack.configs}, {case.trials or pack.configs} trials, "
            f"{case.precision}, COMPILE={mode}",
            f"{compact(found)} model-steps/s, {found / plain:.1f}x the plain loop, "
            f"{share:.0%} of the matmul rate",
            bound=", ".join(f"{name} {compact(limit)}" for name, limit in limits.items()),
            target=case.target() if is_default else "",
            passed=all(required) if is_default and GPU else None,
            model_steps_per_second=found,
            plain=plain,
            utilization=share,
            bounds=limits,
        )


def main(file: Path) -> None:
    report = Report("c", file)
    card = Card.measure(DEVICE, ("fp32", "tf32", "bf16"))
    rates = ", ".join(f"{name} {compact(rate)}FLOP/s" for name, rate in card.rates.items())
    report.add("the card", f"copy {compact(card.bandwidth)}B/s, products {rates}")
    for case in CASES if GPU else REHEARSED:
        measure(case, card, report)
        if GPU:
            torch.cuda.empty_cache()
    report.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
