"""What a job of SLURM has, by its variables."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.executors import local
from mlpsubmit.jobs.executors.local import LocalExecutor, gpus
from mlpsubmit.jobs.slurm.allocation import Allocation, allocation
from mlpsubmit.spec.hyperparameters import validate

ON_A_NODE = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_MEM_PER_NODE": "4000"}, (8, 4000, ())),
        ({"SLURM_JOB_CPUS_PER_NODE": "8(x2),4", "SLURM_MEM_PER_CPU": "500"}, (4, 2000, ())),
        ({"SLURM_CPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "0"}, (2, None, ())),
        ({"SLURM_MEM_PER_CPU": "500"}, (None, None, ())),
        ({"SLURM_JOB_GPUS": "0,2-3", "SLURM_GPUS_ON_NODE": "3"}, (None, None, (0, 2, 3))),
        ({"SLURM_JOB_GPUS": "0,1", "SLURM_STEP_GPUS": "1"}, (None, None, (1,))),
        ({"SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0"}, (None, None, None)),
        ({"SLURM_GPUS_PER_NODE": "a100:2"}, (None, None, None)),
        ({"SLURM_CPUS_ON_NODE": "", "SLURM_JOB_CPUS_PER_NODE": "x"}, (None, None, ())),
    ],
)
def test_what_a_job_has(variables: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert allocation({**ON_A_NODE, **variables}) == Allocation("7", *expected)


def test_outside_of_a_job() -> None:
    assert allocation({"SLURM_CPUS_ON_NODE": "8"}) is None


@pytest.fixture
def scontrol(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say what scontrol answers."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def say(text: str) -> None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "scontrol").chmod(0o700)

    return say


def test_a_shell_on_a_login_node_is_not_on_the_nodes_of_its_job(
    scontrol: Callable[[str], None],
) -> None:
    shell = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    node = "echo 'NodeName=n{0} Arch=x86_64 NodeAddr=a NodeHostName={1} Version=22'"
    scontrol(f"{node.format(1, 'far')}\n{node.format(2, 'away.example.org')}")
    with pytest.raises(UserError) as caught:
        allocation(shell)
    here = socket.gethostname().partition(".")[0]
    assert str(caught.value) == (
        f"--executor local: this shell is on {here}, and job 7, which it belongs to, has n[1-2]; "
        "train there: srun --pty mlpsubmit ..., or submit a job array: leave --executor local out"
    )
    scontrol(node.format(1, socket.gethostname()))
    assert allocation(shell) is not None
    scontrol("exit 1")
    assert allocation(shell) is not None, "it is not known"


def test_workers_get_what_their_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: range(64))
    small = Allocation("7", cores=12, megabytes=2300, gpus=())
    monkeypatch.setattr(local, "allocation", lambda: small)
    executor = LocalExecutor(validate({}), None)
    assert (executor.max_tasks(1e9), executor.threads_per_worker(4)) == (4, 3)
    with pytest.raises(UserError) as caught:
        LocalExecutor(validate({}), 5)
    assert str(caught.value) == (
        "--tasks 5: job 7, in which this is launched, has 2300 MiB of memory, and each task needs "
        "512 at least; try --tasks 4"
    )
    monkeypatch.setattr(local, "allocation", lambda: Allocation("7", 2, None, ()))
    with pytest.raises(UserError, match="has 2 cores, and each task needs one; try --tasks 2"):
        LocalExecutor(validate({}), 3)


def test_gpus_of_a_job_on_a_cluster_that_shows_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs in the machine; without a driver, as here, by their indices."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = Allocation("7", 4, None, (1, 3))
    assert gpus(validate({}), own) == ["1", "3"]
    assert gpus(validate({"DEVICES": [1]}), own) == ["3"]
    with pytest.raises(UserError, match=r"DEVICES: got \[2\]; the GPUs of job 7 are 0 to 1"):
        gpus(validate({"DEVICES": [2]}), own)
    assert gpus(validate({}), Allocation("7", 4, None, ())) == []
    assert gpus(validate({}), Allocation("7", 4, None, None)) == ["0", "1", "2", "3"]
    assert gpus(validate({}), None) == ["0", "1", "2", "3"]
