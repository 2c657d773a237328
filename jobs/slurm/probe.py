"""A small job that says what a node sees of a folder: the last check of ``mlpsubmit doctor``.

The job runs this very file: ``python -m mlpsubmit.jobs.slurm.probe FOLDER TOKEN``.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpsubmit import files
from mlpsubmit.jobs.slurm.helper_job import HelperJob, exit_on_signals, last_lines, scratch_dir
from mlpsubmit.jobs.slurm.queue import JobState

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import Template

__all__ = ["Check", "Finding", "Probe", "main", "tried_out"]

#: Whether all is well (None: it is only worth knowing), and what was found.
Finding = tuple["bool | None", str]
Check = Callable[[], Finding]

#: What the job asks for, so that it starts soon.
MINUTES = 5
MEMORY = "1G"

#: Files of the job in its folder.
_TOKEN = "token"
_ANSWER = "answer.json"


def tried_out(place: Path, template: Template, seconds: float) -> Finding:
    """Say what a node sees of a folder; whatever ends this process, nothing is left behind.

    Args:
        place: where runs are kept, or a folder above that.
        template: of the run that the job stands for.
        seconds: how long to wait for the job.
    """
    with exit_on_signals(), scratch_dir(place, ".doctor-") as folder:
        return Probe(folder, template, seconds).run()


@dataclass(frozen=True)
class Probe:
    """One small job that looks at a folder from a node.

    Attributes:
        folder: an empty one, within the folder that nodes should see.
        template: where and on whose account it runs, and what its shell does before Python.
        seconds: how long to wait for it.
    """

    folder: Path
    template: Template
    seconds: float

    def run(self) -> Finding:
        """Submit the job, wait for what it says, and see that it ends."""
        token = secrets.token_hex(16)
        files.publish(self.folder / _TOKEN, token.encode())
        begun = time.monotonic()
        answer, job = self._job(token).run()
        if answer is not None:
            return self.heard(answer, token, time.monotonic() - begun)
        return self.unheard(job)

    def _job(self, token: str) -> HelperJob:
        return HelperJob(
            self.folder,
            self.template.for_helper(MINUTES, MEMORY),
            f"mlpsubmit-doctor.{token[:12]}",
            __name__,
            f"{shlex.quote(str(self.folder))} {token}",
            self.folder / _ANSWER,
            self.seconds,
        )

    def heard(self, answer: Mapping[str, Any], token: str, seconds: float) -> Finding:
        """Compare what a node said with what this machine has."""
        node, place, ours = answer["node"], self.folder.parent, version("mlpsubmit")
        if answer["token"] != token:
            return False, f"{node} does not see what this machine has just written to {place}"
        if answer["version"] != ours:
            return False, (
                f"{node} has mlpsubmit {answer['version']} at {answer['path']}, this machine {ours}"
            )
        return True, f"{node} has mlpsubmit {ours} and shares {place} ({seconds:.0f} s)"

    def unheard(self, job: JobState | None) -> Finding:
        """Say what is known of a job that did not answer."""
        waited = f"after {self.seconds:.0f} s"
        if job is None:
            return False, f"sbatch took a job, but squeue does not show it {waited}"
        if "launch" in job.reason.lower() and job.pending:
            return False, f"SLURM cannot start a job: {job}"
        if job.pending:
            reason = job.reason if job.reason not in ("", "None") else "no reason given yet"
            return None, f"still queued {waited} ({reason}); to wait longer: --timeout SECONDS"
        if job.alive:
            return None, f"a job runs on {job.node}, but has not answered {waited}"
        if log := last_lines(self.folder):
            return False, f"the job failed: {job}; its log ends:\n{log}"
        if job.state in ("FAILED", "COMPLETED"):
            return False, (
                f"node {job.node} cannot see {self.folder.parent} (SLURM says {job}, and there is "
                "no log); keep runs on a file system that all nodes share (--runs-dir)"
            )
        return False, f"the job did not run: {job}"


# ---- on the node -------------------------------------------------------------------------------


def main(folder: Path, token: str) -> None:
    """Say what this node sees of a folder, in a file there."""
    try:
        seen = (folder / _TOKEN).read_text()
    except OSError as error:
        seen = str(error)
    answer = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "version": version("mlpsubmit"),
        "path": str(Path(files.__file__).parent),
        "token": seen,
    }
    files.publish_json(folder / _ANSWER, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
