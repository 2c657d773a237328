"""What a training needs of its device, and what the device could do: of matrix products."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.assembly.assemble import StackInputs
from mlpsubmit.training.models import MLP
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.precision import arithmetic
from mlpsubmit.training.schedules import Schedule

__all__ = ["Roofline", "matmul_rate", "operations", "wait_for"]

#: Rows and columns of the products that a device is measured with: large enough for its best.
CPU_SIZE, GPU_SIZE = 1024, 8192

#: How long a device is measured, in seconds; and in products, at least.
MEASURED_SECONDS, PRODUCTS = 0.15, 3


def matmul_rate(device: torch.device, precision: str) -> float | None:
    """Return the floating-point operations per second of large matrix products: the best of some.

    Args:
        precision: as the hyperparameter PRECISION says.

    Returns:
        None where there is not the memory for it.
    """
    try:
        with arithmetic(precision, True, device), torch.no_grad():
            return _rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    size = CPU_SIZE if device.type == "cpu" else GPU_SIZE
    generator = torch.Generator(device).manual_seed(0)  # no draw of the training's own
    A, B = torch.randn(2, size, size, generator=generator, device=device).to(dtype)
    return 2 * size**3 / _best_seconds(A, B)


def _best_seconds(A: Tensor, B: Tensor) -> float:
    """Return the seconds of the fastest product."""
    C = A @ B  # the first one sets up what the others use
    wait_for(A.device)
    end, times = time.perf_counter() + MEASURED_SECONDS, list[float]()
    while len(times) < PRODUCTS or time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(A, B, out=C)
        wait_for(A.device)
        times.append(time.perf_counter() - begun)
    return min(times)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Roofline:
    """Says in how many seconds a device could make a model-step if it did nothing but its products.

    Args:
        precision: the one that is measured at once; others are when they are first met.
        own_model: whether there are networks of the user's own, whose products torch has to count.
    """

    def __init__(self, device: torch.device, precision: str, own_model: bool) -> None:
        self._device = device
        self._rates = {precision: matmul_rate(device, precision)}
        self._counted: dict[Any, float | None] = {}
        if own_model:
            _counted(nn.Linear(1, 1, device="meta"), torch.zeros(1, 1))  # imports for a second

    def ideal_seconds(self, stack: StackInputs) -> float | None:
        """Return the seconds of one model-step; None where its products cannot be counted."""
        precision = stack.hyperparameters[0].precision
        if precision not in self._rates:
            self._rates[precision] = matmul_rate(self._device, precision)
        rate, needed = self._rates[precision], self._operations(stack)
        return None if rate is None or needed is None else needed / rate

    def _operations(self, stack: StackInputs) -> float | None:
        """Count once for all stacks that are alike: a sweep may have thousands."""
        h = stack.hyperparameters[0]
        sets = tuple(X if X is None else tuple(X.shape) for X in _inputs(stack))
        shapes = tuple((name, tuple(p.shape)) for name, p in stack.models[0].named_parameters())
        schedule = (h.online, h.centered, h.eval_every, h.max_iter)
        key = (type(stack.models[0]), shapes, sets, _initial_share(stack), schedule)
        if key not in self._counted:
            self._counted[key] = operations(stack)
        return self._counted[key]


def operations(stack: StackInputs) -> float | None:
    """Return the floating-point operations in matrix products that one model-step needs.

    They are counted on one network of the stack without computing anything: the forward and the
    backward pass on a batch; online, and CENTERED, the forward pass of the network at
    initialisation, which configs that begin alike share; offline, the share of a step in the
    evaluations of the test set. Optimizers, losses and grabs are not counted.

    Returns:
        None where a network cannot be evaluated without its numbers.
    """
    h, model = stack.hyperparameters[0], stack.models[0]
    X, X_test = _inputs(stack)
    try:
        forward, step = _passes(model, X)
        if h.online:
            return step + (forward * _initial_share(stack) if h.centered else 0)
        if X_test is None:
            return step
        return (
            step + _passes(model, X_test)[0] * Schedule(h.eval_every, h.max_iter).count / h.max_iter
        )
    except Exception:  # a network of the user's may do whatever it likes with the numbers
        return None


def _inputs(stack: StackInputs) -> tuple[Tensor, Tensor | None]:
    """Return the inputs of a batch, and of the test set: sources hand out again what they drew."""
    test = stack.test_fns[0](0)[0] if stack.test_fns else None
    return stack.batch_fns[0](0)[0], test


def _initial_share(stack: StackInputs) -> float:
    """Return the share of the configs that begin with networks of their own, or on other batches.

    GAMMA multiplies the outputs of an MLP, so that it makes no network another.
    """
    settings = zip(stack.hyperparameters, stack.trials, stack.batch_fns, strict=True)
    built_in = type(stack.models[0]) is MLP
    networks = {(h.seed, t, None if built_in else h.gamma, id(fn)) for h, t, fn in settings}
    return len(networks) / len(stack.models)


def _passes(model: nn.Module, X: Tensor) -> tuple[float, float]:
    """Return the operations of a forward pass, and of a forward and a backward pass."""
    if type(model) is not MLP:
        return _counted(model, X)
    # Two per weight and sample; backward twice that, but for the inputs of the first layer.
    layers = [model.input_layer, *model.hidden_layers, model.output_layer]
    first, *others = [p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2]
    forward = 2.0 * len(X) * (first + sum(others))
    return forward, 3 * forward - 2 * len(X) * first


def _counted(model: nn.Module, X: Tensor) -> tuple[float, float]:
    """Return the same as torch counts it."""
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(model)  # which may keep what it has seen last
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        output: Tensor = functional_call(model, _shapes_alone(model), (X.to("meta"),))
        forward = float(counter.get_total_flops())
        torch.autograd.backward(output.square().sum())
    return forward, float(counter.get_total_flops())


def _shapes_alone(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model without their numbers."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in named
    }
