"""``mlpsubmit launch``: from a spec to running tasks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import check_where, executor_options, parse_overrides, runs_dir_option
from mlpsubmit.cli.slurm_options import given

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.launching import Prepared
    from mlpsubmit.sweep import Sweep

__all__ = ["launch"]

#: Tasks of which a dry run says what they would train.
SHOWN_TASKS = 24


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
    from mlpsubmit import launching
    from mlpsubmit.cli import display
    from mlpsubmit.finding import runs_folder
    from mlpsubmit.loading import load_spec

    ask = check_where(where)
    if not ask.is_empty:
        ask.resolve()  # its mistakes need no spec, which takes its time to load
    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    if dry_run:
        _show_plan(sweep, where, runs_dir, fresh)
        return
    click.echo(repr(sweep))
    before = _submissions(runs_folder(runs_dir) / sweep.name)
    run = launching.launch(
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
    sys.exit(display.after_submitting(run, where["follow"], submitted=submitted))


def _submissions(folder: Path) -> dict[str, int]:
    """Return how often each run of a sweep was submitted, by its id."""
    from mlpsubmit.finding import runs_of
    from mlpsubmit.jobs.store import RunDirectory

    return {path.name: len(RunDirectory(path).submissions()) for path in runs_of(folder)}


def _show_plan(sweep: Sweep, where: Mapping[str, Any], runs_dir: Path | None, fresh: bool) -> None:
    """Print what a launch would do, through the code that does it."""
    from mlpsubmit.jobs import executors
    from mlpsubmit.launching import prepare
    from mlpsubmit.training.probing import probe

    probe(sweep)
    chosen = executors.choose(where["executor"] or "auto", sweep.base, where["tasks"], given(where))
    prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
    click.echo(repr(sweep))
    for axis in sweep.product.axes:
        shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
        more = ", ..." if len(axis) > 8 else ""
        click.echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
    if prepared.run and (status := prepared.run.status()).busy:
        click.echo(_why_nothing(status))
        return
    place = f"run {prepared.run.id} goes on" if prepared.run else "a new run"
    known = len(sweep) - int(prepared.plan.pack_sizes[prepared.missing].sum())
    click.echo(f"{place}: {len(prepared.missing)} packs to train, {known} configs are done already")
    if len(prepared.missing):
        _show_tasks(chosen, prepared, where["retries"])


def _why_nothing(status: Status) -> str:
    """Say why a launch would submit nothing, of a run that is busy."""
    from mlpsubmit.cli import display

    if status.state == "unknown":
        return f"{display.unknown(status)}; a launch would submit nothing"
    return f"run {status.run} is running already: a launch would submit nothing"


def _show_tasks(executor: Executor, prepared: Prepared, retries: int) -> None:
    """Print the slices, and what the executor would be given."""
    import numpy as np

    from mlpsubmit.jobs.plan import cut

    plan, missing = prepared.plan, prepared.missing
    costs, sizes = plan.pack_costs, plan.pack_sizes
    submission = prepared.submission(executor, retries)
    slices = cut(missing, costs[missing], submission.tasks)
    total = costs[missing].sum()
    click.echo(
        f"{executor.name}: {len(slices)} tasks of {plan.threads} threads, "
        f"{total:.2g} floating-point operations at most"
    )
    for number, ranges in enumerate(slices[:SHOWN_TASKS]):
        packs = np.concatenate([np.arange(low, high) for low, high in ranges])
        share = 100 * costs[packs].sum() / total
        click.echo(
            f"  task {number}: {len(packs)} packs, {sizes[packs].sum()} configs, {share:.0f}% of it"
        )
    if len(slices) > SHOWN_TASKS:
        click.echo(f"  ... and {len(slices) - SHOWN_TASKS} more tasks")
    executor.check(submission)
    for line in executor.describe(submission):
        click.echo(line)
