"""Measurements of hidden layers: activations, their kernels, and statistics of preactivations.

They apply to any model of Linear and Conv2d layers. The activations of hidden layer l, counted from
0, are the input of layer l + 1, after the nonlinearity, pooling and anything else in between. So a
network of L layers has L - 1 hidden ones, and the last one is the input of the read-out. The
network is evaluated in the precision of its weights, whatever PRECISION is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.layers import Layer, layers_of, position
from mlpsubmit.grabs.samples import first_rows

__all__ = ["activation_kernel", "activations", "preactivation_stats"]


@labelled("_sample", "_unit", long_name="activation")
def activations(
    model: nn.Module, X_tr: Tensor, hidden: int = -1, rows: int | None = None
) -> Tensor:
    """Return the activations of one hidden layer, after its nonlinearity, (n, width).

    Args:
        model: any model of at least two Linear or Conv2d layers.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        hidden: which hidden layer: 0 is the first, -1 the last, which feeds the read-out. Of one
            whose next layer is called several times it is the input of the last call.
        rows: number of inputs, the first ones, that are measured (traces of (n, width) grow large);
            None for all.

    Returns:
        (n, width); those of a convolution are flattened to (n, channels x height x width).

    Raises:
        SpecError: for a hidden layer that the model does not have or does not call, and for an
            invalid number of rows.

    Example:
        >>> activations(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), torch.ones(4, 3)).shape
        torch.Size([4, 5])
    """
    X = first_rows("activations", X_tr, rows)
    layers = layers_of(model)
    if len(layers) < 2:
        raise SpecError(
            f"activations: {type(model).__name__} has one layer and so no hidden one; it takes a "
            "model of at least two Linear or Conv2d layers; try preactivation_stats"
        )
    count = f"{type(model).__name__} has {len(layers) - 1} hidden layers"
    index = position("activations", "hidden", hidden, len(layers) - 1, count) + 1
    received: list[Tensor] = []

    # A copy, since the model may modify the input of the layer in place.
    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received.append(args[0].flatten(1).clone())

    _forward(model, X, [layers[index].register_forward_pre_hook(keep)])
    if not received:
        raise _unused("activations", model, index)
    return received[-1]


@labelled("_sample", "_other_sample", long_name="kernel of the activations")
def activation_kernel(
    model: nn.Module, X_tr: Tensor, hidden: int = -1, rows: int | None = None
) -> Tensor:
    """Return the kernel of one hidden layer's activations A (n, width): A A^T / width, (n, n).

    With hidden=-1 it is the conjugate kernel, that of training the read-out alone.

    Args:
        model: any model of at least two Linear or Conv2d layers.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        hidden: which hidden layer: 0 is the first, -1 the last, which feeds the read-out.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.

    Raises:
        SpecError: for a hidden layer that the model does not have or does not call, and for an
            invalid number of rows.

    Example:
        >>> activation_kernel(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), torch.eye(3)).shape
        torch.Size([3, 3])
    """
    A = activations(model, X_tr, hidden, rows)
    return A @ A.T / A.shape[1]


@labelled(
    *("layer", "statistic"),
    long_name="preactivations",
    coords={"statistic": ("mean", "standard deviation", "share > 0", "largest absolute value")},
)
def preactivation_stats(model: nn.Module, X_tr: Tensor, rows: int | None = None) -> Tensor:
    r"""Return statistics of each layer's result before the nonlinearity, (layers, 4).

    They are over the entries of g (W x + b), with the forward multiplier g of the parametrization,
    for all inputs and units; for the last layer, over the outputs of the network. Of a layer that
    is called several times they are those of the last call. The factor
    sqrt(2) that ReLU modules apply to their input is not included. The columns are

    0. the mean,
    1. the standard deviation,
    2. the fraction > 0 (the share of active ReLUs),
    3. the largest absolute value.

    Args:
        model: any model with a Linear or Conv2d layer.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        rows: number of inputs, the first ones, that are measured; None for all.

    Raises:
        SpecError: if the model has no such layer, or has one that it does not call, and for an
            invalid number of rows.

    Example:
        >>> preactivation_stats(nn.Linear(3, 5), torch.ones(4, 3)).shape
        torch.Size([1, 4])
    """
    X = first_rows("preactivation_stats", X_tr, rows)
    layers = layers_of(model)
    stats: dict[Layer, Tensor] = {}

    # After all other hooks of the layer, including that of the multiplier.
    def measure(layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        active = (output > 0).to(output.dtype).mean()
        spread = output.std(correction=0)
        stats[layer] = torch.stack([output.mean(), spread, active, output.abs().amax()])

    _forward(model, X, [layer.register_forward_hook(measure) for layer in layers])
    unused = [index for index, layer in enumerate(layers) if layer not in stats]
    if unused:
        raise _unused("preactivation_stats", model, unused[0])
    return torch.stack([stats[layer] for layer in layers])


@torch.no_grad()
def _forward(model: nn.Module, X: Tensor, hooks: list[RemovableHandle]) -> None:
    """Evaluate the model with these hooks of its layers, and remove the hooks."""
    try:
        model(X)
    finally:
        for hook in hooks:
            hook.remove()


def _unused(grab: str, model: nn.Module, layer: int) -> SpecError:
    return SpecError(
        f"{grab}: {type(model).__name__} has a layer {layer} that its forward pass does not call; "
        "remove it from the model, or write your own grab"
    )
