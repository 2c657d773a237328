"""Corruption of the inputs of the training rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.batchfns.derived import Entries, as_entry, chosen_rows, derived, draws, rows_of
from mlpsubmit.batchfns.recipe import recipe
from mlpsubmit.batchfns.validation import check_amount

__all__ = ["corruption"]

Array: TypeAlias = NDArray[Any]


def corruption(
    source: Any,
    corruption: float | None = None,
    corruption_kind: str | None = None,
    per_trial: bool = False,
) -> functools.partial[Entries]:
    """Return a data recipe that corrupts the training inputs of another one.

    The test inputs stay as they are, except that "shuffled_pixels" moves their pixels as those of
    the training inputs. What is corrupted for a smaller ``corruption`` is so for a larger one, too:
    along an axis only the amount changes. It follows from SEED. Rows are images, or any inputs
    (n, d); for (n, channels, height, width) all channels of a pixel move together.

    Args:
        source: a data recipe such as ``images("mnist")``, ``arrays(X, y)``, ``held_out(...)``, or
            a function that returns X_train and y_train.
        corruption: how much: for "gaussian" the standard deviation, >= 0, for all other kinds a
            fraction from 0 to 1. If omitted, it must come from an axis or from ``datasethps``.
        corruption_kind: "gaussian" (the default): x + corruption * N(0, 1) in every entry. "mask":
            each entry is 0 with this probability. And those of Zhang et al., arXiv 1611.03530:
            "shuffled_pixels", one permutation of this fraction of the pixels, the same for all
            images; "random_pixels", this fraction of the images, the pixels of each in a random
            order of its own; "gaussian_images", this fraction of the images are replaced by
            Gaussian noise of the mean and the variance of all training inputs.
        per_trial: whether every trial has draws of its own. By default all trials have the same;
            otherwise the data are computed once per trial.

    Raises:
        SpecError: listing every bad value.

    Example:
        >>> sweep = Sweep(data=corruption(images("digits"), corruption=0.5), batchfn=epochs)
        >>> clean = arrays(torch.ones(4, 3), torch.ones(4))
        >>> masked = corruption(clean, corruption=1, corruption_kind="mask")(seed=0)
        >>> masked["X_train"].sum()
        tensor(0.)
    """
    arguments = {"corruption": corruption, "corruption_kind": corruption_kind}
    return derived(_corrupted_entries, source, arguments, per_trial)


def _check(arguments: Mapping[str, Any]) -> None:
    check_amount("corruption", "corruption", _KINDS, "gaussian", arguments)


@recipe("corruption", _check)
def _corrupted_entries(
    entries: Entries,
    seed: int,
    corruption: float,
    corruption_kind: str = "gaussian",
    trial: int | None = None,
) -> Entries:
    _check({"corruption": corruption, "corruption_kind": corruption_kind})
    X = _floats(entries, "X_train")
    stream = draws(f"corruption {corruption_kind}", seed, trial)
    changed = {"X_train": as_entry(_KINDS[corruption_kind](X, corruption, stream), X)}
    if corruption_kind == "shuffled_pixels" and "X_test" in entries:
        tested, again = _floats(entries, "X_test"), draws("corruption shuffled_pixels", seed, trial)
        changed["X_test"] = as_entry(_shuffled_pixels(tested, corruption, again), tested)
    return {**entries, **changed}


def _floats(entries: Entries, name: str) -> Array:
    """Return inputs as floating-point numbers: bytes could not hold the noise."""
    X = rows_of(entries, name)
    return X if X.dtype.kind == "f" else X.astype(np.float32)


# ---- kinds: (X (n, ...), amount, generator) -> X -------------------------------------------------


def _gaussian(X: Array, amount: float, stream: np.random.Generator) -> Array:
    noise = stream.standard_normal(X.shape, dtype=np.float32)
    noisy: Array = X + X.dtype.type(amount) * noise
    return noisy


def _mask(X: Array, amount: float, stream: np.random.Generator) -> Array:
    return np.where(stream.random(X.shape, dtype=np.float32) < amount, X.dtype.type(0), X)


def _shuffled_pixels(X: Array, amount: float, stream: np.random.Generator) -> Array:
    pixels = _pixels(X).shape[-1]
    moved = np.flatnonzero(chosen_rows(amount, stream.random(pixels)))
    order = np.arange(pixels)
    order[moved] = stream.permutation(moved)
    return _pixels(X)[..., order].reshape(X.shape)


def _random_pixels(X: Array, amount: float, stream: np.random.Generator) -> Array:
    chosen, pixels = chosen_rows(amount, stream.random(len(X))), _pixels(X)
    moved = pixels.copy()
    for row in range(len(X)):  # drawn for all, so that those of a row do not depend on the amount
        order = stream.permutation(pixels.shape[-1])
        if chosen[row]:
            moved[row] = pixels[row][..., order]
    return moved.reshape(X.shape)


def _gaussian_images(X: Array, amount: float, stream: np.random.Generator) -> Array:
    chosen = chosen_rows(amount, stream.random(len(X)))
    noise = stream.standard_normal(X.shape, dtype=np.float32)
    noise = X.mean(dtype=np.float64) + X.std(dtype=np.float64) * noise
    return np.where(chosen.reshape(-1, *(1,) * (X.ndim - 1)), noise.astype(X.dtype), X)


_KINDS: dict[str, Callable[[Array, float, np.random.Generator], Array]] = {
    "gaussian": _gaussian,
    "mask": _mask,
    "shuffled_pixels": _shuffled_pixels,
    "random_pixels": _random_pixels,
    "gaussian_images": _gaussian_images,
}


def _pixels(X: Array) -> Array:
    """Return inputs as (n, pixels) or, of images with channels, (n, channels, pixels)."""
    return X.reshape(*X.shape[:2], -1) if X.ndim == 4 else X.reshape(len(X), -1)
