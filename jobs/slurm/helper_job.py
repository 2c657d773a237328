"""A job on the cluster whose answer is waited for, and of which nothing stays behind."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpsubmit import files
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, ask, first_line
from mlpsubmit.jobs.slurm.queue import JobState, Queue
from mlpsubmit.jobs.slurm.rejections import is_uncertain, refusal
from mlpsubmit.jobs.slurm.sbatch import SUBMIT_SECONDS, overriding

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import Template

__all__ = ["HelperJob", "exit_on_signals", "last_lines", "scratch_dir"]

#: How long a network file system may take to show here what a node wrote.
LAG_SECONDS = 5.0

#: Seconds between two looks at the queue: at first, and at most.
_SHORTEST_REST = 0.5
_LONGEST_REST = 5.0


@dataclass(frozen=True)
class HelperJob:
    """One job that writes an answer into a file.

    Attributes:
        folder: where its script and its log lie; the nodes should see it.
        template: what it asks for.
        name: what it is called in the queue, and no other job.
        module: what it runs, as ``python -m`` does.
        arguments: of that, as a shell reads them.
        answer: the file that it writes, as JSON.
        seconds: how long to wait for it.
    """

    folder: Path
    template: Template
    name: str
    module: str
    arguments: str
    answer: Path
    seconds: float

    def run(self) -> tuple[Mapping[str, Any] | None, JobState | None]:
        """Submit the job and wait until it answers or ends; see that it ends.

        Returns:
            Its answer, if it gave one, and its last known state, if there is one.

        Raises:
            Refused: where the cluster does not take it.
            SlurmUnavailable: where it is not known whether it does.
        """
        try:
            self._submit()
            return self._watch()
        finally:
            # By name, as it may be queued where sbatch has not said so.
            with contextlib.suppress(SlurmUnavailable):
                ask("scancel", f"--name={self.name}")

    def _submit(self) -> None:
        """Submit the job as a launch submits its own."""
        from mlpsubmit.jobs.slurm.script import python_command, sbatch_text

        command = python_command(self.module, self.arguments)
        script = sbatch_text(self.template, self.folder, command, job_name=self.name)
        file = self.folder / "job.sh"
        file.write_text(script)
        answer = ask("sbatch", str(file), seconds=SUBMIT_SECONDS, unset=overriding(script))
        if answer.code == 0:
            return
        if is_uncertain(answer):
            raise SlurmUnavailable(f"sbatch: {first_line(answer.err)}")
        raise refusal(answer, self.template.to_json(), self.template.name)

    def _watch(self) -> tuple[Mapping[str, Any] | None, JobState | None]:
        end = time.monotonic() + self.seconds
        rest = _SHORTEST_REST
        job: JobState | None = None
        while (answer := self._answer()) is None and time.monotonic() < end:
            queue = Queue.look([self.name])
            job = next((queue.jobs[id] for id in queue.ids.get(self.name, [])), job)
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
            answer: Mapping[str, Any] = files.read_json(self.answer)
        except FileNotFoundError:
            return None
        return answer


def last_lines(folder: Path) -> str:
    """Return the last lines of the log of a job; empty where the node did not write any."""
    logs = [path.read_text(errors="replace") for path in folder.rglob("*.out")]
    lines = [line for log in logs for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-3:])


@contextlib.contextmanager
def scratch_dir(place: Path, prefix: str) -> Iterator[Path]:
    """Make a hidden folder, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        yield folder
    finally:
        # A job that is being ended may still write to it.
        end = time.monotonic() + LAG_SECONDS
        while folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1 if folder.exists() else 0)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
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
