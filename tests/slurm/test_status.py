"""What status says of a run on a cluster: also of one that is silent, or that keeps no accounts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xarray

from mlpsubmit import RunError

COMMAND = str(Path(sys.executable).parent / "mlpsubmit")

#: Takes 400 MB more, after the steps that a launch tries.
HUNGRY = """
import time
import torch
from mlpsubmit import Sweep

def hungry(bsz):
    def batch_fn(step):
        if step > 20:
            more = torch.ones(100_000_000)
            time.sleep(3)
        return torch.ones(bsz, 2), torch.ones(bsz)
    return batch_fn

sweep = Sweep(NAME_HERE, batchfn=hungry, WIDTH=4, MAX_ITER=1000, N_SAMPLES=4)
"""


def test_a_task_that_is_killed_for_its_memory_says_so_with_the_figure(study: Any) -> None:
    run = study.launch("hungry", text=HUNGRY)
    status = run.wait()
    assert status.state == "crashed"
    why = status.tasks[0].why
    found = re.match(
        r"SLURM killed it for its memory: it used (\d+)M, and its limit was 600M; resume with "
        r"more: --mem$",
        why,
    )
    assert found, why
    assert 600 <= int(found[1]) < 1200
    shown = study.cli("status", "hungry")
    assert shown.returncode == 1
    assert "SLURM killed it for its memory" in shown.stdout.replace("\n", " ")
    assert "exceeded memory limit" in shown.stdout
    assert "the log of 000-0000 ends:" in shown.stdout


BROKEN = """
import torch
from mlpsubmit import Sweep

class Broken:
    def __setstate__(self, state):
        raise RuntimeError("this node has no such library")

broken = Broken()
broken.one = 1.0

def ones(bsz):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz) * broken.one)

sweep = Sweep(NAME_HERE, {"WIDTH": [4, 5]}, batchfn=ones, MAX_ITER=5, N_SAMPLES=4)
"""


def test_why_a_task_failed_is_told_by_its_last_lines(study: Any) -> None:
    run = study.launch("broken", text=BROKEN, tasks=2)
    status = run.wait()
    assert [task.state for task in status.tasks] == ["crashed", "crashed"]
    assert all(task.why.startswith("SLURM reports FAILED") for task in status.tasks)
    shown = study.cli("status", "broken").stdout
    assert shown.count("RuntimeError: this node has no such library") == 1, "one ending is enough"
    assert status.tasks[0].last_lines()[-1].startswith("srun: error")


def test_a_run_in_progress(study: Any, training: Any, wait_for: Any) -> None:
    study.pace("going", 0.01)
    run = study.launch("going", slurm={"time": "30"})
    training(run)
    status = wait_for(lambda: (s := run.status()).speed > 0 and s.remaining_seconds and s)
    assert status.state == "running"
    assert 0 < status.fraction < 1
    assert 1 < status.remaining_seconds < 120
    shown = study.cli("status", "going").stdout
    assert re.search(r"model-steps/s  about .* left", shown)
    with pytest.raises(RunError, match="is still running; wait for it"):
        run.resume()

    # With a scheduler that does not answer, what the files say is still known.
    silent = study.folder / "slurm.conf"
    text = study.cluster.conf.read_text()
    silent.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
    unheard = study.cli("status", "going", "--json", SLURM_CONF=str(silent))
    assert json.loads(unheard.stdout)["state"] == "running"
    run.cancel()
    run.wait()


def test_a_silent_scheduler_makes_nothing_fail(study: Any, tmp_path: Path) -> None:
    run = study.launch("silent", slurm={"sbatch": {"hold": True}})
    dead = study.folder / "slurm.conf"
    text = study.cluster.conf.read_text()
    dead.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
    shown = study.cli("status", "silent", SLURM_CONF=str(dead))
    assert shown.returncode == 0, "nothing is known to have failed"
    assert "000-0000 unknown the scheduler does not answer: squeue: slurm_load_jobs error" in (
        " ".join(shown.stdout.split())
    )

    # A machine that knows of the cluster, and has no commands to ask it.
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "sbatch").symlink_to(shutil.which("sbatch") or "")
    again = study.cli("resume", "silent", PATH=str(bare))
    assert again.returncode == 2
    assert "its tasks may still be running (the scheduler does not answer" in again.stderr
    assert "there is no squeue on the PATH); try again when that can be checked" in again.stderr
    stopped = study.cli("cancel", "silent", PATH=str(bare))
    assert stopped.returncode == 2
    assert "tasks that start from now on will end at once" in stopped.stderr

    study.cluster.run("scontrol", "release", study.job(run))
    assert run.wait().state == "stopped"
    assert "nothing to do: cancelled" in study.log(run)
    assert run.resume(slurm={"sbatch": {"hold": False}}) == 2
    assert run.wait().complete


# ---- a cluster that keeps no accounts ----------------------------------------------------------


def test_without_accounts_a_run_is_no_worse_off(
    bare_study: Any, training: Any, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    study = bare_study
    study.pace("bare", 0.02)
    run = study.launch("bare")
    os.kill(training(run)["pid"], signal.SIGKILL)
    status = run.wait()
    assert status.state == "crashed"
    lost = "its job has left the queue, and the cluster has no accounting record of why"
    # On busy cores the job may have left the queue before its state was asked for.
    assert status.tasks[0].why.startswith("SLURM reports FAILED") or status.tasks[0].why == lost
    wait_for(lambda: run.id not in study.cluster.run("squeue", "--states=all", "-o%j").stdout)
    forgotten = study.open("bare").status()
    assert forgotten.state == "crashed"
    assert forgotten.tasks[0].why == lost
    study.pace("bare", None)
    assert run.resume() == 2
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)


def test_without_accounts_memory_is_told_by_the_log(bare_study: Any, wait_for: Any) -> None:
    run = bare_study.launch("hungry", text=HUNGRY)
    run.wait()
    wait_for(lambda: run.id not in bare_study.cluster.run("squeue", "--states=all", "-o%j").stdout)
    (task,) = bare_study.open("hungry").status().tasks
    assert task.state == "crashed"
    assert re.search(r"it used \d+M, and its limit was 600M", task.why)


def test_who_watches_hears_how_many_jobs_come_first(study: Any) -> None:
    sleep = ("--exclusive", "--nodelist=n3", "--output=/dev/null", "--wrap=sleep 600")
    jobs = [study.cluster.run("sbatch", "--parsable", "--partition=urgent", *sleep).stdout.strip()]
    for _ in range(2):
        behind = study.cluster.run("sbatch", "--parsable", "--partition=preempt", *sleep)
        jobs.append(behind.stdout.strip())
    run = study.launch("patient", slurm={"partition": "preempt"})
    watching = subprocess.Popen(
        [COMMAND, "status", "patient", "--watch"],
        cwd=study.folder,
        env={**os.environ, "MLPSUBMIT_RUNS": str(study.folder / "runs")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        line = watching.stdout.readline()
        while ", behind" not in line:
            assert "000-0000: " in line, "never nothing"
            line = watching.stdout.readline()
        assert re.search(r"queued: (Priority|Resources), behind 2 jobs of higher priority$", line)
        assert "behind" not in study.cli("status", "patient").stdout, "nobody waits"
    finally:
        watching.kill()
        watching.communicate()
        run.cancel()
        study.cluster.run("scancel", *jobs)
