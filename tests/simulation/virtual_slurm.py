"""A simulated SLURM: its commands, as the product calls them, and what it does with jobs.

sbatch reads the scripts that the product writes. Queries may fail, hang, or show an old state; an
answer of sbatch may be lost, and its job may be queued minutes later.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from shared_disk import Disk
from virtual_time import Machine, Process, World, current

from mlpsubmit.jobs.slurm import requeue

__all__ = ["Cluster", "Element"]

#: Seconds from SIGTERM to SIGKILL, and for how long a job that has ended is in the queue.
KILL_WAIT = 30.0
MIN_JOB_AGE = 300.0

#: Seconds after which the controller notices that a node is down; and before a requeued job starts.
NODE_TIMEOUT = 300.0
REQUEUE_DELAY = 120.0

_CONNECT = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
_LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
_NO_ROOM = (
    "sbatch: error: AssocGrpSubmitJobsLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)
_REJECTED = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


@dataclass(eq=False)
class Job:
    """A job array, or a job."""

    id: int
    name: str
    command: str
    log: str
    limit: float
    notice: float
    indices: list[int | None]
    throttle: int
    after: list[int]
    user: int = 0
    elements: list[Element] = field(default_factory=list)


@dataclass(eq=False)
class Element:
    """One task of an array, or the only one of a job.

    Attributes:
        eligible: when it may start, at the earliest.
        starts: how often it has started.
        stopping: whether it will be requeued, or its final state, once its process has ended.
    """

    job: Job
    index: int | None
    state: str = "PENDING"
    reason: str = "None"
    eligible: float = 0.0
    starts: int = 0
    machine: Machine | None = None
    process: Process | None = None
    ended: float = 0.0
    code: int = 0
    stopping: str = ""

    @property
    def id(self) -> str:
        return str(self.job.id) if self.index is None else f"{self.job.id}_{self.index}"

    @property
    def over(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "COMPLETING")


class Cluster:
    """The controller and the nodes of one schedule.

    Attributes:
        execute: runs the command of a job in its process.
        accounting: whether sacct has records; they lag behind by ``lag`` seconds.
        down: whether the controller does not answer.
        slow: the probability that a query hangs, and that an answer of sbatch is lost.
        rejecting: the probability that sbatch rejects a job.
        most: how many jobs its account may have in the queue; None without a limit.
        private: whether it hides the jobs of other users.
    """

    def __init__(
        self, world: World, disk: Disk, nodes: int, execute: Callable[[list[str]], None]
    ) -> None:
        self.world, self.disk, self.execute = world, disk, execute
        self.nodes = [Machine(f"node{number}") for number in range(nodes)]
        self.dead: set[Machine] = set()
        self.jobs: dict[int, Job] = {}
        self.accounting = world.chance(0.7)
        self.lag = world.random.choice([0.0, 5.0, 60.0])
        self.down = False
        self.slow = 0.0
        self.rejecting = 0.0
        self.most: int | None = world.random.choice([None, None, 3, 4])
        self.private = world.chance(0.5)
        self._next = 100
        self._cycle()

    # ---- what happens to jobs

    def _cycle(self) -> None:
        """Start what can start, as the scheduler does now and then."""
        for job in list(self.jobs.values()):
            waits = any(not one.over for id in job.after for one in self.jobs[id].elements)
            for one in job.elements:
                if one.state == "PENDING":
                    one.reason = "Dependency" if waits else self._reason(one)
                    if one.reason == "None":
                        self._start(one)
        self.world.at(self.world.random.uniform(1, 15), self._cycle)

    def _reason(self, one: Element) -> str:
        if one.eligible > self.world.now:
            return "BeginTime"
        running = [e for e in one.job.elements if e.state in ("RUNNING", "COMPLETING")]
        if len(running) >= one.job.throttle:
            return "JobArrayTaskLimit"
        return "None" if self._free() else "Resources"

    def _free(self) -> list[Machine]:
        busy = {e.machine for job in self.jobs.values() for e in job.elements if not e.over}
        return [node for node in self.nodes if node not in busy and node not in self.dead]

    def _start(self, one: Element) -> None:
        free = self._free()
        if not free:
            one.reason = "Resources"
            return
        one.machine, one.state = self.world.random.choice(free), "RUNNING"
        one.starts += 1
        start = one.starts
        self.world.note(f"SLURM starts {one.id} on {one.machine.name}")
        self.world.at(self.world.random.uniform(0.1, 5), lambda: self._begin(one, start))

    def _begin(self, one: Element, start: int) -> None:
        """Run the command of an element; its output is its log."""
        if one.starts != start or one.state != "RUNNING" or one.machine in self.dead:
            return
        assert one.machine is not None
        command = one.job.command
        if one.index is not None:
            total = re.search(r"\$\(\((\d+) \+ SLURM_ARRAY_TASK_ID\)\)", command)
            assert total is not None
            command = command.replace(total[0], str(int(total[1]) + one.index))
        for name in (requeue.NAME, requeue.WAIT):
            command = command.removesuffix(f" || {name} $?")
        words = shlex.split(command)
        words = words[words.index("-c") + 2 :]  # after what lets Python run a module
        environment = (
            {}
            if one.index is None
            else {
                "SLURM_ARRAY_JOB_ID": str(one.job.id),
                "SLURM_ARRAY_TASK_ID": str(one.index),
            }
        )
        process = self.world.start(
            f"job {one.id}",
            one.machine,
            lambda: self._batch(one, words),
            environment=environment,
            user=one.job.user,
        )
        one.process = process
        process.output = self._log(one)
        process.ends += [lambda: self.disk.end_process(process), lambda: self._ended(one, process)]
        if one.job.limit:
            self._timed(one, process)

    def _batch(self, one: Element, words: list[str]) -> None:
        """Run the command of an element, and requeue it as its script does."""
        try:
            self.execute(words)
        except SystemExit as end:
            if end.code != requeue.REQUEUE:
                raise
            if one.index is None:
                self._wait(one.id)
            else:
                self._requeue(one.id)

    def _requeue(self, id: str) -> None:
        for _ in range(6):
            code, shown = self._scontrolled("show", "job", id)
            if state := re.search(r"JobState=(\w+)", shown):
                if state[1] != "RUNNING":
                    return
                code, _ = self._scontrolled("requeue", id)
                if code == 0:
                    return
            self.world.sleep(5)

    def _wait(self, id: str) -> None:
        process = current()
        assert process is not None
        process.on_signal = lambda: None  # the trap of the script
        for _ in range(6):
            if self._scontrolled("requeue", id)[0] == 0:
                start = f"StartTime=now+{requeue.WAIT_SECONDS}"
                self._scontrolled("update", f"JobId={id}", start)
                return
            self.world.sleep(5)

    def _scontrolled(self, *words: str) -> tuple[int, str]:
        """Return the exit code and the output of scontrol, which a script gives ten seconds."""
        try:
            done = self.run(["scontrol", *words], timeout=10)
        except subprocess.TimeoutExpired:
            return 124, ""
        return done.returncode, done.stdout

    def _log(self, one: Element) -> Callable[[str], None]:
        """Return what appends to the log of an element; nothing if its folder is gone."""
        path = one.job.log.replace("%t", "0").replace("%A", str(one.job.id))
        path = path.replace("%j", str(one.job.id)).replace("%a", str(one.index))
        return self.appending(path, one.job.user)

    def appending(self, path: str, user: int) -> Callable[[str], None]:
        """Return what appends to a log; nothing if its folder is gone."""
        try:
            log = self.disk.file(path, user)
        except OSError:
            return lambda _: None
        return lambda text: log.data.extend(text.encode())

    def _timed(self, one: Element, process: Process) -> None:
        def notify() -> None:
            if one.process is process:
                process.signal()

        def expire() -> None:
            if one.process is process and one.state == "RUNNING":
                self._stop(one, "TIMEOUT")

        self.world.at(one.job.limit - one.job.notice, notify)
        self.world.at(one.job.limit, expire)

    def _stop(self, one: Element, outcome: str) -> None:
        """End a running element with a state or ``requeue``: SIGTERM, and later SIGKILL."""
        one.state, one.stopping = "COMPLETING", outcome
        process = one.process
        if process is None or not process.alive:
            self._finish(one, outcome)
            return
        self.world.at(KILL_WAIT, lambda: process.alive and process.kill())
        process.signal()

    def _ended(self, one: Element, process: Process) -> None:
        """Note that the process of an element has ended, unless its node is dead."""
        if one.process is process and one.machine not in self.dead:
            one.code = process.code or 0
            done = "COMPLETED" if not process.code else "FAILED"
            outcome = one.stopping or done
            self.world.at(
                self.world.random.uniform(0, 3), lambda: self._closed(one, process, outcome)
            )

    def _closed(self, one: Element, process: Process, outcome: str) -> None:
        if one.process is process:
            self._finish(one, one.stopping or outcome)

    def _finish(self, one: Element, outcome: str) -> None:
        one.process, one.stopping, one.ended = None, "", self.world.now
        self.world.note(f"SLURM ends {one.id}: {outcome}")
        if outcome == "requeue":
            one.state, one.machine = "PENDING", None
            one.eligible = max(one.eligible, self.world.now + REQUEUE_DELAY)
        else:
            one.state = outcome

    def preempt(self, one: Element) -> None:
        """Signal an element, and requeue it after its grace time."""
        if one.state == "RUNNING" and one.process is not None:
            self.world.note(f"SLURM preempts {one.id}")
            start = one.starts
            one.process.signal()

            def over() -> None:
                if one.starts == start and one.state == "RUNNING":
                    self._stop(one, "requeue")

            self.world.at(60, over)

    def crash(self, node: Machine) -> None:
        """Let a node die; the controller notices later, and requeues its job."""
        if node in self.dead:
            return
        self.world.note(f"{node.name} dies")
        self.dead.add(node)
        self.disk.lose_unflushed(node)
        for process in list(node.processes):
            process.kill()
        self.world.at(self.world.random.uniform(10, NODE_TIMEOUT), lambda: self._lost(node))
        self.world.at(self.world.random.uniform(NODE_TIMEOUT, 900), lambda: self.dead.discard(node))

    def _lost(self, node: Machine) -> None:
        for job in self.jobs.values():
            for one in job.elements:
                if one.machine is node and not one.over and one.state != "PENDING":
                    requeued = not one.stopping and self.world.chance(0.7)
                    self._finish(one, "requeue" if requeued else one.stopping or "NODE_FAIL")

    def running(self) -> list[Element]:
        return [e for job in self.jobs.values() for e in job.elements if e.process is not None]

    # ---- commands

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Answer a command as subprocess.run does."""
        world, process = self.world, current()
        assert process is not None
        timeout = float(str(options["timeout"]))
        world.check(process)
        if command[0] == "sbatch" and "--parsable" in command:
            return self._sbatch(command, process, timeout, keeps=not options["close_fds"])
        world.sleep(world.random.uniform(0.01, 0.5))
        if command[0] == "sbatch":  # --version and --test-only
            return subprocess.CompletedProcess(command, 0, "", "")
        if self.down:
            world.sleep(world.random.uniform(1, timeout - 0.5))
            return subprocess.CompletedProcess(command, 1, "", _CONNECT)
        if world.chance(self.slow):
            world.sleep(timeout)
            raise subprocess.TimeoutExpired(command, timeout)
        code, out, err = getattr(self, f"_{command[0]}")(command[1:])
        return subprocess.CompletedProcess(command, code, out, err)

    def _sbatch(
        self, command: list[str], process: Process, timeout: float, *, keeps: bool
    ) -> subprocess.CompletedProcess[str]:
        """Submit a script; the command continues if the process that started it is killed."""
        world = self.world
        script = bytes(self.disk._at(command[-1], process).data).decode()
        if self.down:
            world.sleep(timeout / 2)
            return subprocess.CompletedProcess(command, 1, "", _LOST)
        if world.chance(self.rejecting):
            world.sleep(0.2)
            return subprocess.CompletedProcess(command, 1, "", _REJECTED)
        if self.most is not None and self._in_queue() + script_tasks(script) > self.most:
            world.sleep(0.2)
            return subprocess.CompletedProcess(command, 1, "", _NO_ROOM)
        answer: list[str] = []
        lost = world.chance(self.slow)
        # What the controller has received it may queue after the command has given up.
        takes = world.random.uniform(0, 600) if lost else world.random.uniform(0.05, 2)
        world.at(takes, lambda: answer.append(str(self._queued(script, process.user).id)))
        ends = min(timeout, takes + 0.1)
        process.children += keeps

        def end() -> None:
            process.children -= keeps
            if not process.alive:
                self.disk.end_process(process)

        world.at(ends, end)
        world.sleep(ends + 0.01)
        if not answer:
            if world.chance(0.5):
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(command, 1, "", _LOST)
        if lost and world.chance(0.5):
            return subprocess.CompletedProcess(command, 1, "", _LOST)
        return subprocess.CompletedProcess(command, 0, answer[0], "")

    def _in_queue(self) -> int:
        return sum(not one.over for job in self.jobs.values() for one in job.elements)

    def _queued(self, script: str, user: int) -> Job:
        """Queue the job of a script, as sbatch reads it."""
        found = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
        command = script.strip().splitlines()[-1]
        array = re.fullmatch(r"0-(\d+)(?:%(\d+))?", found.get("array", ""))
        indices: list[int | None] = [*range(script_tasks(script))] if array else [None]
        hours = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", found.get("time", "0:0:0"))
        assert hours is not None
        days, *parts = (int(part or 0) for part in hours.groups())
        notice = re.search(r"USR2@(\d+)", found.get("signal", ""))
        job = Job(
            self._next,
            found["job-name"].strip("'\""),
            command,
            re.findall(r"--output[ =](\S+)", script)[-1],
            days * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2],
            float(notice[1]) if notice else 0.0,
            indices,
            int(array[2]) if array and array[2] else len(indices),
            [int(id) for id in re.findall(r"\d+", found.get("dependency", ""))],
            user,
        )
        job.elements = [Element(job, index) for index in indices]
        self._next += self.world.random.randint(1, 20)
        self.jobs[job.id] = job
        self.world.note(f"SLURM queues {job.name} as {job.id} ({len(indices)} tasks)")
        return job

    def _squeue(self, words: list[str]) -> tuple[int, str, str]:
        rows = []
        asked = [int(word[7:]) for word in words if word.startswith("--user=")]
        for job in self.jobs.values():
            if (asked and job.user not in asked) or (self.private and job.user != os.getuid()):
                continue
            for one in job.elements:
                if one.over and one.ended + MIN_JOB_AGE < self.world.now:
                    continue
                index = "N/A" if one.index is None else str(one.index)
                node = one.machine.name if one.machine else ""
                state = f"{one.state}|{node}|main|1|{one.reason}"
                rows.append(f"{job.id}|{index}|{job.user}|{state}|{job.name}")
        return 0, "\n".join(rows), ""

    def _sacct(self, words: list[str]) -> tuple[int, str, str]:
        if not self.accounting:
            return 1, "", "Slurm accounting storage is disabled"
        ids = next(word for word in words if word.startswith("--jobs="))[7:].split(",")
        rows = []
        for id in ids:
            for one in self.jobs[int(id)].elements if int(id) in self.jobs else ():
                known = one.over and one.ended + self.lag < self.world.now
                state = one.state if known else "RUNNING"
                code = "0:9" if one.code == -9 else f"{one.code}:0"
                node = one.machine.name if one.machine else "None assigned"
                rows.append(f"{one.id}|{state}|{code}||4G|00:10:00|{node}")
        return 0, "\n".join(rows), ""

    def _scancel(self, words: list[str]) -> tuple[int, str, str]:
        if any(int(id) in self.jobs and self.jobs[int(id)].user != os.getuid() for id in words):
            return 1, "", "scancel: error: Kill job error: Access/permission denied"
        for id in words:
            for one in self.jobs[int(id)].elements if int(id) in self.jobs else ():
                if one.state == "PENDING":
                    self._finish(one, "CANCELLED")
                elif one.state == "RUNNING":
                    self._stop(one, "CANCELLED")
                elif one.state == "COMPLETING":
                    one.stopping = "CANCELLED"
        return 0, "", ""

    def _element(self, id: str) -> Element:
        job, _, index = id.partition("_")
        return next(e for e in self.jobs[int(job)].elements if e.id == id or not index)

    def _scontrol(self, words: list[str]) -> tuple[int, str, str]:
        if words == ["show", "config"]:
            enforced = "none" if self.most is None else "associations,limits"
            shown = "ClusterName = simulated\nMaxArraySize = 1001\nMaxJobCount = 9999\n"
            shown += f"PrivateData = {'jobs' if self.private else 'none'}\n"
            return 0, f"{shown}AccountingStorageEnforce = {enforced}\n", ""
        if words[:2] == ["show", "assoc_mgr"]:
            return 0, self._associations(words[2].partition("=")[2]), ""
        if words[:2] == ["show", "partition"]:
            return 0, "PartitionName=main Default=YES QoS=N/A", ""
        if words[0] == "update":
            begin = self.world.now + float(words[-1].rpartition("+")[2])
            self._element(words[1].partition("=")[2]).eligible = begin
            return 0, "", ""
        one = self._element(words[-1])
        if words[:2] == ["show", "job"]:
            return 0, f"JobId={one.job.id} JobState={one.state} Reason={one.reason}", ""
        assert words[0] == "requeue"
        if one.state != "RUNNING":
            return 1, "", "scontrol: Job is pending execution"
        self._stop(one, "requeue")
        return 0, "", ""

    def _associations(self, user: str) -> str:
        account = "ClusterName=simulated Account=lab"
        limit = f"{self.most or 'N'}({self._in_queue()})"
        return (
            f"{account} UserName={user}(1) Partition= ID=3\n    DefAssoc=Yes\n"
            f"{account} UserName= Partition= ID=2\n    GrpSubmitJobs={limit} GrpWall=N(0.00)\n"
        )

    def _sacctmgr(self, words: list[str]) -> tuple[int, str, str]:
        return 1, "", "slurmdbd is down"

    def _sinfo(self, words: list[str]) -> tuple[int, str, str]:
        rows = [f"{node.name}|main*|16|64000|infinite|(null)|NO|(null)" for node in self.nodes]
        return 0, "main*" if words[-1] == "--format=%R" else "\n".join(rows), ""


def script_tasks(script: str) -> int:
    """Return how many jobs a script makes."""
    array = re.search(r"^#SBATCH --array=0-(\d+)", script, re.MULTILINE)
    return int(array[1]) + 1 if array else 1
