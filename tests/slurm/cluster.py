"""A real SLURM cluster on this one machine, inside one folder, for the tests.

By hand, with the packages slurm-wlm, slurmdbd, munge and mariadb-server installed, as root:

    python tests/slurm/cluster.py DIR [--no-accounting]

prints `export SLURM_CONF=...` when the cluster is ready, and stops it and removes DIR at Ctrl-C, at
SIGTERM or when its input ends. In tests, `Cluster` runs this same file as its supervisor.

Every process of a cluster is a descendant of that one supervisor. Daemons that detach themselves
come back to it as their subreaper, so that it can end them all: also when the tests were killed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

PR_SET_CHILD_SUBREAPER = 36
READY_WITHIN = 60.0

NODES = {
    "n1": "CPUs=8 RealMemory=8000 Gres=gpu:2 Feature=fast",
    "n2": "CPUs=8 RealMemory=8000 Gres=gpu:2 Feature=fast",
    "n3": "CPUs=4 RealMemory=4000",
    "n4": "CPUs=4 RealMemory=4000",
}
BLIND = "n4"
FOR_ALL = "n3"  # where the Python of these tests can be read by all users
PACKAGES = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db")

# What each line that is not obvious is for:
# - linuxproc and jobacct_gather/linux do without cgroups, also killing jobs over their memory.
# - cred_expire is also how long a requeued job must wait before it may start again (default 120).
# - MinJobAge is small so that tests see jobs that slurmctld has forgotten.
# - rl_enable limits how often users who are not root may ask; SLURM before 23.02 ignores it.
# - The node far1 never runs: it tells clients that the cluster spans more than this machine.
# - Nor do m1 and m2, by which the partition mixed has two types of GPU.
# - The partition whole gives nodes, whatever a job asks for.
# - The partition strict has a filter, below: it takes what says how many tasks, nodes and minutes.
SLURM_CONF = """\
ClusterName=mlp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/%n
SlurmdParameters=config_overrides
TmpFS={folder}/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2

JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
{accounting}

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=101
MaxJobCount=20000
MinJobAge=5
KillWait=10
SlurmdTimeout=10
MessageTimeout=10
JobSubmitPlugins=lua

SlurmctldParameters=rl_enable
GresTypes=gpu
{nodes}
NodeName=far1 NodeHostName=elsewhere NodeAddr=127.0.0.1 Port={far1} CPUs=4 RealMemory=4000 \
State=DOWN Reason="not a node of this machine"
NodeName=m1 NodeHostName={host} NodeAddr=127.0.0.1 Port={m1} CPUs=8 RealMemory=8000 \
Gres=gpu:a100:2 Feature=ampere,ib State=DOWN Reason="has no such GPU"
NodeName=m2 NodeHostName={host} NodeAddr=127.0.0.1 Port={m2} CPUs=8 RealMemory=8000 \
Gres=gpu:v100:4 Feature=volta,ib State=DOWN Reason="has no such GPU"
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1-0 PreemptMode=OFF
PartitionName=gpu Nodes=n1,n2 MaxTime=1-0 PreemptMode=OFF
PartitionName=preempt Nodes=n3 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=n3 PriorityTier=10 PreemptMode=OFF
PartitionName=blind Nodes=n4 PreemptMode=OFF
PartitionName=far Nodes=far1 PreemptMode=OFF
PartitionName=mixed Nodes=m1,m2 PreemptMode=OFF
PartitionName=strict Nodes=n1,n2 MaxTime=1-0 PreemptMode=OFF
PartitionName=whole Nodes=n1,n3 MaxTime=1-0 PreemptMode=OFF OverSubscribe=EXCLUSIVE
"""
JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, user)
    if job.partition ~= "strict" then return slurm.SUCCESS end
    local missing = {}
    if job.num_tasks == slurm.NO_VAL then table.insert(missing, "--ntasks") end
    if job.min_nodes == slurm.NO_VAL then table.insert(missing, "--nodes") end
    if job.time_limit == slurm.NO_VAL then table.insert(missing, "--time") end
    if job.account == nil then table.insert(missing, "--account") end
    if #missing == 0 then return slurm.SUCCESS end
    slurm.log_user("this site wants " .. table.concat(missing, " "))
    return slurm.ERROR
end

function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
SLURMDBD_CONF = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
LogFile={folder}/log/slurmdbd
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
DATABASE_USER = """\
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON *.* TO slurm@'127.0.0.1';
"""
ASSOCIATIONS = """\
add cluster mlp
add account lab cluster=mlp
add user root account=lab defaultaccount=lab
add user sync,nobody account=lab defaultaccount=lab
add account tight cluster=mlp
add user root account=tight MaxSubmitJobs=3 MaxJobs=2 MaxWall=60
"""


class ClusterError(Exception):
    """The cluster did not start, or did not do as told; the text has the end of a log."""


class Cluster:
    """A running cluster, from the entry of the `with` statement to its end."""

    def __init__(self, *, accounting: bool = True) -> None:
        self.accounting = accounting
        self.nodes = tuple(NODES)

    def __enter__(self) -> Cluster:
        # Sockets lie in this folder, and their paths may have no more than 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.conf = self.folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        command = [sys.executable, __file__, str(self.folder)]
        self._supervisor = subprocess.Popen(
            command if self.accounting else [*command, "--no-accounting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a Ctrl-C meant for the tests must not reach the supervisor
        )
        try:
            assert self._supervisor.stdout is not None
            line = self._supervisor.stdout.readline()
            if not line.startswith("export SLURM_CONF="):
                raise ClusterError(line + self._supervisor.stdout.read())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def supervisor(self) -> int:
        """The process id of the ancestor of all processes of the cluster."""
        return self._supervisor.pid

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster; its output is captured as text."""
        return subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **self.environment},
            check=check,
            timeout=timeout,
            capture_output=True,
            text=True,
        )

    def kill_node(self, name: str) -> None:
        """Let a node die: its slurmd and the processes of its jobs vanish at once.

        slurmctld notices within half a minute, or when the node is started again.
        """
        self._tell(f"kill {name}")

    def start_node(self, name: str) -> None:
        """Bring a node back, and wait until it may be given jobs."""
        self._tell(f"start {name}")

    def _tell(self, command: str) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(command + "\n")
        self._supervisor.stdin.flush()
        assert self._supervisor.stdout is not None
        if (answer := self._supervisor.stdout.readline()) != "done\n":
            raise ClusterError(answer)

    def _stop(self) -> None:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._supervisor.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # where the supervisor did not even begin


class Supervisor:
    """Starts the daemons in one folder, and ends all that came of them."""

    def __init__(self, folder: Path, accounting: bool) -> None:
        self.folder = folder
        self.accounting = accounting
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring the cluster up: the nodes wait in no queue, each daemon only for what it needs."""
        self._write_files()
        self._start("munged", f"munged --foreground --force {self._munge_options()}")
        if self.accounting:
            self._start_accounting()
        else:
            self._await("munged", (self.folder / "munge.socket").exists)
        self._start("slurmctld", "slurmctld -D")
        for name in NODES:
            self._start_slurmd(name)
        # Until it listens, sinfo would wait for it by whole seconds.
        self._await("slurmctld", lambda: answers(self.ports["slurmctld"]))
        for name in NODES:
            self._await_node(name)

    def obey(self, command: str) -> None:
        """Do what a line of the input says: `kill NODE` or `start NODE`."""
        match command.split():
            case ["kill", name] if name in NODES and self._runs(name):
                end_descendants(self.daemons[name].pid)
                self.daemons[name].kill()
                self.daemons[name].wait()
            case ["start", name] if name in NODES and not self._runs(name):
                # Otherwise, if slurmctld has not noticed its death yet, the jobs that died with
                # it would run on in the queue: only a reboot of the machine would end them.
                self._run(f"scontrol update NodeName={name} State=DOWN Reason=died")
                self._start_slurmd(name)
                self._await_node(name)
            case _:
                raise ClusterError(
                    f"got {command!r}; valid are: kill NODE that runs, start NODE that does not"
                )

    def stop(self) -> None:
        """End every process of the cluster and remove its folder."""
        end_descendants(os.getpid())
        shutil.rmtree(self.folder)

    def _start_accounting(self) -> None:
        data = self.folder / "mariadb"
        # A folder of its own for temporary tables: another server's start would remove them.
        self._run(
            f"mariadb-install-db --no-defaults --user=root --skip-test-db --datadir={data}"
            f" --tmpdir={self.folder}/tmp --auth-root-authentication-method=normal"
        )
        self._start("mariadbd", f"mariadbd --no-defaults {self._mariadb_options(data)}")
        self._await("mariadbd", lambda: answers(self.ports["mariadbd"]))
        self._start("slurmdbd", "slurmdbd -D")
        self._await("slurmdbd", lambda: answers(self.ports["slurmdbd"]))
        self._run("sacctmgr -i", ASSOCIATIONS)

    def _munge_options(self) -> str:
        return " ".join(
            f"--{option}={self.folder}/munge.{option.split('-')[0]}"
            for option in ("socket", "key-file", "seed-file", "pid-file", "log-file")
        )

    def _mariadb_options(self, data: Path) -> str:
        return (
            f"--user=root --datadir={data} --tmpdir={self.folder}/tmp --bind-address=127.0.0.1"
            f" --port={self.ports['mariadbd']} --socket={self.folder}/mariadb.socket"
            f" --pid-file={self.folder}/mariadb.pid --init-file={self.folder}/database_user.sql"
            " --skip-name-resolve --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync"
            " --innodb-buffer-pool-size=32M --innodb-lock-wait-timeout=900"
        )

    def _runs(self, node: str) -> bool:
        return self.daemons[node].poll() is None

    def _start_slurmd(self, name: str) -> None:
        command = f"slurmd -D -N {name}"
        if name == BLIND:
            cover = f"mount -t tmpfs none {self.folder}/hidden"
            command = f"unshare --mount sh -c '{cover} && exec {command}'"
        if name == FOR_ALL:
            people = Path(__file__).parents[1] / "users/people.py"
            command = f"{sys.executable} {people} {command}"
        self._start(name, command)

    def _write_files(self) -> None:
        for name in ("log", "state", "spool", "tmp", "hidden", "dev"):
            (self.folder / name).mkdir()
        # What lies in the folder is read by the daemons' own checks of modes and owners.
        self.folder.chmod(0o755)
        for index in (0, 1):
            device = self.folder / "dev" / f"nvidia{index}"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # what /dev/null is
        self.ports = free_ports("slurmctld", "slurmdbd", "mariadbd", *NODES, "far1", "m1", "m2")
        known = {"folder": self.folder, "host": socket.gethostname().split(".")[0], **self.ports}
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={known['host']} NodeAddr=127.0.0.1"
            f" Port={self.ports[name]} {resources}"
            for name, resources in NODES.items()
        )
        accounting = ACCOUNTING if self.accounting else NO_ACCOUNTING
        known |= {"nodes": nodes, "accounting": accounting.format(**known)}
        self._write("slurm.conf", SLURM_CONF.format(**known), 0o644)
        self._write("gres.conf", f"NodeName=n[1-2] Name=gpu File={device.parent}/nvidia[0-1]\n")
        self._write("job_submit.lua", JOB_SUBMIT, 0o644)
        self._write("slurmdbd.conf", SLURMDBD_CONF.format(**known))
        self._write("database_user.sql", DATABASE_USER)
        self._write("munge.key", os.urandom(128).hex())

    def _write(self, name: str, text: str, mode: int = 0o600) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(mode)

    def _start(self, name: str, command: str) -> None:
        """Start a daemon below a process of its own that adopts all that comes of the daemon."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-S", __file__, "--adopt", command],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _run(self, command: str, text: str = "") -> str:
        done = subprocess.run(
            command.split(), env=self._environment(), input=text, capture_output=True, text=True
        )
        if done.returncode:
            raise ClusterError(f"{command} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _await_node(self, name: str) -> None:
        self._await(name, lambda: self._is_up(name))

    def _is_up(self, name: str) -> bool:
        """Whether slurmctld would give a node jobs, and its slurmd listens."""
        command = ["sinfo", "-h", "-r", "-N", "-n", name, "-t", "idle,mixed,alloc", "-o", "%N"]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True)
        return name in done.stdout and answers(self.ports[name])

    def _await(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait for a daemon; when it ends instead, or is too slow, show the end of its log."""
        end = time.monotonic() + READY_WITHIN
        while not is_ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                guilty, what = (dead[0], "ended") if dead else (name, "is not ready")
                raise ClusterError(f"{guilty} {what}; its log ends:\n{self._log_of(guilty)}")
            time.sleep(0.02)

    def _log_of(self, name: str) -> str:
        logs = (self.folder / "log" / f"{name}.out", self.folder / "log" / name)
        return "".join(log.read_text()[-2000:] for log in logs if log.exists())


def adopt(command: str) -> int:
    """Run a daemon and stay its ancestor, and that of all that detaches itself, to the last."""
    become_subreaper()
    daemon = subprocess.Popen(["sh", "-c", f"exec {command}"])
    with suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == daemon.pid:
                daemon.returncode = os.waitstatus_to_exitcode(status)
    return daemon.returncode


def become_subreaper() -> None:
    """Have descendants that lose their parent become children of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(pid: int) -> None:
    """Kill all processes below this one, until none is left, however they fork meanwhile."""
    while processes := list(descendants(pid)):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def descendants(pid: int) -> Iterator[int]:
    """All processes below this one, and ended ones that nobody has waited for."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may contain anything.
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    below = [pid]
    while below:
        found = children.get(below.pop(), [])
        yield from found
        below += found


def free_ports(*names: str) -> dict[str, int]:
    """A free port for each name."""
    sockets = [socket.socket() for _ in names]
    for each in sockets:
        each.bind(("", 0))
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def answers(port: int) -> bool:
    """Whether anybody listens on this port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def lines_of_input() -> Iterator[str]:
    """The lines of standard input, which also ends with the parent process.

    A fork of the parent may hold the pipe open after the parent was killed.
    """
    parent = os.getppid()
    text = b""
    while os.getppid() == parent:
        if select.select([0], [], [], 0.5)[0]:
            chunk = os.read(0, 4096)
            if not chunk:
                return
            *lines, text = (text + chunk).split(b"\n")
            yield from (line.decode() for line in lines)


@contextmanager
def torn_down_at_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Do the teardown at the end of the block, which a signal that asks for it brings about."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in signals:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        stop()


def supervise(folder: Path, accounting: bool) -> None:
    """Run a cluster in this folder until the input ends, doing what its lines say."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ClusterError(f"{folder} is not empty, and would be removed at the end")
    become_subreaper()
    supervisor = Supervisor(folder.resolve(), accounting)
    with torn_down_at_signals(supervisor.stop):
        supervisor.start()
        print(f"export SLURM_CONF={supervisor.folder}/slurm.conf", flush=True)
        for line in lines_of_input():
            try:
                supervisor.obey(line)
                print("done", flush=True)
            except ClusterError as error:
                print(" ".join(str(error).split()), flush=True)


def main() -> None:
    """The supervisor, or with --adopt the parent of one daemon."""
    if sys.argv[1:2] == ["--adopt"]:
        sys.exit(adopt(sys.argv[2]))
    parser = argparse.ArgumentParser(description="Run a SLURM cluster until Ctrl-C.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-accounting", action="store_true")
    arguments = parser.parse_args()
    if missing := [name for name in PACKAGES if shutil.which(name) is None]:
        sys.exit(f"cluster.py needs {', '.join(missing)}, which are not installed")
    try:
        supervise(arguments.folder, not arguments.no_accounting)
    except ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
