"""``mlpsubmit launch``: from a spec to running tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import executor_options, parse_overrides, runs_dir_option

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

    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    if dry_run:
        _show_plan(sweep, where["executor"], where["tasks"])
        return
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
    click.echo(f"{sweep!r}\nrun {run.id} in {run.path}")
    status = display.follow(run) if where["follow"] else run.status()
    sys.exit(display.report(status))


def _show_plan(sweep: Sweep, executor: str, tasks: int | None) -> None:
    """Print what a launch would do, through the code that does it."""
    import numpy as np

    from mlpsubmit.jobs import executors
    from mlpsubmit.jobs.plan import cut, make_plan
    from mlpsubmit.training.assemble import probe

    probe(sweep)
    chosen = executors.by_name(executor)(sweep.base, tasks)
    plan = make_plan(sweep, chosen.slots, chosen.threads)
    slices = cut(np.arange(plan.packs), plan.pack_costs, chosen.slots)
    click.echo(repr(sweep))
    for axis in sweep.product.axes:
        shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
        more = ", ..." if len(axis) > 8 else ""
        click.echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
    click.echo(
        f"{chosen.name}: {len(slices)} tasks of {chosen.threads} threads, {plan.packs} packs, "
        f"{plan.cost:.2g} floating-point operations at most"
    )
    for number, ranges in enumerate(slices):
        packs = np.concatenate([np.arange(low, high) for low, high in ranges])
        configs, cost = plan.pack_sizes[packs].sum(), plan.pack_costs[packs].sum()
        share = 100 * cost / plan.cost
        click.echo(f"  task {number}: {len(packs)} packs, {configs} configs, {share:.0f}% of it")
