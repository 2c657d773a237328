"""What of a cluster works, and what it has: the part of ``mlpsubmit doctor`` that is about SLURM.

The last check is a job, which runs this very file on a node:
``python -m mlpsubmit.jobs.slurm.doctor FOLDER TOKEN``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlpsubmit
from mlpsubmit.errors import UserError
from mlpsubmit.jobs import store
from mlpsubmit.jobs.slurm import filesystems
from mlpsubmit.jobs.slurm.commands import NoAnswer, answered, ask, first_line
from mlpsubmit.jobs.slurm.nodes import gpus_of
from mlpsubmit.jobs.slurm.queue import JobState, Queue
from mlpsubmit.jobs.slurm.refusals import is_uncertain, refusal
from mlpsubmit.jobs.slurm.sbatch import SUBMIT_SECONDS

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import SlurmAsk, Template

__all__ = ["Check", "Cluster", "Finding", "Probe", "main", "partitions", "settings", "start"]

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

#: Partition, up or down, time limit, nodes, cores, memory, GPUs, preemption, state, features.
_SINFO = "%P|%a|%l|%D|%c|%m|%G|%M|%T|%f"


class Cluster:
    """The checks of the cluster that this machine belongs to.

    Args:
        slurm: which template to try, with changes.
        folder: where runs are kept, or the nearest folder above that is there already.
        seconds: how long to wait for a job; 0 for submitting none.
    """

    def __init__(self, slurm: SlurmAsk, folder: Path, seconds: float) -> None:
        self._slurm = slurm
        self._folder = folder
        self._seconds = seconds
        self._settings: Mapping[str, str] = {}
        self._template: Template | None = None

    def checks(self) -> Iterator[tuple[str, Check]]:
        """Yield every check by its name; those that an earlier one has made pointless are left out.

        A controller that is silent takes seconds for each question that it does not answer.
        """
        yield "slurm", self._controller
        yield "sacct", _accounting
        if not self._settings:
            return
        yield "squeue", _told(_queue)
        yield "limits", lambda: _limits(self._settings)
        yield "partitions", _told(_partitions)
        yield "template", _told(self._resolve)
        if self._template is not None:
            template = self._template
            yield "sbatch", _told(lambda: _sbatch(template, self._folder))
            yield "shared", lambda: _shared(self._folder, template.partition)
            yield "nodes", _told(lambda: self._nodes(template))

    def _controller(self) -> Finding:
        try:
            self._settings = settings(answered("scontrol", "show", "config"))
        except NoAnswer as error:
            return False, f"the controller does not answer, so that nothing can be run: {error}"
        name, release = (self._settings.get(key, "?") for key in ("ClusterName", "SLURM_VERSION"))
        return True, f"{release}, cluster {name}, its controller answers"

    def _resolve(self) -> Finding:
        self._template = self._slurm.resolve()
        return True, f"{self._template.name}, from {self._template.path}"

    def _nodes(self, template: Template) -> Finding:
        if not self._seconds:
            return None, "no job was submitted to find out what nodes can see (--timeout 0)"
        with _ended_by_signals(), _own_folder(self._folder) as folder:
            return Probe(folder, template, self._seconds).run()


def _told(check: Check) -> Check:
    """Return a check whose failure is a finding in its own words."""

    def telling() -> Finding:
        try:
            return check()
        except (NoAnswer, UserError) as error:
            return False, str(error)

    return telling


# ---- what SLURM says ---------------------------------------------------------------------------


def settings(shown: str) -> dict[str, str]:
    """Return what ``scontrol show config`` shows."""
    return dict(re.findall(r"^(\w+) *= ?(.*?) *$", shown, re.M))


def _accounting() -> Finding:
    """Without accounts, nobody can say later why a job ended: a loss, but no fault."""
    try:
        answered("sacct", "--noheader", "--format=JobID", "--starttime=now-1minute")
    except NoAnswer as error:
        return None, f"why a job was killed will not be known for long: {error}"
    return True, "works"


def _queue() -> Finding:
    jobs = answered("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i").split()
    return True, f"works; your jobs in it: {len(jobs)}"


def _limits(config: Mapping[str, str]) -> Finding:
    """Say what bounds the arrays, and how a task is ended."""
    largest = config.get("MaxArraySize", "?")
    preemption = config.get("PreemptType", "").partition("/")[2] or "none"
    how = f" ({config['PreemptMode']})" if preemption != "none" and "PreemptMode" in config else ""
    text = (
        f"job arrays of {largest} tasks at most (MaxArraySize), "
        f"{config.get('MaxJobCount', '?')} jobs in the queue (MaxJobCount)\n"
        f"a task is killed {config.get('KillWait', '?')} after it was told to end (KillWait)\n"
        f"preemption: {preemption}{how}"
    )
    return (False if largest == "0" else None), text


def _partitions() -> Finding:
    return None, partitions(answered("sinfo", "--noheader", "--exact", f"--format={_SINFO}"))


def partitions(shown: str) -> str:
    """Return a line for each kind of node in each partition, from the rows of ``sinfo``."""
    states: dict[tuple[str, ...], Counter[str]] = {}
    for row in shown.splitlines():
        name, up, limit, count, cores, memory, gres, preempted, state, features = row.split("|", 9)
        kind = (name, up, limit, cores, memory, gres, preempted, features.strip())
        states.setdefault(kind, Counter())[state] += int(count)
    return (
        "\n".join(_partition(kind, counts) for kind, counts in states.items()) or "there are none"
    )


def _partition(kind: tuple[str, ...], states: Counter[str]) -> str:
    name, up, limit, cores, memory, gres, preempted, features = kind
    count = states.total()
    words = [
        name.rstrip("*") + (" (the default)" if name.endswith("*") else ""),
        up,
        "no time limit" if limit == "infinite" else f"time limit {limit}",
    ]
    nodes = ", ".join(f"{number} {state}" for state, number in sorted(states.items()) if number)
    has = [f"{cores} {'core' if cores == '1' else 'cores'}, {memory}M, {_gpus(gres)}"]
    has += [f"features {features}"] if features != "(null)" else []
    has += [f"preemption {preempted}"] if preempted not in ("OFF", "n/a", "") else []
    what = f"{_counted(count, 'node')} ({nodes}) of {'; '.join(has)}" if count else "no nodes"
    return f"{', '.join(words)}: {what}"


def _gpus(gres: str) -> str:
    """Return the GPUs of a node in words."""
    found = [f"{_counted(number, 'GPU')} {kind}".rstrip() for kind, number in gpus_of(gres)]
    return ", ".join(found) or "no GPU"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# ---- what it would do, and does ----------------------------------------------------------------


def _sbatch(template: Template, folder: Path) -> Finding:
    """Let sbatch look at a task as a launch would submit it."""
    from mlpsubmit.jobs.executors.base import Submission
    from mlpsubmit.jobs.executors.slurm import script
    from mlpsubmit.jobs.slurm.arrays import Array

    task = Submission(folder, "doctor", number=0, tasks=1)
    text = script(template, task, Array("mlpsubmit-doctor", first=0, count=1))
    with tempfile.TemporaryDirectory() as own:
        file = Path(own) / "task.sh"
        file.write_text(text)
        told = _handed(file, template, "--test-only")
    return True, f"takes a task of the template {template.name}{start(told)}"


def start(told: str) -> str:
    """Return when and where ``sbatch --test-only`` says that a job could start."""
    found = re.search(r"to start at (\S+) using .* on nodes (\S+)", told)
    return f"; it could start at {found[1].replace('T', ' ')} on {found[2]}" if found else ""


def _handed(file: Path, template: Template, *options: str) -> str:
    """Give a script to sbatch and return all that it says.

    Raises:
        Refused: where it does not take it.
        NoAnswer: where it is not known whether it does.
    """
    answer = ask("sbatch", *options, str(file), seconds=SUBMIT_SECONDS)
    if answer.code == 0:
        return answer.out + answer.err
    if is_uncertain(answer):
        raise NoAnswer(f"sbatch: {first_line(answer.err)}")
    raise refusal(answer, template.to_json(), template.name)


def _shared(folder: Path, partition: str | None) -> Finding:
    if reason := filesystems.unshared(folder, partition):
        return False, reason
    return None, f"{folder}: nothing here says that nodes cannot see it"


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
        from mlpsubmit.jobs.executors.slurm import python_command, sbatch_text

        small = self.template.for_helper(MINUTES, MEMORY)
        command = python_command(__name__, f"{shlex.quote(str(self.folder))} {token}")
        file = self.folder / "job.sh"
        file.write_text(sbatch_text(small, self.folder, command, job_name=name))
        _handed(file, small)

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
