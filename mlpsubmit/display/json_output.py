"""JSON for scripts: one object per command, in one style.

Keys are lower_snake_case and have units in their names; times are UTC, as ISO 8601 with a Z. What
JSON has no number for is a string: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``, ``"(1+2j)"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

from mlpsubmit.display.output import echo

__all__ = ["echo_json"]


def echo_json(schema: str, content: Mapping[str, Any]) -> None:
    """Print an object, whose first entry is the name and the version of its schema: ``"ls/1"``."""
    echo(json.dumps({"schema": schema, **_plain(content)}, indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, PathLike):
        return str(value)
    if not isinstance(value, (str, int, float)) and callable(getattr(value, "tolist", None)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, complex) else value
