"""The files and folders that a sweep names, which a container has to show to its tasks.

Functions open what is written in them, in the modules that travel with them, in their arguments and
in environment variables: every string of a pickled sweep that is the path of something here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
from collections.abc import Iterator
from functools import partial

from mlpsubmit.jobs.as_launched import path_now
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.spec.load import unpickle_surroundings

__all__ = ["used_paths"]

#: Opcodes that push the object of a number in the unpickler's memo.
_GETS = frozenset({"BINGET", "LONG_BINGET"})


def used_paths(content: bytes, run: RunDirectory | None = None) -> tuple[str, ...]:
    """Return the existing paths that a pickled sweep names, and the folders of its launch.

    Args:
        content: that of a sweep.pkl, which may be executed.
        run: the run that continues, whose data function has read files before.
    """
    surroundings = unpickle_surroundings(content)
    found: set[str] = set()
    if run is not None:
        surroundings = surroundings.moved(partial(path_now, run))
        records = run.data_records().values()
        found.update(str(file["path"]) for record in records for file in record["files"])
    before, after = surroundings.path
    found.update((surroundings.folder, *filter(os.path.exists, (*before, *after))))
    for text in _strings(pickle.loads(content)[1]):
        with contextlib.suppress(ValueError):  # a null in it
            path = os.path.expandvars(os.path.expanduser(os.environ.get(text, text)))
            if path.startswith(".."):
                path = os.path.join(surroundings.folder, path)
            if path.startswith("/") and os.path.exists(path):
                found.add(os.path.abspath(path))
    return tuple(sorted(found))


def _strings(pickled: bytes) -> Iterator[str]:
    """Yield the strings in a pickle, and paths, which are pickled as their parts."""
    memo: list[str | None] = []
    parts: list[str] = []
    text: str | None = None
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "MEMOIZE":
            memo.append(text)
            continue
        gets = opcode.name in _GETS
        text = memo[int(str(argument))] if gets else None
        if "UNICODE" in opcode.name:
            text = str(argument)
        if text is not None:
            parts.append(text)
            yield text
            continue
        if len(parts) > 1 and parts[0] == "/":
            yield os.path.join(*parts)
        parts, text = [], None
