"""Models that are chains of linear layers and nonlinearities, as MLPs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import is_plain, layer_scale, relu_scale

__all__ = ["Chain", "as_matrices", "chain_of", "sample_shape"]

#: The nonlinearities whose derivative follows from their value.
_KINDS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


class Chain(NamedTuple):
    """What K models have to have in common to be computed together as a chain.

    A layer computes phi(s W h + t b) of its input h, and the read-out s W h + b, times a buffer of
    the model.

    Attributes:
        layers: the names of the linear layers, the read-in first.
        phis: of the hidden layers.
        scales, bias_scales: s and t of each layer.
        flattens: whether the dimensions of an input are flattened. If not, layers are applied
            along the last one.
    """

    layers: tuple[str, ...]
    phis: tuple[str, ...]
    scales: tuple[float, ...]
    bias_scales: tuple[float, ...]
    flattens: bool

    @property
    def multiplier(self) -> str:
        """The name of the buffer that multiplies the outputs, if there is one."""
        return f"{self.layers[-1]}.multiplier"

    @property
    def of_relus(self) -> bool:
        """Whether all nonlinearities are ReLUs."""
        return set(self.phis) <= {"relu"}


def chain_of(model: nn.Module) -> Chain | None:
    """Return a model as a chain, or None if it is none, or has other hooks than multipliers.

    It may be an :class:`~mlpsubmit.training.models.MLP`, or an ``nn.Sequential`` of ``nn.Linear``
    and one nonlinearity after each but the last, perhaps with ``nn.Flatten`` before them.
    """
    if isinstance(model, MLP) and is_plain(model, MLP):
        layers = [model.input_layer, *model.hidden_layers, model.output_layer]
        hidden = [f"hidden_layers.{i}" for i in range(len(model.hidden_layers))]
        names = ["input_layer", *hidden, "output_layer"]
        return _chain(names, layers, [model.nonlin] * (len(layers) - 1), flattens=True)
    if not is_plain(model, nn.Sequential):
        return None
    # Not named_children(), which leaves out a module that occurs twice.
    modules = [(name, module) for name, module in model._modules.items() if module is not None]
    flattens = bool(modules) and _flattens(modules[0][1])
    modules = modules[flattens:]
    return _chain(
        [name for name, _ in modules[::2]],
        [module for _, module in modules[::2]],
        [module for _, module in modules[1::2]],
        flattens,
    )


def as_matrices(chain: Chain, X: Tensor, shared: bool) -> Tensor:
    """Return inputs as (n, d) where they are shared, else as (K, n, d): a row per output.

    Args:
        X: (n, ...) where they are shared, else (K, n, ...).
    """
    first = 0 if shared else 1
    return X.flatten(first + 1) if chain.flattens else X.flatten(first, -2)


def sample_shape(chain: Chain, X: Tensor, shared: bool) -> tuple[int, ...]:
    """Return the dimensions (n, ...) of the outputs of one network, but for the last one."""
    own = X.shape if shared else X.shape[1:]
    return tuple(own[:1] if chain.flattens else own[:-1])


def _flattens(module: nn.Module) -> bool:
    if not (isinstance(module, nn.Flatten) and is_plain(module, nn.Flatten)):
        return False
    return module.start_dim == 1 and module.end_dim == -1


def _chain(
    names: Sequence[str],
    layers: Sequence[nn.Module],
    nonlinearities: Sequence[nn.Module],
    flattens: bool,
) -> Chain | None:
    if len(layers) < 2 or len(nonlinearities) != len(layers) - 1 or len(set(layers)) < len(layers):
        return None  # a layer that occurs twice gets gradients from both places
    phis, scales, bias_scales = list[str](), list[float](), list[float]()
    lacking = 1.0  # the factor that the input of the next layer still lacks
    for layer, nonlinearity in zip(layers, nonlinearities, strict=False):
        own = layer_scale(layer)
        kind = _KINDS.get(type(nonlinearity))
        if own is None or kind is None:
            return None
        if kind == "relu":  # relu(c x) = c relu(x)
            scale = relu_scale(layer, nonlinearity)
            scales.append(lacking)
            bias_scales.append(1.0)
        else:
            scale = 1.0 if is_plain(nonlinearity, type(nonlinearity)) else None
            scales.append(lacking * own)
            bias_scales.append(own)
        if scale is None:
            return None
        lacking = scale
        phis.append(kind)
    readout = layers[-1]
    if layer_scale(readout) is None or hasattr(readout, "multiplier") != bool(
        readout._forward_hooks
    ):
        return None  # a hook or a multiplier that no parametrization has set
    if not _fit([layer for layer in layers if isinstance(layer, nn.Linear)]):
        return None
    scales.append(lacking)
    bias_scales.append(1.0)
    return Chain(tuple(names), tuple(phis), tuple(scales), tuple(bias_scales), flattens)


def _fit(layers: Sequence[nn.Linear]) -> bool:
    """Return whether layers take what those before them give.

    If not, torch refuses to call the model; functions in C would read past the end of a signal.
    """
    units = [layer.weight.shape[-1] for layer in layers[1:]]
    return all(layer.weight.ndim == 2 for layer in layers) and all(
        out == layer.weight.shape[0] and (layer.bias is None or tuple(layer.bias.shape) == (out,))
        for layer, out in zip(layers, [*units, layers[-1].weight.shape[0]], strict=True)
    )
