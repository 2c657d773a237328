"""A test set of rows that are held out of the training rows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.batchfns.class_targets import classes_of
from mlpsubmit.batchfns.derived import Entries, derived, draws, rows_of
from mlpsubmit.batchfns.recipe import recipe
from mlpsubmit.batchfns.validation import check_arguments
from mlpsubmit.errors import SpecError

__all__ = ["held_out"]

#: Entries with a row per training sample.
_PER_ROW = ("X_train", "y_train", "y_clean", "noisy")


def held_out(
    source: Any,
    test_size: float | None = None,
    stratified: bool | None = None,
    per_trial: bool = False,
) -> functools.partial[Entries]:
    """Return a data recipe that holds out some training rows of another one as the test set.

    A test set that the source has is not used: the rows held out take its place, so that settings
    can be chosen without it. Rows keep their order. The rows of a smaller test_size are among those
    of a larger one. ``N_TRAIN`` rows are read, where the source takes it, and then split.

    Args:
        source: a data recipe such as ``images("mnist")``, ``arrays(X, y)``, ``from_dataset(...)``,
            or a function that returns X_train and y_train.
        test_size: how many rows are held out: a fraction between 0 and 1, or a count. If omitted,
            it must come from an axis or from ``datasethps``.
        stratified: whether each class has the same share of both sets, to one row; by default
            False. Targets are then class numbers, one-hot, or two values such as -1 and +1.
        per_trial: whether every trial has a split of its own. By default one split, which follows
            from SEED, is that of all trials; otherwise the data are computed once per trial.

    Returns:
        the recipe of the entries X_train, y_train, X_test and y_test.

    Raises:
        SpecError: listing every bad value; where no row is left in one of the sets, or targets are
            not classes and stratified is True.

    Example:
        >>> sweep = Sweep(data=held_out(images("digits"), test_size=0.2), batchfn=sample)
        >>> entries = held_out(arrays(torch.rand(10, 2), torch.rand(10)), test_size=3)(seed=0)
        >>> {name: len(rows) for name, rows in entries.items()}
        {'X_train': 7, 'y_train': 7, 'X_test': 3, 'y_test': 3}
    """
    arguments = {"test_size": test_size, "stratified": stratified}
    return derived(_held_out_entries, source, arguments, per_trial)


@recipe("held_out")
def _held_out_entries(
    entries: Entries,
    seed: int,
    test_size: float,
    stratified: bool = False,
    trial: int | None = None,
) -> Entries:
    check_arguments("held_out", {"test_size": test_size, "stratified": stratified})
    n = len(entries["X_train"])
    count = round(test_size * n) if test_size < 1 else int(test_size)
    if not 0 < count < n:
        raise SpecError(
            f"held_out: test_size={test_size!r} of {n} rows leaves {n - count} for training and "
            f"{count} for the test; there should be some of both"
        )
    scores = draws("held_out", seed, trial).random(n)
    if stratified:
        classes, _ = classes_of("held_out", "stratified=False", rows_of(entries, "y_train"))
        scores = _stratified(scores, classes)
    order = np.argsort(scores, kind="stable")
    test, train = np.sort(order[:count]), np.sort(order[count:])
    kept = {name: entries[name][train] for name in _PER_ROW if name in entries}
    tested = {"X_test": entries["X_train"][test], "y_test": entries["y_train"][test]}
    return {**entries, **kept, **tested}


def _stratified(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return scores (n,) whose lowest m have the share of each class among all n, to one row.

    Of a class of c rows, the one with the k-th lowest score (from 0) gets (k + 1/2) / c; the score
    itself decides between equal ones.
    """
    order = np.lexsort((scores, classes))
    sizes = np.bincount(classes)
    starts = np.cumsum(sizes) - sizes
    places = np.empty(len(scores))
    of_class = classes[order]
    places[order] = (np.arange(len(scores)) - starts[of_class] + 0.5) / sizes[of_class]
    ranks = np.empty(len(scores))
    ranks[np.lexsort((scores, places))] = np.arange(len(scores))
    return ranks
