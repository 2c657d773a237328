"""Runs that the members of a Unix group can read and continue, as ``launch --group`` makes them.

The folders of the run say so: they have the group and setgid, and all who write below them follow
(:mod:`mlpsubmit.files`), on any node and whatever their umask. The run's folder and that of its
submissions are sticky: members add entries, and cannot replace those of others, which are what a
resume executes. The others hold numbers, which whoever continues the run replaces.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from mlpsubmit.errors import RunError, UserError, did_you_mean
from mlpsubmit.files import is_shared, set_modes
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import group_name

__all__ = ["closed_above", "group_id", "share_folders", "share_run"]

_OPEN = stat.S_ISGID | stat.S_IRWXG
_READ = stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP

#: By folder of a run, what its group may do there; in all others it reads.
_MODES = {
    "": _OPEN | stat.S_ISVTX,
    run_directory.SUBMISSIONS: _OPEN | stat.S_ISVTX,
    **dict.fromkeys(
        (
            run_directory.DATA,
            run_directory.RESULTS,
            run_directory.CHECKPOINTS,
            run_directory.STATES,
            run_directory.HEARTBEATS,
        ),
        _OPEN,
    ),
}


def group_id(name: str) -> int:
    """Return the id of a group of which this user is a member.

    Raises:
        UserError: there is no such group, or the user is no member.
    """
    own = {*os.getgroups(), os.getegid()}
    names = sorted(group_name(gid) for gid in own)
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        if not name.isdecimal():
            raise UserError(
                f"--group: got {name!r}; no such group{did_you_mean(name, names)}; yours are "
                f"{', '.join(names)}"
            ) from None
        gid = int(name)
    if gid not in own and os.geteuid() != 0:
        raise UserError(
            f"--group {name}: you are not a member of it; your groups are {', '.join(names)} (a "
            "new membership counts after the next login)"
        )
    return gid


def share_folders(folders: Iterable[Path], gid: int) -> None:
    """Share new folders that will hold runs: members can launch there, too.

    Raises:
        RunError: the file system has no such permissions.
    """
    for folder in folders:
        _share_folder(folder, gid, _OPEN)


def share_run(path: Path, gid: int) -> None:
    """Share a run with a group, with all that is in it.

    Args:
        path: its folder, which belongs to this user.

    Raises:
        RunError: the file system has no such permissions.
    """
    if path.stat().st_gid == gid and is_shared(path, writable=True):
        return
    for name, _, files in os.walk(path):
        folder = Path(name)
        relative = folder.relative_to(path).as_posix().removeprefix(".")
        _share_folder(folder, gid, _MODES.get(relative, _READ))
        for file in (folder / entry for entry in files):
            lock = file == path / run_directory.PLAN or file.suffix == run_directory.LOCK
            set_modes(file, stat.S_IRGRP | (stat.S_IWGRP if lock else 0), gid)


def _share_folder(folder: Path, gid: int, mode: int) -> None:
    """Give a folder a group and a mode, and check that it has them."""
    set_modes(folder, mode, gid)
    found = folder.stat()
    if found.st_gid != gid or found.st_mode & mode != mode:
        raise RunError(
            f"--group {group_name(gid)}: {folder} cannot be shared: it is another user's, or its "
            "file system does not keep the group, setgid and the sticky bit; choose another folder "
            "for runs with --runs-dir, or leave --group out"
        )


def closed_above(path: Path, gid: int) -> Path | None:
    """Return the first folder above a run through which its group cannot get; None without any."""
    for folder in reversed(Path(os.path.realpath(path)).parents):
        found = folder.stat()
        own = found.st_mode & stat.S_IXGRP and found.st_gid == gid
        if not own and not found.st_mode & stat.S_IXOTH:
            return folder
    return None
