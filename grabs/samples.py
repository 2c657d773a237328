"""Which samples grabs measure: the first rows of a batch, or the test set."""

from __future__ import annotations

from torch import Tensor

from mlpsubmit.batchfns.validation import is_integer
from mlpsubmit.errors import SpecError

__all__ = ["check_test_set", "first_rows"]


def first_rows(grab: str, X: Tensor, rows: int | None) -> Tensor:
    """Return the first rows of a batch, or all where ``rows`` is None or more than there are.

    Raises:
        SpecError: in the name of the grab, for what is no number of rows.
    """
    if rows is None:
        return X
    if not is_integer(rows, 1):
        raise SpecError(f"{grab}: got rows={rows!r}; valid are an integer >= 1, or None for all")
    return X[: int(rows)]


def check_test_set(grab: str, X_te: Tensor | None) -> None:
    """Refuse to measure on a test set that is not there: a sweep always has one.

    Raises:
        SpecError: in the name of the grab.
    """
    if X_te is None:
        raise SpecError(
            f"{grab}: there is no test set; where train is called directly, give it test_fns"
        )
