"""How the output of SLURM's commands is read, on captured output."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpsubmit.jobs.executors.slurm import SlurmExecutor
from mlpsubmit.jobs.slurm import commands, filesystems, sbatch
from mlpsubmit.jobs.slurm.arrays import cut_arrays, job_name
from mlpsubmit.jobs.slurm.commands import (
    SlurmUnavailable,
    configured,
    environment,
    settings,
)
from mlpsubmit.jobs.slurm.commands import (
    run as run_command,
)
from mlpsubmit.jobs.slurm.memory_kills import memory_kill
from mlpsubmit.jobs.slurm.nodes import nodes_of, resource_errors
from mlpsubmit.jobs.slurm.queue import JobState, Queue, array_indices, sacct_records
from mlpsubmit.jobs.slurm.rejections import Rejected, is_outcome_unknown, rejection
from mlpsubmit.jobs.slurm.sbatch import overriding_variables
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

Fake = Callable[[str, str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a shell script of a command's name before all others on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, text: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


# ---- arrays ------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(1, 1001), st.none() | st.integers(1, 300))
def test_arrays_hold_every_task_once_and_never_run_more_than_the_limit(
    tasks: int, largest: int, limit: int | None
) -> None:
    arrays = cut_arrays(Submission(Path("r"), "s.r", 0, tasks, threads=1), largest, limit)
    counts = [array.count for array in arrays]
    assert [array.first for array in arrays] == list(accumulate(counts, initial=0))[:-1]
    assert sum(array.count for array in arrays) == tasks
    assert len({array.name for array in arrays}) == len(arrays)
    assert all(1 <= array.count <= largest for array in arrays)
    assert len(arrays) == -(-tasks // largest)
    if limit is None:
        assert all(array.limit is None and array.after is None for array in arrays)
        return
    # At any time one array of each chain runs: their limits add up to no more than the limit.
    heads = [array for array in arrays if array.after is None]
    for array in arrays:
        if array.after is not None:
            assert arrays[array.after].first < array.first
            assert array.limit == arrays[array.after].limit
    assert all(array.limit and array.limit >= 1 for array in arrays)
    assert sum(array.limit or 0 for array in heads) == limit


def test_a_job_name_carries_the_run() -> None:
    submission = Submission(Path("r"), "staircase.20260101-000000-abcdef", 3, tasks=1, threads=1)
    assert job_name(submission) == "staircase.20260101-000000-abcdef.003"
    assert job_name(submission, "retry") == "staircase.20260101-000000-abcdef.003.retry"


# ---- the queue and the accounting records ------------------------------------------------------


@given(st.sets(st.integers(0, 3000), min_size=1), st.booleans())
def test_indices_are_read_back_from_what_slurm_writes(wanted: set[int], limited: bool) -> None:
    parts, rest = [], sorted(wanted)
    while rest:
        first = last = rest.pop(0)
        while rest and rest[0] == last + 1:
            last = rest.pop(0)
        parts.append(f"{first}-{last}" if last > first else f"{first}")
    text = f"[{','.join(parts)}{'%16' if limited else ''}]"
    assert set(array_indices(text)) == wanted


def test_indices_in_steps_and_of_no_array() -> None:
    assert list(array_indices("1-9:4")) == [1, 5, 9]
    assert list(array_indices("N/A")) == []
    assert list(array_indices("7")) == [7]


def test_the_queue_is_read_line_by_line(fake: Fake) -> None:
    fake(
        "squeue",
        "echo '12|[2-3%2]|5|PENDING||a|9|Resources|s.r.000'\n"
        "echo '12|1|5|RUNNING|n1|a|9|None|s.r.000'\n"
        "echo '12|0|5|OUT_OF_MEMORY|n2|a|9|OutOfMemory|s.r.000'\n"
        "echo '13|N/A|5|PENDING||a|9|Dependency|s.r.000.retry'\n"
        "echo '9|N/A|5|RUNNING|n1|a|9|None|a|b'\n"
        "echo '14|N/A|6|PENDING||a|9|Priority|s.r.000'\n"
        "echo 'something|else'",
    )
    queue = Queue.query(5)
    assert queue.error == ""
    assert queue.ids == {"s.r.000": ["12"], "s.r.000.retry": ["13"], "a|b": ["9"]}
    assert set(queue.jobs) == {"12_0", "12_1", "12_2", "12_3", "13", "9"}
    assert queue.ahead == {}
    assert queue.jobs["12_3"].pending
    assert queue.jobs["12_3"].alive
    assert queue.jobs["12_1"].alive
    assert not queue.jobs["12_1"].pending
    assert not queue.jobs["12_0"].alive
    assert str(queue.jobs["12_0"]) == "OUT_OF_MEMORY (OutOfMemory) on n2"
    assert str(queue.jobs["12_1"]) == "RUNNING on n1"


def test_a_failed_query_of_the_queue_has_an_error(fake: Fake) -> None:
    fake("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert Queue.query(5).error == (
        "squeue: slurm_load_jobs error: Unable to contact slurm controller"
    )
    assert Queue.query(5).jobs == {}


def test_accounting_records_have_reasons_and_memory(fake: Fake) -> None:
    fake(
        "sacct",
        "echo '12_0|OUT_OF_MEMORY|0:125||1000M|01:00:00|n2'\n"
        "echo '12_0.batch|OUT_OF_MEMORY|0:125|2104K|||n2'\n"
        "echo '12_0.0|OUT_OF_MEMORY|0:125|1.52G|||n2'\n"
        "echo '12_1|TIMEOUT|0:0||4Gn|00:01:00|n1'\n"
        "echo '12_2|CANCELLED by 1000|0:0||4Gn|00:01:00|n1'\n"
        "echo '12_[5-6]|PENDING|0:0||4Gn|00:01:00|None assigned'\n"
        "echo '12_3|FAILED|3:0||4Gn|00:01:00|n1'\n"
        "echo '12_4|FAILED|0:9||4Gn|00:01:00|n1'\n"
        "echo '12_7|FAILED|139:0||4Gn|00:01:00|n1'",
    )
    jobs = sacct_records(["12"], since=0, names=["x"])
    assert str(jobs["12_0"]) == (
        "OUT_OF_MEMORY (it used 1556M at least and had requested 1000M) on n2"
    )
    assert str(jobs["12_1"]) == "TIMEOUT (its time limit was 00:01:00) on n1"
    assert jobs["12_2"].state == "CANCELLED"
    assert str(jobs["12_3"]) == "FAILED (exit code 3:0) on n1"
    killed = "FAILED (exit code 0:9: SIGKILL (usually out of memory)) on n1"
    assert str(jobs["12_4"]) == killed
    assert "exit code 139:0: SIGSEGV" in str(jobs["12_7"])
    assert jobs["12_5"].pending
    assert jobs["12_6"].pending


@pytest.mark.parametrize("text", ["exit 1", "echo 'Slurm accounting storage is disabled' >&2", ""])
def test_a_cluster_without_accounting_has_no_records(fake: Fake, text: str) -> None:
    fake("sacct", text)
    assert sacct_records(["12"], since=0, names=["x"]) == {}


# ---- commands ----------------------------------------------------------------------------------


def test_a_command_that_is_missing_hangs_or_fails(fake: Fake) -> None:
    with pytest.raises(SlurmUnavailable, match="there is no nosuchcommand on the PATH"):
        run_command("nosuchcommand")
    fake("hangs", "sleep 60")
    with pytest.raises(SlurmUnavailable, match="hangs did not answer within 0 s"):
        run_command("hangs", seconds=0.2)
    fake("fails", "echo 'fails: error: no such luck' >&2; exit 3")
    with pytest.raises(SlurmUnavailable, match=r"^fails: no such luck$"):
        commands.run_checked("fails")
    fake("quiet", "exit 3")
    with pytest.raises(SlurmUnavailable, match=r"^quiet: exit code 3$"):
        commands.run_checked("quiet")


def test_an_allocation_leaves_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURMD_NODENAME", "SRUN_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    left = {k for k in environment() if k.startswith(("SLURM", "SRUN", "SBATCH"))}
    assert left == {"SLURM_CONF", "SLURM_BITSTR_LEN", "SBATCH_ACCOUNT"}


def test_a_setting_of_the_cluster(fake: Fake) -> None:
    fake("scontrol", "echo 'MaxArraySize            = 1001'; echo 'MaxJobCount = 5'")
    assert settings() == {"MaxArraySize": "1001", "MaxJobCount": "5"}


def test_packages_alone_make_no_cluster(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    fake("sbatch", "echo 'sbatch: fatal: Could not establish a configuration source' >&2; exit 1")
    assert not configured()
    fake("sbatch", "echo 'slurm-wlm 22.05.8'")
    assert configured()
    monkeypatch.setenv("SLURM_CONF", "/no/such/file")
    assert not configured(), "its commands would look for it for a minute"


# ---- rejections ----------------------------------------------------------------------------------


def failed(code: int, err: str) -> CompletedProcess[str]:
    return CompletedProcess("sbatch", code, "", err)


def template(**keys: object) -> Template:
    return Template.from_table({"gpus": 0, "mem": "1G", **keys}, Path("mine.toml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("invalid partition specified: gqu", "--partition gqu"),
        ("Batch job submission failed: Invalid qos specification", "--qos long"),
        (
            "Batch job submission failed: Invalid account or account/partition combination "
            "specified",
            "--account them or --partition gqu",
        ),
        ("Batch job submission failed: Invalid feature specification", "--constraint fast"),
        (
            "Batch job submission failed: Requested node configuration is not available",
            "--gpus 9 or --cpus 4 or --mem 8G or --constraint fast",
        ),
        (
            "Batch job submission failed: Requested time limit is invalid (missing or exceeds "
            "some limit)",
            "--time 01:00:00 or --partition gqu",
        ),
        ("unrecognized option '--foo=1'", "--sbatch foo=1"),
    ],
)
def test_a_rejection_names_the_option_and_quotes_sbatch(words: str, message: str) -> None:
    requested = template(
        partition="gqu",
        account="them",
        qos="long",
        constraint="fast",
        gpus=9,
        mem="8G",
        time="01:00:00",
        sbatch={"foo": "1"},
    )
    error = str(rejection(failed(1, f"sbatch: error: {words}\n"), requested))
    assert error.startswith(f"{message} (template mine): sbatch rejected it: {words}")
    assert "nothing was submitted" in error


@pytest.mark.parametrize("limit", ["AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit"])
def test_a_limit_on_queued_jobs_is_named(limit: str) -> None:
    policy = (
        "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
        "size and/or time limits)"
    )
    told = failed(1, f"sbatch: error: {limit}\nsbatch: error: {policy}\n")
    error = str(rejection(told, template(time="01:00:00")))
    assert error == (
        f"the job array: sbatch rejected it: {limit}; {policy}; nothing was submitted; each of its "
        f"tasks counts as a job under {limit}: try fewer --tasks, which train the same configs, or "
        "wait until other jobs have ended (the limits: scontrol show assoc_mgr flags=assoc,qos)"
    )


def test_a_flag_is_named_as_it_was_given() -> None:
    result = failed(255, "sbatch: unrecognized option '--foo'\n")
    error = str(rejection(result, template(sbatch={"foo": True, "exclude": "n3"})))
    assert error.startswith("--sbatch foo exclude=n3 (template mine): sbatch rejected it")


def test_a_rejection_without_a_reason() -> None:
    error = str(rejection(failed(1, ""), template()))
    assert "sbatch rejected it: exit code 1, and no reason" in error


@pytest.mark.parametrize(
    ("scancel", "left"),
    [
        ("exit 0", "1 job array submitted before it was cancelled; give another --time"),
        (
            "echo no controller >&2; exit 1",
            "1 job array submitted before it could not be cancelled (scancel: no controller): the "
            "tasks end when they start, or: scancel 41; give another --time",
        ),
    ],
)
def test_what_was_submitted_before_a_rejection_is_said(
    fake: Fake, tmp_path: Path, scancel: str, left: str
) -> None:
    """A limit on submitted jobs may be reached by the second array."""
    limit = "Batch job submission failed: Job violates accounting policy (time limit)"
    reject = f"echo 'sbatch: error: {limit}' >&2; exit 1"
    fake("sbatch", f'case "$*" in *--version*) exit;; *array.0*) echo 41;; *) {reject};; esac')
    fake("scontrol", "echo 'MaxArraySize = 2'")
    fake("scancel", scancel)
    folder = tmp_path / "submissions" / "000"
    folder.mkdir(parents=True)
    executor = SlurmExecutor(None, template(time="01:00:00"))
    with pytest.raises(Rejected) as caught:
        list(executor.submit(Submission(tmp_path, "s.r", 0, tasks=3, threads=1)))
    about = f"--time 01:00:00 (template mine): sbatch rejected it: {limit}; "
    assert str(caught.value) == f"{about}{left}, or change the template"


def test_a_limit_on_requests_is_waited_for(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """scancel asks again and again, longer than a query may take."""
    fake("scancel", "sleep 0.3")
    monkeypatch.setitem(run_command.__kwdefaults__, "seconds", 0.1)
    with pytest.raises(SlurmUnavailable):
        run_command("scancel", "41")
    sbatch.cancel(["41"])
    monkeypatch.setattr(sbatch, "CHANGE_SECONDS", 0.1)
    with pytest.raises(SlurmUnavailable, match="scancel did not answer within 0 s"):
        sbatch.cancel(["41"])


def test_an_unknown_outcome_is_no_rejection() -> None:
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    assert is_outcome_unknown(failed(1, lost))
    assert not is_outcome_unknown(failed(1, "sbatch: error: invalid partition specified: x"))


# ---- file systems ------------------------------------------------------------------------------

MOUNTS = [
    ("/", "rootfs"),
    ("/", "ext4"),
    ("/dev/shm", "tmpfs"),
    ("/home", "nfs4"),
    ("/tmp/shared", "lustre"),
    ("/mnt/with space", "xfs"),
]


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/var/x", "ext4", "/"),
        ("/dev/shm/runs", "tmpfs", "/dev/shm"),
        ("/home/me/runs", "nfs4", "/home"),
        ("/homeless", "ext4", "/"),
        ("/tmp/shared/runs", "lustre", "/tmp/shared"),
        ("/mnt/with space/runs", "xfs", "/mnt/with space"),
    ],
)
def test_where_a_path_is_mounted(
    path: str, kind: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in MOUNTS]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert filesystems.mount_of(Path(path)) == (kind, Path(point))


def test_a_folder_that_every_machine_has_for_itself(fake: Fake) -> None:
    fake(
        "sinfo",
        "echo 'far1.cluster.org|far|4|4000|infinite|(null)|NO|(null)'\n"
        'echo "$(hostname)|main*|8|8000|1-00:00:00|gpu:2|NO|(null)"\n'
        "echo 'far2|far|4|4000|infinite|(null)|NO|(null)'",
    )
    reason = filesystems.unusable(Path("/dev/shm/runs"), nodes_of("far")) or ""
    assert "/dev/shm/runs: is in this machine's memory (tmpfs); the nodes (far1, far2) " in (reason)
    assert "--runs-dir" in reason
    assert (
        filesystems.unusable(Path("/dev/shm/runs"), nodes_of(None)) is None
    )  # the default is this machine
    assert filesystems.unusable(Path("/usr/share/runs"), nodes_of("far")) is None
    assert "contains %" in str(filesystems.unusable(Path("/usr/share/50%"), nodes_of(None)))
    assert "is in /var/tmp, which is local to each machine" in str(
        filesystems.unusable(Path("/var/tmp/runs"), nodes_of("main,far"))
    )


# ---- nodes -------------------------------------------------------------------------------------

SINFO = """\
echo 'n1|gpu*|64|515000|2-00:00:00|gpu:a100:4(S:0-1),nvme:1|EXCLUSIVE|ib,fast'
echo 'n2|gpu*|16+|128000|2-00:00:00|gpu:v100:2|NO|(null)'
echo 'n3|long|8|32000|infinite|(null)|FORCE:4|'
echo 'n4|odd|8|32000|n/a|gpu|NO|(null)'
"""


def test_what_nodes_have(fake: Fake) -> None:
    fake("sinfo", SINFO)
    first, second = nodes_of(None)
    assert (first.host, first.cores, first.memory) == ("n1", 64, 515000)
    assert (first.gpus, first.minutes) == ((("a100", 4),), 2880)
    assert (first.features, second.features) == (("ib", "fast"), ())
    assert (second.cores, second.gpus) == (16, (("v100", 2),))
    (third,) = nodes_of("long")
    assert (third.gpus, third.minutes) == ((), None)
    (fourth,) = nodes_of("odd")
    assert (fourth.gpus, fourth.minutes) == ((("", 1),), None)
    assert [node.host for node in nodes_of("gpu,long")] == ["n1", "n2", "n3"]
    assert nodes_of("nowhere") == []


@pytest.mark.parametrize(
    ("keys", "errors"),
    [
        ({"gpus": 4, "cpus": 64, "mem": "500G", "time": "2-0"}, []),
        ({"gpus": "a100:4"}, []),
        ({"gpus": "a100:5"}, ["--gpus: got 5; no node has more than 4 a100 GPUs in the default"]),
        ({"gpus": "h100:1"}, ["--gpus: got 1; no node has more than 0 h100 GPUs in the default"]),
        ({"cpus": 65}, ["--cpus: got 65; no node has more than 64 cores in the default partition"]),
        ({"mem": "1T"}, ["--mem: got 1048576M; no node has more than 515000M in the default"]),
        (
            {"time": "2-0:01"},
            ["--time: got 2-00:01:00; the limit of the default partition is 2-00:0"],
        ),
        ({"partition": "long", "time": "UNLIMITED"}, []),
        ({"partition": "long", "gpus": 1}, ["--gpus: got 1; no node has more than 0 GPUs in part"]),
        ({"partition": "nowhere", "gpus": 99}, []),  # sbatch has the word for that
        ({"cpus": 65, "gpus": 5}, ["--cpus: got 65", "--gpus: got 5"]),
    ],
)
def test_what_fits_on_no_node(fake: Fake, keys: dict[str, object], errors: list[str]) -> None:
    fake("sinfo", SINFO)
    requested = template(**keys)
    found = resource_errors(requested, nodes_of(requested.partition))
    assert len(found) == len(errors)
    assert all(text.startswith(start) for text, start in zip(found, errors, strict=True))


def test_variables_that_would_win_over_a_script() -> None:
    script = "#!/bin/bash\n#SBATCH --partition=gpu\n#SBATCH --time=1\n#SBATCH --cpus-per-task=2\n"
    named = {"SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_CPUS_PER_TASK"}
    never = {"SBATCH_CLUSTERS", "SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_DEBUG"}
    assert overriding_variables(script) == named | never
    memory = {"SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"}
    assert overriding_variables("#SBATCH --mem=1G\n") == memory | never
    assert {"SBATCH_GPUS", "SBATCH_GRES"} < overriding_variables("#SBATCH --gpus-per-node=1\n")


def test_a_kill_for_memory_is_known_by_log_or_state() -> None:
    polled = (
        "slurmstepd-n1: error: StepId=1.0 exceeded memory limit (2147483648 > 1073741824), being"
    )
    assert memory_kill(None, ["x", polled]) == (
        "SLURM killed it for its memory: it used 2.00G, and its limit was 1.00G; resume with "
        "more: --mem"
    )
    kernel = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch."
    unknown = "the cluster has no accounting record of how much it used"
    assert unknown in (memory_kill(None, [kernel]) or "")
    known = JobState("7_0", "OUT_OF_MEMORY", memory="it used 900M at least and had requested 1G")
    assert "it used 900M at least and had requested 1G" in (memory_kill(known, [kernel]) or "")
    assert memory_kill(JobState("7_0", "FAILED"), ["Traceback"]) is None


def test_states_of_jobs() -> None:
    assert JobState("1", "COMPLETING").alive
    assert JobState("1", "REQUEUE_HOLD").pending
    assert not JobState("1", "NODE_FAIL").alive
