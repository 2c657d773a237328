"""Randomness: every draw of a config follows from (SEED, trial) alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Streams",
    "data_seed",
    "generator_states",
    "global_rng",
    "set_generator_states",
    "streams",
    "weights_rng",
]


class Streams(NamedTuple):
    """Seeds for the ``torch.Generator`` of each of the streams of a config.

    Three make the result; a fourth is for grabs that measure by drawing.
    """

    weights: int
    train: int
    test: int
    grabs: int


def streams(seed: int, trial: int) -> Streams:
    """Return the seeds of the initial weights, the training data, the test data and the grabs.

    They are the first words of the children of ``SeedSequence((seed, trial))``, so they
    depend on nothing else: not on other axes, the device, the pack or the order.
    """
    children = np.random.SeedSequence((seed, trial)).spawn(4)
    # 63 bits: torch takes signed seeds as well as unsigned ones, and both alike in this range.
    words = (int(child.generate_state(1, np.uint64)[0]) >> 1 for child in children)
    return Streams(*words)


@contextlib.contextmanager
def global_rng(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for the duration, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def weights_rng(seed: int, trial: int) -> Iterator[None]:
    """Let torch's global CPU generator be the stream of initial weights of (seed, trial).

    Build a model inside it to have PyTorch's own initialisation (PARAMETRIZATION="sp") follow from
    (SEED, trial); whatever the generator was before is restored.
    """
    with global_rng(streams(seed, trial).weights):
        yield


def data_seed(seed: int) -> int:
    """Return the seed of the generator that a data function gets: one per run, for all trials."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 1


def generator_states(generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Return what :func:`set_generator_states` takes."""
    return [generator.get_state() for generator in generators]


def set_generator_states(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> None:
    """Let generators go on from where they were."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
