"""How many jobs a user may submit and run, and how large they may be, by the cluster's accounting.

Limits are known where the cluster enforces them, and shows them to this user. What is not known is
no limit here: sbatch decides then.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.assoc_mgr import AssocManager, Record, limit_and_use, parse, resources
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run_checked
from mlpsubmit.slurm_templates import Template, time_limit

__all__ = ["Limit", "Limits", "NoRoom", "read_limits"]

#: What sacctmgr shows of each QOS: limits that scontrol shows only once they are in use.
_QOS_FORMAT = "Name,Flags,MaxJobsPU,MaxSubmitPU,MaxSubmitPA,MaxTRESPU"

#: The option of each resource that may be limited.
_OPTIONS = {"cpu": "--cpus", "mem": "--mem", "gres/gpu": "--gpus"}


class NoRoom(UserError):
    """A limit leaves no room for what is to be submitted."""


@dataclass(frozen=True)
class Limit:
    """A limit on a number of jobs.

    Attributes:
        name: SLURM's name.
        of: what it is a limit of, for people.
        most: how many jobs it allows.
        used: how many there are.
    """

    name: str
    of: str
    most: int
    used: int = 0

    @property
    def room(self) -> int:
        """How many more jobs it allows."""
        return max(0, self.most - self.used)

    def __str__(self) -> str:
        return f"{self.name}={self.most} of {self.of}"

    @property
    def in_use(self) -> str:
        """How many jobs there are, for people."""
        return f"{self.used} in use"


@dataclass(frozen=True)
class Limits:
    """What applies to the jobs of a template.

    Attributes:
        submitted: limits on jobs in the queue, whether they run or wait; each task of an array is
            one.
        running: limits on jobs that run at once.
        minutes: the longest time limit that a job may have; None without a limit.
        errors: a message for each limit that a task exceeds however many there are.
    """

    submitted: Sequence[Limit] = ()
    running: Sequence[Limit] = ()
    minutes: int | None = None
    errors: Sequence[str] = ()

    @property
    def tightest(self) -> Limit | None:
        """The limit that leaves room for the fewest further jobs; None without limits."""
        return min(self.submitted, key=lambda limit: limit.room, default=None)

    @property
    def smallest(self) -> Limit | None:
        """The limit that allows the fewest jobs in all; None without limits."""
        return min(self.submitted, key=lambda limit: limit.most, default=None)

    @property
    def concurrent(self) -> Limit | None:
        """The limit that lets the fewest tasks run at once; None without limits."""
        return min(self.running, key=lambda limit: limit.most, default=None)


def read_limits(template: Template, settings: Mapping[str, str]) -> Limits:
    """Return the limits on the jobs of a template, as far as the cluster shows them.

    Args:
        settings: of the cluster, by :func:`mlpsubmit.jobs.slurm.commands.settings`.
    """
    most = settings.get("MaxJobCount", "")
    submitted = [Limit("MaxJobCount", "the cluster", int(most))] if most.isdecimal() else []
    enforced = re.split(r"[, ]+", settings.get("AccountingStorageEnforce", "").lower())
    if not {"limits", "safe", "all"}.intersection(enforced):
        return Limits(tuple(submitted))
    running: list[Limit] = []
    longest: list[int] = []
    errors: list[str] = []
    for sources in _sources(template):
        submitted += _submitted(sources)
        running += [*_running(sources), *_running_by_resources(sources, template)]
        longest += [minutes for _, minutes in _walls(sources)]
        errors += _errors(sources, template)
    distinct = tuple(dict.fromkeys(errors))
    return Limits(tuple(submitted), tuple(running), min(longest, default=None), distinct)


def _sources(template: Template) -> list[list[_Source]]:
    """Return for each partition of a template what has limits on its jobs, first what precedes."""
    manager, user = _association_manager(), _user()
    account = template.account or os.environ.get("SBATCH_ACCOUNT") or manager.account_of(user)
    account = account.lower()
    default, further = _qos_of_accounting(manager, user, account)
    of_partitions = _partition_qos(template.partition or os.environ.get("SBATCH_PARTITION", ""))
    found = []
    for partition, its_qos in of_partitions.items():
        association = partition if partition in default else ""
        usual = (default[association] or "normal") if association in default else ""
        qos = template.qos or os.environ.get("SBATCH_QOS") or usual
        both = [its_qos, qos]
        if "OverPartQOS" in further.get(qos, {}).get("Flags", ""):
            both.reverse()
        records = [manager.qos[name] for name in dict.fromkeys(both) if name in manager.qos]
        own = [_of_qos(one, user, account, further.get(one.name, {})) for one in records]
        chain = manager.association(user, account, partition)
        found.append([*own, *map(_of_association, chain)])
    return found


class _Source(NamedTuple):
    """What has limits: a QOS, or an association of a user or of an account.

    Attributes:
        of: what it is, for people.
        kind: ``qos``, ``user`` or ``account``.
        fields: its limits, by SLURM's names.
    """

    of: str
    kind: str
    fields: Mapping[str, str]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _association_manager() -> AssocManager:
    try:
        user = f"users={_user()}"
        return parse(run_checked("scontrol", "show", "assoc_mgr", user, "flags=users,assoc,qos"))
    except SlurmUnavailable:
        return AssocManager()


def _partition_qos(given: str) -> dict[str, str]:
    """Return by partition the name of its QOS, empty for none: of those given, or the default."""
    try:
        shown = run_checked("scontrol", "show", "partition", "--oneliner")
    except SlurmUnavailable:
        shown = ""
    found = {}
    for line in shown.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        name = fields.get("PartitionName", "")
        if name in given.split(",") if given else fields.get("Default") == "YES":
            qos = fields.get("QoS", "")
            found[name] = "" if qos == "N/A" else qos
    return found or {given: ""}


def _qos_of_accounting(
    manager: AssocManager, user: str, account: str
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the default QOS of a user's associations by partition, and limits by QOS.

    Only slurmdbd shows both. Where it does not answer, there are none.
    """
    if not manager.qos:
        return {}, {}
    names = ("Account", "Partition", "DefaultQOS")
    query = ("show", "assoc", f"user={user}", f"format={','.join(names)}")
    rows = _accounting(*query, columns=len(names))
    default = {row[1]: row[2] for row in rows if row[0] == account}
    rows = _accounting("show", "qos", f"format={_QOS_FORMAT}", columns=6)
    return default, {row[0]: dict(zip(_QOS_FORMAT.split(","), row, strict=True)) for row in rows}


def _accounting(*query: str, columns: int) -> list[list[str]]:
    try:
        shown = run_checked("sacctmgr", "--noheader", "--parsable2", "--readonly", *query)
    except SlurmUnavailable:
        return []
    rows = [line.split("|") for line in shown.splitlines()]
    return [row for row in rows if len(row) == columns]


def _of_association(record: Record) -> _Source:
    if not record.user:
        return _Source(f"the account {record.name}", "account", record.fields)
    where = f" in the partition {record.partition}" if record.partition else ""
    whose = f"{record.user} in the account {record.name}{where}"
    return _Source(whose, "user", record.fields)


def _of_qos(record: Record, user: str, account: str, further: Mapping[str, str]) -> _Source:
    """Return the limits of a QOS, those on a user and on an account among them.

    Args:
        further: what sacctmgr shows of it.
    """
    own = record.users.get(user) or record.users.get(str(os.getuid())) or {}
    shared = record.accounts.get(account, {})
    return _Source(
        f"the QOS {record.name}",
        "qos",
        {
            **record.fields,
            "MaxJobsPU": own.get("MaxJobsPU") or further.get("MaxJobsPU", ""),
            "MaxSubmitJobsPU": own.get("MaxSubmitJobsPU") or further.get("MaxSubmitPU", ""),
            "MaxSubmitJobsPA": shared.get("MaxSubmitJobsPA") or further.get("MaxSubmitPA", ""),
            "MaxTRESPU": own.get("MaxTRESPU") or further.get("MaxTRESPU", ""),
        },
    )


def _limits(sources: Sequence[_Source], of_qos: str, of_association: str) -> Iterator[Limit]:
    """Yield the limits of one kind: of the first QOS that has one, or else of all associations.

    Args:
        of_qos, of_association: its name there.
    """
    for source in sources:
        name = of_qos if source.kind == "qos" else of_association
        most, used = limit_and_use(source.fields.get(name, ""))
        if most is not None:
            yield Limit(name, source.of, most, used)
            if source.kind == "qos":
                return


def _submitted(sources: Sequence[_Source]) -> Iterator[Limit]:
    # What is inherited is shown with the association of the user, where alone it is in use.
    own = [one for one in sources if one.kind != "account"]
    yield from _limits(own, "MaxSubmitJobsPU", "MaxSubmitJobs")
    yield from _limits(own, "MaxSubmitJobsPA", "")
    yield from _limits(sources, "GrpSubmitJobs", "GrpSubmitJobs")


def _running(sources: Sequence[_Source]) -> Iterator[Limit]:
    own = [one for one in sources if one.kind != "account"]
    yield from _limits(own, "MaxJobsPU", "MaxJobs")
    yield from _limits(sources, "GrpJobs", "GrpJobs")


def _requested(template: Template) -> dict[str, int]:
    """Return the resources of a task by SLURM's names, as far as the template has them."""
    gpus = 0 if template.gpus_on_node else template.gpu_count
    found = {"cpu": template.cpus, "gres/gpu": gpus, "mem": template.megabytes}
    if template.gpu_type:
        found[f"gres/gpu:{template.gpu_type}"] = template.gpu_count
    return {name: count for name, count in found.items() if count}


def _limits_on(sources: Sequence[_Source], name: str, resource: str) -> Iterator[tuple[int, str]]:
    """Yield each limit on a resource, and what it is of, as :func:`_limits` does.

    Limits on one job and on one user are inherited by associations, so that the first one counts.
    """
    for source in sources:
        most = resources(source.fields.get(name, "")).get(resource)
        if most is not None:
            yield most, source.of
            if source.kind == "qos" or not name.startswith("Grp"):
                return


def _running_by_resources(sources: Sequence[_Source], template: Template) -> Iterator[Limit]:
    """Yield how many tasks can run at once within limits on the resources of all jobs together."""
    for name in ("MaxTRESPU", "GrpTRES"):
        for resource, each in _requested(template).items():
            for most, of in _limits_on(sources, name, resource):
                yield Limit(name, f"{of} ({resource}={most})", most // each)


def _errors(sources: Sequence[_Source], template: Template) -> Iterator[str]:
    """Yield a message for each limit on the size of a job that a task exceeds.

    Most clusters take such a job, and never start it.
    """
    for of, minutes in _walls(sources):
        if template.minutes is not None and template.minutes > minutes:
            limit = time_limit.normalised(minutes)
            yield (
                f"--time: got {template.time}; MaxWall={limit} of {of}; request less, since a task "
                "that does not finish is requeued, or give another --qos, --account or --partition"
            )
    for name in ("MaxTRESPJ", "MaxTRESPN", "MaxTRESPU", "GrpTRES"):
        for resource, got in _requested(template).items():
            beyond = [one for one in _limits_on(sources, name, resource) if got > one[0]]
            for most, of in beyond[:1]:
                option = _OPTIONS[resource.partition(":")[0]]
                unit = "M" if resource == "mem" else ""
                yield (
                    f"{option}: got {got}{unit}; {name}={resource}={most}{unit} of {of}; request "
                    "less, or give another --qos, --account or --partition"
                )


def _walls(sources: Sequence[_Source]) -> list[tuple[str, int]]:
    """Return the limit on the time of a job, in minutes, and what it is of: one, or none."""
    found = ((one.of, limit_and_use(one.fields.get("MaxWallPJ", ""))[0]) for one in sources)
    return [(of, minutes) for of, minutes in found if minutes is not None][:1]
