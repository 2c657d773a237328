"""Nothing that another user could have written is executed, and no other process is signalled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import RunError, files, open_run
from mlpsubmit.checksums import sealed
from mlpsubmit.jobs import trust
from mlpsubmit.jobs.command_line import WORKER, module_command
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.worker_process import terminate
from mlpsubmit.runs import submit
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

#: Each test launches a run or two.
pytestmark = pytest.mark.slow

Command = Callable[..., Any]

PLANTED = "import pathlib; pathlib.Path('planted').touch()"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the run of `stopped`, which trains once."""
    return tmp_path_factory.mktemp("saved") / "mlpruns"


@pytest.fixture
def stopped(mlpsubmit: Command, workplace: Path, saved: Path) -> Run:
    """A run that the first failing pack has stopped."""
    spec = (workplace / "small.py").read_text()
    failing = "        if noise and step == 5: 1 / 0\n"
    (workplace / "small.py").write_text(
        spec.replace("    def batch_fn(step):\n", f"    def batch_fn(step):\n{failing}")
    )
    if not saved.exists():
        assert mlpsubmit("launch", "small.py", "--executor", "debug").code == 1
        shutil.copytree("mlpruns", saved)
    else:
        shutil.copytree(saved, "mlpruns")
    return open_run()


def plant(run: Run) -> None:
    """Replace the pickled sweep by one that leaves a trace when it is loaded."""
    import pickle

    class Planted:
        def __reduce__(self) -> Any:
            return exec, (PLANTED,)

    file = run.path / run_directory.SWEEP_PICKLE
    files.publish(file, sealed(pickle.dumps((Planted(), b""))))


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files belong to another user: really, where this user may do that."""
    if os.geteuid() == 0:
        for file in (path, *path.rglob("*")):
            os.chown(file, 65534, -1)
    else:
        uid = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: uid)


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "sweep.pkl",
        "sweep.json",
        "submissions",
        "submissions/000",
        "submissions/000/intent.json",
    ],
)
def test_what_others_can_write_is_not_executed(
    name: str, stopped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped.path.resolve() / name
    before = path.stat().st_mode
    path.chmod(before | stat.S_IWOTH)
    with pytest.raises(RunError, match=re.escape(f"{path} can be written by anyone, so others")):
        stopped.resume("debug")
    path.chmod(before | stat.S_IWGRP)
    monkeypatch.setattr(trust, "_own_group", lambda gid: False)
    with pytest.raises(RunError, match=re.escape(f"{path} can be written by the group ")):
        stopped.resume("debug")
    monkeypatch.setattr(trust, "_own_group", lambda gid: True)
    trust.sweep_hash(stopped.directory)
    assert stopped.directory.submissions() == [0], "nothing is half-created"


def test_a_planted_sweep_is_executed_only_if_the_user_says_so(
    stopped: Run, mlpsubmit: Command
) -> None:
    plant(stopped)
    stopped.path.chmod(0o777)
    for command in (("resume",), ("launch", "small.py"), ("launch", "small.py", "--dry-run")):
        refused = mlpsubmit(*command, "--executor", "debug")
        assert refused.code == 2
        folder = stopped.path.resolve()
        assert "others could have replaced the functions and commands in the run" in refused.err
        assert f"make it yours alone (chmod go-w {folder}), or launch its spec with" in refused.err
        assert refused.err.endswith("or, if you trust them: --trust\n")
    assert not Path("planted").exists()
    with pytest.raises(Exception, match=r"NoneType"):  # it is loaded, and is no sweep
        stopped.resume("debug", trust=True)
    assert Path("planted").exists()


def test_a_link_in_the_place_of_a_sweep_is_not_followed(stopped: Run, workplace: Path) -> None:
    file = stopped.path / run_directory.SWEEP_PICKLE
    file.rename(workplace / "elsewhere")
    file.symlink_to(workplace / "elsewhere")
    with pytest.raises(RunError, match=r"sweep.pkl is a link, so others could have replaced"):
        stopped.resume("debug")


def test_a_run_of_another_user_is_read_but_not_executed(
    stopped: Run, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(stopped.path, monkeypatch)
    other = trust.owner(stopped.path)
    assert other is not None
    assert "0/8 configs" in mlpsubmit("status").out
    assert mlpsubmit("logs").code == 0
    assert "results: small.nc (0 of 8 configs)" in mlpsubmit("collect").out
    for command in (("resume",), ("launch", "small.py")):
        refused = mlpsubmit(*command, "--executor", "debug")
        assert refused.code == 2
        assert f"run {stopped.id} belongs to {other}: resuming it executes the func" in refused.err
        assert f"let {other} resume it, or launch its spec with another --runs-dir" in refused.err
    if os.geteuid() == 0:
        trusted = mlpsubmit("resume", "--executor", "debug", "--trust")
        assert "2 configs failed" in trusted.out, "as it does in the launch"
        return
    refused = mlpsubmit("cancel")
    assert refused.code == 2
    assert f"only {other} can stop them; ask {other} to run: mlpsubmit cancel" in refused.err


def test_a_run_that_only_its_owner_may_read(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of root, whom everybody has to trust."""
    monkeypatch.setattr(trust, "owner", lambda path: "alice")
    monkeypatch.setattr(submit, "owner", lambda path: "alice")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "verify_pickle", denied)
        with pytest.raises(RunError, match=r"belongs to alice: .*sweep.pkl cannot be read \(no"):
            trust.sweep_hash(stopped.directory)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunError, match=r"continue it as alice, to whom it belongs, or launch its"):
        stopped.resume("debug")


def denied(*_: Any) -> bytes:
    raise PermissionError(13, "no")


def test_root_only_may_cancel_for_others(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(RunError, match=r"can stop them; ask .* to run: mlpsubmit cancel"):
        stopped.cancel()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert stopped.cancel() == 0


def test_a_worker_executes_the_submitted_sweep_alone(workplace: Path, stopped: Run) -> None:
    """A run in a folder of a group needs no flag there, and a planted file has no effect."""
    submitted = trust.sweep_hash(stopped.directory)
    (stopped.path / "..").resolve().chmod(0o777)
    plant(stopped)
    command = module_command(WORKER, stopped.path, 0, submitted, 0)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sweep.pkl: is not the one that was submitted (its hash is " in done.stdout
    assert f"the submission's {submitted}); the functions in it are not executed" in done.stdout
    assert not Path("planted").exists()


def test_a_worker_finds_modules_where_the_launch_said(workplace: Path, stopped: Run) -> None:
    """Who changes sweep.json must not move the folders that modules are imported from."""
    submitted = trust.sweep_hash(stopped.directory)
    file = stopped.path / run_directory.SWEEP_JSON
    content = json.loads(file.read_bytes())
    content["launched_in"]["run"] = "/elsewhere/small/run"
    files.publish_json(file, content)
    command = module_command(WORKER, stopped.path, 0, submitted, 0)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sweep.pkl: is not the one that was submitted" in done.stdout


def test_in_a_sticky_folder_nobody_replaces_what_is_another_users(stopped: Run) -> None:
    for path in (stopped.path, stopped.path / "submissions"):
        path.chmod(0o1777)
    trust.sweep_hash(stopped.directory)
    (stopped.path / "sweep.pkl").chmod(0o666)
    with pytest.raises(RunError, match=r"sweep.pkl can be written by anyone, so others could"):
        trust.sweep_hash(stopped.directory)


def test_the_processes_of_a_calibration_execute_no_sweep_of_others(stopped: Run) -> None:
    plant(stopped)
    stopped.path.chmod(0o777)
    with pytest.raises(RunError, match=r"can be written by anyone; the functions in it are not"):
        trust.checked_sweep(stopped.path, None)


def test_whatever_the_umask_nobody_else_may_write_what_is_executed(
    mlpsubmit: Command, workplace: Path
) -> None:
    spec = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(
        spec.replace("noise, bsz", "noise, bsz, scale").replace(
            '"small",', '"small", data=lambda: {"scale": 1.0},'
        )
    )
    before = os.umask(0)
    try:
        assert mlpsubmit("launch", "small.py", "MAX_ITER=3", "--executor", "debug").code == 0
    finally:
        os.umask(before)
    run = open_run().path
    assert (run / "sweep.pkl").stat().st_mode & 0o777 == 0o600
    (data,) = (run / "data").glob("*.pt")
    executed = [run, run / "data", data, run / "compiled", run / "submissions"]
    executed += [run / "sweep.json", run / "submissions/000", run / "submissions/000/intent.json"]
    assert [path for path in executed if path.stat().st_mode & 0o022] == []


def test_data_that_others_could_have_written_is_computed_again(
    workplace: Path, mlpsubmit: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(
        spec.replace("noise, bsz", "noise, bsz, scale").replace(
            '"small",', '"small", data=lambda: {"scale": 1.0},'
        )
    )
    assert mlpsubmit("launch", "small.py", "MAX_ITER=3", "--executor", "debug").code == 0
    import torch

    sweep = load_spec(Path("small.py")).overridden({"MAX_ITER": 3}).refreshed()
    directory = open_run().directory
    (file,) = (directory.path / "data").glob("*.pt")
    file.write_bytes(b"c__builtin__\nexec\n")  # would act when it is unpickled
    file.chmod(0o666)
    data = SharedData(directory, sweep, torch.device("cpu"))
    assert data.entries(sweep.config(0)) == {"scale": 1.0}
    expected = f"{file}: can be written by anyone; its data is computed again"
    assert expected in capfd.readouterr().out
    assert file.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("name", ["../../elsewhere", "", "x\ny"])
@pytest.mark.parametrize("field", ["name", "id"])
def test_the_name_in_a_run_never_leads_to_another_folder(
    field: str, name: str, stopped: Run, mlpsubmit: Command, workplace: Path
) -> None:
    file = stopped.path / run_directory.SWEEP_JSON
    files.publish_json(file, {**json.loads(file.read_bytes()), field: name})
    before = set(workplace.parent.rglob("*.nc"))
    for command in ("collect", "resume"):  # the name becomes a line of an sbatch script
        refused = mlpsubmit(command, stopped.path)
        assert refused.code == 2
        assert f"sweep.json: is damaged ({field}: got {name!r}" in refused.err
    assert set(workplace.parent.rglob("*.nc")) == before


# ---- signals -------------------------------------------------------------------------------------


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that trains nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    while process_start(process.pid) is None:
        pass
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("pid", [-1, 0, 1, -2, True, "7", None, 1.5])
def test_groups_and_what_is_no_process_id_are_never_signalled(
    pid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    why = terminate({"pid": pid, "process_start": process_start(1)}, "run", "000-0000")
    assert why == f"its process id is {pid!r}"


def test_a_planted_process_is_not_signalled(
    bystander: subprocess.Popen[bytes], stopped: Run, mlpsubmit: Command
) -> None:
    """One with the right start time, which everybody can read, but the wrong command line."""
    start = process_start(bystander.pid)
    host = json.loads((stopped.path / "submissions/000/intent.json").read_bytes())["host"]
    now = time.time()
    beat = {"state": "starting", "host": host, "pid": bystander.pid, "process_start": start}
    beat |= {"started": now, "updated": now}
    files.publish_json(stopped.path / "heartbeats/000-0000.json", beat)
    refused = mlpsubmit("cancel")
    assert refused.code == 2
    assert (
        f"task 000-0000: the process {bystander.pid} now belongs to another program: "
        in refused.err
    )
    assert "were not signalled" in refused.err
    assert bystander.poll() is None


WAITS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "


@pytest.mark.parametrize(
    ("arguments", "is_worker"),
    [
        ((WORKER, "/runs/small/RUN", "0", "5e1f", "3"), True),
        ((WORKER, "/moved/RUN", "000", "5e1f", "3"), True),
        ((WORKER, "/runs/small/OTHER", "0", "5e1f", "3"), False),
        ((WORKER, "/runs/small/RUN", "1", "5e1f", "3"), False),
        ((WORKER, "/runs/small/RUN", "0", "5e1f", "4"), False),
        ((WORKER,), False),
        (("/usr/bin/mlpsubmit", "launch", "small.py"), True),
        (("/usr/bin/mlpsubmit", "logs", "--follow"), False),
        (("train.py",), False),
    ],
)
def test_a_worker_is_known_by_its_command_line_and_its_start(
    arguments: tuple[str, ...], is_worker: bool
) -> None:
    script = WAITS + "print(flush=True); signal.pause()"
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        own = {"pid": process.pid, "process_start": process_start(process.pid)}
        earlier = {**own, "process_start": "another boot:1"}
        assert "now belongs to another program" in str(terminate(earlier, "RUN", "000-0003"))
        assert (terminate(own, "RUN", "000-0003") is None) == is_worker
        if not is_worker:
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 7
    assert terminate(own, "RUN", "000-0003") is None, "it has ended"
