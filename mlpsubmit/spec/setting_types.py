"""The types of settings: each parses what a user may write, and its error lists what is valid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator

from mlpsubmit.arguments import parse_bool
from mlpsubmit.errors import did_you_mean
from mlpsubmit.spec.initial_weights import FromRun, from_run

__all__ = [
    "Betas",
    "Count",
    "Devices",
    "Factors",
    "Flag",
    "Fraction",
    "InitWeights",
    "NonNegative",
    "NsCoefficients",
    "NsSteps",
    "OptionalSchedule",
    "Positive",
    "Schedule",
    "Size",
    "SizeOrNone",
    "StringKeyedDict",
    "Thresholds",
    "WeightSchedule",
    "at_most",
    "choice",
    "entries",
    "flag",
    "integer",
    "is_finite",
    "log_spaced",
    "number",
    "optional",
    "python_number",
]


def python_number(value: Any) -> Any:
    """Return a numpy or torch scalar as a Python number; any other value as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


def is_finite(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max


def _valid(parse: Callable[[Any], Any], valid: str) -> PlainValidator:
    """Return a validator that parses a value; its error lists what is valid."""

    def check(value: Any) -> Any:
        try:
            return parse(python_number(value))
        except (TypeError, ValueError):
            raise ValueError(f"should be {valid}") from None

    return PlainValidator(check)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _integral(value: Any, minimum: int) -> int:
    """Return a number as an integer; so is 1e4, which people write for large counts."""
    _require(is_finite(value) and value >= minimum and float(value).is_integer())
    return int(value)


def integer(minimum: int, *others: str | None) -> PlainValidator:
    """Return the type of an integer >= a minimum, or one of some other values."""

    def parse(value: Any) -> Any:
        other = (value is None or isinstance(value, str)) and value in others
        return value if other else _integral(value, minimum)

    valid = "".join(f" or {other!r}" for other in others)
    return _valid(parse, f"an integer >= {minimum}{valid}")


def at_most(limit: int) -> AfterValidator:
    """Return a further condition of a number: not larger than a limit."""

    def check(value: int) -> int:
        if value > limit:
            raise ValueError(f"should be at most {limit:,}")
        return value

    return AfterValidator(check)


def number(bounds: str, within: Callable[[float], bool]) -> PlainValidator:
    """Return the type of a finite number within bounds, which the text describes for errors."""

    def parse(value: Any) -> float:
        _require(is_finite(value) and within(value))
        return float(value)

    return _valid(parse, f"a finite number {bounds}")


def optional(of: Any) -> PlainValidator:
    """Return the type of a value of another type, or None."""
    (inner,) = of.__metadata__

    def check(value: Any) -> Any:
        try:
            return None if value is None else inner.func(value)
        except ValueError as error:
            raise ValueError(f"{error} or None") from None

    return PlainValidator(check)


def flag(*others: str) -> PlainValidator:
    """Return the type of a boolean in any spelling, or one of some words."""

    def parse(value: Any) -> bool | str:
        if isinstance(value, str) and value.lower() in others:
            return value.lower()
        flag = parse_bool(value)
        _require(flag is not None)
        return bool(flag)

    return _valid(parse, ", ".join([*map(repr, others), "True or False"]))


def choice(
    *names: str, other: str = "", is_other: Callable[[Any], bool] = callable
) -> PlainValidator:
    """Return the type of one of some names, in any case, or of another kind of value."""
    valid = ", ".join(repr(name) for name in names) + (f", or {other}" if other else "")

    def check(value: Any) -> Any:
        if isinstance(value, str) and value.lower() in names:
            return value.lower()
        if other and is_other(value):
            return value
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"should be one of {valid}{hint}")

    return PlainValidator(check)


def entries(value: Any) -> list[Any]:
    """Return the entries of a list, numpy's and torch's as Python numbers; one value as a list."""
    value = python_number(value)  # an array without dimensions cannot be iterated
    single = isinstance(value, (str, Mapping)) or not isinstance(value, Iterable)
    return [python_number(entry) for entry in ([value] if single else value)]


def _thresholds(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    given = entries(python_number(value))
    for entry in given:
        if not (is_finite(entry) and entry > 0):
            which = "" if entry is value else f"; {entry!r} is not"
            raise ValueError(f"should be a list of positive finite numbers{which}")
    # Descending, the order in which a falling loss crosses them.
    return tuple(sorted({float(entry) for entry in given}, reverse=True))


def log_spaced(schedule: int | str) -> int | None:
    """Return N of a schedule ``"log:N"``; None if the schedule is an interval in steps."""
    return int(schedule[4:]) if isinstance(schedule, str) else None


_MOST_LOG_SPACED = 10**6
_LOG = f"'log:N' for N log-spaced steps (N from 2 to {_MOST_LOG_SPACED:,})"


def _schedule(value: Any) -> int | str:
    if not isinstance(value, str):
        return _integral(value, 1)
    _require(value.startswith("log:") and value[4:].isdecimal() and len(value) <= 11)
    _require(2 <= int(value[4:]) <= _MOST_LOG_SPACED)
    return value


def _devices(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value.lower() == "all":
        return "all"
    indices = entries(value)
    _require(all(type(index) is int and index >= 0 for index in indices))
    _require(0 < len(indices) == len(set(indices)))
    return tuple(indices)


def _betas(value: Any) -> tuple[float, float]:
    _require(isinstance(value, (list, tuple)))
    first, second = entries(value)
    _require(all(is_finite(beta) and 0 <= beta < 1 for beta in (first, second)))
    return float(first), float(second)


def _from_run(value: Any) -> FromRun | None:
    if isinstance(value, str) and value:
        return from_run(value)
    _require(value is None or isinstance(value, FromRun))
    found: FromRun | None = value
    return found


def _ns_steps(value: Any) -> int:
    steps = _integral(value, 1)
    _require(steps < 100)
    return steps


def _ns_coefficients(value: Any) -> tuple[float, float, float]:
    _require(isinstance(value, (list, tuple)))
    a, b, c = entries(value)
    _require(all(map(is_finite, (a, b, c))))
    return float(a), float(b), float(c)


def _mapping(value: Any) -> dict[str, Any]:
    _require(isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
    return dict(value)


def _factors(value: Any) -> dict[str, float]:
    factors = {name: python_number(factor) for name, factor in _mapping(value).items()}
    _require(all(is_finite(factor) and factor >= 0 for factor in factors.values()))
    return {name: float(factor) for name, factor in factors.items()}


Flag = Annotated[bool, flag()]
Count = Annotated[int, integer(1)]
#: Of one dimension of an array. Whether that fits into the memory, its device shows.
Size = Annotated[int, integer(1), at_most(10**9)]
SizeOrNone = Annotated[int, integer(0), at_most(10**9)]
Positive = Annotated[float, number("> 0", lambda value: value > 0)]
NonNegative = Annotated[float, number(">= 0", lambda value: value >= 0)]
Fraction = Annotated[float, number(">= 0 and < 1", lambda value: 0 <= value < 1)]
Schedule = Annotated[
    int | str,
    _valid(_schedule, f"an integer >= 1, or {_LOG}"),
]
OptionalSchedule = Annotated[
    int | str | None,
    _valid(
        lambda value: None if value is None else _schedule(value),
        f"an integer >= 1, {_LOG}, or None",
    ),
]
InitWeights = Annotated[
    Any,
    _valid(_from_run, "from_run('name of a sweep', sel={...}), or None"),
]
#: Weights are kept at the end, or after the steps of a schedule.
WeightSchedule = Annotated[
    int | str | None,
    _valid(
        lambda value: value if value in (None, "final") else _schedule(value),
        f"'final', an integer >= 1, {_LOG}, or None",
    ),
]
Thresholds = Annotated[tuple[float, ...] | None, PlainValidator(_thresholds)]
Devices = Annotated[Any, _valid(_devices, "'all' or a list of distinct GPU indices such as [0, 1]")]
Betas = Annotated[
    tuple[float, float], _valid(_betas, "two numbers >= 0 and < 1, such as (0.9, 0.999)")
]
StringKeyedDict = Annotated[dict[str, Any], _valid(_mapping, "a dictionary whose keys are names")]
Factors = Annotated[
    dict[str, float],
    _valid(
        _factors,
        "a dictionary of finite factors >= 0 by patterns of parameter names, such as "
        "{'input_layer.*': 0, 'output_layer.*': 0.1}; {} leaves all as they are",
    ),
]
NsSteps = Annotated[int, _valid(_ns_steps, "an integer from 1 to 99")]
NsCoefficients = Annotated[
    tuple[float, float, float],
    _valid(_ns_coefficients, "three finite numbers, such as (3.4445, -4.775, 2.0315)"),
]
