"""Model-steps per second of a local run, against a plain loop, JAX, and the limits of the machine.

    python bench/trainloop.py [--repeats N] [--all] [--only TEXT] [--jax-python FILE] [--save]

A model-step is one gradient step of one network. The speed of a run is the model-steps of all tasks
over the training seconds of the longest task, without start-up. It is
compared with the plain loop of ``reference.py`` on one thread; with ``jax_peer.py``, of as many
one-thread processes as the run has tasks; and with the rate of matrix products: the FLOPs that the
method needs, over those of large products of torch, or of the peak of the cores, in the same time.
All are interleaved, and figures are medians of rounds, so that ratios hold on shared machines.

First all JAX programs are compiled, and checked to compute the same. Without JAX its column is
empty; ``make bench`` installs it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import only_option, repeats_option, save_option
from peers import Peers, Problem, check, jax_python
from reference import reference_speed
from results import Figure, Recording, available_cores, figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlpsubmit import MLP, Sweep, launch
from mlpsubmit.batchfns import randn
from mlpsubmit.errors import UserError
from mlpsubmit.training.accel.native_mlp import product_in_c
from mlpsubmit.training.precision import arithmetic

D, CONFIGS = 32, 32
#: Tasks of a run, and processes of JAX: each has a core.
TASKS = min(2, available_cores())
#: Thresholds that are compared with at every step, and that no training reaches.
NEVER = [1e-4, 1e-5]
LR = 0.01
MANY, ONE = {"trial": range(512)}, {"trial": range(1)}
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        network: constructs the network of the plain loop, of the same shapes as the run's.
        steps: gradient steps of the run: so many that setting it up takes a few percent.
        settings: hyperparameters of the sweep.
        test_rows: rows of the test set, offline; 0 online.
        every: steps between evaluations of the test set.
        initial_networks: distinct initial networks; by default one per config.
        target: the speed over that of JAX; None where there is no counterpart in JAX.
        limit: the share of torch's rate of products.
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
    target: float | None = None
    limit: float | None = None

    @property
    def configs(self) -> int:
        """The number of configs."""
        return math.prod(map(len, self.axes.values()))

    @property
    def online(self) -> bool:
        """Whether every step has a fresh batch."""
        return not self.test_rows

    @property
    def image(self) -> bool:
        """Whether the inputs are images."""
        return self.settings.get("MODEL") is conv

    @property
    def peer_steps(self) -> int:
        """The steps of JAX: a third, since it sets nothing up, and all take as long."""
        return self.steps // 3

    @property
    def problem(self) -> Problem:
        """What JAX trains, where it has a counterpart."""
        custom = "MODEL" in self.settings
        width = self.settings["WIDTH"]
        return Problem(
            network=lambda: tanh(width) if custom else MLP(D, width),
            settings={"LR": LR, **self.settings},
            batch_fn=lambda samples, gen: products(samples, gen, image=False),
            width=width,
            trials=len(self.axes["trial"]),
            steps=self.peer_steps,
            gammas=list(self.axes.get("GAMMA", [1.0])),
            samples=self.batch,
            test_rows=self.test_rows,
            every=self.every,
            kind="tanh" if custom else "relu",
            thresholds=NEVER,
        )


def mlp(width: int, nonlinearity: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return an MLP of two hidden layers."""
    layers = (nn.Linear(D, width), nonlinearity(), nn.Linear(width, width), nonlinearity())
    return nn.Sequential(*layers, nn.Linear(width, 1))


def tanh(width: int) -> nn.Sequential:
    """Return a network of the user's own. It takes WIDTH, by which packs are sized."""
    return mlp(width, nn.Tanh)


def conv(channels: int = 8) -> nn.Sequential:
    """Return a network of two convolutions and a read-out, for images of 8 x 8 pixels."""
    first, second = nn.Conv2d(1, channels, 3), nn.Conv2d(channels, channels, 3)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16 * channels, 1)
    )


def products(bsz: int, gen: torch.Generator, image: bool) -> Any:
    """Batch function: Gaussian inputs, and the product of two of their coordinates."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = randn(bsz, 64 if image else D, generator=gen)
        y = X[:, 0] * X[:, 1]
        return (X.view(bsz, 1, 8, 8) if image else X), y

    return batch_fn


OFFLINE = {"ONLINE": False, "N_TEST": 10_000}
OFFLINE_SETS = {"batch": 1024, "test_rows": 10_000}
CASES = (
    Case(
        *("online, width 64", lambda: mlp(64), 4500, {"WIDTH": 64}),
        target=1.3,
        limit=0.65,
    ),
    Case(
        *("online, width 256", lambda: mlp(256), 450, {"WIDTH": 256}),
        target=1.3,
        limit=0.85,
    ),
    Case(
        *("online, width 1024", lambda: mlp(1024), 36, {"WIDTH": 1024}),
        target=1.0,
        limit=0.95,
    ),
    Case(
        "online, width 256, 8 values of GAMMA",
        lambda: mlp(256),
        450,
        {"WIDTH": 256},
        axes={"GAMMA": [0.5 * 1.5**i for i in range(8)], "trial": range(CONFIGS // 8)},
        initial_networks=4,
        target=1.3,
    ),
    Case(
        *("online, width 256, adam", lambda: mlp(256), 390),
        {"WIDTH": 256, "OPTIMIZER": "adam"},
        target=1.3,
    ),
    Case(
        "offline, width 256, EVAL_EVERY=100",
        lambda: mlp(256),
        300,
        {"WIDTH": 256, "EVAL_EVERY": 100, **OFFLINE},
        every=100,
        target=1.3,
        **OFFLINE_SETS,
    ),
    Case(
        *("online, custom tanh network", lambda: tanh(64), 3600),
        {"MODEL": tanh, "WIDTH": 64},
        target=1.3,
    ),
)
#: Measured with ``--all``: those that have no counterpart in JAX.
FURTHER = (
    Case(
        "offline, width 256, test every step",
        lambda: mlp(256),
        45,
        {"WIDTH": 256, **OFFLINE},
        **OFFLINE_SETS,
    ),
    Case(
        "online, widths 32 to 256",
        lambda: mlp(128),  # about the mean width
        500,
        {},
        axes={"WIDTH": [32, 64, 128, 256], "trial": range(CONFIGS // 4)},
    ),
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


def swept(case: Case) -> Sweep:
    """Return the sweep of a case."""
    return Sweep(
        "bench",
        case.axes,
        batchfn=products,
        image=case.image,
        N_SAMPLES=case.batch,
        MAX_ITER=case.steps,
        LR=LR,
        LOSS_CHECKPOINTS=NEVER,
        **case.settings,
    )


def packed_speed(case: Case) -> float:
    """Return the model-steps per second of a local run."""
    with tempfile.TemporaryDirectory() as folder:
        run = launch(swept(case), executor="local", runs_dir=folder, tasks=None if CUDA else TASKS)
        status = run.wait()
        if not status.complete:
            raise RuntimeError(f"{case.name}: {[f.error for f in status.failures]}")
        steps = run.collect().steps
        if int(steps.min()) < case.steps:
            raise RuntimeError(f"{case.name}: a config has stopped before its last step")
        seconds = _seconds_of_tasks(run.path)
    return float(steps.sum()) / max(seconds)


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
    image = case.image
    batch_fn = products(case.batch, generator, image)
    fixed = None if case.online else batch_fn(0)
    test = None if case.online else products(case.test_rows, generator, image)(0)
    optimizer = case.settings.get("OPTIMIZER", "sgd")
    return reference_speed(
        case.network().to(device),
        batch_fn,
        lr=LR,
        optimizer=optimizer,
        fixed=fixed,
        test=test,
        seconds=seconds,
    )


def operations(case: Case) -> float:
    """Return the FLOPs in matrix products that one model-step needs."""
    X, y = products(case.batch, torch.Generator(), case.image)(0)
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


def layer_rate(n: int = 1024, seconds: float = 0.5) -> float:
    """Return the FLOPs per second of the package's own products on all cores, where it has some."""
    own = product_in_c(torch.float32)
    assert own is not None
    A, B = torch.randn(n, n), torch.randn(n, n)
    own(A, B)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        own(A, B)
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - begun)


def _wait_for(product: Tensor) -> None:
    if product.is_cuda:
        torch.cuda.synchronize()


def _rate(case: Case) -> float:
    return matmul_rate(case.settings.get("PRECISION", "fp32"))


@contextlib.contextmanager
def peak_program() -> Iterator[Path | None]:
    """Compile the program that measures the peak of a core; None where that is impossible."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.c")
        line = [str(compiler), "-O2", "-march=native", str(source), "-o", str(program)]
        compiled = compiler is not None and not CUDA and subprocess.run(line).returncode == 0
        yield program if compiled else None


def peak_rate(program: Path) -> float:
    """Return the FLOPs per second of all cores together, without memory."""

    def measure(core: int) -> float:
        done = subprocess.run([program], capture_output=True, text=True, check=True)
        return 1e9 * float(done.stdout)

    with ThreadPoolExecutor(TASKS) as pool:
        return sum(pool.map(measure, range(TASKS)))


class Round:
    """Measures everything about one case, in turn.

    Args:
        peers: processes of JAX, which have compiled the case if it has a counterpart.
        peak: the program that measures the peak.
    """

    def __init__(self, peers: Peers | None, peak: Path | None) -> None:
        self._peers, self._peak = peers, peak

    def ways(self, case: Case) -> dict[str, Callable[[], float]]:
        """Return what is measured, by name."""
        ways: dict[str, Callable[[], float]] = {"run": lambda: packed_speed(case)}
        if (peers := self._peers) is not None and case.target is not None:
            ways["JAX"] = lambda: peers.speed(case.name, case.problem)
            ways["JAX, one vmap"] = lambda: peers.speed(case.name, case.problem, one_vmap=True)
        ways["plain loop"] = lambda: plain_speed(case, 0.5)
        ways["torch's products"] = lambda: _rate(case)
        if not CUDA and product_in_c(torch.float32) is not None:
            ways["own layers"] = layer_rate
        if (peers := self._peers) is not None:
            ways["JAX's products"] = peers.product_rate
        if (peak := self._peak) is not None:
            ways["peak"] = lambda: peak_rate(peak)
        return ways

    def __call__(self, case: Case, number: int) -> dict[str, float]:
        """Measure each once, forth and back: so a machine that slows down favours none."""
        ways = list(self.ways(case).items())[:: (-1) ** number]
        return {name: measure() for name, measure in ways}


#: What a run is compared with: speeds, and rates at which the machine could multiply.
RATIOS = {
    "over plain": "plain loop",
    "over JAX": "JAX",
    "over JAX, one vmap": "JAX, one vmap",
}
SHARES = {
    "of torch's products": "torch's products",
    "of own layers": "own layers",
    "of JAX's products": "JAX's products",
    "of the peak": "peak",
}


def figures(case: Case, rounds: Sequence[Mapping[str, float]]) -> list[Figure]:
    """Return the figures of a case: speeds, rates, and the ratios of each round."""
    found, needed = [], operations(case)
    for name in rounds[0]:
        rate = name in SHARES.values()
        values = [one[name] / (1e9 if rate else 1) for one in rounds]
        found.append(figure(case.name, name, "GFLOP/s" if rate else "model-steps/s", values))
    for what, other in RATIOS.items():
        if other in rounds[0]:
            target = None if other == "plain loop" else case.target
            values = [one["run"] / one[other] for one in rounds]
            found.append(figure(case.name, what, "x", values, target))
    for what, other in SHARES.items():
        if other in rounds[0]:
            target = case.limit if other == "torch's products" else None
            values = [one["run"] * needed / one[other] for one in rounds]
            found.append(figure(case.name, what, "share", values, target))
    return found


#: Columns of the page: what, its head, and how it is written.
COLUMNS = (
    *(("run", "run", "{:,.0f}"), ("plain loop", "plain", "{:,.0f}"), ("JAX", "JAX", "{:,.0f}")),
    *(("over plain", "/ plain", "{:.1f}"), ("over JAX", "/ JAX", "{:.2f}")),
    ("over JAX, one vmap", "/ one vmap", "{:.2f}"),
    *(("of torch's products", "of torch", "{:.0%}"), ("of the peak", "of peak", "{:.0%}")),
)


def head() -> str:
    """Return the head of the page."""
    return f"{'model-steps/s':<38}" + "".join(f"{title:>14}" for _, title, _ in COLUMNS)


def line(found: Sequence[Figure]) -> str:
    """Return the line of a case, with targets behind what they are for."""
    by_name, cells = {one.what: one for one in found}, []
    for what, _, form in COLUMNS:
        one = by_name.get(what)
        cell = "-" if one is None else form.format(one.median)
        if one is not None and one.target is not None:
            cell += f" ({form.format(one.target)})"
        cells.append(f"{cell:>14}")
    return f"{found[0].case:<38}" + "".join(cells)


def summary(found: Sequence[Figure]) -> str:
    """Return the lines below the table: rates, and what misses its target."""
    rates = {}
    for what in SHARES.values():
        values = [one.median for one in found if one.what == what]
        if values:
            rates[what] = statistics.median(values)
    missed = [f"{one.case}: {one.what}" for one in found if one.reached is False]
    rated = ", ".join(f"{what} {rate:,.0f} GFLOP/s" for what, rate in rates.items())
    return f"{rated}\nbelow the target in brackets: {'; '.join(missed) or 'nothing'}"


def use_cores() -> int:
    """Use as many cores as a run has tasks, in this process and in all that it starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:TASKS])
    torch.set_num_threads(min(TASKS, torch.get_num_threads()))
    return torch.get_num_threads()


def prepare(peers: Peers, cases: Sequence[Case]) -> None:
    """Check that JAX computes the same, and compile its programs."""
    for case in cases:
        if case.target is not None:
            difference = check(peers, case.name, case.problem)
            print(f"{case.name}: JAX computes the same, losses differ by {difference:.0e}")
            peers.prepare(case.name, case.problem)


@contextlib.contextmanager
def started_peers(python: str | None) -> Iterator[Peers | None]:
    """Start the processes of JAX, if there is an interpreter that imports it."""
    if python is None or CUDA:
        why = "it is compared on CPUs" if CUDA else "it is not installed: make bench does that"
        print(f"without JAX: {why}, or give --jax-python FILE")
        yield None
        return
    with Peers(python, TASKS) as peers:
        yield peers


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    repeats_option(parser, 3)
    parser.add_argument("--all", action="store_true", help="also cases without a target")
    only_option(parser, (case.name for case in (*CASES, *FURTHER, *(GPU_CASES if CUDA else ()))))
    parser.add_argument("--jax-python", help="an interpreter that imports jax; by default this one")
    save_option(parser)
    options = parser.parse_args(arguments)
    further = (*FURTHER, *(GPU_CASES if CUDA else ())) if options.all or CUDA else ()
    cases = [case for case in (*CASES, *further) if options.only in case.name]
    if not cases:
        parser.error(f"--only: {options.only!r} is in names of further cases alone; add --all")
    try:
        python = jax_python(options.jax_python)
    except UserError as error:
        parser.error(str(error))
    threads = use_cores()
    with started_peers(python) as peers, peak_program() as peak:
        recording = Recording("trainloop", {} if peers is None else {"jax": peers.version})
        if peers is not None:
            prepare(peers, cases)
        measure_round, found = Round(peers, peak), list[Figure]()
        print(f"\n{TASKS} tasks, {threads} threads; the plain loop has one; (targets)\n{head()}")
        for case in cases:
            rounds = [measure_round(case, number) for number in range(options.repeats)]
            found += (own := figures(case, rounds))
            print(line(own), flush=True)
    print(f"\n{summary(found)}")
    recording.save(found, options.save)


if __name__ == "__main__":
    main()
