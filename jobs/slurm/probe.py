"""Small jobs that check a node: the last checks of ``mlpsubmit doctor``.

The jobs run this file: ``python -m mlpsubmit.jobs.slurm.probe FOLDER`` finds out whether a node
sees a folder and compiles the functions in C, and with ``gpu`` after it whether a product on its
GPU is right.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.jobs.slurm.helper_job import last_lines, no_result, run_helper_job, scratch_dir
from mlpsubmit.jobs.slurm.queue import JobState
from mlpsubmit.jobs.slurm.trials import OUTSIDE, trial_lines
from mlpsubmit.native import compiler
from mlpsubmit.slurm_templates import Template
from mlpsubmit.spec.load import THIS_RELEASE

__all__ = [
    "Check",
    "CheckResult",
    "check_report",
    "main",
    "missing_report",
    "run_gpu_probe",
    "run_probe",
]

#: Whether a check passed (None: for information only), and a text for people.
CheckResult = tuple["bool | None", str]
Check = Callable[[], CheckResult]

#: The job's resources: little, so that it starts soon.
MINUTES = 5
MEMORY = "1G"

#: Files in the job's folder.
_TOKEN = "token"
_REPORT = "report.json"


def run_probe(parent: Path, template: Template, seconds: float) -> CheckResult:
    """Check whether a node sees a folder, and report whether it compiles the functions in C.

    Leave nothing behind in the folder, however this process ends.

    Args:
        parent: where runs are kept, or a folder above that.
        template: the template of the runs: partition, account, shell setup.
        seconds: how long to wait for the job.
    """
    token = secrets.token_hex(16)
    with scratch_dir(parent, ".doctor-") as folder:
        files.publish(folder / _TOKEN, token.encode())
        begun = time.monotonic()
        helper = template.for_helper(MINUTES, MEMORY, as_tasks=True)
        trials = trial_lines(helper, folder)
        report, job = run_helper_job(
            folder, helper, folder / _REPORT, seconds, __name__, before=trials
        )
        if report is None:
            return missing_report(job, folder, seconds)
        return check_report(report, token, folder, time.monotonic() - begun, helper)


def run_gpu_probe(parent: Path, template: Template, seconds: float) -> CheckResult:
    """Check that a node multiplies on a GPU, in a job with one; leave nothing behind.

    Args:
        parent, template, seconds: as for :func:`run_probe`.
    """
    with scratch_dir(parent, ".doctor-") as folder:
        helper = template.for_gpu_helper(MINUTES)
        report_file = folder / _REPORT
        report, job = run_helper_job(folder, helper, report_file, seconds, __name__, "gpu")
        if report is None:
            return missing_report(job, folder, seconds)
        return not report["error"], f"{report['node']}: {report['error'] or report['gpu']}"


def check_report(
    report: Mapping[str, Any], token: str, folder: Path, seconds: float, template: Template
) -> CheckResult:
    """Compare a node's report on a folder, which took some seconds, with this machine."""
    node, parent, ours = report["node"], folder.parent, version("mlpsubmit")
    if report["token"] != token:
        return False, f"{node} does not see what this machine has just written to {parent}"
    if report["version"] != ours:
        return False, (
            f"{node} has mlpsubmit {report['version']} at {report['path']}, this machine {ours}"
        )
    if report["release"] != THIS_RELEASE:
        return False, (
            f"{node} has Python {report['python']}, this machine {THIS_RELEASE}, and no other "
            "release can load the functions of a spec: launch with the Python of the tasks, or "
            "give them this one (python, or another container)"
        )
    lines = [f"{node} has mlpsubmit {ours} and shares {parent} ({seconds:.0f} s)"]
    lines += [f"tasks are run by {template.wrap}"] if template.wrap else []
    lines += [f"tasks run in {template.container}"] if template.container else []
    other = template.wrap or template.container or template.python
    lines += [f"their Python: {report['python']}"] if other else []
    if template.container and not report["outside"]:
        lines += [
            f"outside of it {node} cannot run {sys.executable} with mlpsubmit, as the job of "
            "--retries does"
        ]
    lines += [f"functions in C on {node}: {report['c_functions']}"]
    return True, "\n".join(lines)


def missing_report(job: JobState | None, folder: Path, seconds: float) -> CheckResult:
    """Explain why a job has not written a report within some seconds, as far as known."""
    log = last_lines(folder)
    text = no_result(job, log, seconds)
    if job is None:
        return False, text
    if job.pending and "launch" in job.reason.lower():
        return False, f"SLURM cannot start a job: {job}"
    if job.pending:
        return None, f"{text}; to wait longer: --timeout SECONDS"
    if job.state in ("FAILED", "COMPLETED") and not log:
        return False, (
            f"node {job.node} cannot see {folder.parent} (SLURM reports {job}, and there is no "
            "log); keep runs on a file system that all nodes share (--runs-dir)"
        )
    return (None if job.alive else False), text


# ---- on the node -------------------------------------------------------------------------------


def main(folder: Path, what: str = "folder") -> None:
    """Write a report to a file in a folder, from this node.

    Args:
        what: ``folder`` to report on the folder, ``gpu`` on the GPU of the node.
    """
    if what == "gpu":
        name, error = _product()
        files.publish_json(folder / _REPORT, {"node": _node(), "gpu": name, "error": error})
        return
    try:
        seen = (folder / _TOKEN).read_text()
    except OSError as error:
        seen = str(error)
    report = {
        "node": _node(),
        "version": version("mlpsubmit"),
        "release": THIS_RELEASE,
        "outside": OUTSIDE in os.environ,
        "python": f"{platform.python_version()} at {sys.executable}",
        "path": str(Path(files.__file__).parent),
        "token": seen,
        "c_functions": compiler.report()[1],
    }
    files.publish_json(folder / _REPORT, report)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _product() -> tuple[str, str]:
    """Multiply on the first GPU; return its name, and what went wrong."""
    import torch

    from mlpsubmit.jobs.gpus import device_name, missing_gpu, task_device

    device = task_device()
    if device.type == "cpu":
        return "", missing_gpu()
    name = device_name(device)
    try:
        A = torch.arange(512.0 * 512, device=device).reshape(512, 512).remainder(7)
        right = torch.equal((A @ A).cpu(), A.cpu() @ A.cpu())  # of small integers: exact
    except Exception as error:
        return name, f"a product on its {name} raises {type(error).__name__}: {error}"
    return f"multiplies on its {name}", "" if right else f"a product on its {name} is wrong"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
