"""How much of a GPU's memory a config takes in training, which sets the size of packs there.

These are estimates from the settings alone; a pack that does not fit after all is halved by its
task. Counted are numbers of four bytes, in fp64 of eight.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LARGEST_ON_GPU",
    "RECORDED_COPIES",
    "config_bytes",
    "evaluates_test_set",
    "fitting",
    "usable",
]

#: Configs of a pack at most, and weights of a stack: more gain nothing, the GPU is busy already.
LARGEST_ON_GPU = 512
WEIGHTS_ON_GPU = 1 << 27

#: Memory of a GPU that is not planned for: the share that fragments, and the bytes that the CUDA
#: context takes, the workspaces of libraries, and the two copies of a small stack that are made
#: while a recording of its step is checked.
MARGIN, RESERVED = 0.15, 2 << 30

#: Copies of the weights: these, the initial ones, gradients, two of an optimizer's, and two
#: temporary ones of an update.
COPIES = 7

#: Further ones where steps are recorded: gradients and temporary ones of the recorded steps, and
#: two of all that a step changes while these are checked. With Adam on an H100 all took 17.5.
RECORDED_COPIES = 11

#: Times that a batch is held: as drawn, stacked and gathered, of a step and of the next one, which
#: is drawn at the same time; of an eager step, of a recording of one, and a config's last; and a
#: test set: as drawn, and stacked.
BATCHES, TEST_SETS = 8, 2


def config_bytes(
    weights: NDArray[np.float64], settings: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the bytes that one config takes, (groups,).

    Args:
        weights: of one network.
        settings: d, width, depth, n_samples, n_test, online, precision (bytes per number), each
            (groups,); and those of :func:`evaluates_test_set`.
    """
    test_samples = evaluates_test_set(settings) * settings["n_test"]
    width, depth = settings["width"], settings["depth"]
    # A forward pass keeps the signals of every layer, the backward pass two more at a time; a
    # network that autograd differentiates keeps some twice. A recorded step, in which the test set
    # may be evaluated, has separate memory.
    train = (2 * depth + 2) * settings["n_samples"] * width
    activations = 2 * np.maximum(train, (depth + 1) * test_samples * width)
    samples = BATCHES * settings["n_samples"] + TEST_SETS * test_samples
    return np.asarray(
        settings["precision"]
        * ((COPIES + RECORDED_COPIES) * weights + activations + samples * settings["d"])
    )


def evaluates_test_set(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Return where the test set is evaluated, (groups,): offline, or where a setting asks for it.

    Args:
        settings: online; and eval_every, log_spaced_evaluations and test_thresholds, 0 or absent
            where they are not set.
    """
    asking = ("eval_every", "log_spaced_evaluations", "test_thresholds")
    asked = sum((settings[name] for name in asking if name in settings), np.zeros(1))
    return np.asarray((settings["online"] == 0) | (asked > 0))


def usable(memory: int) -> float:
    """Return the bytes that packs may take of those that are free on a GPU."""
    return max(0.0, (1 - MARGIN) * memory - RESERVED)


def fitting(
    memory: int, weights: NDArray[np.float64], settings: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Return how many configs are to train together on a GPU, (groups,), one at least.

    Args:
        memory: bytes that are free on it.
        weights, settings: as :func:`config_bytes` takes them.
    """
    sizes = np.minimum(usable(memory) // config_bytes(weights, settings), WEIGHTS_ON_GPU // weights)
    return np.clip(sizes, 1, LARGEST_ON_GPU).astype(np.int64)
