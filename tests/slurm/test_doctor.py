"""What ``mlpsubmit doctor`` says of a cluster: of captured answers, and of real clusters."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit.errors import UserError
from mlpsubmit.files import read_json
from mlpsubmit.jobs.slurm import commands
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.doctor import cluster_checks, expected_start, partitions
from mlpsubmit.jobs.slurm.probe import check_report, main, missing_report
from mlpsubmit.jobs.slurm.queue import JobState
from mlpsubmit.native.compiler import cache_folder
from mlpsubmit.native.cpu import cpu_name
from mlpsubmit.slurm_templates import SlurmRequest, Template

# The fixtures `cluster` and `bare_cluster` come from conftest.py.
#: As ``sinfo`` of several SLURM versions writes it.
SINFO = """\
main*|up|1-00:00:00|2|8|8000|gpu:2|OFF|idle|fast
main*|up|1-00:00:00|1|8|8000|gpu:2|OFF|drained|fast
main*|up|1-00:00:00|1|64|515000|gpu:a100:4(S:0-1),gpu:v100:1,nvme:1|OFF|mixed|a100,ib
preempt|up|infinite|1|1|4000|(null)|REQUEUE|idle*|(null)
odd|inact|30:00|12|96|1000000|gpu:h100:no_consume:8(IDX:0-7),mps:800|CANCEL|alloc|(null)
plain|up|30:00|1|4|4000|gpu|n/a|idle|(null)
empty|up|infinite|0|0|0|(null)|REQUEUE|n/a|(null)
"""

LINES = [
    "main (the default), up, time limit 1-00:00:00: 3 nodes (1 drained, 2 idle) of 8 cores, 8000M, "
    "2 GPUs; features fast",
    "main (the default), up, time limit 1-00:00:00: 1 node (1 mixed) of 64 cores, 515000M, "
    "4 GPUs a100, 1 GPU v100; features a100,ib",
    "preempt, up, no time limit: 1 node (1 idle*) of 1 core, 4000M, no GPU; preemption REQUEUE",
    "odd, inact, time limit 30:00: 12 nodes (12 alloc) of 96 cores, 1000000M, 8 GPUs h100; "
    "preemption CANCEL",
    "plain, up, time limit 30:00: 1 node (1 idle) of 4 cores, 4000M, 1 GPU",
    "empty, up, no time limit: no nodes",
]

CONFIG = """\
Configuration data as of 2026-11-24T12:02:33
AccountingStorageType   = accounting_storage/none
CommunicationParameters =
KillWait                = 10 sec
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""


def test_partitions_have_a_line_for_each_kind_of_node() -> None:
    assert partitions(SINFO).splitlines() == LINES
    assert partitions("") == "there are none"


def test_rows_of_another_form_are_left_out() -> None:
    headline = "CLUSTER: here\nPARTITION AVAIL\n"
    assert partitions(headline + SINFO).splitlines() == LINES
    assert partitions(headline) == "there are none"


def test_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "run_checked", lambda *_: CONFIG)
    assert commands.settings() == {
        "AccountingStorageType": "accounting_storage/none",
        "CommunicationParameters": "",
        "KillWait": "10 sec",
        "SLURM_VERSION": "22.05.8",
    }


def test_when_a_task_could_start() -> None:
    told = (
        "sbatch: Job 2 to start at 2026-11-24T12:07:42 using 1 processors on nodes n1 in "
        "partition main\n"
    )
    assert expected_start(told) == "; it could start at 2026-11-24 12:07:42 on n1"
    assert expected_start("sbatch: something else") == ""


def test_what_a_node_says_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("abc")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    main(tmp_path)
    report = read_json(tmp_path / "report.json")
    place = tmp_path.parent
    well, text = check_report(report, "abc", tmp_path, 1.2, Template())
    assert well
    assert text == (
        f"n7 has mlpsubmit {report['version']} and shares {place} (1 s)\n"
        f"functions in C on n7: compiled for {cpu_name()}, in {cache_folder()}"
    )
    well, text = check_report(report, "another", tmp_path, 1.2, Template())
    assert well is False
    assert text == f"n7 does not see what this machine has just written to {place}"
    well, text = check_report(
        {**report, "version": "0.0.7", "path": "/old"}, "abc", tmp_path, 1.2, Template()
    )
    assert well is False
    assert text.startswith("n7 has mlpsubmit 0.0.7 at /old, this machine ")


@pytest.mark.parametrize(
    ("job", "well", "text"),
    [
        (None, False, "sbatch accepted a job, but squeue does not list it after 60 s"),
        (
            JobState("1", "PENDING", "Resources"),
            None,
            "the job is still queued after 60 s (Resources); to",
        ),
        (
            JobState("1", "PENDING"),
            None,
            "the job is still queued after 60 s (no reason given yet)",
        ),
        (
            JobState("1", "PENDING", "launch failed requeued held"),
            False,
            "SLURM cannot start a job: PENDING (launch failed requeued held)",
        ),
        (JobState("1", "RUNNING", "", "n1"), None, "the job runs on n1, but has not reported"),
        (JobState("1", "FAILED", "JobLaunchFailure", "n1"), False, "node n1 cannot see /"),
        (
            JobState("1", "NODE_FAIL", "", "n1"),
            False,
            "the job reported no result: NODE_FAIL on n1",
        ),
    ],
)
def test_what_is_known_of_a_job_without_an_answer(
    tmp_path: Path, job: JobState | None, well: bool | None, text: str
) -> None:
    found, told = missing_report(job, tmp_path, 60)
    assert found is well
    assert told.startswith(text)


# ---- the real command, on real clusters --------------------------------------------------------


def doctor(environment: Mapping[str, str], folder: Path, *options: str) -> tuple[int, str]:
    """Run the command; return its exit code and the lines about the cluster."""
    program = str(Path(sys.executable).parent / "mlpsubmit")
    command = [program, "doctor", "--runs-dir", str(folder), *options]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, timeout=90
    )
    assert done.stderr == ""
    _, first, rest = re.split(r"^(\S+ +slurm )", done.stdout, maxsplit=1, flags=re.M)
    return done.returncode, first + rest


def findings(folder: Path, seconds: float, template: str | None = None, **changes: Any) -> str:
    """Return what the cluster's checks say, as lines, without a process of their own."""
    checks = cluster_checks(SlurmRequest(template, changes), folder, seconds)
    lines = []
    for name, check in checks:
        try:
            lines.append("{} {}: {}\n".format(name, *check()))
        except (SlurmUnavailable, UserError) as error:
            lines.append(f"{name} False: {error}\n")
    return "".join(lines)


@pytest.fixture
def runs(cluster: Any, tmp_path: Path) -> Path:
    """A folder that only the node of the partition `blind` does not see."""
    folder: Path = cluster.folder / "hidden" / tmp_path.name
    folder.mkdir()
    return folder


@pytest.fixture
def occupied(cluster: Any) -> Iterator[str]:
    """The partition `blind`, whose only node has other things to do."""
    hog = ["sbatch", "--parsable", "--partition=blind", "--exclusive", "--output=/dev/null"]
    job = cluster.run(*hog, "--wrap=sleep 300").stdout.strip()
    until(lambda: "RUNNING" in cluster.run("squeue", "--noheader", "--format=%T").stdout)
    yield "blind"
    cluster.run("scancel", job)
    until(lambda: cluster.run("squeue", "--noheader").stdout == "")


def until(holds: Any) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


class TestOnACluster:
    def test_all_is_well(self, cluster: Any, runs: Path) -> None:
        code, out = doctor(cluster.environment, runs / "not" / "yet", "--mem", "1G", "--gpus", "0")
        assert code == 0, out
        assert re.search(r"^ok   slurm +[\d.]+, cluster \w+, its controller answers$", out, re.M)
        assert "ok   sacct        works\n" in out
        assert "ok   squeue       works; your jobs in it: 0\n" in out
        assert re.search(
            r"^-    limits +job arrays of \d+ tasks at most \(MaxArraySize\)", out, re.M
        )
        assert re.search(r"^-    partitions +main \(the default\), up, time limit 1-0", out, re.M)
        assert re.search(r"^ +preempt, up, .* of 4 cores, 4000M, no GPU; preemption RE", out, re.M)
        assert re.search(
            r"^ok   sbatch +accepts a task of the template default; it could", out, re.M
        )
        shared = rf"^ok   nodes +n\d has mlpsubmit [\d.]+ and shares {runs} \(\d+ s\)$"
        assert re.search(shared, out, re.M)
        assert re.search(r"^ +functions in C on n\d: compiled for ", out, re.M)
        assert list(runs.iterdir()) == []

    def test_a_gpu_that_torch_does_not_see(self, cluster: Any, runs: Path) -> None:
        code, out = doctor(cluster.environment, runs, "--mem", "1G", "--gpus", "1")
        assert code == 1
        assert re.search(r"^ok   nodes ", out, re.M)
        found = r"^BAD  gpu +n\d: this task should have a GPU, and torch sees none: torch "
        assert re.search(found, out, re.M)
        assert list(runs.iterdir()) == []

    def test_a_node_that_cannot_see_the_folder(self, cluster: Any, runs: Path) -> None:
        where = ("--mem", "1G", "--gpus", "0", "--partition", "blind")
        code, out = doctor(cluster.environment, runs, *where)
        assert code == 1
        assert f"BAD  nodes        node n4 cannot see {runs} (SLURM reports FAILED" in out
        assert "keep runs on a file system that all nodes share (--runs-dir)" in out
        assert list(runs.iterdir()) == []

    def test_a_partition_that_is_busy(self, cluster: Any, runs: Path, occupied: str) -> None:
        where = ("--mem", "1G", "--gpus", "0", "--partition", occupied, "--timeout", "2")
        code, out = doctor(cluster.environment, runs, *where)
        assert code == 0, out
        assert re.search(
            r"^-    nodes +the job is still queued after 2 s \((Resources|Priority)\)", out, re.M
        )
        assert "doctor" not in cluster.run("squeue", "--noheader", "--format=%j").stdout
        assert list(runs.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_doctor_leaves_nothing(
        self, cluster: Any, runs: Path, occupied: str, number: int
    ) -> None:
        program = (
            "import sys; from test_doctor import Path, findings\n"
            f"findings(Path({str(runs)!r}), 60, mem='1G', gpus=0, partition={occupied!r})"
        )
        command = [sys.executable, "-c", program]
        environment = {
            **os.environ,
            **cluster.environment,
            "PYTHONPATH": str(Path(__file__).parent),
        }
        waiting = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        names = ("squeue", "--noheader", "--format=%j")
        until(lambda: "doctor" in cluster.run(*names).stdout)
        waiting.send_signal(number)
        assert waiting.wait(15) != 0
        assert "doctor" not in cluster.run(*names).stdout
        assert list(runs.iterdir()) == []

    def test_a_node_that_cannot_import_mlpsubmit(
        self, cluster: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        monkeypatch.chdir(runs)  # Python looks there first
        broken = tmp_path / "mlpsubmit"
        broken.mkdir()
        (broken / "__init__.py").write_text("raise ImportError('libstrange.so is missing')")
        template = tmp_path / "broken.toml"
        template.write_text(f'gpus = 0\nmem = "1G"\nsetup = ["export PYTHONPATH={tmp_path}"]')
        told = findings(runs, 30, str(template))
        assert re.search(
            r"^nodes False: the job reported no result: FAILED.* on n\d; its log ends", told, re.M
        )
        assert "ImportError: libstrange.so is missing" in told
        assert list(runs.iterdir()) == []

    def test_a_job_that_sbatch_refuses(
        self, cluster: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        told = findings(runs, 30, partition="fast")
        for name in ("sbatch", "nodes"):
            refused = (
                rf"^{name} False: --partition fast .*: sbatch rejected it: .*; partitions are "
            )
            assert re.search(refused, told, re.M)
        assert list(runs.iterdir()) == []

    def test_what_fits_on_no_node(
        self, cluster: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A launch refuses it too; of a configuration that no node has sbatch is not believed."""
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        told = findings(runs, 30, gpus=9, cpus=99, mem="600M")
        assert re.search(
            r"^template False: default, from .*\n"
            r"--cpus: got 99; no node has more than \d+ cores in the default partition\n"
            r"--gpus: got 9; no node has more than 2 GPUs in the default partition; to train",
            told,
            re.M,
        )
        assert "sbatch None: cannot check beforehand whether it accepts a task of default" in told
        assert re.search(r"^nodes True: n\d has mlpsubmit", told, re.M), "a small job fits"

    def test_variables_of_sbatch_do_not_win_over_a_template(
        self, cluster: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
        monkeypatch.setenv("SBATCH_TIMELIMIT", "nonsense")
        told = findings(runs, 30, partition="main", gpus=0, mem="600M", time="10")
        assert re.search(r"^sbatch True: accepts a task .*; it could start at", told, re.M), told
        assert re.search(r"^nodes True: n\d has mlpsubmit", told, re.M), told
        # What the template leaves open they fill in, as for a launch.
        told = findings(runs, 30, gpus=0, mem="600M", time="10")
        for name in ("sbatch", "nodes"):
            assert re.search(rf"^{name} False: .*invalid partition specified: nowhere", told, re.M)

    def test_a_template_that_is_not_there(
        self, cluster: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        told = findings(runs, 30, "defualt")
        assert "template False: no template is called 'defualt' (did you mean 'default'?)" in told
        assert not re.search(r"^(sbatch|nodes) ", told, re.M)

    def test_a_controller_that_does_not_answer(self, cluster: Any, tmp_path: Path) -> None:
        conf = tmp_path / "slurm.conf"
        text = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=3", cluster.conf.read_text())
        conf.write_text(re.sub(r"MessageTimeout=\d+", "MessageTimeout=2", text))
        begun = time.monotonic()
        code, out = doctor({"SLURM_CONF": str(conf)}, tmp_path, "--mem", "1G")
        assert time.monotonic() - begun < 45
        assert code == 1
        assert re.search(r"^BAD  slurm +the controller does not answer, so nothing", out, re.M)
        assert "nodes" not in out

    def test_a_machine_without_a_cluster(self, cluster: Any, tmp_path: Path) -> None:
        code, out = doctor({}, tmp_path, "--partition", "main")
        assert code == 0
        assert re.fullmatch(
            r"-    slurm        \S+sbatch finds no cluster configuration: "
            r"runs stay on this machine\n",
            out,
        )


class TestWithoutAccounting:
    def test_it_is_only_worth_knowing(self, bare_cluster: Any, tmp_path: Path) -> None:
        where = ("--mem", "1G", "--timeout", "0")
        code, out = doctor(bare_cluster.environment, tmp_path, *where)
        assert code == 0, out
        assert re.search(
            r"^-    sacct +the reason why a job .*accounting storage is disabled", out, re.M
        )
        assert re.search(r"^-    nodes +no job was submitted .*\(--timeout 0\)", out, re.M)
