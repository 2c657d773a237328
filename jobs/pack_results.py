"""The arrays of a pack's result, joined from those of its stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store.pack_schema import SHARED, WEIGHT_SHAPES, WEIGHTS
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.results.grab_arrays import array_name
from mlpsubmit.results.names import TOGETHER

if TYPE_CHECKING:
    from mlpsubmit.training.result import Trained

__all__ = ["Arrays", "joined", "stack_arrays"]

Arrays = dict[str, NDArray[Any]]


def stack_arrays(rows: Sequence[int], trained: Trained, seconds: float, *, tested: bool) -> Arrays:
    """Return the arrays of one stack of K configs.

    Args:
        rows: (K,) the rows of its configs in the pack.
        seconds: spent on the stack; every config gets an equal share.
        tested: whether its test loss is evaluated; else it has none.
    """
    count = len(rows)
    arrays: Arrays = {
        "row": np.array(rows),
        TOGETHER: np.full(count, count),
        "status": trained.status,
        "steps": trained.steps,
        "seconds": np.full(count, seconds / count),
        "timekeys": trained.timekeys,
        "train_loss": trained.train_loss,
    }
    if tested:
        arrays["test_loss"] = trained.test_loss
    arrays |= {f"metric.{name}": values for name, values in trained.metrics.items()}
    arrays |= {f"timekeys.{name}": steps for name, steps in trained.metric_timekeys.items()}
    schedules = {name: getattr(trained, name) for name in SHARED}
    arrays |= {name: steps for name, steps in schedules.items() if len(steps)}
    # If every config diverged, the shape of a grab that was never called is not known.
    called = not (trained.status == DIVERGED).all()
    grabs = {name: v for name, v in trained.grabs.items() if called or not np.isnan(v).all()}
    arrays |= {f"{WEIGHTS}{name}": values for name, values in trained.weights.items()}
    return arrays | {
        array_name(*trained.entries.get(n, (n, None))): values for n, values in grabs.items()
    }


def joined(stacks: Sequence[Arrays], finished: Sequence[int], *, divided: bool) -> Arrays:
    """Return the arrays of the finished configs of a pack, in the order of its rows.

    Grabs whose shapes differ between stacks are padded with NaN to the largest; weights are then
    flattened, padded with zeros, and their shapes kept beside them.

    Args:
        finished: their rows, ascending.
        divided: whether the pack was divided; only then ``trained_together`` is kept.
    """
    left_out = {"row"} if divided else {"row", TOGETHER}
    if len(stacks) == 1:
        return {name: array for name, array in stacks[0].items() if name not in left_out}
    position = {row: number for number, row in enumerate(finished)}
    whole: Arrays = {}
    for name in dict.fromkeys(name for stack in stacks for name in stack):
        having = [stack for stack in stacks if name in stack]
        if name in SHARED:
            whole[name] = having[0][name]
        elif name not in left_out:
            rows = [np.array([position[row] for row in stack["row"].tolist()]) for stack in having]
            arrays = [stack[name] for stack in having]
            if name.startswith(WEIGHTS):
                leading = 1 if "weights_step" not in having[0] else 2
                whole |= _joined_weights(name, arrays, rows, len(finished), leading)
            else:
                whole[name] = _scattered(arrays, rows, len(finished))
    return whole


def _joined_weights(
    name: str,
    arrays: Sequence[NDArray[Any]],
    rows: Sequence[NDArray[np.int64]],
    count: int,
    leading: int,
) -> Arrays:
    """Return the weights of one name of all stacks, and their shapes if these differ.

    Args:
        arrays: (K, ...) or (K, S, ...) of each stack that has them.
        leading: how many of these dimensions are not of the weights.
    """
    shapes = [array.shape[leading:] for array in arrays]
    dtype = np.result_type(*arrays)
    if len(set(shapes)) == 1 and sum(map(len, rows)) == count:
        whole = np.zeros((count, *arrays[0].shape[1:]), dtype)
        for array, own in zip(arrays, rows, strict=True):
            whole[own] = array
        return {name: whole}
    flat = [array.reshape(*array.shape[:leading], -1) for array in arrays]
    longest = max(array.shape[-1] for array in flat)
    whole = np.zeros((count, *flat[0].shape[1:-1], longest), dtype)
    sizes = np.full((count, max(map(len, shapes)) + 1), -1, np.int64)
    for array, own, shape in zip(flat, rows, shapes, strict=True):
        whole[own, ..., : array.shape[-1]] = array
        # The number of dimensions, and them; -1 for a config without a tensor of this name.
        sizes[own, : len(shape) + 1] = len(shape), *shape
    return {name: whole, WEIGHT_SHAPES + name.removeprefix(WEIGHTS): sizes}


def _scattered(
    arrays: Sequence[NDArray[Any]], rows: Sequence[NDArray[np.int64]], count: int
) -> NDArray[Any]:
    """Return an array of ``count`` rows, those of each stack's array where ``rows`` has them."""
    shapes = {array.shape[1:] for array in arrays}
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    holes = len(shapes) > 1 or sum(map(len, rows)) < count
    dtype = np.result_type(*arrays, *([np.float64] if holes else []))
    whole = np.full((count, *shape), np.nan if holes else 0, dtype=dtype)
    for array, own in zip(arrays, rows, strict=True):
        inner = tuple(slice(size) for size in array.shape[1:])
        whole[(own,) + inner] = array  # noqa: RUF005  # Python 3.10 unpacks no stars here
    return whole
