"""What the simulation has found, each as the shortest schedule that shows it: python findings.py"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from schedules import RUNS, STALE, Schedule
from seams import patch_product
from shared_disk import Disk
from virtual_time import FIRST_USER, Machine, Process

from mlpsubmit import open_run
from mlpsubmit.errors import BusyError
from mlpsubmit.runs.run import Run


def _started(seed: int, stale: float) -> Schedule:
    """Return a schedule in which nothing happens that is not asked for."""
    schedule = Schedule(seed)
    schedule.disk = schedule.cluster.disk = Disk(schedule.world, stale)
    schedule.retries, schedule.workers = 0, 1
    return schedule


def _done(schedule: Schedule, machine: Machine, function: Callable[[], Any]) -> Process:
    process = schedule.world.start("command", machine, function)
    process.ends.append(lambda: schedule.disk.end_process(process))
    schedule.world.run(lambda: not process.alive, 3600)
    return process


def power_cut_after_sbatch(seed: int) -> None:
    """The folder of a submission is on the disk before it has a job.

    Else the next resume takes its number, and its queued tasks train beside the new ones.
    """
    schedule = _started(seed, 0.0)
    launched = schedule.world.start("launch", schedule.logins[0], schedule._launch)
    schedule.world.run(lambda: bool(schedule.cluster.jobs), 3600)
    launched.kill()
    schedule.disk.power_cut()
    read = _done(schedule, schedule.logins[1], lambda: open_run(None, RUNS).directory.submissions())
    assert read.result == [0], (seed, read.result, read.error)


def resume_after_that_of_another_machine(seed: int) -> None:
    """A resume sees the submission that another machine has made a second ago."""
    schedule = _started(seed, STALE)
    here, there = schedule.logins
    _done(schedule, here, schedule._launch)
    _done(schedule, there, schedule._status)
    _done(schedule, here, schedule._cancel)
    schedule.world.run(lambda: False, 40)
    _done(schedule, there, schedule._status)
    assert _done(schedule, here, schedule._resume).error is None
    error = _done(schedule, there, schedule._resume).error
    assert isinstance(error, BusyError), (seed, error)


def tasks_without_room_are_submitted_by_themselves(seed: int) -> None:
    """Nobody does anything after the launch, and now and then there is no room at all.

    Also between what a job reads and what it submits: then it follows what it has submitted.
    """
    schedule = _started(seed, 0.0)
    schedule.most = schedule.cluster.most = 3
    schedule.tasks, schedule.retries = 5, seed % 2
    launched = _done(schedule, schedule.logins[0], schedule._launch)
    assert launched.error is None, (seed, launched.error)
    for minutes in range(0, 60, 3):
        schedule.world.at(60 * minutes, schedule._no_room)
    schedule.world.run(lambda: False, 4 * 3600)
    read = _done(schedule, schedule.logins[1], lambda: open_run(None, RUNS).status())
    assert read.result.complete, (seed, read.result, read.result.outstanding)
    assert len({task.name.partition("-")[0] for task in read.result.tasks}) > 1, seed
    assert not schedule.problems + schedule.registry.twice, (seed, schedule.problems)


def taken_over_while_it_is_cancelled(seed: int) -> None:
    """Who cancels stops their own tasks, and not those of who has taken the run over meanwhile."""
    schedule = _started(seed, 0.0)
    schedule.shared, schedule.cluster.private = True, False
    assert _done(schedule, schedule.logins[0], schedule._launch).error is None, seed
    own = Run._cancel_jobs

    def slow(run: Run, number: int) -> int:
        stopped = own(run, number)
        schedule.world.sleep(1200)
        return stopped

    def cancel() -> int:
        run = open_run(None, RUNS)
        run._cancel_jobs = slow.__get__(run)  # type: ignore[method-assign]
        return run.cancel()

    cancelled = schedule.world.start("cancel", schedule.logins[0], cancel)
    schedule.world.run(lambda: False, 600)
    resume = {"template": "cpu", "slurm": schedule._asked(), "trust": True}
    other = schedule.world.start(
        *("resume", schedule.logins[1], lambda: open_run(None, RUNS).resume(**resume)),
        user=FIRST_USER + 1,
    )
    schedule.world.run(lambda: not cancelled.alive, 3600)
    assert (other.code, cancelled.error) == (0, None), (seed, other.error, cancelled.error)
    assert other.result, seed
    read = _done(schedule, schedule.logins[1], lambda: open_run(None, RUNS).directory.ended(1))
    assert read.result is None, (seed, read.result)


FINDINGS = (
    taken_over_while_it_is_cancelled,
    power_cut_after_sbatch,
    resume_after_that_of_another_machine,
    tasks_without_room_are_submitted_by_themselves,
)

if __name__ == "__main__":
    patch_product()
    for finding in FINDINGS:
        for number in range(int(os.environ.get("SEEDS", "15"))):
            finding(number)
