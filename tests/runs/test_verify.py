"""verify finds any damage of a run, records that of results, and trains packs again."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import UserError, launch, open_run
from mlpsubmit.checksums import sealed
from mlpsubmit.files import publish, publish_json
from mlpsubmit.jobs.store.environments import publish_environments, stored_environments
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.runs.retrain import Share
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.verify import Subset, verify
from mlpsubmit.spec.load import load_spec

from ..conftest import SPEC

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished run of four packs."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.py").write_text(SPEC)
    sweep = load_spec(folder / "small.py").overridden({"MAX_ITER": 3, "PACK_SIZE": 2})
    launch(sweep, executor="debug", runs_dir=folder / "mlpruns")
    return folder / "mlpruns"


@pytest.fixture
def run(finished: Path, workplace: Path) -> Run:
    """A copy of that run."""
    shutil.copytree(finished, workplace / "mlpruns")
    return open_run("small")


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_whole_run_has_no_errors(mlpsubmit: Command, run: Run) -> None:
    found = mlpsubmit("verify", run.id)
    assert (found.code, found.err) == (0, "")
    assert "4 results read, 0 errors\n8 of 8 configs done, 0 failed, 0 missing\n" in found.out
    assert f"results hash: {run.collect().attrs['results_hash']}\n" in found.out


def test_any_flipped_byte_of_a_shard_is_reported_or_changes_nothing(run: Run) -> None:
    (shard,) = run.directory.results.shards()
    whole, expected = shard.read_bytes(), run.collect().attrs["results_hash"]
    places = random.Random(0).sample(range(len(whole)), 40)
    for place in places:
        flip(shard, place)
        again = open_run("small")
        found, status = verify(again.directory), again.status()
        counted = again.collect()
        assert status.done == counted.attrs["n_done"] == open_run("small").status().done
        if status.done < 8:
            assert "results/000-0000.0.tar: " in found.damage[0]
        else:
            assert counted.attrs["results_hash"] == expected
        shard.write_bytes(whole)
    assert verify(run.directory).damage == []
    assert open_run("small").status().done == 8


def test_damaged_results_are_recorded_and_train_again(mlpsubmit: Command, run: Run) -> None:
    (shard,) = run.directory.results.shards()
    member = list(run.directory.results.members())[1]
    flip(shard, member.offset + 300)
    found = mlpsubmit("verify")
    assert found.code == 1
    assert f"damaged: results/{shard.name}: {member.name} is damaged\n" in found.err
    assert "4 results read, 1 error\n6 of 8 configs done, 0 failed, 2 missing\n" in found.out
    assert mlpsubmit("status").code == 1
    assert mlpsubmit("resume", "--executor", "debug").code == 0
    # The damaged bytes stay where they are, and count no longer.
    found = mlpsubmit("verify")
    assert "8 of 8 configs done" in found.out


def test_a_subset_reads_its_part_and_all_parts_read_everything(run: Run) -> None:
    (shard,) = run.directory.results.shards()
    flip(shard, list(run.directory.results.members())[2].offset + 300)
    found = [verify(run.directory, Subset(part, 3)) for part in (1, 2, 3)]
    assert [len(one.damage) for one in found] == [0, 0, 1]
    whole = verify(run.directory)
    assert sum(one.results for one in found) == whole.results == 4
    assert sum(one.files for one in found) >= whole.files - 1  # the record of the damage is new
    assert open_run("small").status().done == 6


@pytest.mark.parametrize("text", ["", "3", "0/7", "8/7", "1/0", "a/7", "-1/7", "1/7/2", "²/7"])
def test_a_subset_is_a_part_of_several(text: str) -> None:
    with pytest.raises(UserError) as refused:
        Subset.parse(text)
    assert f"--subset: got {text!r}; should be PART/PARTS, such as 1/7" in str(refused.value)


def test_the_other_files_of_a_run_are_checked(run: Run) -> None:
    run.directory.heartbeat("000-0000").write_bytes(b"{")
    checkpoint = run.directory.checkpoint("0000001")
    publish(checkpoint, sealed(npz_bytes({"weights": np.arange(100.0)})))
    flip(checkpoint, 300)
    flip(run.directory.pickle, 50)
    publish_json(run.path / "launched.json", {"number": "3"})
    found = verify(run.directory)
    assert [text.partition(": is damaged (")[0] for text in found.damage] == [
        "checkpoints/0000001.pt",
        "heartbeats/000-0000.json",
        "launched.json",
        "sweep.pkl",
    ]


def test_every_file_of_a_run_is_read(run: Run) -> None:
    no_checksum = {".lock", "compiled"}
    whole = {file for file in run.path.rglob("*") if file.is_file()}
    expected = {file for file in whole if not no_checksum & {*file.relative_to(run.path).parts}}
    read: set[str] = set()
    verify(run.directory, progress=lambda name, done, total: read.add(name))
    assert {str(file.relative_to(run.path)) for file in expected} == read - {""}


def _in_data(file: Path) -> int:
    if file.suffix != ".npz":
        return file.stat().st_size // 2
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()[1].header_offset - 2  # the end of the first array


def test_kept_states_and_initial_weights_are_read_too(mlpsubmit: Command, run: Run) -> None:
    common = ["launch", "small.py", "--executor", "debug", "MAX_ITER=3", "KEEP_STATE=true"]
    assert mlpsubmit(*common, "SAVE_WEIGHTS=final").code == 0
    assert mlpsubmit(*common, f"INIT_WEIGHTS={open_run('small').id}").code == 0
    run = open_run("small")
    publish_json(run.path / "launched.1234.json", {"number": 3})
    assert verify(run.directory).damage == []
    names = ["initial_weights.npz", "launched.1234.json"]
    names += sorted(f"states/{file.name}" for file in run.path.glob("states/*.pt"))
    assert len(names) > 3
    for name in names:
        flip(run.path / name, _in_data(run.path / name))
    found = [text.partition(":")[0] for text in verify(run.directory).damage]
    assert sorted(found) == names


def test_damaged_initial_weights_are_written_again(mlpsubmit: Command, run: Run) -> None:
    common = ["launch", "small.py", "--executor", "debug", "MAX_ITER=3"]
    assert mlpsubmit(*common, "SAVE_WEIGHTS=final").code == 0
    common += [f"INIT_WEIGHTS={open_run('small').id}"]
    assert mlpsubmit(*common).code == 0
    file = open_run("small").path / "initial_weights.npz"
    whole = file.read_bytes()
    flip(file, _in_data(file))
    assert "which writes the initial weights again" in mlpsubmit("verify").err
    assert mlpsubmit(*common).code == 0
    assert file.read_bytes() == whole
    assert mlpsubmit("verify").code == 0


def test_a_torn_end_is_noted_and_a_damaged_header_reported(run: Run) -> None:
    (shard,) = run.directory.results.shards()
    whole, last = shard.read_bytes(), list(run.directory.results.members())[-1]
    os.truncate(shard, last.offset + 100)
    found = verify(run.directory)
    assert found.damage == []
    assert "was not written to its end (612 bytes), as where a process is killed" in found.notes[0]
    shard.write_bytes(whole)
    flip(shard, last.offset - 500)
    (damage,) = verify(run.directory).damage
    assert f"is damaged at byte {last.offset - 512:,}: the " in damage
    assert open_run("small").status().done == 6


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"index": np.array([0, 7])}, "has other configs than the plan"),
        ({"index": np.array([0, 99])}, "is damaged"),
        ({"steps": np.array([3])}, "is damaged"),
        ({"index": np.array(["a", "b"])}, "is damaged"),
    ],
)
def test_results_that_do_not_fit_the_plan_are_reported(
    run: Run, change: dict[str, Any], error: str
) -> None:
    pack = next(run.directory.results.packs())
    arrays = {name: pack[name] for name in pack.arrays()} | change
    with Shard(run.directory.results.folder / "000-0001.0.tar") as shard:
        shard.append(pack.member.name, npz_bytes(arrays))
        shard.append("notes.txt", b"")
    damage = verify(run.directory).damage
    assert f"results/000-0001.0.tar: {pack.member.name} {error}" in damage
    assert "results/000-0001.0.tar: notes.txt is not a pack of the plan" in damage


def test_numbers_of_configs_are_compared(mlpsubmit: Command, run: Run) -> None:
    publish_json(run.path / "sweep.json", {**run.directory.sweep, "reused": 1})
    refused = mlpsubmit("verify", run.path)
    assert refused.code == 2
    assert "it trains 8 configs, sweep.json has another number" in refused.err


# ---- training again ------------------------------------------------------------------------------


@pytest.mark.slow
def test_packs_that_are_trained_again_have_equal_bits(
    mlpsubmit: Command, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    found = mlpsubmit("verify", "--retrain", "30%")
    assert found.code == 0, found.err
    assert "\n2 of 4 packs trained again (00" in found.out
    assert "all bits are equal" in found.out
    after = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    added = {file.name for file in after.keys() - before.keys()}
    assert added <= {"000-0000.0.verified.json"}

    # One bit of one loss, with the checksums that belong to it, and another version of torch.
    (shard,) = run.directory.results.shards()
    packs = list(run.directory.results.packs())
    contents = [{name: pack[name] for name in pack.arrays()} for pack in packs]
    shard.unlink()
    with Shard(shard) as made:
        for number, (pack, arrays) in enumerate(zip(packs, contents, strict=True)):
            if number == 2:
                arrays["train_loss"].view(np.uint64)[1] ^= 1
            made.append(pack.member.name, npz_bytes(arrays))
    (environment,) = stored_environments(shard)
    publish_environments(shard, [{**environment, "torch": "2.4.0"}])
    found = mlpsubmit("verify", "--retrain", "100%")
    assert found.code == 1
    assert "4 of 4 packs trained again" in found.err
    assert "1 differ\n" in found.err
    name = packs[2].name
    assert f"pack {name}: train_loss differs, by at most" in found.err
    assert "equal bits are not promised: torch 2.4.0, here " in found.err


def test_trust_without_retrain_is_refused(mlpsubmit: Command) -> None:
    refused = mlpsubmit("verify", "--trust")
    assert refused.code == 2
    assert "--trust: goes with --retrain; without it, verify executes nothing" in refused.err


@pytest.mark.parametrize("text", ["", "5", "0%", "101%", "nan%", "-1%", "1 %%"])
def test_the_share_to_train_again_is_a_percentage(text: str) -> None:
    with pytest.raises(UserError) as refused:
        Share.parse(text)
    assert f"--retrain: got {text!r}; should be a percentage of the packs" in str(refused.value)


def test_a_share_is_at_least_one_pack() -> None:
    assert [Share.parse(text).of(40) for text in ("0.1%", "1%", "5%", "100%")] == [1, 1, 2, 40]


def test_packs_that_were_divided_are_not_trained_again(mlpsubmit: Command, run: Run) -> None:
    packs = list(run.directory.results.packs())
    contents = [{name: pack[name] for name in pack.arrays()} for pack in packs]
    (shard,) = run.directory.results.shards()
    shard.unlink()
    with Shard(shard) as made:
        for pack, arrays in zip(packs, contents, strict=True):
            made.append(pack.member.name, npz_bytes({**arrays, "trained_together": np.ones(2)}))
    found = mlpsubmit("verify", "--retrain", "100%")
    assert found.code == 0
    assert "no pack to train again: none is finished that trained as one" in found.out


def test_results_of_a_gpu_are_not_trained_again_without_one(
    mlpsubmit: Command, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpsubmit.jobs.executors.local.gpus", lambda *_: [])
    (shard,) = run.directory.results.shards()
    (environment,) = stored_environments(shard)
    publish_environments(shard, [{**environment, "device": "NVIDIA H100"}])
    refused = mlpsubmit("verify", "--retrain", "1%")
    assert refused.code == 2
    assert "was trained on NVIDIA H100, and this machine has no GPU" in refused.err


@pytest.mark.slow
def test_what_others_could_have_written_is_not_trained_again_unasked(
    mlpsubmit: Command, run: Run
) -> None:
    run.directory.pickle.chmod(0o666)
    assert mlpsubmit("verify").code == 0, "it executes nothing"
    refused = mlpsubmit("verify", "--retrain", "1%")
    assert refused.code == 2
    assert "sweep.pkl can be written by anyone, so others could have replaced" in refused.err
    trusted = mlpsubmit("verify", "--retrain", "1%", "--trust")
    assert (trusted.code, trusted.err) == (0, "")
    assert "all bits are equal" in trusted.out
