"""A launch that dies, or an sbatch that does not say what it did: never two copies, never none."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import xarray

from mlpsubmit import UserError, files
from mlpsubmit.jobs.slurm import sbatch

#: Stands before the real sbatch, and passes on what is no submission.
WRAPPER = """#!/bin/bash
real() { PATH="${PATH#*:}" command sbatch "$@"; }
case "$*" in *--parsable*) ;; *) real "$@"; exit;; esac
"""


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a script in the place of sbatch, for submissions alone; ``real`` is the real one."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(text: str | None) -> None:
        file = folder / "sbatch"
        if text is None:
            file.unlink()
            return
        file.write_text(WRAPPER + text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return put


MANY = """
import torch
from mlpsubmit import Sweep

def ones(bsz):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

sweep = Sweep(NAME_HERE, {"WIDTH": range(1, 200)}, batchfn=ones, MAX_ITER=2, N_SAMPLES=4)
"""


def launch(study: Any, name: str) -> subprocess.CompletedProcess[str]:
    path = study.spec(name)
    asked = ("--tasks", "1", "--gpus", "0", "--cpus", "1", "--mem", "600M", "--time", "10")
    return study.cli("launch", path, "--executor", "slurm", *asked)  # type: ignore[no-any-return]


def test_a_launch_that_dies_after_the_cluster_took_the_job(
    study: Any, instead: Any, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    instead('real "$@" >/dev/null; kill -9 $PPID; sleep 0.2; exit 1')
    assert launch(study, "after").returncode == -9
    run = study.open("after")
    assert run.directory.jobs(0) is None
    instead(None)

    # The next command knows the job by its name, and nothing is submitted twice.
    assert run.status().running
    wait_for(lambda: run.status().busy and len(run.directory.task_jobs(0)) == 1)
    again = launch(study, "after")
    assert again.returncode == 0
    assert run.directory.submissions() == [0]
    assert run.wait().complete
    assert list(run.logs()) == ["000-0000"]
    xarray.testing.assert_identical(results(run), undisturbed)


def test_an_sbatch_that_outlives_its_launch_keeps_others_away(
    study: Any, instead: Any, wait_for: Any
) -> None:
    go_on = study.folder / "outlived.go-on"
    wait = f"for _ in {{1..600}}; do [ -e {shlex.quote(str(go_on))} ] && break; sleep 0.1; done"
    instead(f'kill -9 $PPID; {wait}; real "$@"')
    assert launch(study, "outlived").returncode == -9
    run = study.open("outlived")
    assert [task.why for task in run.status().tasks] == ["it is being submitted"]
    refused = study.cli("resume", "outlived")
    assert refused.returncode == 2
    assert "another launch, resume or prune is in progress" in refused.stderr
    go_on.touch()
    wait_for(lambda: study.queued(run))
    assert run.wait().complete
    assert run.directory.submissions() == [0]


def test_a_launch_that_dies_before_the_cluster_had_anything(study: Any, instead: Any) -> None:
    instead("kill -9 $PPID; exit 1")
    assert launch(study, "before").returncode == -9
    instead(None)
    run = study.open("before")
    status = run.status()
    assert status.state == "crashed"
    assert status.tasks[0].why == "its launch ended before the cluster had its job"
    assert run.resume() == 2
    assert run.wait().complete


def test_an_answer_that_makes_no_sense(study: Any, instead: Any) -> None:
    """The job is looked for by its name: here it is found."""
    instead('real "$@" >/dev/null; echo "Welcome to the cluster!"')
    run = study.launch("sense")
    assert len(run.directory.task_jobs(0)) == 1
    assert run.wait().complete


def test_an_sbatch_that_does_nothing_and_does_not_say_so(study: Any, instead: Any) -> None:
    """No job is found, and one that should start after all ends at once."""
    instead('echo "Welcome to the cluster!"')
    refused = launch(study, "lost")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: sbatch answered 'Welcome to the cluster!', not a job id; no job of this run is "
        "known to be queued, and one that starts after all will end at once; "
    )
    assert refused.stderr.rstrip().endswith("continue with: mlpsubmit resume")
    instead(None)
    run = study.open("lost")
    assert run.status().state == "stopped"
    file = run.directory.submission(0) / "array.0.sh"
    late = study.cluster.run("sbatch", "--parsable", "--wait", file).stdout.strip()
    log = run.directory.log(0, f"{late}_0").read_text()
    assert "nothing to do: sbatch answered 'Welcome" in log
    assert list(run.directory.results.members()) == []

    assert run.resume() == 2
    assert run.directory.submissions() == [0, 1]
    assert run.wait().complete


LIMIT = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"


def test_an_array_that_is_refused_takes_the_others_with_it(study: Any, instead: Any) -> None:
    """The second of three: what the cluster had taken by then is cancelled, and trains nothing."""
    instead(
        f"case $* in *array.0.sh) real \"$@\";; *) echo 'sbatch: error: {LIMIT}' >&2; exit 1; esac"
    )
    with pytest.raises(UserError, match=r"sbatch rejected it: .*submit limit") as caught:
        study.launch("second", tasks=150, text=MANY, slurm={"sbatch": {"hold": True}})
    run = study.open("second")
    assert run.directory.ended(0) == str(caught.value)
    assert study.queued(run) == []
    assert run.status().state == "stopped"
    instead(None)

    # Its number is not used again: an array that came away would be taken for a living one.
    run.resume(slurm={"sbatch": {"hold": True}})
    assert run.directory.submissions() == [0, 1]
    assert run.directory.worker_count(1) == 150, "as many tasks as last time"
    run.cancel()


def test_a_first_array_that_is_refused_leaves_nothing(study: Any, instead: Any) -> None:
    instead(f"echo 'sbatch: error: {LIMIT}' >&2; exit 1")
    with pytest.raises(UserError, match=r"nothing was submitted"):
        study.launch("first")
    assert list((study.folder / "runs").rglob("sweep.json")) == []
    instead(None)
    run = study.launch("first", slurm={"sbatch": {"hold": True}})
    run.cancel()
    instead(f"echo 'sbatch: error: {LIMIT}' >&2; exit 1")
    run.wait()
    before = sorted(run.path.rglob("*"))
    with pytest.raises(UserError, match=r"nothing was submitted"):
        run.resume()
    assert sorted(run.path.rglob("*")) == before


def test_an_sbatch_that_hangs(study: Any, instead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbatch, "CHANGE_SECONDS", 1.0)
    monkeypatch.setattr(sbatch, "_BETWEEN_QUERIES", 0.1)
    instead("exec sleep 30")
    with pytest.raises(UserError, match=r"^sbatch did not answer within 1 s; no job of this run"):
        study.launch("hangs")
    assert study.open("hangs").directory.ended(0) is not None
    instead(None)
    assert study.open("hangs").resume() == 2
    study.open("hangs").cancel()


def test_a_later_submission_takes_the_place_of_one_that_comes_late(study: Any) -> None:
    """However an array got away from its launch: it sees that its work is another's now."""
    run = study.launch("late", slurm={"sbatch": {"hold": True}})
    study.cluster.run("scancel", study.job(run))
    run.wait()
    run.resume(slurm={"sbatch": {"hold": False}})
    file = run.directory.submission(0) / "array.0.sh"
    text = file.read_text().replace("#SBATCH --hold\n", "")
    files.publish(file, text.encode())
    late = study.cluster.run("sbatch", "--parsable", "--wait", file).stdout.strip()
    assert run.directory.log(0, f"{late}_0").read_text() == (
        "nothing to do: submission 001 has taken its place\n"
    )
    assert run.wait().complete
