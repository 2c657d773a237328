"""What the results of a run were made with: files that may have changed, versions and devices."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlpsubmit.display.text import abridged
from mlpsubmit.errors import RunError, UserError
from mlpsubmit.files import LARGEST_JSON, open_regular
from mlpsubmit.jobs import input_files
from mlpsubmit.jobs.as_launched import path_now
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.store.environments import NOT_IDENTICAL, differences, environment_file
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.submit import missing_packs

__all__ = [
    "attributes",
    "changed_inputs",
    "edited_spec",
    "first_unchanged",
    "reject",
    "spec_hash",
]

#: The most bytes of an attribute: HDF5 stores up to 64 KB.
_MOST_BYTES = 1 << 15


def changed_inputs(run: RunDirectory, records: Iterable[Mapping[str, Any]]) -> str:
    """Return how the files have changed from which data of a run was computed; empty if not.

    Warns of files that cannot be read here, and so not be compared.

    Args:
        records: of the data.
    """
    changed: dict[str, None] = {}
    absent: dict[str, None] = {}
    for record in records:
        for found, texts in zip((changed, absent), input_files.changes(record), strict=True):
            found.update(dict.fromkeys(texts))
    if changed:
        return f"run {run.id}: since its data= ran, {abridged(changed)}"
    if absent:
        warnings.warn(
            f"run {run.id}: its data= read {abridged(absent)}, which cannot be read here and may "
            "have changed; its results are reused (to train everything, launch with --fresh)",
            stacklevel=2,
        )
    return ""


def edited_spec(run: RunDirectory) -> str:
    """Return a text if the spec of a run has been edited since its launch; empty if not."""
    origin = run.sweep["origin"]
    folder, name = os.path.split(origin.get("spec", ""))
    if not name:  # launched from Python
        return ""
    spec = Path(path_now(run, folder), name)
    if spec_hash(spec) in ("", origin.get("spec_hash")):
        return ""
    command = origin.get("command") or f"mlpsubmit launch {shlex.quote(str(spec))}"
    return (
        f"run {run.id}: {spec} has been edited since the launch, and what was launched is resumed; "
        f"for what the spec says now, launch it: {command}"
    )


def spec_hash(spec: Path) -> str:
    """Return a hash of the file of a spec; empty if it cannot be read."""
    try:
        with open_regular(spec) as file:
            return hashlib.blake2b(file.read(LARGEST_JSON)).hexdigest()[:16]
    except (OSError, RunError):
        return ""


def reject(changed: Iterable[tuple[RunDirectory, str]], *, others: bool) -> None:
    """Report results that are not reused because files have changed.

    Args:
        changed: runs, and how they have changed, or what else is wrong with the data.
        others: whether there are results of other runs to reuse; else the user has to decide.

    Raises:
        UserError: if there are none.
    """
    for run, change in changed:
        if not others:
            text = (
                f"{change}; its results are those of the data that it had; to train everything "
                "on what is there now, launch with --fresh (from Python fresh=True)"
            )
            if len(missing_packs(run, Plan.from_json(run.plan))):
                text += f"; to complete that run on its own data: mlpsubmit resume {run.id}"
            raise UserError(text)
        warnings.warn(f"{change}; its results are not reused", stacklevel=2)


def first_unchanged(runs: Iterable[RunDirectory]) -> RunDirectory | None:
    """Return the first run whose data was computed from files as they are now; None without runs.

    Raises:
        UserError: there are runs, and files of all of them have changed.
    """
    changed: list[tuple[RunDirectory, str]] = []
    found: RunDirectory | None = None
    for run in runs:
        if not (change := changed_inputs(run, run.data_records().values())):
            found = run
            break
        changed.append((run, change))
    reject(changed, others=found is not None)
    return found


def attributes(run: RunDirectory) -> dict[str, str | int | float]:
    """Return where a run's results come from, as attributes of its dataset.

    Versions, devices and threads are those with which the results were made. Where they differ
    between tasks or reused results, all of them are listed, and the attribute ``bit_identity`` is
    added.
    """
    found: dict[str, Any] = dict(run.sweep["origin"])
    environments = run.results.environments()
    for shard in run.results.shards():
        if problem := run.unreadable.get(environment_file(shard)):
            warnings.warn(f"{problem}; what {shard.name} was made with is unknown", stacklevel=2)
    for name in dict.fromkeys(name for entry in environments for name in entry):
        values = list(dict.fromkeys(entry[name] for entry in environments if name in entry))
        found[name] = values[0] if len(values) == 1 else "; ".join(map(str, values))
    if mixed := differences(environments):
        found["bit_identity"] = f"made with {mixed}: {NOT_IDENTICAL}"
    records = run.data_records()
    if records:
        found["data_hash"] = _data_hash(records)
    return found


def _data_hash(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of the data; of several, JSON of them by the arguments in which they differ.

    If that is too long for an attribute, it is one hash of all.
    """
    if len(records) == 1:
        return str(next(iter(records.values()))["hash"])
    arguments = [record["arguments"] for record in records.values()]
    names = dict.fromkeys(name for own in arguments for name in own)
    varied = [name for name in names if len({own.get(name) for own in arguments}) > 1]
    by_arguments = {
        ", ".join(f"{name}={record['arguments'].get(name)}" for name in varied): record["hash"]
        for record in records.values()
    }
    text = json.dumps(by_arguments)
    if len(by_arguments) == len(records) and len(text) <= _MOST_BYTES:
        return text
    hashes = sorted(f"{key}{record['hash']}" for key, record in records.items())
    return hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()
