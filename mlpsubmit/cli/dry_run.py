"""What ``mlpsubmit launch --dry-run`` says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.slurm_options import given
from mlpsubmit.display.text import duration

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.jobs.throughput.estimate import Estimate
    from mlpsubmit.runs.forecast import Forecast
    from mlpsubmit.runs.launch import PreparedLaunch
    from mlpsubmit.slurm_templates import Template
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["DryRun", "dry_run"]

#: Tasks of which it says what they would train.
SHOWN_TASKS = 24


def dry_run(
    sweep: Sweep,
    spec: Path,
    where: Mapping[str, Any],
    runs_dir: Path | None,
    *,
    fresh: bool,
    calibrate: bool,
) -> DryRun:
    """Find out what a launch would do, through the code that does it.

    Raises:
        UserError: what the launch would say, or a calibration that leads to nothing.
    """
    from mlpsubmit.assembly.probe import probe
    from mlpsubmit.jobs import executors
    from mlpsubmit.runs.forecast import Forecast
    from mlpsubmit.runs.launch import prepare
    from mlpsubmit.spec.load import freeze

    probe(sweep)
    chosen = executors.choose(where["executor"] or "auto", sweep.base, where["tasks"], given(where))
    prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
    busy = prepared.run.status() if prepared.run else None
    if busy is not None and busy.busy:
        return DryRun(sweep, prepared, busy=busy)
    if not len(prepared.missing):
        return DryRun(sweep, prepared)
    forecast = Forecast(sweep, prepared, chosen, where["retries"])
    chosen.check(forecast.submission)
    if calibrate:
        estimate = forecast.by_calibration(freeze(sweep, spec.parent))
    else:
        estimate = forecast.by_earlier_runs(runs_dir)
    return DryRun(sweep, prepared, forecast=forecast, estimate=estimate)


@dataclass(frozen=True)
class DryRun:
    """What a launch would do.

    Attributes:
        busy: the status of the run, where it goes on already.
        forecast: what the executor would get, if anything.
        estimate: how long that would take, where it is known.
    """

    sweep: Sweep
    prepared: PreparedLaunch
    busy: Status | None = None
    forecast: Forecast | None = None
    estimate: Estimate | None = None

    @property
    def _done(self) -> int:
        return len(self.sweep) - int(self.prepared.plan.pack_sizes[self.prepared.missing].sum())

    @cached_property
    def _tasks(self) -> list[dict[str, Any]]:
        """Return of each task its packs, configs, cost, and seconds where they are known."""
        import numpy as np

        assert self.forecast is not None
        sizes, costs = self.prepared.plan.pack_sizes, self.prepared.plan.pack_costs
        tasks: list[dict[str, Any]] = []
        for ranges in self.forecast.slices:
            packs = np.concatenate([np.arange(low, high) for low, high in ranges])
            known = self.estimate and float(self.estimate.seconds[len(tasks)])
            tasks.append(
                {
                    "packs": len(packs),
                    "configs": int(sizes[packs].sum()),
                    "operations": float(costs[packs].sum()),
                    "seconds": known,
                }
            )
        return tasks

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        content: dict[str, Any] = {
            "sweep": self.sweep.name,
            "configs": len(self.sweep),
            "run": self.prepared.run and self.prepared.run.id,
            "busy": self.busy is not None,
            "done": self._done,
            "packs": len(self.prepared.missing),
            "executor": None,
            "tasks": [],
            "estimate": None,
            "submission": [],
        }
        if self.forecast is None:
            return content
        executor = self.forecast.executor
        content |= {
            "executor": executor.name,
            "threads": self.prepared.plan.threads,
            "tasks": self._tasks,
            "submission": list(executor.describe(self.forecast.submission)),
        }
        if self.estimate is not None:
            unit, count = executor.units(self.prepared.plan.threads)
            hours = {unit.replace("-", "_").lower(): self.estimate.hours(count)}
            content["estimate"] = {**self.estimate.to_json(), **hours}
        return content

    def print_json(self) -> None:
        """Print it for a script to read."""
        click.echo(json.dumps(self.to_json(), indent=1))

    def show(self) -> None:
        """Print it for people."""
        click.echo(repr(self.sweep))
        for axis in self.sweep.product.axes:
            shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
            more = ", ..." if len(axis) > 8 else ""
            click.echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
        if self.busy is not None:
            click.echo(_why_nothing(self.busy))
            return
        run, packs = self.prepared.run, len(self.prepared.missing)
        place = f"run {run.id} goes on" if run else "a new run"
        click.echo(f"{place}: {packs} packs to train, {self._done} configs are done already")
        if self.forecast is not None:
            self._show_tasks(self.forecast)

    def _show_tasks(self, forecast: Forecast) -> None:
        """Print the slices, how long they take, and what the executor would be given."""
        tasks, executor = self._tasks, forecast.executor
        total = sum(task["operations"] for task in tasks)
        click.echo(
            f"{executor.name}: {len(tasks)} tasks of {self.prepared.plan.threads} threads, "
            f"{total:.2g} floating-point operations at most"
        )
        for number, task in enumerate(tasks[:SHOWN_TASKS]):
            share = 100 * task["operations"] / total
            time = f", at most {duration(task['seconds'])}" if self.estimate else ""
            click.echo(
                f"  task {number}: {task['packs']} packs, {task['configs']} configs, "
                f"{share:.0f}% of it{time}"
            )
        if len(tasks) > SHOWN_TASKS:
            click.echo(f"  ... and {len(tasks) - SHOWN_TASKS} more tasks")
        for line in self._time_lines(forecast):
            click.echo(line)
        for line in executor.describe(forecast.submission):
            click.echo(line)

    def _time_lines(self, forecast: Forecast) -> list[str]:
        threads, executor = self.prepared.plan.threads, forecast.executor
        if self.estimate is None:
            how = "; to find out: --calibrate" if executor.can_calibrate else ""
            return [
                f"how long that takes is not known: no earlier run has trained such packs on "
                f"{executor.device(threads)}" + how
            ]
        lines = [cost_line(self.estimate, *executor.units(threads))]
        template: Template | None = getattr(executor, "template", None)
        if template is not None and (warning := limit_warning(self.estimate, template)):
            lines.append(warning)
        return lines


def cost_line(estimate: Estimate, unit: str, units: int) -> str:
    """Say what all tasks take together, and how that is known."""
    guessed = estimate.kinds - estimate.measured
    scaled = f"; {guessed} of {estimate.kinds} kinds of packs scaled from others" if guessed else ""
    return (
        f"at most {duration(estimate.wall_seconds)} with {estimate.max_concurrent} side by side, "
        f"{estimate.hours(units):.2g} {unit} in all ({estimate.source}{scaled})"
    )


def limit_warning(estimate: Estimate, template: Template) -> str:
    """Say of tasks that may take longer than they ask for what to do; empty where none does."""
    if template.minutes is None:
        return ""
    usable = 60 * template.minutes - template.notice_seconds
    longest, beyond = float(estimate.seconds.max()), int((estimate.seconds > usable).sum())
    if not beyond:
        return ""
    minutes = -(-int(1.2 * longest + template.notice_seconds) // 60)
    return (
        f"{beyond} of {len(estimate.seconds)} tasks may take longer than their time limit "
        f"{template.time} ({duration(longest)}): each then saves, is queued again and goes on; to "
        f"spare it that: more tasks (--tasks), or more time (--time {minutes}); --retries N "
        "resumes what is lost all the same"
    )


def _why_nothing(status: Status) -> str:
    """Say why a launch would submit nothing, of a run that is busy."""
    from mlpsubmit.cli import terminal

    if status.state == "unknown":
        return f"{terminal.unknown(status)}; a launch would submit nothing"
    return f"run {status.run} is running already: a launch would submit nothing"
