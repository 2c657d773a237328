"""The gain from each choice of the train loop: tasks or threads, pack sizes, sharing, compiling.

    python bench/choices.py [--only TEXT] [--save]

Model-steps per second of trainings in this process, or in concurrent processes, after their first
steps. The variants of a comparison are interleaved, and figures are medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from options import only_option, save_option
from results import Figure, Recording, figure
from torch import nn
from workload import DEVICE, Stopwatch, Workload, polynomials

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, train

CORES = torch.get_num_threads()
REPEATS = 3

#: Width, configs per pack as in a plan, and steps of about a second.
SIZES = ((64, 16, 384), (256, 16, 64), (1024, 3, 24), (4096, 1, 4))

Row = tuple[str, dict[str, list[float]]]


def total_speed(processes: int, threads: int, size: tuple[int, int, int]) -> float:
    """Return the total model-steps per second of concurrent processes that train a pack each."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    arguments = (threads, size, barrier, results)
    workers = [context.Process(target=_worker, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    speeds = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(speeds)


def _worker(threads: int, size: tuple[int, int, int], barrier: Any, results: Any) -> None:
    torch.set_num_threads(threads)
    width, configs, steps = size
    pack = Workload(width, configs)
    pack.train(2, {})
    barrier.wait()
    begin = time.perf_counter()
    pack.train(steps, {})
    results.put(configs * steps / (time.perf_counter() - begin))


def threads_against_tasks() -> list[Row]:
    """Compare one task per core, of one thread each, with one task that has a thread per core."""
    rows = []
    for size in SIZES:
        ways = {
            f"{CORES} tasks of one thread": (CORES, 1),
            f"one task of {CORES} threads": (1, CORES),
        }
        found = {name: [total_speed(*way, size)] for name, way in ways.items()}
        rows.append((f"width {size[0]}", found))
    return rows


def pack_sizes() -> list[Row]:
    """Compare packs of 1 to 64 configs, on one thread."""
    torch.set_num_threads(1)
    rows = []
    for width, steps in ((64, 3000), (256, 256)):
        sizes = (1, 2, 4, 8, 16, 32, 64)
        ways = {
            f"{configs} configs": _training(Workload(width, configs), max(4, steps // configs))
            for configs in sizes
        }
        rows.append((f"width {width}", _interleaved(ways)))
    return rows


def _training(pack: Workload, steps: int) -> Callable[[], float]:
    def measure() -> float:
        watch = Stopwatch()
        pack.train(steps, {}, monitor=watch)
        return pack.configs * watch.steps / watch.seconds

    return measure


def sharing() -> list[Row]:
    """Compare 4 trials x 4 values of GAMMA with and without shared batches and initial networks."""
    torch.set_num_threads(1)
    rows = []
    for width, steps in ((64, 400), (256, 60)):
        ways = {
            "initial networks shared": partial(_gammas, width, steps, 4),
            "not shared": partial(_gammas, width, steps, 16),
        }
        rows.append((f"width {width}", _interleaved(ways)))
    return rows


def _gammas(width: int, steps: int, sources: int) -> float:
    generators = [torch.Generator(DEVICE).manual_seed(n % 4) for n in range(sources)]
    functions = [polynomials(32, 256, generator) for generator in generators]
    common = {"WIDTH": width, "MAX_ITER": steps, "LOSS_CHECKPOINTS": []}
    watch = Stopwatch()
    train(
        [MLP(32, width) for _ in range(16)],
        [functions[n % sources] for n in range(16)],
        [validate({**common, "GAMMA": 0.5 + n // 4}) for n in range(16)],
        trials=[n % 4 for n in range(16)],
        generators=generators,
        device=DEVICE,
        monitor=watch,
    )
    return 16 * watch.steps / watch.seconds


def compiling() -> list[Row]:
    """Compare custom models with and without torch.compile, the compilation not counted."""
    torch.set_num_threads(1)
    rows = []
    for name, network in {"tanh": _mlp(nn.Tanh), "GELU": _mlp(nn.GELU), "conv net": _conv}.items():
        ways = {f"COMPILE={on}": _compiled(network, on) for on in (True, False)}
        begin = time.perf_counter()
        ways["COMPILE=True"]()
        spent = time.perf_counter() - begin
        print(f"  {name}: the first compiled training took {spent:.0f} s")
        rows.append((name, _interleaved(ways)))
    return rows


def _mlp(nonlinearity: type[nn.Module], width: int = 64) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, width), nonlinearity()),
            *(nn.Linear(width, width), nonlinearity(), nn.Linear(width, 1)),
        )

    return build


def _conv() -> nn.Module:
    convolutions = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 1))


def _compiled(network: Callable[[], nn.Module], on: bool) -> Callable[[], float]:
    def measure() -> float:
        generators = [torch.Generator(DEVICE).manual_seed(n) for n in range(16)]
        settings = {"MAX_ITER": 128, "LOSS_CHECKPOINTS": [], "COMPILE": on}
        watch = Stopwatch()
        functions = [_images(generator) for generator in generators]
        networks = [network() for _ in generators]
        train(networks, functions, settings, generators=generators, monitor=watch, device=DEVICE)
        seconds = watch.step_seconds[64:]  # compilation is over by then
        return 16 * len(seconds) / sum(seconds)

    return measure


def _images(generator: torch.Generator) -> Callable[[int], Any]:
    flat = polynomials(64, 256, generator)

    def batch_fn(step: int) -> Any:
        X, y = flat(step)
        return X.view(256, 1, 8, 8), y

    return batch_fn


def _interleaved(ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    rounds = [{name: measure() for name, measure in ways.items()} for _ in range(REPEATS)]
    return {name: [speeds[name] for speeds in rounds] for name in ways}


CHOICES = {
    "threads against tasks": threads_against_tasks,
    "configs of a pack, one thread": pack_sizes,
    "initial networks of 4 trials x 4 values of GAMMA, one thread": sharing,
    "compiling custom models, one thread": compiling,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    only_option(parser, CHOICES)
    save_option(parser)
    options, recording = parser.parse_args(arguments), Recording("choices")
    figures: list[Figure] = []
    for choice, measure in CHOICES.items():
        if options.only in choice:
            print(f"{choice}: model-steps/s")
            for name, found in measure():
                print(f"  {name}")
                for way, speeds in found.items():
                    figures.append(figure(f"{choice}, {name}", way, "model-steps/s", speeds))
                    print(f"    {way:<32}{figures[-1].median:>10,.0f}", flush=True)
    recording.save(figures, options.save)


if __name__ == "__main__":
    main()
