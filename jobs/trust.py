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
from mlpsubmit.files import checked
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory

__all__ = [
    "NETWORKS",
    "RESUME",
    "Use",
    "checked_sweep",
    "content_hash",
    "owner",
    "sweep_hash",
    "untrusted",
]


def owner(path: Path) -> str | None:
    """Return the name of another user to whom a file belongs; None if it is this user's."""
    uid = path.stat().st_uid
    return None if uid == os.geteuid() else _user(uid)


def untrusted(path: Path) -> str | None:
    """Return why others could have written a file or the entries of a folder; None if none could.

    ``belongs to alice``, ``can be written by the group labs``.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "does not exist"
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to {_user(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by anyone"
    if status.st_mode & stat.S_IWGRP and not _own_group(status.st_gid):
        return f"can be written by the group {_group(status.st_gid)}"
    return None


@dataclass(frozen=True)
class Use:
    """Why the functions of a run are executed, for messages.

    Attributes:
        executes: the subject and verb, and what is executed.
        instead: what to do about a run of another user, whose name takes the place of ``{}``.
        trusting: how to execute them nevertheless.
        writes: whether it writes to the run.
    """

    executes: str
    instead: str
    trusting: str
    writes: bool


RESUME = Use(
    "resuming it executes the functions and commands in it",
    "let {} resume it, or launch its spec with another --runs-dir",
    "--trust",
    True,
)
NETWORKS = Use(
    "run.model and run.measure execute the functions in it",
    "let {} call them, or launch its spec with another --runs-dir",
    "trust=True",
    False,
)


def sweep_hash(run: RunDirectory, *, trust: bool = False, use: Use = RESUME) -> str:
    """Return the hash of a run's sweep.pkl, for the command lines of the tasks that execute it.

    Args:
        trust: whether the user trusts everybody who could have written to the run.

    Raises:
        RunError: if others could have written what a resume of the run executes, or it cannot be
            read.
        DamageError: it is damaged or lost.
    """
    if not trust and (found := next(_untrusted(run), None)):
        raise RunError(_refusal(run, *found, use))
    try:
        return run.verify_pickle()  # its checksum is the hash of the content
    except DamageError as error:
        raise DamageError(
            f"{error}; launch its spec again: if it is unchanged, this run goes on"
        ) from error
    except OSError as error:
        raise RunError(_unreadable(run, run.pickle, error, use)) from error


def checked_sweep(folder: Path, expected: str | None) -> bytes:
    """Return the content of a sweep.pkl that may be executed.

    Args:
        folder: the folder that contains it.
        expected: its hash at the submission; without one, nobody else may have written it.

    Raises:
        DamageError: if it is damaged.
        RunError: if it is another one, or others could have written it.
    """
    file = folder / run_directory.SWEEP_PICKLE
    content = checked(file)
    if expected is None:
        for path in (folder, file):
            if why := untrusted(path):
                raise RunError(f"{path}: {why}; the functions in it are not executed")
    elif content_hash(content) != expected:
        raise RunError(
            f"{file}: is not the one that was submitted (its hash is {content_hash(content)}, the "
            f"submission's {expected}); the functions in it are not executed; restore the file and "
            "resume the run, or launch its spec again with --fresh"
        )
    return content


def content_hash(content: bytes) -> str:
    """Return the hash of a pickled sweep as command lines carry it: its checksum in sweep.pkl."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _untrusted(run: RunDirectory) -> Iterator[tuple[Path, str]]:
    """Yield what a resume executes that others could have written, and why they could.

    Not the folders above: who can rename entries there can put another run in this one's place,
    but what they have written belongs to them.
    """
    path = Path(os.path.realpath(run.path))
    submissions = [RunDirectory(path).submission(number) for number in run.submissions()]
    names = (run_directory.SWEEP_JSON, run_directory.SWEEP_PICKLE, run_directory.SUBMISSIONS)
    intents = [folder / run_directory.INTENT for folder in submissions]
    for entry in (path, *(path / name for name in names), *submissions, *intents):
        if os.path.lexists(entry) and (why := untrusted(entry)):
            yield entry, why


def _refusal(run: RunDirectory, path: Path, why: str, use: Use) -> str:
    if (other := owner(run.path)) is not None:
        writing = f" and may write to {run.path}" if use.writes else ""
        return (
            f"run {run.id} belongs to {other}: {use.executes}; {use.instead.format(other)}; "
            f"or, if you trust {other}{writing}: {use.trusting}"
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


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
