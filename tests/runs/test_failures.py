"""An error in a function of the user fails its pack alone, and is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import RunError, Sweep, UserError, collect, files, launch, open_run
from mlpsubmit.errors import BusyError
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.store import run_directory

Command = Callable[..., Any]

#: One width of three fails, in one way or another.
SPEC = """
import torch
from mlpsubmit import Sweep

def data(gen):
    return {"shift": torch.randn(3, generator=gen)}

def shifted(shift, bsz, gen, width, trouble="", X=None, y=None):
    def batch_fn(step):
        if width == 8 and trouble == "raises" and step == 5:
            raise ValueError("the data ran out")
        inputs = torch.randn(bsz, 3, generator=gen)
        targets = inputs @ shift
        if width == 8 and trouble == "shapes":
            targets = torch.stack([targets] * 2, 1)
        return inputs, targets
    return batch_fn

def size(model, width, trouble=""):
    if width == 8 and trouble == "grab raises":
        raise RuntimeError("no such layer")
    return model.input_layer.weight.abs().mean()

sweep = Sweep(
    "trouble", axes={"WIDTH": [4, 8, 16], "trial": range(2)}, data=data, batchfn=shifted,
    trouble="", N_SAMPLES=16, MAX_ITER=50, LR=0.1, LOSS_CHECKPOINTS=[1e-6], D_OUT=1,
    grabs={"size": size},
)
"""


@pytest.fixture
def trouble(workplace: Path) -> Path:
    (workplace / "trouble.py").write_text(SPEC)
    return workplace / "trouble.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", "ValueError: the data ran out"),
        ("grab raises", "no such layer"),
        ("shapes", "batch function shifted gave X of shape (16, 3) and y of shape (16, 2)"),
    ],
)
def test_a_failing_config_costs_only_itself(
    mlpsubmit: Command, trouble: Path, kind: str, error: str
) -> None:
    ended = mlpsubmit("launch", "trouble.py", f"trouble={kind}")
    assert ended.code == 1
    assert error in ended.err
    assert "4 of 6 configs done, 2 missing (2 failed)" in ended.err

    shown = mlpsubmit("status")
    assert shown.code == 1
    assert "failed" in shown.out
    assert error in shown.out
    assert "(2 configs: width=8)" in shown.out.replace("\n", " ")

    collected = mlpsubmit("collect")
    assert collected.code == 1
    assert error in collected.err
    dataset = open_run().collect()
    assert dataset.status.sel(width=8).values.tolist() == ["failed", "failed"]
    assert (dataset.status.sel(width=[4, 16]) == "done").all()
    assert dataset.train_loss.sel(width=8).isnull().all()
    assert error in str(dataset.error.sel(width=8).values[0])

    # What failed is tried again, and fails again: the spec of a run never changes.
    again = mlpsubmit("resume")
    assert again.code == 1
    assert error in again.err

    # A fixed spec reuses what is done and trains the rest.
    fixed = mlpsubmit("launch", "trouble.py")
    assert fixed.code == 0
    assert open_run().collect().train_loss.notnull().all()


REUSED = """
import torch
from mlpsubmit import Sweep

def bfn(noise, lr, bsz, gen):
    if noise > 0.2 and lr > 0.15:
        raise ValueError("my bug")
    def f(step):
        X = torch.randn(bsz, 4, generator=gen)
        return X, X[:, 0]
    return f

sweep = Sweep("re", {"noise": [0, 0.3], "LR": [0.1]}, batchfn=bfn, WIDTH=8, N_SAMPLES=8, MAX_ITER=5,
              LOSS_CHECKPOINTS=[], where=lambda c: c.lr != 0.7)
"""


@pytest.mark.slow
def test_values_that_reused_configs_have_are_not_to_blame(
    mlpsubmit: Command, workplace: Path
) -> None:
    (workplace / "re.py").write_text(REUSED)
    assert mlpsubmit("launch", "re.py", "--executor", "debug").code == 0
    mlpsubmit("launch", "re.py", "LR+=[0.2,0.7]", "--executor", "local")
    (group,) = open_run().status().failure_groups
    assert str(group) == "ValueError: my bug (1 config: noise=0.3 and lr=0.2)"


@pytest.mark.filterwarnings("always")
def test_the_debugger_executor_stops_at_the_first_failure(
    mlpsubmit: Command, trouble: Path
) -> None:
    ended = mlpsubmit("launch", "trouble.py", "trouble=raises", "--executor", "debug")
    assert ended.code == 1
    assert "stopped at the first failing pack" in ended.err
    assert "ValueError: the data ran out" in ended.err
    status = open_run().status()
    assert status.failed == 2
    assert status.state in ("failed", "stopped")
    again = mlpsubmit("resume", "--executor", "debug")
    assert again.code == 1
    assert "has been edited" not in again.err

    # Whoever fixes the spec and resumes would be puzzled by the same failure.
    trouble.write_text(f"{trouble.read_text()}\n# fixed\n")
    again = mlpsubmit("resume", "--executor", "debug")
    assert again.code == 1
    wanted = (
        "trouble.py has been edited since the launch, and what was launched is resumed; for what"
    )
    assert wanted in again.err
    command = "mlpsubmit launch trouble.py trouble=raises --executor debug"
    assert f"the spec says now, launch it: {command}\n" in again.err
    trouble.unlink()
    assert "has been edited" not in mlpsubmit("resume", "--executor", "debug").err


def test_collect_from_python_says_what_is_missing(
    mlpsubmit: Command, trouble: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Means would silently be those of the others."""
    mlpsubmit("launch", "trouble.py", "trouble=raises", "--executor", "debug")
    run = open_run()
    capfd.readouterr()
    run.collect()
    collect(run)
    status = run.status()
    lacking = f"{status.done} of 6 configs have results (2 failed, {status.missing} missing)"
    assert capfd.readouterr().err == 2 * f"run {run.id}: {lacking}\n"
    shown = mlpsubmit("collect").err
    assert lacking not in shown  # it has the reasons, too


@pytest.mark.slow
def test_the_debugger_opens_where_the_users_function_raised(trouble: Path) -> None:
    command = [str(Path(sys.executable).parent / "mlpsubmit"), "launch", "trouble.py"]
    command += ["trouble=grab raises", "--executor", "debug", "--pdb"]
    done = subprocess.run(
        command,
        cwd=trouble.parent,
        input="p width\nq\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert '-> raise RuntimeError("no such layer")' in done.stdout
    assert "(Pdb) 8" in done.stdout
    assert done.returncode == 1


def test_a_data_function_that_raises_is_said_for_every_config(
    mlpsubmit: Command, trouble: Path
) -> None:
    trouble.write_text(
        SPEC.replace('return {"shift"', 'raise OSError("no such disk")\n    return {"shift"')
    )
    ended = mlpsubmit("launch", "trouble.py", "--executor", "debug")
    assert ended.code == 1
    assert "OSError: no such disk" in ended.err

    trouble.write_text(SPEC.replace('return {"shift": ', "return list({}) or ("))
    trouble.write_text(trouble.read_text().replace("generator=gen)}", "generator=gen))"))
    ended = mlpsubmit("launch", "trouble.py", "--executor", "debug")
    assert "the data function data returned Tensor; it should return a mapping" in ended.err


def test_a_diverged_config_is_a_result(mlpsubmit: Command, workplace: Path) -> None:
    ended = mlpsubmit("launch", "small.py", "--executor", "debug", "LR=[0.1,1e6]", "width=4")
    assert ended.code == 0
    line = (
        "4 configs diverged: the train loss became infinite or NaN; that is a result, which counts"
    )
    assert f": {line} as done\n" in ended.out  # as in the log of a task
    assert f"\n{line} as done\n" in ended.out
    assert open_run().status().divergence == f"{line} as done"
    assert f"  {line} as done\n" in mlpsubmit("status").out.replace("\n  as done", " as done")
    dataset = open_run().collect()
    assert (dataset.status.sel(lr=1e6) == "diverged").all()
    assert (dataset.status.sel(lr=0.1) == "done").all()
    assert dataset.timekeys.sel(lr=1e6).isnull().all()
    assert not dataset.crossed.sel(lr=1e6).any()
    assert dataset["size"].sel(lr=1e6).isnull().all()
    assert not np.isfinite(dataset.train_loss.sel(lr=1e6)).any()


def two_tasks(bsz: int, gen: Any) -> Any:
    import torch

    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))


def test_a_launch_that_dies_before_its_workers_start_is_resumed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent is on disk, the answer is not: nothing runs, and resume starts it all."""

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt
        yield

    sweep = Sweep("dies", {"WIDTH": [4, 8]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "submit", die)
        with pytest.raises(KeyboardInterrupt):
            launch(sweep, executor="local")
    run = open_run("dies")
    assert run.directory.jobs(0) is None
    status = run.status()
    assert (status.state, status.missing) == ("crashed", 2)
    assert run.resume("debug") == 2
    assert run.status().complete


def test_a_run_directory_appears_whole_or_not_at_all(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    sweep = Sweep("full", batchfn=two_tasks, MAX_ITER=3, WIDTH=4)
    with monkeypatch.context() as patched:
        patched.setattr("mlpsubmit.files.publish_json", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device: "):
            launch(sweep, executor="debug")
    assert not (workplace / "mlpruns").exists()
    assert launch(sweep, executor="debug").status().complete


def test_damaged_results_train_again(workplace: Path) -> None:
    sweep = Sweep("damaged", {"WIDTH": [4, 8]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    run = launch(sweep, executor="debug")
    whole = run.collect().drop_vars("seconds")
    (shard,) = run.directory.results.shards()
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY")] ^= 255
    shard.write_bytes(content)
    partial = open_run("damaged").collect()
    assert sorted(partial.status.values.tolist()) == ["done", "missing"]
    # The one that found it has recorded it, so that all count the same.
    status = open_run("damaged").status()
    assert (status.done, status.missing, status.state) == (1, 1, "stopped")
    assert status.damaged == [f"{shard.name}: 0000001.npz"]
    assert open_run("damaged").resume("debug") == 1
    status = open_run("damaged").status()
    assert (status.done, status.damaged) == (2, [])
    assert open_run("damaged").collect().drop_vars("seconds").equals(whole)


def test_an_unusable_checkpoint_is_trained_anew(workplace: Path) -> None:
    sweep = Sweep("stale", {"WIDTH": [4]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    run = launch(sweep, executor="debug")
    expected = run.collect().drop_vars("seconds")
    for shard in run.directory.results.shards():
        os.unlink(shard)
    run.directory.checkpoint("0000000").write_bytes(b"not a checkpoint")
    assert run.resume("debug") == 1
    assert run.collect().drop_vars("seconds").equals(expected)


def test_a_checkpoint_that_cannot_be_written_costs_nothing(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlpsubmit import files

    publish = files.publish

    def full(path: Path, *arguments: Any, **options: Any) -> None:
        if path.suffix == ".pt":
            raise OSError(28, "No space left on device")
        publish(path, *arguments, **options)

    settings = {"MAX_ITER": 30, "N_SAMPLES": 4, "CHECKPOINT_MINUTES": 1e-9, "WIDTH": 4}
    monkeypatch.setattr("mlpsubmit.files.publish", full)
    run = launch(Sweep("full", batchfn=two_tasks, **settings), executor="debug")
    assert run.status().complete
    assert "checkpoint 0000000.pt not written: [Errno 28] No space left" in capfd.readouterr().out


def test_a_failure_keeps_the_checkpoint(mlpsubmit: Command, trouble: Path) -> None:
    """What failed, out of memory for example, resumes from where it was."""
    mlpsubmit(
        *("launch", "trouble.py", "trouble=raises", "--executor", "debug", "WIDTH=8"),
        *("CHECKPOINT_MINUTES=1e-9",),
    )
    run = open_run()
    assert run.status().failed == 2
    assert run.directory.checkpoint("0000000").exists()


def test_a_torn_heartbeat_is_no_obstacle(workplace: Path) -> None:
    sweep = Sweep("torn", {"WIDTH": [4]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    run = launch(sweep, executor="debug")
    run.directory.heartbeat("000-0000").write_bytes(b"")
    assert run.status().complete
    assert launch(sweep, executor="debug").id == run.id


def test_a_change_in_another_encoding_under_git_is_no_obstacle(workplace: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
        subprocess.run(["git", *who, *arguments], cwd=workplace, check=True, capture_output=True)

    git("init")
    (workplace / "notes.txt").write_text("plain")
    git("add", ".")
    git("commit", "-m", "begin")
    (workplace / "notes.txt").write_bytes("na\u00efve".encode("latin-1"))
    sweep = Sweep("coded", {"WIDTH": [4]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    origin = launch(sweep, executor="debug").directory.sweep["origin"]
    assert len(origin["git_commit"]) == 40
    assert len(origin["git_diff_hash"]) == 16


def test_a_launch_that_is_refused_leaves_the_folders_to_the_one_in_progress(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each found no folder: on a network file system, that of the other is seen late."""
    sweep = Sweep("twice", {"WIDTH": [4]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    folder, exists = Path("mlpruns", "twice"), Path.exists
    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "exists", lambda path: path != folder and exists(path))
    monkeypatch.setattr("mlpsubmit.runs.submit.LOCK_SECONDS", 0.0)
    with files.locked(folder / run_directory.LOCK):
        inode = (folder / run_directory.LOCK).stat().st_ino
        with pytest.raises(BusyError, match="another launch, resume or prune is in progress"):
            launch(sweep, executor="debug")
        assert (folder / run_directory.LOCK).stat().st_ino == inode


def test_two_launches_at_once_make_one_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpsubmit.runs.submit.LOCK_SECONDS", 0.0)
    sweep = Sweep("twice", {"WIDTH": [4]}, batchfn=two_tasks, MAX_ITER=3, N_SAMPLES=4)
    (workplace / "mlpruns" / "twice").mkdir(parents=True)
    with (
        files.locked(workplace / "mlpruns" / "twice" / run_directory.LOCK),
        pytest.raises(RunError, match="another launch, resume or prune is in progress"),
    ):
        launch(sweep, executor="debug")
    run = launch(sweep, executor="debug")
    with (
        files.locked(run.path / run_directory.PLAN),
        pytest.raises(
            RunError, match=f"run {run.id}: another launch, resume or prune is in progress"
        ),
    ):
        run.resume("debug")


def test_entries_of_the_data_come_before_the_hyperparameters(
    mlpsubmit: Command, trouble: Path
) -> None:
    """Status cuts long messages."""
    trouble.write_text(SPEC.replace('return {"shift": ', 'return {"shifts": '))
    mlpsubmit("launch", "trouble.py", "--executor", "debug")
    shown = mlpsubmit("status").out.replace("\n", " ")
    assert " needs 'shift' (did you mean 'shifts'?); give the argument in the spec, as an" in shown
    assert "offered are y, X, split, gen, bsz, device, shifts, " in shown


def test_data_entries_with_names_that_mean_something_else(
    mlpsubmit: Command, trouble: Path
) -> None:
    trouble.write_text(SPEC.replace('return {"shift": ', 'return {"X": torch.ones(1), "shift": '))
    ended = mlpsubmit("launch", "trouble.py", "--executor", "debug")
    assert "the data function data returned entries called X" in ended.err
    assert "give them other names, such as X_train" in ended.err


@pytest.mark.parametrize("pack_size", ["1", "auto"])
def test_a_diverged_config_does_not_spoil_array_grabs(
    mlpsubmit: Command, workplace: Path, pack_size: str
) -> None:
    text = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(
        text.replace("model.input_layer.weight.abs().mean()", "model.input_layer.weight[0].clone()")
    )
    ended = mlpsubmit(
        *("launch", "small.py", "--executor", "debug", "LR=[0.1,1e6]", "width=4", "noise=0"),
        *("trial=0", f"PACK_SIZE={pack_size}"),
    )
    assert ended.code == 0, ended.err
    dataset = open_run().collect()
    assert dataset.status.values.tolist() == ["done", "diverged"]
    assert dataset["size"].notnull().sum("size_dim0").values.tolist() == [3, 0]
