"""``mlpsubmit launch --dry-run``: what a launch would do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.slurm_options import slurm_request
from mlpsubmit.display.text import counted, duration

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.jobs.throughput.estimate import Estimate
    from mlpsubmit.runs.forecast import Forecast
    from mlpsubmit.runs.launch import PreparedLaunch
    from mlpsubmit.slurm_templates import Template
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["DryRun", "dry_run"]

#: The most tasks that are listed.
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
    """Return what a launch would do, found by the same code.

    Raises:
        UserError: as the launch would, or because a calibration yields no result.
    """
    from mlpsubmit.assembly.probe import probe
    from mlpsubmit.jobs import executors
    from mlpsubmit.runs.forecast import Forecast
    from mlpsubmit.runs.launch import prepare
    from mlpsubmit.spec.load import pickle_sweep

    probe(sweep)
    chosen = executors.choose(
        where["executor"] or "auto", sweep.base, where["tasks"], slurm_request(where)
    )
    prepared = prepare(sweep, chosen, runs_dir, fresh=fresh)
    busy = prepared.run.status() if prepared.run else None
    if busy is not None and busy.busy:
        return DryRun(sweep, prepared, busy=busy)
    if not len(prepared.missing):
        return DryRun(sweep, prepared)
    forecast = Forecast(sweep, prepared, chosen, where["retries"])
    chosen.check(forecast.submission)
    if calibrate:
        estimate = forecast.by_calibration(pickle_sweep(sweep, spec.parent))
    else:
        estimate = forecast.by_earlier_runs(runs_dir)
    return DryRun(sweep, prepared, forecast=forecast, estimate=estimate)


@dataclass(frozen=True)
class DryRun:
    """What a launch would do.

    Attributes:
        busy: the status of the run, if it is in progress already.
        forecast: the submission, if anything is missing.
        estimate: how long that would take, if that is known.
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
        """The packs, configs, FLOPs and, if known, seconds of each task."""
        import numpy as np

        assert self.forecast is not None
        sizes, costs = self.prepared.plan.pack_sizes, self.prepared.plan.pack_costs
        tasks: list[dict[str, Any]] = []
        for ranges in self.forecast.slices:
            packs = np.concatenate([np.arange(low, high) for low, high in ranges])
            seconds = self.estimate and float(self.estimate.seconds[len(tasks)])
            tasks.append(
                {
                    "packs": len(packs),
                    "configs": int(sizes[packs].sum()),
                    "operations": float(costs[packs].sum()),
                    "seconds": seconds,
                }
            )
        return tasks

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
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
        """Print it as JSON."""
        click.echo(json.dumps(self.to_json(), indent=1))

    def show(self) -> None:
        """Print it as text."""
        click.echo(repr(self.sweep))
        for axis in self.sweep.product.axes:
            shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
            more = ", ..." if len(axis) > 8 else ""
            click.echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
        if self.busy is not None:
            click.echo(_busy_line(self.busy))
            return
        run, packs = self.prepared.run, counted(len(self.prepared.missing), "pack")
        which = f"run {run.id} continues" if run else "a new run"
        click.echo(f"{which}: {packs} to train, {counted(self._done, 'config')} already done")
        if self.forecast is not None:
            self._show_tasks(self.forecast)

    def _show_tasks(self, forecast: Forecast) -> None:
        """Print the tasks, how long they take, and what the executor would be given."""
        tasks, executor = self._tasks, forecast.executor
        total = sum(task["operations"] for task in tasks)
        click.echo(
            f"{executor.name}: {counted(len(tasks), 'task')} of "
            f"{counted(self.prepared.plan.threads, 'thread')}, at most {total:.2g} FLOPs in total"
        )
        for number, task in enumerate(tasks[:SHOWN_TASKS]):
            share = 100 * task["operations"] / total
            time = f", at most {duration(task['seconds'])}" if self.estimate else ""
            click.echo(
                f"  task {number}: {counted(task['packs'], 'pack')}, "
                f"{counted(task['configs'], 'config')}, {share:.0f}% of the FLOPs{time}"
            )
        if len(tasks) > SHOWN_TASKS:
            click.echo(f"  ... and {counted(len(tasks) - SHOWN_TASKS, 'more task')}")
        for line in self._time_lines(forecast):
            click.echo(line)
        for line in executor.describe(forecast.submission):
            click.echo(line)

    def _time_lines(self, forecast: Forecast) -> list[str]:
        threads, executor = self.prepared.plan.threads, forecast.executor
        if self.estimate is None:
            how = "; to measure it: --calibrate" if executor.can_calibrate else ""
            return [
                f"duration unknown: no earlier run has trained such packs on "
                f"{executor.device(threads)}" + how
            ]
        lines = [cost_line(self.estimate, *executor.units(threads))]
        template: Template | None = getattr(executor, "template", None)
        if template is not None and (warning := limit_warning(self.estimate, template)):
            lines.append(warning)
        return lines


def cost_line(estimate: Estimate, unit: str, units: int) -> str:
    """Return a line on how long all tasks take together, and how that is known."""
    unmeasured, every = estimate.workloads - estimate.measured, estimate.workloads
    scaled = f"; {unmeasured} of {every} kinds of packs scaled from others" if unmeasured else ""
    at_once = counted(estimate.max_concurrent, "task")
    return (
        f"at most {duration(estimate.wall_seconds)} with {at_once} at once, "
        f"{estimate.hours(units):.2g} {unit} in total ({estimate.source}{scaled})"
    )


def limit_warning(estimate: Estimate, template: Template) -> str:
    """Return a warning about tasks that may exceed their time limit; empty if none may."""
    if template.minutes is None:
        return ""
    usable = 60 * template.minutes - template.notice_seconds
    longest, beyond = float(estimate.seconds.max()), int((estimate.seconds > usable).sum())
    if not beyond:
        return ""
    minutes = -(-int(1.2 * longest + template.notice_seconds) // 60)
    return (
        f"{beyond} of {counted(len(estimate.seconds), 'task')} may exceed the time limit "
        f"{template.time} ({duration(longest)}): each then saves its state, is requeued and "
        f"continues; to avoid that, use more tasks (--tasks) or a longer limit (--time {minutes}); "
        "--retries N resumes what is lost even so"
    )


def _busy_line(status: Status) -> str:
    """Return why a launch would submit nothing, for a run that is busy."""
    from mlpsubmit.cli import terminal

    if status.state == "unknown":
        return f"{terminal.unknown_line(status)}; a launch would submit nothing"
    return f"run {status.run} is already running: a launch would submit nothing"
