"""Learning rates by parameter: LR_FACTORS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.culprits import raise_attributed
from mlpsubmit.training.parametrizations import Factors

__all__ = ["check_lr_factors", "with_lr_factors"]


def with_lr_factors(
    hyperparameters: Sequence[Hyperparameters],
    factors: Sequence[Mapping[str, Factors]],
    names: Sequence[str],
) -> list[dict[str, Factors]]:
    """Return the factors of K configs, times those of LR_FACTORS.

    A decoupled weight decay is scaled, too: it is a share of the learning rate.

    Args:
        hyperparameters: of the K configs.
        factors: K times, those of the parametrization by parameter name.
        names: of the trained parameters.

    Raises:
        SpecError: for a pattern that matches no name.
    """
    errors = dict[int, BaseException]()
    for config, h in enumerate(hyperparameters):
        try:
            check_lr_factors(h.lr_factors, names)
        except SpecError as error:
            errors[config] = error
    if errors:
        raise_attributed(errors)
    return [
        {name: _scaled(own, name, h.lr_factors) for name, own in given.items()}
        for h, given in zip(hyperparameters, factors, strict=True)
    ]


def check_lr_factors(lr_factors: Mapping[str, float], names: Iterable[str]) -> None:
    """Refuse patterns that match no parameter.

    Raises:
        SpecError: listing them, and the parameters.
    """
    names = list(names)
    unmatched = [one for one in lr_factors if not any(fnmatchcase(name, one) for name in names)]
    if unmatched:
        raise SpecError(
            f"LR_FACTORS: no parameter of the model matches {', '.join(map(repr, unmatched))}; "
            f"they are {', '.join(names)}; patterns may have *, ? and [...]"
        )


def _scaled(factors: Factors, name: str, lr_factors: Mapping[str, float]) -> Factors:
    """Return the factors of a parameter, times those of all patterns that match its name."""
    if not lr_factors:
        return factors
    own = math.prod(factor for pattern, factor in lr_factors.items() if fnmatchcase(name, pattern))
    return factors._replace(lr=own * factors.lr, decay=own * factors.decay)
