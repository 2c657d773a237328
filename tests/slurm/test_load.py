"""What the commands ask of a cluster's controller and of its accounting."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

MANY = """
import torch
from mlpsubmit import Sweep

def ones(bsz):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

sweep = Sweep(NAME_HERE, {"LR": [10**-k for k in range(1, 11)], "trial": range(100)}, batchfn=ones,
    WIDTH=4, MAX_ITER=2, N_SAMPLES=4)
"""
#: What commands of users send, by SLURM's names; the nodes send others all the time. To squeue, the
#: user with the id 0 is all users.
ASKED = {
    "REQUEST_SUBMIT_BATCH_JOB": "sbatch",
    "REQUEST_JOB_WILL_RUN": "sbatch --test-only",
    "REQUEST_JOB_INFO": "squeue",
    "REQUEST_JOB_USER_INFO": "squeue",
    "REQUEST_JOB_INFO_SINGLE": "squeue",
    "REQUEST_BUILD_INFO": "scontrol show config",
    "REQUEST_NODE_INFO": "sinfo",
    "REQUEST_ASSOC_MGR_INFO": "scontrol show assoc_mgr",
    "REQUEST_KILL_JOB": "scancel",
}
#: And to slurmdbd.
ACCOUNTING = {
    "DBD_GET_JOBS_COND": "sacct",
    "DBD_GET_ASSOCS": "sacctmgr show assoc",
    "DBD_GET_QOS": "sacctmgr show qos",
}


@pytest.fixture
def asked(study: Any, mlpsubmit: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command; return how often it has asked the controller for what, and accounting."""

    monkeypatch.setenv("MLPSUBMIT_RUNS", str(study.folder / "runs"))

    def accounting() -> Counter[str]:
        shown = study.cluster.run("sacctmgr", "show", "stats").stdout
        found = re.findall(r"(DBD_GET_\w+) *\( *\d+\) *count:(\d+)", shown)
        return Counter({ACCOUNTING[name]: int(n) for name, n in found if name in ACCOUNTING})

    def counted(*arguments: Any, code: int = 0) -> dict[str, int]:
        study.cluster.run("sdiag", "--reset")
        before = accounting()
        done = mlpsubmit(*map(str, arguments))
        assert done.code == code, done.out + done.err
        shown = study.cluster.run("sdiag").stdout
        found = re.findall(r"(\w+) +\( *\d+\) count:(\d+)", shown)
        counts = accounting() - before
        for name, count in found:
            if name in ASKED:
                counts[ASKED[name]] += int(count)
        return dict(+counts)

    return counted


@pytest.mark.filterwarnings("ignore:run .* is running, and trains 100 configs of this launch")
def test_every_command_asks_little_of_the_cluster(study: Any, asked: Any) -> None:
    """Accounting is not asked at all: each job is in the queue, or its files explain it."""
    held = ("--sbatch", "hold", "--gpus", 0, "--cpus", 1, "--mem", "600M", "--time", 10)
    once = {"scontrol show config": 1, "sinfo": 1, "squeue": 1}
    # As this cluster enforces limits; sacctmgr reads the QOS for the associations, too.
    once |= {"scontrol show assoc_mgr": 1, "sacctmgr show assoc": 1, "sacctmgr show qos": 2}
    load = study.spec("load", MANY)
    assert asked("launch", load, "--tasks", 250, *held) == {**once, "sbatch": 3}
    whole = ("--partition", "whole", "--whole-node", "--tasks", 2)
    other = study.spec("other", MANY)
    assert asked("launch", other, *whole, *held) == {**once, "sbatch": 1}
    assert asked("launch", load, "--tasks", 250, *held) == {"squeue": 1}, "it is running"
    # What an earlier run trains is no reason for more than one question.
    grown = asked("launch", load, "LR=[0.1,2]", "--tasks", 2, "--dry-run", *held)
    assert grown == {**once, "sbatch --test-only": 1}
    for command in (["status", "load"], ["status", "other", "--json"], ["ls"], ["ls", "--json"]):
        assert asked(*command) == {"squeue": 1}, command
    assert asked("collect", "load", code=1) == {"squeue": 1}
    assert asked("resume", "load", code=2) == {"squeue": 1}
    # Then it watches what it has cancelled: whether that is over is asked for again.
    cancelled = asked("cancel", "other")
    assert cancelled.pop("squeue") <= 3
    assert cancelled == {"scancel": 1, "scontrol show config": 1}
    # Before, so that nothing trains twice, and after, for what it says.
    assert asked("resume", "other", *held) == {**once, "squeue": 2, "sbatch": 1}
    run = study.launch("done", tasks=2)
    assert run.wait().complete
    assert asked("status", "done") == {}, "the files say it all"
