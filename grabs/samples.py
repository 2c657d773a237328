"""The samples that grabs measure on: the first rows of a batch, or the test set."""

from __future__ import annotations

from torch import Tensor

from mlpsubmit.batchfns.validation import check_arguments
from mlpsubmit.errors import SpecError

__all__ = ["check_test_set", "first_rows"]


def first_rows(grab: str, X: Tensor, rows: int | None) -> Tensor:
    """Return the first rows of a batch, or all if ``rows`` is None or larger than the batch.

    Raises:
        SpecError: naming the grab, if ``rows`` is not an integer >= 1.
    """
    check_arguments(grab, {"rows": rows})
    return X[:rows]


def check_test_set(grab: str, X_te: Tensor | None) -> None:
    """Raise an error if there is no test set; a sweep always has one.

    Raises:
        SpecError: naming the grab.
    """
    if X_te is None:
        raise SpecError(
            f"{grab}: there is no test set; if train is called directly, give it test_fns"
        )
