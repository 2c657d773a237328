"""Measurements of what a network computes inside: hidden activations, kernels, preactivations.

They hold for any model of Linear and Conv2d layers: the activations of hidden layer l, counted
from 0, are what layer l + 1 receives, nonlinearity, pooling and whatever else stands between
included. So a network of L layers has L - 1 hidden ones, and the last one feeds the read-out.
The network is evaluated in the precision of its weights, whatever PRECISION it is trained in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.layers import Layer, layers_of, position
from mlpsubmit.grabs.samples import first_rows

__all__ = ["activation_kernel", "activations", "preactivation_stats"]


def activations(
    model: nn.Module, X_tr: Tensor, hidden: int = -1, rows: int | None = None
) -> Tensor:
    """Return the activations of one hidden layer, after its nonlinearity, (n, width).

    Args:
        model: any model of at least two Linear or Conv2d layers.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        hidden: which hidden layer: 0 is the first, -1 the last, which feeds the read-out.
        rows: only those of the first so many inputs, as traces of (n, width) grow large.

    Returns:
        (n, width); those of a convolution are flattened to (n, channels x height x width).

    Raises:
        SpecError: for a hidden layer that the model does not have, or does not use, and for what
            is no number of rows.

    Example:
        >>> activations(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), torch.ones(4, 3)).shape
        torch.Size([4, 5])
    """
    return _activations("activations", model, X_tr, hidden, rows)


def activation_kernel(
    model: nn.Module, X_tr: Tensor, hidden: int = -1, rows: int | None = None
) -> Tensor:
    """Return the kernel of one hidden layer's activations A (n, width): A A^T / width, (n, n).

    With hidden=-1 that is the conjugate kernel, in which the read-out is linear.

    Args:
        model: any model of at least two Linear or Conv2d layers.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        hidden: which hidden layer: 0 is the first, -1 the last, which feeds the read-out.
        rows: only the kernel of the first so many inputs.

    Raises:
        SpecError: for a hidden layer that the model does not have, or does not use, and for what
            is no number of rows.

    Example:
        >>> activation_kernel(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), torch.eye(3)).shape
        torch.Size([3, 3])
    """
    A = _activations("activation_kernel", model, X_tr, hidden, rows)
    return A @ A.T / A.shape[1]


def preactivation_stats(model: nn.Module, X_tr: Tensor, rows: int | None = None) -> Tensor:
    r"""Return statistics of what each layer puts out before its nonlinearity, (layers, 4).

    That is g (W x + b), the forward multiplier g of the parametrization included, over all inputs
    and units; of the last layer it is the output of the network. The factor sqrt(2) that ReLU
    modules put on their input is not in it. The columns are

    0. the mean,
    1. the standard deviation,
    2. the fraction > 0 (the share of active ReLUs),
    3. the largest absolute value.

    Args:
        model: any model with a Linear or Conv2d layer.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        rows: only over the first so many inputs.

    Raises:
        SpecError: where the model has no such layer, or has one that it does not use, and for
            what is no number of rows.

    Example:
        >>> preactivation_stats(nn.Linear(3, 5), torch.ones(4, 3)).shape
        torch.Size([1, 4])
    """
    X = first_rows("preactivation_stats", X_tr, rows)
    layers = layers_of(model)
    stats: dict[Layer, Tensor] = {}

    # After all other hooks of the layer, the multiplier's among them.
    def measure(layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        stats[layer] = _statistics(output)

    _forward(model, X, [layer.register_forward_hook(measure) for layer in layers])
    unused = [index for index, layer in enumerate(layers) if layer not in stats]
    if unused:
        raise _unused("preactivation_stats", model, unused[0])
    return torch.stack([stats[layer] for layer in layers])


def _activations(
    grab: str, model: nn.Module, X_tr: Tensor, hidden: int, rows: int | None
) -> Tensor:
    X = first_rows(grab, X_tr, rows)
    layers = layers_of(model)
    if len(layers) < 2:
        raise SpecError(
            f"{grab}: {type(model).__name__} has one layer and so no hidden one; it takes a model "
            "of at least two Linear or Conv2d layers; try preactivation_stats"
        )
    what = f"{type(model).__name__} has {len(layers) - 1} hidden layers"
    place = position(grab, "hidden", hidden, len(layers) - 1, what) + 1
    received: list[Tensor] = []

    # A copy, as the model may change in place what it has handed to the layer.
    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received.append(args[0].flatten(1).clone())

    _forward(model, X, [layers[place].register_forward_pre_hook(keep)])
    if not received:
        raise _unused(grab, model, place)
    return received[-1]


@torch.no_grad()
def _forward(model: nn.Module, X: Tensor, hooks: list[RemovableHandle]) -> None:
    """Evaluate the model while these hooks of its layers listen, and take them off again."""
    try:
        model(X)
    finally:
        for hook in hooks:
            hook.remove()


def _statistics(values: Tensor) -> Tensor:
    active = (values > 0).to(values.dtype).mean()
    return torch.stack([values.mean(), values.std(correction=0), active, values.abs().amax()])


def _unused(grab: str, model: nn.Module, layer: int) -> SpecError:
    return SpecError(
        f"{grab}: {type(model).__name__} has a layer {layer} that its forward pass does not call; "
        "take it out of the model, or write a grab of your own"
    )
