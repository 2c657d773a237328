"""Settings that have to fit together: one rule for each group, with its errors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import shown
from mlpsubmit.spec.metrics import key_errors, names_in, stop_on_errors, thresholds_in
from mlpsubmit.spec.optimizer_settings import OPTIMIZER_DEFAULTS, default_of, kwargs_errors

__all__ = [
    "NOT_USED_BY_ALL",
    "RULES",
    "Rule",
    "untraced",
    "untraced_errors",
    "unused",
    "unused_errors",
]

#: By the name of a setting that not all use, the optimizers or schedules that do.
_USERS = {"lr_final_factor": ("linear", "cosine")} | {
    name: tuple(optimizer for optimizer, own in OPTIMIZER_DEFAULTS.items() if name in own)
    for name in dict.fromkeys(name for own in OPTIMIZER_DEFAULTS.values() for name in own)
}

#: Settings that have no effect with some optimizers or schedules.
NOT_USED_BY_ALL = frozenset(_USERS)


@dataclass(frozen=True)
class Rule:
    """What some settings have to fulfil together.

    Attributes:
        check: returns the errors; it takes the settings by name.
        stand_ins: by name, what takes the place of a value that is bad by itself, so that the
            errors of the others are found with it; ValueError where there is none.
    """

    check: Callable[..., list[str]]
    stand_ins: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The names of the settings."""
        return tuple(inspect.signature(self.check).parameters)

    def errors(self, values: Mapping[str, Any], bad: Mapping[str, Any]) -> list[str]:
        """Return the errors of settings.

        Args:
            values: by name, those that are valid by themselves.
            bad: all others, as the user gave them.
        """
        taken = {}
        for name in self.reads:
            if name not in bad:
                taken[name] = values[name]
                continue
            try:
                taken[name] = self.stand_ins[name](bad[name])
            except (KeyError, ValueError):
                return []
        return self.check(**taken)


def _threshold_errors(loss_checkpoints: Any, percent_thresholds: Any) -> list[str]:
    if (loss_checkpoints is None) != (percent_thresholds is None):
        return []
    count = "neither" if loss_checkpoints is None else "both"
    return [
        f"got {count} of LOSS_CHECKPOINTS and PERCENT_THRESHOLDS; set exactly one of the "
        "two (an empty list where no threshold is wanted)"
    ]


def _nesterov_errors(nesterov: Any, momentum: Any, optimizer: Any) -> list[str]:
    if nesterov and (default_of(optimizer, "momentum") if momentum is None else momentum) == 0:
        return ["NESTEROV needs MOMENTUM > 0; got MOMENTUM=0"]
    return []


def _warmup_errors(lr_schedule: Any, warmup_steps: int, max_iter: int) -> list[str]:
    if _has_final_factor(lr_schedule) and warmup_steps >= max_iter:
        return [
            f"WARMUP_STEPS={warmup_steps} leaves no step of MAX_ITER={max_iter} for "
            f"LR_SCHEDULE={lr_schedule!r}; set WARMUP_STEPS below MAX_ITER, or "
            "LR_SCHEDULE='constant'"
        ]
    if warmup_steps > max_iter:  # where they are equal, the last step reaches LR: a range test
        return [
            f"WARMUP_STEPS={warmup_steps} is more than MAX_ITER={max_iter}, so no step reaches LR; "
            "set WARMUP_STEPS to MAX_ITER at most"
        ]
    return []


def _test_set_errors(
    n_test: int, eval_every: Any, metric_thresholds: Mapping[str, Any]
) -> list[str]:
    asking = [] if eval_every is None else [f"EVAL_EVERY={eval_every!r}"]
    asking += [
        f"METRIC_THRESHOLDS of {key}" for key in metric_thresholds if str(key).startswith("test_")
    ]
    if n_test > 0 or not asking:
        return []
    return [
        f"N_TEST: got 0, which is no test set, with {' and '.join(asking)}; leave out what "
        "is to be evaluated, or set N_TEST"
    ]


def _given(_: Any) -> tuple[float, ...]:
    return ()  # thresholds, whichever: they are not None


def _with_momentum(_: Any) -> str:
    return "muon"  # has one by default, as the optimizer that was meant may


RULES = (
    Rule(_threshold_errors, {"loss_checkpoints": _given, "percent_thresholds": _given}),
    Rule(_nesterov_errors, {"optimizer": _with_momentum}),
    Rule(_warmup_errors),
    Rule(_test_set_errors, {"metric_thresholds": thresholds_in}),
    Rule(key_errors, {"metrics": names_in, "metric_thresholds": thresholds_in}),
    Rule(stop_on_errors, {"metric_thresholds": thresholds_in}),
    Rule(kwargs_errors),
)


def unused(optimizers: Sequence[Any], lr_schedules: Sequence[Any]) -> frozenset[str]:
    """Return the settings that none of some optimizers and schedules uses.

    Args:
        optimizers: values of OPTIMIZER; of none, any setting may be used. So with lr_schedules.
    """
    names: set[str] = set()
    if lr_schedules and not any(map(_has_final_factor, lr_schedules)):
        names.add("lr_final_factor")
    # A torch.optim class may use any of them.
    if optimizers and all(isinstance(o, str) and o in OPTIMIZER_DEFAULTS for o in optimizers):
        names |= _USERS.keys() - {"lr_final_factor"}
        names -= {name for optimizer in optimizers for name in OPTIMIZER_DEFAULTS[optimizer]}
    return frozenset(names)


def unused_errors(
    given: Mapping[str, Any], optimizers: Sequence[Any], lr_schedules: Sequence[Any]
) -> list[str]:
    """Return an error for each setting that none of some optimizers and schedules uses.

    Args:
        given: the settings that are not at their default. 0 and False ask for nothing.
    """
    errors = []
    for name in sorted(unused(optimizers, lr_schedules)):
        if given.get(name):
            of_schedule = name == "lr_final_factor"
            values = dict.fromkeys(map(_named, lr_schedules if of_schedule else optimizers))
            listed = ", ".join(values)
            setting = "LR_SCHEDULE" if of_schedule else "OPTIMIZER"
            does_not = f"{setting}={listed} does not use"
            none_does = f"none of {setting}=[{listed}] uses"
            errors.append(
                f"{name.upper()}: got {shown(given[name])}, which "
                f"{none_does if values.keys() - {listed} else does_not} "
                f"({', '.join(_USERS[name])} do); leave it out"
            )
    return errors


#: By the name of a setting of traces, what there is where the final values alone are kept.
_WITHOUT_TRACES = {
    "record_every": "the final losses alone are kept",
    "grab_every": "grabs are called once, at the end",
}


def untraced(measures: bool) -> frozenset[str]:
    """Return the settings that have no effect where the final values alone are kept.

    Args:
        measures: whether there are metrics, whose thresholds are looked at every RECORD_EVERY.
    """
    return frozenset(_WITHOUT_TRACES) - ({"record_every"} if measures else set())


def untraced_errors(given: Mapping[str, Any]) -> list[str]:
    """Return an error for each setting of traces, where ONLYTHRESHOLDS is True as nobody set it.

    Where it is written as True, the final values are asked for: so an override drops the traces of
    a spec.

    Args:
        given: those settings of :func:`untraced` that are not at their default.
    """
    return [
        f"{name.upper()}: got {shown(given[name])}, which has no effect with ONLYTHRESHOLDS=True, "
        f"the default: {_WITHOUT_TRACES[name]}; set ONLYTHRESHOLDS=False to keep traces, or leave "
        f"{name.upper()} out (it may stay where ONLYTHRESHOLDS=True is written out)"
        for name in sorted(given)
    ]


def _has_final_factor(lr_schedule: Any) -> bool:
    return isinstance(lr_schedule, str) and lr_schedule in _USERS["lr_final_factor"]


def _named(value: Any) -> str:
    return function_name(value) if callable(value) else repr(value)
