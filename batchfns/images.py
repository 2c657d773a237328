"""Image data sets as data recipes."""

from __future__ import annotations

import functools
import importlib.util
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.errors import SpecError, UserError, did_you_mean

__all__ = ["images"]


def images(
    dataset: str,
    classes: Sequence[Sequence[int]] | None = None,
    binarize: bool = True,
    normalized: bool = True,
    flat: bool = True,
) -> Callable[..., dict[str, Tensor]]:
    r"""Return the data recipe of an image data set, for ``Sweep(data=..., batchfn=sample)``.

    Nothing is read here: the recipe runs on a worker, takes ``n_train`` and ``n_test`` from the
    hyperparameters, and yields the data entries ``X_train``, ``y_train``, ``X_test`` and
    ``y_test``, float32. It gives fewer rows than asked for where the data set has no more.
    Which image is a training and which a test image depends on nothing: not on a seed, not on
    ``classes``. Rows are in shuffled order, so a smaller ``n_train`` is a head of a larger one.

    With :math:`\mu` the mean training image, and means over the training rows taken,

    .. math:: x \mapsto \frac{x - \mu}{\sqrt{\mathrm{mean}(|x - \mu|^2) / d}}

    normalizes: training inputs then have mean 0 and mean squared norm d, 1 per pixel.

    Args:
        dataset: "digits": 1797 images of 8 x 8 pixels, labels 0 to 9, embedded in scikit-learn
            (UCI ML hand-written digits). A quarter of them is the test set.
        classes: groups of labels that become one class each; images of other labels are left
            out. By default every label is a class.
        binarize: two classes give targets (n,): -1 for the first, +1 for the second. With any
            other number of classes, and without binarize, targets are one-hot (n, classes).
        normalized: centre and scale the inputs; otherwise pixels are from 0 to 1.
        flat: inputs (n, d); otherwise (n, channels, height, width), as Conv2d takes them.

    Raises:
        SpecError: for an unknown data set, and for classes that overlap or that it does not have.
        UserError: where a package that reads the data set is not installed.

    Example:
        >>> recipe = images("digits", classes=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
        >>> recipe(n_train=1000, n_test=100)["X_train"].shape
        torch.Size([1000, 64])
    """
    known = _known(dataset)
    _require(dataset, known.package)
    groups = None if classes is None else _groups(classes, dataset, known.labels)
    flags = {"binarize": binarize, "normalized": normalized, "flat": flat}
    _check_values(flags, {})
    return functools.partial(_image_entries, dataset=dataset, classes=groups, **flags)


class _Images(NamedTuple):
    """What a reader returns: pixels (n, channels, height, width) from 0 to 1, labels (n,)."""

    train_pixels: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_pixels: NDArray[np.float32]
    test_labels: NDArray[np.int64]


class _Reader(NamedTuple):
    """How to get at a data set."""

    read: Callable[[], _Images]
    labels: range
    package: str


def _digits() -> _Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # A RandomState's stream is frozen for good, so the split is the same under every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    pixels = (bunch.images[order, None] / 16).astype(np.float32)
    labels = bunch.target[order].astype(np.int64)
    quarter = len(labels) // 4
    return _Images(pixels[quarter:], labels[quarter:], pixels[:quarter], labels[:quarter])


_READERS = {"digits": _Reader(_digits, labels=range(10), package="sklearn")}

#: The packages that readers import, and how they are called where one installs them.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def _image_entries(
    dataset: str,
    classes: Sequence[Sequence[int]] | None,
    binarize: bool,
    normalized: bool,
    flat: bool,
    n_train: int,
    n_test: int,
) -> dict[str, Tensor]:
    known = _known(dataset)
    _require(dataset, known.package)
    flags = {"binarize": binarize, "normalized": normalized, "flat": flat}
    _check_values(flags, {"n_train": n_train, "n_test": n_test})
    chosen = [[label] for label in known.labels] if classes is None else classes
    groups = _groups(chosen, dataset, known.labels)
    data = known.read()
    X_train, y_train = _chosen(data.train_pixels, data.train_labels, groups, n_train)
    X_test, y_test = _chosen(data.test_pixels, data.test_labels, groups, n_test)
    if normalized:
        X_train, X_test = _normalized(X_train, X_test)
    if flat:
        X_train, X_test = (X.reshape(len(X), -1) for X in (X_train, X_test))
    return {
        "X_train": torch.from_numpy(X_train),
        "y_train": _targets(y_train, len(groups), binarize),
        "X_test": torch.from_numpy(X_test),
        "y_test": _targets(y_test, len(groups), binarize),
    }


def _chosen(
    pixels: NDArray[np.float32], labels: NDArray[np.int64], groups: list[list[int]], rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return at most so many images of the groups, and for each the number of its group."""
    group_of = np.full(int(labels.max()) + 1, -1)
    for number, group in enumerate(groups):
        group_of[group] = number
    numbers = group_of[labels]
    places = np.flatnonzero(numbers >= 0)[:rows]
    return pixels[places], numbers[places]


def _normalized(
    X_train: NDArray[np.float32], X_test: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean = X_train.mean(axis=0, dtype=np.float64)
    # The mean over rows of the squared norm by d is the mean over all entries.
    scale = np.sqrt(np.mean((X_train - mean) ** 2))
    if scale == 0:
        raise SpecError(
            f"images: the {len(X_train)} training images are all the same, so they cannot be "
            "normalized; try a larger N_TRAIN, or normalized=False"
        )
    train, test = ((X - mean) / scale for X in (X_train, X_test))
    return train.astype(np.float32), test.astype(np.float32)


def _targets(numbers: NDArray[np.int64], groups: int, binarize: bool) -> Tensor:
    if groups == 2 and binarize:
        return torch.from_numpy((2 * numbers - 1).astype(np.float32))
    return torch.from_numpy(np.eye(groups, dtype=np.float32)[numbers])


def _check_values(flags: dict[str, Any], counts: dict[str, Any]) -> None:
    mistakes = [
        f"images: got {name}={flag!r}; valid are True and False"
        for name, flag in flags.items()
        if not isinstance(flag, (bool, np.bool_))
    ]
    mistakes += [
        f"images: got {name}={count!r}; valid is an integer >= 1"
        for name, count in counts.items()
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1
    ]
    if mistakes:
        raise SpecError(mistakes)


def _known(dataset: Any) -> _Reader:
    if not isinstance(dataset, str) or dataset not in _READERS:
        raise SpecError(
            f"images: no data set {dataset!r}{did_you_mean(str(dataset), _READERS)}; "
            f"valid are {', '.join(map(repr, _READERS))}"
        )
    return _READERS[dataset]


def _require(dataset: str, package: str) -> None:
    # Asked at launch too, not after hours in the queue; looking for a package does not import it.
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"the data set {dataset!r} needs {_DISTRIBUTIONS[package]}; "
            "try: pip install 'mlpsubmit[images]'"
        )


def _groups(classes: Any, dataset: str, labels: range) -> list[list[int]]:
    """Return the classes as lists of ints, two or more, all of them labels and none twice."""
    example = f"try classes=[[{labels[0]}], [{labels[1]}]]"
    try:
        groups = [[operator.index(label) for label in group] for group in classes]
    except TypeError:
        raise SpecError(
            f"images: got classes={classes!r}; valid are groups of labels; {example}"
        ) from None
    everything = [label for group in groups for label in group]
    mistakes = []
    if len(groups) < 2 or not all(groups):
        mistakes.append("there should be two groups or more, none of them empty")
    if unknown := sorted(set(everything) - set(labels)):
        mistakes.append(f"{dataset!r} has no label {', '.join(map(str, unknown))}")
    if twice := sorted({label for label in everything if everything.count(label) > 1}):
        mistakes.append(f"label {', '.join(map(str, twice))} stands more than once")
    if mistakes:
        raise SpecError(
            f"images: got classes={classes!r}; {'; '.join(mistakes)}; valid labels are "
            f"{labels[0]} to {labels[-1]}; {example}"
        )
    return groups
