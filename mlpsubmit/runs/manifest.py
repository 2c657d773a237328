"""What sweep.json says of a sweep: for people, and for collect."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit.arguments import function_name
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import encode_mask
from mlpsubmit.runs.provenance import origin
from mlpsubmit.spec.sweep import Sweep

__all__ = ["record"]


def record(
    sweep: Sweep, spec: Path | None, command: Sequence[str], reused: Mapping[str, int]
) -> dict[str, Any]:
    """Return what sweep.json says: for people, and for collect."""
    base = sweep.base
    varied = {name for axis in sweep.product.axes for name in axis.names}
    included = None if sweep.included is None else encode_mask(sweep.included)
    return {
        "format": run_directory.FORMAT,
        "name": sweep.name,
        "fingerprint": sweep.fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "configs": len(sweep),
        "axes": [
            {
                "dimension": axis.dimension,
                "names": list(axis.names),
                "values": [_labels(axis.values(name)) for name in axis.names],
            }
            for axis in sweep.product.axes
        ],
        "included": included,
        "reused": dict(reused),
        "thresholds": _threshold_coordinate(sweep),
        "hyperparameters": {
            name: _scalar(value) for name, value in dict(base).items() if name not in varied
        },
        "arguments": {name: _scalar(value) for name, value in sweep.arguments.items()},
        "functions": {
            "batchfn": _scalar(sweep.batchfn),
            "data": _scalar(sweep.data),
            "grabs": {name: _scalar(grab) for name, grab in sweep.grabs.items()},
            "where": _scalar(sweep.where),
        },
        "devices": base.devices,
        "origin": origin(spec, command),
    }


def _threshold_coordinate(sweep: Sweep) -> list[float]:
    """Return the thresholds, or their places in descending order where they are an axis."""
    lists = [
        value
        for axis in sweep.product.axes
        for name in axis.names
        if name in ("loss_checkpoints", "percent_thresholds")
        for value in axis.values(name)
    ]
    if not lists:
        return list(sweep.base.thresholds)
    return list(range(max(len(value or ()) for value in lists)))


def _labels(values: Sequence[Any]) -> list[Any]:
    """Return axis values as coordinates; equal labels, as of two lambdas, are numbered."""
    labels = [_scalar(value) for value in values]
    if len({(type(label), label) for label in labels}) < len(labels):
        return [f"{label} #{place}" for place, label in enumerate(labels)]
    return labels


def _scalar(value: Any) -> Any:
    """Return a value as a coordinate can hold it: a number or a string."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and not hasattr(value, "items"):
        return function_name(value)
    return str(value)
