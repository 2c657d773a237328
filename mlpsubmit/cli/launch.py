"""``mlpsubmit launch``: from a spec to running tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlpsubmit.cli.options import check_where, executor_options, parse_overrides, runs_dir_option
from mlpsubmit.errors import UserError

__all__ = ["launch"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--sweep", "pick", metavar="NAME", help="Which sweep, where the spec holds several.")
@executor_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the plan, and what SLURM would get; start nothing.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="With --dry-run: train some packs for seconds, to say how long all would take.",
)
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: for a script to read.")
@click.option("--fresh", is_flag=True, help="Train everything anew, whatever is finished already.")
@runs_dir_option
def launch(
    spec: Path,
    overrides: tuple[str, ...],
    pick: str | None,
    dry_run: bool,
    calibrate: bool,
    as_json: bool,
    fresh: bool,
    runs_dir: Path | None,
    **where: Any,
) -> None:
    """Train the sweep of a SPEC; what is finished already is not trained again.

    KEY=VALUE replaces a setting of the spec: LR=0.1, ONLINE=False; a list makes an axis:
    GAMMA=[0.1,1].
    """
    from mlpsubmit.cli import dry_run as dry
    from mlpsubmit.cli import terminal
    from mlpsubmit.runs import launch
    from mlpsubmit.runs.locate import runs_folder
    from mlpsubmit.spec.load import load_spec

    ask = check_where(where)
    if not dry_run:
        _refuse_alone(calibrate=calibrate, json=as_json)
    if not ask.is_empty:
        ask.resolve()  # its errors need no spec, which takes its time to load
    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    if dry_run:
        found = dry.dry_run(sweep, spec, where, runs_dir, fresh=fresh, calibrate=calibrate)
        found.print_json() if as_json else found.show()
        return
    click.echo(repr(sweep))
    before = _submissions(runs_folder(runs_dir) / sweep.name)
    run = launch.launch(
        sweep,
        executor=where["executor"] or "auto",
        tasks=where["tasks"],
        template=ask.template,
        slurm=ask.changes,
        retries=where["retries"],
        runs_dir=runs_dir,
        spec=spec,
        fresh=fresh,
        pdb=where["pdb"],
        command=["mlpsubmit", *sys.argv[1:]],
    )
    click.echo(f"run {run.id} in {run.path}")
    submitted = before.get(run.id, 0) < len(run.directory.submissions())
    sys.exit(terminal.after_submitting(run, where["follow"], submitted=submitted))


def _refuse_alone(**options: bool) -> None:
    """Refuse options that go with ``--dry-run`` only."""
    for name, is_given in options.items():
        if is_given:
            raise UserError(
                f"--{name}: goes with --dry-run, which starts nothing; add it, and launch when "
                "you have seen what it says"
            )


def _submissions(folder: Path) -> dict[str, int]:
    """Return how often each run of a sweep was submitted, by its id."""
    from mlpsubmit.jobs.store.run_directory import RunDirectory
    from mlpsubmit.runs.locate import runs_of

    return {path.name: len(RunDirectory(path).submissions()) for path in runs_of(folder)}
