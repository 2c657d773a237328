"""What results were made with: the small file beside each shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit.files import SMALL_JSON, publish_json
from mlpsubmit.jobs.store import records

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


def stored_environments(shard: Path) -> list[dict[str, int | str]]:
    """Return what that file holds.

    Raises:
        FileNotFoundError: there is none.
        RunError: it is not as it was written.
    """
    return records.read(environment_file(shard), records.Environments, SMALL_JSON)["environments"]


def differences(environments: Iterable[Mapping[str, Any]]) -> str:
    """Return in what environments differ, as ``torch 2.4.0 and 2.5.1``; empty if in nothing."""
    values: dict[str, dict[str, None]] = {}
    for entry in environments:
        for name, value in entry.items():
            values.setdefault(name, {})[str(value) or "none"] = None
    return ", ".join(f"{name} {' and '.join(v)}" for name, v in values.items() if len(v) > 1)
