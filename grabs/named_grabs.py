"""Grabs made from functions: with fixed arguments, of a weight matrix, or on the test set.

MLPscape's ``build_other_grabs`` chooses for each alias a function, its arguments, and their object:
the model, the weight matrix of the read-in or read-out layer, or a Gram matrix of it. Here that
choice is one grab, which declares the arguments that the function still needs. A grab on the test
set likewise declares the test set in place of the training batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from mlpsubmit.arguments import call, declared, function_name, parse_bool, takes_all
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.grabs.layers import layers_of, weight_matrix
from mlpsubmit.grabs.lookup import by_name
from mlpsubmit.grabs.samples import check_test_set
from mlpsubmit.protocol import FOR_GRABS

__all__ = ["NamedGrab", "matrix_choice", "named_grab", "on_test_set"]

Matrix = Literal["gram", "raw"]

#: The arguments that a grab on the test set replaces, and what it replaces them by.
_TEST_SET = {"X_tr": "X_te", "y_tr": "y_te"}

_CHOICES = {
    "source": "'in' (the first layer) or 'out' (the last)",
    "concat_outside": "True (W^T W) or False (W W^T)",
    "use_raw": "True (W itself) or False (its Gram matrix)",
    "call_with_model": "True (the model, no matrix) or False",
}


def named_grab(
    function: str | Callable[..., Any],
    *,
    source: Literal["in", "out"] = "in",
    concat_outside: bool = True,
    matrix: Matrix | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Return a grab: a function with some arguments fixed, of the model or of a weight matrix.

    Args:
        function: the name of a grab of this package, or a function.
        source: the layer of the weight W (outputs, inputs): "in" the first, "out" the last.
        concat_outside: whether the Gram matrix is W^T W, (inputs, inputs), or else W W^T.
        matrix: "gram" passes the function a Gram matrix, "raw" W itself: as its argument ``W``, or
            else as its first one, if that has no default and the train loop does not supply it.
            None passes no matrix.
        arguments: fixed arguments, which override others of the same name.

    Returns:
        The function itself if there is no matrix and no fixed argument; else a :class:`NamedGrab`,
        which can be pickled, counts by content in a config's key, and declares the arguments of the
        function except the matrix and the fixed ones.

    Raises:
        SpecError: listing every error: an unknown grab, an argument that the function does not
            take, a function that takes no matrix.

    Example:
        >>> named_grab("trace", matrix="gram")(model=nn.Linear(3, 5)).shape
        torch.Size([])
    """
    func = function if callable(function) else by_name(function)
    fixed = arguments if arguments is not None else {}
    if not isinstance(fixed, Mapping) or not all(isinstance(name, str) for name in fixed):
        raise SpecError(f"got arguments {fixed!r}; should be a mapping of names to values")
    if matrix is None and not fixed:
        return func
    takes = declared(func)  # raises if the signature cannot be read
    argument = None if matrix is None else _matrix_argument(func)
    takes -= {argument}
    name, errors = function_name(func), list[str]()
    if matrix is not None and argument is None:
        errors.append(
            f"{name}: takes no weight matrix; give it an argument W, or let it have the model "
            "(leave it out of OTHER_MODEL_GRAM)"
        )
    if not takes_all(func):
        errors += [
            f"{name}: takes no argument {key!r}{did_you_mean(key, takes)}; it takes "
            f"{', '.join(sorted(takes)) or 'none'}"
            for key in fixed
            if key not in takes
        ]
    if errors:
        raise SpecError(errors)
    return NamedGrab(func, dict(fixed), argument, source, concat_outside, matrix)


def on_test_set(grab: str | Callable[..., Any], /, **arguments: Any) -> NamedGrab:
    """Return a grab that measures on the fixed test set instead of the training batch.

    The arguments ``X_tr`` and ``y_tr`` of the function get the test set, ``X_te`` and ``y_te``.
    In online training every step has another batch: a measurement on it has sampling noise, and
    an entry of a kernel, or a row of activations, belongs to another sample each time. On the test
    set, traces depend on the network alone, and configs with the same SEED and trial are measured
    on the same samples. It has N_TEST samples, so fix ``rows`` if a grab is expensive.

    Args:
        grab: a function with an argument ``X_tr`` (or ``**kwargs``), or the name of a grab of this
            package.
        arguments: fixed arguments, which override others of the same name.

    Returns:
        A grab that can be pickled, counts by content in a config's key, and declares the arguments
        of the function, with ``X_te`` and ``y_te`` for ``X_tr`` and ``y_tr``.

    Raises:
        SpecError: for a function that takes no X_tr, an argument that it does not take, an unknown
            grab; and, when measuring, if there is no test set.

    Example:
        >>> kernel = on_test_set(empirical_ntk, rows=2)  # in a spec: grabs={"kernel": kernel}
        >>> kernel(model=nn.Linear(2, 1), X_te=torch.eye(2))
        tensor([[2., 1.],
                [1., 2.]])
    """
    func = named_grab(grab, arguments=arguments)
    if errors := [
        f"on_test_set: got {name}={arguments[name]!r:.80}; it gives {function_name(func)} the test "
        f"set's; to measure on other samples, write a function that calls {function_name(func)}"
        for name in _TEST_SET
        if name in arguments
    ]:
        raise SpecError(errors)
    if not ("X_tr" in declared(func) or takes_all(func)):
        raise SpecError(
            f"on_test_set: {function_name(func)} takes no X_tr, so it is not measured on samples "
            "that could be replaced; use it as it is"
        )
    return NamedGrab(func, test_set=True)


def matrix_choice(value: Any) -> dict[str, Any]:
    """Return the arguments of :func:`named_grab` for a value of OTHER_MODEL_GRAM.

    Args:
        value: True for the Gram matrix W^T W of the first layer, False for the model; or
            MLPscape's mapping with the optional keys ``source`` ("in" or "out"),
            ``concat_outside`` (W^T W or W W^T), ``use_raw`` (W itself) and ``call_with_model`` (no
            matrix). Booleans may be strings, as in JSON and on command lines.

    Raises:
        SpecError: listing every invalid key and value.

    Example:
        >>> matrix_choice({"source": "out", "concat_outside": "false"})["concat_outside"]
        False
    """
    if not isinstance(value, Mapping):
        given = parse_bool(value)
        if given is None:
            raise SpecError(
                f"got {value!r}; valid are True, False, or a mapping of "
                + ", ".join(f"{key} ({valid})" for key, valid in _CHOICES.items())
            )
        return {"matrix": "gram" if given else None}
    errors = [
        f"got {key!r}{did_you_mean(str(key), _CHOICES)}; valid keys are {', '.join(_CHOICES)}"
        for key in value
        if key not in _CHOICES
    ]
    source = value.get("source", "in")
    flags = {key: parse_bool(value.get(key, key == "concat_outside")) for key in list(_CHOICES)[1:]}
    bad = [key for key, flag in flags.items() if flag is None]
    bad += ["source"] if source not in ("in", "out") else []
    errors += [f"got {key}={value[key]!r}; valid is {_CHOICES[key]}" for key in bad]
    if errors:
        raise SpecError(errors)
    matrix = "raw" if flags["use_raw"] else "gram"
    return {
        "source": source,
        "concat_outside": flags["concat_outside"],
        "matrix": None if flags["call_with_model"] else matrix,
    }


@dataclass(frozen=True, eq=False)
class NamedGrab:
    """A grab with fixed arguments, of a matrix, or on the test set.

    Attributes:
        func: the function.
        keywords: its fixed arguments (``func`` and ``keywords`` are named as in functools.partial).
        argument: the name of the argument for the matrix, if any.
        source: see :func:`named_grab`, like ``concat_outside`` and ``matrix``.
        test_set: whether it gets the test set as its training batch.
    """

    func: Callable[..., Any]
    keywords: dict[str, Any] = field(default_factory=dict)
    argument: str | None = None
    source: str = "in"
    concat_outside: bool = True
    matrix: Matrix | None = None
    test_set: bool = False

    def __call__(self, **offered: Any) -> Any:
        """Measure; the model, or the test set, must be among the offered arguments if needed."""
        given = {**offered, **self.keywords}
        if self.test_set:
            check_test_set(self.__name__, offered.get("X_te"))
            given |= {name: offered[own] for name, own in _TEST_SET.items() if own in offered}
        if self.argument is not None:
            given[self.argument] = self._matrix_of(offered["model"])
        return call(self.func, given)

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments that the function still needs, and the model if it needs a matrix.

        The training batch is renamed if the test set replaces it.
        """
        needed: dict[str, inspect.Parameter] = {}
        if self.argument is not None:
            needed["model"] = inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY)
        for parameter in _keyword_only(self.func):
            if parameter.name in {*self.keywords, self.argument}:
                continue
            name = parameter.name
            if self.test_set:
                name = _TEST_SET.get(name, name)
            # A function may declare both X_tr and X_te=None: on the test set it needs X_te.
            if name not in needed or parameter.default is parameter.empty:
                needed[name] = parameter.replace(name=name)
        return inspect.Signature(list(needed.values()))

    @property
    def __name__(self) -> str:
        """The name of the function, for messages."""
        return function_name(self.func)

    def _matrix_of(self, model: nn.Module) -> Tensor:
        W = weight_matrix(layers_of(model)[0 if self.source == "in" else -1])
        if self.matrix == "raw":
            return W.clone()
        return W.T @ W if self.concat_outside else W @ W.T


def _keyword_only(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function as those of one that is called by name."""
    return [
        p.replace(kind=p.KEYWORD_ONLY) if p.kind is p.POSITIONAL_OR_KEYWORD else p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.VAR_POSITIONAL
    ]


def _matrix_argument(function: Callable[..., Any]) -> str | None:
    """Return the argument for the matrix: W, or else a first one that nothing else supplies."""
    parameters = [p for p in _keyword_only(function) if p.kind is p.KEYWORD_ONLY]
    if any(p.name == "W" for p in parameters):
        return "W"
    first = next(iter(parameters), None)
    if first is None or first.name in FOR_GRABS or first.default is not first.empty:
        return None
    return first.name
