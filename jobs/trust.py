"""What may be executed: files that nobody but this user, and root, could have written.

A run directory holds functions (sweep.pkl), shell commands (the templates in intent.json), pickled
data and compiled code. Whoever resumes a run executes them.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpsubmit.errors import DamageError, RunError
from mlpsubmit.files import checked, checked_content, open_regular
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import group_name, owner, user_name
from mlpsubmit.jobs.store.run_directory import RunDirectory

__all__ = [
    "NETWORKS",
    "RESUME",
    "RETRAIN",
    "Use",
    "check_last_user",
    "checked_sweep",
    "submitted_hash",
    "sweep_hash",
    "trusted_content",
    "untrusted",
    "untrusted_status",
]


def untrusted(path: Path) -> str | None:
    """Return why others could have written a file or the entries of a folder; None if none could.

    ``belongs to alice``, ``can be written by the group labs``. In a sticky folder others add
    entries, which belong to them, and cannot replace this user's.
    """
    try:
        return untrusted_status(path.lstat())
    except FileNotFoundError:
        return "does not exist"


def untrusted_status(status: os.stat_result) -> str | None:
    """Return the same from the status of a file, which it has wherever it is."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to {user_name(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None
    if status.st_mode & stat.S_IWOTH:
        return "can be written by anyone"
    if status.st_mode & stat.S_IWGRP and not _own_group(status.st_gid):
        return f"can be written by the group {group_name(status.st_gid)}"
    return None


def trusted_content(path: Path) -> bytes:
    """Return the content of a file that nobody else could have written.

    It is read from the file that was looked at, whatever takes its place meanwhile.

    Raises:
        RunError: others could have.
        DamageError: its checksum is not that of the content.
    """
    with open_regular(path) as file:
        if why := untrusted(path.parent) or untrusted_status(os.fstat(file.fileno())):
            raise RunError(f"{path}: {why}; the functions in it are not executed")
        return checked_content(path, file.read())


@dataclass(frozen=True)
class Use:
    """Why the functions of a run are executed, for messages.

    Attributes:
        executes: the subject and verb, and what is executed.
        instead: what to do about a run of another user, whose name takes the place of ``{}``.
        trusting: how to execute them nevertheless.
        takes_over: whether the run is this user's from then on, to train and to cancel.
    """

    executes: str
    instead: str
    trusting: str
    takes_over: bool


RESUME = Use(
    "resuming it executes the functions and commands in it",
    "let {} resume it, or launch its spec with another --runs-dir",
    "--trust",
    True,
)
RETRAIN = Use(
    "training packs of it again executes the functions in it",
    "let {} verify it, or launch its spec with another --runs-dir",
    "--trust",
    False,
)
NETWORKS = Use(
    "run.model and run.measure execute the functions in it",
    "let {} call them, or launch its spec with another --runs-dir",
    "trust=True",
    False,
)


def sweep_hash(run: RunDirectory, *, trust: bool = False, use: Use = RESUME) -> str:
    """Return what the command lines of tasks carry of a run's sweep: see :func:`submitted_hash`.

    Args:
        trust: whether the user trusts everybody who could have written to the run.

    Raises:
        RunError: if others could have written what a resume of the run executes, or it cannot be
            read; or another user has resumed it last, and this would take it over.
        DamageError: it is damaged or lost.
    """
    if not trust and (found := next(_untrusted(run), None)):
        raise RunError(_refusal(run, *found, use))
    if use.takes_over and not trust:
        check_last_user(run)
    try:
        pickled = run.verify_pickle()  # its checksum is the hash of the content
    except DamageError as error:
        raise DamageError(
            f"{error}; launch its spec again: if it is unchanged, this run goes on"
        ) from error
    except OSError as error:
        raise RunError(_unreadable(run, run.pickle, error, use)) from error
    return _with_place(pickled, run.sweep["launched_in"]["run"])


def checked_sweep(folder: Path, expected: str | None, launched_as: str = "") -> bytes:
    """Return the content of a sweep.pkl that may be executed.

    Args:
        folder: the folder that contains it.
        expected: its hash at the submission; without one, nobody else may have written it.
        launched_as: the path of the run at its launch, as its sweep.json says.

    Raises:
        DamageError: if it is damaged.
        RunError: if it is another one, or others could have written it.
    """
    file = folder / run_directory.SWEEP_PICKLE
    if expected is None:
        return trusted_content(file)
    content = checked(file)
    if (found := submitted_hash(content, launched_as)) != expected:
        raise RunError(
            f"{file}: is not the one that was submitted (its hash is {found}, the submission's "
            f"{expected}); the functions in it are not executed; restore the file and resume the "
            "run, or launch its spec again with --fresh"
        )
    return content


def submitted_hash(content: bytes, launched_as: str) -> str:
    """Return the hash that command lines of tasks carry: of all that decides what they execute.

    Args:
        content: the pickled sweep.
        launched_as: the path of the run at its launch: where it has moved, so has the folder of
            the launch, in which modules are found.
    """
    return _with_place(_hash(content), launched_as)


def _with_place(pickled: str, launched_as: str) -> str:
    return _hash(f"{pickled} {launched_as}".encode(errors="surrogateescape"))


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def check_last_user(run: RunDirectory) -> None:
    """Check that it is this user who has launched or resumed a run last.

    Raises:
        RunError: another user has, and goes on unless this one takes the run over.
    """
    last = max(run.submissions(), default=None)
    if last is not None and (other := run.submitter(last)) is not None:
        raise RunError(
            f"run {run.id} was resumed last by {other}; let {other} resume it, or, if you take it "
            f"over again, with jobs of your own: {RESUME.trusting}"
        )


def _untrusted(run: RunDirectory) -> Iterator[tuple[Path, str]]:
    """Yield what a resume executes that others could have written, and why they could.

    Of submissions only this user's are: no template of another user is used. Not the folders above:
    who can rename entries there can put another run in this one's place, but what they have written
    belongs to them.
    """
    path = Path(os.path.realpath(run.path))
    names = (run_directory.SWEEP_JSON, run_directory.SWEEP_PICKLE, run_directory.SUBMISSIONS)
    entries = [path, *(path / name for name in names)]
    for number in run.submissions():
        folder = RunDirectory(path).submission(number)
        if owner(folder) is None:
            entries += [folder, folder / run_directory.INTENT]
    for entry in entries:
        if os.path.lexists(entry) and (why := untrusted(entry)):
            yield entry, why


def _refusal(run: RunDirectory, path: Path, why: str, use: Use) -> str:
    taking = " and take it over, with jobs of your own" if use.takes_over else ""
    if (other := owner(run.path)) is not None:
        return (
            f"run {run.id} belongs to {other}: {use.executes}; {use.instead.format(other)}; "
            f"or, if you trust {other}{taking}: {use.trusting}"
        )
    return (
        f"run {run.id}: {path} {why}, so others could have replaced the functions and commands in "
        f"the run, and {use.executes}; make it yours alone (chmod go-w {path}), or launch "
        f"its spec with another --runs-dir; or, if you trust them: {use.trusting}"
    )


def _unreadable(run: RunDirectory, file: Path, error: OSError, use: Use) -> str:
    other = owner(run.path)
    whose = "" if other is None else f" belongs to {other}"
    advice = (
        "restore it, or launch its spec with another --runs-dir"
        if other is None
        else use.instead.format(other)
    )
    return f"run {run.id}{whose}: {file} cannot be read ({error.strerror}); {advice}"


def _own_group(gid: int) -> bool:
    """Return whether a group is the private one of this user, as many systems create it."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    own = gid == user.pw_gid and group.gr_name == user.pw_name
    return own and set(group.gr_mem) <= {user.pw_name}
