"""Limits of a cluster's accounting, as versions of SLURM print them, and what they allow."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlpsubmit.jobs.executors.slurm import SlurmExecutor
from mlpsubmit.jobs.slurm import doctor, limits
from mlpsubmit.jobs.slurm.assoc_mgr import limit_and_use, parse, resources
from mlpsubmit.jobs.slurm.limits import Limit, Limits, NoRoom, read_limits
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

ENFORCED = {"AccountingStorageEnforce": "associations,limits,qos"}

#: SLURM 22.05, without the lines that nothing here reads.
ASSOC_MGR = """\
Current Association Manager state

User Records

UserName=ann(5) DefAccount=limited DefWckey= AdminLevel=None

Association Records

ClusterName=mlp Account=root UserName= Partition= Priority=0 ID=1
    SharesRaw/Norm/Level/Factor=1/18446744073709551616.00/1/0.00
    ParentAccount= Lft=1 DefAssoc=No
    GrpJobs=N(0) GrpJobsAccrue=N(0)
    GrpSubmitJobs=N(0) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),energy=N(0),node=N(0),gres/gpu=N(0)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=
    MaxTRESPJ=
ClusterName=mlp Account=group UserName= Partition= Priority=0 ID=5
    ParentAccount=root(1) Lft=2 DefAssoc=No
    GrpJobs=40(7) GrpJobsAccrue=N(0)
    GrpSubmitJobs=50(48) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),gres/gpu=6(2)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=
    MaxTRESPJ=
ClusterName=mlp Account=limited UserName= Partition= Priority=0 ID=6
    ParentAccount=group(5) Lft=3 DefAssoc=No
    GrpJobs=N(3) GrpJobsAccrue=N(0)
    GrpSubmitJobs=N(40) GrpWall=N(0.00)
    MaxJobs=3(3) MaxJobsAccrue= MaxSubmitJobs=6(40) MaxWallPJ=
    MaxTRESPJ=
ClusterName=mlp Account=limited UserName=ann(5) Partition=gpu Priority=0 ID=9
    ParentAccount= Lft=4 DefAssoc=No
    MaxJobs=3(0) MaxJobsAccrue= MaxSubmitJobs=8(1) MaxWallPJ=
    MaxTRESPJ=
ClusterName=mlp Account=limited UserName=ann(5) Partition= Priority=0 ID=7
    ParentAccount= Lft=6 DefAssoc=Yes
    MaxJobs=3(2) MaxJobsAccrue= MaxSubmitJobs=6(5) MaxWallPJ=
    MaxTRESPJ=
ClusterName=mlp Account=lab UserName=ann(5) Partition= Priority=0 ID=8
    ParentAccount= Lft=11 DefAssoc=No
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=120
    MaxTRESPJ=cpu=4,mem=8000,gres/gpu=1
    MaxTRESPN=

QOS Records

QOS=normal(1)
    UsageRaw=0.000000
    GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxWallPJ=
    Account Limits
        No Accounts
    User Limits
        No Users
QOS=small(2)
    GrpJobs=N(4) GrpJobsAccrue=N(0) GrpSubmitJobs=90(20) GrpWall=N(0.00)
    MaxWallPJ=60
    MaxTRESPJ=
    Account Limits
      limited
        MaxJobsPA=N(1) MaxJobsAccruePA=N(0) MaxSubmitJobsPA=30(29)
        MaxTRESPA=cpu=N(1)
    User Limits
      ann(5)
        MaxJobsPU=2(1) MaxJobsAccruePU=N(0) MaxSubmitJobsPU=10(2)
        MaxTRESPU=cpu=20(1),gres/gpu=N(0)
QOS=unused(3)
    GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxWallPJ=
    Account Limits
        No Accounts
    User Limits
        No Users
"""

#: What sacctmgr shows: the default QOS of associations; the limits of each QOS.
ASSOCIATIONS = "limited|gpu|\nlimited||normal\nlab||unused\n"
QOS = """\
normal|||||
small|OverPartQOS|2|10|30|cpu=20
unused|DenyOnLimit||4||
"""

PARTITIONS = """\
PartitionName=main AllowQos=ALL Default=YES QoS=N/A MaxTime=1-00:00:00
PartitionName=gpu AllowQos=ALL Default=NO QoS=N/A MaxTime=1-00:00:00
PartitionName=quick AllowQos=ALL Default=NO QoS=unused MaxTime=1-00:00:00
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put commands on the PATH that print what a cluster shows to ann; None: it does not answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(limits, "_user", lambda: "ann")
    for variable in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS"):
        monkeypatch.delenv(variable, raising=False)

    def script(name: str, **texts: str | None) -> None:
        cases = []
        for word, text in texts.items():
            (folder / word).write_text(text or "")
            cases.append(f"*{word}*) {'exit 1' if text is None else f'cat {folder / word}'};;")
        file = folder / name
        file.write_text(f'#!/bin/sh\ncase "$*" in {" ".join(cases)} esac\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def shows(
        assoc_mgr: str | None = ASSOC_MGR,
        partition: str | None = PARTITIONS,
        assoc: str | None = ASSOCIATIONS,
        qos: str | None = QOS,
    ) -> None:
        script("scontrol", assoc_mgr=assoc_mgr, partition=partition)
        script("sacctmgr", assoc=assoc, qos=qos)
        script("sbatch")

    shows()
    return shows


def texts(found: Limits) -> list[str]:
    """Return the limits on submitted jobs, with their use."""
    return [f"{one} {one.used}" for one in found.submitted]


def template(**keys: object) -> Template:
    return Template(**{"gpus": 0, "cpus": 1, **keys})  # type: ignore[arg-type]


def test_the_association_of_the_account_and_those_above_it(slurm: Callable[..., None]) -> None:
    found = read_limits(template(), {**ENFORCED, "MaxJobCount": "10000"})
    assert texts(found) == [
        "MaxJobCount=10000 of the cluster 0",
        "MaxSubmitJobs=6 of ann in the account limited 5",
        "GrpSubmitJobs=50 of the account group 48",
    ]
    assert str(found.tightest) == "MaxSubmitJobs=6 of ann in the account limited"
    assert found.tightest is not None
    assert found.tightest.room == 1
    assert [str(one) for one in found.running] == [
        "MaxJobs=3 of ann in the account limited",
        "GrpJobs=40 of the account group",
    ]
    assert not found.errors


def test_an_association_for_the_partition_comes_first(slurm: Callable[..., None]) -> None:
    found = read_limits(template(partition="gpu", gpus=2), ENFORCED)
    assert texts(found)[0] == "MaxSubmitJobs=8 of ann in the account limited in the partition gpu 1"
    assert "GrpTRES=3 of the account group (gres/gpu=6)" in map(str, found.running)
    both = read_limits(template(partition="gpu,main"), ENFORCED)
    assert both.tightest is not None
    assert both.tightest.most == 6, "whatever partition the tasks would run in"


def test_limits_of_a_qos_replace_those_of_the_association(slurm: Callable[..., None]) -> None:
    found = read_limits(template(qos="small", time="2:00:00", cpus=6), ENFORCED)
    assert texts(found) == [
        "MaxSubmitJobsPU=10 of the QOS small 2",
        "MaxSubmitJobsPA=30 of the QOS small 29",
        "GrpSubmitJobs=90 of the QOS small 20",
    ]
    assert [str(one) for one in found.running] == [
        "MaxJobsPU=2 of the QOS small",
        "GrpJobs=40 of the account group",
        "MaxTRESPU=3 of the QOS small (cpu=20)",
    ]
    assert found.minutes == 60
    assert list(found.errors) == [
        "--time: got 02:00:00; MaxWall=01:00:00 of the QOS small; request less, since a task that "
        "does not finish is requeued, or give another --qos, --account or --partition"
    ]


def test_what_a_qos_allows_is_allowed_whatever_the_association_says(
    slurm: Callable[..., None],
) -> None:
    allowed = ASSOC_MGR.replace(
        "MaxWallPJ=60\n    MaxTRESPJ=", "MaxWallPJ=600\n    MaxTRESPJ=cpu=64"
    )
    slurm(assoc_mgr=allowed.replace("GrpSubmitJobs=90(20)", "GrpTRES=gres/gpu=9(0)"))
    asked = {"account": "lab", "cpus": 8, "time": "3:00:00", "gpus": 1}
    assert len(read_limits(template(**asked), ENFORCED).errors) == 2
    assert not read_limits(template(**asked, qos="small"), ENFORCED).errors
    slurm(assoc_mgr=allowed.replace("QOS=small", "QOS=normal"), assoc="lab||\n")
    assert read_limits(template(**asked), ENFORCED).minutes == 600, "normal is the default QOS"
    slurm(assoc_mgr=allowed.replace("QOS=small", "QOS=normal"), assoc=None)
    assert read_limits(template(**asked), ENFORCED).minutes == 120, "which QOS it is, is unknown"


def test_a_qos_that_nobody_uses_is_known_from_accounting(slurm: Callable[..., None]) -> None:
    """That of the partition, and the default one of the association."""
    for keys in ({"partition": "quick"}, {"account": "lab"}, {"account": "LAB"}):
        found = read_limits(template(**keys), ENFORCED)
        assert texts(found)[0] == "MaxSubmitJobsPU=4 of the QOS unused 0", keys
    one = read_limits(template(partition="quick", qos="small"), ENFORCED)
    assert texts(one)[0].startswith("MaxSubmitJobsPU=10 of the QOS small"), "OverPartQOS"


def test_a_task_that_is_larger_than_any_job_may_be(slurm: Callable[..., None]) -> None:
    asked = template(account="lab", cpus=8, gpus=2, mem="9000M", time="3:00:00")
    found = read_limits(asked, ENFORCED).errors
    assert [error.partition(";")[0] for error in found] == [
        *("--time: got 03:00:00", "--cpus: got 8", "--gpus: got 2", "--mem: got 9000M"),
    ]
    text = read_limits(template(account="lab", gpus=2), ENFORCED).errors[0]
    assert text.startswith("--gpus: got 2; MaxTRESPJ=gres/gpu=1 of ann in the account lab; request")


def test_limits_on_one_type_of_gpu(slurm: Callable[..., None]) -> None:
    slurm(assoc_mgr=ASSOC_MGR.replace("gres/gpu=1", "gres/gpu=8,gres/gpu:a100=1"))
    found = read_limits(template(account="lab", gpus="a100:2"), ENFORCED).errors
    assert [error.partition(" of ")[0] for error in found] == [
        "--gpus: got 2; MaxTRESPJ=gres/gpu:a100=1"
    ]
    assert not read_limits(template(account="lab", gpus="v100:2"), ENFORCED).errors


def test_variables_of_sbatch_choose_what_the_template_leaves_open(
    slurm: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_QOS", "small")
    assert texts(read_limits(template(), ENFORCED))[0].startswith("MaxSubmitJobsPU=10")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SBATCH_QOS", "normal")
    assert texts(read_limits(template(), ENFORCED)) == []


def test_no_answer_is_no_limit(slurm: Callable[..., None]) -> None:
    """sbatch decides then."""
    slurm(assoc_mgr=None)
    assert read_limits(template(), ENFORCED) == Limits()
    slurm(assoc_mgr="slurm_load_assoc_mgr_info error: Access/permission denied")
    assert read_limits(template(), ENFORCED) == Limits()
    slurm(partition=None, assoc=None, qos=None)
    assert texts(read_limits(template(), ENFORCED))[0].startswith("MaxSubmitJobs=6 of ann")
    assert read_limits(template(), {"AccountingStorageEnforce": "associations"}) == Limits()
    assert read_limits(template(), {}) == Limits()


#: SLURM 15.08: no accrual, one line fewer for each QOS, whose limit on a user has another name.
OLD = """\
Association Records

ClusterName=c Account=lab UserName= Partition= ID=2
    ParentAccount=root(1) Lft-Rgt=2-9 DefAssoc=No
    GrpJobs=N(0)
    GrpSubmitJobs=9(4) GrpWall=N(0.00)
    MaxJobs= MaxSubmitJobs= MaxWallPJ=
ClusterName=c Account=lab UserName=ann(5) Partition= ID=3
    ParentAccount= Lft-Rgt=3-4 DefAssoc=Yes
    GrpJobs=N(0)
    GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxJobs= MaxSubmitJobs=7(2) MaxWallPJ=

QOS Records

QOS=normal(1)
    UsageRaw=0.000000
    GrpJobs=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxJobs= MaxSubmitJobs= MaxWallPJ=
"""

#: SLURM 18.08 names the users of a QOS by number alone; 23.11 has a lineage and a comment.
NUMBERED = """\
QOS=normal(1)
    GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    PreemptMode=OFF
    Priority=0
    Account Limits
      lab
        MaxJobsPA=N(0) MaxJobsAccruePA=N(0) MaxSubmitJobsPA=5(4)
        MaxTRESPA=cpu=N(0)
    User Limits
      0
        MaxJobsPU=N(1) MaxJobsAccruePU=N(0) MaxSubmitJobsPU=50(1)
"""
NEWER = """\
ClusterName=c Account=lab UserName=ann(5) Partition= Priority=0 ID=3
    ParentAccount= Lineage=/lab/0-ann/ DefAssoc=Yes
    GrpJobs=N(12) GrpJobsAccrue=N(3)
    GrpSubmitJobs=N(41) GrpWall=N(500.00)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs=100(41) MaxWallPJ=
    Comment=(null)
"""


def test_other_versions(slurm: Callable[..., None]) -> None:
    old = parse(OLD)
    assert [one.name for one in old.association("ann", "lab", "main")] == ["lab", "lab"]
    slurm(assoc_mgr=OLD, assoc=None, qos=None)
    assert texts(read_limits(template(), ENFORCED)) == [
        "MaxSubmitJobs=7 of ann in the account lab 2",
        "GrpSubmitJobs=9 of the account lab 4",
    ]
    normal = parse(NUMBERED).qos["normal"]
    assert normal.users["0"]["MaxSubmitJobsPU"] == "50(1)"
    assert normal.accounts["lab"]["MaxSubmitJobsPA"] == "5(4)"
    newer = parse(NEWER).associations[0]
    assert limit_and_use(newer.fields["MaxSubmitJobs"]) == (100, 41)


def test_how_limits_are_written() -> None:
    assert limit_and_use("6(3)") == (6, 3)
    assert limit_and_use("N(3)") == (None, 3)
    assert limit_and_use("500(1.50)") == (500, 1)
    assert limit_and_use("120") == (120, 0)
    assert [limit_and_use(text) for text in ("", "?", "x(1)")] == [(None, 0)] * 3
    shown = resources("cpu=4(2),gres/gpu=N(0),mem=64G,gres/gpu:a100=8(8),node=,billing")
    assert shown == {"cpu": 4, "mem": 65536, "gres/gpu:a100": 8}
    assert resources("mem=8000(5)") == {"mem": 8000}


def test_a_circle_of_accounts_ends() -> None:
    text = (
        "ClusterName=c Account=a UserName=ann(5) Partition= ID=1\n"
        "ClusterName=c Account=a UserName= Partition= ID=2\n    ParentAccount=b(3)\n"
        "ClusterName=c Account=b UserName= Partition= ID=3\n    ParentAccount=a(2)\n"
    )
    assert len(parse(text).association("ann", "a", "")) < 9


def test_doctor_shows_them(slurm: Callable[..., None]) -> None:
    assert doctor._room(read_limits(template(), ENFORCED)) == (
        True,
        "MaxSubmitJobs=6 of ann in the account limited: 1 more job may be queued\n"
        "GrpSubmitJobs=50 of the account group: 2 more jobs may be queued\n"
        "MaxJobs=3 of ann in the account limited: 3 tasks may run at once\n"
        "GrpJobs=40 of the account group: 40 tasks may run at once",
    )
    assert doctor._room(read_limits(template(account="lab", gpus=2), ENFORCED))[0] is False
    assert doctor._room(Limits([Limit("MaxJobCount", "the cluster", 5, 5)]))[0] is False
    assert doctor._room(Limits()) == (True, "no limit on your jobs is known")


# ---- what is submitted ---------------------------------------------------------------------------


def executor(tasks: int | None, most: int, used: int, **keys: object) -> SlurmExecutor:
    """Return the executor of a cluster with one limit, and 30 tasks of work."""
    made = SlurmExecutor(tasks, template(**keys))
    found = Limits([Limit("MaxSubmitJobs", "ann in the account lab", most, used)])
    made.__dict__["_limits"] = found
    made.__dict__["_settings"] = {"ClusterName": "c"}
    return made


WORK = 30 * 2e13

LIMIT = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"


@pytest.mark.parametrize(
    ("retries", "later", "would"),
    [(1, 0, "resume what is missing"), (0, 3, "submit the other 3 tasks")],
)
def test_tasks_train_although_the_job_that_follows_them_is_rejected(
    slurm: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    retries: int,
    later: int,
    would: str,
) -> None:
    """Where other jobs have come between: that is said, and no task is cancelled."""
    reject = f"echo 'sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: {LIMIT}' >&2; exit 1"
    (tmp_path / "bin" / "sbatch").write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) exit;; *array.0*) echo 41;; *) {reject};; esac\n'
    )
    submission = Submission(tmp_path, "s.r", 0, 2, 1, retries=retries, later=later)
    submission.folder.mkdir(parents=True)
    jobs = list(executor(None, 9, 0).submit(submission))
    assert [(job.id, job.count) for job in jobs] == [("41", 2)]
    said = capsys.readouterr().out
    assert said.startswith(
        f"the job that would {would} when the tasks have ended is not queued: sbatch rejected "
        "it: AssocMaxSubmitJobLimit"
    )
    assert said.endswith("; the tasks are (job 41); then continue with: mlpsubmit resume\n")


def test_there_are_as_many_tasks_as_there_is_room_for(slurm: Callable[..., None]) -> None:
    for most, used, retries, tasks in (
        (99, 0, 0, 30),
        (30, 0, 0, 30),
        (30, 0, 1, 29),
        (9, 3, 0, 6),
    ):
        asked = executor(None, most, used).tasks(1, 1000, WORK, retries)
        assert asked == tasks, (most, used, retries)
    asking = executor(None, 9, 3)
    submission = Submission(Path("r"), "s.r", 0, asking.tasks(1, 1000, WORK), 1)
    assert asking.at_once(6, 0) == 6
    assert asking.notes(submission) == [
        "6 tasks instead of 30: MaxSubmitJobs=9 of ann in the account lab (3 in use); to have "
        "more, some of them later: --tasks 30"
    ]
    assert executor(None, 99, 0).notes(submission) == []
    assert asking.intent(submission)["limit"] is None


def test_tasks_that_the_user_wants_are_submitted_as_room_frees(slurm: Callable[..., None]) -> None:
    for most, used, retries, now in (
        *((99, 0, 0, 8), (8, 0, 0, 8), (8, 0, 1, 7), (9, 0, 1, 8), (10, 3, 0, 6), (3, 0, 0, 2)),
        *((8, 6, 0, 1), (3, 1, 1, 1)),
    ):
        asking = executor(8, most, used)
        assert asking.tasks(1, 1000, WORK, retries) == 8
        assert asking.at_once(8, retries) == now, (most, used, retries)
    submission = Submission(Path("r"), "s.r", 0, 6, 1, later=2)
    asking = executor(8, 10, 3)
    assert asking.notes(submission) == [
        "6 tasks now, and 2 more when these have ended, by a job of the run: MaxSubmitJobs=10 of "
        "ann in the account lab (3 in use)"
    ]
    intent = asking.intent(submission)
    assert (intent["retry"], intent["retries"]) == ("s.r.000.retry", 0)
    assert intent["limit"] == "MaxSubmitJobs=10 of ann in the account lab"
    shown = asking.describe(submission)
    assert shown[0].startswith("8 tasks, 6 side by side at most")
    assert " resume r --after 0 " in shown[-1]
    assert asking.own_files(submission) == own_files_of(replace(submission, later=0)) + 1


def own_files_of(submission: Submission) -> int:
    return executor(8, 99, 0).own_files(submission)


@pytest.mark.parametrize(
    ("tasks", "most", "used", "retries", "advice"),
    [
        (None, 6, 6, 0, " (6 in use); nothing was submitted; wait until other jobs have ended"),
        (None, 6, 5, 1, " (5 in use); nothing was submitted; leave out --retries, whose job takes"),
        (8, 6, 6, 0, " for 8 tasks, not even one by one (6 in use); nothing was submitted; wait"),
        (8, 6, 5, 0, " for 8 tasks, not even one by one (5 in use); nothing was submitted; give "
         "--tasks 1, which trains the same configs, or wait"),
        (8, 2, 0, 0, " for 8 tasks, not even one by one (0 in use); nothing was submitted; give "
         "--tasks 2, which trains the same configs, or wait"),
        (1, 6, 6, 0, " (6 in use); nothing was submitted; wait until other jobs have ended, or"),
    ],
)  # fmt: skip
def test_no_room_names_the_limit_and_what_to_try(
    slurm: Callable[..., None], tasks: int | None, most: int, used: int, retries: int, advice: str
) -> None:
    asking = executor(tasks, most, used)
    with pytest.raises(NoRoom) as caught:
        asking.at_once(asking.tasks(1, 1000, WORK, retries), retries)
    start = f"MaxSubmitJobs={most} of ann in the account lab leaves no room"
    assert str(caught.value).startswith(start + advice)


def test_limits_on_running_jobs_are_in_the_estimate(slurm: Callable[..., None]) -> None:
    asking = executor(8, 99, 0, max_parallel=5, time="1:00:00")
    submission = Submission(Path("r"), "s.r", 0, 8, 1)
    assert asking.max_concurrent(submission) == 5
    running = [Limit("MaxJobs", "ann in the account lab", 3, 3)]
    asking.__dict__["_limits"] = Limits([], running, minutes=5)
    assert asking.max_concurrent(submission) == 3
    cost = asking.describe(replace(submission, retries=1))
    assert cost[0] == (
        "8 tasks, 3 side by side at most (MaxJobs=3 of ann in the account lab); at most 8 "
        "core-hours until every task has met its time limit once"
    )
    assert "--time=00:05:00" in cost[-1], "the job that follows may be no longer, either"


GUIDE = Path(__file__).parents[3] / "docs" / "slurm.md"


def test_the_guide_has_these_very_words(slurm: Callable[..., None]) -> None:
    guide = GUIDE.read_text()
    asking = executor(None, 6, 3)
    fewer = Submission(Path("r"), "s.r", 0, asking.tasks(1, 1000, WORK), 1)
    assert f"`{asking.notes(fewer)[0]}`" in guide
    with pytest.raises(NoRoom) as caught:
        executor(1, 6, 6).at_once(1, retries=0)
    assert f"`{caught.value}`" in guide
