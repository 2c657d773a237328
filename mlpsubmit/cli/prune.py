"""``mlpsubmit prune``: remove what is superseded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import json_option, runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.display.text import counted, file_size
from mlpsubmit.errors import UserError

if TYPE_CHECKING:
    from mlpsubmit.runs.prune import Candidate, PruneReport, Removal

__all__ = ["prune"]


@click.command()
@click.argument("which", required=False, metavar="[NAME|FOLDER|RUN]")
@click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Remove it without asking.")
@json_option
@runs_dir_option
def prune(
    which: str | None, dry_run: bool, yes: bool, as_json: bool, runs_dir: Path | None
) -> None:
    """Remove superseded runs, and what is of no use in others, after asking.

    A run is superseded once a later run of its name has intact results of all its configs. Nothing
    is removed of runs in progress, of other users, or whose networks another run begins from. With
    --json, nothing is removed without --yes.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.runs.locate import selected_runs
    from mlpsubmit.runs.prune import find, remove

    if dry_run and yes:
        raise UserError("--dry-run: removes nothing, and --yes removes without asking; give one")
    folder, paths = selected_runs(which, runs_dir)
    found = find(paths)
    if not as_json:
        _show(found, folder, len(paths))
    chosen = found.candidates if _confirmed(found, dry_run, yes, as_json) else []
    removals = {id(one.candidate): one for one in remove(chosen)}
    failed = {key: one.error for key, one in removals.items() if one.error}
    if as_json:
        echo_json("prune/1", _json(found, folder, removals))
    elif chosen:
        _report(chosen, removals)
    elif found.candidates:
        echo("nothing was removed")
    sys.exit(1 if failed else 0)


def _show(found: PruneReport, folder: Path, runs: int) -> None:
    from mlpsubmit.display.columns import Column, print_columns

    listed = found.candidates
    if listed:
        print_columns(
            [
                Column("what", [one.kind for one in listed]),
                Column("name", [one.sweep.name for one in listed], rank=1),
                Column("run", [one.run for one in listed]),
                Column("files", [_files(one) for one in listed], right=True, rank=2),
                Column("size", [file_size(one.size) for one in listed], right=True),
                Column("why nothing is lost", [one.why for one in listed]),
            ]
        )
    else:
        echo(f"{folder}: nothing to remove in {counted(runs, 'run')}")
    for run, why in found.kept.items():
        echo(f"kept: run {run} {inline(why)}")
    if found.unreadable:
        echo(
            f"left alone: {counted(found.unreadable, 'run')} of another format, or damaged; see ls"
        )


def _files(one: Candidate) -> str:
    return "" if one.kind == "run" else str(len(one.paths))


def _confirmed(found: PruneReport, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Return whether to remove what was found.

    Raises:
        UserError: there is nobody to ask.
    """
    if dry_run or not found.candidates or (as_json and not yes):
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(
            "prune: removes nothing without a confirmation, and there is no terminal to ask in; "
            "give --yes, or --dry-run to list only"
        )
    return click.confirm(f"remove {_what(found.candidates)} ({file_size(found.size)})?")


def _what(candidates: Sequence[Candidate]) -> str:
    """Return what is removed: ``2 runs, and unneeded files in 3 others``."""
    runs = sum(one.kind == "run" for one in candidates)
    others = len({(one.sweep, one.run) for one in candidates if one.kind != "run"})
    parts = [counted(runs, "run")] if runs else []
    parts += [f"unneeded files in {counted(others, 'folder')}"] if others else []
    return ", and ".join(parts)


def _report(chosen: Sequence[Candidate], removals: Mapping[int, Removal]) -> None:
    for removal in removals.values():
        if removal.error:
            echo(f"not removed: {inline(removal.error)}", err=True)
        if removal.left:
            text = f"some of it is left, as files of it may be open: {inline(removal.left)}; "
            echo(f"{text}the next launch of the sweep, or prune in an hour, removes it", err=True)
    removed = [one for one in chosen if not removals[id(one)].error]
    if removed:
        echo(f"removed {_what(removed)}: {file_size(sum(one.size for one in removed))} are free")


def _json(found: PruneReport, folder: Path, removals: Mapping[int, Removal]) -> dict[str, Any]:
    tried = [(one, removals.get(id(one))) for one in found.candidates]
    return {
        "folder": folder.absolute(),
        "size_bytes": found.size,
        "candidates": [
            {
                **one.to_json(),
                "removed": removal is not None and not removal.error,
                "error": (removal and removal.error) or None,
                "left": (removal and removal.left) or None,
            }
            for one, removal in tried
        ],
        "kept": [{"run": run, "why": why} for run, why in found.kept.items()],
        "unreadable_runs": found.unreadable,
    }
