"""Errors for functions of the library in the wrong argument of a spec, with the right one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlpsubmit.arguments import declared, function_name, needed, parse_bool
from mlpsubmit.spec.hyperparameters import canonical_name

__all__ = ["hints", "kind_errors"]

#: The package of the library's recipes and batch functions.
_LIBRARY = "mlpsubmit.batchfns"

#: Batch functions that need data: {function: (an entry that they take, the error without it)}.
_NEEDS_DATA = {
    "sample": (
        "X_train",
        "draws rows of data entries, and there is no data=; write for example "
        "data=images('digits'), or batchfn=arrays(X, y) instead",
    ),
    "epochs": (
        "X_train",
        "draws rows of data entries, and there is no data=; write for example "
        "data=images('digits') or data=arrays(X, y)",
    ),
    "polynomial": (
        "data_eigvals",
        "needs the spectrum of its inputs, and there is no data=; write for example "
        "data=power_law(d=200, alpha=2.0)",
    ),
}


def hints(
    batchfn: Callable[..., Any] | None,
    data: Callable[..., Any] | None,
    given: Mapping[str, Any],
) -> Iterator[str]:
    """Yield an error for each function of the library that is given in the wrong argument.

    Args:
        given: the other settings of the spec, by name.
    """
    if data is not None and _is_plain(data):
        name = function_name(data)
        if "bsz" in declared(data):
            yield f"data: got the batch function {name}; write batchfn={name}"
        else:
            yield f"data: got the function {name} itself; call it: data={name}(...)"
    if batchfn is None:
        return
    name = function_name(batchfn)
    if callable(batchfn) and "step" in needed(batchfn):
        yield (
            f"batchfn: {name} takes step, which only what it returns is given: a function of the "
            "step, as in return lambda step: (X, y)"
        )
    entry, error = _NEEDS_DATA.get(name, ("", ""))
    if _is_recipe(batchfn):
        yield (
            f"batchfn: got the data recipe {name}(...); write it as data=, with a batch function "
            "that takes its entries, such as batchfn=sample"
        )
    elif not _is_plain(batchfn):
        return
    elif "bsz" not in declared(batchfn):
        yield (
            f"batchfn: got the function {name} itself; call it, if it returns a batch function or "
            f"a data recipe: batchfn={name}(...) or data={name}(...)"
        )
    elif entry and data is None and entry not in given:
        yield f"batchfn: {name} {error}"
    elif name == "epochs" and _is_offline(given):
        yield (
            "batchfn: epochs draws a minibatch of N_SAMPLES rows at every step, and ONLINE=False "
            "means one fixed set for all steps; leave ONLINE out, or write batchfn=sample"
        )


def _is_offline(given: Mapping[str, Any]) -> bool:
    values = [value for name, value in given.items() if canonical_name(name) == "online"]
    return any(parse_bool(value) is False for value in values)


def _is_plain(function: Any) -> bool:
    """Return whether this is a function of the library itself, not the result of calling one."""
    plain = isinstance(function, types.FunctionType)
    return plain and str(function.__module__).startswith(_LIBRARY)  # None of one made by exec


def _is_recipe(function: Any) -> bool:
    return hasattr(getattr(function, "func", None), "check")


def kind_errors(values: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield an error for each class in the place of a function, and each module of a factory.

    Args:
        values: of LOSS, LR_SCHEDULE and MODEL, by lower-case name.
    """
    for name, example in (("loss", "{}()"), ("lr_schedule", "a function of the step")):
        for value in values[name]:
            if isinstance(value, type):
                own = example.format(value.__name__)
                yield f"{name.upper()}: got the class {value.__name__}; should be {own}"
    nn = getattr(sys.modules.get("torch"), "nn", None)  # without it there is no module
    for value in values["model"]:
        if nn is not None and isinstance(value, nn.Module):
            yield (
                f"MODEL: got a module ({type(value).__name__}); should be a function that returns "
                "a new one each time, as every config trains its own: MODEL=lambda: "
                "nn.Linear(4, 1), or lambda: copy.deepcopy(module)"
            )
