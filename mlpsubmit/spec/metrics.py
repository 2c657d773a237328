"""METRICS, METRIC_THRESHOLDS and STOP_ON: what they may hold, and how they fit together."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator

from mlpsubmit.arguments import function_name, most_by_position
from mlpsubmit.errors import did_you_mean, shown
from mlpsubmit.spec.setting_types import entries, is_finite

__all__ = [
    "BUILT_IN_METRICS",
    "Metric",
    "MetricThresholds",
    "Metrics",
    "StopOn",
    "crossing_order",
    "key_errors",
    "names_in",
    "stop_on_errors",
    "thresholds_in",
    "with_asked_for",
]


class Metric(NamedTuple):
    """A metric: what computes it, and which values of it are better.

    Attributes:
        function: ``f(output, y) -> scalar``, or the name of a built-in metric.
        better: "max" or "min".
    """

    function: str | Callable[..., Any]
    better: str


#: By name, which values are better, and the range of values.
BUILT_IN_METRICS: dict[str, tuple[str, float, float]] = {
    "accuracy": ("max", 0.0, 1.0),
    "error": ("min", 0.0, 1.0),
    "margin": ("max", -float("inf"), float("inf")),
    "r2": ("max", -float("inf"), 1.0),
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")
_NAMES = ", ".join(map(repr, BUILT_IN_METRICS))
_VALID = f"names ({_NAMES}) in a list, or a dictionary {{name: (f, 'max' or 'min')}}"


def _metrics(value: Any) -> dict[str, Metric]:
    """Return metrics by name, of a name, a list of names and dictionaries, or a dictionary."""
    if value is None:
        raise ValueError(f"should be {_VALID}")
    found: dict[str, Metric] = {}
    for entry in [value] if isinstance(value, (str, Mapping)) else entries(value):
        if isinstance(entry, str):
            pairs: Iterable[tuple[Any, Any]] = [(entry, entry)]
        elif isinstance(entry, Mapping):
            pairs = entry.items()
        else:
            raise ValueError(f"should be {_VALID}; {shown(entry)} is neither")
        for name, given in pairs:
            if name in found:
                raise ValueError(f"should have each name once; {name!r} is there twice")
            found[name] = _metric(name, given)
    return found


def _metric(name: Any, given: Any) -> Metric:
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or name == "loss":
        raise ValueError(
            f"should have names of letters, digits and '_', and not 'loss'; got {name!r:.80}"
        )
    function, *direction = given if isinstance(given, (tuple, list)) else (given,)
    if isinstance(function, str):
        if function not in BUILT_IN_METRICS:
            hint = did_you_mean(function, BUILT_IN_METRICS)
            raise ValueError(f"should be {_VALID}; there is no metric {function!r:.80}{hint}")
        better = BUILT_IN_METRICS[function][0]
        if direction not in ([], [better]):
            raise ValueError(f"should have {better!r} as the direction of {function!r}")
        return Metric(function, better)
    if not callable(function) or direction not in (["max"], ["min"]):
        raise ValueError(
            f"should have a function and its direction for {name!r}: ({name}, 'max') where larger "
            f"is better, else ({name}, 'min'); got {shown(given)}"
        )
    if (most := most_by_position(function)) < 2:
        raise ValueError(
            f"should have functions that are called as f(output, y); {function_name(function)} "
            f"takes {most} of its arguments by position"
        )
    if needed := _further_needed(function):
        raise ValueError(
            f"should have functions of output and y alone; {function_name(function)} also needs "
            f"{', '.join(needed)}; try functools.partial, or defaults"
        )
    return Metric(function, direction[0])


def _further_needed(function: Callable[..., Any]) -> list[str]:
    """Return the arguments without a default after the first two; none where it is not known."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    by_position = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return [
        p.name
        for p in parameters
        if p not in by_position[:2] and p.default is p.empty and p.kind not in kinds
    ]


def _metric_thresholds(value: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, Mapping):
        raise ValueError(
            "should be a dictionary of thresholds by name, such as {'test_accuracy': [0.9, 0.99]}"
        )
    return {key: _thresholds_of(key, given) for key, given in value.items()}


def _thresholds_of(key: Any, given: Any) -> tuple[float, ...]:
    thresholds = entries(given)
    if not thresholds or not all(map(is_finite, thresholds)):
        raise ValueError(f"should have one finite number or more for {key!r}; got {shown(given)}")
    return tuple(sorted({float(threshold) for threshold in thresholds}))


def _stop_on(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("should be 'train_loss', a name in METRIC_THRESHOLDS, or None")


Metrics = Annotated[dict[str, Metric], PlainValidator(_metrics)]
MetricThresholds = Annotated[dict[str, tuple[float, ...]], PlainValidator(_metric_thresholds)]
StopOn = Annotated[str | None, PlainValidator(_stop_on)]


def with_asked_for(metrics: Mapping[str, Metric], thresholds: Iterable[str]) -> dict[str, Metric]:
    """Return metrics with the built-in ones that a key of METRIC_THRESHOLDS asks for."""
    names = [str(key).partition("_")[2] for key in thresholds]
    asked = {name: _metric(name, name) for name in names if name in BUILT_IN_METRICS}
    return {**metrics, **{name: own for name, own in asked.items() if name not in metrics}}


def crossing_order(
    metrics: Mapping[str, Metric], key: str, thresholds: tuple[float, ...]
) -> tuple[float, ...]:
    """Return thresholds in the order in which a metric that becomes better crosses them."""
    name = key.partition("_")[2]
    better = metrics[name].better if name in metrics else "min"  # of a loss
    return tuple(sorted(thresholds, reverse=better == "min"))


def names_in(metrics: Any) -> dict[str, Metric]:
    """Return the metrics of METRICS with bad ones among them, of which only the names are known."""
    found: dict[str, Metric] = {}
    for entry in [metrics] if isinstance(metrics, (str, Mapping)) else entries(metrics):
        for name, given in entry.items() if isinstance(entry, Mapping) else [(entry, entry)]:
            try:
                found[name] = _metric(name, given)
            except (TypeError, ValueError):
                found.update({name: Metric("", "min")} if isinstance(name, str) else {})
    return found


def thresholds_in(metric_thresholds: Any) -> dict[str, tuple[float, ...]]:
    """Return the thresholds of METRIC_THRESHOLDS with bad ones, for which there are none.

    Raises:
        ValueError: if it is no dictionary.
    """
    if not isinstance(metric_thresholds, Mapping):
        raise ValueError
    found: dict[str, tuple[float, ...]] = {}
    for key, given in metric_thresholds.items():
        found[key] = ()
        with contextlib.suppress(ValueError):
            found[key] = _thresholds_of(key, given)
    return found


def key_errors(
    metrics: Mapping[str, Metric], metric_thresholds: Mapping[str, tuple[float, ...]]
) -> list[str]:
    """Return an error for each key and threshold that is none of a metric."""
    known = with_asked_for(metrics, metric_thresholds)
    return [error for key, own in metric_thresholds.items() for error in _errors(key, own, known)]


def stop_on_errors(
    stop_on: str | None, metric_thresholds: Mapping[str, tuple[float, ...]]
) -> list[str]:
    """Return an error where STOP_ON is a quantity without thresholds."""
    if stop_on in (None, "train_loss", *metric_thresholds):
        return []
    keys = ", ".join(map(repr, metric_thresholds)) or (
        "none; try METRIC_THRESHOLDS={'test_accuracy': [0.9]}"
    )
    hint = did_you_mean(str(stop_on), {"train_loss", *map(str, metric_thresholds)})
    return [
        f"STOP_ON: got {stop_on!r:.80}; should be 'train_loss', None, or a name in "
        f"METRIC_THRESHOLDS{hint}; there are {keys}"
    ]


def _errors(key: Any, values: tuple[float, ...], known: Mapping[str, Metric]) -> list[str]:
    if key == "train_loss":
        return [
            "METRIC_THRESHOLDS: got 'train_loss'; its thresholds are LOSS_CHECKPOINTS, or "
            "PERCENT_THRESHOLDS"
        ]
    which, _, name = str(key).partition("_")
    if key == "test_loss":
        low, high, range_text = 0.0, float("inf"), "> 0"
        wrong = [value for value in values if value <= low]
    elif which in ("train", "test") and name in known:
        function = known[name].function
        kind = BUILT_IN_METRICS.get(function) if isinstance(function, str) else None
        low, high = kind[1:] if kind else (-float("inf"), float("inf"))
        range_text = f"from {low:g} to {high:g}" if low > -float("inf") else f"at most {high:g}"
        wrong = [value for value in values if not low <= value <= high]
    else:
        names = dict.fromkeys([*known, *BUILT_IN_METRICS])
        valid = ["test_loss", *(f"{one}_{name}" for one in ("train", "test") for name in names)]
        return [
            f"METRIC_THRESHOLDS: got {key!r:.80}{did_you_mean(str(key), valid)}; valid are "
            f"{', '.join(map(repr, valid))}; a metric of your own belongs in METRICS"
        ]
    return [
        f"METRIC_THRESHOLDS: got {key!r}: {value:g}; values of it are {range_text}"
        + (f"; try {value / 100:g}" if high == 1 and low == 0 and 1 < value <= 100 else "")
        for value in wrong
    ]
