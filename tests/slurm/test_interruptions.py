"""Whatever a cluster does to a task, nothing finished is lost and the numbers are the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import xarray

from mlpsubmit.runs.run import Run

Beat = Callable[[Run], dict[str, Any]]
Results = Callable[[Run], xarray.Dataset]


def test_signals_requeues_preemption_and_time_limits_cost_nothing(
    study: Any, training: Beat, wait_for: Any, results: Results, undisturbed: xarray.Dataset
) -> None:
    """All at once, each in a run of its own: most of the time is spent in the queue."""
    asked: dict[str, dict[str, Any]] = {
        "notice": {},
        "term": {},
        "requeue": {},
        "preemption": {"partition": "preempt"},
        "limit": {"time": 1, "notice": 15},
    }
    runs = {}
    for how, options in asked.items():
        study.pace(how, 0.02 if how != "limit" else 0.25)
        runs[how] = study.launch(how, slurm=options)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--mem=0", "--output=/dev/null"]
    disturb = {
        "notice": ["scancel", "--signal=USR2", study.job(runs["notice"])],
        "term": ["scancel", "--signal=TERM", study.job(runs["term"])],
        "requeue": ["scontrol", "requeue", study.job(runs["requeue"])],
        "preemption": [*urgent, "--wrap=sleep 2"],
    }
    for how, command in disturb.items():
        training(runs[how])
        study.cluster.run(*command)
    for how in disturb:
        wait_for(lambda how=how: "interrupted" in study.log(runs[how]))
        study.pace(how, None)  # the rest at full speed
        last = check(study, runs[how], results, undisturbed)
        assert last["without_progress"] == 0, "the attempt before it had trained"
    # The signal comes up to half a minute before it is due, as SLURM looks at limits that often.
    study.pace("limit", 0.25)
    wait_for(lambda: "requeued" in study.log(runs["limit"]), 90)
    study.pace("limit", None)
    check(study, runs["limit"], results, undisturbed)


def check(study: Any, run: Run, results: Results, undisturbed: xarray.Dataset) -> dict[str, Any]:
    """See that it went on by itself, in one submission, to the same numbers; return its beat."""
    status = run.wait()
    log = study.log(run)
    assert status.complete, log
    assert "interrupted, its state is saved" in log
    assert run.directory.submissions() == [0]
    xarray.testing.assert_identical(results(run), undisturbed)
    return dict(status.tasks[0].heartbeat)


def test_a_killed_task_goes_on_from_its_last_checkpoint_when_resumed(
    study: Any, training: Beat, results: Results, undisturbed: xarray.Dataset, wait_for: Any
) -> None:
    study.pace("killed", 0.02)
    run = study.launch("killed")
    wait_for(lambda: list(run.directory.checkpoint("-").parent.glob("[!.]*.pt")))
    os.kill(training(run)["pid"], signal.SIGKILL)
    status = run.wait()
    assert status.state == "crashed"
    assert status.tasks[0].why.startswith("SLURM reports FAILED")
    assert run.directory.submissions() == [0]

    (file,) = run.directory.checkpoint("-").parent.glob("[!.]*.pt")
    saved = torch.load(file, weights_only=True)["state"]["start"]
    assert run.resume() == 2
    again = wait_for(
        lambda: (b := run.directory.last_heartbeat("001-0000")) and b.get("first_step") and b
    )
    assert again["first_step"] == saved
    study.pace("killed", None)
    assert run.wait().complete
    assert run.directory.intent(1)["template"] == run.directory.intent(0)["template"]
    xarray.testing.assert_identical(results(run), undisturbed)


def test_a_node_that_dies_gives_its_task_to_another(
    study: Any, training: Beat, results: Results, undisturbed: xarray.Dataset, wait_for: Any
) -> None:
    study.pace("node", 0.02)
    run = study.launch("node")
    training(run)
    nodes = study.cluster.run("squeue", "--noheader", "--format=%N", "-j", study.job(run)).stdout
    (node,) = set(nodes.split())
    study.cluster.kill_node(node)
    try:
        # SLURM does not know yet; the files alone would say that the tasks are lost.
        wait_for(lambda: "NODE_FAIL" in nodes_of(study, run) or "PENDING" in nodes_of(study, run))
        study.pace("node", None)
        status = run.wait()
    finally:
        study.cluster.start_node(node)
    assert status.complete, study.log(run)
    assert run.directory.submissions() == [0]
    trained = [member.name for member in run.directory.results.members()]
    assert sorted(trained) == ["0000000.npz", "0000001.npz"], "each pack is trained exactly once"
    xarray.testing.assert_identical(results(run), undisturbed)


def nodes_of(study: Any, run: Run) -> str:
    shown = study.cluster.run("squeue", "--noheader", "--states=all", "-j", study.job(run), "-o%T")
    return str(shown.stdout)


#: Loading it takes a while, in which a signal comes before anything is trained.
STUCK = """
import time
from pathlib import Path
import torch
from mlpsubmit import Sweep

class Slow:
    def __setstate__(self, state):
        self.__dict__.update(state)
        marker = Path(PACE_HERE)
        marker.write_text(marker.read_text() + "x" if marker.exists() else "x")
        time.sleep(1)

slow = Slow()
slow.one = 1.0

def ones(bsz):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz) * slow.one)

sweep = Sweep(NAME_HERE, batchfn=ones, WIDTH=4, MAX_ITER=5, N_SAMPLES=4)
"""


def test_a_task_that_never_gets_to_train_is_given_up(study: Any, wait_for: Any) -> None:
    run = study.launch("stuck", text=STUCK)
    attempts = study.folder / "stuck.pace"
    for count in range(1, 4):
        wait_for(lambda n=count: attempts.exists() and len(attempts.read_text()) == n)
        study.cluster.run("scancel", "--signal=TERM", study.job(run))
    status = run.wait()
    assert status.state == "crashed"
    assert status.tasks[0].why.startswith(
        "3 attempts in a row were ended before they had trained anything; give the tasks more time"
    )
    shown = study.cli("status", "stuck")
    assert shown.returncode == 1
    assert "3 attempts in a row were ended" in shown.stdout.replace("\n", " ")
    assert json.loads(study.cli("status", "stuck", "--json").stdout)["state"] == "crashed"

    # Asked to, it tries again.
    run.resume()
    assert run.wait().complete
