"""Random streams: every draw of a config is determined by (SEED, trial) alone."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.training.global_state import global_state_kept

__all__ = [
    "Streams",
    "data_seed",
    "generator_states",
    "global_rng",
    "global_states",
    "global_stream",
    "saved_global_states",
    "set_generator_states",
    "set_global_states",
    "streams",
    "weights_rng",
]


class Streams(NamedTuple):
    """Seeds of the random streams of one config, each for a ``torch.Generator``.

    Attributes:
        weights: the initial weights.
        train, test: the training and the test data.
        grabs: grabs that draw random numbers.
        draws: the forward passes of training steps, such as dropout; and a loss or an optimizer of
            the user's that draws from the global generators.
        evaluations: models that draw in evaluations, too: each of these starts the stream anew.
    """

    weights: int
    train: int
    test: int
    grabs: int
    draws: int
    evaluations: int


def streams(seed: int, trial: int) -> Streams:
    """Return the seeds of the random streams of a config.

    They are 63 bits of the children of ``SeedSequence((seed, trial))``, so they depend on nothing
    else: not on other axes, the device, the pack or the order.
    """
    children = np.random.SeedSequence((seed, trial)).spawn(6)
    # 63 bits: in this range torch treats signed and unsigned seeds the same.
    seeds = (int(child.generate_state(1, np.uint64)[0]) >> 1 for child in children)
    return Streams(*seeds)


@contextlib.contextmanager
def global_rng(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the context, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def weights_rng(seed: int, trial: int) -> Iterator[None]:
    """Seed torch's global CPU generator with the initial-weights stream of (seed, trial).

    A model that is built within the context gets a PyTorch initialisation (PARAMETRIZATION="sp")
    determined by (SEED, trial). The generator's state is restored afterwards.
    """
    with global_rng(streams(seed, trial).weights):
        yield


def data_seed(seed: int) -> int:
    """Return the seed of the data function's generator: one per run, for all trials."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 1


@contextlib.contextmanager
def global_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random; restore their states afterwards.

    Args:
        device: whose generator is seeded, besides that of the CPU.
    """
    if device.type == "cuda":
        cuda: Any = torch.cuda  # which has functions without types
        cuda.init()  # without it a process has no generators of CUDA
    with global_state_kept():
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        random.seed(seed)
        yield


def saved_global_states(device: torch.device) -> dict[str, Any]:
    """Return the states for :func:`set_global_states`: tensors, numbers and lists of them."""
    name, keys, *numpy_rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": _torch_states(device),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *numpy_rest],
        "random": [version, torch.tensor(words), gauss],
    }


def set_global_states(device: torch.device, states: dict[str, Any]) -> None:
    """Restore the states of all global generators."""
    torch.set_rng_state(states["torch"][0].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["torch"][1].clone(), device)
    name, keys, *numpy_rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *numpy_rest))
    version, words, gauss = states["random"]
    random.setstate((version, tuple(words.tolist()), gauss))


def _torch_states(device: torch.device) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def generator_states(generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Return the states for :func:`set_generator_states`."""
    return [generator.get_state() for generator in generators]


def set_generator_states(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    """Restore the states of generators."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def global_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators, which can be compared, by library."""
    return {
        "torch": [state.numpy().tobytes() for state in _torch_states(device)],
        "numpy": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }
