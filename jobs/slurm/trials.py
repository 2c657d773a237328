"""Trials of the wrap, the container and the Python of a template, one by one, in doctor's job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mlpsubmit.jobs.slurm.requeue import REQUEUE
from mlpsubmit.jobs.slurm.task_command import KEEP, entering, python_of
from mlpsubmit.slurm_templates import Template

__all__ = ["OUTSIDE", "trial_lines"]

#: Set if the Python of the launch works on the node outside of the container, where --retries runs.
OUTSIDE = "MLPSUBMIT_RUNS_OUTSIDE"
_OUTSIDE = (
    f"if {shlex.quote(sys.executable)} -c 'import mlpsubmit' > /dev/null 2>&1; then "
    f"export {OUTSIDE}=1; fi"
)


def trial_lines(template: Template, folder: Path) -> Sequence[str]:
    """Return lines of the shell of which the first that does not work is explained, and the last.

    They come after those that prepare for the container.

    Args:
        folder: which tasks should see.
    """
    if not (template.wrap or template.container or template.python):
        return ()
    trials = []
    python, image, where = python_of(template), template.container, "on this node"
    if template.wrap:
        why = f"wrap: {template.wrap!r} does not run the command after it, or loses its exit code"
        trials.append((f"{KEEP} {template.wrap} sh -c 'exit {REQUEUE}'", REQUEUE, why))
    if image:
        where = f"in {image}"
        if image.startswith("/"):
            trials.append(
                (f"[ -e {shlex.quote(image)} ]", 0, f"container: no {image} on this node")
            )
        trials.append((f"{entering(template)} true", 0, f"container: nothing runs {where}"))
        sees = f"{entering(template)} test -d {shlex.quote(str(folder))}"
        trials.append((sees, 0, f"container: {folder} is not visible {where}"))
    runs = f"{entering(template)} {shlex.quote(python)} -c".lstrip()
    trials.append((f"{runs} pass", 0, f"python: {python} does not run {where}"))
    why = f"python: {python} {where} cannot import mlpsubmit; install it there"
    trials.append((f"{runs} 'import mlpsubmit'", 0, why))
    return [_line(*trial) for trial in trials] + ([_OUTSIDE] if image else [])


def _line(command: str, code: int, why: str) -> str:
    """Return a line that ends the script with an explanation unless a command has an exit code."""
    ends = f"{{ echo {shlex.quote(why)}; exit 1; }}"
    return f'code=0; {command} > /dev/null || code=$?; [ "$code" -eq {code} ] || {ends}'
