"""The plain loop that mlpsubmit is compared with, as researchers write it.

One ``nn.Module`` at a time, layers whose forward functions are scaled, ``torch.optim`` with a
parameter group per tensor, the output centred by a second forward pass of a frozen copy, losses
read by ``.item()`` at every step, offline a test loss at every step, one thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["reference_speed"]

BatchFn = Callable[[int], tuple[Tensor, Tensor]]


class _Scaled(nn.Module):
    """A layer whose output is multiplied, as mupify's patched forward functions do."""

    def __init__(self, layer: nn.Module, multiplier: float) -> None:
        super().__init__()
        self.layer, self.multiplier = layer, multiplier

    def forward(self, X: Tensor) -> Tensor:
        output: Tensor = self.layer(X)
        return output * self.multiplier


class _Gained(nn.Module):
    def forward(self, X: Tensor) -> Tensor:
        return torch.relu(X * 2**0.5)


def scaled(model: nn.Sequential, gamma: float) -> nn.Sequential:
    """Return the network with the multipliers and initial weights of mup."""
    layers = [module for module in model if isinstance(module, (nn.Linear, nn.Conv2d))]
    width = max(layer.weight.shape[0] for layer in layers[:-1])
    parts: list[nn.Module] = []
    for module in model:
        if module in layers:
            fan_in = module.weight[0].numel()
            q = (1.0 if module is layers[-1] else width) / fan_in
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=width**-0.5)
            parts.append(_Scaled(module, q**0.5 / (gamma if module is layers[-1] else 1.0)))
        else:
            parts.append(_Gained() if isinstance(module, nn.ReLU) else module)
    return nn.Sequential(*parts)


def reference_speed(
    model: nn.Sequential,
    batch_fn: BatchFn,
    *,
    lr: float,
    optimizer: str = "sgd",
    fixed: tuple[Tensor, Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    seconds: float = 1.0,
) -> float:
    """Return the gradient steps per second of the plain loop.

    Args:
        model: Linear, Conv2d, ReLU and Flatten modules.
        batch_fn: returns the batches of online training.
        fixed: the training set of offline training, instead of ``batch_fn``.
        test: the test set, evaluated at every step.
        seconds: duration of the measurement, after a warm-up of a tenth of it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = scaled(model, gamma=1.0)
        initial = copy.deepcopy(model).requires_grad_(False)
        groups = [{"params": [parameter], "lr": lr} for parameter in model.parameters()]
        algorithm = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](groups)
        _train(model, initial, algorithm, batch_fn, fixed, test, seconds / 10)
        return _train(model, initial, algorithm, batch_fn, fixed, test, seconds)
    finally:
        torch.set_num_threads(threads)


def _train(
    model: nn.Module,
    initial: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_fn: BatchFn,
    fixed: tuple[Tensor, Tensor] | None,
    test: tuple[Tensor, Tensor] | None,
    seconds: float,
) -> float:
    """Train for some seconds; return the steps per second."""
    loss_fn = nn.MSELoss()
    smoothed, step, begin = 0.0, 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        X, y = fixed if fixed is not None else batch_fn(step)
        optimizer.zero_grad()
        loss = loss_fn((model(X) - initial(X)).squeeze(), y)
        loss.backward()
        optimizer.step()
        train_loss = loss.item()
        if test is not None:
            with torch.no_grad():
                test_loss = loss_fn((model(test[0]) - initial(test[0])).squeeze(), test[1])
                smoothed = 0.9 * smoothed + 0.1 * test_loss.item()
        smoothed = 0.9 * smoothed + 0.1 * train_loss
        step += 1
    return step / (time.perf_counter() - begin)
