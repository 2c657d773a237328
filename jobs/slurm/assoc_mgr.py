"""What ``scontrol show assoc_mgr`` prints: limits on associations and QOS, with their use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["AssocManager", "Record", "limit_and_use", "parse", "resources"]

#: A limit, or N without one, and its use.
_USED = re.compile(r"(\d+|N)\((\d+)(?:\.\d+)?\)")


@dataclass
class Record:
    """One association or QOS.

    Attributes:
        name: of the QOS, or the account.
        user: of an association; empty for that of an account itself.
        partition: that the association is for; empty for all.
        fields: what is printed after each name.
        users, accounts: of a QOS, the fields by user and by account. Older versions print a user's
            number in the place of the name.
    """

    name: str
    user: str = ""
    partition: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    users: dict[str, dict[str, str]] = field(default_factory=dict)
    accounts: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def parent(self) -> str:
        """The account above that of an association; empty for none."""
        return _bare(self.fields.get("ParentAccount", ""))


@dataclass
class AssocManager:
    """All that was printed."""

    default_account: str = ""
    associations: list[Record] = field(default_factory=list)
    qos: dict[str, Record] = field(default_factory=dict)

    def account_of(self, user: str) -> str:
        """Return the account of a user's jobs that name none; empty if it is not shown."""
        own = [one for one in self.associations if one.user == user]
        default = [one.name for one in own if one.fields.get("DefAssoc") == "Yes"]
        return next(iter(default), self.default_account)

    def association(self, user: str, account: str, partition: str) -> list[Record]:
        """Return the association that jobs of a user have, and those above it up to the root.

        One for the partition is preferred to one for all.
        """
        own = [one for one in self.associations if (one.user, one.name) == (user, account)]
        own = [one for one in own if one.partition in (partition, "")]
        found = sorted(own, key=lambda one: one.partition != partition)[:1]
        above: str = account
        while found and above:
            accounts = [one for one in self.associations if not one.user and one.name == above]
            found += accounts[:1]
            above = accounts[0].parent if accounts else ""
            if len(found) > len(self.associations):  # a circle, in a text that is none of SLURM's
                break
        return found


def parse(text: str) -> AssocManager:
    """Return what SLURM has printed; lines that are not understood are left out."""
    manager = AssocManager()
    fields: dict[str, str] = {}
    record, members = Record(""), dict[str, dict[str, str]]()
    for line in text.splitlines():
        found = dict(re.findall(r"([A-Za-z][\w/]*)=(\S*)", line))
        word = line.strip()
        if line.startswith("UserName="):
            manager.default_account = found.get("DefAccount", "")
        elif line.startswith("ClusterName="):
            place = found.get("Account", ""), _bare(found.get("UserName", ""))
            record = Record(*place, found.get("Partition", ""))
            manager.associations.append(record)
            fields = record.fields
        elif line.startswith("QOS="):
            record = Record(_bare(found["QOS"]))
            manager.qos[record.name] = record
            fields = record.fields
        elif word in ("Account Limits", "User Limits"):
            members = record.users if word.startswith("User") else record.accounts
        elif line.startswith(" ") and word and "=" not in word:
            fields = members[_bare(word)] = {}
        else:
            fields.update(found)
    return manager


def _bare(name: str) -> str:
    """Return a name without the number that follows it in parentheses."""
    return re.sub(r"\(\d+\)$", "", name)


def limit_and_use(text: str) -> tuple[int | None, int]:
    """Return a limit, None without one, and its use, as ``6(3)``."""
    found = _USED.fullmatch(text)
    if found is None:
        return (int(text) if text.isdecimal() else None), 0
    return (None if found[1] == "N" else int(found[1])), int(found[2])


def resources(text: str) -> dict[str, int]:
    """Return limits on resources, such as ``cpu=4(2),gres/gpu=N(0),mem=64G``; memory in MiB."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, text = part.partition("=")
        number = re.match(r"(\d+(?:\.\d+)?)([KMGTP]?)", text)
        if number:
            power = "KMGTP".find(number[2] or "M") - 1 if name == "mem" else 0
            found[name] = int(float(number[1]) * 1024**power)
    return found
