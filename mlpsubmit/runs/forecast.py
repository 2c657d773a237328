"""How long a launch would take: from the speeds of earlier runs, or from a calibration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.errors import RunError, SpecError
from mlpsubmit.jobs.plan import Range, cut
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.calibrate import choose_packs, write_order
from mlpsubmit.jobs.throughput.estimate import Estimate, estimate_tasks
from mlpsubmit.jobs.throughput.speeds import Speed, Speeds, earlier_speeds
from mlpsubmit.jobs.throughput.workload import Workloads, workloads_of
from mlpsubmit.runs.locate import runs_folder, runs_of

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors.base import Executor
    from mlpsubmit.jobs.submission import Submission
    from mlpsubmit.runs.launch import PreparedLaunch
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["Forecast"]

#: How many runs are searched for speeds at most, from the newest on.
MOST_RUNS = 50


@dataclass(frozen=True)
class Forecast:
    """The submission that a launch would make, and how long it would take.

    Attributes:
        sweep: the sweep to train.
        prepared: its plan and missing packs, at least one.
    """

    sweep: Sweep
    prepared: PreparedLaunch
    executor: Executor
    retries: int

    @cached_property
    def submission(self) -> Submission:
        """The submission as the executor would get it."""
        return self.prepared.submission(self.executor, self.retries)

    @cached_property
    def slices(self) -> Sequence[Sequence[Range]]:
        """The packs of each task, as ranges of their numbers."""
        plan, missing = self.prepared.plan, self.prepared.missing
        return cut(missing, plan.pack_costs[missing], self.submission.tasks)

    @cached_property
    def _workloads(self) -> Workloads:
        return workloads_of(self.prepared.plan, self.sweep)

    def by_earlier_runs(self, runs_dir: Path | None) -> Estimate | None:
        """Return how long the tasks will take; None if no earlier run is comparable.

        Args:
            runs_dir: where runs are kept, of any sweep.
        """
        threads = self.prepared.plan.threads
        device = self.executor.device(threads)
        same_hardware = partial(self.executor.same_hardware, threads)
        runs = _newest(runs_folder(runs_dir))
        return self._estimate(earlier_speeds(runs, same_hardware, f"by earlier runs on {device}"))

    def by_calibration(self, frozen: bytes) -> Estimate | None:
        """Return how long the tasks will take, after training some packs for a short while.

        Args:
            frozen: the pickled sweep.

        Raises:
            SpecError: if a pack cannot be trained.
            UserError: if the executor cannot calibrate, or a process has no result.
        """
        plan = self.prepared.plan
        packs = choose_packs(plan, self._workloads, self.prepared.missing)
        answers = self.executor.calibrate(
            self.submission, lambda folder: write_order(folder, frozen, plan, packs)
        )
        for answer in answers:
            if "error" in answer:
                raise SpecError(
                    f"--calibrate: a pack cannot be trained, here as in its task: {answer['error']}"
                )
        device = self.executor.device(plan.threads)
        found = [Speed.from_json(entry) for answer in answers for entry in answer["speeds"]]
        startup = max(float(answer["startup"]) for answer in answers)
        total = _sum_by_workload(found)
        return self._estimate(Speeds(total, startup, f"by a calibration on {device}"))

    def _estimate(self, speeds: Speeds) -> Estimate | None:
        plan, max_concurrent = self.prepared.plan, self.executor.max_concurrent(self.submission)
        return estimate_tasks(plan, self._workloads, self.slices, speeds, max_concurrent)


def _sum_by_workload(speeds: Sequence[Speed]) -> list[Speed]:
    """Add up the measurements of several processes, for each workload."""
    sums: dict[object, Speed] = {}
    for speed in speeds:
        own = speed.workload
        sums[own] = sums[own] + speed if own in sums else speed
    return list(sums.values())


def _newest(folder: Path) -> Iterator[RunDirectory]:
    """Yield the runs of all sweeps, the newest first, without those of other versions."""
    sweeps = [path for path in folder.glob("[!.]*") if path.is_dir()]
    runs = [run for sweep in sweeps for run in runs_of(sweep)]
    for path in sorted(runs, key=lambda run: run.name, reverse=True)[:MOST_RUNS]:
        with contextlib.suppress(RunError, OSError):
            yield RunDirectory.open(path)
