"""``mlpsubmit launch --dry-run``: what a launch would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpsubmit.cli.slurm_options import slurm_request
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted, duration, file_size

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.jobs.throughput.estimate import Estimate
    from mlpsubmit.runs.footprint import Footprint
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
    from mlpsubmit.jobs import executors
    from mlpsubmit.runs.forecast import by_calibration, by_earlier_runs
    from mlpsubmit.runs.launch import check_devices, prepare, tried
    from mlpsubmit.spec.load import pickle_sweep

    sweep = tried(sweep, runs_dir)
    chosen = executors.choose(
        where["executor"] or "auto",
        sweep.base,
        where["tasks"],
        slurm_request(where),
        same_device=where["same_device"],
    )
    frozen, further = pickle_sweep(sweep), {name: where[name] for name in ("retries", "trust")}
    launch = prepare(sweep, chosen, runs_dir, frozen=frozen, fresh=fresh, **further)
    status = launch.run and launch.run.status()
    if status and status.busy:
        return DryRun(launch, busy=status)
    if not len(launch.missing):
        return DryRun(launch)
    chosen.check(launch.submission)
    check_devices(launch)
    chosen.try_submission(launch.submission)
    estimates = by_calibration(launch) if calibrate else by_earlier_runs(launch, runs_dir)
    return DryRun(launch, estimates=estimates)


@dataclass(frozen=True)
class DryRun:
    """The outcome of a dry run.

    Attributes:
        launch: the run, and the packs to train.
        busy: the status of the run if it is in progress already; then nothing is submitted.
        estimates: how long the tasks would take, on each device of which that is known.
    """

    launch: PreparedLaunch
    busy: Status | None = None
    estimates: Sequence[Estimate] = ()

    @property
    def estimate(self) -> Estimate | None:
        """How long the tasks would take on the slowest device, if that is known of any."""
        return max(self.estimates, key=lambda own: own.wall_seconds, default=None)

    @property
    def _done(self) -> int:
        missing = self.launch.plan.pack_sizes[self.launch.missing]
        return len(self.launch.sweep) - int(missing.sum())

    @property
    def _submits(self) -> bool:
        """Whether the launch would submit anything."""
        return self.busy is None and len(self.launch.missing) > 0

    def _tasks(self) -> list[dict[str, Any]]:
        """Return the workers, packs, configs, FLOPs and, if known, seconds of each task."""
        plan, each = self.launch.plan, self.launch.submission.workers_per_task
        workers = [
            list(self.launch.slices[at : at + each])
            for at in range(0, len(self.launch.slices), each)
        ]
        slices = [[one for ranges in own for one in ranges] for own in workers]
        seconds = [None] * len(slices) if self.estimate is None else self.estimate.seconds.tolist()
        return [
            {
                "workers": len(own),
                "packs": sum(high - low for low, high in ranges),
                "configs": int(sum(plan.pack_sizes[low:high].sum() for low, high in ranges)),
                "flops": float(sum(plan.pack_costs[low:high].sum() for low, high in ranges)),
                "seconds": time,
            }
            for own, ranges, time in zip(workers, slices, seconds, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        launch, executor = self.launch, self.launch.executor
        content: dict[str, Any] = {
            "sweep": launch.sweep.name,
            "configs": len(launch.sweep),
            "run": launch.run and launch.run.id,
            "busy": self.busy is not None,
            "done": self._done,
            "packs": len(launch.missing),
            "executor": None,
            "threads": None,
            "tasks": [],
            "files": 0,
            "result_bytes": 0,
            "estimate": None,
            "estimates": [],
            "notes": [],
            "submission": [],
        }
        if self._submits:
            content |= {
                "executor": executor.name,
                "threads": launch.plan.threads,
                "tasks": self._tasks(),
                "files": self._footprint.files,
                "result_bytes": self._footprint.result_bytes + self._footprint.weight_bytes,
                "notes": [
                    *executor.device_lines(planned=launch.run is None),
                    *executor.notes(launch.submission),
                ],
                "submission": list(executor.describe(launch.submission)),
            }
        if self.estimate is not None:
            content["estimate"] = self._estimate_json(self.estimate)
            content["estimates"] = [self._estimate_json(own) for own in self.estimates]
        return content

    def _estimate_json(self, estimate: Estimate) -> dict[str, Any]:
        unit, count = self.launch.executor.units(self.launch.plan.threads)
        return {**estimate.to_json(), unit.replace("-", "_").lower(): estimate.hours(count)}

    def show(self) -> None:
        """Print it as text."""
        from mlpsubmit.cli.terminal import unknown_line

        run, missing = self.launch.run, self.launch.missing
        echo(repr(self.launch.sweep))
        for axis in self.launch.sweep.product.axes:
            shown = [point[0] if len(point) == 1 else point for point in axis.points[:8]]
            more = ", ..." if len(axis) > 8 else ""
            echo(f"  {axis.dimension}: {', '.join(map(str, shown))}{more}")
        if self.busy is not None:
            running = f"run {self.busy.run} is already running"
            why = unknown_line(self.busy) if self.busy.state == "unknown" else running
            echo(f"{why}; a launch would submit nothing")
            return
        which = f"run {run.id} continues" if run else "a new run"
        packs = counted(len(missing), "pack")
        echo(f"{which}: {packs} to train, {counted(self._done, 'config')} already done")
        for line in self.launch.continuation.lines:
            echo(line)
        if self._submits:
            self._show_tasks()

    def _show_tasks(self) -> None:
        """Print the tasks, how long they take, and what is handed to the executor."""
        tasks, executor = self._tasks(), self.launch.executor
        total = sum(task["flops"] for task in tasks)
        each = self.launch.submission.workers_per_task
        workers = f"{counted(each, 'worker')} of " if each > 1 else ""
        echo(
            f"{executor.name}: {counted(len(tasks), 'task')} of {workers}"
            f"{counted(self.launch.plan.threads, 'thread')}, at most {total:.2g} FLOPs in total"
        )
        for number, task in enumerate(tasks[:SHOWN_TASKS]):
            share = 100 * task["flops"] / total
            time = f", at most {duration(task['seconds'])}" if self.estimate else ""
            echo(
                f"  task {number}: {counted(task['packs'], 'pack')}, "
                f"{counted(task['configs'], 'config')}, {share:.0f}% of the FLOPs{time}"
            )
        if len(tasks) > SHOWN_TASKS:
            echo(f"  ... and {counted(len(tasks) - SHOWN_TASKS, 'more task')}")
        for line in (
            *executor.notes(self.launch.submission),
            *self._size_lines(),
            *executor.device_lines(planned=self.launch.run is None),
            *self._time_lines(),
            *executor.describe(self.launch.submission),
        ):
            echo(line)

    @cached_property
    def _footprint(self) -> Footprint:
        from mlpsubmit.runs.footprint import footprint

        return footprint(self.launch)

    def _size_lines(self) -> list[str]:
        """Return how many files the run makes, and how large its results are, as far as known."""
        size, base = self._footprint, self.launch.sweep.base
        beyond = " without what grabs measure" if self.launch.sweep.grab_names else ""
        files, more = counted(size.files, "file"), counted(size.checkpoints, "checkpoint")
        results = file_size(size.result_bytes + size.weight_bytes)
        lines = [f"{files}, and {more} while it trains; about {results} of results{beyond}"]
        if size.weight_bytes:
            setting = f"SAVE_WEIGHTS={base.save_weights!r}"
            lines.append(f"{setting} keeps about {file_size(size.weight_bytes)} of weights in them")
        elif base.save_weights is not None:
            lines.append("and the weights that SAVE_WEIGHTS keeps, of models of unknown size")
        return lines

    def _time_lines(self) -> list[str]:
        threads, executor = self.launch.plan.threads, self.launch.executor
        if self.estimate is None:
            how = "; to measure it: --calibrate" if executor.can_calibrate else ""
            device = executor.device(threads)
            return [f"duration unknown: no earlier run has trained similar packs on {device}{how}"]
        lines, units = [], executor.units(threads)
        others = executor.unmeasured([own.device for own in self.estimates])
        several = len(self.estimates) + len(others) > 1
        for own in self.estimates:
            lines.append(f"on {own.device}: " * several + cost_line(own, *units))
        lines += [f"on {name}: unknown, no such task has trained similar packs" for name in others]
        template: Template | None = getattr(executor, "template", None)
        if template is not None and (warning := limit_warning(self.estimate, template)):
            lines.append(warning)
        return lines


def cost_line(estimate: Estimate, unit: str, units: int) -> str:
    """Return a line with the total duration of the tasks, and the origin of that figure."""
    unmeasured, every = estimate.workloads - estimate.measured, estimate.workloads
    scaled = f"; {unmeasured} of {every} workloads scaled from others" if unmeasured else ""
    at_once = counted(estimate.max_concurrent, "task")
    return (
        f"at most {duration(estimate.wall_seconds)} with {at_once} at once, "
        f"{estimate.hours(units):.2g} {unit} in total ({estimate.source}{scaled})"
    )


def limit_warning(estimate: Estimate, template: Template) -> str:
    """Return a warning about tasks that may exceed their time limit; empty if there are none."""
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
        "--retries N resumes what is still missing in the end"
    )
