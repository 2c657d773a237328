"""The batches of a pack: drawn once per distinct batch function, checked, and gathered."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import UserError, error_message
from mlpsubmit.masked import is_masked
from mlpsubmit.protocol import BatchFn, LooksAhead
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.culprits import FAILURES, raise_attributed
from mlpsubmit.training.guard import Guard, WriteError, version
from mlpsubmit.training.metric_functions import wrong_targets
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.precision import full_precision_matmul
from mlpsubmit.training.result import Array

T = TypeVar("T")

__all__ = ["Batch", "BatchError", "Batches", "column", "latest", "pair_of"]


#: Devices whose steps are never recorded: there, to look ahead would only cost time.
EAGER_DEVICES = frozenset({"cpu"})

_REAL = frozenset({torch.float32, torch.float64, torch.int64, torch.int32, torch.bool})


#: Part of torch's message where an embedding is given floats.
_WANTS_INTEGERS = "scalar types: Long"


class BatchError(UserError):
    """A batch whose shapes or values do not fit the model or the loss."""


class Batch:
    """One batch for each of K configs.

    Args:
        X: inputs, (n, ...) where all configs share them, else (K, n, ...).
        y: targets, (n,) or (n, d_out) where shared, else with K in front.
        shared: whether all configs have the same batch.

    Attributes:
        shared: as given.
        separate: per config X (n, ...) and y (n,) or (n, d_out), where they lie apart; else None.
    """

    def __init__(self, X: Tensor, y: Tensor, shared: bool) -> None:
        self.shared = shared
        self.separate: Sequence[tuple[Tensor, Tensor]] | None = None
        self._whole: tuple[Tensor, Tensor] | None = X, y
        self._versions = version(X), version(y)

    @classmethod
    def apart(cls, batches: Sequence[tuple[Tensor, Tensor]]) -> Batch:
        """Return one of K configs whose batches lie apart.

        Args:
            batches: X and y, contiguous, of equal shapes.
        """
        batch = cls(*batches[0], shared=False)
        batch.separate, batch._whole = batches, None
        return batch

    def _stacked(self) -> tuple[Tensor, Tensor]:
        if self._whole is None:
            Xs, ys = zip(*self.separate or (), strict=True)
            X, y = self._whole = torch.stack(Xs), torch.stack(ys)
            self._versions = version(X), version(y)
        return self._whole

    @property
    def X(self) -> Tensor:
        """The inputs; those that lie apart are stacked when they are first asked for."""
        return self._stacked()[0]

    @property
    def y(self) -> Tensor:
        """The targets, likewise."""
        return self._stacked()[1]

    @property
    def written(self) -> str:
        """The tensor that has been written to since this batch was made: X, y, or none."""
        if self._whole is None:
            return ""  # nobody has seen them
        X, y = self._versions
        return "X" if version(self.X) != X else "y" if version(self.y) != y else ""

    @property
    def targets(self) -> Tensor:
        """The targets with a first dimension of 1 or K."""
        return self.y.unsqueeze(0) if self.shared else self.y

    def of(self, row: int) -> tuple[Tensor, Tensor]:
        """Return X (n, ...) and y (n,) or (n, d_out) of one row of the stack."""
        return (self.X, self.y) if self.shared else (self.X[row], self.y[row])

    @functools.cached_property
    def addresses(self) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
        """Where X and y of each config are that lie apart, as arrays in C."""
        assert self.separate is not None
        array = ctypes.c_void_p * len(self.separate)
        return (
            array(*[X.data_ptr() for X, _ in self.separate]),
            array(*[y.data_ptr() for _, y in self.separate]),
        )

    def rows(self, rows: Sequence[int], index: Tensor) -> Batch:
        """Return that of some rows of the stack.

        Args:
            index: the rows, on the device.
        """
        if self.separate is not None:
            return Batch.apart([self.separate[row] for row in rows])
        return self if self.shared else Batch(self.X[index], self.y[index], False)


def column(vector: Tensor, like: Tensor) -> Tensor:
    """View a vector (K,) as (K, 1, ..., 1) with as many dimensions as another tensor."""
    return vector.view(-1, *(1,) * (like.ndim - 1))


class Aside:
    """How a step does work that does not depend on the step before: as any other work."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Do some work."""
        return work()

    def each(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do works that do not depend on each other; return their results."""
        return [work() for work in works]


class Batches:
    """The batch functions of K configs; each distinct one is called once per step.

    Args:
        batch_fns: K functions; the same object may occur several times.
        fixed: draw ``batch_fn(0)`` now and return it at every step.
        loss: LOSS: decides which targets are valid.
        metrics: the names of the built-in metrics, which need targets that fit, too.
        model: from X (n, ...) to outputs (n, ...), without a trace: decides their shape.
        d_in: as the attribute, where the networks say it.
        inputs: tensors that the functions are given, such as the data entries.
        device, dtype: of the batches.
        what: the name of these functions in messages.

    Attributes:
        fixed: as given.
        d_in: entries of a sample of X that the networks are made for; None before a first batch.
        sources: per row of the stack, the number of its function; equal numbers draw the same.
        guard: of the fixed sets.
        aside: how the functions are called.

    Raises:
        BatchError: for shapes that do not fit, and for NaN in a fixed set.
        WriteError: from a function that changes its inputs, or what it has returned before.
    """

    def __init__(
        self,
        batch_fns: Sequence[BatchFn],
        *,
        fixed: bool,
        loss: Any,
        metrics: Sequence[str] = (),
        model: Callable[[Tensor], Tensor],
        d_in: int | None,
        inputs: Guard,
        device: torch.device,
        dtype: torch.dtype,
        what: str = "batch function",
    ) -> None:
        distinct = {id(function): function for function in batch_fns}
        self._fns, numbers = list(distinct.values()), {key: i for i, key in enumerate(distinct)}
        self.sources = [numbers[id(function)] for function in batch_fns]
        self._configs = list(range(len(batch_fns)))  # per row of the stack
        self.fixed, self._loss, self._model, self._what = fixed, loss, model, what
        self._takes_integers = callable(loss) or loss == "cross_entropy"
        self._metrics, self.d_in, self.aside = metrics, d_in, Aside()
        self._device, self._dtype, self._inputs = device, dtype, inputs
        # On a GPU they are stacked where they are drawn, beside the step before.
        self._stays_apart = device.type == "cpu" and not fixed
        self._checked: set[tuple[torch.Size, torch.Size]] = set()  # shapes
        #: Traits of batches that are right as they are returned; half of a step of narrow networks
        #: goes into batch functions, and what is done for each of them counts.
        self._unchanged: set[tuple[Any, ...]] = set()
        #: The first batches as they were returned, up to the second draw.
        self._returned: list[tuple[BatchFn, Guard]] = []
        self._draws = 0
        #: By id, the functions that look ahead, once they have been loaded.
        self._ahead: dict[int, LooksAhead] = {}
        self._index = self._gathering()
        self._fixed = self._draw(0) if fixed else None
        self.guard = self._guarded()

    @property
    def functions(self) -> list[BatchFn]:
        """The functions called at each step, but for those whose state is among the buffers."""
        return [] if self.fixed else [one for one in self._fns if id(one) not in self._ahead]

    @property
    def buffers(self) -> list[Tensor]:
        """What functions that look ahead change in place in a step."""
        return [buffer for function in self._ahead.values() for buffer in function.buffers]

    def load(self, step: int, block: int) -> None:
        """Let functions that look ahead upload what they need, from a step to the end of its block.

        From then on, the batches of these steps have to be drawn in order.
        """
        self._ahead = {}
        if self.fixed or self._device.type in EAGER_DEVICES:
            return
        for function in self._fns:
            ahead: Any = function
            if isinstance(ahead, LooksAhead):
                ahead.load(step, block)
                self._ahead[id(function)] = ahead

    @property
    def names(self) -> list[str]:
        """The names of all functions, for messages."""
        return [function_name(function) for function in self._fns]

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
            self.guard = self._guarded()

    def _guarded(self) -> Guard:
        fixed = self._fixed
        tensors = {} if fixed is None else {"X": fixed.X, "y": fixed.y}
        return Guard(tensors, sampled=True, whole=True)

    def _gathering(self) -> Tensor | None:
        """Return the function of each row, or None where these are in order."""
        in_order = self.sources == list(range(len(self._fns)))
        return None if in_order else torch.tensor(self.sources, device=self._device)

    def _draw(self, step: int) -> Batch:
        """Return one batch for all rows, from one call of each distinct function."""
        drawn = self._draw_each(step)
        self._check_writes()
        if len(drawn) == 1:
            return Batch(*drawn[0], shared=True)
        shapes = {(tuple(X.shape), tuple(y.shape)) for X, y in drawn}
        if len(shapes) > 1:
            raise BatchError(
                f"{self._what}: configs trained together got X and y of shapes "
                f"{' and '.join(map(str, sorted(shapes)))}; they need equal shapes"
            )
        if self._stays_apart:
            return Batch.apart([drawn[source] for source in self.sources])
        X, y = torch.stack([X for X, _ in drawn]), torch.stack([y for _, y in drawn])
        if self._index is not None:
            X, y = X[self._index], y[self._index]
        return Batch(X, y, shared=False)

    def _draw_each(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Call every function, also once one has raised: all that raise at this step are found."""
        errors = dict[int, BaseException]()
        draws = [partial(self._draw_or_note, i, step, errors) for i in range(len(self._fns))]
        with full_precision_matmul():
            drawn = self.aside.each(draws)
        if errors:
            raise_attributed(errors)
        return [one for one in drawn if one is not None]

    def _draw_or_note(
        self, number: int, step: int, errors: dict[int, BaseException]
    ) -> tuple[Tensor, Tensor] | None:
        """Call a function, or note its error for its configs; nothing once memory has run out."""
        if errors and any(map(ran_out_of_memory, errors.values())):
            return None
        try:
            X, y = self._draw_one(self._fns[number], step)
            if self._loss in ("hinge", "logistic"):
                self._check_signs(self._fns[number], y, step)
            return X, y
        except FAILURES as error:
            rows = zip(self._configs, self.sources, strict=True)
            errors |= {config: error for config, source in rows if source == number}
            return None

    def _check_writes(self) -> None:
        """Refuse functions that write into what they were given, or have returned before."""
        if written := self._inputs.written():
            self._refuse_write(self._fns[0], f"{written[0]}, which it is given")
        if self._draws > 1:
            return
        self._draws += 1
        # A GPU-CPU sync point at the first draw; the second one may be watched for these.
        contents = self._draws == 1 or self._device.type == "cpu"
        for function, guard in self._returned:
            if written := guard.changed() if contents else guard.written():
                self._refuse_write(function, f"the {written[0]} that it has returned before")
        if self._draws == 2 or self.fixed:
            self._returned = []

    def _refuse_write(self, function: BatchFn, what: str) -> NoReturn:
        raise WriteError(
            f"{self._what} {function_name(function)} changes {what}, in place; others read it "
            "too; try .clone() of what it changes or returns"
        )

    def _draw_one(self, function: BatchFn, step: int) -> tuple[Tensor, Tensor]:
        ahead = self._ahead.get(id(function)) if self._ahead else None
        drawn = function(step) if ahead is None else ahead.next()
        if type(drawn) is tuple and len(drawn) == 2 and _traits(*drawn) in self._unchanged:
            return drawn
        if not _is_usual(drawn):  # spares the usual ones the messages
            drawn = pair_of(drawn, f"{self._what} {function_name(function)}")
        X, y = given = drawn
        if self._draws == 0:
            self._returned.append((function, Guard({"X": X, "y": y}, sampled=True)))
        integers = self._takes_integers and not y.is_floating_point()
        X = X.detach().to(self._device, self._dtype)
        y = y.detach().to(self._device, None if integers else self._dtype)
        if self._stays_apart:
            X, y = X.resolve_neg().contiguous(), y.resolve_neg().contiguous()
        if self._loss == "cross_entropy" and integers:
            y = y.long()
        shapes = (X.shape, y.shape)
        if self.fixed or shapes not in self._checked:  # a GPU-CPU sync point where shapes are new
            self._check(function, X, y, was_integer=not given[0].is_floating_point())
            self._checked.add(shapes)
        if not self.fixed and (traits := _traits(*given)) is not None and traits == _traits(X, y):
            self._unchanged.add(traits)
        return X, y

    def _check(self, function: BatchFn, X: Tensor, y: Tensor, was_integer: bool) -> None:
        got = f"gave X of shape {tuple(X.shape)} and y of shape {tuple(y.shape)}"
        if X.ndim < 1 or y.ndim < 1 or len(X) != len(y) or X.numel() == 0:
            valid = "X (n, ...) and y (n,) or (n, d_out) with the same n > 0, X not empty"
            self._refuse(function, got, valid)
        if self.fixed:
            for name, tensor in (("X", X), ("y", y)):
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    self._refuse(function, f"gave NaN or infinite entries in {name}", "finite ones")
        output = self._output_shape(function, X, was_integer)
        per_sample = tuple(y.shape[1:])
        entrywise = not callable(self._loss) and self._loss != "cross_entropy"
        if entrywise and (per_sample or (1,)) != (output or (1,)):
            valid = "y (n,)" if output in ((), (1,)) else f"y (n, {', '.join(map(str, output))})"
            got = f"{got}, for a model whose output is {_with_n(output)}"
            self._refuse(function, got, f"{valid}; set D_OUT or reshape y")
        if self._loss == "cross_entropy":
            self._check_classes(function, y, output, got)
        if wrong := wrong_targets(self._metrics, self._loss, output, y):
            self._refuse(function, *wrong)

    def _check_signs(self, function: BatchFn, y: Tensor, step: int) -> None:
        """Check the targets of losses of signs: a first batch may have none of one class.

        At every step on a CPU; on a GPU, where it is a sync point, at the first one.
        """
        if self._device.type != "cpu" and step != 0:
            return
        if bool((y.abs() != 1).any()):
            got = f"gave y from {float(y.min()):g} to {float(y.max()):g}"
            zeros = bool(((y == 0) | (y == 1)).all())
            hint = "try 2 * y - 1" if zeros else "try LOSS='mse', 'huber', or y.sign()"
            self._refuse(function, got, f"-1 and 1 alone for LOSS={self._loss!r}; {hint}")

    def _output_shape(self, function: BatchFn, X: Tensor, was_integer: bool) -> tuple[int, ...]:
        try:
            try:
                output = self._model(X[:2])  # one sample is too few for BatchNorm
            except Exception as error:  # a model may need the whole batch
                if isinstance(error, UserError) and not isinstance(error, StackingError):
                    raise
                output = self._model(X)
        except Exception as error:
            if isinstance(error, UserError) or ran_out_of_memory(error):
                raise
            why, got = error_message(error), f"gave X of shape {tuple(X.shape)}"
            if self.d_in not in (None, X[0].numel()):
                got = f"{got}, {X[0].numel()} inputs per sample"
                self._refuse(function, got, f"{self.d_in}, as in the X that MODEL is made for")
            valid = "X (n, ...) that MODEL takes, or a MODEL that takes it"
            if was_integer or _WANTS_INTEGERS in why:
                valid += (
                    f"; X becomes {_dtype(X)}: where MODEL needs integers, write X.long() in it"
                )
            self._refuse(function, f"{got}, on which the model fails ({why})", valid, error)
        self.d_in = self.d_in or X[0].numel()
        return tuple(output.shape[1:])

    def _check_classes(
        self, function: BatchFn, y: Tensor, output: tuple[int, ...], got: str
    ) -> None:
        got = f"{got} ({_dtype(y)})"
        if len(output) != 1 or output[0] < 2:
            got = f"is used with a model whose output is {_with_n(output)}"
            self._refuse(function, got, "(n, C) with C >= 2 classes for LOSS='cross_entropy'")
        valid = f"integer y (n,) from 0 to {output[0] - 1}, or probabilities y (n, {output[0]})"
        if y.is_floating_point():
            if tuple(y.shape[1:]) != output:
                self._refuse(function, got, valid)
            if bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > 1e-3).any()):
                got = "gave y whose rows are not probabilities (negative, or not summing to 1)"
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


def pair_of(drawn: Any, where: str) -> tuple[Tensor, Tensor]:
    """Return what a batch function returned, as dense tensors X and y of real numbers.

    Args:
        where: the start of the messages, which names the function.

    Raises:
        BatchError: where that is not possible.
    """
    if not isinstance(drawn, (tuple, list)) or len(drawn) != 2:
        got = f"{len(drawn)} values" if isinstance(drawn, (tuple, list)) else type(drawn).__name__
        raise BatchError(f"{where} returned {got}; expected a pair (X, y) of tensors")
    X, y = drawn
    return _dense(X, f"{where} gave X", "X"), _dense(y, f"{where} gave y", "y")


def _traits(X: Any, y: Any) -> tuple[Any, ...] | None:
    """Return what decides whether a batch is valid, and has to be converted; None if unknown."""
    if type(X) is not Tensor or type(y) is not Tensor or X.is_nested or y.is_nested:
        return None
    if X.layout is not torch.strided or y.layout is not torch.strided:
        return None  # whether it is contiguous cannot be asked
    if X.is_inference() or y.is_inference():
        return None
    usual = X.is_contiguous(), y.is_contiguous(), X.is_neg(), y.is_neg()
    own = (X.shape, X.dtype, X.device, X.requires_grad)
    return (*own, y.shape, y.dtype, y.device, y.requires_grad, *usual)


def _is_usual(drawn: Any) -> bool:
    """Return whether this is a pair of dense tensors of real numbers."""
    if not isinstance(drawn, (tuple, list)) or len(drawn) != 2:
        return False
    return _is_plain(drawn[0]) and _is_plain(drawn[1])


def _is_plain(part: Any) -> bool:
    if not isinstance(part, Tensor) or part.layout is not torch.strided or part.is_nested:
        return False
    return part.dtype in _REAL and not part.is_inference()


def _dense(value: Any, where: str, name: str) -> Tensor:
    part = value
    if is_masked(value):  # a tensor would have what is below the mask
        raise BatchError(
            f"{where} with masked entries; expected numbers alone; try {name}.filled(0), or leave "
            "these rows out"
        )
    if not isinstance(value, Tensor):
        try:
            part = torch.as_tensor(_copied(value) if isinstance(value, np.ndarray) else value)
        except Exception as error:
            raise BatchError(
                f"{where} of type {type(value).__name__}; expected a tensor or an array of numbers"
            ) from error
    assert isinstance(part, Tensor)
    if part.layout is not torch.strided or part.is_quantized or part.is_nested:
        kind = "nested" if part.is_nested else "quantized" if part.is_quantized else part.layout
        raise BatchError(
            f"{where} as a tensor that is not dense ({_dtype(kind)}); expected a dense one; try "
            f"{name}.to_dense()"
        )
    if part.is_complex():
        raise BatchError(
            f"{where} of complex numbers ({_dtype(part)}); expected real ones; try "
            f"torch.view_as_real({name}).flatten(1), or {name}.abs()"
        )
    # Outside of inference mode, such a tensor can neither be saved for a gradient nor be watched.
    return part.clone() if part.is_inference() else part


def _copied(array: Array) -> Array:
    """Return an array, or a copy of one that no tensor can share memory with."""
    usable = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
    return array if usable else array.astype(array.dtype.newbyteorder("="), order="C")


def _dtype(tensor: Any) -> str:
    return str(getattr(tensor, "dtype", tensor)).removeprefix("torch.")


def _with_n(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('n', *shape)))}{'' if shape else ','})"


def latest(
    kept: tuple[Tensor, Tensor] | None, batch: Batch, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Return X (K, n, ...) and y (K, n, ...) of each config's last step, for grabs after it.

    This costs K batches of memory and a pass over them per step.

    Args:
        kept: the result for the step before, which is changed in place; None at the first.
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
    torch.where(column(active, X), batch.X, X, out=X)
    torch.where(column(active, y), batch.y, y, out=y)
    return X, y
