"""Check that the layers of a model have the roles that a parametrization gives them.

It treats the layer that is defined first as the read-in, and the one that is defined last as the
read-out, whose output GAMMA divides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import is_layer
from mlpsubmit.training.undisturbed import undisturbed

__all__ = ["check_layers"]


def check_layers(model: nn.Module, X: Tensor, *, parametrized: bool, scaled: bool) -> None:
    """Refuse a model whose read-in or read-out is not the layer that is taken for it.

    Args:
        parametrized: whether the parametrization treats these in their own ways.
        scaled: whether a config has another GAMMA than 1.

    Raises:
        SpecError: naming the layers.
    """
    defined: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if is_layer(module)
    }
    passed: dict[nn.Module, None] = {}
    hooks = [m.register_forward_hook(lambda m, *_: passed.update({m: None})) for m in defined]
    output = _output(model, X, hooks)
    if output is None or not defined:
        return  # the train loop reports it, with the batch
    what, names = f"MODEL {type(model).__name__}", [defined[layer] for layer in passed]
    expected = [name for layer, name in defined.items() if layer in passed]
    if names != expected:
        raise SpecError(
            f"{what}: its layers are defined in the order "
            f"{', '.join(expected)}, but the signal passes {', '.join(names)}; define them in the "
            "order of the signal, for the first is the read-in and the last the read-out"
        )
    every = list(defined.values())
    first, last = every[0], every[-1]
    if parametrized and first not in names:
        raise SpecError(_not_passed(what, first, "first", "read-in"))
    if (parametrized or scaled) and last not in names:
        raise SpecError(_not_passed(what, last, "last", "read-out"))
    if scaled:
        _check_proportional(model, X, output, last)


def _not_passed(what: str, layer: str, place: str, role: str) -> str:
    return (
        f"{what}: the signal does not pass its layer {layer}, which is defined {place} and so "
        f"taken for the {role}; leave it out, define it between the others, or call it, if only "
        "its weight is used"
    )


def _check_proportional(model: nn.Module, X: Tensor, output: Tensor, last: str) -> None:
    """Refuse a model whose output does not double, to the bit, with that of its last layer."""
    layer = model.get_submodule(last)
    doubled = _output(model, X, [layer.register_forward_hook(lambda _, given, own: 2 * own)])
    if doubled is None or not torch.equal(doubled.nan_to_num(), (2 * output).nan_to_num()):
        raise SpecError(
            f"MODEL {type(model).__name__}: GAMMA divides the output of its last layer {last}, to "
            "which its own output is not proportional (it has a nonlinearity after that layer, "
            "several heads, or a connection around it); compute a nonlinearity in LOSS, leave "
            "GAMMA at 1, or divide by it in a function PARAMETRIZATION(model, optimizer, gamma)"
        )


def _output(model: nn.Module, X: Tensor, hooks: Sequence[RemovableHandle]) -> Tensor | None:
    """Return the output on two samples, and remove the hooks; None where the model raises."""
    dtype = next((p.dtype for p in model.parameters()), X.dtype)
    try:
        with undisturbed(model), torch.no_grad():
            found = model(X[:2].to("cpu", dtype, copy=True))
        return found if isinstance(found, Tensor) else None
    except Exception:
        return None
    finally:
        for hook in hooks:
            hook.remove()
