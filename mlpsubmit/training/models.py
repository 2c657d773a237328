"""The default MODEL: a multilayer perceptron."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.training.parametrizations import layer_scale, relu_scale

__all__ = ["MLP", "NONLINEARITIES"]

#: A nonlinearity by name, as a module, or as an elementwise function of tensors.
Nonlinearity: TypeAlias = str | nn.Module | Callable[..., Tensor | nn.Module]

#: The nonlinearities that have names; functions are those of torch.
NONLINEARITIES: dict[str, type[nn.Module] | Callable[[Tensor], Tensor]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "erf": torch.erf,
    "identity": nn.Identity,
}


class MLP(nn.Module):
    """A multilayer perceptron with ``depth`` hidden layers of ``width`` units.

    Its layers are named as in MLPscape, so that grabs written for that run as they are.

    Args:
        d_in, d_out: the numbers of its inputs and outputs.
        width: units of each hidden layer.
        depth: the number of hidden layers.
        bias: whether its layers have biases.
        nonlinearity: a name of :data:`NONLINEARITIES`; an nn.Module, of which it gets a copy, or a
            class of modules; or an elementwise function of tensors.

    Raises:
        SpecError: for an unknown name.

    Attributes:
        input_layer: Linear, weight (width, d_in).
        hidden_layers: ModuleList of depth - 1 Linear layers, weight (width, width).
        output_layer: Linear, weight (d_out, width).
        nonlin: the nonlinearity after each but the last.
    """

    def __init__(
        self,
        d_in: int = 1,
        width: int = 4096,
        depth: int = 2,
        d_out: int = 1,
        bias: bool = True,
        nonlinearity: Nonlinearity | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.width, self.depth, self.d_out = d_in, width, depth, d_out
        self.input_layer = nn.Linear(d_in, width, bias)
        self.hidden_layers = nn.ModuleList(nn.Linear(width, width, bias) for _ in range(depth - 1))
        self.output_layer = nn.Linear(width, d_out, bias)
        self.nonlin = nn.ReLU() if nonlinearity is None else _module(nonlinearity)

    def forward(self, X: Tensor) -> Tensor:
        """Return the outputs (n, d_out) of inputs (n, d_in), or (n, ...) that flatten to it."""
        h = self.nonlin(self.input_layer(X.flatten(1)))
        for layer in self.hidden_layers:
            h = self.nonlin(layer(h))
        output: Tensor = self.output_layer(h)
        return output

    def get_activations(self, X: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the activations (n, width) of each hidden layer, and the output (n, d_out)."""
        activations = [self.nonlin(self.input_layer(X.flatten(1)))]
        for layer in self.hidden_layers:
            activations.append(self.nonlin(layer(activations[-1])))
        return activations, self.output_layer(activations[-1])

    def plain(self) -> nn.Sequential:
        """Return a network of torch's own modules with the same outputs, to rounding.

        The multipliers of the parametrization, GAMMA and the gain of ReLU are in its weights. It is
        for whoever has no mlpsubmit: ``torch.save(run.model(width=64).plain(), "network.pt")``.

        Raises:
            SpecError: a layer has hooks of others.
        """
        modules: list[nn.Module] = [nn.Flatten()]
        for layer in (self.input_layer, *self.hidden_layers):
            with_relu = relu_scale(layer, self.nonlin)
            modules.append(_scaled(layer, layer_scale(layer) if with_relu is None else with_relu))
            modules.append(copy.deepcopy(self.nonlin) if with_relu is None else nn.ReLU())
        modules.append(_scaled(self.output_layer, layer_scale(self.output_layer)))
        return nn.Sequential(*modules).train(self.training)


@torch.no_grad()
def _scaled(layer: nn.Linear, scale: float | None) -> nn.Linear:
    if scale is None:
        raise SpecError(
            "plain: a layer of the network has hooks, so it is not a scaled nn.Linear; remove "
            "them first"
        )
    sizes = layer.in_features, layer.out_features, layer.bias is not None
    made = nn.Linear(*sizes, device="meta", dtype=layer.weight.dtype)  # draws nothing
    made = made.to_empty(device=layer.weight.device)
    for parameter, own in zip(made.parameters(), layer.parameters(), strict=True):
        parameter.copy_(own * scale)
    return made


class _Elementwise(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, X: Tensor) -> Tensor:
        return self.function(X)


def _module(nonlinearity: Nonlinearity) -> nn.Module:
    """Return a module of this network's own: a parametrization sets hooks on it."""
    if isinstance(nonlinearity, nn.Module):
        return copy.deepcopy(nonlinearity)
    if isinstance(nonlinearity, str):
        found = NONLINEARITIES.get(nonlinearity.lower())
        if found is None:
            raise SpecError(
                f"nonlinearity: got {nonlinearity!r}; should be one of "
                f"{', '.join(map(repr, NONLINEARITIES))}, an nn.Module, or an elementwise function "
                f"of tensors{did_you_mean(nonlinearity, NONLINEARITIES)}"
            )
        nonlinearity = found
    if isinstance(nonlinearity, type) and issubclass(nonlinearity, nn.Module):
        return nonlinearity()
    return _Elementwise(nonlinearity)  # type: ignore[arg-type]
