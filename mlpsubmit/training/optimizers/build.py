"""The optimizer of a pack, by its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.optimizers.adam import Adam, AdamW
from mlpsubmit.training.optimizers.lion import Lion
from mlpsubmit.training.optimizers.muon import Muon
from mlpsubmit.training.optimizers.rmsprop import RMSprop
from mlpsubmit.training.optimizers.sgd import SGD
from mlpsubmit.training.optimizers.stacked import OptimizerSettings, PackOptimizer, StackedOptimizer
from mlpsubmit.training.optimizers.torch_optimizer import TorchOptimizer
from mlpsubmit.training.optimizers.update_rules import update_rule
from mlpsubmit.training.optimizers.view import OptimizerView
from mlpsubmit.training.parametrizations import Factors, effective_lr
from mlpsubmit.training.stack import Stack

__all__ = ["build_optimizer"]

_STACKED: dict[str, type[StackedOptimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "muon": Muon,
    "lion": Lion,
    "rmsprop": RMSprop,
}


def build_optimizer(
    stack: Stack,
    hyperparameters: Sequence[Hyperparameters],
    factors: Sequence[Mapping[str, Factors]],
) -> tuple[PackOptimizer, list[OptimizerView]]:
    """Return the optimizer of a pack, and per config the argument ``opt`` of its grabs.

    Args:
        stack: K networks.
        hyperparameters: K, equal but for what may differ in a pack.
        factors: K times, per parameter name, those of the parametrization.

    Raises:
        SpecError: for a torch.optim class with K > 1, or settings that it does not take.
    """
    bases = [effective_lr(h.lr, h.gamma, update_rule(h)) for h in hyperparameters]
    lrs = [
        {name: base * own[name].lr for name in stack.names}
        for base, own in zip(bases, factors, strict=True)
    ]
    views = [
        OptimizerView(model, own, h)
        for model, own, h in zip(stack.models, lrs, hyperparameters, strict=True)
    ]
    common = hyperparameters[0]
    if common.optimizer not in OPTIMIZERS:
        return TorchOptimizer(stack, common, bases[0], factors[0]), views
    settings = OptimizerSettings(hyperparameters, lrs, bases, factors)
    return _STACKED[common.optimizer](stack, settings), views
