"""Hundreds of schedules of a run on a simulated cluster; see simulate.py for what must hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: A resume that does not look whether the tasks of the run are still running.
CARELESS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import simulate
from mlpsubmit.runs import submit
submit._check_not_busy = lambda *_: None
sys.exit(simulate.main())
"""

#: A resume that takes a run over from another user although its user has not said so.
RUDE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import simulate
from mlpsubmit.jobs import trust
from mlpsubmit.runs import submit
trust.check_last_user = submit.check_last_user = lambda *_: None
trust._untrusted = lambda *_: iter(())
sys.exit(simulate.main())
"""

pytestmark = pytest.mark.slow


def simulated(*arguments: object, seed: int = 0) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the simulation replaces functions of Python's modules for good.
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("first", [0, 150])
def test_schedules(first: int) -> None:
    done = simulated(HERE / "simulate.py", "--first", first, "--count", 150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 schedules, 0 failed" in done.stdout


def test_a_seed_gives_one_schedule() -> None:
    # Sets of strings have another order in another process.
    one, other = (
        simulated(HERE / "simulate.py", "--first", 7, "--count", 3, "--trace", seed=seed)
        for seed in (1, 2)
    )
    assert one.stdout.count("\n") > 50, one.stderr
    assert one.stdout.splitlines()[:-1] == other.stdout.splitlines()[:-1]


def test_a_schedule_does_not_depend_on_those_before() -> None:
    after, alone = (
        simulated(HERE / "simulate.py", "--first", first, "--count", 10 - first, "--trace")
        for first in (7, 9)
    )
    schedule = alone.stdout.splitlines()[:-1]
    assert len(schedule) > 20, alone.stderr
    assert after.stdout.splitlines()[-1 - len(schedule) : -1] == schedule


def test_a_failure_shows_its_seed_and_what_happened() -> None:
    done = simulated("-c", CARELESS, HERE, "--first", 9, "--count", 60, "--most", 1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trains in job" in done.stdout
    assert "at the same time\n" in done.stdout
    assert "seed " in done.stdout
    assert re.search(r"job \d+_\d+ \S+@node\d", done.stdout), "what the machines did before"
    assert "--trace --first SEED" in done.stdout


def test_an_unasked_take_over_is_found() -> None:
    done = simulated("-c", RUDE, HERE, "--first", 40, "--count", 200, "--most", 1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " unasked\n" in done.stdout


def test_what_it_has_found_does_not_return() -> None:
    done = simulated(HERE / "findings.py")
    assert done.returncode == 0, done.stderr
