"""The settings of the built-in MLP that are no hyperparameters, as a custom MODEL has its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlpsubmit.errors import SpecError, shown
from mlpsubmit.spec.setting_types import choice, flag

__all__ = ["MLP_SETTINGS", "NONLINEARITIES", "mlp_setting", "settings_of_mlp"]

#: The names of nonlinearities, which :class:`mlpsubmit.MLP` knows.
NONLINEARITIES = (
    *("relu", "leaky_relu", "gelu", "silu", "elu", "softplus"),
    *("tanh", "sigmoid", "erf", "identity"),
)

MLP_SETTINGS = {
    "bias": flag(),
    "nonlinearity": choice(
        *NONLINEARITIES, other="an nn.Module, or an elementwise function of tensors"
    ),
}


def settings_of_mlp(models: Iterable[Any]) -> frozenset[str]:
    """Return the names of the settings, or none if no model of a spec is the built-in MLP.

    Args:
        models: the values of MODEL that the spec gives.
    """
    given = list(models)
    used = not given or any(isinstance(one, str) and one.lower() == "mlp" for one in given)
    return frozenset(MLP_SETTINGS) if used else frozenset()


def mlp_setting(name: str, value: Any) -> Any:
    """Return a value, parsed, of one of these settings.

    Raises:
        SpecError: listing what is valid.
    """
    parse: Any = MLP_SETTINGS[name]
    try:
        return parse.func(value)
    except ValueError as error:
        raise SpecError(
            f"got {shown(value)}; {error} (of the built-in MLP; an argument of your own functions "
            "needs another name)"
        ) from None
