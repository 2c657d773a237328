"""Damaged files are not trained on: what can be made again is made again, the rest is reported."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.errors import DamageError
from mlpsubmit.files import read_json
from mlpsubmit.jobs import environment
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.killed_packs import add_end, pack_ends
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.store.environments import stored_environments
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.runs.run import Run

Damage = Callable[[bytes], bytes]


def flipped(content: bytes) -> bytes:
    place = random.Random(0).randrange(len(content) // 4, len(content) // 2)
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


pytestmark = pytest.mark.slow

DAMAGES = [flipped, truncated, emptied]


def damage(file: Path, how: Damage) -> None:
    file.write_bytes(how(file.read_bytes()))


def inputs(n: int = 16) -> dict[str, Any]:
    return {"A": np.random.default_rng(0).standard_normal((n, 3)).astype("f4")}


def batches(A: Any) -> Any:
    return lambda step: (A + 0.01 * step, A[:, 0])


def sweep(**settings: Any) -> Sweep:
    return Sweep(
        "damaged",
        axes={"LR": [0.1, 0.2]},
        batchfn=batches,
        data=inputs,
        **{"WIDTH": 8, "N_SAMPLES": 16, "MAX_ITER": 20, "LOSS_CHECKPOINTS": [1e-9], **settings},
    )


def results(run: Run) -> xarray.Dataset:
    return run.collect().drop_vars(["seconds"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    """The results of a run that nothing happened to."""
    return results(launch(sweep(), executor="debug", runs_dir=tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was interrupted in its only pack, after its seventh save."""
    folder = tmp_path_factory.mktemp("interrupted")
    save, saves = Checkpoint.save, []

    def stopping(self: Checkpoint, *arguments: Any) -> None:
        save(self, *arguments)
        saves.append(self)
        if len(saves) == 7:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskMonitor, "due", lambda self, step: True)
        patch.setattr(Checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            launch(sweep(), executor="debug", runs_dir=folder)
    return folder


@pytest.fixture
def interrupted(workplace: Path, runs: Path) -> Run:
    """A copy of that run."""
    shutil.copytree(runs, workplace / "mlpruns")
    run = open_run()
    assert len(list(run.path.glob("checkpoints/*.pt"))) == 1
    return run


def assert_equal(run: Run, expected: xarray.Dataset) -> None:
    xarray.testing.assert_equal(results(run), expected)
    assert (expected.status == "done").all()


def test_an_intact_checkpoint_is_continued(
    interrupted: Run, whole: xarray.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted.resume("debug")
    (beat,) = interrupted.directory.heartbeats(1).values()
    assert beat["first_step"] == 7
    assert "damaged" not in capsys.readouterr().out
    assert_equal(interrupted, whole)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_not_continued(
    how: Damage, interrupted: Run, whole: xarray.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = interrupted.path.glob("checkpoints/*.pt")
    damage(file, how)
    interrupted.resume("debug")
    said = (
        f"checkpoint {file.name} is unusable, starting from scratch: {file.absolute()}: is damaged"
    )
    assert said in capsys.readouterr().out
    assert_equal(interrupted, whole)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.filterwarnings("default")
def test_damaged_data_is_computed_again(
    how: Damage,
    suffix: str,
    interrupted: Run,
    whole: xarray.Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file,) = interrupted.path.glob(f"data/*{suffix}")
    before = file.read_bytes()
    damage(file, how)
    warned = pytest.warns(UserWarning, match="is damaged") if suffix == ".json" else None
    if warned is None:
        interrupted.resume("debug")
        assert f"{file}: is damaged; its data is computed again" in capsys.readouterr().out
    else:
        with warned:
            interrupted.resume("debug")
        assert read_json(file)["hash"] == whole.attrs["data_hash"]
    assert suffix == ".json" or file.read_bytes() == before
    assert_equal(interrupted, whole)
    assert interrupted.collect().attrs["data_hash"] == whole.attrs["data_hash"]


@pytest.mark.filterwarnings("default")
def test_data_whose_record_is_damaged_is_compared_with_the_data_itself(
    interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = interrupted.path.glob("data/*.json")
    damage(file, flipped)
    other = {"A": torch.ones(16, 3)}
    monkeypatch.setattr("mlpsubmit.jobs.shared_data.SharedData._called", lambda *_: other)
    with pytest.warns(UserWarning, match="is damaged"):
        interrupted.resume("debug")
    (failure,) = interrupted.directory.results.failures()
    assert "the data function returns other data" in failure.error


def changed_lr(content: bytes) -> bytes:
    """A pickle in which a learning rate is another number, as valid as before."""
    number = pickle.dumps(0.2, protocol=5)[-10:-1]
    assert number in content
    return content.replace(number, pickle.dumps(0.3, protocol=5)[-10:-1])


@pytest.mark.parametrize("how", [truncated, changed_lr])
def test_a_damaged_sweep_is_not_executed_and_a_launch_writes_it_again(
    how: Damage, interrupted: Run, whole: xarray.Dataset
) -> None:
    file = interrupted.path / "sweep.pkl"
    damage(file, how)
    submissions = interrupted.directory.submissions()
    with pytest.raises(DamageError) as error:
        interrupted.resume("debug")
    assert str(error.value) == (
        f"{file}: is damaged (its checksum differs from that of its content); launch its spec "
        "again: if it is unchanged, this run goes on"
    )
    assert interrupted.directory.submissions() == submissions
    with pytest.warns(UserWarning, match=r"sweep.pkl: is damaged .*; it is written again"):
        again = launch(sweep(), executor="debug")
    assert again.path == interrupted.path
    assert file.stat().st_mode & 0o777 == 0o600
    assert_equal(again, whole)


def test_a_lost_sweep_is_reported(interrupted: Run, mlpsubmit: Callable[..., Any]) -> None:
    (interrupted.path / "sweep.pkl").unlink()
    refused = mlpsubmit("resume")
    assert refused.code == 2
    assert "sweep.pkl: is missing; launch its spec again" in refused.err.replace("\n", " ")


def test_a_worker_reports_a_sweep_that_is_damaged_meanwhile(
    interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = sweep_hash(interrupted.directory)
    monkeypatch.setattr("mlpsubmit.runs.run.sweep_hash", lambda *_, **__: submitted)
    damage(interrupted.path / "sweep.pkl", changed_lr)
    interrupted.resume("local")
    (task,) = interrupted.wait().tasks
    assert task.state == "crashed"
    assert "sweep.pkl: is damaged" in task.summary


@pytest.mark.parametrize(("name", "how"), [("sweep.json", flipped), ("plan.json", emptied)])
def test_a_run_without_its_manifest_or_plan_is_replaced_by_one_that_reuses_its_results(
    name: str, how: Damage, workplace: Path, mlpsubmit: Callable[..., Any]
) -> None:
    first = launch(sweep(), executor="debug")
    expected = results(first)
    damage(first.path / name, how)
    for command in ("status", "resume"):
        refused = mlpsubmit(command)
        assert refused.code == 2
        said = refused.err.replace("\n", " ")
        assert f"{name}: is damaged" in said
        assert "launch its spec again: a new run reuses the finished results of this one" in said
    with pytest.warns(UserWarning, match=rf"{name}: is damaged"):
        second = launch(sweep(), executor="debug")
    assert second.path != first.path
    assert second.directory.sweep["reused"] == 2
    assert_equal(second, expected)


def test_a_damaged_record_of_versions_is_reported(workplace: Path) -> None:
    run = launch(sweep(), executor="debug")
    (shard,) = run.directory.results.shards()
    damage(shard.with_suffix(".json"), flipped)
    with pytest.warns(UserWarning, match=r"json: is damaged .*was made with is unknown"):
        assert (run.collect().status == "done").all()


def test_a_damaged_record_of_killed_processes_is_reported(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    add_end(run, "0000000", ProcessEnd("000-0000.0"))
    assert [end.attempt for end in pack_ends(run, "0000000")] == ["000-0000.0"]
    damage(run.pack_ends("0000000"), flipped)
    with pytest.warns(UserWarning, match="the killed processes of the pack count anew"):
        assert pack_ends(run, "0000000") == []


#: Bits to flip, one at a time, in files of a run that was interrupted.
FLIPS = int(os.environ.get("FLIPS", "8"))


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_any_flipped_bit_of_any_file_changes_no_result(
    runs: Path, whole: xarray.Dataset, workplace: Path
) -> None:
    """FLIPS=1000 does it more often. A launch of the spec is what the messages recommend."""
    # Without its heartbeat a task counts as running while its process lives, which is this one.
    files = [
        file
        for file in sorted(runs.rglob("*"))
        if file.is_file() and file.stat().st_size and file.parent.name != "heartbeats"
    ]
    assert {"sweep.pkl", "plan.json", "intent.json"} <= {file.name for file in files}
    refused = 0
    for number in range(FLIPS):
        draw = random.Random(number)
        shutil.copytree(runs, f"runs{number}")
        (file,) = draw.sample(files, 1)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (Path(f"runs{number}") / file.relative_to(runs)).write_bytes(content)
        try:
            run = open_run(runs_dir=f"runs{number}")
            run.resume("debug")
        except DamageError as error:
            if file.name not in str(error) or "launch its spec again" not in str(error):
                raise
            refused += 1
            run = launch(sweep(), executor="debug", runs_dir=f"runs{number}")
        assert_equal(run, whole)
        shutil.rmtree(f"runs{number}")
    print(f"{FLIPS} flipped bits; {refused} refused by resume, and then launched again")


# ---- another version -----------------------------------------------------------------------------


def as_of(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make this process one of other versions."""
    real = environment._versions()
    monkeypatch.setattr(environment, "_versions", lambda: {**real, **versions})


def test_a_checkpoint_of_another_version_is_reported_in_log_and_attributes(
    interrupted: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_of(monkeypatch, torch="9.9")
    interrupted.resume("debug")
    mixed = f"torch {torch.__version__} and 9.9: bit-identity no longer holds"
    assert f"was trained with {mixed}" in capsys.readouterr().out
    attributes = interrupted.collect().attrs
    assert attributes["torch"] == f"{torch.__version__}; 9.9"
    assert attributes["bit_identity"].startswith(f"made with {mixed}")


def test_a_checkpoint_of_functions_in_c_is_discarded_where_there_are_none(
    interrupted: Run, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request.getfixturevalue("without_c")
    interrupted.resume("debug")
    out = capsys.readouterr().out
    assert ": its state is discarded, starting from scratch: saved state: its gradients" in out
    # Nothing of it is in the results.
    attributes = interrupted.collect().attrs
    assert attributes["c_functions"] == "not compiled"
    assert "bit_identity" not in attributes


@pytest.fixture
def half_done(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose process died after the first of its two packs."""
    append = Shard.append

    def dying(self: Shard, *arguments: Any) -> None:
        append(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            launch(sweep(PACK_SIZE=1), executor="debug")
    run = open_run()
    assert "bit_identity" not in run.collect().attrs
    return run


def test_a_task_of_another_version_is_reported_in_log_and_attributes(
    half_done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = half_done
    before = environment._versions()["mlpsubmit"]
    as_of(monkeypatch, mlpsubmit="7.0")
    run.resume("debug")
    mixed = f"mlpsubmit {before} and 7.0: bit-identity no longer holds"
    assert f"this run continues with {mixed}" in capsys.readouterr().out
    assert run.collect().attrs["bit_identity"].startswith(f"made with {mixed}")
    assert [len(stored_environments(shard)) for shard in run.directory.results.shards()] == [1, 1]


def test_a_task_without_the_functions_in_c_is_reported_in_log_and_attributes(
    half_done: Run, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request.getfixturevalue("without_c")
    half_done.resume("debug")
    mixed = "c_functions compiled and not compiled: bit-identity no longer holds"
    assert f"this run continues with {mixed}" in capsys.readouterr().out
    assert half_done.collect().attrs["bit_identity"].startswith(f"made with {mixed}")


def test_a_state_without_progress_does_not_count(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.load(workplace / "pack.pt", "cpu", 2)
    checkpoint.enter({"torch": "1"})
    checkpoint.save(None, 0.0)
    checkpoint = Checkpoint.load(workplace / "pack.pt", "cpu", 2)
    checkpoint.enter({"torch": "2"})
    checkpoint.save({"start": 3}, 0.0)
    checkpoint = Checkpoint.load(workplace / "pack.pt", "cpu", 2)
    checkpoint.enter({"torch": "3"})
    checkpoint.enter({"torch": "2"})
    assert checkpoint.environments == [{"torch": "3"}, {"torch": "2"}]
    checkpoint.discard()
    assert checkpoint.environments == [{"torch": "2"}]
