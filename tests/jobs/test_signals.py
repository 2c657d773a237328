"""What signals do to a task."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Waits for a stop, then for a file: as a train loop does, it looks at the flag again and again.
CODE = """
import os, sys
from mlpsubmit.jobs.signals import stop_on_signals
with stop_on_signals() as stop:
    print("ready", flush=True)
    while not (stop.is_set() and os.path.exists(sys.argv[1])):
        pass
"""


@pytest.mark.slow
def test_signals_that_interrupt_each_other_stop_a_task(tmp_path: Path) -> None:
    """As at the end of a job's time, where SLURM signals the step and its batch script."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, tmp_path / "end"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(50_000):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR2)
    (tmp_path / "end").touch()
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
