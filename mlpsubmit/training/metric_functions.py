"""The metrics, each computed for all K configs at once, and the targets that they need.

f are the outputs, f(X) - f0(X) where CENTERED, and y the targets. A sample has one output, or
several for C classes; y then has the class of each sample, an integer, or a number per class whose
largest is that of the class: one-hot, or 1 for it and -1 for the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, UserError, unreturned
from mlpsubmit.masked import is_masked
from mlpsubmit.spec.metrics import Metric
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.guard import WriteError, version
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.seeds import global_states

__all__ = ["ByCallable", "RowStream", "StackedMetric", "stacked_metric", "wrong_targets"]

#: From outputs (K, n, ...) and targets (1 or K, n, ...) to values (K,).
StackedMetric = Callable[[Tensor, Tensor], Tensor]

#: From a row of the stack to the context in which global generators draw from a stream of its
#: config that starts anew, and continue afterwards as if nothing had been drawn.
RowStream = Callable[[int], contextlib.AbstractContextManager[None]]

#: Losses whose minimum is f = y.
_REGRESSION = ("mse", "mae", "huber")


def stacked_metric(name: str, metric: Metric, stream: RowStream) -> StackedMetric:
    """Return a metric for K configs at once.

    Args:
        name: for messages.
        metric: of a callable(output, y), each config's value is computed under ``torch.vmap`` where
            that is possible, else row by row, with y in the shape of the output where both have as
            many entries.
        stream: what a callable draws from where it draws random numbers from global generators. It
            is called row by row then.
    """
    if isinstance(metric.function, str):
        return _BUILT_IN[metric.function]
    return ByCallable(name, metric.function, stream)


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Return the share of samples whose class is predicted, (K,).

    One output: the mean of [(f > 0) = (y > 0)]. Several: the mean of [argmax f = class of y], the
    first of equal outputs. It is NaN where an output is not finite.
    """
    return _share(_right(output, y), output)


def error(output: Tensor, y: Tensor) -> Tensor:
    """Return the share of samples whose class is not predicted, 1 - accuracy, (K,)."""
    return _share(~_right(output, y), output)


def margin(output: Tensor, y: Tensor) -> Tensor:
    """Return the smallest margin of the samples, (K,).

    One output: the minimum of s f, with s = 1 where y > 0, else -1. Several: the minimum of the
    output of the right class minus the largest of the others.
    """
    K = len(output)
    if _outputs(output) == 1:
        f, t = output.reshape(K, -1), y.reshape(len(y), -1)
        return torch.where(t > 0, f, -f).amin(1)
    f = output.reshape(K, -1, output.shape[-1])
    right = torch.arange(f.shape[-1], device=f.device) == _classes(output, y).unsqueeze(-1)
    own = f.masked_fill(~right, -torch.inf).amax(-1)
    return (own - f.masked_fill(right, -torch.inf).amax(-1)).amin(1)


def r2(output: Tensor, y: Tensor) -> Tensor:
    """Return the coefficient of determination, (K,).

    1 - sum of (f - y)^2 / sum of (y - mean of y)^2, over all entries, with the mean over samples of
    each output. It is -inf, or NaN, where the targets are constant.
    """
    K, n = output.shape[:2]
    f, t = output.reshape(K, n, -1), y.reshape(len(y), n, -1)
    residual = (f - t).square().sum((1, 2))
    return 1 - residual / (t - t.mean(1, keepdim=True)).square().sum((1, 2))


_BUILT_IN: dict[str, StackedMetric] = {
    "accuracy": accuracy,
    "error": error,
    "margin": margin,
    "r2": r2,
}


def _outputs(output: Tensor) -> int:
    """Return the number of outputs of a sample."""
    return output.shape[2:].numel()


def _classes(output: Tensor, y: Tensor) -> Tensor:
    """Return the classes (1 or K, N) of the samples."""
    classes = y.reshape(len(y), *output.shape[1:]).argmax(-1) if _is_per_output(output, y) else y
    return classes.reshape(len(y), -1)


def _is_per_output(output: Tensor, y: Tensor) -> bool:
    return y[0].numel() == output[0].numel()


def _right(output: Tensor, y: Tensor) -> Tensor:
    """Return whether the class of a sample is predicted, (K, N) bool."""
    if _outputs(output) == 1:
        return (output.reshape(len(output), -1) > 0) == (y.reshape(len(y), -1) > 0)
    return output.argmax(-1).reshape(len(output), -1) == _classes(output, y)


def _share(chosen: Tensor, output: Tensor) -> Tensor:
    finite = (output * 0).reshape(len(output), -1).sum(1)  # zero, or NaN
    # As exact as the thresholds: 9 of 10 is 0.9.
    return chosen.sum(1).to(_wide(output)) / chosen.shape[1] + finite


def _wide(output: Tensor) -> torch.dtype:
    """Return float64, which Apple's devices do not have."""
    return torch.float32 if output.device.type == "mps" else torch.float64


class ByCallable:
    """A metric of the user's.

    Args:
        name: in METRICS.
        function: from the output and y of one config to a number.
        stream: what it draws from, if it draws.

    Attributes:
        draws: whether it draws from global generators; None before the first call.
    """

    def __init__(self, name: str, function: Callable[..., Any], stream: RowStream) -> None:
        self._function, self._stream, self._vectorised = function, stream, True
        self.draws: bool | None = None
        self._name = f"METRICS: {name!r}, {function_name(function)}(output, y),"
        self._shared = torch.vmap(self._one, in_dims=(0, None))
        self._stacked = torch.vmap(self._one, in_dims=(0, 0))

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the values (K,) for outputs (K, n, ...) and targets (1 or K, n, ...)."""
        if _is_per_output(output, y):  # else (n, 1) - (n,) would be (n, n)
            y = y.reshape(len(y), *output.shape[1:])
        before = (version(output), version(y))
        values = self._values(output, y)
        if (version(output), version(y)) != before:
            raise WriteError(
                f"{self._name} changes output or y in place; others read them too; try .clone(), "
                "or operations out of place"
            )
        return values

    def _values(self, output: Tensor, y: Tensor) -> Tensor:
        if self.draws is None:
            with global_state_kept():
                before = global_states(output.device)
                values = self._at_once(output, y)
                self.draws = global_states(output.device) != before
            if not self.draws:
                return values
        return self._one_by_one(output, y) if self.draws else self._at_once(output, y)

    def _at_once(self, output: Tensor, y: Tensor) -> Tensor:
        if self._vectorised and len(output) > 1:
            try:
                return self._shared(output, y[0]) if len(y) == 1 else self._stacked(output, y)
            except Exception as error:
                if isinstance(error, UserError) or ran_out_of_memory(error):
                    raise
                self._vectorised = False  # it may do what vmap cannot; or fail alone as well
        return self._one_by_one(output, y)

    def _one_by_one(self, output: Tensor, y: Tensor) -> Tensor:
        values = []
        for row, f in enumerate(output):
            with self._stream(row) if self.draws else contextlib.nullcontext():
                values.append(self._one(f, y[row % len(y)]))
        return torch.stack(values)

    def _one(self, output: Tensor, y: Tensor) -> Tensor:
        value = self._function(output, y)
        got = value
        if is_masked(value):
            raise self._refusal("a masked value", output, y, "")
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(np.asarray(value))  # a float of Python is float64
            except (TypeError, ValueError, RuntimeError):
                described = "None" if got is None else f"{type(got).__name__} {got!r:.80}"
                raise self._refusal(described, output, y, unreturned(got, "try .mean()")) from None
        if value.ndim != 0 or value.is_complex():
            described = f"shape {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
            raise self._refusal(described, output, y, "; try .mean()")
        if value.is_floating_point() and isinstance(got, Tensor):
            return value
        return value.to(output.device, _wide(output))

    def _refusal(self, got: str, output: Tensor, y: Tensor, hint: str) -> SpecError:
        return SpecError(
            f"{self._name} gave {got} for output {tuple(output.shape)} and y {tuple(y.shape)}; "
            f"valid is one real number{hint}"
        )


def wrong_targets(
    names: Sequence[str], loss: Any, output: tuple[int, ...], y: Tensor
) -> tuple[str, str] | None:
    """Return what targets y (n, ...) a built-in metric got, and what is valid; None if all fit.

    This reads values: a GPU-CPU sync point.

    Args:
        names: of built-in metrics.
        loss: LOSS.
        output: the shape of a sample's output.
    """
    per_sample, entries = y.shape[1:].numel(), torch.Size(output).numel()
    got = f"gave y of shape {tuple(y.shape)} for outputs {tuple(output)} of a sample"
    if "r2" in names and per_sample != entries:
        return got, "targets in the shape of the outputs for METRICS 'r2'"
    chosen = next((name for name in names if name != "r2"), None)
    if chosen is None:
        return None
    if entries == 1:
        if per_sample != 1:
            return got, f"one target per sample for METRICS {chosen!r}"
        if loss in _REGRESSION and bool((y >= 0).all()) and bool((y == 0).any()):
            return (
                f"gave y from {float(y.min()):g} to {float(y.max()):g}",
                f"targets of either sign for METRICS {chosen!r} of one output; try 2 * y - 1 for 0 "
                "and 1, or a metric of your own",
            )
        return None
    C = output[-1]
    if per_sample == entries:
        rows = y.reshape(-1, C)
        if bool(((rows == rows.amax(1, keepdim=True)).sum(1) > 1).any()):
            return (
                "gave y with several largest entries in a row",
                f"one-hot y, or y of -1 with a single 1, for METRICS {chosen!r} of {C} outputs; "
                "try a metric of your own, such as ((output > 0) == (y > 0)).double().mean()",
            )
        return None
    if per_sample * C != entries or bool((y < 0).any()) or bool((y >= C).any()):
        return got, f"classes from 0 to {C - 1} for METRICS {chosen!r} of {C} outputs"
    return None
