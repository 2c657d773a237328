"""Calibration on a cluster: in a job that asks for what the tasks will ask for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mlpsubmit.jobs.executors.slurm import missing_result
from mlpsubmit.jobs.slurm.queue import JobState

ASKED = ("--executor", "slurm", "--gpus", "0", "--cpus", "1", "--mem", "600M", "--time", "10")


@pytest.mark.parametrize(
    ("job", "log", "text"),
    [
        (None, "", "sbatch accepted a job, but squeue does not list it after 300 s; nothing"),
        (
            JobState("1", "PENDING", "Priority"),
            "",
            "the job is still queued after 300 s (Priority); nothing",
        ),
        (
            JobState("1", "PENDING", ""),
            "",
            "the job is still queued after 300 s (no reason given yet); nothing",
        ),
        (
            JobState("1", "RUNNING", "", "n1"),
            "",
            "the job runs on n1, but has not reported after 300 s; nothing",
        ),
        (
            JobState("1", "FAILED", "NonZeroExitCode", "n1"),
            "No module named mlpsubmit",
            "the job reported no result: FAILED (NonZeroExitCode) on n1; its log ends:\nNo module "
            "named mlpsubmit; nothing",
        ),
    ],
)
def test_what_is_known_of_a_job_that_did_not_answer(
    job: JobState | None, log: str, text: str
) -> None:
    told = missing_result(job, log)
    assert told.startswith(
        f"--calibrate: {text} of it is left; leave --calibrate out, or try again"
    )


def test_a_job_killed_for_its_memory_is_to_ask_for_more() -> None:
    told = missing_result(JobState("1", "OUT_OF_MEMORY", "0:125", "n1", "used 2G of 1G"), "")
    assert told.endswith("leave --calibrate out, or give the tasks more memory (--mem)")


def test_a_job_calibrates_and_leaves_nothing(study: Any, cluster: Any) -> None:
    path = study.spec("measured")
    (study.folder / "runs").mkdir()
    jobs = ("squeue", "--noheader", "--format=%i")
    others = set(cluster.run(*jobs).stdout.split())
    asked = ("launch", path, "--dry-run", *ASKED, "--time", "1", "MAX_ITER=1000000")
    dry = study.cli(*asked, "--calibrate", "--json")
    assert dry.returncode == 0, dry.stderr
    found = json.loads(dry.stdout)
    estimate = found["estimate"]
    assert re.match(
        r"by a calibration on the default partition, no GPU and 1 c", estimate["source"]
    )
    assert (estimate["workloads"], estimate["measured_workloads"]) == (2, 2)
    assert found["executor"] == "slurm"
    hours = sum(task["seconds"] for task in found["tasks"]) / 3600
    assert estimate["core_hours"] == pytest.approx(hours, rel=0.01)
    assert list((study.folder / "runs").iterdir()) == []
    assert set(cluster.run(*jobs).stdout.split()) <= others


def test_an_earlier_run_on_the_partition_tells_of_a_short_time_limit(study: Any) -> None:
    run = study.launch("before")
    assert run.wait().complete
    path = study.spec("after")
    dry = study.cli("launch", path, "--dry-run", *ASKED, "MAX_ITER=100000000")
    assert dry.returncode == 0, dry.stderr
    assert "(by earlier runs on the default partition, no GPU and 1 core per task" in dry.stdout
    assert re.search(r"\d of \d tasks may exceed the time limit 00:10:00", dry.stdout)
    # On another kind of node it may be otherwise.
    other = study.cli("launch", path, "--dry-run", *ASKED, "--cpus", "2")
    assert "no earlier run has trained similar packs on the default partition" in other.stdout


def test_a_function_that_fails_on_a_node_says_so(study: Any) -> None:
    text = (
        study.spec("failing")
        .read_text()
        .replace("step > 0 and", "step > 3 and 1 / 0 or step > 0 and")
    )
    path = study.spec("failing", text)
    refused = study.cli("launch", path, "--dry-run", *ASKED, "--calibrate")
    assert refused.returncode == 2
    assert "--calibrate: a pack cannot be trained, here as in its task: " in refused.stderr
    assert "ZeroDivisionError" in refused.stderr
