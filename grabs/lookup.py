"""The grabs of this package by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlpsubmit import grabs
from mlpsubmit.errors import SpecError, did_you_mean, shown, uncalled

__all__ = ["by_name", "grab_names"]

#: The names that MLPscape's grabs have here.
_MLPSCAPE = {
    "get_W_trace": "trace",
    "get_W_ii": "entry",
    "get_W_gram": "weight_gram",
    "get_Win": "readin_weight",
    "get_Wout": "readout_weight",
}


def grab_names() -> list[str]:
    """Return the names of all grabs of this package, sorted."""
    return sorted(set(dir(grabs)) - {"by_name", "grab", "on_test_set"})


def by_name(name: str) -> Callable[..., Any]:
    """Return the grab of this package with a given name.

    Raises:
        SpecError: if there is none, listing the valid names.

    Example:
        >>> by_name("readin_gram_trace") is readin_gram_trace
        True
    """
    if not isinstance(name, str):
        hint = uncalled(name, "sharpness")
        raise SpecError(f"got {shown(name)}; should be a function, or the name of a grab{hint}")
    valid = grab_names()
    if name not in valid:
        ours = _MLPSCAPE.get(name)
        hint = f" (here it is {ours!r})" if ours else did_you_mean(name, valid)
        raise SpecError(
            f"no grab named {name!r}{hint}; valid are {', '.join(valid)}, or your own function"
        )
    grab: Callable[..., Any] = getattr(grabs, name)
    return grab
