"""Parametrizations: how multipliers, learning rates and initial weights scale with the width.

Source: Karkada, "The lazy (NTK) and rich (muP) regimes: a gentle tutorial", arXiv:2404.19719. For
a layer with fan-in d (all input dimensions of the weight) in a model of width w (that of the widest
hidden layer), with activity a = sqrt(w) for mup, mfp, mup-lr and 1 for ntp, ntp-lr, and
q = a^2 / d for read-in and hidden layers, q = 1 / d for the read-out:

| | forward multiplier g | learning-rate factor r of SGD | initial standard deviation s |
|---|---|---|---|
| mup | sqrt(q) | 1 | 1 / a |
| mfp, ntp | sqrt(q) / a | a^2 | 1 |
| mup-lr, ntp-lr | 1 | q | sqrt(q) / a |
| sp | 1 | 1 | PyTorch's own initialisation |

The layer computes g (W x + b), weights and biases alike start as N(0, s^2), and nn.ReLU modules
evaluate max(0, sqrt(2) x) except under sp. GAMMA divides the read-out's multiplier in all of them.

Adam divides a gradient by its own size, so its factors follow from the size that the update of the
effective weight g W should have: with h = a / sqrt(w) for read-in and hidden layers and h = 1 for
the read-out, r = h / (g d) for weights and h / g for biases, whose fan-in is 1. With h = 1 (mup,
mfp, mup-lr) these are tables 3, 8 and 9 of Tensor Programs V, arXiv:2203.03466 (mup is table 9);
ntp, ntp-lr are the neural tangent parametrization of adaptive optimizers, definition 2.4.1 of
Tensor Programs IVb, arXiv:2308.01814. EPS is multiplied by the order of the gradients that it is
compared with (the exponents d of IVb): g / GAMMA for the read-out, g / (a sqrt(w) GAMMA) for the
others. Lion and RMSprop are treated as Adam: their updates, too, do not depend on the size of the
gradient. The update of Muon is a matrix of singular values near 1 times sqrt(max(1, m / d)), for m
outputs and d inputs of a hidden layer. On inputs of order 1 along its singular vectors it moves
each output by g r max(sqrt(d / m), 1), and that is h, as under Adam, with r = h min(1, sqrt(m / d))
/ g (compare the spectral condition of arXiv:2310.17813). LR times a decoupled weight decay is the
same in all layers (V, section B.3).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import Layer, is_layer
from mlpsubmit.spec.hyperparameters import PARAMETRIZATIONS
from mlpsubmit.training.seeds import global_rng

__all__ = [
    "Factors",
    "Scaling",
    "effective_lr",
    "hidden_matrices",
    "is_plain",
    "layer_scale",
    "parametrize",
    "relu_scale",
    "scaling",
]

Parametrization = str | Callable[..., Any]

_SQRT2 = math.sqrt(2.0)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Scaling(NamedTuple):
    """How one layer scales.

    Attributes:
        multiplier: the forward multiplier g.
        lr_scale: the learning-rate factor r of SGD.
        std: the initial standard deviation s.
        update: h, the size of Adam's update of g W, times the fan-in.
        gradient: the order of the outputs' gradient with respect to an entry of W, without GAMMA.
    """

    multiplier: float
    lr_scale: float
    std: float
    update: float
    gradient: float


class Factors(NamedTuple):
    """What settings of the optimizer are multiplied by, for one parameter.

    Attributes:
        lr: of the learning rate (:func:`effective_lr`).
        decay: of the learning rate, in the decoupled weight decay of AdamW.
        eps: of the EPS of Adam.
    """

    lr: float
    decay: float = 1.0
    eps: float = 1.0


def scaling(parametrization: str, *, fan_in: int, width: int, readout: bool) -> Scaling:
    """Return the scaling of one layer, from the tables above (sp has none: it is no scaling)."""
    a = math.sqrt(width) if parametrization in ("mup", "mfp", "mup-lr") else 1.0
    q = (1.0 if readout else a**2) / fan_in
    if parametrization == "mup":
        g, r, s = math.sqrt(q), 1.0, 1.0 / a
    elif parametrization in ("mfp", "ntp"):
        g, r, s = math.sqrt(q) / a, a**2, 1.0
    elif parametrization in ("mup-lr", "ntp-lr"):
        g, r, s = 1.0, q, math.sqrt(q) / a
    else:
        raise SpecError(
            f"PARAMETRIZATION: got {parametrization!r}; valid are {', '.join(PARAMETRIZATIONS)}"
        )
    if readout:
        return Scaling(g, r, s, 1.0, g)
    return Scaling(g, r, s, a / math.sqrt(width), g / (a * math.sqrt(width)))


def effective_lr(lr: float, gamma: float, update: str = "sgd") -> float:
    """Return LR with its factor of GAMMA.

    A gradient is divided by GAMMA, as the outputs are. SGD's updates shrink with it, so LR is
    multiplied by GAMMA where GAMMA >= 1, by GAMMA squared where it is below. Adam's do not: the
    same updates need LR times min(1, GAMMA).
    """
    if update != "sgd":
        return lr * min(1.0, gamma)
    return lr * gamma if gamma >= 1 else lr * gamma**2


def parametrize(
    model: nn.Module,
    parametrization: Parametrization,
    *,
    gamma: float = 1.0,
    lr: float = 1.0,
    generator: torch.Generator | None = None,
    context: Mapping[str, Any] = _NOTHING,
    update: str = "sgd",
) -> dict[str, Factors]:
    """Give a model its multipliers and initial weights, in place.

    Each layer gets a 0-dim buffer ``multiplier`` and, where that can differ from 1, a forward hook
    that applies it. A second call, with another parametrization or GAMMA, replaces the first.

    Args:
        model: its weights are those of nn.Linear and nn.Conv2d layers (under sp, other modules may
            have some, and stay as PyTorch made them). Layers are taken in the order
            in which they were registered (that of ``model.modules()``): the first is the read-in,
            the last the read-out. That must be the order in which the signal passes them, which is
            not checked here: a read-out that is registered before the read-in would silently be
            scaled as one, and GAMMA would divide the wrong layer.
        parametrization: a name in the table above, or a callable(model, optimizer) as mupify's:
            it gets a torch.optim.SGD with learning rate ``lr`` over the model and may change
            weights, forward functions, and the learning rate of each parameter group. Arguments
            after these two that have no default are passed by name; one that declares ``gamma``
            divides the outputs itself, or leaves them as they are.
        gamma: divides the read-out's multiplier.
        lr: the learning rate in a callable's optimizer.
        generator: a CPU generator that the initial weights come from. A callable draws from
            torch's global generator, which is then seeded with this one's initial seed.
        context: the config's settings, by name, for a callable that declares them.
        update: ``"sgd"``, ``"adam"`` or ``"muon"``, whose learning-rate factors are returned. Those
            that a callable sets are returned for any of them.

    Returns:
        per parameter name, the factors of the optimizer's settings.

    Raises:
        SpecError: except under sp, for weights elsewhere than in Linear and Conv2d layers, and for
            a single layer.
    """
    if callable(parametrization):
        return _by_callable(model, parametrization, gamma, lr, generator, context)
    layers = _layers(model, parametrization)
    names = {parameter: name for name, parameter in model.named_parameters()}
    width = max((layer.weight.shape[0] for layer in layers[:-1]), default=1)
    factors: dict[str, Factors] = {}
    orthogonal = hidden_matrices(model) if update == "muon" else {}
    for layer in layers:
        readout, fan_in = layer is layers[-1], math.prod(layer.weight.shape[1:])
        scale = None
        if parametrization != "sp":
            scale = scaling(parametrization, fan_in=fan_in, width=width, readout=readout)
            _draw(layer, scale.std, generator)
        g = 1.0 if scale is None else scale.multiplier
        _set_multiplier(layer, g / gamma if readout else g, hooked=readout or g != 1.0)
        for parameter in layer.parameters(recurse=False):
            own = 1 if parameter is layer.bias else fan_in
            name = names[parameter]
            factors[name] = _factors(scale, own, gamma, update)
            if scale is not None and name in orthogonal:
                lr = scale.update * min(1.0, math.sqrt(len(parameter) / fan_in)) / scale.multiplier
                factors[name] = factors[name]._replace(lr=lr)
    _set_relu_gain(model, parametrization != "sp")
    if not layers:
        _divide_outputs(model, gamma)
    elsewhere = _factors(None, 1, gamma, update)  # under sp
    return {name: factors.get(name, elsewhere) for name in names.values()}


def _factors(scale: Scaling | None, fan_in: int, gamma: float, update: str) -> Factors:
    """Return the factors of a parameter of this fan-in, in a layer of this scaling (None: sp)."""
    if scale is None:
        return Factors(1.0, eps=1.0 / gamma)
    lr = scale.lr_scale if update == "sgd" else scale.update / (scale.multiplier * fan_in)
    return Factors(lr, eps=scale.gradient / gamma)


def hidden_matrices(model: nn.Module) -> dict[str, float]:
    """Return the names of the weights that Muon trains, with its factors sqrt(max(1, m / d)).

    Those are all matrices (m, d) and convolutions, as m outputs of d inputs each, but for the first
    and the last one, in the order of the model's parameters.
    """
    convolutions = {m.weight for m in model.modules() if is_layer(m) and m.weight.ndim > 2}
    named = {name: p for name, p in model.named_parameters() if p.ndim == 2 or p in convolutions}
    inner = list(named.items())[1:-1]
    return {name: math.sqrt(max(1.0, len(p) ** 2 / p.numel())) for name, p in inner}


def layer_scale(layer: nn.Module) -> float | None:
    """Return c where a layer gives c (W x + b); None where it computes something else."""
    if not is_plain(layer, nn.Linear, _multiply):
        return None
    return float(layer.multiplier) if layer._forward_hooks else 1.0  # type: ignore[arg-type]


def relu_scale(layer: nn.Module, nonlinearity: nn.Module) -> float | None:
    """Return c where a layer and the nonlinearity after it give c max(0, W x + b).

    None where they compute something else: other modules, further hooks, or a replaced forward
    function.
    """
    scale = layer_scale(layer)
    if scale is None or not is_plain(nonlinearity, nn.ReLU, _relu_gain):
        return None
    return scale * _SQRT2 if nonlinearity._forward_pre_hooks else scale


def is_plain(
    module: nn.Module, kind: type[nn.Module], hook: Callable[..., Any] | None = None
) -> bool:
    """Return whether a module is of exactly this class, without other hooks or forward function."""
    if any(parameter._backward_hooks for parameter in module.parameters(recurse=False)):
        return False
    hooks = {*module._forward_hooks.values(), *module._forward_pre_hooks.values()}
    hooks |= {*module._backward_hooks.values(), *module._backward_pre_hooks.values()}
    return type(module) is kind and hooks <= {hook} and "forward" not in vars(module)


def _layers(model: nn.Module, parametrization: str) -> list[Layer]:
    """Return the layers in order, or raise for a model that the table does not cover."""
    if parametrization == "sp":
        return [module for module in model.modules() if is_layer(module)]
    layers: list[Layer] = []
    errors = []
    for path, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if is_layer(module) and own in (["weight"], ["weight", "bias"]):
            layers.append(module)
        elif own:  # of a layer: those of pruning or weight normalisation, or of a subclass
            where = f"its module {path!r}" if path else "the model itself"
            errors.append(
                f"MODEL: {where} ({type(module).__name__}) has weights of its own "
                f"({', '.join(own)}), but "
                f"PARAMETRIZATION={parametrization!r} covers nn.Linear and nn.Conv2d layers only; "
                "try one without weights, PARAMETRIZATION='sp', or a callable "
                "PARAMETRIZATION(model, optimizer)"
            )
    if not errors and len(layers) < 2:
        errors.append(
            f"MODEL: {type(model).__name__} has {len(layers)} nn.Linear or nn.Conv2d layers; "
            "a parametrization needs a read-in and a read-out, so at least 2"
        )
    if errors:
        raise SpecError(errors)
    return layers


@torch.no_grad()
def _draw(layer: Layer, std: float, generator: torch.Generator | None) -> None:
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            # Drawn on the CPU in float32 whatever the model's device and dtype: the draw is the
            # same.
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(drawn.to(parameter.dtype).mul_(std))


def _by_callable(
    model: nn.Module,
    function: Callable[..., Any],
    gamma: float,
    lr: float,
    generator: torch.Generator | None,
    context: Mapping[str, Any],
) -> dict[str, Factors]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    offered = {**context, "gamma": gamma}
    further = list(inspect.signature(function).parameters.values())[2:]
    needed = [p.name for p in further if p.default is p.empty and p.name in offered]
    arguments = {name: offered[name] for name in needed}
    with global_rng(generator.initial_seed() if generator else torch.initial_seed()):
        function(model, optimizer, **arguments)
    if "gamma" not in arguments:
        _divide_outputs(model, gamma)
    lrs = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in model.named_parameters() if p not in lrs]
    if left_out:
        raise SpecError(
            f"PARAMETRIZATION: {function_name(function)} left {', '.join(left_out)} out of the "
            "optimizer's parameter groups; keep every parameter in one of them"
        )
    defaults = {n: v for n, v in optimizer.defaults.items() if n != "lr"}
    groups = optimizer.param_groups
    options = sorted({n for n, v in defaults.items() for group in groups if group[n] != v})
    if options:
        raise SpecError(
            f"PARAMETRIZATION: {function_name(function)} sets {', '.join(options)} of the "
            "optimizer; only learning rates can be set there, the rest by settings of the spec "
            "such as MOMENTUM, WEIGHT_DECAY or OPTIMIZER_KWARGS"
        )
    scales = {name: float(lrs[p]) / lr for name, p in model.named_parameters()}
    return {name: Factors(lr=scale, decay=scale) for name, scale in scales.items()}


def _divide_outputs(model: nn.Module, gamma: float) -> None:
    readouts = [module for module in model.modules() if is_layer(module)]
    if readouts:
        _set_multiplier(readouts[-1], 1.0 / gamma, hooked=True)
    elif gamma != 1.0:
        raise SpecError(
            f"GAMMA={gamma:g} divides the output of the last nn.Linear or nn.Conv2d layer, but "
            f"{type(model).__name__} has none; divide in the model, and leave GAMMA at 1"
        )


def _multiply(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output * module.multiplier  # type: ignore[operator]


def _relu_gain(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0] * _SQRT2,)


def _drop(hooks: dict[int, Any], function: Callable[..., Any]) -> None:
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _set_multiplier(layer: nn.Module, value: float, hooked: bool) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    multiplier = torch.tensor(value, dtype=weight.dtype, device=weight.device)
    layer.register_buffer("multiplier", multiplier)
    _drop(layer._forward_hooks, _multiply)
    if hooked:  # multiplying by 1 would cost a pass over the activations
        layer.register_forward_hook(_multiply)


def _set_relu_gain(model: nn.Module, gained: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            _drop(module._forward_pre_hooks, _relu_gain)
            if gained:
                module.register_forward_pre_hook(_relu_gain)
