"""One command, job arrays, one dataset."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import xarray

from mlpsubmit.jobs.store import run_directory


def test_a_launch_from_the_shell_to_the_dataset(
    study: Any, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    """Through nothing but the command line."""
    path = study.spec("shell")
    asked = ("--tasks", 2, "--gpus", 0, "--cpus", 1, "--mem", "600M", "--time", "00:10:00")
    dry = study.cli("launch", path, "--dry-run", *asked, "GAMMA=[0.5,1]")
    assert dry.returncode == 0, dry.stderr
    assert "slurm: 2 tasks of 1 thread," in dry.stdout
    assert "at most 0.3333 core-hours" in dry.stdout
    assert not (study.folder / "runs").exists()

    study.pace("shell", 0.5)  # so that it cannot end before the launch has reported
    launched = study.cli("launch", path, *asked)
    assert launched.returncode == 0, launched.stderr
    study.pace("shell", None)
    run = study.open("shell")
    # Whether a task has started by then is up to the cluster.
    said = rf"run {run.id} is running( \([12] of 2 tasks queued\))?; see: mlpsubmit status"
    assert re.search(said, launched.stdout)
    script = (run.directory.submission(0) / "array.0.sh").read_text()
    shown = dry.stdout[dry.stdout.index("#!/bin/bash") :].rstrip("\n")
    other = shown.split("--job-name=shell.")[1].split(".000")[0]
    # Each run has an id of its own, and each pickle of a sweep, in a run, a hash.
    hashes = [re.findall(r"\b[0-9a-f]{32}\b", text) for text in (script, shown)]
    assert [len(set(found)) for found in hashes] == [1, 1]
    shown = shown.replace(hashes[1][0], hashes[0][0])
    assert script.rstrip("\n") == shown.replace(other, run.id), (
        "the dry run shows what is submitted"
    )

    watched = study.cli("status", "shell", "--watch")
    assert watched.returncode == 0
    assert "shell done: 4/4 configs" in watched.stdout
    collected = study.cli("collect", "shell", "--out", "shell.nc")
    assert collected.returncode == 0
    assert "results: shell.nc (4 of 4 configs)" in collected.stdout
    logs = study.cli("logs", "shell", "1").stdout
    assert logs.count("1 config in") == 2
    # Two tasks mean smaller packs: the numbers agree to rounding.
    xarray.testing.assert_allclose(results(run), undisturbed, rtol=1e-4)


THREADS = """
import torch
from mlpsubmit import Sweep

def ones(bsz):
    print("THREADS", torch.get_num_threads(), flush=True)
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

sweep = Sweep(NAME_HERE, {"WIDTH": [4, 5]}, batchfn=ones, MAX_ITER=2, N_SAMPLES=4)
"""


def test_each_task_has_cores_of_its_own(study: Any) -> None:
    run = study.launch("cores", tasks=2, text=THREADS, slurm={"cpus": 2})
    assert run.wait().complete
    told = [line.split() for file in run.logs().values() for line in file.read_text().splitlines()]
    assert {line[1] for line in told if line[0] == "THREADS"} == {"2"}


def test_a_task_whose_gpu_torch_does_not_see_trains_nothing_and_says_what_it_saw(
    study: Any,
) -> None:
    """SLURM gives each task a GPU of its own, which here is none."""
    run = study.launch("gpus", tasks=2, text=THREADS, slurm={"gpus": 1})
    status = run.wait()
    assert (status.state, status.done) == ("crashed", 0)
    errors = [str(task.heartbeat["error"]) for task in status.tasks]
    for error in errors:
        assert "this task should have a GPU, and torch sees none: torch" in error
        assert "is a build without CUDA; no driver answers" in error
        assert "--template cpu on a cluster" in error
    assert {re.findall(r"CUDA_VISIBLE_DEVICES is '(\d)'", error)[0] for error in errors} == {
        "0",
        "1",
    }
    shown = study.cli("status", "gpus").stdout
    assert "torch sees none" in shown.replace("\n", " ")


MANY = """
import torch
from mlpsubmit import Sweep

def ones(bsz, shift):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz) * shift)

sweep = Sweep(NAME_HERE, {"shift": range(1000), "LR": [10**-k for k in range(1, 11)],
    "trial": range(10)}, batchfn=ones, WIDTH=4, MAX_ITER=2, N_SAMPLES=4)
"""


def test_a_hundred_thousand_configs_in_more_tasks_than_an_array_holds(
    study: Any, wait_for: Any
) -> None:
    """Its arrays share the limit, and a task of the last one knows which slice is its own."""
    held = {"sbatch": {"hold": True}, "max_parallel": 7}
    run = study.launch("many", tasks=250, text=MANY, slurm=held)
    status = run.status()
    assert status.configs == 100_000
    assert [task.state for task in status.tasks] == ["waiting"] * 250
    assert status.tasks[0].why == "queued: JobHeldUser"
    arrays = run.directory.intent(0)["arrays"]
    assert [array["count"] for array in arrays] == [83, 83, 84]
    limits = study.cluster.run("squeue", "--noheader", "--format=%K %j").stdout
    ours = [line.split()[0] for line in limits.splitlines() if run.id in line]
    assert sorted(int(places.split("%")[1].rstrip("]")) for places in ours) == [2, 2, 3]

    # What a task is given is a line of a script; no file is made for it.
    folder = run.directory.submission(0)
    assert sorted(file.name for file in folder.iterdir()) == [
        *("array.0.sh", "array.1.sh", "array.2.sh", run_directory.INTENT, run_directory.JOBS),
    ]
    assert max(file.stat().st_size for file in folder.glob("array.*.sh")) < 4096

    last = run.directory.task_jobs(0)["000-0249"]["id"]
    assert last.endswith("_83")
    study.cluster.run("scontrol", "release", last)
    wait_for(lambda: run.status().tasks[249].state == "done")
    slices = run.directory.intent(0)["slices"]
    mine = sum(high - low for low, high in slices[249])
    assert len(list(run.directory.results.members())) == mine

    assert run.cancel() == 249
    assert not run.wait().running
    wait_for(lambda: study.queued(run) == [])
    stopped = run.status()
    assert stopped.state == "stopped"
    assert stopped.done > 0
    assert {task.why for task in stopped.tasks if task.state == "interrupted"} == {"cancelled"}


def test_arrays_that_would_run_too_many_at_once_wait_for_each_other(study: Any) -> None:
    held = {"sbatch": {"hold": True}, "max_parallel": 1}
    run = study.launch("chained", tasks=150, text=MANY, slurm=held)
    arrays = run.directory.intent(0)["arrays"]
    assert [(array["limit"], array["after"]) for array in arrays] == [(1, None), (1, 0)]
    first, second = (job["id"] for job in run.directory.jobs(0)["jobs"])
    shown = study.cluster.run("scontrol", "show", "job", "--oneliner", second).stdout
    assert f"Dependency=afterany:{first}_*" in shown
    run.cancel()
    run.wait()


def test_cancel_saves_what_is_in_training_and_keeps_what_waits_from_starting(
    study: Any, training: Any, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    study.pace("cancelled", 0.02)
    run = study.launch("cancelled", retries=2)
    assert len(study.queued(run)) == 2  # the task, and the job that would resume it
    training(run)
    assert json.loads(study.cli("status", "cancelled", "--json").stdout)["state"] == "running"
    followed = study.cli("cancel", "cancelled")
    assert followed.returncode == 0, followed.stderr
    assert "stopped; 0 of 4 configs done; continue with: mlpsubmit resume" in followed.stdout
    assert "interrupted, its state is saved" in study.log(run)
    wait_for(lambda: study.queued(run) == [])
    assert run.status().state == "stopped"
    study.pace("cancelled", None)
    assert run.resume() == 2
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)


def test_logs_follow_a_run_to_its_end(study: Any, training: Any) -> None:
    study.pace("followed", 0.004)
    run = study.launch("followed")
    logs = study.cli("logs", "followed", "0", "--follow")
    assert logs.returncode == 0
    assert logs.stdout.count("configs in") == 2
    assert run.status().complete


#: Modules of the names of ours and of Python's, in the folder that a launch is made from.
COLLISIONS = ("jobs", "random", "queue", "commands", "mlpsubmit_task")


def test_what_lies_in_the_working_directory_takes_nothings_place(study: Any) -> None:
    for name in COLLISIONS:
        Path(study.folder / f"{name}.py").write_text("raise RuntimeError('not me')\n")
    run = study.launch("collisions", text=THREADS)
    assert run.wait().complete, study.log(run)
