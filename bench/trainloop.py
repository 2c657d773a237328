"""Model-steps per second of a local run, over a plain loop, and as matmul utilization.

    python bench/trainloop.py [--repeats N] [--only TEXT] [--json FILE]

A model-step is one gradient step of one network. The speed of a run is the model-steps of all tasks
over the training seconds of the longest task, without start-up. It is compared with the plain loop
of ``reference.py`` on one thread. Matmul utilization is the FLOPs in matrix products that the
method needs, over those of large products on all cores in the same time. All three are interleaved
in one process, and figures are medians, so that ratios hold on shared machines.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference import reference_speed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlpsubmit import Sweep, launch
from mlpsubmit.training.precision import arithmetic

D, CONFIGS = 32, 32
MANY, ONE = {"trial": range(512)}, {"trial": range(1)}
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        network: constructs the network of the plain loop, of the same shapes as the run's.
        steps: gradient steps of the run: some seconds of training.
        settings: hyperparameters of the sweep.
        test_rows: rows of the test set, offline; 0 online.
        every: steps between evaluations of the test set.
        initial_networks: distinct initial networks; by default one per config.
    """

    name: str
    network: Callable[[], nn.Sequential]
    steps: int
    settings: dict[str, Any]
    axes: dict[str, Any] = field(default_factory=lambda: {"trial": range(CONFIGS)})
    batch: int = 256
    test_rows: int = 0
    every: int = 1
    initial_networks: int | None = None

    @property
    def configs(self) -> int:
        """The number of configs."""
        return math.prod(map(len, self.axes.values()))

    @property
    def online(self) -> bool:
        """Whether every step has a fresh batch."""
        return not self.test_rows


def mlp(width: int) -> nn.Sequential:
    """Return an MLP of two hidden layers."""
    layers = (nn.Linear(D, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(width, 1))


def conv(channels: int = 8) -> nn.Sequential:
    """Return a network of two convolutions and a read-out, for images of 8 x 8 pixels."""
    first, second = nn.Conv2d(1, channels, 3), nn.Conv2d(channels, channels, 3)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16 * channels, 1)
    )


def products(bsz: int, gen: torch.Generator, image: bool) -> Any:
    """Batch function: Gaussian inputs, and the product of two of their coordinates."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(bsz, 64 if image else D, generator=gen, device=gen.device)
        y = X[:, 0] * X[:, 1]
        return (X.view(bsz, 1, 8, 8) if image else X), y

    return batch_fn


OFFLINE = {"ONLINE": False, "N_TEST": 10_000}
OFFLINE_SETS = {"batch": 1024, "test_rows": 10_000}
CASES = (
    Case("online, width 64", lambda: mlp(64), 2500, {"WIDTH": 64}),
    Case("online, width 256", lambda: mlp(256), 250, {"WIDTH": 256}),
    Case("online, width 1024", lambda: mlp(1024), 20, {"WIDTH": 1024}),
    Case(
        "offline, width 256, test every step",
        lambda: mlp(256),
        45,
        {"WIDTH": 256, **OFFLINE},
        **OFFLINE_SETS,
    ),
    Case(
        "offline, width 256, EVAL_EVERY=100",
        lambda: mlp(256),
        100,
        {"WIDTH": 256, "EVAL_EVERY": 100, **OFFLINE},
        every=100,
        **OFFLINE_SETS,
    ),
    Case(
        "online, widths 32 to 256",
        lambda: mlp(128),  # about the mean width
        500,
        {},
        axes={"WIDTH": [32, 64, 128, 256], "trial": range(CONFIGS // 4)},
    ),
    Case(
        "online, width 256, 8 values of GAMMA",
        lambda: mlp(256),
        250,
        {"WIDTH": 256},
        axes={"GAMMA": [0.5 * 1.5**i for i in range(8)], "trial": range(CONFIGS // 8)},
        initial_networks=4,
    ),
    Case("online, width 256, adam", lambda: mlp(256), 200, {"WIDTH": 256, "OPTIMIZER": "adam"}),
    Case("online, conv net", conv, 120, {"MODEL": conv}),
)
#: For GPUs, on which a step of the other cases takes less time than launching its kernels.
GPU_CASES = (
    Case("online, width 64, 512 configs", lambda: mlp(64), 2000, {"WIDTH": 64}, axes=MANY),
    Case("online, width 256, 512 configs", lambda: mlp(256), 2000, {"WIDTH": 256}, axes=MANY),
    Case("online, width 512, 512 configs", lambda: mlp(512), 1000, {"WIDTH": 512}, axes=MANY),
    Case("online, width 2048, 512 configs", lambda: mlp(2048), 50, {"WIDTH": 2048}, axes=MANY),
    *(
        Case(
            f"online, width 8192, {precision}",
            lambda: mlp(8192),
            500,
            {"WIDTH": 8192, "PRECISION": precision},
            axes=ONE,
            batch=1024,
        )
        for precision in ("fp32", "tf32", "bf16")
    ),
)


def packed_speed(case: Case) -> float:
    """Return the model-steps per second of a local run."""
    is_image = case.settings.get("MODEL") is not None
    sweep = Sweep(
        "bench",
        case.axes,
        batchfn=products,
        image=is_image,
        N_SAMPLES=case.batch,
        MAX_ITER=case.steps,
        LR=0.01,
        LOSS_CHECKPOINTS=[],
        **case.settings,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = launch(sweep, executor="local", runs_dir=folder)
        status = run.wait()
        if not status.complete:
            raise RuntimeError(f"{case.name}: {[f.error for f in status.failures]}")
        dataset = run.collect()
        seconds = _seconds_of_tasks(run.path)
    return float(dataset.steps.sum()) / max(seconds)


def _seconds_of_tasks(path: Path) -> list[float]:
    """Return the seconds of training of each task of a run."""
    totals = []
    for shard in sorted((path / "results").glob("*.tar")):
        total = 0.0
        with tarfile.open(shard) as members:
            for member in members:
                with np.load(members.extractfile(member), allow_pickle=False) as arrays:
                    total += float(arrays["seconds"].sum()) if "seconds" in arrays else 0.0
        totals.append(total)
    return totals


def plain_speed(case: Case, seconds: float) -> float:
    """Return the model-steps per second of the plain loop, on the device of the run."""
    device = torch.device("cuda" if CUDA else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    image = case.settings.get("MODEL") is not None
    batch_fn = products(case.batch, generator, image)
    fixed = None if case.online else batch_fn(0)
    test = None if case.online else products(case.test_rows, generator, image)(0)
    optimizer = case.settings.get("OPTIMIZER", "sgd")
    return reference_speed(
        case.network().to(device),
        batch_fn,
        lr=0.01,
        optimizer=optimizer,
        fixed=fixed,
        test=test,
        seconds=seconds,
    )


def operations(case: Case) -> float:
    """Return the FLOPs in matrix products that one model-step needs."""
    image = case.settings.get("MODEL") is not None
    X, y = products(case.batch, torch.Generator(), image)(0)
    model = case.network()
    with FlopCounterMode(display=False) as step:
        (model(X).squeeze() - y).square().mean().backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(X)
    needed = float(step.get_total_flops())
    if case.online:  # f0 on the fresh batch; offline it is computed once
        initial = (case.initial_networks or case.configs) / case.configs
        return needed + initial * forward.get_total_flops()
    return needed + forward.get_total_flops() * case.test_rows / case.batch / case.every


def matmul_rate(precision: str = "fp32", seconds: float = 0.5) -> float:
    """Return the FLOPs per second of large matrix products on the device."""
    n, kind = (8192, "cuda") if CUDA else (1024, "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    A, B = (torch.randn(n, n, device=kind, dtype=dtype) for _ in range(2))
    with arithmetic(precision, False, torch.device(kind)):
        _wait_for(A @ B)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            _wait_for(A @ B)
            count += 1
    return 2 * n**3 * count / (time.perf_counter() - begin)


def _wait_for(product: Tensor) -> None:
    if product.is_cuda:
        torch.cuda.synchronize()


def _rate(case: Case) -> float:
    return matmul_rate(case.settings.get("PRECISION", "fp32"))


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Measure a case: the run, the plain loop and the matmul rate, interleaved."""
    rounds = [(packed_speed(case), plain_speed(case, 1.0), _rate(case)) for _ in range(repeats)]
    needed = operations(case)
    return {
        "case": case.name,
        "model_steps_per_second": statistics.median(packed for packed, _, _ in rounds),
        "plain_model_steps_per_second": statistics.median(plain for _, plain, _ in rounds),
        "against_plain": statistics.median(packed / plain for packed, plain, _ in rounds),
        "matmul_utilization": statistics.median(
            packed * needed / rate for packed, _, rate in rounds
        ),
        "operations": needed,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=2, help="repetitions of each measurement")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args(arguments)
    cases = [c for c in (*CASES, *(GPU_CASES if CUDA else ())) if options.only in c.name]
    print(f"{torch.get_num_threads()} threads; the plain loop has one")
    print(f"{'':<38}{'run':>10}{'plain':>10}{'ratio':>8}{'utilization':>13}")
    results = []
    for case in cases:
        result = measure(case, options.repeats)
        results.append(result)
        print(
            f"{result['case']:<38}{result['model_steps_per_second']:>10,.0f}"
            f"{result['plain_model_steps_per_second']:>10,.0f}{result['against_plain']:>8.1f}"
            f"{result['matmul_utilization']:>13.0%}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
