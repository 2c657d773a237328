"""FLOPs of a training step in matrix products, and the measured matmul rate of the device.

Their ratio is the ideal time of a step. Ideal over actual time is the matmul utilization (not MFU,
which is relative to the peak in the data sheet).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from mlpsubmit.assembly.assemble import StackInputs
from mlpsubmit.training.accel.native_mlp import product_in_c
from mlpsubmit.training.models import MLP
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.precision import arithmetic, dtype_of
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.undisturbed import undisturbed

__all__ = ["Roofline", "matmul_flops", "matmul_rate", "wait_for"]

#: Rows and columns of the products that measure a device: large enough for its best rate.
CPU_SIZE, GPU_SIZE = 1024, 8192

#: Each way to multiply is measured for at least this time, and at least this number of products.
MEASURED_SECONDS, PRODUCTS = 0.1, 3


def matmul_rate(device: torch.device, precision: str) -> float | None:
    """Return the best measured rate of large matrix products, in FLOP/s.

    Of those of PyTorch, and on a CPU of those of the functions in C, whichever are faster.

    Args:
        precision: a value of the hyperparameter PRECISION.

    Returns:
        None if there is not enough memory for them.
    """
    try:
        with arithmetic(precision, True, device), torch.no_grad():
            dtype = torch.bfloat16 if precision == "bf16" else dtype_of(precision)
            return _rate(device, dtype)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    size = CPU_SIZE if device.type == "cpu" else GPU_SIZE
    generator = torch.Generator(device).manual_seed(0)  # leaves the training's draws alone
    A, B = torch.randn(2, size, size, generator=generator, device=device).to(dtype)
    C = torch.empty_like(A)
    ways: list[Callable[[], object]] = [lambda: torch.mm(A, B, out=C)]
    if device.type == "cpu" and (native := product_in_c(dtype)) is not None:
        ways.append(lambda: native(A, B))
    return 2 * size**3 / min(_best_seconds(way, device) for way in ways)


def _best_seconds(multiply: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest product."""
    multiply()  # warm-up
    wait_for(device)
    end, times = time.perf_counter() + MEASURED_SECONDS, list[float]()
    while len(times) < PRODUCTS or time.perf_counter() < end:
        begun = time.perf_counter()
        multiply()
        wait_for(device)
        times.append(time.perf_counter() - begun)
    return min(times)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Roofline:
    """The ideal time of model-steps on a device: FLOPs over its measured matmul rate.

    Args:
        precision: the one to measure now; others are measured when they are first needed.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self._device = device
        self._rates = {precision: matmul_rate(device, precision)}
        self._flops: dict[Any, float | None] = {}

    def ideal_seconds(self, stack: StackInputs) -> float | None:
        """Return the ideal seconds of one model-step; None if its FLOPs cannot be counted."""
        precision = stack.hyperparameters[0].precision
        if precision not in self._rates:
            self._rates[precision] = matmul_rate(self._device, precision)
        rate, flops = self._rates[precision], self._cached_flops(stack)
        return None if rate is None or flops is None else flops / rate

    def _cached_flops(self, stack: StackInputs) -> float | None:
        """Count once for all similar stacks: for a custom model it takes a step of one config."""
        h = stack.hyperparameters[0]
        sets = tuple(X if X is None else tuple(X.shape) for X in _inputs(stack))
        shapes = tuple((name, tuple(p.shape)) for name, p in stack.models[0].named_parameters())
        schedule = (h.online, h.centered, h.test_every, h.max_iter)
        key = (type(stack.models[0]), shapes, sets, _initial_share(stack), schedule)
        if key not in self._flops:
            self._flops[key] = matmul_flops(stack)
        return self._flops[key]


def matmul_flops(stack: StackInputs) -> float | None:
    """Return the FLOPs in matrix products that one model-step needs.

    They are counted on one model of the stack: the forward and the backward pass on a batch;
    online, if CENTERED, the forward pass of the model at initialisation, which configs with the
    same one share; and a step's share of the evaluations of the test loss. Optimizers, losses and
    grabs are not counted.

    Returns:
        None if a custom model fails.
    """
    h, model = stack.hyperparameters[0], stack.models[0]
    X, X_test = _inputs(stack)
    try:
        forward, step = _passes(model, X)
        if h.online and h.centered:
            step += forward * _initial_share(stack)
        if X_test is not None and h.test_every is not None:
            evaluations = Schedule(h.test_every, h.max_iter).count
            step += _forward(model, X_test) * evaluations / h.max_iter
        return step
    except Exception:  # its training will say why
        return None


def _inputs(stack: StackInputs) -> tuple[Tensor, Tensor | None]:
    """Return the inputs of a batch and of the test set: batch sources return these once more."""
    test = stack.test_fns[0](0)[0] if stack.test_fns else None
    return stack.batch_fns[0](0)[0], test


def _initial_share(stack: StackInputs) -> float:
    """Return the number of different initial models and batch sources, per config.

    GAMMA multiplies the outputs of an MLP, so it does not make its initial model differ.
    """
    settings = zip(stack.hyperparameters, stack.trials, stack.batch_fns, strict=True)
    built_in = type(stack.models[0]) is MLP
    initial = {(h.seed, t, None if built_in else h.gamma, id(fn)) for h, t, fn in settings}
    return len(initial) / len(stack.models)


def _passes(model: nn.Module, X: Tensor) -> tuple[float, float]:
    """Return the FLOPs of a forward pass, and of a forward and a backward pass."""
    if type(model) is not MLP:
        return _counted(model, X)
    # 2 per weight and sample; twice that backward, except for the inputs of the first layer.
    layers = [model.input_layer, *model.hidden_layers, model.output_layer]
    first, *others = [p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2]
    forward = 2.0 * len(X) * (first + sum(others))
    return forward, 3 * forward - 2 * len(X) * first


def _forward(model: nn.Module, X: Tensor) -> float:
    """Return the FLOPs of a forward pass."""
    if type(model) is MLP:
        return _passes(model, X)[0]
    counter = _Counter()
    with undisturbed(model), counter, torch.no_grad():
        _output(model, _values(model, X), X)
    return counter.flops


def _counted(model: nn.Module, X: Tensor) -> tuple[float, float]:
    """Return the FLOPs of both passes, which are made: on the device of X, on copies.

    Tensors without memory would do for most models; but their operations load torch's compiler.
    """
    values, counter = _values(model, X), _Counter()
    with undisturbed(model), counter, torch.enable_grad():
        output = _output(model, values, X)
        forward = counter.flops
        trained = [value for value in values.values() if value.requires_grad]
        torch.autograd.grad(output.square().sum(), trained, allow_unused=True)
    return forward, counter.flops


def _values(model: nn.Module, X: Tensor) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers of a model, on the device of X."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: tensor.detach().clone().to(X.device).requires_grad_(tensor.requires_grad)
        for name, tensor in named
    }


def _output(model: nn.Module, values: dict[str, Tensor], X: Tensor) -> Tensor:
    dtype = next((value.dtype for value in values.values() if value.requires_grad), X.dtype)
    output: Tensor = functional_call(model, values, (X.to(dtype),))
    return output


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of the operations within its context.

    As torch's FlopCounterMode does, which loads torch's compiler: that takes a second.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # loads triton, if there is one

        self.flops = 0.0
        self._formulas: Any = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = self._formulas.get(func.overloadpacket)
        if formula is None:  # it may consist of others
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += float(formula(*args, **kwargs, out_val=result))
        return result
