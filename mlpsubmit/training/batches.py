"""The batches of a pack: drawn once per distinct batch function, checked, and gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import UserError
from mlpsubmit.protocol import BatchFn
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.culprits import FAILURES, raise_attributed
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.precision import full_precision_matmul

__all__ = ["Batch", "BatchError", "Batches", "column", "latest"]


class BatchError(UserError):
    """A batch whose shapes or values do not fit the model or the loss."""


@dataclass(frozen=True)
class Batch:
    """One batch for each of K configs.

    Attributes:
        X: inputs, (n, ...) where all configs share them, else (K, n, ...).
        y: targets, (n,) or (n, d_out) where shared, else with K in front.
        shared: whether all configs have the same batch.
    """

    X: Tensor
    y: Tensor
    shared: bool

    @property
    def targets(self) -> Tensor:
        """The targets with a first dimension of 1 or K."""
        return self.y.unsqueeze(0) if self.shared else self.y

    def of(self, row: int) -> tuple[Tensor, Tensor]:
        """Return X (n, ...) and y (n,) or (n, d_out) of one row of the stack."""
        return (self.X, self.y) if self.shared else (self.X[row], self.y[row])


def column(vector: Tensor, like: Tensor) -> Tensor:
    """View a vector (K,) as (K, 1, ..., 1) with as many dimensions as another tensor."""
    return vector.view(-1, *(1,) * (like.ndim - 1))


class Batches:
    """The batch functions of K configs; each distinct one is called once per step.

    Args:
        batch_fns: K functions; the same object may occur several times.
        fixed: draw ``batch_fn(0)`` now and return it at every step.
        loss: mse, cross_entropy or a callable: decides which targets are valid.
        model: from X (n, ...) to outputs (n, ...), without a trace: decides their shape.
        device, dtype: of the batches.
        what: the name of these functions in messages.

    Attributes:
        fixed: as given.
        sources: per row of the stack, the number of its function; equal numbers draw the same.

    Raises:
        BatchError: for shapes that do not fit, and for NaN in a fixed set.
    """

    def __init__(
        self,
        batch_fns: Sequence[BatchFn],
        *,
        fixed: bool,
        loss: Any,
        model: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        what: str = "batch function",
    ) -> None:
        distinct = {id(function): function for function in batch_fns}
        self._fns, numbers = list(distinct.values()), {key: i for i, key in enumerate(distinct)}
        self.sources = [numbers[id(function)] for function in batch_fns]
        self._configs = list(range(len(batch_fns)))  # per row of the stack
        self.fixed, self._loss, self._model, self._what = fixed, loss, model, what
        self._device, self._dtype = device, dtype
        self._checked: set[tuple[torch.Size, torch.Size]] = set()  # shapes
        self._index = self._gathering()
        self._fixed = self._draw(0) if fixed else None

    @property
    def functions(self) -> list[BatchFn]:
        """The functions called at each step: none where the sets are fixed."""
        return [] if self.fixed else self._fns

    def draw(self, step: int) -> Batch:
        """Return the batch of this step."""
        return self._draw(step) if self._fixed is None else self._fixed

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep these rows, and only the functions that they draw from."""
        sources = [self.sources[row] for row in keep]
        self._configs = [self._configs[row] for row in keep]
        used = sorted(set(sources))
        self._fns = [self._fns[i] for i in used]
        self.sources = [used.index(i) for i in sources]
        self._index = self._gathering()
        if self._fixed is not None and not self._fixed.shared:
            shared = len(used) == 1
            rows = torch.tensor(keep[:1] if shared else keep, device=self._device)
            X, y = self._fixed.X[rows], self._fixed.y[rows]
            self._fixed = Batch(X[0], y[0], True) if shared else Batch(X, y, False)

    def _gathering(self) -> Tensor | None:
        """Return the function of each row, or None where these are in order."""
        in_order = self.sources == list(range(len(self._fns)))
        return None if in_order else torch.tensor(self.sources, device=self._device)

    def _draw(self, step: int) -> Batch:
        """Return one batch for all rows, from one call of each distinct function."""
        drawn = self._draw_each(step)
        if len(drawn) == 1:
            return Batch(*drawn[0], shared=True)
        shapes = {(tuple(X.shape), tuple(y.shape)) for X, y in drawn}
        if len(shapes) > 1:
            raise BatchError(
                f"{self._what}: configs trained together got X and y of shapes "
                f"{' and '.join(map(str, sorted(shapes)))}; they need equal shapes"
            )
        X, y = torch.stack([X for X, _ in drawn]), torch.stack([y for _, y in drawn])
        if self._index is not None:
            X, y = X[self._index], y[self._index]
        return Batch(X, y, shared=False)

    def _draw_each(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Call every function, also once one has raised: all that raise at this step are found."""
        drawn, errors = [], dict[int, BaseException]()
        for number, function in enumerate(self._fns):
            try:
                drawn.append(self._draw_one(function, step))
            except FAILURES as error:
                rows = zip(self._configs, self.sources, strict=True)
                errors |= {config: error for config, source in rows if source == number}
                if ran_out_of_memory(error):
                    break
        if errors:
            raise_attributed(errors)
        return drawn

    def _draw_one(self, function: BatchFn, step: int) -> tuple[Tensor, Tensor]:
        with full_precision_matmul():
            drawn = function(step)
        if not isinstance(drawn, (tuple, list)) or len(drawn) != 2:
            self._refuse(function, f"returned {type(drawn).__name__}", "a pair (X, y) of tensors")
        X, y = (torch.as_tensor(part) for part in drawn)
        integers = not (y.is_floating_point() or self._loss == "mse")
        X = X.detach().to(self._device, self._dtype)
        y = y.detach().to(self._device, None if integers else self._dtype)
        if self._loss == "cross_entropy" and integers:
            y = y.long()
        shapes = (X.shape, y.shape)
        if self.fixed or shapes not in self._checked:  # a GPU-CPU sync point where shapes are new
            self._check(function, X, y)
            self._checked.add(shapes)
        return X, y

    def _check(self, function: BatchFn, X: Tensor, y: Tensor) -> None:
        got = f"gave X of shape {tuple(X.shape)} and y of shape {tuple(y.shape)}"
        if X.ndim < 1 or y.ndim < 1 or len(X) != len(y) or len(X) == 0:
            self._refuse(function, got, "X (n, ...) and y (n,) or (n, d_out) with the same n > 0")
        if self.fixed:
            for name, tensor in (("X", X), ("y", y)):
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    self._refuse(function, f"gave NaN or infinite entries in {name}", "finite ones")
        output = self._output_shape(function, X)
        per_sample = tuple(y.shape[1:])
        if self._loss == "mse" and (per_sample or (1,)) != (output or (1,)):
            valid = "y (n,)" if output in ((), (1,)) else f"y (n, {', '.join(map(str, output))})"
            got = f"{got}, for a model whose output is {_with_n(output)}"
            self._refuse(function, got, f"{valid}; set D_OUT or reshape y")
        if self._loss == "cross_entropy":
            self._check_classes(function, y, output, got)

    def _output_shape(self, function: BatchFn, X: Tensor) -> tuple[int, ...]:
        try:
            try:
                output = self._model(X[:2])  # one sample is too few for BatchNorm
            except StackingError:
                raise
            except Exception:  # a model may need the whole batch
                output = self._model(X)
        except Exception as error:
            if isinstance(error, UserError) or ran_out_of_memory(error):
                raise
            got = f"gave X of shape {tuple(X.shape)}, which the model cannot take ({error})"
            self._refuse(function, got, "X (n, ...) as the model expects it", error)
        return tuple(output.shape[1:])

    def _check_classes(
        self, function: BatchFn, y: Tensor, output: tuple[int, ...], got: str
    ) -> None:
        got = f"{got} ({str(y.dtype).removeprefix('torch.')})"
        if len(output) != 1 or output[0] < 2:
            got = f"is used with a model whose output is {_with_n(output)}"
            self._refuse(function, got, "(n, C) with C >= 2 classes for LOSS='cross_entropy'")
        valid = f"integer y (n,) from 0 to {output[0] - 1}, or probabilities y (n, {output[0]})"
        if y.is_floating_point():
            if tuple(y.shape[1:]) != output:
                self._refuse(function, got, valid)
            if bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > 1e-3).any()):
                got = "gave y whose rows are no probabilities: negative, or not of sum 1"
                self._refuse(function, got, valid)
        elif tuple(y.shape[1:]) not in ((), (1,)):
            self._refuse(function, got, valid)
        elif not 0 <= int(y.min()) <= int(y.max()) < output[0]:
            got = f"gave classes from {int(y.min())} to {int(y.max())}"
            self._refuse(function, got, valid)

    def _refuse(
        self, function: BatchFn, got: str, valid: str, cause: Exception | None = None
    ) -> NoReturn:
        raise BatchError(
            f"{self._what} {function_name(function)} {got}; expected {valid}"
        ) from cause


def _with_n(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('n', *shape)))}{'' if shape else ','})"


def latest(
    kept: tuple[Tensor, Tensor] | None, batch: Batch, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Return X (K, n, ...) and y (K, n, ...) of each config's last step, for grabs after it.

    This costs K batches of memory and a pass over them per step.

    Args:
        kept: the result for the step before; None at the first.
        active: (K,) bool, the rows whose batches are replaced.
    """
    if kept is None:
        K = len(active)
        X, y = (b.expand(K, *b.shape) if batch.shared else b for b in (batch.X, batch.y))
        return X.clone(), y.clone()
    X, y = kept
    shape = batch.X.shape if batch.shared else batch.X.shape[1:]
    if shape != X.shape[1:]:
        raise BatchError(
            f"batch function: X changed its shape from {tuple(X.shape[1:])} to "
            f"{tuple(shape)}; a grab of X_tr needs batches of equal shapes"
        )
    X = torch.where(column(active, X), batch.X, X)
    return X, torch.where(column(active, y), batch.y, y)
