"""How long a launch would take: from the speeds of earlier runs, or from a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.errors import SpecError
from mlpsubmit.jobs.plan import Range, cut
from mlpsubmit.jobs.throughput.calibrate import choose_packs, write_order
from mlpsubmit.jobs.throughput.estimate import Estimate, estimate_tasks
from mlpsubmit.jobs.throughput.speeds import Speed, Speeds, earlier_speeds
from mlpsubmit.jobs.throughput.workload import Workload, Workloads, workloads_of
from mlpsubmit.runs.locate import all_runs, readable, runs_folder

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.jobs.submission import Submission
    from mlpsubmit.runs.launch import PreparedLaunch
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["Forecast"]

#: The most runs that are searched for speeds, the newest first.
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
        runs = readable(all_runs(runs_folder(runs_dir))[: -MOST_RUNS - 1 : -1])
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
        self.executor.threads = plan.threads
        answers = self.executor.calibrate(
            self.submission, lambda folder: write_order(folder, frozen, plan, packs)
        )
        for answer in answers:
            if "error" in answer:
                raise SpecError(
                    f"--calibrate: a pack cannot be trained, here as in its task: {answer['error']}"
                )
        sums: dict[Workload, Speed] = {}
        for entry in (entry for answer in answers for entry in answer["speeds"]):
            if (speed := Speed.from_json(entry)) is not None:
                total = sums.get(speed.workload)
                sums[speed.workload] = speed if total is None else total + speed
        device = self.executor.device(plan.threads)
        startup = max(float(answer["startup"]) for answer in answers)
        return self._estimate(Speeds(sums.values(), startup, f"by a calibration on {device}"))

    def _estimate(self, speeds: Speeds) -> Estimate | None:
        plan, max_concurrent = self.prepared.plan, self.executor.max_concurrent(self.submission)
        return estimate_tasks(plan, self._workloads, self.slices, speeds, max_concurrent)
