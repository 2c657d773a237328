"""Runs that were changed by hand or by malice: one message, or one lost file, and never a hang."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit.errors import RunError
from mlpsubmit.files import LARGEST_JSON, SMALL_JSON, locked, open_regular, publish_json, read_json
from mlpsubmit.jobs.status import read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.environments import publish_environments
from mlpsubmit.jobs.store.masks import decode_mask, encode_classes
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.pack_schema import PackSchema
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import SMALL_PACK, Member, Shard, members
from mlpsubmit.jobs.store.verification import Stamp, Verification
from mlpsubmit.results import to_dataset
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:.*was made with is unknown")

PACK = {
    "index": np.array([2, 3]),
    "key": np.array(["0" * 32, "f" * 32], dtype="S32"),
    "status": np.ones(2, np.uint8),
    "steps": np.full(2, 7),
    "seconds": np.full(2, 0.5),
    "timekeys": np.full((2, 1), -1),
    "step": np.arange(3),
    "train_loss": np.full((2, 3), 0.25),
    "grab.norm": np.full((2, 4), 1.5),
}

#: Values that no field has, or only some have.
ODD: list[Any] = [None, True, -1, 10**9, 10**30, 1.5, float("nan"), "", "x\0", "../x", [], [[]], {}]


@pytest.fixture
def run(tmp_path: Path, records: Any) -> RunDirectory:
    """A run of ten packs, of which one is finished; of its two tasks one has ended."""
    run: RunDirectory = records.create(tmp_path / "run")
    run.submission(0).mkdir()
    intent = records.intent(slices=[[[0, 5]], [[5, 10]]])
    publish_json(run.submission(0) / run_directory.INTENT, intent)
    jobs = [records.job(f"000-000{n}", n, pid=2**22 + 1) for n in range(2)]
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": jobs})
    publish_json(run.heartbeat("000-0000"), records.beat(state="done", packs=5, packs_done=1))
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        shard.append("0000001.npz", npz_bytes(PACK))
    publish_environments(run.results.folder / "000-0000.0.tar", [{"torch": "2", "threads": 1}])
    run.record_launch(1)
    lost = Member(run.results.folder / "000-0000.0.tar", "0000002.npz", 512, 9)
    Verification(Stamp.never(), frozenset()).record(lost.shard)
    publish_json(run.results.folder / "000-0000.0.damaged.json", record(lost))
    return run


def record(*members: Member) -> dict[str, Any]:
    """Return a record of damaged members."""
    entries = [{"name": m.name, "offset": m.offset, "size": m.size} for m in members]
    return {"size": -1, "mtime": 0, "damaged": entries}


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Fail if the block waits for something that never comes."""

    def hang(*_: object) -> None:
        pytest.fail("it hangs")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def look(run: RunDirectory) -> int:
    """Read a run as status, collect and logs do; return how many configs are done."""
    with answered():
        opened = Run(RunDirectory.open(run.path))
        status = opened.status()
        json.dumps(status.to_json())
        to_dataset(opened.layout(), opened.directory.results)
        opened.logs()
    return status.done


FILES = [
    "sweep.json",
    "plan.json",
    "launched.json",
    "submissions/000/intent.json",
    "submissions/000/jobs.json",
    "heartbeats/000-0000.json",
    "results/000-0000.0.json",
    "results/000-0000.0.verified.json",
    "results/000-0000.0.damaged.json",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_wrong_or_missing_field_is_one_message_or_costs_its_own_file(
    run: RunDirectory, records: Any, name: str
) -> None:
    file = run.path / name
    whole = read_json(file)
    assert look(run) == 2
    for content in records.wrong(whole, ODD, 2):
        if isinstance(content, dict):
            publish_json(file, content, sync=False)
        else:
            file.write_text(json.dumps(content))
        with contextlib.suppress(RunError):
            assert look(run) in (0, 2)


def replace(file: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "nested":
        file.write_bytes(b"[" * 100_000)
    else:
        with file.open("wb") as sparse:
            sparse.truncate(5 << 30)


@pytest.mark.parametrize("name", [*FILES, "results/000-0000.0.tar"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to itself", "nested", "5 GB"])
def test_a_file_of_another_kind_is_not_read(run: RunDirectory, name: str, kind: str) -> None:
    replace(run.path / name, kind)
    with contextlib.suppress(RunError):
        assert look(run) in (0, 2)


def test_what_is_wrong_with_a_file_is_said(run: RunDirectory) -> None:
    file = run.path / run_directory.PLAN
    plan = read_json(file)
    publish_json(file, {**plan, "threads": "2", "packs": -1, "order": 3, "outside": None})
    with pytest.raises(RunError) as caught:
        RunDirectory.open(run.path)
    assert str(caught.value) == (
        f"{file}: is damaged (packs: got -1; should be greater than or equal to 0; "
        "order: got 3; should be a valid list; outside: got None; should be a valid integer; "
        "and 1 more); launch its spec again: a new run reuses the finished results of this one"
    )
    del plan["kept"]
    publish_json(file, plan)
    with pytest.raises(RunError, match=r"plan\.json: is damaged \(kept: missing\)"):
        RunDirectory.open(run.path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sweep.json", {"name": "../../x"}, "name: got '../../x'; value error, should be letters"),
        ("sweep.json", {"configs": 10**7}, "configs: got 10000000; the axes have 20"),
        ("sweep.json", {"included": "AAAA"}, "included: "),
        (
            "plan.json",
            {"shape": [10**7, 10**7]},
            "the shape has 100000000000000 points; the most",
        ),
        ("plan.json", {"packs": 10**7}, "it has 10 packs of 20 configs, not as it says"),
        ("plan.json", {"pack_limits": [[10**6, 2]]}, "pack_limits: not those of 1 groups"),
        ("plan.json", {"order": [1]}, "order and outside do not fit the shape"),
        ("plan.json", {"shape": [10], "packs": 5, "configs": 10}, "shape [10] is not that of the"),
        ("plan.json", {"kept": "eJzzAwAAUQBR"}, "kept: "),
        ("plan.json", {"classes": {"0": "x"}}, "classes: of the axis 0, which is not one of those"),
        ("plan.json", {"outside": 1, "classes": {"0": "eJw="}}, "classes: "),
        (
            "plan.json",
            {"outside": 1, "classes": {"0": encode_classes(np.zeros(19, int))}},
            "classes: it should have 20 numbers",
        ),
    ],
)
def test_parts_of_a_run_that_do_not_fit_together(
    run: RunDirectory, name: str, changes: dict[str, Any], message: str
) -> None:
    file = run.path / name
    publish_json(file, {**read_json(file), **changes})
    with pytest.raises(RunError) as caught:
        RunDirectory.open(run.path)
    assert message.replace("value error, ", "") in str(caught.value)


def test_a_lost_heartbeat_costs_its_own_task_and_is_named(run: RunDirectory, records: Any) -> None:
    file = run.heartbeat("000-0000")
    publish_json(file, {"state": "training", "started": 0.0})
    here = socket.gethostname()
    jobs = [records.job(f"000-000{n}", n, pid=2**22 + 1, host=here) for n in range(2)]
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": jobs})
    status = read_status(RunDirectory.open(run.path))
    problem = f"{file}: is damaged (updated: missing)"
    assert status.unreadable == (problem,)
    assert [task.why for task in status.tasks] == [
        f"its process exited without reporting; {problem}",
        "its process exited without reporting",
    ]
    assert status.done == 2


def test_jobs_or_an_intent_that_are_lost_leave_open_whether_tasks_run(run: RunDirectory) -> None:
    jobs = run.submission(0) / run_directory.JOBS
    publish_json(jobs, {"jobs": [{"id": "../../x"}]})
    status = read_status(RunDirectory.open(run.path))
    assert [task.state for task in status.tasks] == ["done", "unknown"]
    assert "is damaged (jobs.0.id: got '../../x'; " in status.tasks[1].why
    intent = run.submission(0) / run_directory.INTENT
    publish_json(intent, {})
    status = read_status(RunDirectory.open(run.path))
    assert (status.state, status.done, len(status.tasks)) == ("unknown", 2, 1)
    assert status.tasks[0].why.startswith(f"{intent}: is damaged (executor: missing; ")
    assert status.tasks[0].why.endswith(f"remove {intent.parent}, and resume")
    assert Run(run).logs() == {}


def test_a_job_covers_no_more_tasks_than_there_are(run: RunDirectory, records: Any) -> None:
    file = run.submission(0) / run_directory.JOBS
    publish_json(file, {"jobs": [records.job("7", count=10**7, array=True)]})
    run = RunDirectory.open(run.path)
    assert run.task_jobs(0) == {}
    assert run.unreadable[file] == f"{file}: is damaged (got jobs for more than its 2 tasks)"


@pytest.mark.parametrize("ranges", [[[0, 10**7]], [[3, 3]], [[0, 6], [0, 6]]])
def test_a_slice_has_packs_of_the_plan(run: RunDirectory, records: Any, ranges: Any) -> None:
    publish_json(run.submission(0) / run_directory.INTENT, records.intent(slices=[ranges]))
    with pytest.raises(RunError, match=r"intent\.json: is damaged \(slices: got "):
        run.intent(0)
    later = records.intent(executor="slurm", slices=[[[5, 6]]], later=[ranges])
    publish_json(run.submission(0) / run_directory.INTENT, later)
    with pytest.raises(RunError, match=r"intent\.json: is damaged \(slices: got "):
        run.intent(0)


@pytest.mark.parametrize("name", ["abc", "0abc", "0000", "٣٣٣", "99999999999", "-01", "1"])
def test_folders_that_are_no_submissions_are_ignored(run: RunDirectory, name: str) -> None:
    folder = run.path / run_directory.SUBMISSIONS / name
    folder.mkdir()
    publish_json(folder / run_directory.INTENT, {})
    assert (run.submissions(), run.next_submission()) == ([0], 1)


def test_heartbeats_of_tasks_that_there_are_not_are_not_read(run: RunDirectory) -> None:
    for name in ("000-0002", "001-0000", "000-٠٠٠٠", "x", "000-00000"):
        os.mkfifo(run.path / run_directory.HEARTBEATS / f"{name}.json")
    with answered():
        assert list(run.heartbeats()) == ["000-0000"]
    assert run.unreadable == {}


# ---- files ---------------------------------------------------------------------------------------


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    for path, kind in ((fifo, "a FIFO"), (Path("/dev/null"), "a device"), (tmp_path, "a folder")):
        with answered(), pytest.raises(RunError, match=f"is {kind}; should be a file"):
            open_regular(path)
    with answered(), pytest.raises(OSError), locked(fifo):  # noqa: PT011
        pass
    with large.open("wb") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(RunError, match=f"it has {LARGEST_JSON + 1} bytes; the most is"):
        read_json(large)
    publish_json(large, {"a": "x" * SMALL_JSON})
    assert read_json(large) == {"a": "x" * SMALL_JSON}
    with pytest.raises(RunError, match="the most is"):
        read_json(large, SMALL_JSON)


def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpsubmit.files.LARGEST_JSON", 100)
    with pytest.raises(RunError, match="would have 261 bytes; the most is 100"):
        publish_json(tmp_path / "a.json", {"a": "x" * 200})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [7, 9, 10**7])
def test_a_mask_of_another_size_is_refused_unpacked_or_not(size: int) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    for text in (bomb, "x", "é", "AAAA", ""):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_mask(text, size)


# ---- shards --------------------------------------------------------------------------------------


def shard_of(run: RunDirectory, *contents: tuple[str, bytes]) -> Path:
    path = run.results.folder / "000-0000.0.tar"
    path.unlink(missing_ok=True)
    with Shard(path) as shard:
        for name, content in contents:
            shard.append(name, content, sync=False)
    return path


@pytest.mark.parametrize(
    "name", ["x.npz", "../../x.npz", "0000010.npz", "٣٣٣٣٣٣٣.npz", "²²²²²²².npz", "x.failed.json"]
)
def test_members_with_other_names_are_ignored(run: RunDirectory, name: str) -> None:
    shard_of(run, ("0000001.npz", npz_bytes(PACK)), (name, b"{}"))
    assert look(run) == 2


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    "change",
    [
        {"index": np.array([2, 20])},
        {"index": np.array([2, 2])},
        {"index": np.array([2.0, 3.0])},
        {"index": np.array([[2], [3]])},
        {"index": np.arange(3)},
        {"key": np.array(["x" * 32] * 2, dtype="S32")},
        {"key": np.array([1, 2])},
        {"status": np.array([3, 9])},
        {"steps": np.array([np.nan, 1.0])},
        {"seconds": np.array(["a", "b"])},
        {"timekeys": np.full((2, 2), 1)},
        {"train_loss": np.full((2, 5), 1.0)},
        {"step": np.array([3, 2, 1])},
        {"step": np.arange(3.0)},
        {"grab_step": np.arange(5)},
        {"grab.norm": np.full((3, 4), 1.5)},
        {"trained_together": np.ones((2, 2))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_pack_whose_arrays_are_not_of_the_run_is_damaged(
    run: RunDirectory, change: dict[str, Any], large: bool
) -> None:
    more = {"grab.large": np.zeros((2, SMALL_PACK))} if large else {}
    shard_of(run, ("0000001.npz", npz_bytes({**PACK, **more})))
    assert len(list(run.results.packs())) == 1
    shard_of(run, ("0000001.npz", npz_bytes({**PACK, **more, **change})))
    assert list(RunDirectory.open(run.path).results.packs()) == []


@pytest.mark.parametrize("name", ["heartbeats/000-0000.json", "results/000-0000.0.tar"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to itself"])
def test_verify_names_files_of_other_kinds(run: RunDirectory, name: str, kind: str) -> None:
    replace(run.path / name, kind)
    with answered():
        (damage,) = verify(RunDirectory.open(run.path)).damage
    assert damage.startswith(f"{name}: ")


def test_a_shard_that_cannot_be_read_is_not_recorded_as_verified(run: RunDirectory) -> None:
    for file in run.results.folder.glob("*ed.json"):
        file.unlink()
    replace(run.results.folder / "000-0000.0.tar", "fifo")
    assert run.results.finished() == set()
    assert not list(run.results.folder.glob("*ed.json"))


def test_recorded_damage_of_members_that_no_run_has_is_left_out(run: RunDirectory) -> None:
    shard = run.results.folder / "000-0000.0.tar"
    names = ["0000003.npz", "../x", "\033[1mx", "9999999.npz"]
    content = record(*(Member(shard, name, 0, 1) for name in names))
    publish_json(run.results.folder / "000-0000.0.damaged.json", content)
    assert read_status(run).damaged == ["000-0000.0.tar: 0000003.npz"]


def test_arrays_that_claim_more_bytes_than_they_have_are_damaged(run: RunDirectory) -> None:
    large = npz_bytes({**PACK, "grab.large": np.zeros((2, SMALL_PACK), "u1")})
    assert large.count(b"(2, 262144)") == 1
    for shape in (b"(2, 962144)", b"(-2,-62144)", b"(2,10**300)"):
        shard_of(run, ("0000001.npz", large.replace(b"(2, 262144)", shape)))
        with answered():
            assert list(RunDirectory.open(run.path).results.packs()) == []


@pytest.mark.parametrize("size", [-1, -512, -(2**40), 2**60])
def test_a_member_of_an_impossible_size_ends_its_shard(run: RunDirectory, size: int) -> None:
    header = bytearray(tarfile.TarInfo("0000001.npz").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size & (2**96 - 1)).to_bytes(12, "big")
    header[124] |= 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = run.results.folder / "000-0000.0.tar"
    path.write_bytes(bytes(header) + bytes(4096))
    with answered():
        assert list(members(path)) == []
        assert look(run) == 0


def test_a_shard_has_no_more_members_than_its_run_has_packs(run: RunDirectory) -> None:
    header = tarfile.TarInfo("0000001.npz").tobuf(tarfile.GNU_FORMAT)
    (run.results.folder / "000-0000.0.tar").write_bytes(header * 200_000)
    schema = PackSchema(points=20, thresholds=1, packs=10, reused=0)
    assert len(list(run.results.members())) == schema.most_members == 42
    assert list(run.results.packs()) == []


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"finished": []},
        {"finished": [10**9], "failures": []},
        {"finished": [2], "failures": [{"indices": [2]}]},
        {"finished": [], "failures": [{"indices": ["x"]}]},
        {"finished": [], "failures": [{"indices": [30]}]},
    ],
)
def test_a_failure_of_another_form_is_none(run: RunDirectory, content: Any) -> None:
    if isinstance(content, dict):
        texts = dict.fromkeys(("error", "traceback", "where", "line"), "x")
        content["failures"] = [{**texts, **one} for one in content.get("failures", [])]
    shard_of(run, ("0000001.failed.json", json.dumps(content).encode()))
    assert run.results.failures() == []
    assert look(run) == 0
    shard_of(run, ("0000001.failed.json", b"[" * 100_000))
    assert run.results.failures() == []


def test_a_pack_of_too_many_arrays_is_damaged(run: RunDirectory) -> None:
    grabs = {f"grab.{n}": np.zeros(2) for n in range(5000)}
    shard_of(run, ("0000001.npz", npz_bytes({**PACK, **grabs})))
    assert list(run.results.packs()) == []


def test_an_ordinary_zip_with_objects_is_damaged(run: RunDirectory) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{**PACK, "grab.x": np.array([{}, {}], dtype=object)})
    shard_of(run, ("0000001.npz", buffer.getvalue()))
    assert list(run.results.packs()) == []
