"""A job on the cluster resumes what is missing, while nobody looks."""

from __future__ import annotations

import os
import signal
from typing import Any

import xarray

from mlpsubmit.runs.run import Run


def test_what_is_lost_is_resumed_by_itself(
    study: Any, training: Any, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    study.pace("healed", 0.02)
    run: Run = study.launch("healed", retries=2)
    os.kill(training(run)["pid"], signal.SIGKILL)
    wait_for(lambda: run.directory.submissions() == [0, 1])
    os.kill(training(run)["pid"], signal.SIGKILL)
    study.pace("healed", None)
    status = run.wait()
    assert status.complete
    assert run.directory.submissions() == [0, 1, 2]
    left = [run.directory.intent(number)["retries"] for number in run.directory.submissions()]
    assert left == [2, 1, 0]
    xarray.testing.assert_identical(results(run), undisturbed)
    wait_for(lambda: study.queued(run) == [])


def test_a_run_that_was_cancelled_is_not_brought_back(study: Any) -> None:
    """Not even by a job that the cancel did not see, as its launch was still submitting."""
    run: Run = study.launch("calm", retries=1, slurm={"sbatch": {"hold": True}})
    run.cancel()
    file = run.directory.submission(0) / "retry.sh"
    script = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in script if "--dependency" not in line))
    late = study.cluster.run("sbatch", "--parsable", "--wait", file).stdout.strip()
    assert f"run {run.id}: 0 packs to train" in run.directory.log(0, late).read_text()
    assert run.directory.submissions() == [0]
    assert run.status().state == "stopped"


def test_a_job_that_cannot_resume_says_so(study: Any, training: Any, wait_for: Any) -> None:
    study.pace("hopeless", 0.02)
    run: Run = study.launch("hopeless", retries=1)
    beat = training(run)
    (run.path / "sweep.json").rename(run.path / "away")  # whatever keeps that job from its work
    os.kill(beat["pid"], signal.SIGKILL)
    wait_for(lambda: run.status().retry_failure.startswith("FAILED"))
    (run.path / "away").rename(run.path / "sweep.json")
    shown = study.cli("status", "hopeless")
    assert shown.returncode == 1
    assert "the job that should resume the missing configs failed: FAILED" in shown.stdout


def test_while_the_job_that_resumes_waits_the_run_goes_on(
    study: Any, training: Any, wait_for: Any
) -> None:
    study.pace("waits", 0.02)
    held = {"helper_partition": "far"}  # no node of it is up
    run: Run = study.launch("waits", retries=1, slurm=held)
    os.kill(training(run)["pid"], signal.SIGKILL)
    wait_for(lambda: run.status().retry.startswith("PENDING"))
    status = run.status()
    assert status.running
    assert not status.busy
    assert status.state == "running"
    shown = study.cli("status", "waits").stdout
    assert "a job will resume the missing configs: PENDING" in shown

    # By hand it goes faster, and then that job has nothing to do.
    study.pace("waits", None)
    assert run.resume() == 2
    assert run.wait().complete
    wait_for(lambda: study.queued(run) == [])
