"""``mlpsubmit resume``: train what is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlpsubmit.cli.options import (
    check_where,
    executor_options,
    open_selected,
    run_argument,
    runs_dir_option,
)
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted

__all__ = ["resume"]


@click.command()
@run_argument
@executor_options
@click.option("--after", type=int, hidden=True)  # both given by the job that --retries submits
@click.option("--sweep-hash", default="", hidden=True)
@runs_dir_option
def resume(
    run: str | None, after: int | None, sweep_hash: str, runs_dir: Path | None, **where: Any
) -> None:
    """Train the configs of a RUN that have no result.

    These are the configs that failed, crashed, were interrupted or never started.
    """
    from mlpsubmit.cli import terminal
    from mlpsubmit.jobs.signals import stopped_run

    request = check_where(where)
    opened = open_selected(run, runs_dir)
    if after is not None:
        from mlpsubmit.jobs.slurm.limits import NoRoom
        from mlpsubmit.jobs.slurm.requeue import REQUEUE

        try:
            packs = opened.retry(after, where["retries"], sweep_hash)
        except NoRoom as error:
            echo(f"not yet: {error}")
            sys.exit(REQUEUE)
        echo(f"run {opened.id}: {counted(packs, 'pack')} to train")
        return
    packs = 0
    try:
        packs = opened.resume(
            where["executor"],
            where["tasks"],
            template=request.template,
            slurm=request.changes,
            retries=where["retries"],
            pdb=where["pdb"],
            same_device=where["same_device"],
            trust=where["trust"],
        )
    except KeyboardInterrupt as error:
        if stopped_run(error) is None:  # it did not train in this process
            raise
    if packs:
        echo(f"run {opened.id}: {counted(packs, 'pack')} to train")
    sys.exit(terminal.follow_or_report(opened, where["follow"]))
