"""A pack that runs out of memory trains in halves, to the same numbers as packs of that size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from mlpsubmit import open_run
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.jobs.pack_parts import PackParts
from mlpsubmit.runs.run import Run
from mlpsubmit.training.oom import ran_out_of_memory

COMMAND = [str(Path(sys.executable).parent / "mlpsubmit")]

#: One weight matrix takes 36 MiB. Of the memory that is left to the process, ROOM_MIB, two configs
#: together need 375, and four of them, as well as one of twice the width, more than 600. Without
#: COMPILE, so that it does not matter whether the functions in C are compiled, which need less.
SPEC = """
import os
import resource
from pathlib import Path

import torch
from torch import nn

from mlpsubmit import Sweep, train


def limit():
    # Relative to what the process has once everything is loaded that a training loads.
    room = int(os.environ.get("ROOM_MIB", 0)) * 2**20
    if room and os.environ.get("LIMITED") != str(os.getpid()):
        os.environ["LIMITED"] = str(os.getpid())
        models = [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)) for _ in range(2)]
        batch_fns = [lambda step: (torch.ones(4, 2), torch.ones(4))] * 2
        train(models, batch_fns, {"MAX_ITER": 2})
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))


def heavy(bsz, gen, noise):
    limit()

    def batch_fn(step):
        if step == 1 and os.environ.get("KILL_AT") == str(noise):
            os.kill(os.getpid(), int(os.environ["KILL_BY"]))
        X = torch.randn(bsz, 2, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def mean(model, X_tr):
    return model(X_tr).mean()


sweep = Sweep(
    "heavy", axes={"noise": [0.0, 0.25, 0.5, 0.75]}, batchfn=heavy, WIDTH=3072, N_SAMPLES=4,
    MAX_ITER=3, LR=0.1, LOSS_CHECKPOINTS=[1e-9], PACK_SIZE=4, COMPILE=False,
    grabs={"mean": mean},
)
"""


def cli(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the CPU, with one thread and one heap, whose sizes can be told."""
    plain = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, **plain, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def launch(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "heavy.py").write_text(SPEC)
    how = () if "--executor" in arguments else ("--executor", "debug")
    return cli("launch", "heavy.py", *arguments, *how, cwd=folder, **variables)


def opened(folder: Path) -> Run:
    return open_run("heavy", folder / "mlpruns")


def measured(dataset: xarray.Dataset) -> xarray.Dataset:
    """Return what must not depend on the memory there was."""
    dataset = dataset.drop_vars(["seconds", "trained_together"], errors="ignore")
    dataset.attrs = {}
    return dataset


@pytest.fixture(scope="module")
def in_packs_of_two(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    folder = tmp_path_factory.mktemp("in_packs_of_two")
    done = launch(folder, "PACK_SIZE=2")
    assert done.returncode == 0, done.stderr
    assert "out of memory" not in done.stdout
    dataset = opened(folder).collect()
    assert "trained_together" not in dataset
    return measured(dataset)


@pytest.mark.slow
def test_a_pack_that_does_not_fit_trains_in_halves_and_says_so(
    in_packs_of_two: xarray.Dataset, tmp_path: Path
) -> None:
    done = launch(tmp_path, ROOM_MIB="500")
    assert done.returncode == 0, done.stderr
    said = "pack 0000000: out of memory with 4 configs; continuing with 2 at a time\n"
    assert said in done.stdout
    assert done.stdout.count("out of memory") == 1
    run = opened(tmp_path)
    (beat,) = (json.loads(file.read_text()) for file in run.path.glob("heartbeats/*.json"))
    assert beat["halved"] == 1
    dataset = run.collect()
    assert dataset.trained_together.values.tolist() == [2, 2, 2, 2]
    xarray.testing.assert_identical(measured(dataset), in_packs_of_two)

    # Results reused by a larger sweep still have it, next to those of packs that fitted.
    done = launch(tmp_path, "noise=[0.0,0.25,0.5,0.75,1.0]", ROOM_MIB="500")
    assert done.returncode == 0, done.stderr
    grown = opened(tmp_path)
    assert grown.status().reused == 4
    dataset = grown.collect(tmp_path / "grown.csv")
    np.testing.assert_array_equal(dataset.trained_together, [2, 2, 2, 2, np.nan])
    rows = [line.split(",") for line in (tmp_path / "grown.csv").read_text().splitlines()]
    column = rows[0].index("trained_together")
    assert [row[column] for row in rows[1:]] == ["2", "2", "2", "2", ""]


@pytest.mark.slow
def test_halves_that_are_killed_and_stopped_go_on_as_halves(
    in_packs_of_two: xarray.Dataset, tmp_path: Path
) -> None:
    resume = ("resume", "--executor", "debug")
    killed = launch(tmp_path, ROOM_MIB="500", KILL_AT="0.0", KILL_BY=str(int(signal.SIGKILL)))
    assert killed.returncode == -signal.SIGKILL
    assert "continuing with 2 at a time" in killed.stdout
    # From now on there is room enough, but four together would round otherwise.
    stopped = cli(*resume, cwd=tmp_path, KILL_AT="0.5", KILL_BY=str(int(signal.SIGTERM)))
    assert "interrupted, its state is saved" in stopped.stdout
    done = cli(*resume, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out of memory" not in stopped.stdout + done.stdout
    dataset = opened(tmp_path).collect()
    assert dataset.trained_together.values.tolist() == [2, 2, 2, 2]
    xarray.testing.assert_identical(measured(dataset), in_packs_of_two)


@pytest.mark.slow
def test_a_config_that_does_not_fit_alone_fails_its_pack_and_no_other(tmp_path: Path) -> None:
    ended = launch(
        tmp_path,
        "WIDTH=[64,6144]",
        "noise=[0.0,1.0]",
        *("--executor", "local", "--tasks", "1"),
        ROOM_MIB="500",
    )
    assert ended.returncode == 1
    said = (
        "OutOfMemory: a config with WIDTH=6144, DEPTH=2, N_SAMPLES=4 does not fit into the memory "
        "of its task (cpu), not even alone; try a smaller N_SAMPLES, or more memory for each task. "
        "It ended in RuntimeError: "
    )
    assert said in ended.stderr
    run = opened(tmp_path)
    dataset = run.collect()
    assert (dataset.status.sel(width=64) == "done").all()
    assert (dataset.status.sel(width=6144) == "failed").all()
    assert "trained_together" not in dataset
    (log,) = run.logs().values()
    assert "out of memory with 2 configs; continuing with 1 at a time" in log.read_text()


@pytest.fixture
def six(tmp_path: Path) -> Checkpoint:
    """The checkpoint of a pack of six configs."""
    return Checkpoint.load(tmp_path / "pack.pt", "cpu", 6)


def finish(checkpoint: Checkpoint, rows: list[int]) -> None:
    checkpoint.finished.append({"row": np.array(rows)})


def halve(checkpoint: Checkpoint, rows: list[int]) -> int:
    return checkpoint.parts.halve(rows, checkpoint.done)


def test_siblings_of_the_part_that_did_not_fit_are_halved_with_it(six: Checkpoint) -> None:
    assert halve(six, [0, 1, 2, 3, 4, 5]) == 3
    assert six.parts.left == [[0, 1, 2], [3, 4, 5]]
    assert halve(six, [0, 1, 2]) == 2
    assert six.parts.left == [[0, 1], [2, 3], [4, 5]]
    finish(six, [0, 1])
    six.parts.drop_first()
    assert halve(six, [2, 3]) == 1
    assert six.parts.left == [[2], [3], [4], [5]]


def test_stacks_that_may_fit_stay_as_they_are(six: Checkpoint) -> None:
    finish(six, [0, 3])
    assert halve(six, [1, 4]) == 1  # the second of three stacks of other shapes
    assert six.parts.left == [[1], [4], [2, 5]]
    for row in (1, 4):
        finish(six, [row])
        six.parts.drop_first()
    assert halve(six, [2, 5]) == 1
    assert six.parts.left == [[2], [5]]


def test_a_larger_device_may_take_on_what_did_not_fit_alone(six: Checkpoint) -> None:
    halve(six, [0, 1, 2, 3, 4, 5])
    finish(six, [0, 1, 2])
    six.parts.drop_first()
    six.set_aside([RowsFailure([3, 4, 5], "OutOfMemory: too large")], ())
    six.retry_failures()
    six.save(None, 0.0)
    again = Checkpoint.load(six.file, "cpu", 6)
    assert again.parts == PackParts([[3, 4, 5]], halved=True, divided=True)
    assert again.done == {0, 1, 2}


def test_a_state_of_another_kind_of_device_is_not_used(
    six: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(six, [0, 3])
    six.save({"start": 7}, 1.5)
    again = Checkpoint.load(six.file, "cpu", 6)
    assert (again.done, again.state, again.seconds) == ({0, 3}, {"start": 7}, 1.5)
    elsewhere = Checkpoint.load(six.file, "cuda", 6)
    assert (elsewhere.done, elsewhere.state, elsewhere.seconds) == (set(), None, 0.0)
    assert elsewhere.parts == PackParts.whole(6)
    assert capsys.readouterr().out == (
        "checkpoint pack.pt is unusable, starting from scratch: it was saved on cpu, not on cuda\n"
    )


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), True),
        (raised(ValueError("grab 'kernel' failed"), MemoryError()), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (raised(ValueError("grab 'kernel' failed"), KeyError("x")), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(
    error: BaseException, expected: bool
) -> None:
    assert ran_out_of_memory(error) is expected


def test_torch_and_numpy_still_say_it_in_these_words() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**55)
    with pytest.raises(MemoryError) as numpys:
        np.ones(2**55)
    assert ran_out_of_memory(torchs.value)
    assert ran_out_of_memory(numpys.value)
