"""``mlpsubmit export``: the configs of a run in TensorBoard or in W&B."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import open_selected, run_argument, runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    from mlpsubmit.export.write import Export

__all__ = ["export"]


@click.command()
@run_argument
@click.option("--to", metavar="tensorboard|wandb", help="Where to.")
@click.option(
    "--sel",
    multiple=True,
    metavar="NAME=VALUE",
    help="Which configs: noise=0.3, width=64,128 or lr=0.01:0.1; default: all.",
)
@click.option("--follow", is_flag=True, help="Go on until the run ends.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the record of what was exported, and of files; default: "
    "mlpexports/TRACKER/NAME/RUN.",
)
@click.option("--project", help="W&B: the project; default: $WANDB_PROJECT, else mlpsubmit.")
@click.option("--offline", is_flag=True, help="W&B: write files; wandb sync sends them later.")
@click.option("--many", is_flag=True, help="Make more than 1,000 runs.")
@runs_dir_option
def export(
    run: str | None, to: str | None, sel: tuple[str, ...], runs_dir: Path | None, **options: Any
) -> None:
    """Export a RUN to TensorBoard or to Weights & Biases.

    Each config with a result becomes one run there: axes and settings as its config, with curves
    by step and final values. Failed configs are marked as such. Exported again, only what is new
    is added, also after an interruption. The exit code is 1 if selected points are missing and the
    run has ended.
    """
    from mlpsubmit.export.selection import parsed
    from mlpsubmit.export.trackers import chosen
    from mlpsubmit.export.write import exporting

    chosen(to)
    selection = parsed(sel)
    opened = open_selected(run, runs_dir)
    with exporting(opened, to, sel=selection, **options) as progress:
        try:
            _export(progress, follow=options["follow"])
        except KeyboardInterrupt:
            echo(f"stopped; {_line(progress)}; the same command goes on from there")
            sys.exit(0 if options["follow"] and _is_fine(progress) else 1)
    echo(_line(progress))
    echo(progress.next_step)
    _report(progress)
    sys.exit(0 if _is_fine(progress) else 1)


def _export(progress: Export, *, follow: bool) -> None:
    if not follow:
        progress.update()
        return
    for new in progress.follow():
        if progress.status is not None and progress.status.running:
            done = f"{progress.exported} of {counted(progress.configs, 'config')}"
            echo(f"{counted(new, 'new config')} in {progress.folder} ({done})")


def _line(progress: Export) -> str:
    new = counted(progress.new, "new config") if progress.new else "nothing new"
    return f"export: {progress.folder} ({new}; {progress.exported} of {progress.configs})"


def _is_fine(progress: Export) -> bool:
    """Return whether all selected configs have results there, or may have yet."""
    complete = progress.exported == progress.configs and not progress.failed
    return complete or progress.status is None or progress.status.running


def _report(progress: Export) -> None:
    """Print what was not exported, and why."""
    if progress.left_out:
        echo(
            f"not exported: {inline(', '.join(progress.left_out))} (arrays, which trackers do not "
            "show; mlpsubmit collect has them)",
            err=True,
        )
    status, left = progress.status, progress.configs - progress.exported
    if status is None or not (left or progress.failed):
        return
    without = [f"{counted(left, 'config')} without a result"] if left else []
    failed = [f"{counted(progress.failed, 'failed config')}"] if progress.failed else []
    missing = " and ".join([*without, *failed])
    if status.running:
        echo(f"{missing} so far: the run is in progress; add --follow to go on", err=True)
    else:
        echo(f"{missing}; to train them: mlpsubmit resume {status.run}", err=True)
