"""What is often given in a spec in the place of something else, and what to write instead."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection
from typing import Any

from mlpsubmit.arguments import declared, function_name

__all__ = ["hints"]

#: Where the library's recipes and batch functions are at home.
_LIBRARY = "mlpsubmit.batchfns"


def hints(
    batchfn: Callable[..., Any] | None, data: Callable[..., Any] | None, given: Collection[str]
) -> list[str]:
    """Return an error for each function of the library that stands where it does not belong.

    Args:
        given: the names of the other settings of the spec.
    """
    errors = []
    if data is not None and _is_plain(data):
        name = function_name(data)
        errors.append(
            f"data: got the function {name} itself; call it: data={name}(...)"
            if "bsz" not in declared(data)
            else f"data: got the batch function {name}; write batchfn={name}"
        )
    if batchfn is None:
        return errors
    name = function_name(batchfn)
    if _is_recipe(batchfn):
        errors.append(
            f"batchfn: got the data recipe {name}(...); write it as data=, with a batch function "
            "that takes what it yields, such as batchfn=sample"
        )
    elif _is_plain(batchfn) and "bsz" not in declared(batchfn):
        errors.append(
            f"batchfn: got the function {name} itself; call it, if it makes a batch function or a "
            f"data recipe: batchfn={name}(...) or data={name}(...)"
        )
    elif _is_plain(batchfn) and name == "sample" and data is None and "X_train" not in given:
        errors.append(
            "batchfn: sample draws rows of data entries, and there is no data=; write for example "
            "data=images('digits'), or in its place batchfn=arrays(X, y)"
        )
    elif _is_plain(batchfn) and name == "polynomial" and not (data or "data_eigvals" in given):
        errors.append(
            "batchfn: polynomial needs the spectrum of its inputs, and there is no data=; write "
            "for example data=power_law(d=200, alpha=2.0)"
        )
    return errors


def _is_plain(function: Any) -> bool:
    """Tell whether this is a function of the library, and nothing made by calling one."""
    plain = isinstance(function, types.FunctionType)
    return plain and function.__module__.startswith(_LIBRARY)


def _is_recipe(function: Any) -> bool:
    return hasattr(getattr(function, "func", None), "check")
