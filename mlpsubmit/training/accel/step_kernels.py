"""What follows the gradients, in a call each: the smoothing of the losses, and SGD."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.native.library import library
from mlpsubmit.training.accel.kernels import kernel_module, launch, passes, relative_difference

__all__ = ["AdamStep", "LossStep", "SgdStep", "adam_step", "fused_loss_step", "sgd_step"]

#: Entries that a program of SGD updates, parameters in a launch, and configs per program of losses.
BLOCK, TOGETHER, CONFIGS = 1024, 8, 128

#: From parameters (K, ...), gradients (K, ...), learning rates (K, P) and which are updated, (K, 1)
#: or (K, P) bool, to nothing: it changes the parameters.
SgdStep = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], None]


@functools.cache
def sgd_step(device: torch.device, dtype: torch.dtype) -> SgdStep | None:
    """Return a function that makes p -= lr g where the last argument is true, in one pass.

    Parameters must be contiguous. None where no kernel runs. On a CPU it has the bits of the
    formula.
    """
    step, tolerance = _sgd_on_gpu, 1e-6
    if kernel_module(device.type) is None:
        functions = library(dtype) if device.type == "cpu" else None
        if functions is None:
            return None
        step, tolerance = functools.partial(_sgd_on_cpu, functions.sgd), 0.0
    difference = functools.partial(_sgd_difference, step, device, dtype)
    return step if passes("SGD", difference, tolerance) else None


def _sgd_on_cpu(
    function: Any,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    lrs: Tensor,
    updated: Tensor,
) -> None:
    gradients = [g.contiguous() for g in gradients]
    updated, K, P = updated.expand_as(lrs), len(lrs), len(parameters)
    addresses = ctypes.c_void_p * P
    sizes = (ctypes.c_size_t * P)(*[p.numel() // K for p in parameters])
    function(
        *(torch.get_num_threads(), K, P, sizes),
        addresses(*[p.data_ptr() for p in parameters]),
        addresses(*[g.data_ptr() for g in gradients]),
        *(lrs.data_ptr(), *lrs.stride(), updated.data_ptr(), *updated.stride()),
    )


#: From p, g, m, v (K, ...), lr, eps and which are updated (K,), and beta1, beta2, 1 - beta1^t and
#: the square root of 1 - beta2^t to nothing: it changes p, m and v.
AdamStep = Callable[..., None]


@functools.cache
def adam_step(device: torch.device, dtype: torch.dtype, formula: AdamStep) -> AdamStep | None:
    """Return a function that makes a step of Adam for one parameter in one pass, on a CPU.

    It has the bits of the formula, which is given lr and eps as (K, 1). None where none runs.
    """
    functions = library(dtype) if device.type == "cpu" else None
    if functions is None:
        return None
    step = functools.partial(_adam_on_cpu, functions.adam)
    difference = functools.partial(_adam_difference, step, dtype, formula)
    return step if passes("Adam", difference, 0.0) else None


def _adam_on_cpu(function: Any, *arguments: Any) -> None:
    p, g, m, v, lr, eps, updated, beta1, beta2, correction, root = arguments
    g = g.contiguous()
    function(
        *(torch.get_num_threads(), len(p), p.numel() // len(p)),
        *(p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr()),
        *(lr.data_ptr(), lr.stride(0), eps.data_ptr(), eps.stride(0)),
        *(updated.data_ptr(), updated.stride(0), beta1, beta2),
        *(correction.data_ptr(), root.data_ptr()),
    )


def _adam_difference(step: AdamStep, dtype: torch.dtype, formula: AdamStep) -> float:
    random = torch.Generator().manual_seed(0)
    state = list(torch.randn(4, 2, 37, generator=random, dtype=dtype).exp())
    lr, eps = torch.rand(2, 2, generator=random, dtype=dtype)
    numbers = (0.9, 0.999, torch.tensor(0.19).double(), torch.tensor(0.04).double())
    found, wanted = ([part.clone() for part in state] for _ in range(2))
    step(*found, lr, eps, torch.tensor([True, True]), *numbers)
    formula(*wanted, lr.unsqueeze(1), eps.unsqueeze(1), *numbers)
    return relative_difference(zip(found, wanted, strict=True))


def _sgd_on_gpu(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], lrs: Tensor, updated: Tensor
) -> None:
    column = updated.stride(1) if updated.shape[1] > 1 else 0
    for start in range(0, len(parameters), TOGETHER):
        ps = tuple(p.detach() for p in parameters[start : start + TOGETHER])
        gs = tuple(g.contiguous() for g in gradients[start : start + TOGETHER])
        sizes = tuple(p[0].numel() for p in ps)
        rates, made = lrs[:, start:], updated[:, start:] if column else updated
        strides, blocks = (*rates.stride(), made.stride(0), column), -(-max(sizes) // BLOCK)
        arguments = (ps, gs, sizes, blocks, rates, made, *strides)
        grid = (blocks * len(ps[0]), 1)
        launch(ps[0].device, "sgd_step", grid, *arguments, P=len(ps), BLOCK=BLOCK)


def _sgd_difference(step: SgdStep, device: torch.device, dtype: torch.dtype) -> float:
    numbers = torch.linspace(-1, 1, 2 * (BLOCK + 1), device=device, dtype=dtype).view(2, -1)
    old, lrs = [numbers, numbers[:, :3].contiguous()], numbers[:, 4:6]
    gradients = [one.flip(1).contiguous() for one in old]
    new, updated = [one.clone() for one in old], torch.tensor([[True], [False]], device=device)
    step(new, gradients, lrs, updated)
    expected = [
        one - gradient * (lrs[:, i : i + 1] * updated)
        for i, (one, gradient) in enumerate(zip(old, gradients, strict=True))
    ]
    return relative_difference(zip(new, expected, strict=True))


#: Smooths losses (K,), counts the step and compares with thresholds, as the formulas of
#: :mod:`mlpsubmit.training.loss_history` do.
LossStep = Callable[..., Tensor]


@functools.cache
def fused_loss_step(device: torch.device, formulas: LossStep) -> LossStep | None:
    """Return a kernel that computes what ``formulas`` do, bit for bit; None where none runs."""
    if kernel_module(device.type) is not None:
        difference = functools.partial(_loss_difference, _losses_on_gpu, device, formulas)
        return _losses_on_gpu if passes("losses", difference, 0.0) else None
    if device.type != "cpu" or library(torch.float32) is None:
        return None
    for contracts in (True, False):
        step = functools.partial(_losses_on_cpu, contracts)
        if _loss_difference(step, device, formulas) == 0:
            return step
    return None


def _losses_on_cpu(contracts: bool, losses: Tensor, *arguments: Any) -> Tensor:
    *state, stops = arguments
    (K, T), made = state[-1].shape, torch.empty_like(state[1], dtype=torch.bool)
    losses, functions = losses.to(torch.float64).contiguous(), library(torch.float32)
    assert functions is not None
    pointers = [one.data_ptr() for one in (losses, *state, made)]
    functions.loss_step(K, T, *pointers, stops, contracts)
    return made


def _losses_on_gpu(losses: Tensor, *arguments: Any) -> Tensor:
    *state, stops = arguments
    *_, crossed_after = state
    K, T = crossed_after.shape
    made = torch.empty(K, dtype=torch.bool, device=losses.device)
    grid, options = (-(-K // CONFIGS), 1), {"STOPS": stops, "CONFIGS": CONFIGS}
    launch(losses.device, "loss_step", grid, losses.contiguous(), *state, made, K, T, **options)
    return made


def _loss_difference(step: LossStep, device: torch.device, formulas: LossStep) -> float:
    """Return how many results differ in any bit, for losses of which some are not finite."""
    cases = ((3, True), (2, False), (0, False))
    return sum(_differing_losses(step, device, formulas, T, stops) for T, stops in cases)


def _differing_losses(
    step: LossStep, device: torch.device, formulas: LossStep, T: int, stops: bool
) -> float:
    found = list[list[Tensor]]()
    for one in (step, formulas):
        random, K = torch.Generator().manual_seed(0), CONFIGS + 5
        losses, smoothed = torch.randn(2, K, generator=random).exp()
        losses[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        smoother = torch.rand(K, generator=random, dtype=torch.float64)  # of all digits
        thresholds = torch.randn(K, T, generator=random).double().exp()
        uncrossed = torch.rand(K, T, generator=random) < 0.7
        active = torch.rand(K, generator=random) < 0.8
        counts = torch.arange(K)
        state = [smoothed.double(), smoother, active, counts, thresholds, uncrossed]
        state = [part.to(device) for part in (*state, torch.zeros(K, T, dtype=torch.int64))]
        made = one(losses.to(device), *state, stops)
        found.append([*state, made])
    bits = [[one.nan_to_num(-1.0) for one in results] for results in found]
    return float(sum(not torch.equal(a, b) for a, b in zip(*bits, strict=True)))
