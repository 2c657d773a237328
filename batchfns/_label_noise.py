"""Noise in the targets of the training rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.batchfns.class_targets import classes_of
from mlpsubmit.batchfns.derived import Entries, as_entry, chosen_rows, derived, draws, rows_of
from mlpsubmit.batchfns.recipe import recipe
from mlpsubmit.batchfns.validation import check_amount
from mlpsubmit.errors import SpecError

__all__ = ["label_noise"]

_KINDS = ("flip", "random", "shuffle", "gaussian")


def label_noise(
    source: Any,
    noise: float | None = None,
    noise_kind: str | None = None,
    per_trial: bool = False,
) -> functools.partial[Entries]:
    """Return a data recipe that adds noise to the training targets of another one.

    The test set stays as it is. The rows with noise for a smaller ``noise`` are among those for a
    larger one, with the same labels except for "shuffle", and the noise of "gaussian" is one draw
    times ``noise``: along an axis of ``noise`` only its amount changes. It follows from SEED.

    Besides y_train, with the noise, the entries have ``y_clean``, the targets without it, and
    ``noisy`` (n,), bool, the rows whose targets differ: a grab that declares them can measure what
    is memorized.

    Args:
        source: a data recipe such as ``images("mnist")``, ``arrays(X, y)``, ``held_out(...)``, or
            a function that returns X_train and y_train.
        noise: the fraction of the rows that get noise, from 0 to 1; for "gaussian" the standard
            deviation, >= 0. If omitted, it must come from an axis or from ``datasethps``.
        noise_kind: "flip" (the default): another class, uniformly; of two classes, such as -1 and
            +1, the other one. "random": any class, uniformly, so that 1/C of these rows keep theirs
            (Zhang et al., arXiv 1611.03530). "shuffle": the labels of these rows in random order,
            which leaves the class frequencies as they are. "gaussian": y + noise * N(0, 1), for
            regression.
        per_trial: whether every trial has noise of its own. By default all trials have the same;
            otherwise the data are computed once per trial.

    Raises:
        SpecError: listing every bad value; for targets that are no classes, but for "gaussian".

    Example:
        >>> sweep = Sweep(data=label_noise(images("digits"), noise=0.2), batchfn=epochs)
        >>> clean = arrays(torch.rand(10, 2), torch.arange(10) % 2)
        >>> label_noise(clean, noise=0.3)(seed=0)["noisy"].sum()
        tensor(3)
    """
    arguments = {"noise": noise, "noise_kind": noise_kind}
    return derived(_noisy_entries, source, arguments, per_trial)


def _check(arguments: Mapping[str, Any]) -> None:
    check_amount("label_noise", "noise", _KINDS, "flip", arguments)


@recipe("label_noise", _check)
def _noisy_entries(
    entries: Entries,
    seed: int,
    noise: float,
    noise_kind: str = "flip",
    trial: int | None = None,
) -> Entries:
    _check({"noise": noise, "noise_kind": noise_kind})
    clean, given = rows_of(entries, "y_train"), entries["y_train"]

    def stream(name: str) -> np.random.Generator:
        return draws(f"label_noise {name}", seed, trial)

    if noise_kind == "gaussian":
        if clean.dtype.kind != "f":
            raise SpecError(
                f"label_noise: got noise_kind='gaussian' for targets of the dtype {clean.dtype}, "
                "which are class labels; valid are real numbers; try noise_kind='flip'"
            )
        noisy = clean + noise * stream("gaussian").standard_normal(clean.shape)
    else:
        tested = rows_of(entries, "y_test") if "y_test" in entries else None
        classes, (count, write) = classes_of("label_noise", "noise_kind='gaussian'", clean, tested)
        scores = stream("rows").random(len(classes))
        chosen = chosen_rows(noise, scores)
        uniform = stream("labels").random(len(classes))
        noisy = clean.copy()
        noisy[chosen] = write(_replaced(noise_kind, classes, count, chosen, uniform))
    changed = (noisy != clean).reshape(len(clean), -1).any(axis=1)
    return {
        **entries,
        "y_train": as_entry(noisy.astype(clean.dtype), given),
        "y_clean": as_entry(clean.copy(), given),
        "noisy": as_entry(changed, changed),
    }


def _replaced(
    kind: str,
    classes: NDArray[np.int64],
    count: int,
    chosen: NDArray[np.bool_],
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the new classes of the chosen rows.

    Args:
        classes: (n,) those of all rows.
        count: the number of classes.
        chosen: (n,) the rows with noise.
        uniform: (n,) uniform draws from [0, 1).
    """
    old, u = classes[chosen], uniform[chosen]
    if kind == "flip":
        return (old + 1 + np.floor(u * (count - 1)).astype(np.int64)) % count
    if kind == "random":
        return np.floor(u * count).astype(np.int64)
    return old[np.argsort(u, kind="stable")]
