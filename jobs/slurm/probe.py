"""A small job that says what a node sees of a folder: the last check of ``mlpsubmit doctor``.

The job runs this very file: ``python -m mlpsubmit.jobs.slurm.probe FOLDER TOKEN``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlpsubmit
from mlpsubmit.jobs import store
from mlpsubmit.jobs.slurm.commands import NoAnswer, ask, first_line
from mlpsubmit.jobs.slurm.queue import JobState, Queue
from mlpsubmit.jobs.slurm.refusals import is_uncertain, refusal
from mlpsubmit.jobs.slurm.sbatch import SUBMIT_SECONDS, overriding

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import Template

__all__ = ["Check", "Finding", "Probe", "main", "tried_out"]

#: Whether all is well (None: it is only worth knowing), and what was found.
Finding = tuple["bool | None", str]
Check = Callable[[], Finding]

#: What the job asks for, so that it starts soon.
MINUTES = 5
MEMORY = "1G"

#: How long a network file system may take to show here what a node wrote.
LAG_SECONDS = 5.0

#: Seconds between two looks at the queue: at first, and at most.
_SHORTEST_REST = 0.5
_LONGEST_REST = 5.0

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
    with _ended_by_signals(), _own_folder(place) as folder:
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
        name = f"mlpsubmit-doctor.{token[:12]}"
        store.publish(self.folder / _TOKEN, token.encode())
        begun = time.monotonic()
        try:
            self._submit(name, token)
            answer, job = self._watch(name)
        finally:
            # By name, as it may be queued where sbatch has not said so.
            with contextlib.suppress(NoAnswer):
                ask("scancel", f"--name={name}")
        if answer is not None:
            return self.heard(answer, token, time.monotonic() - begun)
        return self.unheard(job)

    def _submit(self, name: str, token: str) -> None:
        """Submit the job as a launch submits its own.

        Raises:
            Refused: where the cluster does not take it.
            NoAnswer: where it is not known whether it does.
        """
        from mlpsubmit.jobs.executors.slurm import python_command, sbatch_text

        small = self.template.for_helper(MINUTES, MEMORY)
        command = python_command(__name__, f"{shlex.quote(str(self.folder))} {token}")
        script = sbatch_text(small, self.folder, command, job_name=name)
        file = self.folder / "job.sh"
        file.write_text(script)
        answer = ask("sbatch", str(file), seconds=SUBMIT_SECONDS, unset=overriding(script))
        if answer.code == 0:
            return
        if is_uncertain(answer):
            raise NoAnswer(f"sbatch: {first_line(answer.err)}")
        raise refusal(answer, small.to_json(), small.name)

    def _watch(self, name: str) -> tuple[Mapping[str, Any] | None, JobState | None]:
        """Wait until the job answers or ends; return its answer and its last known state."""
        end = time.monotonic() + self.seconds
        rest = _SHORTEST_REST
        job: JobState | None = None
        while (answer := self._answer()) is None and time.monotonic() < end:
            queue = Queue.look([name])
            job = next((queue.jobs[id] for id in queue.ids.get(name, [])), job)
            if job is not None and not job.alive:
                end = min(end, time.monotonic() + LAG_SECONDS)
            time.sleep(max(0.0, min(rest, end - time.monotonic())))
            rest = min(rest * 1.5, _LONGEST_REST)
        return answer, job

    def _answer(self) -> Mapping[str, Any] | None:
        # A change of our own makes a network file system look at the folder anew.
        with tempfile.NamedTemporaryFile(dir=self.folder):
            pass
        try:
            answer: Mapping[str, Any] = store.read_json(self.folder / _ANSWER)
        except FileNotFoundError:
            return None
        return answer

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
        if log := self._log():
            return False, f"the job failed: {job}; its log ends:\n{log}"
        if job.state in ("FAILED", "COMPLETED"):
            return False, (
                f"node {job.node} cannot see {self.folder.parent} (SLURM says {job}, and there is "
                "no log); keep runs on a file system that all nodes share (--runs-dir)"
            )
        return False, f"the job did not run: {job}"

    def _log(self) -> str:
        """Return the last lines of the job's log; empty where the node did not write any."""
        logs = [path.read_text(errors="replace") for path in self.folder.rglob("*.out")]
        lines = [line for log in logs for line in log.splitlines() if line.strip()]
        return "\n".join(lines[-3:])


@contextlib.contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """Make a hidden folder, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    try:
        yield folder
    finally:
        # A job that is being ended may still write to it.
        end = time.monotonic() + LAG_SECONDS
        while folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1 if folder.exists() else 0)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal that ends this process leave no job and no folder behind."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
        "path": str(Path(mlpsubmit.__file__).parent),
        "token": seen,
    }
    store.publish_json(folder / _ANSWER, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
