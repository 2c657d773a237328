"""What is on disk: whole or ignored, whatever process died and whatever byte was lost."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.checksums import summed_json
from mlpsubmit.errors import RunError
from mlpsubmit.files import publish, publish_json
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.masks import decode_mask, encode_mask
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard, failures_json, members
from mlpsubmit.jobs.store.stored_results import reused_name

unhurried = settings(deadline=None)  # cores may be shared


@pytest.fixture
def run(tmp_path, records):
    """A run directory of which nothing is trained yet."""
    return records.create(tmp_path)


def arrays(number):
    """Return the arrays of a pack of two configs."""
    return {
        "index": np.array([number, number + 1]),
        "key": np.full(2, f"{number:032x}", dtype="S32"),
        "status": np.ones(2, np.uint8),
        "steps": np.full(2, 7),
        "seconds": np.full(2, 0.5),
        "timekeys": np.full((2, 1), -1),
        "step": np.arange(3),
        "train_loss": np.full((2, 3), number / 7),
    }


def fill(path, *numbers):
    """Write a shard of some finished packs."""
    with Shard(path) as shard:
        for number in numbers:
            shard.append(f"{number:07d}.npz", npz_bytes(arrays(number)))
    return path


def fail(shard, pack, error="ValueError: no", finished=()):
    failure = {"indices": [4, 5], "error": error, "traceback": "Traceback ...", "line": "raise"}
    failure["where"] = "spec.py:1 in f"
    shard.append(f"{pack}.failed.json", failures_json(finished, [failure]))


# ---- shards --------------------------------------------------------------------------------------


def test_members_of_a_shard_are_what_was_appended(tmp_path):
    contents = {"a.npz": b"", "b.npz": b"x" * 512, "c.failed.json": b"y" * 513, "d.npz": b"z"}
    with Shard(tmp_path / "t.0.tar") as shard:
        for name, content in contents.items():
            shard.append(name, content)
            assert [member.name for member in members(shard.path)][-1] == name
    assert {member.name: member.read() for member in members(shard.path)} == contents


def test_a_shard_is_an_ordinary_tar_of_ordinary_npz_files(tmp_path):
    path = fill(tmp_path / "t.0.tar", 1, 2)
    listed = subprocess.run(
        ["tar", "--list", "--file", path], capture_output=True, text=True, check=True
    )
    assert (listed.stdout.split(), listed.stderr) == (["0000001.npz", "0000002.npz"], "")
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["0000001.npz", "0000002.npz"]
        content = tar.extractfile("0000002.npz").read()
    with np.load(io.BytesIO(content)) as npz:
        assert set(npz.files) == set(arrays(2))
        assert npz["index"].tolist() == [2, 3]


def test_a_shard_that_is_still_open_is_an_ordinary_tar(tmp_path):
    shard = Shard(tmp_path / "t.0.tar")
    shard.append("a.npz", b"abc")
    listed = subprocess.run(
        ["tar", "--list", "--file", shard.path], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == ["a.npz"]
    shard.close()


def test_a_shard_cut_at_any_byte_yields_the_whole_members_before_it(tmp_path):
    contents = {"a.npz": b"a" * 700, "b.failed.json": b"{}", "c.npz": b"c" * 512, "d.npz": b""}
    with Shard(tmp_path / "whole.0.tar") as shard:
        for name, content in contents.items():
            shard.append(name, content)
    whole = shard.path.read_bytes()
    ends = {member.name: member.offset + member.size for member in members(shard.path)}
    torn = tmp_path / "torn.0.tar"
    torn.write_bytes(whole)
    for size in range(len(whole), -1, -1):
        os.truncate(torn, size)
        found = {member.name: member.read() for member in members(torn)}
        assert found == {name: contents[name] for name, end in ends.items() if end <= size}


@pytest.mark.parametrize(
    "tail", [bytes(100), bytes(2000), b"garbage", np.random.default_rng(0).bytes(2000)], ids=len
)
def test_a_tail_of_garbage_is_ignored(tmp_path, tail):
    shard = Shard(tmp_path / "t.0.tar")
    shard.append("a.npz", b"abc")
    whole = shard.path.read_bytes()
    shard.close()
    shard.path.write_bytes(whole + tail)
    assert [(m.name, m.read()) for m in members(shard.path)] == [("a.npz", b"abc")]


@unhurried
@given(st.binary(max_size=1500))
def test_a_file_of_garbage_has_no_members(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.0.tar"
    path.write_bytes(content)
    assert list(members(path)) == []


def test_an_empty_file_has_no_members(tmp_path):
    (tmp_path / "t.0.tar").touch()
    assert list(members(tmp_path / "t.0.tar")) == []


def test_a_shard_in_which_nothing_finished_is_removed(tmp_path):
    with Shard(tmp_path / "t.0.tar") as shard:
        assert shard.path.exists()
    assert not shard.path.exists()


def test_a_shard_is_never_overwritten(tmp_path):
    path = fill(tmp_path / "t.0.tar", 1)
    with pytest.raises(FileExistsError):
        Shard(path)


# ---- attempts ------------------------------------------------------------------------------------


def test_attempts_are_numbered(tmp_path):
    with Shard.claim(tmp_path, "000-0001") as first, Shard.claim(tmp_path, "000-0001") as second:
        assert (first.attempt, second.attempt) == (0, 1)
        assert second.path == tmp_path / "000-0001.1.tar"
        with Shard.claim(tmp_path, "000-0002") as other:
            assert other.attempt == 0
    fill(tmp_path / "000-0001.1.tar", 1)
    with Shard.claim(tmp_path, "000-0001") as third:
        assert third.attempt == 2


CLAIM = """
import sys
from pathlib import Path
from mlpsubmit.jobs.store.shards import Shard
print("ready", flush=True)
sys.stdin.readline()
claimed = [Shard.claim(Path(sys.argv[1]), "000-0000").attempt for _ in range(50)]
print(*claimed, flush=True)
"""


def test_two_processes_never_claim_the_same_attempt(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    claimed = [set(process.communicate(timeout=60)[0].split()) for process in processes]
    assert [len(attempts) for attempts in claimed] == [50, 50]
    assert not claimed[0] & claimed[1]
    assert len(list(tmp_path.glob("000-0000.*.tar"))) == 100


# ---- packs ---------------------------------------------------------------------------------------


def test_packs_read_back_array_by_array(run):
    fill(run.results.folder / "000-0000.0.tar", 1, 2)
    first, second = run.results.packs()
    assert (first.name, second.name) == ("0000001", "0000002")
    assert first.arrays() == [*arrays(1), "trained_on", "trained_by"]
    assert set(first["trained_by"].tolist()) == {f"{run.id}/000-0000".encode()}
    np.testing.assert_array_equal(second["train_loss"], arrays(2)["train_loss"])
    assert second["train_loss"].dtype == np.float64


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_any_flipped_byte_is_found_or_does_no_harm(tmp_path, flip):
    path = fill(tmp_path / "t.0.tar", 1)
    (member,) = members(path)
    whole = path.read_bytes()
    unnoticed = set()
    for place in range(member.offset, member.offset + member.size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        pack = shards.StoredPack(member)
        if pack.intact():
            unnoticed.add(place)
            assert pack.arrays() == list(arrays(1))
            for name, array in arrays(1).items():
                np.testing.assert_array_equal(pack[name], array)
    for array in arrays(1).values():
        start = whole.index(array.tobytes())
        assert not unnoticed & set(range(start, start + array.nbytes))


@pytest.mark.parametrize("place", [0, 128, 300, -150, -22])
def test_a_damaged_pack_is_left_out(run, place):
    path = fill(run.results.folder / "000-0000.0.tar", 1, 2, 3)
    content = bytearray(path.read_bytes())
    second = list(members(path))[1]
    at = second.offset + place % second.size
    content[at : at + 8] = bytes(byte ^ 0xFF for byte in content[at : at + 8])
    path.write_bytes(content)
    assert [pack.name for pack in run.results.packs()] == ["0000001", "0000003"]
    # The damage is recorded: readers of headers count what readers of contents count.
    whole = {"0000001", "0000003"}
    again = RunDirectory.open(run.path).results
    assert again.outcomes().finished == again.finished() == run.results.finished() == whole
    assert again.outcomes().damaged == [second]
    assert [pack.name for pack in again.packs()] == sorted(whole)


def damage(member):
    """Overwrite some bytes of a member with zeros."""
    with member.shard.open("r+b") as file:
        file.seek(member.offset + 130)
        file.write(bytes(8))


def reads(monkeypatch):
    """Return the list of the members that are read from now on."""
    read, intact = [], shards.StoredPack.intact
    note = lambda pack: read.append(pack.name) or intact(pack)  # noqa: E731
    monkeypatch.setattr(shards.StoredPack, "intact", note)
    return read


def test_a_shard_is_read_again_only_if_it_has_changed(run, monkeypatch):
    read = reads(monkeypatch)
    shard = Shard(run.results.folder / "000-0000.0.tar")
    shard.append("0000001.npz", npz_bytes(arrays(1)))
    results = lambda: RunDirectory.open(run.path).results  # noqa: E731  # as of another command
    assert [results().finished() for _ in range(3)] == [{"0000001"}] * 3
    assert read == ["0000001"]
    shard.append("0000002.npz", npz_bytes(arrays(2)))
    shard.close()
    assert [results().finished() for _ in range(2)] == [{"0000001", "0000002"}] * 2
    assert read == ["0000001", "0000001", "0000002"]
    # Damage makes another time of modification, and what collects reads everything anyway.
    damage(next(members(shard.path)))
    assert [results().finished() for _ in range(2)] == [{"0000002"}] * 2
    assert len(read) == 5
    assert len(list(results().packs())) == 1
    assert len(read) == 7


def test_damage_holds_until_the_shard_is_read_again(run):
    path = fill(run.results.folder / "000-0000.0.tar", 1, 2)
    whole, (first, _) = path.read_bytes(), members(path)
    results = lambda: RunDirectory.open(run.path).results  # noqa: E731
    assert results().finished() == {"0000001", "0000002"}
    assert path.with_suffix(".verified.json").exists()
    damage(first)
    assert results().outcomes().finished == {"0000001", "0000002"}  # nobody has found it yet
    assert results().finished() == results().outcomes().finished == {"0000002"}
    assert [file.name for file in run.results.folder.glob("*.json")] == ["000-0000.0.damaged.json"]
    path.write_bytes(whole)  # restored: as far as the headers show, it is as it was
    assert results().outcomes().finished == {"0000002"}
    assert results().finished() == results().outcomes().finished == {"0000001", "0000002"}
    assert [file.name for file in run.results.folder.glob("*.json")] == ["000-0000.0.verified.json"]


def test_damage_that_cannot_be_recorded_is_counted_by_this_process(run, monkeypatch):
    path = fill(run.results.folder / "000-0000.0.tar", 1, 2)
    damage(next(members(path)))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mlpsubmit.jobs.store.verification.publish_json", refused)
    assert [pack.name for pack in run.results.unread().packs()] == ["0000002"]
    assert run.results.outcomes().finished == run.results.finished() == {"0000002"}
    assert [file.name for file in run.results.folder.iterdir()] == ["000-0000.0.tar"]


@pytest.mark.parametrize("record", [b"", b"[]", b'{"size": 1}', b'{"size": [], "mtime": 2}'])
def test_a_damaged_record_of_damage_is_as_none(run, record):
    path = fill(run.results.folder / "000-0000.0.tar", 1)
    for suffix in (".damaged.json", ".verified.json"):
        path.with_suffix(suffix).write_bytes(record)
    assert run.results.outcomes().finished == run.results.finished() == {"0000001"}


@pytest.mark.parametrize(
    "name", ["1.npz", "0000010.npz", "00000001.npz", "²²²²²²².npz", "notes", "reused-0000000.3.npz"]
)
def test_a_member_that_is_no_pack_of_the_plan_counts_nowhere(run, name):
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        shard.append(name, npz_bytes(arrays(1)))
    assert list(run.results.packs()) == []
    assert run.results.finished() == run.results.outcomes().finished == set()
    assert run.results.outcomes().reused == 0


def test_a_pack_whose_content_never_reached_the_disk_is_left_out(run):
    path = fill(run.results.folder / "000-0000.0.tar", 1)
    (member,) = members(path)
    with path.open("r+b") as file:
        file.seek(member.offset)
        file.write(bytes(member.size))
    assert run.results.finished() == set()


def test_an_npz_that_would_have_to_be_unpickled_is_not_read(run):
    buffer = io.BytesIO()
    np.savez(buffer, index=np.array([{}], dtype=object))
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        shard.append("0000001.npz", buffer.getvalue())
    assert list(run.results.packs()) == []


def test_arrays_are_stored_uncompressed():
    with zipfile.ZipFile(io.BytesIO(npz_bytes(arrays(1)))) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_later_shards_come_later(tmp_path, records):
    run = records.create(tmp_path, reused=4)
    order = [
        "reused.0.tar",
        "000-0000.0.tar",
        "000-0000.1.tar",
        "000-0000.2.tar",
        "000-0000.10.tar",
        "000-0001.0.tar",
        "001-0000.0.tar",
    ]
    for number, name in enumerate(reversed(order[1:])):
        fill(run.results.folder / name, number)
    with Shard(run.results.folder / order[0]) as shard:
        shard.append(reused_name(0, 2), npz_bytes(arrays(6)))
    (run.results.folder / "notes.tar").touch()
    (run.results.folder / ".000-0000.3.tar").touch()
    assert [path.name for path in run.results.shards()] == order
    found = {pack.name: pack.member.shard.name for pack in run.results.packs()}
    fresh = {f"{5 - place:07d}": name for place, name in enumerate(order[1:])}
    assert found == {"reused-0000000.2": "reused.0.tar", **fresh}
    assert run.results.outcomes().reused == 2


def test_reused_results_have_the_configs_of_their_names(tmp_path, records):
    run = records.create(tmp_path, reused=4)
    names = [reused_name(0, 2), reused_name(1, 3), reused_name(2, 5), "0000001.npz"]
    with Shard(run.results.folder / "reused.0.tar") as shard:
        for name in names:
            shard.append(name, npz_bytes(arrays(6)))
    # By their headers alone no more than are recorded at the launch.
    assert run.results.outcomes().reused == 4
    assert [pack.member.name for pack in run.results.packs()] == names[:1]
    assert run.results.outcomes().reused == 2
    assert [member.name for member in run.results.outcomes().damaged] == names[1:2]


def test_of_two_results_for_a_pack_the_later_one_wins(run):
    for attempt in (0, 1):
        with Shard(run.results.folder / f"000-0000.{attempt}.tar") as shard:
            shard.append("0000007.npz", npz_bytes({**arrays(14), "steps": np.full(2, attempt)}))
    assert {pack.name: int(pack["steps"][0]) for pack in run.results.packs()} == {"0000007": 1}


# ---- failures ------------------------------------------------------------------------------------


def test_a_failure_says_what_and_which_configs(run):
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        fail(shard, "0000001")
    (failure,) = run.results.failures()
    assert (failure.pack, failure.error) == ("0000001", "ValueError: no")
    assert (failure.indices.tolist(), failure.traceback) == ([4, 5], "Traceback ...")
    assert run.results.finished() == run.results.outcomes()[0] == set()


def test_a_failure_is_superseded_by_what_comes_later(run):
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        for pack in ("0000001", "0000002", "0000003"):
            fail(shard, pack)
        shard.append("0000003.npz", npz_bytes(arrays(3)))
    with Shard(run.results.folder / "001-0000.0.tar") as shard:
        shard.append("0000001.npz", npz_bytes(arrays(1)))
        fail(shard, "0000002", "KeyError: yet another")
    assert [(f.pack, f.error) for f in run.results.failures()] == [
        ("0000002", "KeyError: yet another")
    ]
    assert run.results.outcomes()[0] == {"0000001", "0000003"}


def test_a_pack_of_which_configs_failed_is_not_finished_and_its_results_are_read(run):
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        shard.append("0000001.partial.npz", npz_bytes(arrays(1)))
    # A process that dies here leaves a pack that is missing: nothing of it counts.
    assert run.results.outcomes()[:2] == (set(), [])
    assert run.results.finished() == set()
    assert list(run.results.packs()) == []
    with Shard(run.results.folder / "000-0000.1.tar") as shard:
        shard.append("0000001.partial.npz", npz_bytes(arrays(1)))
        fail(shard, "0000001", finished=[6, 7])
    finished, failures, partly, *_ = run.results.outcomes()
    assert (finished, partly.tolist()) == (set(), [6, 7])
    assert [(f.pack, f.where, f.line) for f in failures] == [("0000001", "spec.py:1 in f", "raise")]
    assert run.results.failed("000-0000") == {"0000001"}
    assert run.results.failed("001-0000") == set()
    assert {pack.name for pack in run.results.packs()} == {"0000001"}
    with Shard(run.results.folder / "001-0000.0.tar") as shard:
        shard.append("0000001.npz", npz_bytes(arrays(1)))
    finished, failures, partly, *_ = run.results.outcomes()
    assert (finished, failures, len(partly)) == ({"0000001"}, [], 0)


def test_a_damaged_failure_is_left_out(run):
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        fail(shard, "0000001")
        shard.append("0000002.failed.json", bytes(100))
        shard.append("0000003.failed.json", b"{}")
    assert [failure.pack for failure in run.results.failures()] == ["0000001"]


def test_any_flipped_byte_of_a_failure_makes_its_pack_missing(run):
    path = run.results.folder / "000-0000.0.tar"
    with Shard(path) as shard:
        shard.append("0000001.partial.npz", npz_bytes(arrays(1)))
        fail(shard, "0000001", finished=[1, 2])
    whole, (_, member) = path.read_bytes(), members(path)
    for place in range(member.offset, member.offset + member.size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        finished, failures, partly, *_ = run.results.outcomes()
        counted = (finished, len(failures), partly.tolist())
        assert counted == (set(), 0, [])


def test_a_config_with_a_result_has_not_failed_whatever_came_later(run):
    for submission, finished in enumerate(([1], [2])):
        with Shard(run.results.folder / f"{submission:03d}-0000.0.tar") as shard:
            one = {name: array[:1] for name, array in arrays(1).items() if name != "step"}
            one |= {"step": np.arange(3), "index": np.array(finished)}
            shard.append("0000001.partial.npz", npz_bytes(one))
            fail(shard, "0000001", finished=finished)
    outcomes = run.results.outcomes()
    assert outcomes.partly.tolist() == [1, 2]
    assert [failure.indices.tolist() for failure in outcomes.failures] == [[4, 5]]
    (first, _) = (m for m in run.results.members() if "partial" in m.name)
    damage(first)
    assert [pack["index"].tolist() for pack in run.results.packs()] == [[2]]
    assert run.results.outcomes().partly.tolist() == [2]


# ---- publishing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
def test_published_files_replace_what_was_there(tmp_path, sync):
    path = tmp_path / "plan.json"
    publish(path, b"old", sync=sync)
    publish(path, lambda file: file.write(b"new"), sync=sync)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_writer_that_raises_leaves_the_old_content_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "plan.json"
    if old is not None:
        path.write_bytes(old)

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        publish(path, write)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == (
        {"plan.json": old} if old else {}
    )


def test_what_is_no_json_is_not_published(tmp_path):
    with pytest.raises(TypeError):
        publish_json(tmp_path / "a.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


DIE_WHILE_WRITING = """
import os, sys
from pathlib import Path
from mlpsubmit.checksums import summed_json
from mlpsubmit.files import publish
def write(file):
    file.write(b"half")
    file.flush()
    os._exit(9)
publish(Path(sys.argv[1]), write)
"""


def test_a_process_that_dies_while_writing_leaves_the_old_content(run, records):
    path = run.heartbeat("000-0000")
    run.submission(0).mkdir()
    publish_json(run.submission(0) / run_directory.INTENT, records.intent())
    beat = records.beat(step=1)
    publish_json(path, beat)
    done = subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING, path], timeout=60, check=False)
    assert done.returncode == 9
    assert run.heartbeats(0) == {"000-0000": beat}


# ---- the run directory ---------------------------------------------------------------------------


def error_of(function, *arguments):
    with pytest.raises(RunError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    path = tmp_path / "gone"
    assert error_of(RunDirectory.open, path) == f"{path}: no such folder"


@pytest.mark.parametrize("missing", [run_directory.SWEEP_JSON, run_directory.PLAN])
def test_a_folder_that_is_no_run(run, missing):
    (run.path / missing).unlink()
    assert error_of(RunDirectory.open, run.path) == (
        f"{run.path}: is not a run (it has no sweep.json and plan.json); give the folder that "
        "launch printed, the name of a sweep, or the start of a run id"
    )


@pytest.mark.parametrize(
    ("content", "written"),
    [(summed_json({"format": 99}), "99"), (summed_json({}), "None")],
)
def test_a_run_of_another_format(run, content, written):
    (run.path / run_directory.SWEEP_JSON).write_bytes(content)
    assert error_of(RunDirectory.open, run.path) == (
        f"{run.path}: was written in format {written}; this mlpsubmit reads format "
        f"{run_directory.FORMAT}; use the version that launched it"
    )


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe", b"\0" * 100])
def test_a_run_whose_json_is_damaged(run, content):
    plan = dict(run.plan)
    (run.path / run_directory.PLAN).write_bytes(content)
    assert error_of(lambda: RunDirectory.open(run.path).plan).startswith(
        f"{run.path / run_directory.PLAN}: is damaged ("
    )
    publish_json(run.path / run_directory.PLAN, plan)
    (run.path / run_directory.SWEEP_JSON).write_bytes(content)
    assert error_of(RunDirectory.open, run.path).startswith(
        f"{run.path / run_directory.SWEEP_JSON}: is damaged ("
    )


def test_submissions_are_numbered_and_count_once_their_intent_is_written(run, records):
    assert run.next_submission() == 0
    for number in (0, 1):
        run.submission(number).mkdir()
    assert run.next_submission() == 2
    assert run.submissions() == []
    intent = records.intent(slices=[[[0, 3]]])
    publish_json(run.submission(1) / run_directory.INTENT, intent)
    assert run.submissions() == [1]
    assert run.intent(1) == intent
    assert run.jobs(1) is None
    publish_json(run.submission(1) / run_directory.JOBS, {"jobs": []})
    assert run.jobs(1) == {"jobs": []}
    assert run.submission(2) == run.path / "submissions" / "002"


def test_each_task_finds_its_job_and_its_log(run, records):
    run.submission(0).mkdir()
    intent = records.intent(slices=[[[0, 1]], [[1, 2]], [[2, 3]]])
    publish_json(run.submission(0) / run_directory.INTENT, intent)
    jobs = [records.job("7", 0, 2, array=True), records.job("8", 2)]
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": jobs})
    jobs = run.task_jobs(0)
    assert {task: job["id"] for task, job in jobs.items()} == {
        "000-0000": "7_0",
        "000-0001": "7_1",
        "000-0002": "8",
    }
    assert run.log(0, jobs["000-0001"]["id"]) == run.submission(0) / "7_1_0_log.out"
    assert run.task_jobs(1) == {}


def test_a_task_that_starts_too_late_has_nothing_to_do(run, records):
    run.submission(0).mkdir()
    assert run.superseded(0) == "its submission was withdrawn"
    publish_json(run.submission(0) / run_directory.INTENT, records.intent())
    assert run.superseded(0) is None
    run.end_submission(0, "cancelled")
    assert run.superseded(0) == run.ended(0) == "cancelled"
    run.submission(1).mkdir()
    assert run.superseded(0) == "cancelled"
    publish_json(run.submission(1) / run_directory.INTENT, records.intent())
    assert run.superseded(0) == "submission 001 has taken its place"
    assert run.superseded(1) is run.ended(1) is None


def test_every_name_in_a_run_is_as_documented(run):
    documented = run_directory.__doc__
    names = [
        run.checkpoint("<pack>"),
        run.data_file("<key>"),
        run.heartbeat("<task>"),
        run.results.folder / "<task>.<attempt>.tar",
        run.path / run_directory.SWEEP_PICKLE,
    ]
    assert all(f"| {name.relative_to(run.path)} " in documented for name in names)


# ---- masks ---------------------------------------------------------------------------------------


@unhurried
@given(st.lists(st.booleans(), max_size=200))
def test_masks_come_back(mask):
    text = encode_mask(np.array(mask, dtype=bool))
    assert text.isascii()
    assert decode_mask(text, len(mask)).tolist() == mask
    assert decode_mask(text, len(mask)).dtype == bool


def test_regular_masks_are_short():
    mask = np.arange(1_000_000) % 100 < 30
    text = encode_mask(mask)
    assert len(text) < 5_000
    assert np.array_equal(decode_mask(text, len(mask)), mask)


def test_the_store_imports_no_torch_and_unpickles_nothing():
    code = "import sys, mlpsubmit.jobs.store.run_directory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    folder = Path(run_directory.__file__).parent
    assert all("pickle.load" not in file.read_text() for file in folder.glob("*.py"))


def test_a_failing_disk_is_not_a_run_without_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    run = RunDirectory(tmp_path)
    assert run.submissions() == []
    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(OSError, match="Input/output error"):  # else its tasks would train twice
        run.submissions()
