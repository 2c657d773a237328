"""The cluster that the other tests run on: what it gives jobs, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
CLUSTER = sys.modules["slurm_cluster"]  # loaded by conftest.py

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

# A process like a test run's: it starts a cluster with a job, and waits to be killed.
PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cluster import Cluster
with Cluster(accounting=True) as cluster:
    cluster.run("sbatch", "--output=/dev/null", "--wrap=setsid sleep 1000 & wait")
    while "R" not in cluster.run("squeue", "-h", "-o", "%t").stdout:
        time.sleep(0.05)
    print(cluster.folder, cluster.supervisor, flush=True)
    time.sleep(1000)
"""


def eventually(is_so: Callable[[], bool], within: float = 20) -> bool:
    end = time.monotonic() + within
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes, anyone's, that were told of this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            if os.fsencode(folder) in command + (entry / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_cluster_whose_tests_were_ended(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(FOLDER)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        name, supervisor = parent.stdout.readline().split()
        folder = Path(name)
        # SLURM calls a job running before its shell has started anything.
        assert eventually(lambda: any("sleep 1000" in told for told in processes_of(folder)))
        before = set(CLUSTER.descendants(int(supervisor)))
        told = processes_of(folder)
        parent.send_signal(sent)
    for daemon in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd -D -N n4", "slurmstepd"):
        assert any(daemon in command for command in told), told
    assert eventually(lambda: not folder.exists())
    assert eventually(lambda: processes_of(folder) == [])
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)


def test_a_job_is_given_gpus_of_its_own(cluster: Any, tmp_path: Path) -> None:
    one_each = ["--gpus-per-node=1", "--nodelist=n1", "--array=0-1"]
    show = "--wrap=srun sh -c 'echo $CUDA_VISIBLE_DEVICES; sleep 1'"
    cluster.run("sbatch", "--wait", *one_each, f"--output={tmp_path}/%a", show)
    seen = [(tmp_path / name).read_text().strip() for name in ("0", "1")]
    assert sorted(seen) == ["0", "1"]


def test_a_dead_node_takes_its_processes_with_it_and_comes_back(
    cluster: Any, tmp_path: Path
) -> None:
    beats = tmp_path / "beats"
    forever = f"--wrap=srun sh -c 'while sleep 0.05; do echo $SLURMD_NODENAME >> {beats}; done'"
    job = cluster.run(
        "sbatch", "--parsable", "--no-requeue", "-w", "n2", "--output=/dev/null", forever
    ).stdout.strip()
    assert eventually(beats.exists)
    cluster.kill_node("n2")
    count = len(beats.read_text())
    cluster.start_node("n2")
    assert len(beats.read_text()) == count
    ended = ["sacct", "-X", "-n", "-P", "-o", "State", "-j", job]
    assert eventually(lambda: cluster.run(*ended).stdout.strip() == "NODE_FAIL")
    cluster.run("sbatch", "--wait", "-w", "n2", "--output=/dev/null", "--wrap=true")


def test_a_node_that_cannot_see_a_folder(cluster: Any) -> None:
    hidden = cluster.folder / "hidden"
    (hidden / "file").touch()
    look = ["sbatch", "--wait", "--output=/dev/null", f"--wrap=test -e {hidden}/file"]
    assert cluster.run(*look).returncode == 0
    assert cluster.run(*look, "--partition=blind", check=False).returncode == 1


def test_a_command_that_is_refused_leaves_the_cluster_running(cluster: Any) -> None:
    with pytest.raises(
        CLUSTER.ClusterError, match=r"got 'kill n9'; valid are: kill NODE that runs"
    ):
        cluster.kill_node("n9")
    assert cluster.run("scontrol", "ping").stdout.endswith("is UP\n")


def test_accounts_are_checked_where_there_is_accounting(cluster: Any, bare_cluster: Any) -> None:
    for option, says in {
        "--account=nosuch": "Invalid account or account/partition combination specified",
        "--qos=nosuch": "Invalid qos specification",
    }.items():
        submit = ["sbatch", "--output=/dev/null", option, "--wrap=true"]
        assert says in cluster.run(*submit, check=False).stderr
        assert bare_cluster.run(*submit, check=False).returncode == 0


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    daemon = tmp_path / "slurmctld"
    daemon.write_text("#!/bin/sh\necho no luck today\nexit 1\n")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    broken = CLUSTER.Cluster(accounting=False)
    with pytest.raises(CLUSTER.ClusterError, match=r"slurmctld ended.*\n.*no luck today"), broken:
        pass
    assert not broken.folder.exists()
