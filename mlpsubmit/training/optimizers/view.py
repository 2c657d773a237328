"""The argument ``opt`` of a grab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.lr_schedules import lr_factor

__all__ = ["OptimizerView"]


class OptimizerView:
    """The argument ``opt`` of a grab: the learning rates of one config, as in torch.optim.

    Attributes:
        param_groups: one dictionary per parameter, with ``params`` (a list of that parameter),
            ``lr`` (that of the step, including the factors of GAMMA and the parametrization) and
            ``name``.
    """

    def __init__(self, model: nn.Module, lrs: Mapping[str, float], h: Hyperparameters) -> None:
        self._base, self._settings = lrs, h
        self.param_groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": lrs[name], "name": name}
            for name, parameter in model.named_parameters()
            if name in lrs
        ]
        self._lrs = self._shown()

    def at(self, step: int) -> OptimizerView:
        """Show the learning rates of this step."""
        if self._settings.has_lr_schedule:
            factor = lr_factor(self._settings, step)
            for group in self.param_groups:
                group["lr"] = self._base[group["name"]] * factor
            self._lrs = self._shown()
        return self

    @property
    def changed(self) -> bool:
        """Whether someone has changed a learning rate or a group."""
        return self._shown() != self._lrs

    def _shown(self) -> list[Any]:
        return [(group.get("name"), group.get("lr")) for group in self.param_groups]
