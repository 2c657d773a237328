"""An account in which three jobs may be queued: tasks are submitted as room frees."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest
import torch
import xarray

from mlpsubmit import UserError, launch
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

LIMIT = "MaxSubmitJobs=3 of root in the account tight"


@pytest.fixture
def allowed(study: Any) -> Any:
    """Set how many jobs may be queued in the account; three again at the end."""

    def allow(jobs: int) -> None:
        where = ("user", "root", "account=tight", "set", f"MaxSubmitJobs={jobs}")
        study.cluster.run("sacctmgr", "--immediate", "modify", *where)

    yield allow
    allow(3)


def test_what_finds_no_room_is_submitted_later_and_nothing_is_lost(
    study: Any, wait_for: Any, training: Any, results: Any, allowed: Any, capsys: Any
) -> None:
    """Bit for bit the results of one process, also where a task is killed, and the room is gone."""
    text = study.spec("pieces").read_text().replace("MAX_ITER", "PACK_SIZE=1, MAX_ITER")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = study.spec("whole", text.replace("'pieces'", "'whole'"))
    whole = launch(load_spec(path), spec=path, executor="debug", runs_dir=study.folder / "runs")
    torch.set_num_threads(threads)
    study.pace("pieces", 0.02)
    run: Run = study.launch("pieces", tasks=4, text=text, retries=1, slurm={"account": "tight"})
    said = "2 tasks now, and 2 more when these have ended, by a job of the run"
    assert f"{said}: {LIMIT} (0 in use)" in capsys.readouterr().out
    array = study.job(run)
    shown = study.cli("status", "pieces").stdout
    assert f"2 more tasks to be submitted when job {array} has ended ({LIMIT})" in shown
    with pytest.raises(UserError, match=rf"^{LIMIT} leaves no room \(3 in use\); nothing was"):
        study.launch("refused", slurm={"account": "tight"})
    assert not (study.folder / "runs" / "refused").exists()

    os.kill(training(run)["pid"], signal.SIGKILL)
    allowed(1)
    study.pace("pieces", None)
    expected = rf"2 more tasks to be submitted as room frees \({LIMIT}\): PENDING \(BeginTime\)"
    status = wait_for(lambda: (s := run.status()).outstanding.endswith("(BeginTime)") and s)
    assert re.fullmatch(expected, status.outstanding)
    assert status.running
    assert run.directory.submissions() == [0]
    allowed(3)
    helper = run.directory.jobs(0)["jobs"][-1]["id"]
    study.cluster.run("scontrol", "update", f"JobId={helper}", "StartTime=now")
    status = run.wait()
    assert status.complete, status
    assert "not yet: MaxSubmitJobs=1 of root" in run.directory.log(0, helper).read_text()
    # One and the next such job, one and that of --retries, and what had been killed.
    numbers = run.directory.submissions()
    assert [len(run.directory.intent(n)["slices"]) for n in numbers] == [2, 1, 1, 1]
    assert [run.directory.continues(n) for n in numbers] == [None, 0, 1, None]
    assert [run.directory.intent(n)["retries"] for n in numbers] == [1, 1, 1, 0]
    xarray.testing.assert_identical(results(run), results(whole))
    wait_for(lambda: study.queued(run) == [])


def test_cancel_stops_what_is_to_be_submitted_and_resume_goes_on(study: Any, wait_for: Any) -> None:
    text = study.spec("stopped").read_text().replace("MAX_ITER=600", "PACK_SIZE=1, MAX_ITER=6")
    held = {"account": "tight", "sbatch": {"hold": True}}
    run: Run = study.launch("stopped", tasks=4, text=text, slurm=held)
    assert run.cancel() == 2
    stopped = run.wait()
    wait_for(lambda: study.queued(run) == [])
    assert (stopped.state, run.directory.submissions()) == ("stopped", [0])

    # Where the job that submits the others is lost, that is said, and a resume does it.
    assert run.resume(slurm={"sbatch": {"hold": False}}) == 4
    helper = run.directory.jobs(1)["jobs"][-1]["id"]
    study.cluster.run("scancel", helper)
    status = run.wait()
    assert (status.state, status.done) == ("stopped", 2)
    assert status.outstanding == "2 more tasks not submitted, and no job that will do it"
    wait_for(lambda: study.queued(run) == [])  # tasks that have reported their end are jobs still
    assert run.resume(slurm=held) == 2
    assert run.directory.intent(2)["later"] == []
    run.cancel()
