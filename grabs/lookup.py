"""The grabs of this package by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlpsubmit import grabs
from mlpsubmit.errors import SpecError, did_you_mean

__all__ = ["by_name", "grab_names"]


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
    valid = grab_names()
    if not isinstance(name, str) or name not in valid:
        raise SpecError(
            f"no grab named {name!r}{did_you_mean(str(name), valid)}; "
            f"valid are {', '.join(valid)}, or your own function"
        )
    grab: Callable[..., Any] = getattr(grabs, name)
    return grab
