"""Multilayer perceptrons by explicit formulas: what vmap and autograd compute, in fewer passes.

With weights W, biases b and forward multipliers g, a hidden layer gives relu(sqrt(2) g (W x + b)),
that is c relu(W x + b) with c = sqrt(2) g (c = g without the gain of a parametrization). So
relu(W x + b) is what is kept, and c multiplies inside the next matrix product: no pass over the
activations is spent on multipliers. Gradients are those of backpropagation through these formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mlpsubmit.training.batches import column
from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import is_plain, relu_scale

__all__ = ["Perceptrons"]

#: Activations of one layer that are computed at a time where only outputs are wanted, for all
#: networks together, and the fewest rows that are: a megabyte is about what a core's cache holds.
_CACHED, _ROWS = 2**18, 64


class Perceptrons:
    """K multilayer perceptrons of equal shapes, as stacked tensors, evaluated and differentiated.

    Get one from :meth:`of`.

    Args:
        layers: the names of the Linear layers, the read-in first.
        scales: c of every layer but the read-out.
    """

    def __init__(self, layers: Sequence[str], scales: Sequence[float]) -> None:
        self._layers = list(layers)
        #: Names of the tensors, not trained, that :meth:`scaled` multiplies outputs by.
        self.scaling = ("output_layer.multiplier",)
        #: What the signal that enters each layer is still to be multiplied by.
        self._scales = [1.0, *scales]

    @classmethod
    def of(cls, models: Sequence[nn.Module]) -> Perceptrons | None:
        """Return what evaluates these models, or None where the formulas do not fit them all.

        They fit MLPs with the hooks of a parametrization and no others, whose weights are trained.
        """
        first = models[0]
        if not isinstance(first, MLP):
            return None
        hidden = [f"hidden_layers.{i}" for i in range(len(first.hidden_layers))]
        layers = ["input_layer", *hidden, "output_layer"]
        known = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        named = dict(first.named_parameters())
        if not all(name in known and p.requires_grad for name, p in named.items()):
            return None
        scales = {_scales(model) for model in models}
        common = scales.pop()
        return None if scales or common is None else cls(layers, common)

    def forward(self, tensors: Mapping[str, Tensor], X: Tensor, shared: bool) -> list[Tensor]:
        """Return the signals: inputs (K, n, d), relu(W x + b) of hidden layers, and the outputs.

        Args:
            tensors: the parameters and buffers, each (K, ...).
            X: inputs, (n, ...) where they are shared, else (K, n, ...).
        """
        K = len(tensors["input_layer.weight"])
        signals = [X.flatten(1).expand(K, -1, -1) if shared else X.flatten(2)]
        for layer, scale in zip(self._layers, self._scales, strict=True):
            W, b = tensors[f"{layer}.weight"], tensors.get(f"{layer}.bias")
            product = _product(signals[-1], W.mT, scale, b)
            signals.append(product if layer == "output_layer" else product.relu_())
        signals[-1] = self.scaled(tensors, signals[-1])
        return signals

    def scaled(self, tensors: Mapping[str, Tensor], signal: Tensor) -> Tensor:
        """Return a signal (K, n, d_out) times the read-outs' multipliers, if they have any.

        GAMMA is in them, and nothing else of a network's forward pass depends on it.
        """
        for multiplier in (tensors.get(name) for name in self.scaling):
            signal = signal if multiplier is None else signal * column(multiplier, signal)
        return signal

    def outputs(self, tensors: Mapping[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        """Return the outputs (K, n, d_out) alone, on a CPU a few rows at a time.

        The activations of a large test set would not fit in its caches, and each is read once.
        """
        rows = 0 if shared else 1
        K, width, *_ = tensors["input_layer.weight"].shape
        at_a_time = max(_ROWS, _CACHED // (K * width)) if X.device.type == "cpu" else X.shape[rows]
        parts = [
            self.forward(tensors, part, shared)[-1] for part in torch.split(X, at_a_time, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def gradients(
        self, tensors: Mapping[str, Tensor], signals: Sequence[Tensor], d_output: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients of the parameters by name, each (K, ...).

        Args:
            tensors: as in :meth:`forward`.
            signals: what that returned.
            d_output: (K, n, d_out), the gradient with respect to the outputs.
        """
        found = {}
        d = self.scaled(tensors, d_output)
        for place in range(len(self._layers) - 1, -1, -1):
            layer, scale, signal = self._layers[place], self._scales[place], signals[place]
            found[f"{layer}.weight"] = _product(d.mT, signal, scale)
            if f"{layer}.bias" in tensors:
                found[f"{layer}.bias"] = d.sum(1)
            if place:
                d = _product(d, tensors[f"{layer}.weight"], scale)
                # In place: zero where the unit was silent.
                torch.ops.aten.threshold_backward.grad_input(d, signal, 0, grad_input=d)
        return found


def _scales(model: nn.Module) -> tuple[float, ...] | None:
    """Return c of each layer of an MLP but the read-out, or None where it is no such network."""
    if not (isinstance(model, MLP) and is_plain(model, MLP)):
        return None
    layers = [model.input_layer, *model.hidden_layers, model.output_layer]
    scales = [relu_scale(layer, model.nonlin) for layer in layers]
    found = tuple(scale for scale in scales if scale is not None)
    readout = model.output_layer
    if hasattr(readout, "multiplier") != bool(readout._forward_hooks):
        return None  # somebody else's, which may mean anything
    # A layer that stands twice has gradients from both places.
    return found[:-1] if len(found) == len(set(layers)) == len(layers) else None


def _product(A: Tensor, B: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return scale A B (K, n, m), plus a bias (K, m) where there is one."""
    if bias is not None:
        return torch.baddbmm(bias.unsqueeze(1), A, B, alpha=scale)
    if scale == 1.0:
        return torch.bmm(A, B)
    unread = A.new_empty(()).expand(len(A), A.shape[1], B.shape[2])
    return torch.baddbmm(unread, A, B, beta=0, alpha=scale)
