"""Whether the nodes of a cluster can see a folder of this machine, as far as one can tell here."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from mlpsubmit.jobs.slurm.nodes import nodes_of

__all__ = ["mounted", "unusable"]

#: File systems that lie in the memory of one machine.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})

#: Folders that every machine has for itself, unless a shared file system is mounted there.
_OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))

_SHARED = re.compile(
    r"(nfs|lustre|gpfs|beegfs|ceph|cifs|smb|fuse|9p|virtiofs|panfs|orangefs|wekafs|afs).*"
)


def unusable(folder: Path, partition: str | None) -> str | None:
    """Return why runs cannot be kept in a folder; None where that is not certain.

    The nodes of the partition must see it. A folder on a disk of this machine may be exported to
    them, so that it is not refused: ``doctor`` finds out by a job.

    Args:
        partition: one or several with commas between; None for the cluster's default.
    """
    if found := re.search(r"[%\\]", str(folder.absolute())):
        return (
            f"{folder}: has a {found[0]} in it, which SLURM takes for something else in the names "
            "of logs; give another folder with --runs-dir"
        )
    place = folder.resolve()
    kind, point = mounted(place, Path("/proc/self/mounts").read_text())
    own = next((own for own in _OWN_FOLDERS if own in place.parents), None)
    if kind in _IN_MEMORY:
        what = f"lies in this machine's memory ({kind})"
    elif own and own not in point.parents and not _SHARED.fullmatch(kind):
        what = f"lies in {own}, which every machine has for itself"
    else:
        return None
    hosts = {node.host for node in nodes_of(partition)}
    others = sorted(hosts - {socket.gethostname().partition(".")[0]})
    if not others:
        return None
    return (
        f"{folder}: {what}, where the nodes ({', '.join(others[:3])}{', ...' * (len(others) > 3)}) "
        "cannot see it; give a folder that all of them share with --runs-dir or $MLPSUBMIT_RUNS "
        "(mlpsubmit doctor tries it out)"
    )


def mounted(place: Path, mounts: str) -> tuple[str, Path]:
    """Return the type of the file system that a path lies on, and where that is mounted."""
    found = ("", Path("/"))
    for line in mounts.splitlines():
        _, target, kind, *_ = line.split(" ")
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), target))
        if (point == place or point in place.parents) and len(point.parts) >= len(found[1].parts):
            found = (kind, point)
    return found
