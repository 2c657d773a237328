"""Showing a run on a cluster: beside it, without a hand on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).parent / "mlpsubmit")


def shown(study: Any, *arguments: Any) -> subprocess.Popen[str]:
    """Start a command that goes on until it is interrupted."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=study.folder,
        env={**os.environ, "MLPSUBMIT_RUNS": str(study.folder / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ASKED = ("--gpus", 0, "--cpus", 1, "--mem", "600M", "--time", 10, "--tasks", 1)


def test_ctrl_c_ends_the_showing_and_not_the_run(study: Any, training: Any, wait_for: Any) -> None:
    study.pace("shown", 0.02)
    path = study.spec("shown")
    following = shown(study, "launch", path, "--follow", *ASKED)
    wait_for(lambda: list(study.folder.glob("runs/shown/*/submissions/*/jobs.json")))
    run = study.open("shown")
    training(run)
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
    assert out.endswith(
        f"the run continues on the cluster; see: mlpsubmit status {run.id}; "
        f"stop it with: mlpsubmit cancel {run.id}\n"
    )
    assert run.status().state == "running"
    assert run.directory.ended(0) is None

    dry = study.cli("launch", path, "--dry-run", *ASKED)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.endswith(f"run {run.id} is already running; a launch would submit nothing\n")
    again = study.cli("launch", path, *ASKED)
    assert (again.returncode, again.stderr) == (0, "")
    told = f"run {run.id} was already running, with the options of that launch; nothing new was "
    assert f"{told}submitted\n" in again.stdout
    assert f"run {run.id} is running; see: mlpsubmit status" in again.stdout
    assert run.directory.submissions() == [0]
    assert len(study.queued(run)) == 1
    run.cancel()
    assert run.wait().state == "stopped"

    resuming = shown(study, "resume", "shown", "--follow")
    wait_for(lambda: run.directory.submissions() == [0, 1])
    training(run)
    resuming.send_signal(signal.SIGINT)
    assert "the run continues on the cluster; see:" in resuming.communicate(timeout=30)[0]
    assert resuming.returncode == 0
    study.pace("shown", None)
    assert run.wait().complete


def test_a_launch_of_a_run_of_which_the_scheduler_says_nothing(study: Any) -> None:
    run = study.launch("unsaid", slurm={"sbatch": {"hold": True}})
    dead = study.folder / "slurm.conf"
    text = study.cluster.conf.read_text()
    dead.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
    again = study.cli("launch", "unsaid.py", *ASKED, SLURM_CONF=str(dead))
    unknown = (
        f"cannot tell whether run {run.id} is still running: the scheduler does not answer: squeue"
    )
    assert again.returncode == 0, again.stderr
    assert "\nnothing new was submitted\n" in again.stdout
    assert unknown in again.stdout
    assert again.stdout.endswith(f"; see: mlpsubmit status {run.id}\n")
    dry = study.cli("launch", "unsaid.py", "--dry-run", *ASKED, SLURM_CONF=str(dead))
    assert dry.returncode == 0, dry.stderr
    assert unknown in dry.stdout
    assert dry.stdout.endswith("; a launch would submit nothing\n")
    run.cancel()
    assert run.wait().state == "stopped"


def test_logs_wait_for_a_task_that_has_not_started(study: Any, wait_for: Any) -> None:
    run = study.launch("late", slurm={"sbatch": {"hold": True}})
    none = study.cli("logs", "late", "0")
    assert (none.returncode, none.stdout) == (0, "")
    assert none.stderr == f"task 0 of run {run.id} has no log yet\n"
    unknown = study.cli("logs", "late", "1")
    assert unknown.returncode == 2
    assert "has no such task; tasks with a log: none yet" in unknown.stderr
    following = shown(study, "logs", "late", "0", "--follow")
    study.cluster.run("scontrol", "release", study.job(run))
    out, err = following.communicate(timeout=60)
    assert (following.returncode, err) == (0, "")
    assert out.count("configs in") == 2
    assert run.status().complete
