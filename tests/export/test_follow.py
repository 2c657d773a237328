"""Exports of a run in progress: until it ends, and until Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.runs.run import Run

pytestmark = pytest.mark.slow


def command(run: Run, *options: str) -> list[str]:
    to = ["--to", "tensorboard", "--out", "logs", "--follow", *options]
    return [sys.executable, "-m", "mlpsubmit", "export", str(run.path), *to]


@pytest.fixture
def task(own_study: Run) -> Heartbeat:
    """The heartbeat of the run's task, as if it trained in this process."""
    (path,) = own_study.path.glob("heartbeats/*.json")
    return Heartbeat(path, 1.0, state="running")


def test_follow_goes_on_until_the_run_ends(
    own_study: Run, keep: Callable[[int], None], task: Heartbeat, tmp_path: Path,
) -> None:  # fmt: skip
    keep(2)
    with task:
        following = subprocess.Popen(
            command(own_study),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert following.stdout is not None
        assert following.stdout.readline() == "2 new configs in logs (2 of 8 configs)\n"
        keep(5)
        assert following.stdout.readline() == "3 new configs in logs (5 of 8 configs)\n"
        keep(8)
        task.update(state="done")
    out, err = following.communicate(timeout=60)
    lines = ["3 new configs in logs (8 of 8 configs)"] * ("new configs in" in out)
    lines += ["export: logs (8 new configs; 8 of 8)", "to see them: tensorboard --logdir logs"]
    assert out.splitlines() == lines
    assert err.endswith(f"2 failed configs; to train them: mlpsubmit resume {own_study.id}\n")
    assert following.returncode == 1


def test_ctrl_c_ends_it_and_says_how_to_go_on(
    own_study: Run, keep: Callable[[int], None], task: Heartbeat, tmp_path: Path
) -> None:
    keep(0)
    with task:
        terminal, other = pty.openpty()
        following = subprocess.Popen(
            command(own_study), stdin=other, stdout=other, stderr=other, cwd=tmp_path,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        shown = until(terminal, "waiting for results (Ctrl-C ends this) ...")
        keep(1)
        shown += until(terminal, "1 new config in logs (1 of 8 configs)")
        following.send_signal(signal.SIGINT)
        shown += until(terminal, "goes on from there")
        assert following.wait(60) == 0  # the run is in progress
        os.close(terminal)
    assert "stopped; export: logs (1 new config; 1 of 8); the same command goes on" in shown
    assert "Traceback" not in shown


def until(terminal: int, text: str) -> str:
    """Return what a terminal shows, up to a text."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, shown
        shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(terminal, 4096).decode())
    return shown
