"""The layers that grabs measure: the Linear and Conv2d modules of any model, in order."""

from __future__ import annotations

from torch import Tensor, nn

from mlpsubmit.batchfns.validation import is_integer
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import Layer, is_layer

__all__ = ["Layer", "layer_at", "layers_of", "position", "weight_matrix"]


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the Linear and Conv2d modules of a model, in the order of their registration.

    Raises:
        SpecError: if there is none.
    """
    layers = [module for module in model.modules() if is_layer(module)]
    if not layers:
        raise SpecError(
            f"the weights of {type(model).__name__} cannot be measured: it has no Linear or Conv2d "
            "layer; write your own grab for it"
        )
    return layers


def layer_at(grab: str, model: nn.Module, layer: int) -> Layer:
    """Return one layer of a model, counted from 0, or from the end if it is negative.

    Raises:
        SpecError: naming the grab, if the model has no such layer.
    """
    layers = layers_of(model)
    count = f"{type(model).__name__} has {len(layers)} Linear and Conv2d layers"
    return layers[position(grab, "layer", layer, len(layers), count)]


def position(grab: str, argument: str, value: int, count: int, what: str) -> int:
    """Return the index of a layer, >= 0.

    Args:
        grab: the name of the grab, for messages.
        argument: its argument for the layer, for messages.
        value: the index, from 0, or negative from the end.
        count: the number of layers.
        what: a sentence with that number, for messages.

    Raises:
        SpecError: if the layer is not among them.
    """
    if not (is_integer(value, -count) and value < count):
        raise SpecError(
            f"{grab}: got {argument}={value!r}, but {what}; valid are 0 to {count - 1}, or "
            f"-{count} to -1 from the end"
        )
    return int(value) % count


def weight_matrix(layer: Layer, effective: bool = False) -> Tensor:
    """Return a layer's weight as a detached matrix (outputs, inputs).

    By default it shares the memory of the parameter. An effective weight is a new tensor,
    multiplied by the layer's forward multiplier if a parametrization has set one.
    """
    matrix = layer.weight.detach().flatten(1)
    return scaled(layer, matrix) if effective else matrix


def scaled(layer: Layer, parameter: Tensor) -> Tensor:
    """Return a new tensor: a parameter times its layer's forward multiplier, if it has one."""
    multiplier = getattr(layer, "multiplier", None)
    return parameter * multiplier if isinstance(multiplier, Tensor) else parameter.clone()
