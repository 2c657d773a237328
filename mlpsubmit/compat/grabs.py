"""MLPscape's ``build_other_grabs``: grabs by the names of functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mlpsubmit.arguments import declared
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.grabs.lookup import by_name, grab_names
from mlpsubmit.grabs.matrices import diagonal
from mlpsubmit.grabs.named_grabs import matrix_choice, named_grab

__all__ = ["build_other_grabs", "get_W_gram", "get_W_ii"]

#: Keys of ``other_model_gram`` that choose the matrix; any other key is an argument.
_MATRIX_KEYS = ("source", "concat_outside", "use_raw", "call_with_model")


def get_W_ii(W: Tensor, i: int | None = None, monomial: Mapping[int, int] | None = None) -> Tensor:
    """Return one diagonal entry of a square matrix W, or those at the indices of a monomial.

    Args:
        W: (m, m), a Gram matrix unless the script chooses otherwise.
        i: index of the entry.
        monomial: without i, the monomial with the indices, in ascending order.

    Returns:
        A scalar, or a tensor (number of indices,).

    Raises:
        SpecError: if neither is given, or W has no such entry.

    Example:
        >>> get_W_ii(torch.diag(torch.tensor([1.0, 2.0, 3.0])), monomial={0: 1, 2: 2})
        tensor([1., 3.])
    """
    if i is None and monomial is None:
        raise SpecError(
            "get_W_ii: needs i or monomial; give it in other_model_kwargs, as in "
            '{"alias": {"i": 0}}, or as an iterator'
        )
    return diagonal(W, monomial) if i is None else diagonal(W, {int(i): 1})[0]


def get_W_gram(W: Tensor) -> Tensor:
    """Return the Gram matrix of the weights; in MLPscape it is the Gram matrix of that.

    Example:
        >>> get_W_gram(torch.eye(2)).shape
        torch.Size([2, 2])
    """
    return W.clone()


#: MLPscape's functions: a function, or the name of one in :mod:`mlpsubmit.grabs`.
_NAMED: dict[str, str | Callable[..., Any]] = {
    "get_W_ii": get_W_ii,
    "get_W_trace": "trace",
    "get_W_gram": get_W_gram,
    "get_Win": "readin_weight",
    "get_Wout": "readout_weight",
    "empirical_ntk": "empirical_ntk",
    "empirical_ntk_trace": "empirical_ntk_trace",
}


def build_other_grabs(
    spec: Mapping[str, str | Callable[..., Any]],
    *,
    default_source: str = "in",
    concat_outside: bool | str = True,
    per_alias_gram: Mapping[str, Mapping[str, Any]] | None = None,
    per_alias_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Callable[..., Any]]:
    """Return grabs by alias, for ``otherreturns``.

    A function measures a Gram matrix of a layer's weight W (outputs, inputs) if it takes a matrix,
    else the model.

    Args:
        spec: {alias: name of a function of MLPscape or of mlpsubmit.grabs, or a function}.
        default_source: the layer: "in" the first, "out" the last.
        concat_outside: True for the Gram matrix W^T W, (inputs, inputs), False for W W^T.
        per_alias_gram: {alias: its own choices}: ``source``, ``concat_outside``, ``use_raw`` (W
            itself), ``call_with_model`` (the model), and other arguments of the function.
        per_alias_kwargs: {alias: arguments of the function}.

    Raises:
        SpecError: listing every alias that is not in spec, every unknown function and every bad
            choice.

    Example:
        >>> build_other_grabs({"trace": "get_W_trace"})["trace"](model=nn.Linear(3, 5)).shape
        torch.Size([])
    """
    gram, arguments = per_alias_gram or {}, per_alias_kwargs or {}
    errors = [
        f"{argument}: no grab is called {alias!r}{did_you_mean(str(alias), spec)}"
        for argument, given in (("per_alias_gram", gram), ("per_alias_kwargs", arguments))
        for alias in given
        if alias not in spec
    ]
    default = {"source": default_source, "concat_outside": concat_outside}
    grabs = {}
    for alias, function in spec.items():
        choice = {**default, **gram.get(alias, {})}
        try:
            grabs[alias] = _built(function, choice, dict(arguments.get(alias, {})))
        except SpecError as error:
            errors += [f"grab {alias!r}: {message}" for message in error.errors]
    if errors:
        raise SpecError(errors)
    return grabs


def _built(
    function: str | Callable[..., Any], choice: dict[str, Any], arguments: dict[str, Any]
) -> Callable[..., Any]:
    if (mode := choice.pop("input_mode", None)) is not None:  # MLPscape's other name for use_raw
        choice.setdefault("use_raw", mode == "raw")
    arguments = {**{k: v for k, v in choice.items() if k not in _MATRIX_KEYS}, **arguments}
    chosen = matrix_choice({k: v for k, v in choice.items() if k in _MATRIX_KEYS})
    found = function if callable(function) else _found(function)
    takes = declared(found)
    if "model" in takes and "W" not in takes:
        chosen["matrix"] = None
    if found is get_W_gram:
        chosen["matrix"] = "gram"
    return named_grab(found, arguments=arguments, **chosen)


def _found(name: Any) -> Callable[..., Any]:
    known: str | Callable[..., Any] = _NAMED.get(str(name), name)
    if callable(known):
        return known
    names = sorted({*_NAMED, *grab_names()} - {"by_name"})
    if known not in names:
        raise SpecError(
            f"no function named {name!r}{did_you_mean(str(name), names)}; valid are "
            f"{', '.join(names)}, or a function of your own"
        )
    return by_name(known)
