"""The hyperparameters of a pack: one per config, equal but for what a pack holds per config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import OUTSIDE_RESULTS, STACKED, Hyperparameters, validate

__all__ = ["per_config"]


def per_config(
    hyperparameters: Hyperparameters | Mapping[str, Any] | Sequence[Hyperparameters], count: int
) -> list[Hyperparameters]:
    """Return one set of hyperparameters per config.

    Args:
        hyperparameters: one for all, or one per config.
        count: K, the number of configs.

    Raises:
        SpecError: naming what differs though a pack holds it once.
    """
    if isinstance(hyperparameters, Mapping):
        hyperparameters = validate(hyperparameters)
    if isinstance(hyperparameters, Hyperparameters):
        return [hyperparameters] * count
    settings = list(hyperparameters)
    if len(settings) != count:
        raise SpecError(f"hyperparameters: got {len(settings)} for {count} models; give {count}")
    errors = [
        f"{name.upper()} differs between configs trained together: {values}; only "
        f"{', '.join(sorted(STACKED)).upper()} may"
        for name in Hyperparameters.model_fields.keys() - STACKED - OUTSIDE_RESULTS
        if (values := _differing([getattr(one, name) for one in settings]))
    ]
    if errors:
        raise SpecError(sorted(errors))
    return settings


def _differing(values: list[Any]) -> str:
    """Return the first two values that differ, for a message, or nothing."""
    first = values[0]
    return next((f"{first!r} and {v!r}" for v in values if v is not first and v != first), "")
