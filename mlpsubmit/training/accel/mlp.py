"""MLPs in closed form: what vmap and autograd compute, in fewer passes over the activations.

With weights W, biases b and forward multipliers g, a hidden layer of ReLUs computes
relu(sqrt(2) g (W x + b)), which equals c relu(W x + b) with c = sqrt(2) g (c = g where a
parametrization has no ReLU gain). So relu(W x + b) is what is stored, and c is a factor of the next
matrix product, where it costs nothing. Of other nonlinearities g is a factor of their own layer's
product, and their derivatives follow from their values. Gradients follow by backpropagation.
:mod:`mlpsubmit.training.accel.native_mlp` computes the same on a CPU, network by network, and
:mod:`mlpsubmit.training.accel.narrow_mlps` for narrow MLPs on a GPU, in one launch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.training.accel.chains import Chain, as_matrices, chain_of, sample_shape
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

__all__ = ["ClosedForm"]

#: Where only outputs are needed: activations of one layer computed at a time, for all networks
#: together (a megabyte, about a core's cache), and the fewest samples computed at a time.
_CACHED, _SAMPLES = 2**18, 64


class ClosedForm:
    """Outputs and gradients of K stacked MLPs of equal shapes.

    Get one from :meth:`of`.

    Args:
        chain: what the models have in common.
        products: of the layers.

    Attributes:
        multiplier: the name of the buffer (K,), not trained, that :meth:`scaled` multiplies outputs
            by. It holds GAMMA, on which nothing else in the forward pass depends.
    """

    def __init__(self, chain: Chain, products: LayerProducts) -> None:
        self._chain, self._products, self.multiplier = chain, products, chain.multiplier
        self._layers = list(zip(chain.layers, chain.scales, chain.bias_scales, strict=True))
        #: Computes losses and gradients under mse, where there is one.
        self.kernel: NarrowKernel | None = None
        #: Computes all of it on a CPU, where there is one.
        self.native: NativeMLP | None = None

    @classmethod
    def of(
        cls, models: Sequence[nn.Module], precision: str, device: torch.device
    ) -> ClosedForm | None:
        """Return the closed form of these models, or None where the formulas do not hold for all.

        They hold for chains (see :mod:`mlpsubmit.training.accel.chains`) whose weights are all
        trained. In bf16 they are not used, nor on a GPU for other models than MLPs of ReLUs.
        """
        if precision == "bf16":
            return None
        chain, *others = {chain_of(model) for model in models}
        if others or chain is None or not _trains_all(models[0], chain):
            return None
        first = models[0]
        if device.type != "cpu" and not (isinstance(first, MLP) and chain.of_relus):
            return None
        tensors = {**dict(first.named_parameters()), **dict(first.named_buffers())}
        dtype = tensors[f"{chain.layers[0]}.weight"].dtype
        form = cls(chain, layer_products(precision, dtype, device))
        formulas = partial(cls(chain, LayerProducts()).losses_and_gradients, loss=mse)
        if device.type == "cpu":
            form.native = NativeMLP.of(chain, tensors, formulas)
        if chain.of_relus:
            form.kernel = NarrowKernel.of(chain.layers, chain.scales, tensors, device, formulas)
        return form

    @property
    def method(self) -> str:
        """How gradients are computed, which decides how they round."""
        if self.native is not None:
            return NativeMLP.method
        narrow = "" if self.kernel is None else "the kernel for narrow MLPs, and "
        return narrow + self._products.method

    def continue_by(self, method: str) -> None:
        """Compute gradients as a saved training did: without functions in C if that had none."""
        if method != NativeMLP.method:
            self.native = None

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
        if loss is mse and self.kernel is not None:
            return self.kernel(tensors, batch, initial_output)
        if loss is mse and (native := self.native) is not None:
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
            losses, d_output, direct = partial_derivatives(
                loss, output, batch.targets, self._weights(tensors)
            )
        else:
            losses, d_output = differentiated(loss, output, batch.targets)
        with torch.no_grad():
            gradients = self._backward(tensors, batch, signals, d_output)
            for name, gradient in direct.items():
                gradients[name] += gradient
            return losses, gradients

    def _weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights and biases, in the order of the layers."""
        names = [f"{layer}.{kind}" for layer in self._chain.layers for kind in ("weight", "bias")]
        return {name: tensors[name] for name in names if name in tensors}

    def _forward(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Any, Tensor]:
        """Return what :meth:`_backward` needs, and the outputs (K, n, d_out)."""
        if (native := self.native) is not None:
            return native.forward(tensors, batch)
        signals = list(self._signals(tensors, batch.X, batch.shared))
        return signals, self._shaped(signals[-1], batch.X, batch.shared)

    def _shaped(self, output: Tensor, X: Tensor, shared: bool) -> Tensor:
        """Return outputs, a row for each, as the model returns them on X: (K, n, ..., d_out)."""
        return output.view(len(output), *sample_shape(self._chain, X, shared), -1)

    def _signals(self, tensors: Mapping[str, Tensor], X: Tensor, shared: bool) -> Iterator[Tensor]:
        """Yield the signals: inputs (K, n, d), those of hidden layers, and the outputs.

        Args:
            X: inputs, (n, ...) where they are shared, else (K, n, ...).
        """
        K = len(tensors[f"{self._chain.layers[0]}.weight"])
        signal = as_matrices(self._chain, X, shared)
        signal = signal.expand(K, -1, -1) if shared else signal
        yield signal
        phis = (*self._chain.phis, None)
        for (layer, scale, bias_scale), phi in zip(self._layers, phis, strict=True):
            W, b = tensors[f"{layer}.weight"], tensors.get(f"{layer}.bias")
            if b is not None and bias_scale != 1.0:
                b = bias_scale * b
            if phi == "relu":
                signal = self._products.hidden(signal, W, scale, b)
            else:
                signal = product(signal, W.mT, scale, b)
                signal = self.scaled(tensors, signal) if phi is None else _FUNCTIONS[phi](signal)
            yield signal

    def scaled(self, tensors: Mapping[str, Tensor], signal: Tensor) -> Tensor:
        """Return a signal (K, n, d_out) times the read-outs' multipliers, if they have any."""
        multiplier = tensors.get(self.multiplier)
        return signal if multiplier is None else signal * column(multiplier, signal)

    def outputs(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the outputs (K, n, d_out) alone, on a CPU a few samples at a time.

        The activations of a large test set would not fit into its caches, and each is read once.
        """
        if (native := self.native) is not None:
            return native.outputs(tensors, batch)
        X, shared = batch.X, batch.shared
        dim = 0 if shared else 1
        K, width, *_ = tensors[f"{self._chain.layers[0]}.weight"].shape
        samples = max(_SAMPLES, _CACHED // (K * width)) if X.device.type == "cpu" else X.shape[dim]
        parts = [
            self._shaped(deque(self._signals(tensors, part, shared), maxlen=1).pop(), part, shared)
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
        if (native := self.native) is not None:
            return native.backward(tensors, batch, signals, d_output)
        gradients = {}
        d = self.scaled(tensors, d_output.flatten(1, -2))
        readout = f"{self._chain.layers[-1]}.bias"
        if readout in tensors:
            gradients[readout] = d.sum(1)
        for i in reversed(range(len(self._layers))):
            (layer, scale, _), signal = self._layers[i], signals[i]
            gradients[f"{layer}.weight"] = self._products.weight_gradient(d, signal, scale)
            if i == 0:
                break
            before, _, bias_scale = self._layers[i - 1]
            W, has_bias = tensors[f"{layer}.weight"], f"{before}.bias" in tensors
            if (phi := self._chain.phis[i - 1]) == "relu":
                d, sums = self._products.errors(d, W, scale, signal, has_bias)
            else:
                d = product(d, W, scale).mul_(_DERIVATIVES[phi](signal))
                sums = d.sum(1) * bias_scale if has_bias else None
            if sums is not None:
                gradients[f"{before}.bias"] = sums
        return gradients


#: The nonlinearities but ReLU, and their derivatives by their values.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
_DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.ones_like,
    "tanh": lambda h: 1 - h * h,
    "sigmoid": lambda h: h * (1 - h),
}


def _trains_all(model: nn.Module, chain: Chain) -> bool:
    """Return whether the weights and biases of a chain's layers are all that is trained."""
    layers = {name: model.get_submodule(name) for name in chain.layers}
    expected = {
        f"{name}.{kind}"
        for name, layer in layers.items()
        for kind in ("weight", "bias")
        if getattr(layer, kind) is not None
    }
    named = dict(model.named_parameters())  # without those that are tied to another
    return set(named) == expected and all(p.requires_grad for p in named.values())
