"""ls, show, diff and prune of runs on a cluster: queued, requeued, cancelled, without answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import launch
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.store.run_directory import JOBS
from mlpsubmit.spec.load import load_spec

Command = Callable[..., Any]

HELD = {"sbatch": {"hold": True}}


@pytest.fixture
def look(mlpsubmit: Command, study: Any) -> Command:
    """A function that runs a command on the runs of the study, and returns what it prints."""

    def run(*arguments: str) -> Any:
        done = mlpsubmit(*arguments, "--runs-dir", study.folder / "runs")
        assert done.code == 0, done.err
        return json.loads(done.out) if "--json" in arguments else done.out

    return run


@pytest.fixture
def states(look: Command) -> Callable[[], dict[str, str]]:
    """A function that returns the states of all runs, by their ids, as ls shows them."""
    return lambda: {row["run"]: row["state"] for row in look("ls", "--json")["runs"]}


@pytest.fixture
def pruned(look: Command) -> Callable[[], tuple[set[str], dict[str, str]]]:
    """A function that returns the runs that prune removes, and why others are kept."""

    def prune() -> tuple[set[str], dict[str, str]]:
        found = look("prune", "--json", "--yes")
        removed = {one["run"] for one in found["candidates"] if one["removed"]}
        return removed, {one["run"]: one["why"] for one in found["kept"]}

    return prune


def superseding(study: Any, name: str) -> str:
    """Train all that a run is to train here, in a later run; return the id of that."""
    path = study.spec(name)
    options = {"executor": "debug", "fresh": True, "runs_dir": study.folder / "runs"}
    run = launch(load_spec(path), spec=path, **options)
    assert run.status().complete
    return str(run.id)


def test_an_array_in_the_queue_keeps_its_run(
    study: Any,
    look: Command,
    states: Any,
    pruned: Any,
    training: Any,
    wait_for: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = study.launch("held", slurm=HELD)
    study.pace("moved", 0.02)
    moved = study.launch("moved")
    training(moved)
    study.cluster.run("scontrol", "requeuehold", f"{study.job(moved)}_0")
    wait_for(lambda: study.queued(moved) == ["PENDING"])
    study.pace("moved", None)
    later = [superseding(study, name) for name in ("held", "moved")]
    open_ = {held.id: "running", moved.id: "running"}
    assert states() == {**open_, **dict.fromkeys(later, "done")}
    assert pruned() == (set(), dict.fromkeys(open_, "is in progress"))
    shown = look("show", held.id, "--json")
    assert (shown["state"], shown["plan"]["executor"]) == ("running", "slurm")
    lines = look("diff", held.id, later[0]).splitlines()
    assert "equal: settings, functions, versions" in lines
    assert "results: 4 configs in both runs, 0 with a result in both" in lines

    with monkeypatch.context() as silent:
        file: Path = study.folder / "slurm.conf"
        text = study.cluster.conf.read_text().replace("MessageTimeout=10", "MessageTimeout=1")
        file.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text))
        silent.setenv("SLURM_CONF", str(file))
        assert pruned() == (set(), dict.fromkeys(open_, "may be in progress"))

    # Until somebody has taken the jobs out of the queue.
    study.cluster.run("scancel", study.job(held), study.job(moved))
    stopped = dict.fromkeys(open_, "stopped")
    wait_for(lambda: states() == {**stopped, **dict.fromkeys(later, "done")})
    assert pruned() == ({held.id, moved.id}, {})
    assert set(states()) == {*later}


def test_a_job_that_waits_although_all_is_done(
    study: Any, states: Any, pruned: Any, wait_for: Any
) -> None:
    run = study.launch("waits", retries=1)
    (retry,) = (job["id"] for job in run.directory.jobs(0)["jobs"] if not job["count"])
    study.cluster.run("scontrol", "hold", retry)
    later = superseding(study, "waits")
    assert wait_for(lambda: run.status().complete)
    assert states() == {run.id: "done", later: "done"}
    why = f"has job {retry} in the queue (PENDING)"
    assert wait_for(lambda: pruned() == (set(), {run.id: why}))
    study.cluster.run("scancel", retry)
    assert wait_for(lambda: pruned() == ({run.id}, {}))


def test_ids_that_the_cluster_has_given_to_other_jobs(study: Any, wait_for: Any) -> None:
    """As where its controller has lost its state, and begins to count again."""
    run = study.launch("counted", slurm=HELD)
    study.cluster.run("scancel", study.job(run))
    file = run.directory.submission(0) / JOBS
    jobs = read_json(file)["jobs"]

    def other(wrapped: str) -> str:
        """Submit a job of somebody else, and write its id into the run; return that."""
        wrap = ("sbatch", "--parsable", "--output=/dev/null", f"--wrap={wrapped}")
        id: str = study.cluster.run(*wrap).stdout.strip()
        publish_json(file, {"jobs": [{**job, "id": id} for job in jobs]})
        return id

    ended = other("exit 3")
    wait_for(lambda: "FAILED" in study.cluster.run("sacct", "-nXj", ended).stdout)
    (task,) = study.open("counted").status().tasks
    assert task.why == "its job has left the queue, and the cluster has no accounting record of why"
    running = other("sleep 600")
    try:
        assert study.open("counted").status().state == "crashed"
        study.open("counted").cancel()
        show = ("squeue", "--noheader", "--format=%T", f"--jobs={running}")
        assert study.cluster.run(*show).stdout.strip() in ("PENDING", "RUNNING"), "it goes on"
    finally:
        study.cluster.run("scancel", running)
