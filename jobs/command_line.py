"""The command line of a process that runs a module of this package."""

from __future__ import annotations

import sys

__all__ = ["NODE", "WORKER", "module_command"]

#: The module of every worker: ``mlpsubmit.jobs.worker RUN SUBMISSION HASH SLICE``.
WORKER = "mlpsubmit.jobs.worker"

#: The module of a task with several workers: ``mlpsubmit.jobs.node RUN SUBMISSION HASH TASK``.
NODE = "mlpsubmit.jobs.node"

#: Runs a module as ``python -m`` does, but searches the working directory last, and only once this
#: package is imported: a ``jobs.py``, ``random.py`` or ``mlpsubmit.py`` there must not shadow ours
#: or Python's. (An editable install may be found after every folder of ``sys.path``, and under
#: PYTHONSAFEPATH the first folder is not the working directory.)
_RUN_MODULE = (
    "import sys; here = [p for p in sys.path[:1] if not p]; del sys.path[: len(here)]; "
    "import runpy, mlpsubmit; sys.path += here; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *arguments: object, python: str | None = None) -> list[str]:
    """Return the arguments of a process that runs a module, by default with this Python."""
    return [python or sys.executable, "-u", "-c", _RUN_MODULE, module, *map(str, arguments)]
