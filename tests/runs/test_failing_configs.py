"""A config that raises, or kills its process, costs itself alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from torch import nn

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.killed_packs import add_end, add_unrecorded_ends, pack_ends
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard, failures_json
from mlpsubmit.jobs.task_status import TaskStatus
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

#: The configs of eight that fail.
BAD = (2, 5)


def shifts(trouble: str, config: int) -> dict[str, torch.Tensor]:
    if trouble == "data" and config in BAD:
        raise OSError("no such disk")
    return {"shift": torch.ones(3)}


def batches(shift: Any, bsz: int, gen: Any, trouble: str, config: int, kill_at: int = -1) -> Any:
    if trouble == "factory" and config in BAD:
        raise ValueError(f"no data for {config}")

    def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        bad = config in BAD
        if (trouble, step, bad) in [("first batch", 0, True), ("batch", 20, True)]:
            raise ValueError(f"no batch for {config}")
        if trouble == "exit" and step == 20 and bad:
            sys.exit(3)
        if trouble == "every batch" and step == 20:
            raise ValueError("no batch")
        if trouble == "all but one" and step == 0 and config != 5:
            raise ValueError("no batch")
        X = torch.randn(bsz, 3, generator=gen) + shift
        y = X[:, 0] + 0.1 * config
        return X, y + 1000 if trouble == "loss" and step == 20 and bad else y

    return batch_fn


class Network(nn.Module):
    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(d_in, width), nn.Linear(width, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.read_in(X))
        return self.read_out(hidden).squeeze(-1)  # type: ignore[no-any-return]


def network(d_in: int, width: int, trouble: str, config: int) -> nn.Module:
    if trouble == "model" and config in BAD:
        raise RuntimeError("no model")
    return Network(d_in, width)


def definite(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss that raises where values are large, for all configs of a stack together."""
    torch.linalg.cholesky(torch.eye(2) * (500 - y.abs().max()))
    return (output - y).square().mean()


def size(model: Any, trouble: str, config: int) -> torch.Tensor:
    if trouble == "grab" and config in BAD:
        raise RuntimeError("no such layer")
    return model.read_in.weight.abs().mean()  # type: ignore[no-any-return]


def sweep(trouble: str, **settings: Any) -> Sweep:
    functions = {"data": shifts, "batchfn": batches, "grabs": {"size": size}, "MODEL": network}
    numbers = {"WIDTH": 8, "N_SAMPLES": 16, "MAX_ITER": 70, "LR": 0.01, "LOSS_CHECKPOINTS": []}
    given = {**functions, **numbers, "LOSS": definite, "trouble": trouble, **settings}
    return Sweep("failing", {"config": range(8)}, **given)


def launched(trouble: str, **settings: Any) -> Run:
    return launch(sweep(trouble, **settings), executor="debug", keep_going=True, fresh=True)


def measured(run: Run) -> xarray.Dataset:
    dataset = run.collect().drop_vars(["seconds", "trained_together"], errors="ignore")
    dataset.attrs = {}
    return dataset


def check(trouble: str, error: str, place: str, bad: tuple[int, ...] = BAD) -> Run:
    """Train a pack of eight, and compare with one config at a time."""
    run = launched(trouble)
    status = run.status()
    assert (status.done, status.failed, status.missing) == (8 - len(bad), len(bad), 0)
    assert status.state == "failed"
    group = status.failure_groups[0]
    assert error in str(group)
    assert place in group.place
    together, alone = measured(run), measured(launched(trouble, PACK_SIZE=1))
    assert together.config[together.status == "failed"].values.tolist() == list(bad)
    assert (together.status == alone.status).all()
    for name in ("train_loss", "size") if len(bad) < 8 else ("train_loss",):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)
    return run


# ---- functions that raise -----------------------------------------------------------------------


def test_configs_whose_batch_function_raises_are_set_aside(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = check("batch", "no batch for 2 (2 configs: config=2,5; others with", "in batch_fn: raise")
    assert "test_failing_configs.py:" in run.status().failure_groups[0].place
    assert run.collect().trained_together.dropna("config").values.tolist() == [6] * 6
    assert "pack 0000000: continuing with the other 6\n" in capfd.readouterr().out


def test_what_stops_at_its_first_failure_counts_the_configs_that_failed(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = launch(sweep("batch"), executor="debug")
    printed = capfd.readouterr().out
    assert "pack 0000000: 2 of 8 configs failed\n" in printed
    assert "continuing" not in printed
    assert run.status().failed == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "error", "place"),
    [
        ("data", "OSError: no such disk (2 configs: config=2,5)", "in shifts: raise OSError"),
        (
            "factory",
            "no data for 2 (2 configs: config=2,5; others with",
            "in batches: raise ValueError",
        ),
        ("first batch", "ValueError: no batch for 2 (2 configs", "in batch_fn: raise ValueError"),
        ("exit", "SystemExit: 3 (2 configs", "in batch_fn: sys.exit(3)"),
        ("model", "RuntimeError: no model (2 configs", "in network: raise RuntimeError"),
        ("loss", "The factorization could not be completed", "in definite: torch.linalg"),
        ("grab", "failed: RuntimeError: no such layer (2 configs", "in size: raise Runtime"),
    ],
)
def test_wherever_it_raises_the_others_are_trained(
    trouble: str, error: str, place: str, workplace: Path
) -> None:
    check(trouble, error, place)


def test_an_error_of_every_config_takes_one_training(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpsubmit.assembly.assemble import StackInputs
    from mlpsubmit.jobs.task_monitor import TaskMonitor

    trainings: list[int] = []
    train = StackInputs.train

    def counted(self: StackInputs, monitor: Any = None) -> Any:
        if isinstance(monitor, TaskMonitor):
            trainings.append(len(self.rows))
        return train(self, monitor)

    monkeypatch.setattr(StackInputs, "train", counted)
    run = launched("every batch")
    assert run.status().failed == 8
    assert trainings == [8]
    assert [str(group) for group in run.status().failure_groups] == [
        "ValueError: no batch (8 configs)"
    ]
    # But an innocent config among the others is trained.
    run = launched("all but one")
    assert measured(run).status.values.tolist() == [*["failed"] * 5, "done", *["failed"] * 2]
    assert trainings[1:] == [1]


@pytest.mark.slow
def test_what_raises_only_together_trains_apart(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no single config raises is searched for by bisection."""
    from mlpsubmit.training.optimizers.sgd import SGD

    step = SGD.step

    def fails(self: Any, gradients: Any, *arguments: Any) -> None:
        if len(gradients[0]) > 2:
            raise RuntimeError("too many")
        step(self, gradients, *arguments)

    expected = measured(launched("none"))
    monkeypatch.setattr(SGD, "step", fails)
    run = launched("none")
    assert run.status().complete
    assert run.collect().trained_together.values.tolist() == [2] * 8
    np.testing.assert_allclose(measured(run).train_loss, expected.train_loss, rtol=1e-5)


def test_failed_configs_are_tried_again_by_resume_and_no_others(workplace: Path) -> None:
    (workplace / "broken").touch()

    def flaky(bsz: int, gen: Any, config: int, folder: str) -> Any:
        def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            if config == 1 and step == 3 and (Path(folder) / "broken").exists():
                raise OSError("stale file handle")
            X = torch.randn(bsz, 3, generator=gen)
            return X, X[:, 0]

        return batch_fn

    settings = {"WIDTH": 4, "N_SAMPLES": 4, "MAX_ITER": 5, "folder": str(workplace)}
    flaky_sweep = Sweep("flaky", {"config": range(3)}, batchfn=flaky, **settings)
    run = launch(flaky_sweep, executor="debug", keep_going=True)
    assert (run.status().done, run.status().failed) == (2, 1)
    assert run.resume("debug") == 1
    assert (run.status().done, run.status().failed) == (2, 1), "it has failed again"
    (workplace / "broken").unlink()
    assert run.resume("debug") == 1
    assert run.status().complete
    assert run.status().failures == []
    assert run.collect().trained_together.values.tolist() == [2, 1, 2]
    assert not list(run.directory.checkpoint("-").parent.iterdir())


def test_a_config_that_failed_alone_is_tried_again_from_its_last_saved_state(
    workplace: Path,
) -> None:
    (workplace / "broken").touch()

    def flaky(bsz: int, gen: Any, folder: str) -> Any:
        def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            if step == 60 and (Path(folder) / "broken").exists():
                raise OSError("stale file handle")
            with (Path(folder) / "steps").open("a") as file:
                file.write(f"{step} ")
            X = torch.randn(bsz, 3, generator=gen)
            return X, X[:, 0]

        return batch_fn

    settings = {"WIDTH": 4, "N_SAMPLES": 4, "MAX_ITER": 70, "folder": str(workplace)}
    flaky_sweep = Sweep("flaky", {}, batchfn=flaky, CHECKPOINT_MINUTES=1e-9, **settings)
    run = launch(flaky_sweep, executor="debug", keep_going=True)
    assert run.status().failed == 1
    (workplace / "broken").unlink()
    (workplace / "steps").unlink()
    run.resume("debug")
    assert run.status().complete
    steps = [int(step) for step in (workplace / "steps").read_text().split()]
    assert 30 < min(step for step in steps if step > 0) <= 60
    undisturbed = measured(launch(flaky_sweep, executor="debug", fresh=True))
    xarray.testing.assert_identical(measured(run), undisturbed)


@pytest.mark.parametrize("already", ["in the training", "in the smoke test"])
def test_configs_that_cannot_even_train_alone_fail(
    already: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpsubmit.assembly.assemble import StackInputs
    from mlpsubmit.jobs.task_monitor import TaskMonitor
    from mlpsubmit.training.comparison import StackingError

    train = StackInputs.train

    def refuses(self: StackInputs, monitor: Any = None) -> Any:
        if isinstance(monitor, TaskMonitor) or already == "in the smoke test":
            raise StackingError("the forward pass replaces a buffer")
        return train(self, monitor)

    monkeypatch.setattr(StackInputs, "train", refuses)
    run = launched("none", MAX_ITER=1000)
    assert run.status().failed == 8


def early(bsz: int, gen: Any, config: int) -> Any:
    def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if config == 1 and step == 100:
            raise ValueError("after the end")
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] * (config != 1)

    return batch_fn


def test_a_config_that_had_stopped_before_its_function_raised_is_done(workplace: Path) -> None:
    settings = {"WIDTH": 4, "N_SAMPLES": 4, "MAX_ITER": 150, "LR": 1e-3, "LOSS_CHECKPOINTS": [0.01]}
    early_sweep = Sweep("early", {"config": range(3)}, batchfn=early, **settings)
    run = launch(early_sweep, executor="debug", keep_going=True)
    assert run.status().complete, run.status().failures
    dataset = run.collect()
    assert dataset.steps.values.tolist() == [150, 1, 150]
    assert dataset.trained_together.values.tolist() == [2, 1, 2]


# ---- processes that are killed -------------------------------------------------------------------


def killed(run: Run, *ends: ProcessEnd) -> None:
    """Record that processes were killed in the first pack of a run."""
    for end in ends:
        attempt = f"{len(pack_ends(run.directory, '0000000')):03d}-0000.0"
        add_end(run.directory, "0000000", ProcessEnd(attempt, end.signal, end.code, end.memory))


@pytest.fixture
def waiting(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Launch a sweep without training it."""
    from mlpsubmit.jobs.executors.debug import DebugExecutor

    def launched(**settings: Any) -> Run:
        with monkeypatch.context() as patched:
            patched.setattr(DebugExecutor, "submit", lambda *_: iter(()))
            return launch(sweep("none", **settings), executor="debug")

    return launched


KILL = ProcessEnd(signal=int(signal.SIGKILL))


@pytest.mark.slow
def test_a_pack_killed_once_trains_as_ever_and_twice_in_halves(
    waiting: Callable[..., Run], capfd: pytest.CaptureFixture[str]
) -> None:
    expected = measured(launched("none"))
    run = waiting()
    killed(run, KILL)
    run.resume("debug")
    assert "trained_together" not in run.collect()
    xarray.testing.assert_identical(measured(run), expected)

    run = waiting(MAX_ITER=71)
    killed(run, KILL, KILL)
    run.resume("debug")
    assert run.collect().trained_together.values.tolist() == [4] * 8
    assert (
        "pack 0000000: divided 8 configs, to train 4 at a time: its process was killed by SIGKILL "
        "(usually out of memory)\n" in capfd.readouterr().out
    )
    assert not run.directory.pack_ends("0000000").exists(), "the pack is finished"


@pytest.mark.slow
def test_a_pack_that_was_killed_for_its_memory_is_halved_at_once(
    waiting: Callable[..., Run],
) -> None:
    run = waiting()
    killed(run, ProcessEnd(memory=True))
    run.resume("debug")
    assert run.collect().trained_together.values.tolist() == [4] * 8
    assert run.directory.last_heartbeat("001-0000")["halved"] == 1  # type: ignore[index]


@pytest.mark.slow
def test_a_config_that_is_killed_alone_is_set_aside_after_the_others(
    waiting: Callable[..., Run],
) -> None:
    run = waiting(PACK_SIZE=1)
    killed(run, KILL, KILL)
    run.resume("debug", pdb=False)
    assert (run.status().done, run.status().failed) == (7, 1)
    dataset = run.collect()
    assert dataset.status.values.tolist() == ["failed", *["done"] * 7]
    assert dataset.error.values[0] == "its process was killed by SIGKILL (usually out of memory)"
    order = [member.name for member in run.directory.results.members()]
    assert order[-1] == "0000000.failed.json", "the suspect trains last"
    # A resume gives it one more try.
    killed(run, KILL)
    run.resume("debug")
    assert run.status().failed == 1
    run.resume("debug")
    assert run.status().complete


def test_what_ends_a_task_with_its_parent_counts_only_for_its_memory(
    waiting: Callable[..., Run],
) -> None:
    directory = waiting().directory
    plan = Plan.from_json(directory.plan)
    beat = {"state": "training", "pack": "0000000", "attempt": 2, "supervised": True}
    crashed = TaskStatus("000-0000", "crashed", beat, None, "SLURM reports NODE_FAIL on n1")
    add_unrecorded_ends(directory, plan, [crashed])
    assert pack_ends(directory, "0000000") == []
    for _ in range(2):  # a resume may die, and be repeated
        add_unrecorded_ends(directory, plan, [replace(crashed, memory_kill=True)])
    assert pack_ends(directory, "0000000") == [ProcessEnd("000-0000.2", memory=True)]
    # The debug executor has no parent process; an earlier boot of the machine explains the end.
    alone = replace(crashed, heartbeat={**beat, "supervised": False, "attempt": 3})
    boot = {"host": socket.gethostname(), "process_start": "another boot:5"}
    add_unrecorded_ends(directory, plan, [replace(alone, heartbeat={**alone.heartbeat, **boot})])
    assert len(pack_ends(directory, "0000000")) == 1
    add_unrecorded_ends(directory, plan, [alone, replace(alone, state="interrupted")])
    assert pack_ends(directory, "0000000")[1:] == [ProcessEnd("000-0000.3")]


def test_the_pack_that_a_task_was_killed_in_is_the_first_without_a_result(
    waiting: Callable[..., Run],
) -> None:
    """Whatever the last heartbeat shows: it may be some packs old, where packs are short."""
    directory = waiting(PACK_SIZE=2).directory
    plan = Plan.from_json(directory.plan)
    with Shard.claim(directory.results.folder, "000-0000") as shard:
        for name in ("0000000", "0000001"):
            shard.append(f"{name}.failed.json", failures_json([], []))
    beat = {"state": "training", "pack": "0000000", "attempt": 0, "supervised": True}
    crashed = TaskStatus("000-0000", "crashed", beat, None, memory_kill=True)
    for _ in range(2):  # a resume may die, and be repeated
        add_unrecorded_ends(directory, plan, [crashed])
        assert directory.packs_with_ends() == ["0000002"]
    # With one kill it trains last, and so the next attempt is killed in the pack after it.
    later = replace(crashed, heartbeat={**beat, "attempt": 1})
    add_unrecorded_ends(directory, plan, [later])
    assert sorted(directory.packs_with_ends()) == ["0000002", "0000003"]
    directory.submission(0).joinpath("intent.json").write_text("damaged")
    add_unrecorded_ends(RunDirectory(directory.path), plan, [later])
    assert pack_ends(directory, "0000000") == [ProcessEnd("000-0000.1", memory=True)]


def test_kills_with_progress_in_between_are_not_in_a_row(tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tmp_path / "pack.pt", "cpu", 2)
    assert checkpoint.progress == (0, 0)
    checkpoint.state = {"start": 7}
    assert checkpoint.progress == (0, 7)
    checkpoint.finished.append({"row": np.array([1])})
    assert checkpoint.progress == (1, 7)


# ---- whole runs ----------------------------------------------------------------------------------

COMMAND = str(Path(sys.executable).parent / "mlpsubmit")

#: Configs of LR 0.1 do what HOW says; KILL_ONCE names a file while which LR 0.3 kills its process.
SPEC = """
import os, signal
from pathlib import Path
import torch
from mlpsubmit import Sweep

def batches(lr, how, bsz, gen):
    def batch_fn(step):
        if lr == 0.1 and step == 10:
            if how == "raise":
                raise ValueError("my bug")
            os.kill(os.getpid(), signal.SIGSEGV)
        once = Path(os.environ.get("KILL_ONCE", ""))
        if lr == 0.3 and step == 30 and once.is_file():
            once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        X = torch.randn(bsz, 4, generator=gen)
        return X, X.sum(1)
    return batch_fn

sweep = Sweep(
    "killer", axes={"LR": [0.1, 0.2]}, batchfn=batches, how="raise", WIDTH=8, N_SAMPLES=32,
    N_TEST=32, MAX_ITER=60, LOSS_CHECKPOINTS=[], CHECKPOINT_MINUTES=1e-9,
)
"""

#: Trains the spec in this process, past failures.
IN_PROCESS = """
from pathlib import Path
from mlpsubmit import launch
from mlpsubmit.spec.load import load_spec
sweep = load_spec(Path("killer.py")).overridden({"LR": [0.1, 0.2, 0.3]})
launch(sweep, executor="debug", keep_going=True)
"""


def run_in(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "killer.py").write_text(SPEC)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_configs_that_kill_their_process_are_set_aside_in_one_launch(workplace: Path) -> None:
    ended = run_in(
        workplace,
        *(COMMAND, "launch", "killer.py", "how=segfault", "--executor", "local", "--tasks", "1"),
    )
    assert ended.returncode == 1
    shown = (
        "failed: its process was killed by SIGSEGV (an invalid memory access, usually in compiled "
        "code) (1 config: lr=0.1)\n    killer.py:12 in batch_fn\n"
    )
    assert shown in ended.stderr
    assert "1 of 2 configs done, 1 missing (1 failed)" in ended.stderr
    run = open_run("killer")
    assert run.directory.submissions() == [0]
    # What an undisturbed run of the other one computes.
    alone = load_spec(workplace / "killer.py").overridden({"LR": 0.2})
    expected = launch(alone, executor="debug", fresh=True).collect()
    found = run.collect().sel(lr=0.2)
    np.testing.assert_allclose(found.train_loss, expected.train_loss, rtol=1e-5)


@pytest.mark.slow
def test_a_division_that_is_killed_midway_ends_in_the_same_bits(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = workplace / "once"
    once.touch()
    killed = run_in(workplace, sys.executable, "-c", IN_PROCESS, KILL_ONCE=str(once))
    assert killed.returncode == -signal.SIGKILL
    assert "continuing with the other 2" in killed.stdout
    run = open_run("killer")
    assert run.status().missing == 3
    run.resume("debug")
    assert [end.attempt for end in pack_ends(run.directory, "0000000")] == ["000-0000.0"]
    assert (run.status().done, run.status().failed) == (2, 1)
    wide = load_spec(workplace / "killer.py").overridden({"LR": [0.1, 0.2, 0.3]})
    undisturbed = launch(wide, executor="debug", keep_going=True, fresh=True)
    assert undisturbed.id != run.id
    xarray.testing.assert_identical(measured(run), measured(undisturbed))
