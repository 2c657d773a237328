"""``mlpsubmit verify``: read all of a run, and train some of it again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import json_option, open_selected, run_argument, runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.runs.retrain import Comparison
    from mlpsubmit.runs.verify import Progress, VerifyReport

__all__ = ["verify"]


@click.command()
@run_argument
@click.option(
    "--subset",
    metavar="PART/PARTS",
    help="Read one of several parts: 1/7 today, 2/7 tomorrow, and so on.",
)
@click.option(
    "--retrain",
    metavar="SHARE",
    help="Train randomly chosen packs again, such as 1% of them, and compare the bits.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="With --retrain: execute the functions in the run even if other users could have written "
    "them.",
)
@json_option
@runs_dir_option
def verify(
    run: str | None,
    subset: str | None,
    retrain: str | None,
    trust: bool,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Compare all checksums of a RUN, and its configs with its plan.

    Damaged results are recorded, and count as missing from then on. The exit code is 1 if anything
    is damaged or differs.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.results.dataset import results_hash
    from mlpsubmit.runs import retrain as training
    from mlpsubmit.runs import verify as reading

    if trust and retrain is None:
        raise UserError("--trust: goes with --retrain; without it, verify executes nothing")
    part = None if subset is None else reading.Subset.parse(subset)
    share = None if retrain is None else training.Share.parse(retrain)
    opened = open_selected(run, runs_dir)
    with _progress() as show:
        found = reading.verify(opened.directory, part, show)
    status = opened.status()
    whole = None
    if part is None:
        whole = results_hash(opened.layout(), opened.directory.results.unread())
    if not as_json:
        _show(found, status, whole)
    outcome = None
    if share is not None:
        outcome = training.retrain(opened.directory, share, trust=trust)
    if as_json:
        echo_json("verify/1", _json(found, status, whole, outcome))
    elif outcome is not None:
        echo(outcome, err=bool(outcome.differing))
    sys.exit(1 if found.damage or (outcome and outcome.differing) else 0)


def _show(found: VerifyReport, status: Status, whole: str | None) -> None:
    for note in found.notes:
        echo(f"note: {inline(note)}")
    for damage in found.damage:
        echo(f"damaged: {inline(damage)}", err=True)
    echo(
        f"run {status.run}: {counted(found.files, 'file')} and {counted(found.results, 'result')} "
        f"read, {counted(len(found.damage), 'error')}"
    )
    echo(
        f"{status.done} of {counted(status.configs, 'config')} done, {status.failed} failed, "
        f"{status.missing} missing"
    )
    if whole is not None:
        echo(f"results hash: {whole}")


def _json(
    found: VerifyReport, status: Status, whole: str | None, outcome: Comparison | None
) -> dict[str, Any]:
    retrained = None
    if outcome is not None:
        retrained = {
            "packs": outcome.packs,
            "candidate_packs": outcome.candidates,
            "differing": dict(outcome.differing),
            "environment": outcome.environment or None,
        }
    numbers = {n: getattr(status, n) for n in ("run", "configs", "done", "failed", "missing")}
    read = {"files": found.files, "results": found.results, "read_bytes": found.bytes}
    texts = {"damage": found.damage, "notes": found.notes, "results_hash": whole}
    return {**numbers, **read, **texts, "retrained": retrained}


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Yield a function that shows how much is read: a bar, in a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from mlpsubmit.display.console import Console

    columns = (
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", name="")
        yield lambda name, done, total: bar.update(
            task, completed=done, total=total, name=inline(name)
        )
