"""The manifest of a run, sweep.json: its sweep and provenance, for people and for collect."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlpsubmit.arguments import function_name, further_arguments
from mlpsubmit.display.text import utc
from mlpsubmit.jobs.as_launched import launched_in
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import encode_mask
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.results.labels import NO_LABELS
from mlpsubmit.runs.function_sources import function_sources
from mlpsubmit.runs.provenance import spec_hash
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.ingredients import ingredient, is_in_full
from mlpsubmit.spec.keys import values_of
from mlpsubmit.spec.metrics import Metric, crossing_order, with_asked_for
from mlpsubmit.spec.sweep import Sweep

__all__ = ["axis_label", "code_hash", "manifest"]

_GIT_SECONDS = 5.0

#: Where a function is in memory, in its text.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def manifest(
    sweep: Sweep,
    spec: Path | None,
    command: Sequence[str],
    reused: int,
    path: Path,
    reads: Iterable[Path] = (),
) -> dict[str, Any]:
    """Return the content of a new run's sweep.json.

    Args:
        spec: the file that defines the sweep, if any.
        command: the command line of the launch.
        reused: the number of reused configs.
        path: the run directory.
        reads: the folders of the runs whose networks it begins from.
    """
    base = sweep.base
    assert sweep.process is not None
    varied = {name for axis in sweep.product.axes for name in axis.names}
    included = None if sweep.included is None else encode_mask(sweep.included)
    return {
        "format": run_directory.FORMAT,
        "name": sweep.name,
        "fingerprint": sweep.fingerprint,
        "created": utc(time.time()),
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
        "reused": reused,
        **_thresholds(sweep),
        **_metrics(sweep),
        "tested": _tested(sweep),
        "hyperparameters": {
            name: axis_label(value) for name, value in dict(base).items() if name not in varied
        },
        "arguments": {name: axis_label(value) for name, value in sweep.arguments.items()},
        "functions": _functions(sweep),
        "given": sorted(base.model_fields_set),
        "overrides": dict(sweep.overrides),
        "sources": function_sources(sweep),
        "reads": [os.path.abspath(folder) for folder in reads],
        "labels": {
            name: labels.as_json() for name, labels in sweep.labels.items() if labels != NO_LABELS
        },
        "devices": base.devices,
        "launched_in": launched_in(sweep.process.surroundings.folder, path),
        "origin": _origin(spec, command),
    }


def _functions(sweep: Sweep) -> dict[str, Any]:
    """Return the names of the functions, what they are given besides settings, and their hashes."""
    own = _own_arguments(sweep)
    given = {**dict(sweep.base), **sweep.arguments}
    entries = {n: (entry, given.get(n)) for n, entry in sweep.ingredients["settings"].items()}
    for axis in sweep.product.axes:
        for name in axis.names:
            for position, value in enumerate(axis.values(name)):
                if not is_in_full(value):
                    entries[f"axis {name}[{position}]"] = ingredient(name, value), value
    hashes = {
        name: found
        for name, (entry, value) in entries.items()
        if (found := code_hash(entry, own) or ("" if _has_code(value) else entry["hash"][:8]))
    }
    if initial := sweep.ingredients["initial"]:  # the text of INIT_WEIGHTS names a run
        content = " ".join(initial["hashes"])
        hashes["init_weights"] = hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
    return {
        "batchfn": axis_label(sweep.batchfn),
        "data": axis_label(sweep.data),
        "grabs": {name: axis_label(grab) for name, grab in sweep.grabs.items()},
        "where": axis_label(sweep.where),
        "arguments": own,
        "hashes": hashes,
    }


def _has_code(value: Any) -> bool:
    """Return whether all that a value is, is in its text or in its code."""
    return callable(value) or is_in_full(value)


def _own_arguments(sweep: Sweep) -> dict[str, Any]:
    """Return the arguments of `data` and `batchfn` that a partial or a default of theirs sets."""
    others = {*Hyperparameters.model_fields, *sweep.product.names, *sweep.arguments, *SUPPLIED}
    found: dict[str, Any] = {}
    for function in (sweep.data, sweep.batchfn):
        for name, parameter in ({} if function is None else further_arguments(function, 0)).items():
            value = parameter.default
            if name not in others and isinstance(value, (bool, int, float, str, tuple, list)):
                found.setdefault(name, axis_label(value))
    return found


def code_hash(ingredient: Mapping[str, Any], arguments: Collection[str]) -> str:
    """Return a hash of the code that a setting consists of; empty if it is of the library or none.

    Args:
        arguments: names of parts that are settings of their own.
    """
    parts = ingredient.get("parts", {})
    own = [f"{name} {part['hash']}" for name, part in parts.items() if name not in arguments]
    return hashlib.blake2b("\n".join(own).encode(), digest_size=4).hexdigest() if own else ""


def _thresholds(sweep: Sweep) -> dict[str, Any]:
    """Return the thresholds; if they are an axis, their positions, its dimension and its values."""
    for axis in sweep.product.axes:
        kinds = [name for name in axis.names if name in ("loss_checkpoints", "percent_thresholds")]
        if kinds:
            columns = zip(*(axis.values(name) for name in kinds), strict=True)
            lists = [list(next(filter(None, values), ())) for values in columns]
            positions = list(range(max(map(len, lists))))
            return {
                "thresholds": positions,
                "threshold_axis": {"dimension": axis.dimension, "values": lists},
            }
    return {"thresholds": list(sweep.base.thresholds), "threshold_axis": None}


def _metrics(sweep: Sweep) -> dict[str, Any]:
    """Return the names of the metrics of any config, and as :func:`_thresholds` theirs."""
    metrics: dict[str, Metric] = {}
    for own in values_of(sweep, "metrics"):
        metrics |= own
    lists = values_of(sweep, "metric_thresholds")
    names = list(dict.fromkeys(name for own in lists for name in own))
    metrics = with_asked_for(metrics, names)
    axis = next((a for a in sweep.product.axes if "metric_thresholds" in a.names), None)
    found = []
    for name in names:
        ordered = [list(crossing_order(metrics, name, own.get(name, ()))) for own in lists]
        along = None if axis is None else {"dimension": axis.dimension, "values": ordered}
        thresholds = ordered[0] if along is None else list(range(max(map(len, ordered))))
        found.append({"name": name, "thresholds": thresholds, "threshold_axis": along})
    return {"metrics": list(metrics), "metric_thresholds": found}


def _tested(sweep: Sweep) -> bool:
    """Return whether any config can have a test loss.

    It has one if it trains offline, if EVAL_EVERY is set, and if thresholds need it.
    """
    asked = (key for own in values_of(sweep, "metric_thresholds") for key in own)
    return any(values_of(sweep, "n_test")) and (
        not all(values_of(sweep, "online"))
        or any(values_of(sweep, "eval_every"))
        or any(key.startswith("test_") for key in asked)
    )


def _labels(values: Sequence[Any]) -> list[Any]:
    """Return axis values as coordinates; equal labels of different values are numbered.

    Two lambdas have equal labels. On a zipped axis a value may be there several times.
    """
    labels = [axis_label(value) for value in values]
    distinct = len({(type(label), label) for label in labels})
    if distinct == len(labels) or all(isinstance(value, (int, float, str)) for value in values):
        return labels
    first: dict[bytes, int] = {}
    numbers = [first.setdefault(setting_digest(value), n) for n, value in enumerate(values)]
    if distinct == len(first):
        return labels
    return [f"{label} #{number}" for label, number in zip(labels, numbers, strict=True)]


def axis_label(value: Any) -> Any:
    """Return a value as a number or a string, which coordinates can hold."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Decimal, Fraction)):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if callable(value) and not hasattr(value, "items"):
        return function_name(value)
    return _ADDRESS.sub("", str(value))


def _origin(spec: Path | None, command: Sequence[str]) -> dict[str, str]:
    """Return versions, command line and the state of the user's repository."""
    folder = (spec.parent if spec else Path.cwd()).resolve()
    changes = _git(folder, "diff", "HEAD")
    return {
        "spec": str(spec.resolve()) if spec else "",
        "spec_hash": spec_hash(spec) if spec else "",
        "command": shlex.join(command),
        "mlpsubmit": version("mlpsubmit"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "git_commit": _git(folder, "rev-parse", "HEAD").decode().strip(),
        "git_diff_hash": hashlib.blake2b(changes).hexdigest()[:16] if changes else "",
    }


def _git(folder: Path, *arguments: str) -> bytes:
    """Return the output of a git command; empty if the folder is not in a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
