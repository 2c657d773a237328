"""The manifest of a run, sweep.json: its sweep and provenance, for people and for collect."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlpsubmit.arguments import further_arguments
from mlpsubmit.display.text import utc
from mlpsubmit.jobs.as_launched import launched_in
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import encode_mask
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.results.labels import NO_LABELS
from mlpsubmit.results.values import HASH_BYTES
from mlpsubmit.runs.function_sources import function_sources
from mlpsubmit.runs.provenance import spec_hash
from mlpsubmit.runs.value_labels import axis_label, axis_labels, label_hash
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.keys import values_of
from mlpsubmit.spec.metrics import Metric, crossing_order, with_asked_for
from mlpsubmit.spec.product import Axis
from mlpsubmit.spec.sweep import Sweep

__all__ = ["code_hash", "manifest"]

_GIT_SECONDS = 5.0


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
        "axes": [_axis(axis) for axis in sweep.product.axes],
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


def _axis(axis: Axis) -> dict[str, Any]:
    """Return an axis with the labels of its values, and the hashes of names that have any."""
    columns = [axis.values(name) for name in axis.names]
    labels = [axis_labels(values) for values in columns]
    hashes = [
        [label_hash(*pair) for pair in zip(values, own, strict=True)]
        for values, own in zip(columns, labels, strict=True)
    ]
    return {
        "dimension": axis.dimension,
        "names": list(axis.names),
        "values": labels,
        "hashes": [own if any(own) else [] for own in hashes],
    }


def _functions(sweep: Sweep) -> dict[str, Any]:
    """Return the names of the functions, what they are given besides settings, and their hashes."""
    own = _own_arguments(sweep)
    entries = sweep.ingredients["settings"]
    code = {name: code_hash(entry, own) for name, entry in entries.items()}
    functions = {"batchfn": sweep.batchfn, "data": sweep.data}
    hashes = {
        **{name: found for name, found in code.items() if name.startswith("grab[")},
        **{
            name: label_hash(value, axis_label(value))
            for name, value in {**dict(sweep.base), **sweep.arguments}.items()
        },
        **{
            name: _function_hash(function, code.get(name, ""))
            for name, function in functions.items()
        },
    }
    if initial := sweep.ingredients["initial"]:  # the text of INIT_WEIGHTS names a run
        content = " ".join(initial["hashes"]).encode()
        hashes["init_weights"] = hashlib.blake2b(content, digest_size=HASH_BYTES).hexdigest()
    return {
        "batchfn": axis_label(sweep.batchfn),
        "data": axis_label(sweep.data),
        "grabs": {name: axis_label(grab) for name, grab in sweep.grabs.items()},
        "where": axis_label(sweep.where),
        "arguments": own,
        "hashes": {name: found for name, found in hashes.items() if found},
    }


def _function_hash(function: Any, code: str) -> str:
    """Return the hash of `batchfn` or `data`, without the arguments that are settings of their own.

    Args:
        code: the hash of its code; empty if that is of a library.
    """
    label = axis_label(function)
    while isinstance(function, functools.partial) and not function.args:
        function = function.func
    with_arguments = isinstance(function, functools.partial)
    return label_hash(function, label) if with_arguments or not code else code


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

    It has one, unless N_TEST=0, if it trains offline, if EVAL_EVERY is set, and if thresholds need
    it.
    """
    asked = (key for own in values_of(sweep, "metric_thresholds") for key in own)
    return any(values_of(sweep, "n_test")) and (
        not all(values_of(sweep, "online"))
        or any(values_of(sweep, "eval_every"))
        or any(key.startswith("test_") for key in asked)
    )


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
