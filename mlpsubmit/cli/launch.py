"""``mlpsubmit launch``: from a spec to running tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlpsubmit.cli.options import check_where, executor_options, parse_overrides, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["launch"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--sweep", "pick", metavar="NAME", help="Sweep to launch, if SPEC defines several.")
@executor_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the plan and, for SLURM, the sbatch script; start nothing.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="With --dry-run: estimate the duration by training some packs for a few seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
@click.option("--fresh", is_flag=True, help="Train everything again; reuse no earlier results.")
@click.option(
    "--group",
    metavar="NAME",
    help="Unix group whose members can read the run, and continue it (resume --trust).",
)
@runs_dir_option
def launch(
    spec: Path,
    overrides: tuple[str, ...],
    pick: str | None,
    dry_run: bool,
    calibrate: bool,
    as_json: bool,
    fresh: bool,
    group: str | None,
    runs_dir: Path | None,
    **where: Any,
) -> None:
    """Launch the sweep defined in SPEC.

    Configs that already have a result are not trained again. KEY=VALUE overrides a setting of the
    spec, such as LR=0.1 or ONLINE=False; a list makes it an axis, such as GAMMA=[0.1,1].
    KEY+=VALUE appends to an axis: GAMMA+=10, or GAMMA+=[10,100].
    """
    from mlpsubmit.cli import dry_run as dry
    from mlpsubmit.cli import terminal
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.jobs.signals import stopped_run
    from mlpsubmit.jobs.store.run_directory import RunDirectory
    from mlpsubmit.runs import launch
    from mlpsubmit.runs.locate import runs_folder, runs_of
    from mlpsubmit.runs.run import Run
    from mlpsubmit.runs.sharing import group_id
    from mlpsubmit.spec.load import load_spec

    request = check_where(where)
    for name, given in {"calibrate": calibrate, "json": as_json}.items():
        if given and not dry_run:
            raise UserError(
                f"--{name}: only valid with --dry-run, which starts nothing; add --dry-run, or "
                f"leave --{name} out to launch"
            )
    if group is not None:
        group_id(group)  # raises its errors before the spec is loaded, which takes a while
    if request.options:
        request.resolve()  # as well
    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    if dry_run:
        found = dry.dry_run(sweep, spec, where, runs_dir, fresh=fresh, calibrate=calibrate)
        echo_json("dry-run/1", found.to_json()) if as_json else found.show()
        return
    echo(repr(sweep))
    earlier = runs_of(runs_folder(runs_dir) / sweep.name)
    submissions = {path.name: len(RunDirectory(path).submissions()) for path in earlier}
    try:
        run = launch.launch(
            sweep,
            executor=where["executor"] or "auto",
            tasks=where["tasks"],
            template=request.template,
            slurm=request.changes,
            retries=where["retries"],
            runs_dir=runs_dir,
            spec=spec,
            fresh=fresh,
            pdb=where["pdb"],
            same_device=where["same_device"],
            trust=where["trust"],
            group=group,
            command=["mlpsubmit", *sys.argv[1:]],
        )
    except KeyboardInterrupt as error:
        if (folder := stopped_run(error)) is None:  # it did not train in this process
            raise
        run = Run(RunDirectory(folder))
    echo(f"run {run.id} in {run.path}")
    submitted = submissions.get(run.id, 0) < len(run.directory.submissions())
    sys.exit(terminal.follow_or_report(run, where["follow"], submitted=submitted))
