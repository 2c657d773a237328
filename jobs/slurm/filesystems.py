"""Checks, from this machine alone, whether a cluster's nodes can see a folder."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from mlpsubmit.jobs.slurm.nodes import Node

__all__ = ["mount_of", "unusable"]

#: File systems in the RAM of one machine.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})

#: Folders local to every machine, unless a shared file system is mounted there.
_LOCAL_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))

_SHARED = re.compile(
    r"(nfs|lustre|gpfs|beegfs|ceph|cifs|smb|fuse|9p|virtiofs|panfs|orangefs|wekafs|afs).*"
)


def unusable(folder: Path, nodes: Sequence[Node]) -> str | None:
    """Return why runs cannot be kept in a folder; None if that is not certain.

    A folder on a local disk of this machine may be exported to the nodes, so it is accepted here;
    ``doctor`` checks it with a job.

    Args:
        nodes: which must see it.
    """
    if found := re.search(r"[%\\]", str(folder.absolute())):
        return (
            f"{folder}: contains {found[0]}, which has a meaning for SLURM in the names of logs; "
            "give another folder with --runs-dir"
        )
    path = folder.resolve()
    fstype, mountpoint = mount_of(path)
    local = next((local for local in _LOCAL_FOLDERS if local in path.parents), None)
    if fstype in _IN_MEMORY:
        what = f"is in this machine's memory ({fstype})"
    elif local and local not in mountpoint.parents and not _SHARED.fullmatch(fstype):
        what = f"is in {local}, which is local to each machine"
    else:
        return None
    hosts = {node.host for node in nodes}
    others = sorted(hosts - {socket.gethostname().partition(".")[0]})
    if not others:
        return None
    return (
        f"{folder}: {what}; the nodes ({', '.join(others[:3])}{', ...' * (len(others) > 3)}) "
        "cannot see it; give a folder that all of them share with --runs-dir or $MLPSUBMIT_RUNS "
        "(mlpsubmit doctor checks it)"
    )


def mount_of(path: Path) -> tuple[str, Path]:
    """Return the type and the mount point of the file system that a path is on."""
    mounts = [(mount.fstype, Path(mount.mountpoint)) for mount in psutil.disk_partitions(all=True)]
    above = [mount for mount in mounts if path.is_relative_to(mount[1])]
    # Of two at the same point, the later hides the earlier.
    return max(reversed(above), key=lambda mount: len(mount[1].parts), default=("", Path("/")))
