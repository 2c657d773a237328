"""One schedule: users, faults, and what must hold whatever they do."""

from __future__ import annotations

import os
import random
import stat
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_disk import GROUP, ROOT, Disk
from stub_training import Registry, expected, the_sweep
from virtual_slurm import Cluster
from virtual_time import FIRST_USER, Machine, Process, World, current

from mlpsubmit import launch, open_run
from mlpsubmit.errors import BusyError, UserError
from mlpsubmit.jobs import worker
from mlpsubmit.jobs.command_line import NODE
from mlpsubmit.jobs.node import main as run_node
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.slurm import requeue
from mlpsubmit.jobs.slurm.limits import NoRoom
from mlpsubmit.jobs.store.run_directory import SUBMISSIONS
from mlpsubmit.jobs.supervisor import Supervision
from mlpsubmit.runs.locate import all_runs
from mlpsubmit.runs.run import Run

__all__ = ["Schedule"]

RUNS = Path(ROOT) / "runs"
SWEEP = the_sweep()

CHANGES = {"time": "0:05:00", "cpus": 1, "mem": "1G", "notice": 60}

#: Virtual seconds in which users and faults act, and in which a run then must end.
EVENTFUL = 3000.0
PATIENCE = 24 * 3600.0

#: Resumes after which a run must be complete once nothing fails any more.
MOST_RESUMES = 8

#: For how long a machine may show an old state of a folder: the longest of NFS by default.
STALE = 60.0


class Schedule:
    """Everything that happens for one seed.

    Attributes:
        problems: what must not be.
        counts: how many of each kind of event.
        shared: whether runs are launched for the group of all users.
    """

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        world.schedule = self
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.disk = Disk(world, world.random.choice([0.0, 3.0, STALE]))
        self.cluster = Cluster(world, self.disk, world.random.randint(2, 4), self._execute)
        self.most = self.cluster.most
        self.registry = Registry(world)
        skewed = world.chance(0.3)
        self.logins = [Machine("login1"), Machine("login2")]
        for machine in (*self.logins, *self.cluster.nodes):
            machine.skew = world.random.uniform(-100, 100) if skewed else 0.0
        self.retries = world.random.choice([0, 0, 2])
        self.tasks = world.random.choice([3, 3, 5])
        self.shared = world.chance(0.6)
        #: Workers of a task, which share its node, its signals and its end.
        self.workers = random.Random(seed).choice([1, 1, 2, 3])
        self.finished: set[tuple[Path, str]] = set()
        self.users: list[Process] = []
        self.quiet = False

    # ---- what runs

    def run(self) -> list[str]:
        """Run the schedule; return what must not be."""
        world = self.world
        for number in range(world.random.choice([1, 2, 2])):
            name, user = f"user{number}", world.random.choice([FIRST_USER, FIRST_USER + number])
            self.users.append(world.start(name, self.logins[number], self._use, user=user))
            self.disk.umasks[user] = world.random.choice([0o022, 0o077])
        self._plan_faults()
        world.run(lambda: bool(self.problems), EVENTFUL)
        self._calm()
        world.run(lambda: self._over(self.users), PATIENCE)
        runs = self.disk.find(str(RUNS), None)
        user = FIRST_USER if runs is None else runs.owner
        last = world.start("user9", self.logins[0], self._settle, user=user)
        world.run(lambda: self._over([last]), 20 * PATIENCE)
        self.problems += self.registry.twice[:1]
        if last.error is not None:
            self.problems.append(f"the schedule itself failed: {last.error!r}")
        elif last.alive and not self.problems:
            self.problems.append("the run has not ended")
        return self.problems

    def _over(self, processes: list[Process]) -> bool:
        return bool(self.problems) or not any(process.alive for process in processes)

    def _execute(self, words: list[str]) -> None:
        """Run the command of a job: a worker, or the resume of --retries."""
        module, *arguments = words
        if module == NODE:
            path, submission, sweep_hash, task = arguments
            self.counts["nodes"] += 1
            sys.exit(run_node(path, int(submission), sweep_hash, int(task)))
        if module.endswith("worker"):
            path, submission, sweep_hash, task = arguments
            self._supervised(path, int(submission), sweep_hash, int(task))
            return
        assert arguments[0] == "resume"
        after, retries, sweep_hash = (
            arguments[arguments.index(f"--{n}") + 1] for n in ("after", "retries", "sweep-hash")
        )
        try:
            run = open_run(arguments[1])
            if run.retry(int(after), int(retries), sweep_hash):
                later = run.directory.intent(int(after)).get("later")
                self.counts["more tasks" if later else "retries"] += 1
        except NoRoom as error:
            self.counts["waits for room"] += 1
            print(error)
            sys.exit(requeue.REQUEUE)
        except UserError as error:
            print(error)
            sys.exit(2)

    def _supervised(self, path: str, submission: int, sweep_hash: str, task: int) -> None:
        """Run a worker, and another one if it is killed in a pack, as the supervisor does."""
        parent = current()
        assert parent is not None
        last: tuple[int, ProcessEnd] | None = None
        while True:
            note = bytearray(16)
            supervision = Supervision(os.getpid(), last, note)

            def work(supervision: Supervision = supervision) -> None:
                code = worker.main(path, submission, sweep_hash, task, supervision)
                supervision.end()
                sys.exit(code)

            child = self.world.start(
                f"{parent.name}.worker", parent.machine, work, environment=parent.environment
            )
            child.output = parent.output
            child.ends.append(lambda child=child: self.disk.end_process(child))
            stopped: list[bool] = []

            def forward(child: Process = child, stopped: list[bool] = stopped) -> None:
                stopped.append(True)
                child.signal()

            parent.on_signal = forward
            parent.ends.append(lambda child=child: child.kill() if child.alive else None)
            while child.alive:
                self.world.sleep(0.5)
            self._check_ended(child)
            number = int.from_bytes(note[:8], "little")
            if child.code != -9 or stopped or not number:
                if child.code == -9 and not number and not stopped:
                    worker.report_end(path, submission, task, ProcessEnd(signal=9))
                sys.exit(child.code or 0)
            last = number - 1, ProcessEnd(signal=9)

    def appended(self, run: Path, name: str) -> None:
        """Note that a shard has a member, and that it is on the disk."""
        self.world.note(f"appends {name}")
        if name.endswith(".npz") and not name.endswith(".partial.npz"):
            self.counts["packs"] += 1
            self.finished.add((run, name.removesuffix(".npz")))

    # ---- users

    def _command(
        self,
        name: str,
        machine: Machine,
        function: Callable[[], Any],
        kill: float = 0.0,
        **fields: Any,
    ) -> Process:
        """Run a command to its end, or kill it after a while."""
        world = self.world
        process = world.start(name, machine, function, **fields)
        process.ends.append(lambda: self.disk.end_process(process))
        if kill:
            world.at(kill, lambda: process.alive and process.kill())
        while process.alive:
            world.sleep(1)
        self._check_ended(process)
        self.counts[name] += 1
        return process

    def _check_ended(self, process: Process) -> None:
        """A command ends well, or with a message for its user; a disk may fail it otherwise."""
        error = process.error
        excused = process in self.disk.faulted and isinstance(error, (OSError, RuntimeError))
        if error is not None and not isinstance(error, UserError) and not excused:
            self.problems.append(f"{process.name} raised {type(error).__name__}: {error}")

    def _use(self) -> None:
        """Launch, and do this and that."""
        world = self.world
        process = current()
        assert process is not None
        machine = process.machine
        for number in range(world.random.randint(3, 8)):
            action = (
                self._launch
                if number == 0
                else world.random.choice(
                    [
                        self._launch,
                        self._status,
                        self._collect,
                        self._resume,
                        self._resume,
                        self._cancel,
                    ]
                )
            )
            kill = world.random.uniform(0, 8) if world.chance(0.2) else 0.0
            name = action.__name__.removeprefix("_")
            if kill:
                self.counts["kills of commands"] += 1
            self._command(name, machine, action, kill)
            world.sleep(world.random.choice([0, 10, 100, 400]) * world.random.random())

    def _launch(self, *, trust: bool | None = None) -> None:
        launch(
            SWEEP,
            trust=self._trusts() if trust is None else trust,
            group=str(GROUP) if self.shared else None,
            executor="slurm",
            tasks=self.tasks,
            runs_dir=RUNS,
            template="cpu",
            slurm=self._asked(),
            retries=self.retries,
        )

    def _asked(self) -> dict[str, Any]:
        """Return what each task asks for: a core for each of its workers."""
        return {**CHANGES, "cpus": self.workers, "workers": self.workers}

    def _open(self) -> Run:
        return open_run(None, RUNS)

    def _status(self) -> None:
        self._open().status()

    def _collect(self) -> None:
        self._check_values(self._open())

    def _resume(self) -> None:
        run, trust = self._open(), self._trusts()
        if run.resume(retries=self.retries, trust=trust, template="cpu", slurm=self._asked()):
            self._check_consent(run, trust)

    def _trusts(self) -> bool:
        """Return whether the user says so; on a group's runs, users do it now and then."""
        return self.world.chance(0.5) if self.shared else False

    def _check_consent(self, run: Run, trust: bool) -> None:
        """Only who says so takes over what another user has launched, or resumed last."""
        folder = self.disk.find(f"{run.path}/{SUBMISSIONS}", None)
        process = current()
        assert folder is not None
        assert folder.entries is not None
        assert process is not None
        owners = [folder.entries[name].owner for name in sorted(folder.entries)]
        own = max(n for n, owner in enumerate(owners) if owner == process.user)
        others = {folder.owner, *owners[max(own - 1, 0) : own]} - {process.user}
        self.counts["take-overs"] += bool(others)
        if others and not trust:
            self.problems.append(f"{process.user} has taken over from {others} unasked")

    def _cancel(self) -> None:
        self._open().cancel()

    def _check_values(self, run: Run, *, whole: bool = False) -> None:
        """The results so far, or of all configs, are those of a training without interruption."""
        dataset = run.collect()
        done = (dataset.status == "done").values.ravel()
        values = dataset.train_loss.values.ravel()
        if wrong := [i for i in range(len(done)) if done[i] and values[i] != expected(i)]:
            self.problems.append(f"results of configs {wrong} are not those of the plain run")
        if whole and not done.all():
            self.problems.append(f"complete, but only {done.sum()} of {len(done)} are collected")

    # ---- faults

    def _plan_faults(self) -> None:
        world = self.world
        harmful = [
            self._preempt,
            self._kill_worker,
            self._kill_node,
            self._outage,
            self._slow,
            self._full,
            self._failing,
            self._power_cut,
            self._rejections,
            self._no_room,
        ]
        weights = [4, 4, 4, 2, 3, 1, 1, 2, 1, 2]
        for _ in range(world.random.choice([0, 2, 5, 10])):
            fault = world.random.choices(harmful, weights)[0]
            world.at(world.random.uniform(0, EVENTFUL), lambda fault=fault: self._do(fault))

    def _do(self, fault: Callable[[], None]) -> None:
        if not self.quiet:
            self.counts[fault.__name__.removeprefix("_").replace("_", " ")] += 1
            self.world.note(f"fault: {fault.__name__}")
            fault()

    def _preempt(self) -> None:
        if running := self.cluster.running():
            self.cluster.preempt(self.world.random.choice(running))

    def _kill_worker(self) -> None:
        workers = [p for node in self.cluster.nodes for p in node.processes]
        if workers:
            self.world.random.choice(workers).kill()

    def _kill_node(self) -> None:
        self.cluster.crash(self.world.random.choice(self.cluster.nodes))

    def _for_a_while(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        setattr(owner, name, value)
        self.world.at(self.world.random.uniform(5, 400), lambda: setattr(owner, name, before))

    def _outage(self) -> None:
        self._for_a_while(self.cluster, "down", True)

    def _slow(self) -> None:
        self._for_a_while(self.cluster, "slow", 0.5)

    def _rejections(self) -> None:
        self._for_a_while(self.cluster, "rejecting", 0.5)

    def _no_room(self) -> None:
        """Other jobs of the account take what room there is."""
        if self.cluster.most == self.most:
            self._for_a_while(self.cluster, "most", self.world.random.choice([1, 2]))

    def _full(self) -> None:
        self._for_a_while(self.disk, "full", True)

    def _failing(self) -> None:
        self._for_a_while(self.disk, "failing", 0.02)

    def _power_cut(self) -> None:
        """All machines die, and the disk loses what it had not written."""
        for node in self.cluster.nodes:
            self.cluster.crash(node)
        users = {user.machine: user for user in self.users}
        for login in self.logins:
            for process in list(login.processes):
                if process is not users.get(login):
                    process.kill()
        self.disk.power_cut()

    def _calm(self) -> None:
        """From here on nothing fails any more."""
        self.quiet = True
        self.cluster.down, self.cluster.slow, self.cluster.rejecting = False, 0.0, 0.0
        self.cluster.most = self.most
        self.disk.full, self.disk.failing = False, 0.0

    # ---- the end

    def _settle(self) -> None:
        """Resume every run until it is complete, as a patient user would."""
        found: list[Path] = []
        self.world.sleep(600)
        self._calm()
        self._command("runs", self.logins[0], lambda: found.extend(all_runs(RUNS)))
        if not found:
            self._command("launch", self.logins[0], lambda: self._launch(trust=True))
            self._command("runs", self.logins[0], lambda: found.extend(all_runs(RUNS)))
        for path in found:
            self._complete(path)
        if lost := {path.name for path, _ in self.finished} - {path.name for path in found}:
            self.problems.append(f"runs with finished packs are lost: {sorted(lost)}")

    def _complete(self, path: Path) -> None:
        machine = self.logins[0]
        for _ in range(MOST_RESUMES):
            status = self._wait(path)
            if status is None or status.complete:
                break
            mute = [task.name for task in status.tasks if not task.summary and task.state != "done"]
            if mute and not status.failures:
                self.problems.append(f"ended as {status.state} without a reason: {mute}")
            resumed = self._command(
                *("resume", machine), lambda: self._resume_now(path), user=self._next_user(path)
            )
            if isinstance(resumed.error, NoRoom):
                self.world.sleep(600)
            elif isinstance(resumed.error, UserError) and not isinstance(resumed.error, BusyError):
                self.problems.append(f"cannot be resumed: {resumed.error}")
                return
            self.world.sleep(60)
        else:
            self.problems.append(f"not complete after {MOST_RESUMES} resumes: {status!r}")
        self._command("collect", machine, lambda: self._check_values(open_run(path), whole=True))
        self._command("collect", machine, lambda: self._check_kept(open_run(path)))

    def _resume_now(self, path: Path) -> None:
        run = open_run(path)
        if run.resume(template="cpu", slurm=CHANGES, trust=True):
            self._check_consent(run, trust=True)

    def _next_user(self, path: Path) -> int:
        """Return who resumes a run: anybody of a group, or who alone sees whether it has ended."""
        if self.shared and not self.cluster.private and self._is_reachable(path):
            return self.world.random.choice(sorted(self.disk.umasks))
        run = self.disk.find(str(path), None)
        folder = self.disk.find(f"{path}/{SUBMISSIONS}", None)
        assert run is not None
        assert folder is not None
        assert folder.entries is not None
        last = max(folder.entries, default=None)
        return run.owner if last is None else folder.entries[last].owner

    def _is_reachable(self, path: Path) -> bool:
        """Return whether the group gets to a run.

        If a launch was killed before it had shared the folders above, the next one warns of that.
        """
        nodes = [
            self.disk.find(str(folder), None) for folder in path.parents if folder != Path("/")
        ]
        return all(node is not None and node.mode & stat.S_IXGRP for node in nodes)

    def _check_kept(self, run: Run) -> None:
        """All packs that a task had on the disk have results."""
        held = run.directory.results.outcomes().finished
        finished = {name for path, name in self.finished if path == run.path}
        if lost := finished - held:
            self.problems.append(f"finished packs are lost: {sorted(lost)}")

    def _wait(self, path: Path) -> Any:
        """Return the status of a run once it is not running; None if that never happens."""
        end = self.world.now + PATIENCE
        while self.world.now < end:
            read = self._command("status", self.logins[0], lambda: open_run(path).status())
            if read.result is None:
                self.problems.append(f"no status: {read.error}")
                return None
            if not read.result.running:
                return read.result
            self.world.sleep(300)
        self.problems.append(f"never ends: {read.result!r} {[t.why for t in read.result.tasks]}")
        return None
