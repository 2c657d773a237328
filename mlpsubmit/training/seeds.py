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

__all__ = [
    "Streams",
    "data_seed",
    "generator_states",
    "global_rng",
    "global_states",
    "set_generator_states",
    "set_torch_states",
    "streams",
    "torch_states",
    "weights_rng",
]


class Streams(NamedTuple):
    """Seeds of the random streams of one config, each for a ``torch.Generator``.

    Attributes:
        weights: the initial weights.
        train, test: the training and the test data.
        grabs: grabs that draw random numbers.
        optimizer: an optimizer of the user's that draws from torch's global generators.
    """

    weights: int
    train: int
    test: int
    grabs: int
    optimizer: int


def streams(seed: int, trial: int) -> Streams:
    """Return the seeds of the initial weights, training data, test data, grabs and the optimizer.

    They are 63 bits of the children of ``SeedSequence((seed, trial))``, so they depend on nothing
    else: not on other axes, the device, the pack or the order.
    """
    children = np.random.SeedSequence((seed, trial)).spawn(5)
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


def torch_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's global generators that a training on a device may draw from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def set_torch_states(device: torch.device, states: Sequence[Tensor]) -> None:
    """Restore the states of torch's global generators."""
    torch.set_rng_state(states[0].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].clone(), device)


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
        "torch": [state.numpy().tobytes() for state in torch_states(device)],
        "numpy": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }
