"""``mlpsubmit diff``: how two runs differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import json_option, open_selected, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    from mlpsubmit.runs.diff import RunDifferences
    from mlpsubmit.runs.result_differences import VariableDifference

__all__ = ["diff"]


@click.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@json_option
@runs_dir_option
def diff(first: str, second: str, as_json: bool, runs_dir: Path | None) -> None:
    """Compare two RUNs: settings, functions, versions and results.

    Nothing in the runs is executed. Results are compared in the configs that have the same values
    on the axes of both. For single configs, see why.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.runs.diff import run_differences

    before, after = (open_selected(run, runs_dir).directory for run in (first, second))
    found = run_differences(before, after)
    if as_json:
        echo_json("diff/1", found.to_json())
        return
    for line in _lines(found):
        echo(line)


def _lines(found: RunDifferences) -> Iterator[str]:
    """Yield what differs, and that the rest does not."""
    before, after = found.before.run, found.after.run
    yield f"--- {before.sweep['name']} {before.id}"
    yield f"+++ {after.sweep['name']} {after.id}"
    parts = {"settings": found.settings, "functions": found.functions, "versions": found.versions}
    for name, changes in parts.items():
        if changes:
            yield f"{name}:"
            yield from (line for change in changes for line in change.lines)
    if equal := [name for name, changes in parts.items() if not changes]:
        yield f"equal: {', '.join(equal)}"
    keys = f"{found.equal_keys:,} of {counted(len(found.after.indices), 'key')}"
    yield f"keys: {keys} of {after.id} are also in {before.id}"
    yield from _results(found)


def _results(found: RunDifferences) -> Iterator[str]:
    results = found.results
    if not results.shared:
        yield "results: no config is in both runs: none has the same values on the axes of both"
        return
    shared = counted(results.shared, "config")
    compared = f"{results.compared:,} with a result in both"
    equal = "" if not results.compared else f", {results.equal:,} of these equal bit for bit"
    yield f"results: {shared} in both runs, {compared}{equal}"
    for one in results.variables:
        yield f"  {one.name}: {_counts(one)}"
        if one.config is not None:
            words = one.words
            values = f"largest difference {one.largest:.2g} ({one.before:.6g} -> {one.after:.6g})"
            values = values if words is None else " -> ".join(words)
            point = found.point(one.config)
            yield f"    {values}" + (f" at {point}" if point != "-" else "")
    for name, where in results.alone.items():
        yield f"  {name}: only in {(found.before, found.after)[where].run.id}"


def _counts(one: VariableDifference) -> str:
    parts = [f"{one.equal:,} of {one.compared:,} equal"]
    if one.one_sided:
        parts.append(f"{counted(one.one_sided, 'value')} finite in one run only")
    if one.other_shape:
        parts.append(f"{one.other_shape:,} of another shape")
    return ", ".join(parts)
