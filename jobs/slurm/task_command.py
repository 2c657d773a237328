"""The command of a job: the module that it runs, in the container, Python and wrap of its tasks.

    srun ... KEEP WRAP apptainer exec --nv --bind FOLDER ... IMAGE PYTHON -u -c ... MODULE ARGUMENTS

The container program is found on the node, after the template's ``setup``. It mounts the user's
home and /tmp by itself; what else the module reads and writes is bound at its own path.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlpsubmit.jobs.command_line import module_command
from mlpsubmit.slurm_templates import Template
from mlpsubmit.spec.load import THIS_RELEASE

__all__ = [
    "KEEP",
    "bound",
    "container_lines",
    "entering",
    "program_errors",
    "python_of",
    "task_command",
]

#: SLURM signals every process of a task. What starts the worker must not end by that, as a shell
#: does, and so take the worker with it before it has saved; the worker has handlers of its own.
KEEP = """bash -c 'trap "" INT TERM USR2; exec "$@"' bash"""

#: Seconds that a Python has to name its release.
_RELEASE_SECONDS = 10.0

#: Folders whose content the image brings, or that are mounted anyway.
_SYSTEM = re.compile(
    r"/(bin|boot|dev|etc|lib(x?32|64)?|proc|run|sbin|sys"
    r"|usr/(bin|games|include|lib(x?32|64)?|libexec|local|sbin|share|src))(/.*)?",
    re.DOTALL,
)
_NOT_WHOLE = frozenset({"/", "/home", "/opt", "/root", "/tmp", "/usr", "/var", "/var/tmp"})


def task_command(template: Template, module: str, *arguments: object) -> str:
    """Return the shell command that runs a module as the tasks of a template run."""
    command = shlex.join(module_command(module, *arguments, python=python_of(template)))
    outer = (template.wrap, entering(template))
    words = [*filter(None, outer), command]
    return " ".join([KEEP, *words] if any(outer) else words)


def entering(template: Template) -> str:
    """Return the words of the shell that run a command in the template's container, if any."""
    if template.container is None:
        return ""
    gpus = ["--nv"] if template.gpu_count else []
    image = shlex.quote(template.container)
    return " ".join(('"$apptainer" exec', *gpus, '"${bind[@]}"', image))


def python_of(template: Template) -> str:
    """Return the Python of a template's tasks."""
    return template.python or ("python3" if template.container else sys.executable)


def container_lines(template: Template, paths: Iterable[str | Path]) -> Sequence[str]:
    """Return lines of the shell that prepare for the template's container, if it has one.

    They find the program, and what of the paths this node has: others could not be bound.

    Args:
        paths: what the command reads and writes.
    """
    if template.container is None:
        return ()
    missing = (
        f"the tasks run in the container {template.container}, and this node has neither apptainer "
        "nor singularity on the PATH; if a module has it, load that in the template's setup"
    )
    found = "type -P apptainer || type -P singularity"
    folders = " ".join(map(shlex.quote, bound(paths)))
    return (
        f"apptainer=$({found}) || {{ echo {shlex.quote(missing)}; exit 1; }}",
        "bind=()",
        f'for folder in {folders} "${{TMPDIR:-}}"; do',
        '    [ ! -d "$folder" ] || [ "$folder" = /tmp ] || bind+=(--bind "$folder")',
        "done",
    )


def bound(paths: Iterable[str | Path]) -> list[str]:
    """Return the folders to bind for some paths: as they are named, and where links lead.

    Not what is in another one of them, nor folders of the system, which the image has.
    """
    named = {"/" + os.path.abspath(path).lstrip("/") for path in paths}  # POSIX keeps a // in front
    folders = {_folder(path) for path in named | set(map(os.path.realpath, named))}
    wanted = sorted(path for path in folders if not _is_of_system(path))
    kept: list[str] = []
    for path in wanted:
        if not any(path.startswith(above.rstrip("/") + "/") for above in kept):
            kept.append(path)
    return kept


def _folder(path: str) -> str:
    return os.path.dirname(path) if os.path.isfile(path) else path


def _is_of_system(path: str) -> bool:
    return path in _NOT_WHOLE or _SYSTEM.fullmatch(path) is not None


def program_errors(template: Template, paths: Iterable[str | Path] = ()) -> list[str]:
    """Return what is wrong with the container and the Python of a template, as far as seen here.

    A file that is missing here although its folder is not is taken as missing on the nodes too,
    unless it is one of the system.

    Args:
        paths: what the tasks read and write.
    """
    errors = []
    image, python = template.container, template.python
    if image and _is_missing(image):
        errors.append(
            f"container: {image}: no such image; give its path, which nodes should see, or a URI "
            "such as docker://python:3.11"
        )
    if image:
        errors += [
            f"container: {path} cannot be bound, as the name has {letter!r}; rename it, or use a "
            "link without it"
            for path in bound(paths)
            for letter in ",:\\"
            if letter in path
        ]
    wrap = shlex.split(template.wrap)[0] if template.wrap else ""
    if _is_missing(wrap):
        errors.append(f"wrap: {wrap}: no such program")
    if python and not image and _is_missing(python):
        errors.append(f"python: {python}: no such file; give the Python of an environment")
    elif python and not image and (release := _release(python)) not in ("", THIS_RELEASE):
        errors.append(
            f"python: {python} is Python {release}, and this launch runs in {THIS_RELEASE}: the "
            "functions of a spec can be loaded by the same release only; launch with that Python, "
            "or give another"
        )
    return errors


def _is_missing(path: str) -> bool:
    """Return whether a file does not exist, and should be visible here if it did."""
    if not path.startswith("/") or os.path.exists(path):
        return False
    local = path.startswith("/opt/") or _is_of_system(path)
    return not local and os.path.isdir(os.path.dirname(path))


def _release(python: str) -> str:
    """Return the release of a Python, such as 3.11; empty if it does not run here.

    Also of one of the system, or on the PATH: nodes may have another of that name.
    """
    if not python.startswith("/") or _is_of_system(python):
        return ""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_RELEASE_SECONDS, check=True
        )
        return done.stdout.strip()
    return ""
