"""Errors for functions of the library in the wrong argument of a spec, with the right one."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection
from typing import Any

from mlpsubmit.arguments import declared, function_name

__all__ = ["hints"]

#: The package of the library's recipes and batch functions.
_LIBRARY = "mlpsubmit.batchfns"


def hints(
    batchfn: Callable[..., Any] | None, data: Callable[..., Any] | None, given: Collection[str]
) -> list[str]:
    """Return an error for each function of the library that is given in the wrong argument.

    Args:
        given: the names of the other settings of the spec.
    """
    checks = (_data_hint(data), _batchfn_hint(batchfn, data is not None, given))
    return [error for error in checks if error]


def _data_hint(data: Callable[..., Any] | None) -> str | None:
    if data is None or not _is_plain(data):
        return None
    name = function_name(data)
    if "bsz" in declared(data):
        return f"data: got the batch function {name}; write batchfn={name}"
    return f"data: got the function {name} itself; call it: data={name}(...)"


def _batchfn_hint(
    batchfn: Callable[..., Any] | None, has_data: bool, given: Collection[str]
) -> str | None:
    if batchfn is None:
        return None
    name = function_name(batchfn)
    if _is_recipe(batchfn):
        return (
            f"batchfn: got the data recipe {name}(...); write it as data=, with a batch function "
            "that takes its entries, such as batchfn=sample"
        )
    if not _is_plain(batchfn):
        return None
    if "bsz" not in declared(batchfn):
        return (
            f"batchfn: got the function {name} itself; call it, if it returns a batch function or "
            f"a data recipe: batchfn={name}(...) or data={name}(...)"
        )
    if name == "sample" and not has_data and "X_train" not in given:
        return (
            "batchfn: sample draws rows of data entries, and there is no data=; write for example "
            "data=images('digits'), or batchfn=arrays(X, y) instead"
        )
    if name == "polynomial" and not has_data and "data_eigvals" not in given:
        return (
            "batchfn: polynomial needs the spectrum of its inputs, and there is no data=; write "
            "for example data=power_law(d=200, alpha=2.0)"
        )
    return None


def _is_plain(function: Any) -> bool:
    """Return whether this is a function of the library itself, not the result of calling one."""
    plain = isinstance(function, types.FunctionType)
    return plain and function.__module__.startswith(_LIBRARY)


def _is_recipe(function: Any) -> bool:
    return hasattr(getattr(function, "func", None), "check")
