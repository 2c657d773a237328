"""``mlpsubmit launch``: from a spec to running tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import check_pdb, executor_options, parse_overrides, runs_dir_option

if TYPE_CHECKING:
    from mlpsubmit.sweep import Sweep

__all__ = ["launch"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--sweep", "pick", metavar="NAME", help="Which sweep, where the spec holds several.")
@executor_options
@click.option("--dry-run", is_flag=True, help="Show the plan and start nothing.")
@click.option("--fresh", is_flag=True, help="Train everything anew, whatever is finished already.")
@runs_dir_option
def launch(
    spec: Path,
    overrides: tuple[str, ...],
    pick: str | None,
    dry_run: bool,
    fresh: bool,
    runs_dir: Path | None,
    **where: Any,
) -> None:
    """Train the sweep of a SPEC; what is finished already is not trained again.

    KEY=VALUE replaces a setting of the spec: LR=0.1, ONLINE=False; a list makes an axis:
    GAMMA=[0.1,1].
    """
    from mlpsubmit import run as runs
    from mlpsubmit.cli import display
    from mlpsubmit.loading import load_spec

    check_pdb(where["pdb"], where["executor"])
    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    if dry_run:
        _show_plan(sweep, where["executor"], where["tasks"], runs_dir, fresh)
        return
    click.echo(repr(sweep))
    run = runs.launch(
        sweep,
        executor=where["executor"],
        tasks=where["tasks"],
        runs_dir=runs_dir,
        spec=spec,
        fresh=fresh,
        pdb=where["pdb"],
        command=["mlpsubmit", *sys.argv[1:]],
    )
    click.echo(f"run {run.id} in {run.path}")
    status = display.follow(run) if where["follow"] else run.status()
    sys.exit(display.report(status))


def _show_plan(
    sweep: Sweep, executor: str, tasks: int | None, runs_dir: Path | None, fresh: bool
) -> None:
    """Print what a launch would do, through the code that prepares one."""
    import numpy as np

    from mlpsubmit.jobs import executors
    from mlpsubmit.jobs.plan import cut
    from mlpsubmit.run import prepare
    from mlpsubmit.training.assemble import probe

    probe(sweep)
    chosen = executors.choose(executor, sweep.base, tasks)
    prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
    plan, missing = prepared.plan, prepared.missing
    costs, sizes = plan.pack_costs, plan.pack_sizes
    click.echo(repr(sweep))
    for axis in sweep.product.axes:
        shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
        more = ", ..." if len(axis) > 8 else ""
        click.echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
    where = f"run {prepared.run.id} goes on" if prepared.run else "a new run"
    known = len(sweep) - int(sizes[missing].sum())
    click.echo(f"{where}: {len(missing)} packs to train, {known} configs are done already")
    slots = chosen.side_by_side(plan.threads)
    slices = cut(missing, costs[missing], slots) if len(missing) else []
    click.echo(
        f"{chosen.name}: {len(slices)} tasks of {plan.threads} threads, "
        f"{costs[missing].sum():.2g} floating-point operations at most"
    )
    for number, ranges in enumerate(slices):
        packs = np.concatenate([np.arange(low, high) for low, high in ranges])
        share = 100 * costs[packs].sum() / costs[missing].sum()
        click.echo(
            f"  task {number}: {len(packs)} packs, {sizes[packs].sum()} configs, {share:.0f}% of it"
        )
