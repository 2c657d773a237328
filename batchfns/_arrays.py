"""Batches out of arrays: the user's own, or the data entries of a recipe such as ``images``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mlpsubmit.batchfns.fixed import fixed
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.protocol import BatchFn

__all__ = ["arrays", "as_numpy", "bound", "sample"]

Rows: TypeAlias = Tensor | NDArray[Any]


def sample(
    X_train: Rows,
    y_train: Rows,
    bsz: int,
    gen: torch.Generator,
    online: bool,
    split: str,
    X_test: Rows | None = None,
    y_test: Rows | None = None,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    """Batch function that draws rows of given arrays: the data entries, or those of ``arrays``.

    Training batches are drawn anew and with replacement at every step where training is online.
    Offline they are one fixed set of bsz different rows; sets of different sizes from one
    generator state are nested. The test batch is a fixed set of at most bsz different rows of the
    test arrays: all of them, in order, where there are no more than that. Without test arrays,
    online training tests on training rows, as fresh samples of the same population.

    Online, the ``test_loss`` of the results is the train loss: of batches out of finite data it
    says nothing about other rows. For the loss on X_test take the grab ``held_out_loss``. All rows
    of arrays that you give are drawn from, whatever ``N_TRAIN`` is; it is for recipes, such as
    ``images``, that take ``n_train``.

    Rows keep their shape. Floating-point numbers become float32, integers stay integers, and both
    are moved to the device of the generator, once for all configs that use them.

    Args:
        X_train: (n, ...) inputs, of torch or numpy.
        y_train: (n,) or (n, d_out) targets.
        bsz: rows per batch.
        gen: the generator of all draws, on the device that X and y are wanted on.
        online: whether training is online.
        split: "train" or "test", which of the sets the batches are for.
        X_test: (m, ...) inputs of the test set.
        y_test: (m,) or (m, d_out) its targets.
        X: where X and y are given, they are what every step returns (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (bsz, ...), y (bsz,) or (bsz, d_out))``.

    Raises:
        SpecError: where X and y have different lengths, are no real numbers or not finite; where
            offline training asks for more rows than there are, or for a test set that is not given.

    Example:
        >>> sweep = Sweep(data=images("digits"), batchfn=sample, ONLINE=False)
    """
    if split not in ("train", "test"):
        raise SpecError(
            f"sample: got split={split!r}; valid are 'train' and 'test'"
            f"{did_you_mean(str(split), ('train', 'test'))}"
        )
    if X is not None and y is not None:
        return fixed(X, y)
    if (X_test is None) != (y_test is None):
        absent = "X_test" if X_test is None else "y_test"
        raise SpecError(f"sample: the test set has no {absent}; give both X_test and y_test")
    if split == "test" and X_test is not None and y_test is not None:
        return _test_set(*_pair(X_test, y_test, "test", gen.device), bsz, gen)
    if split == "test" and not online:
        raise SpecError(
            "sample: offline training needs a test set, and there is none; give X_test and y_test, "
            "for example arrays(X, y, X_test, y_test)"
        )
    return _training(*_pair(X_train, y_train, "train", gen.device), bsz, gen, online)


def arrays(
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    X_test: ArrayLike | Tensor | None = None,
    y_test: ArrayLike | Tensor | None = None,
) -> functools.partial[BatchFn]:
    """Return the batch function ``sample`` with these arrays, for ``Sweep(batchfn=...)``.

    They are copied, so that later changes don't reach the sweep. Inputs become float32. Targets
    become float32 too, except that integers and booleans become int64: class labels, as
    LOSS="cross_entropy" wants them.

    Args:
        X: (n, ...) training inputs, of numpy or torch.
        y: (n,) or (n, d_out) training targets.
        X_test: (m, ...) inputs of the test set, which offline training needs.
        y_test: (m,) or (m, d_out) its targets.

    Raises:
        SpecError: listing all that is wrong: lengths and shapes that differ, nothing in them,
            entries that are no finite numbers.

    Example:
        >>> batchfn = arrays(X=[[0.0], [1.0]], y=[0.0, 2.0])
    """
    return bound("arrays", {"X": X, "y": y, "X_test": X_test, "y_test": y_test})


def bound(caller: str, given: Mapping[str, Any]) -> functools.partial[BatchFn]:
    """Return ``sample`` with copies of the arrays X, y, X_test and y_test, or list what is wrong.

    Args:
        caller: the function that messages name.
        given: the arrays by name; X_test and y_test may be None.
    """
    errors: list[str] = []
    rows = {
        name: _checked(name, value, errors) for name, value in given.items() if value is not None
    }
    usable = {name: array for name, array in rows.items() if array is not None}
    _compare(usable, errors)
    if len(rows) == 3:
        absent = "y_test" if "X_test" in rows else "X_test"
        errors.append(f"the test set has no {absent}; give both X_test and y_test")
    if errors:
        raise SpecError([f"{caller}: {message}" for message in errors])
    names = {"X": "X_train", "y": "y_train"}
    tensors = {names.get(name, name): torch.from_numpy(array) for name, array in usable.items()}
    return functools.partial(sample, **tensors)  # type: ignore[arg-type]


def _training(X: Tensor, y: Tensor, bsz: int, gen: torch.Generator, online: bool) -> BatchFn:
    n = len(X)
    if online:

        def batch_fn(step: int) -> tuple[Tensor, Tensor]:
            rows = torch.randint(n, (bsz,), generator=gen, device=gen.device)
            return X.index_select(0, rows), y.index_select(0, rows)

        return batch_fn
    if bsz > n:
        raise SpecError(
            f"sample: N_SAMPLES={bsz} training rows are asked for, but the data have {n}; offline "
            f"training draws each row at most once; try N_SAMPLES={n}, or ONLINE=True"
        )
    rows = torch.randperm(n, generator=gen, device=gen.device)[:bsz]
    return fixed(X.index_select(0, rows), y.index_select(0, rows))


def _test_set(X: Tensor, y: Tensor, bsz: int, gen: torch.Generator) -> BatchFn:
    if bsz >= len(X):
        return fixed(X, y)
    rows = torch.randperm(len(X), generator=gen, device=gen.device)[:bsz]
    return fixed(X.index_select(0, rows), y.index_select(0, rows))


def _pair(X: Rows, y: Rows, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    for letter, rows in (("X", X), ("y", y)):
        if not isinstance(rows, (Tensor, np.ndarray)) or rows.ndim == 0:
            raise SpecError(
                f"sample: got {letter}_{split} of type {type(rows).__name__}; valid are arrays of "
                "numpy and torch with a row per sample; try batchfn=arrays(X, y, X_test, y_test)"
            )
    if len(X) != len(y) or len(X) == 0:
        raise SpecError(
            f"sample: X_{split} has {len(X)} rows and y_{split} has {len(y)}; "
            "they should have equally many, and at least one"
        )
    return _on_device(f"X_{split}", X, device), _on_device(f"y_{split}", y, device)


#: Copies of arrays on other devices, each for as long as the array itself lives: the configs of a
#: pack, and the packs of a task, share one copy instead of making one each. None stands for the
#: array itself, where it is what is wanted: a reference to it would keep it alive.
_COPIES: MutableMapping[Any, dict[torch.device, Tensor | None]] = WeakIdKeyDictionary()


def _on_device(name: str, rows: Rows, device: torch.device) -> Tensor:
    """Return rows as a tensor on a device, checked once, floating-point numbers as float32."""
    copies = _COPIES.setdefault(rows, {})
    if device not in copies:
        tensor = _converted(name, rows, device)
        copies[device] = None if tensor is rows else tensor
    copy = copies[device]
    if copy is None:
        assert isinstance(rows, Tensor)
        return rows
    return copy


def _converted(name: str, rows: Rows, device: torch.device) -> Tensor:
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(_plain(name, rows))
    if tensor.is_complex():
        raise SpecError(f"sample: {name} has the dtype {tensor.dtype}; valid are real numbers")
    if not tensor.is_floating_point():
        return tensor.to(device)
    tensor = tensor.to(device, torch.float32)
    # A read-back from the device, once for each array: training on NaN would only diverge.
    wrong = (~tensor.isfinite()).nonzero()
    if len(wrong):
        raise SpecError(f"sample: {name} {_not_finite(wrong)}")
    return tensor


def _plain(name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Return a copy whose dtype torch computes with: bytes and booleans are kept as small."""
    if rows.dtype.kind not in "fiub":
        raise SpecError(f"sample: {name} has the dtype {rows.dtype}; valid are real numbers")
    if rows.dtype in (np.uint8, np.bool_):
        return np.array(rows)
    with np.errstate(over="ignore"):  # what overflows is reported as infinite
        return np.array(rows, dtype=np.float32 if rows.dtype.kind == "f" else np.int64)


def _not_finite(places: Tensor | NDArray[Any]) -> str:
    first = ", ".join(str(int(i)) for i in places[0])
    return f"has {len(places)} entries that are NaN or infinite as float32, the first at [{first}]"


def _checked(name: str, value: Any, errors: list[str]) -> NDArray[Any] | None:
    """Return one array as a contiguous copy of its final dtype, or None and an error."""
    found = as_numpy(value)
    if found.dtype.kind not in "fiub":
        errors.append(f"{name} has the dtype {found.dtype}; valid are real numbers")
        return None
    inputs = name.startswith("X")
    if found.ndim < 2 if inputs else found.ndim not in (1, 2):
        valid = "(n, d) or (n, channels, height, width)" if inputs else "(n,) or (n, d_out)"
        hint = f"; try {name}[:, None]" if inputs and found.ndim == 1 else ""
        errors.append(f"{name} has the shape {found.shape}; valid are {valid}{hint}")
        return None
    labels = not inputs and found.dtype.kind in "iub"
    with np.errstate(over="ignore"):  # what overflows is reported below
        array = np.array(found, dtype=np.int64 if labels else np.float32, order="C")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        errors.append(f"{name} {_not_finite(wrong)}")
    return array


def as_numpy(value: Any) -> NDArray[Any]:
    """Return an array, a tensor on any device, or nested lists of numbers as an array of numpy."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    # numpy has no bfloat16, so floating-point tensors go over as float32.
    floating = value.is_floating_point()
    return (value.float() if floating else value).detach().cpu().numpy()


def _compare(rows: dict[str, NDArray[Any]], errors: list[str]) -> None:
    """Add an error for every two arrays that do not fit together."""
    for inputs, targets in (("X", "y"), ("X_test", "y_test")):
        if inputs in rows and targets in rows and len(rows[inputs]) != len(rows[targets]):
            errors.append(
                f"{inputs} has {len(rows[inputs])} rows and {targets} has "
                f"{len(rows[targets])}; they should have equally many"
            )
    for train, test in (("X", "X_test"), ("y", "y_test")):
        if train in rows and test in rows:
            kinds = [(rows[name].shape[1:], str(rows[name].dtype)) for name in (train, test)]
            if kinds[0] != kinds[1]:
                errors.append(
                    f"a row of {train} has shape and dtype {kinds[0]}, but one of {test} "
                    f"{kinds[1]}; they should agree"
                )
    errors.extend(f"{name} has no rows" for name in rows if not len(rows[name]))
