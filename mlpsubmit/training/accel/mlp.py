"""MLPs in closed form: what vmap and autograd compute, in fewer passes over the activations.

With weights W, biases b and forward multipliers g, a hidden layer computes
relu(sqrt(2) g (W x + b)), which equals c relu(W x + b) with c = sqrt(2) g (c = g where a
parametrization has no ReLU gain). So relu(W x + b) is what is stored, and c is a factor of the next
matrix product, where it costs nothing. Gradients follow from these formulas by backpropagation.
:mod:`mlpsubmit.training.accel.native_mlp` computes the same on a CPU, network by network, and
:mod:`mlpsubmit.training.accel.narrow_mlps` for narrow MLPs on a GPU, in one launch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.training.accel.layer_products import LayerProducts, layer_products, product
from mlpsubmit.training.accel.narrow_mlps import NarrowKernel
from mlpsubmit.training.accel.native_mlp import NativeMLP
from mlpsubmit.training.batches import Batch, column
from mlpsubmit.training.losses import (
    StackedLoss,
    differentiated,
    mse,
    partial_derivatives,
    takes_params,
)
from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import is_plain, relu_scale

__all__ = ["ClosedForm"]

#: Where only outputs are needed: activations of one layer computed at a time, for all networks
#: together (a megabyte, about a core's cache), and the fewest samples computed at a time.
_CACHED, _SAMPLES = 2**18, 64


class ClosedForm:
    """Outputs and gradients of K stacked MLPs of equal shapes.

    Get one from :meth:`of`.

    Args:
        layers: the names of the Linear layers, the read-in first.
        scales: c of every layer but the read-out.
        products: of the layers.
    """

    #: The tensors, not trained, that :meth:`scaled` multiplies outputs by. They hold GAMMA, on
    #: which nothing else in the forward pass depends.
    OUTPUT_SCALE = "output_layer.multiplier"

    def __init__(
        self, layers: Sequence[str], scales: Sequence[float], products: LayerProducts
    ) -> None:
        self._layers, self._products = list(layers), products
        self._names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        #: Per layer, the factor c that its input still lacks.
        self._scales = [1.0, *scales]
        #: Computes losses and gradients under mse, where there is one.
        self.kernel: NarrowKernel | None = None
        #: Computes all of it on a CPU, where there is one and networks enough.
        self.native: NativeMLP | None = None

    @classmethod
    def of(
        cls, models: Sequence[nn.Module], precision: str, device: torch.device
    ) -> ClosedForm | None:
        """Return the closed form of these models, or None where the formulas do not hold for all.

        They hold for MLPs that have no hooks but those of a parametrization, and whose weights are
        all trained; in bf16 they are not used.
        """
        if precision == "bf16":
            return None
        first = models[0]
        if not isinstance(first, MLP):
            return None
        hidden = [f"hidden_layers.{i}" for i in range(len(first.hidden_layers))]
        layers = ["input_layer", *hidden, "output_layer"]
        modules = dict(first.named_modules())
        kinds = ((layer, kind) for layer in layers for kind in ("weight", "bias"))
        expected = {
            f"{a}.{kind}" for a, kind in kinds if getattr(modules.get(a), kind, None) is not None
        }
        named = dict(first.named_parameters())  # without those that are tied to another
        if set(named) != expected or not all(p.requires_grad for p in named.values()):
            return None
        common, *others = {_scales(model) for model in models}
        if others or common is None:
            return None
        dtype = named["input_layer.weight"].dtype
        form = cls(layers, common, layer_products(precision, dtype, device))
        plain = cls(layers, common, LayerProducts())
        formulas = partial(plain.losses_and_gradients, loss=mse)
        tensors = {**named, **dict(first.named_buffers())}
        scales = (1.0, *common)
        form.kernel = NarrowKernel.of(tuple(layers), scales, tensors, device, formulas)
        if device.type == "cpu":
            form.native = NativeMLP.of(layers, scales, cls.OUTPUT_SCALE, tensors, formulas)
        return form

    @property
    def method(self) -> str:
        """How gradients are computed, which decides how they round."""
        if self.native is not None:
            return self.native.method
        narrow = "" if self.kernel is None else "the kernel for narrow MLPs, and "
        return narrow + self._products.method

    def losses_and_gradients(
        self,
        tensors: Mapping[str, Tensor],
        batch: Batch,
        initial_output: Tensor | float,
        loss: StackedLoss,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return losses (K,), and gradients (K, ...) by name of parameter.

        Args:
            tensors: the parameters and buffers, each (K, ...).
            initial_output: (K, n, ...), subtracted from the outputs, or a number.
            loss: from outputs (K, n, ...) and targets to losses (K,).
            kept: takes the outputs minus ``initial_output``, unless a kernel computes them.
        """
        if self.kernel is not None and loss is mse:
            return self.kernel(tensors, batch, initial_output)
        if loss is mse and (native := self._native(tensors)) is not None:
            with torch.no_grad():
                return native.mse_gradients(tensors, batch, initial_output, kept)
        with torch.no_grad():
            signals, output = self._forward(tensors, batch)
            output = output - initial_output
        if kept is not None:
            kept.append(output)
        # A callable loss may do anything with the targets.
        direct: dict[str, Tensor] = {}
        if takes_params(loss):
            params = {name: tensors[name] for name in self._names if name in tensors}
            losses, d_output, direct = partial_derivatives(loss, output, batch.targets, params)
        else:
            losses, d_output = differentiated(loss, output, batch.targets)
        with torch.no_grad():
            gradients = self._backward(tensors, batch, signals, d_output)
            for name, gradient in direct.items():
                gradients[name] += gradient
            return losses, gradients

    def _native(self, tensors: Mapping[str, Tensor]) -> NativeMLP | None:
        """Return the functions in C, if they suit these networks."""
        K = len(tensors[f"{self._layers[0]}.weight"])
        return self.native if self.native is not None and self.native.suits(K) else None

    def _forward(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Any, Tensor]:
        """Return what :meth:`_backward` needs, and the outputs (K, n, d_out)."""
        if (native := self._native(tensors)) is not None:
            return native.forward(tensors, batch)
        signals = list(self._signals(tensors, batch.X, batch.shared))
        return signals, signals[-1]

    def _signals(self, tensors: Mapping[str, Tensor], X: Tensor, shared: bool) -> Iterator[Tensor]:
        """Yield the signals: inputs (K, n, d), relu(W x + b) of hidden layers, and the outputs.

        Args:
            X: inputs, (n, ...) where they are shared, else (K, n, ...).
        """
        K = len(tensors[f"{self._layers[0]}.weight"])
        signal = X.flatten(1).expand(K, -1, -1) if shared else X.flatten(2)
        yield signal
        for layer, scale in zip(self._layers, self._scales, strict=True):
            W, b = tensors[f"{layer}.weight"], tensors.get(f"{layer}.bias")
            if layer == self._layers[-1]:
                signal = self.scaled(tensors, product(signal, W.mT, scale, b))
            else:
                signal = self._products.hidden(signal, W, scale, b)
            yield signal

    def scaled(self, tensors: Mapping[str, Tensor], signal: Tensor) -> Tensor:
        """Return a signal (K, n, d_out) times the read-outs' multipliers, if they have any."""
        multiplier = tensors.get(self.OUTPUT_SCALE)
        return signal if multiplier is None else signal * column(multiplier, signal)

    def outputs(self, tensors: Mapping[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        """Return the outputs (K, n, d_out) alone, on a CPU a few samples at a time.

        The activations of a large test set would not fit into its caches, and each is read once.
        """
        if (native := self._native(tensors)) is not None:
            return native.outputs(tensors, X, shared)
        dim = 0 if shared else 1
        K, width, *_ = tensors[f"{self._layers[0]}.weight"].shape
        samples = max(_SAMPLES, _CACHED // (K * width)) if X.device.type == "cpu" else X.shape[dim]
        parts = [
            deque(self._signals(tensors, part, shared), maxlen=1).pop()
            for part in torch.split(X, samples, dim)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _backward(
        self, tensors: Mapping[str, Tensor], batch: Batch, signals: Any, d_output: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients (K, ...) by name, from that with respect to the outputs.

        Args:
            signals: from :meth:`_forward`.
        """
        if (native := self._native(tensors)) is not None:
            return native.backward(tensors, batch, signals, d_output)
        gradients = {}
        has_bias = [f"{layer}.bias" in tensors for layer in self._layers]
        d = self.scaled(tensors, d_output)
        sums = d.sum(1) if has_bias[-1] else None
        for i in reversed(range(len(self._layers))):
            layer, scale, signal = self._layers[i], self._scales[i], signals[i]
            gradients[f"{layer}.weight"] = self._products.weight_gradient(d, signal, scale)
            if sums is not None:
                gradients[f"{layer}.bias"] = sums
            if i:
                W = tensors[f"{layer}.weight"]
                d, sums = self._products.errors(d, W, scale, signal, has_bias[i - 1])
        return gradients


def _scales(model: nn.Module) -> tuple[float, ...] | None:
    """Return c of each layer of an MLP but the read-out, or None where the formulas do not hold."""
    if not (isinstance(model, MLP) and is_plain(model, MLP)):
        return None
    layers = [model.input_layer, *model.hidden_layers, model.output_layer]
    scales = [relu_scale(layer, model.nonlin) for layer in layers]
    found = tuple(scale for scale in scales if scale is not None)
    readout = model.output_layer
    if hasattr(readout, "multiplier") != bool(readout._forward_hooks):
        return None  # a hook or a multiplier that no parametrization has set
    # A layer that occurs twice gets gradients from both places.
    return found[:-1] if len(found) == len(set(layers)) == len(layers) else None
