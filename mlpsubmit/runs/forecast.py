"""How long a launch would take: by the speeds of earlier runs, or by a calibration."""

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
from mlpsubmit.jobs.throughput.estimate import Estimate, estimated
from mlpsubmit.jobs.throughput.speeds import Speed, Speeds, earlier_speeds
from mlpsubmit.jobs.throughput.workload import Kinds, kinds_of
from mlpsubmit.runs.locate import runs_folder, runs_of

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors import Executor
    from mlpsubmit.jobs.submission import Submission
    from mlpsubmit.runs.launch import PreparedLaunch
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["Forecast"]

#: Runs that are looked at for speeds at most, the newest.
LOOKED_AT = 50


@dataclass(frozen=True)
class Forecast:
    """What a launch would hand to its executor, and how long that would take.

    Attributes:
        sweep: what it trains.
        prepared: what it has to do, of which something is missing.
    """

    sweep: Sweep
    prepared: PreparedLaunch
    executor: Executor
    retries: int

    @cached_property
    def submission(self) -> Submission:
        """What the executor would get."""
        return self.prepared.submission(self.executor, self.retries)

    @cached_property
    def slices(self) -> Sequence[Sequence[Range]]:
        """The packs of each task, as ranges of their numbers."""
        plan, missing = self.prepared.plan, self.prepared.missing
        return cut(missing, plan.pack_costs[missing], self.submission.tasks)

    @cached_property
    def _kinds(self) -> Kinds:
        return kinds_of(self.prepared.plan, self.sweep)

    def by_earlier_runs(self, runs_dir: Path | None) -> Estimate | None:
        """Return what the tasks will take; None where no earlier run tells.

        Args:
            runs_dir: where runs are kept, of whichever sweep.
        """
        threads = self.prepared.plan.threads
        device = self.executor.device(threads)
        fits = partial(self.executor.same_hardware, threads)
        runs = _newest(runs_folder(runs_dir))
        return self._by(earlier_speeds(runs, fits, f"by earlier runs on {device}"))

    def by_calibration(self, frozen: bytes) -> Estimate | None:
        """Return what the tasks will take, after training some packs for a short while.

        Args:
            frozen: the sweep as workers read it.

        Raises:
            SpecError: where a pack cannot be trained.
            UserError: where the executor has nothing to calibrate with, or no answer came.
        """
        plan = self.prepared.plan
        packs = choose_packs(plan, self._kinds, self.prepared.missing)
        self.executor.threads = plan.threads
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
        together = _together([speed for speed in found if speed is not None])
        return self._by(Speeds(together, startup, f"by a calibration on {device}"))

    def _by(self, speeds: Speeds) -> Estimate | None:
        plan, max_concurrent = self.prepared.plan, self.executor.max_concurrent(self.submission)
        return estimated(plan, self._kinds, self.slices, speeds, max_concurrent)


def _together(speeds: Sequence[Speed]) -> list[Speed]:
    """Add up what several processes measured of the same kinds."""
    sums: dict[object, Speed] = {}
    for speed in speeds:
        sums[speed.kind] = sums[speed.kind] + speed if speed.kind in sums else speed
    return list(sums.values())


def _newest(folder: Path) -> Iterator[RunDirectory]:
    """Yield the runs of all sweeps, the newest first; those of other versions are left out."""
    sweeps = [path for path in folder.glob("[!.]*") if path.is_dir()]
    runs = [run for sweep in sweeps for run in runs_of(sweep)]
    for path in sorted(runs, key=lambda run: run.name, reverse=True)[:LOOKED_AT]:
        with contextlib.suppress(RunError, OSError):
            yield RunDirectory.open(path)
