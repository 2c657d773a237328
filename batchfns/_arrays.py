"""Batches of rows of arrays: custom arrays, or the data entries of a recipe such as ``images``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.recipe import recipe
from mlpsubmit.batchfns.validation import check_choice
from mlpsubmit.errors import SpecError
from mlpsubmit.masked import is_masked
from mlpsubmit.protocol import BatchFn

__all__ = ["Rows", "arrays", "as_numpy", "bound", "pair_on_device", "sample"]

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

    In online training, every step draws a fresh batch with replacement. In offline training, the
    batch is one fixed set of bsz different rows; sets of different sizes from the same generator
    state are nested. The test batch is a fixed set of at most bsz different rows of the test
    arrays: all of them, in order, if there are no more than bsz. Without test arrays, online
    training tests on training rows, as fresh samples of the same population.

    Online, the train loss of batches from finite data does not measure generalisation: for the loss
    on X_test set EVAL_EVERY, or use the grab ``held_out_loss``. Batches are drawn from all rows of
    the given arrays, whatever ``N_TRAIN`` is: that is for recipes, such as ``images``, that take
    ``n_train``.

    Rows keep their shape. Floating-point numbers become float32 (float64 with PRECISION="fp64"),
    integers stay integers, and both are moved to the device of the generator, once for all configs
    that use them.

    Args:
        X_train: (n, ...) inputs, of torch or numpy.
        y_train: (n,) or (n, d_out) targets.
        bsz: batch size.
        gen: the generator of all draws, on the device where X and y are needed.
        online: whether training is online.
        split: "train" or "test", the set that the batches are for.
        X_test: (m, ...) inputs of the test set.
        y_test: (m,) or (m, d_out) its targets.
        X: if X and y are given, every step returns them (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (bsz, ...), y (bsz,) or (bsz, d_out))``.

    Raises:
        SpecError: if X and y differ in length, or are not real or not finite; if offline
            training needs more rows than there are, or a test set that is not given.

    Example:
        >>> sweep = Sweep(data=images("digits"), batchfn=sample, ONLINE=False)
    """
    check_choice("sample", "split", split, ("train", "test"), "'train' and 'test'")
    if X is not None and y is not None:
        return fixed(X, y)
    if (X_test is None) != (y_test is None):
        absent = "X_test" if X_test is None else "y_test"
        raise SpecError(f"sample: the test set has no {absent}; give both X_test and y_test")
    if split == "test" and X_test is not None and y_test is not None:
        X_all, y_all = pair_on_device("sample", X_test, y_test, "test", gen.device)
        return _fixed_rows(X_all, y_all, bsz, gen) if bsz < len(X_all) else fixed(X_all, y_all)
    if split == "test" and not online:
        raise SpecError(
            "sample: offline training evaluates a test set, and there is none; give X_test and "
            "y_test, for example arrays(X, y, X_test, y_test), or set N_TEST=0 to train without"
        )
    X_all, y_all = pair_on_device("sample", X_train, y_train, "train", gen.device)
    n = len(X_all)
    if not online and bsz > n:
        raise SpecError(
            f"sample: N_SAMPLES={bsz} training rows are requested, but the data have {n}; offline "
            f"training draws each row at most once; try N_SAMPLES={n}, or ONLINE=True"
        )
    if not online:
        return _fixed_rows(X_all, y_all, bsz, gen)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(n, (bsz,), generator=gen, device=gen.device)
        return X_all.index_select(0, rows), y_all.index_select(0, rows)

    return batch_fn


def arrays(
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    X_test: ArrayLike | Tensor | None = None,
    y_test: ArrayLike | Tensor | None = None,
) -> functools.partial[BatchFn]:
    """Return the batch function ``sample`` with these arrays, for ``Sweep(batchfn=...)``.

    As ``Sweep(data=...)`` the arrays are data entries, for ``batchfn=epochs`` or another batch
    function, and for recipes such as ``held_out`` and ``label_noise``.

    They are copied, so that later changes do not affect the sweep. Batches are float32 (with
    PRECISION="fp64", float64); targets too, except that integers and booleans become int64: class
    labels, for LOSS="cross_entropy".

    Args:
        X: (n, ...) training inputs, of numpy or torch.
        y: (n,) or (n, d_out) training targets.
        X_test: (m, ...) inputs of the test set, which offline training needs unless N_TEST=0.
        y_test: (m,) or (m, d_out) its targets.

    Raises:
        SpecError: listing every error: lengths and shapes that differ, arrays without rows,
            entries that are not finite real numbers.

    Example:
        >>> batchfn = arrays(X=[[0.0], [1.0]], y=[0.0, 2.0])
    """
    return bound("arrays", {"X": X, "y": y, "X_test": X_test, "y_test": y_test})


@recipe("arrays", cheap=True)
def _array_entries(
    X_train: Tensor, y_train: Tensor, X_test: Tensor | None = None, y_test: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the arrays that ``arrays`` and ``from_dataset`` bind as data entries."""
    given = {"X_train": X_train, "y_train": y_train, "X_test": X_test, "y_test": y_test}
    return {name: rows for name, rows in given.items() if rows is not None}


sample.__dict__["entries"] = _array_entries  # see as_recipe


def bound(caller: str, given: Mapping[str, Any]) -> functools.partial[BatchFn]:
    """Return ``sample`` with copies of the arrays X, y, X_test and y_test.

    Args:
        caller: the name of the calling function, for messages.
        given: the arrays by name; X_test and y_test may be None.

    Raises:
        SpecError: listing every error.
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


def _fixed_rows(X: Tensor, y: Tensor, bsz: int, gen: torch.Generator) -> BatchFn:
    """Return the batch function of one random set of bsz different rows."""
    rows = torch.randperm(len(X), generator=gen, device=gen.device)[:bsz]
    return fixed(X.index_select(0, rows), y.index_select(0, rows))


def pair_on_device(
    caller: str, X: Rows, y: Rows, split: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a set as tensors on a device, for a batch function.

    Args:
        caller: the name of the batch function, for messages.

    Raises:
        SpecError: if they are no arrays of equally many rows, or not real or not finite.
    """
    for letter, rows in (("X", X), ("y", y)):
        if not isinstance(rows, (Tensor, np.ndarray)) or rows.ndim == 0:
            raise SpecError(
                f"{caller}: got {letter}_{split} of type {type(rows).__name__}; valid are arrays "
                "of numpy and torch with a row per sample; try data=arrays(X, y, X_test, y_test)"
            )
    if len(X) != len(y) or len(X) == 0:
        raise SpecError(
            f"{caller}: X_{split} has {len(X)} rows and y_{split} has {len(y)}; "
            "they should have equally many, and at least one"
        )
    return (
        _on_device(f"{caller}: X_{split}", X, device),
        _on_device(f"{caller}: y_{split}", y, device),
    )


#: Copies of arrays on devices, each kept as long as its array: the configs of a pack, and the packs
#: of a task, share one copy. None means the array itself, to which a reference would keep it alive.
_COPIES: MutableMapping[Any, dict[tuple[torch.device, torch.dtype], Tensor | None]] = (
    WeakIdKeyDictionary()
)


def _on_device(name: str, rows: Rows, device: torch.device) -> Tensor:
    """Return rows as a tensor on a device, checked once, floats in torch's default dtype."""
    copies = _COPIES.setdefault(rows, {})
    key = device, torch.get_default_dtype()
    if key not in copies:
        tensor = _converted(name, rows, device)
        copies[key] = None if tensor is rows else tensor
    copy = copies[key]
    if copy is None:
        assert isinstance(rows, Tensor)
        return rows
    return copy


def _converted(name: str, rows: Rows, device: torch.device) -> Tensor:
    if rows.is_complex() if isinstance(rows, Tensor) else rows.dtype.kind not in "fiub":
        raise SpecError(f"{name} has the dtype {rows.dtype}; valid are real numbers")
    if isinstance(rows, np.ndarray):
        # To types that torch computes with; bytes and booleans stay as small as they are.
        small = rows.dtype in (np.uint8, np.bool_)
        double = torch.get_default_dtype() == torch.float64
        real: Any = np.float64 if double else np.float32
        dtype = real if rows.dtype.kind == "f" else rows.dtype if small else np.int64
        with np.errstate(over="ignore"):  # values that overflow are reported as infinite
            rows = torch.from_numpy(np.array(rows, dtype))
    if not rows.is_floating_point():
        return rows.to(device)
    tensor = rows.to(device, torch.get_default_dtype())
    # A read-back from the device, once per array: training on NaN would only diverge.
    wrong = (~tensor.isfinite()).nonzero()
    if len(wrong):
        raise SpecError(f"{name} {_not_finite(wrong)}")
    return tensor


def _not_finite(indices: Tensor | NDArray[Any]) -> str:
    first = ", ".join(str(int(i)) for i in indices[0])
    return f"has {len(indices)} entries that are NaN or infinite as float32, the first at [{first}]"


def _checked(name: str, value: Any, errors: list[str]) -> NDArray[Any] | None:
    """Return one array as a contiguous copy of its final dtype; add an error if it is invalid."""
    if is_masked(value):
        errors.append(f"{name} has masked entries; try {name}.filled(0), or leave these rows out")
        return None
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
    with np.errstate(over="ignore"):  # values that overflow are reported below
        narrow = np.asarray(found, dtype=np.int64 if labels else np.float32)
    # What is given as float64 stays so, for PRECISION="fp64".
    double = found.dtype == np.float64 and not labels
    array = np.array(found if double else narrow, order="C")
    wrong = np.argwhere(~np.isfinite(narrow))
    if len(wrong):
        errors.append(f"{name} {_not_finite(wrong)}")
    return array


def as_numpy(value: Any) -> NDArray[Any]:
    """Return an array, a tensor on any device, or nested lists of numbers as a numpy array."""
    if isinstance(value, Tensor):
        # numpy has no bfloat16, so floating-point tensors become float32 at least.
        narrow = value.is_floating_point() and value.dtype != torch.float64
        value = (value.float() if narrow else value).detach().cpu()
    return np.asarray(value)


def _kind(array: NDArray[Any]) -> str:
    return str(array.dtype) if array.dtype.kind != "f" else "float32"


def _compare(rows: dict[str, NDArray[Any]], errors: list[str]) -> None:
    """Add an error for every two arrays that do not match, and every one without rows."""
    for inputs, targets in (("X", "y"), ("X_test", "y_test")):
        if inputs in rows and targets in rows and len(rows[inputs]) != len(rows[targets]):
            errors.append(
                f"{inputs} has {len(rows[inputs])} rows and {targets} has "
                f"{len(rows[targets])}; they should have equally many"
            )
    for train, test in (("X", "X_test"), ("y", "y_test")):
        if train in rows and test in rows:
            kinds = [(rows[name].shape[1:], _kind(rows[name])) for name in (train, test)]
            if kinds[0] != kinds[1]:
                errors.append(
                    f"a row of {train} has shape and dtype {kinds[0]}, but one of {test} "
                    f"{kinds[1]}; they should agree"
                )
    errors.extend(f"{name} has no rows" for name in rows if not len(rows[name]))
