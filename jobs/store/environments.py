"""What results were made with: the small file beside each shard."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit.errors import DamageError
from mlpsubmit.files import publish_json, read_json

__all__ = [
    "NOT_IDENTICAL",
    "differences",
    "environment_file",
    "publish_environments",
    "stored_environments",
]

#: What follows from differences between environments.
NOT_IDENTICAL = "bit-identity no longer holds (results agree up to rounding)"


def environment_file(shard: Path) -> Path:
    """Return the file beside a shard with the versions and devices that its results come from."""
    return shard.with_suffix(".json")


def publish_environments(shard: Path, environments: Sequence[Mapping[str, Any]]) -> None:
    """Write that file; an entry is what :func:`mlpsubmit.jobs.environment.environment` returns."""
    publish_json(environment_file(shard), {"environments": environments})


def stored_environments(shard: Path) -> list[dict[str, Any]]:
    """Return what that file holds; nothing if there is none, or, with a warning, a damaged one."""
    try:
        found: list[dict[str, Any]] = read_json(environment_file(shard))["environments"]
    except FileNotFoundError:
        return []
    except DamageError as error:
        warnings.warn(f"{error}; what {shard.name} was made with is unknown", stacklevel=2)
        return []
    return found


def differences(environments: Iterable[Mapping[str, Any]]) -> str:
    """Return in what environments differ, as ``torch 2.4.0 and 2.5.1``; empty if in nothing."""
    values: dict[str, dict[str, None]] = {}
    for entry in environments:
        for name, value in entry.items():
            values.setdefault(name, {})[str(value) or "none"] = None
    return ", ".join(f"{name} {' and '.join(v)}" for name, v in values.items() if len(v) > 1)
