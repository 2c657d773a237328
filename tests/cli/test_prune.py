"""prune: what is superseded is removed, and nothing else, whenever the process is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import open_run
from mlpsubmit.cli import prune as command
from mlpsubmit.errors import RunError
from mlpsubmit.files import locked, publish_json, read_json
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.runs import prune as pruning
from mlpsubmit.runs.submit import submission_lock

# The fixtures `mlpsubmit`, `workplace` and `records` come from conftest.py.
Command = Callable[..., Any]


def small(mlpsubmit: Command, *overrides: str) -> str:
    done = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=5", *overrides)
    assert done.code == 0, done.err
    return open_run().id


@pytest.fixture
def folder(workplace: Path) -> Path:
    return workplace / "mlpruns" / "small"


@pytest.fixture
def grown(mlpsubmit: Command) -> tuple[str, str]:
    """A run, and a later one with all its results and more."""
    return small(mlpsubmit), small(mlpsubmit, "noise+=1.0")


def found(mlpsubmit: Command, *arguments: str) -> dict[str, Any]:
    done = mlpsubmit("prune", "--json", *arguments)
    content: dict[str, Any] = json.loads(done.out)
    assert content["schema"] == "prune/1"
    return content


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


# ---- what is superseded --------------------------------------------------------------------------


def test_a_run_whose_results_a_later_one_has(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str]
) -> None:
    first, second = grown
    results = open_run(second).collect().load()
    listed = found(mlpsubmit)
    (one,) = listed["candidates"]
    assert (one["kind"], one["name"], one["run"]) == ("run", "small", first)
    assert one["why"] == f"run {second[-6:]} has its 8 results"
    assert one["paths"] == [str(folder / first)]
    assert (one["removed"], one["error"]) == (False, None)
    size = sum(f.stat().st_size for f in (folder / first).rglob("*") if f.is_file())
    assert one["size_bytes"] == listed["size_bytes"] == size
    assert visible(folder) == {first, second}  # without --yes, JSON lists only
    shown = mlpsubmit("prune", "--dry-run")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0].split("  ")[0] == "what"
    assert lines[1].startswith(f"run   small  {first}")
    assert lines[1].endswith(f"run {second[-6:]} has its 8 results")
    removed = mlpsubmit("prune", "--yes")
    assert removed.code == 0
    assert removed.out.splitlines()[-1].startswith("removed 1 run: ")
    assert visible(folder) == {second}
    assert open_run(second).collect().load().identical(results)
    assert mlpsubmit("prune").out == "mlpruns: nothing to remove in 1 run\n"


def test_runs_with_other_results_stay(mlpsubmit: Command, folder: Path) -> None:
    others = (["LR=0.2"], ["noise=[0.5]", "--fresh"])
    runs = {small(mlpsubmit), *(small(mlpsubmit, *other) for other in others)}
    assert found(mlpsubmit)["candidates"] == []
    assert visible(folder) == runs


def test_a_later_run_must_have_the_results_whole(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str]
) -> None:
    _, second = grown
    shard = folder / second / "results" / "reused.0.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY")] ^= 1
    shard.write_bytes(content)
    assert found(mlpsubmit)["candidates"] == []
    shard.unlink()
    assert found(mlpsubmit)["candidates"] == []
    for name in ("ingredients.json", "sweep.json"):
        shutil.copytree(folder / second, folder / "copy")
        (folder / second / name).write_text("{")
        assert found(mlpsubmit)["candidates"] == []
        shutil.rmtree(folder / second)
        (folder / "copy").rename(folder / second)


def test_results_of_other_data_stay(mlpsubmit: Command, workplace: Path, folder: Path) -> None:
    numbers = "def numbers():\n    import numpy\n    return {'table': numpy.load('table.npy')}\n\n"
    text = (workplace / "small.py").read_text().replace("sweep = ", f"{numbers}sweep = ")
    text = text.replace("batchfn=linear", "batchfn=linear, data=numbers")
    text = text.replace("def linear(noise,", "def linear(noise, table,")
    (workplace / "small.py").write_text(text)
    np.save("table.npy", np.zeros(3))
    first = small(mlpsubmit)
    np.save("table.npy", np.ones(4))
    second = small(mlpsubmit, "--fresh")
    assert found(mlpsubmit)["candidates"] == []
    third = small(mlpsubmit, "--fresh")
    assert [one["run"] for one in found(mlpsubmit)["candidates"]] == [second]
    assert mlpsubmit("prune", "--yes").code == 0
    assert visible(folder) == {first, third}


def test_runs_that_others_begin_from_or_that_keep_states_stay(
    mlpsubmit: Command, workplace: Path, folder: Path
) -> None:
    first = small(mlpsubmit, "SAVE_WEIGHTS=final")
    text = (workplace / "small.py").read_text().replace('"small"', '"tuned"')
    text = text.replace("import torch", "import torch\nfrom mlpsubmit import from_run")
    text = text.replace("LR=0.1", f"LR=0.1, INIT_WEIGHTS=from_run({first!r})")
    (workplace / "tuned.py").write_text(text)
    done = mlpsubmit("launch", "tuned.py", "--executor", "debug", "MAX_ITER=2")
    assert done.code == 0, done.err
    tuned = open_run("tuned").id
    small(mlpsubmit, "SAVE_WEIGHTS=final", "noise+=1.0")
    listed = found(mlpsubmit)
    assert listed["candidates"] == []
    why = f"run {tuned} begins from its networks (INIT_WEIGHTS)"
    assert listed["kept"] == [{"run": first, "why": why}]
    assert f"kept: run {first} {why}\n" in mlpsubmit("prune").out
    (workplace / "mlpruns").rename(workplace / "moved")
    assert found(mlpsubmit, "--runs-dir", "moved")["kept"] == listed["kept"]
    (workplace / "moved").rename(workplace / "mlpruns")
    # Also if that run is launched after the list was made, and before the answer.
    (workplace / "mlpruns" / "tuned").rename(workplace / "later")
    candidates = pruning.find([folder / first]).candidates
    (workplace / "later").rename(workplace / "mlpruns" / "tuned")
    (removal,) = pruning.remove(candidates)
    assert removal.error == f"run {first}: {why} by now"
    shutil.rmtree(workplace / "mlpruns" / "tuned")
    (folder / first / "states" / "0000000.pt").write_bytes(b"x")
    why = "keeps states that a longer training can go on from (KEEP_STATE)"
    assert found(mlpsubmit)["kept"] == [{"run": first, "why": why}]


def busy(run: str, records: Any) -> None:
    """Make a run one whose task is this process."""
    directory = open_run(run).directory
    own = {"host": os.uname().nodename, "pid": os.getpid(), "state": "training"}
    beat = records.beat(**own, process_start=process_start(os.getpid()))
    fields = {"pack": "0000000", "max_iter": 9, "attempt": 0, "supervised": False, "step": 1}
    publish_json(directory.heartbeat("000-0000"), {**beat, **fields, "cost_done": 0.0})


def test_runs_in_progress_are_not_touched(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str], records: Any
) -> None:
    first, second = grown
    (folder / first / "compiled" / "kernel").write_bytes(b"x")
    candidates = pruning.find([folder / first]).candidates
    busy(first, records)
    listed = found(mlpsubmit)
    assert listed["candidates"] == []
    assert listed["kept"] == [{"run": first, "why": "is in progress"}]
    # Nor one that began after the list was made, and before the answer.
    (removal,) = pruning.remove(candidates)
    assert removal.error == f"run {first}: is in progress by now"
    assert visible(folder) == {first, second}


def test_a_run_stays_if_the_later_one_is_lost_before_the_answer(
    folder: Path, grown: tuple[str, str]
) -> None:
    first, second = grown
    copied = folder.parent / "a copy"  # its runs have the same ids
    shutil.copytree(folder, copied)
    candidates = pruning.find([copied / first, folder / first]).candidates
    assert [one.kind for one in candidates] == ["run", "run"]
    for shard in (folder / second / "results").glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[1000] ^= 1
        shard.unlink()  # it may be linked to the other run
        shard.write_bytes(content)
    removed, kept = pruning.remove(candidates)
    assert (removed.error, visible(copied)) == ("", {second})
    assert kept.error == f"run {first}: no later run has all its results any more"
    candidates = candidates[1:]
    shutil.rmtree(folder / second)
    (removal,) = pruning.remove(candidates)
    assert removal.error == f"run {first}: no later run has all its results any more"
    assert visible(folder) == {first}


def test_nothing_is_removed_while_the_sweep_is_launched_or_resumed(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpsubmit.runs.submit.LOCK_SECONDS", 0.01)
    locks = {folder / ".lock": "the sweep small", folder / grown[0] / "plan.json": "run"}
    for lock, what in locks.items():
        with locked(lock):
            done = mlpsubmit("prune", "--yes")
        assert done.code == 1
        assert f"not removed: {what}" in done.err
        assert "another launch, resume or prune is in progress" in done.err
        assert visible(folder) == set(grown)
    assert found(mlpsubmit, "--yes")["candidates"][0]["removed"]


def test_a_resume_that_waited_for_a_prune_says_that_the_run_is_gone(workplace: Path) -> None:
    lock = submission_lock(workplace / "mlpruns" / "small" / "x" / "plan.json", "run x")
    with pytest.raises(RunError, match="run x: has been removed; see mlpsubmit ls"), lock:
        raise AssertionError


def test_a_run_of_another_user_is_kept(
    mlpsubmit: Command, grown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "owner", lambda path: "alice")
    assert found(mlpsubmit)["kept"] == [{"run": grown[0], "why": "belongs to alice"}]


# ---- what is of no use in runs that stay ---------------------------------------------------------


def test_leftovers_are_removed(mlpsubmit: Command, folder: Path) -> None:
    run = small(mlpsubmit)
    path = folder / run
    (path / "checkpoints" / "0000000.pt").write_bytes(b"x" * 2000)
    (path / "checkpoints" / "9999999.pt").write_bytes(b"x")  # of no pack that is finished
    (path / "compiled" / "machine").mkdir()
    (path / "compiled" / "machine" / "kernel").write_bytes(b"x" * 3000)
    (path / "results" / ".a.tar.0123456789ab").write_bytes(b"x")
    (path / "submissions" / "000" / ".ended.json.0123456789ab").write_bytes(b"x")  # of a cancel
    (folder / f".{run}.0123456789ab" / "results").mkdir(parents=True)
    assert len(found(mlpsubmit)["candidates"]) == 2  # a process may be writing the others
    for file in folder.glob("**/.*.0123456789ab"):
        os.utime(file, (0, 0))
    kinds = {one["kind"]: one for one in found(mlpsubmit)["candidates"]}
    assert set(kinds) == {"checkpoints", "compiled", "temporary"}
    assert kinds["compiled"]["size_bytes"] == 3000
    assert kinds["checkpoints"]["why"] == "their packs are finished"
    done = mlpsubmit("prune", "--yes")
    assert done.code == 0
    assert "removed unneeded files in 2 folders: " in done.out
    left = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()}
    assert {"checkpoints/9999999.pt", "submissions/000/.ended.json.0123456789ab"} <= left
    assert not any("kernel" in file or "0000000.pt" in file for file in left)
    assert (path / "compiled").is_dir()
    assert visible(folder) == {run}
    assert not (folder / f".{run}.0123456789ab").exists()
    (path / "checkpoints" / "9999999.pt").unlink()
    assert mlpsubmit("verify", run).code == 0


def test_a_killed_prune_leaves_nothing_that_a_command_sees(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = grown

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlpsubmit.files.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            list(pruning.remove(pruning.find([folder / first]).candidates))
    assert visible(folder) == {second}
    shown = json.loads(mlpsubmit("ls", "--json").out)["runs"]
    assert [row["run"] for row in shown] == [second]
    assert mlpsubmit("status", first).code == 2
    assert found(mlpsubmit)["candidates"] == []
    (hidden,) = folder.glob(f".{first}.*")
    os.utime(hidden, (0, 0))
    assert [one["kind"] for one in found(mlpsubmit)["candidates"]] == ["temporary"]
    assert mlpsubmit("prune", "--yes").code == 0
    assert {path.name for path in folder.iterdir()} <= {second, ".lock"}


@pytest.fixture
def network_disk(workplace: Path, installed: Callable[[str], str]) -> Iterator[Path]:
    """A folder in which files that are removed while they are open stay, renamed, as on NFS."""
    own, seen = workplace / "own", workplace / "seen"
    for path in (own, seen):
        path.mkdir()
    mount = subprocess.run([installed("bindfs"), own, seen], capture_output=True, text=True)
    assert mount.returncode == 0, f"this machine mounts nothing with FUSE: {mount.stderr}"
    yield seen
    subprocess.run([installed("fusermount"), "-u", "-z", seen], check=True)


def test_files_that_are_open_on_a_network_disk(mlpsubmit: Command, network_disk: Path) -> None:
    runs = network_disk / "small"
    for more in ((), ("noise+=1.0",)):
        (first,) = visible(runs) if more else ("",)
        arguments = ("small.py", "--executor", "debug", "MAX_ITER=5", *more)
        done = mlpsubmit("launch", *arguments, "--runs-dir", network_disk)
        assert done.code == 0, done.err
    (second,) = {path.name for path in runs.glob("2*")} - {first}
    shard = runs / first / "results" / "000-0000.0.tar"
    with shard.open("rb"):
        # A name of that kind among the files of a run is none of them.
        open_file = runs / second / "results" / "x"
        open_file.touch()
        with open_file.open():
            open_file.unlink()
            assert len([*open_file.parent.glob(".*")]) == 1
            done = mlpsubmit("prune", "--yes", "--runs-dir", network_disk)
            rows = json.loads(mlpsubmit("ls", "--json", "--runs-dir", network_disk).out)["runs"]
        assert done.code == 0
        assert done.out.splitlines()[-1].startswith("removed 1 run: ")
        hidden = next(runs.glob(f".{first}.*"))
        assert (
            f"some of it is left, as files of it may be open: {hidden}: Directory not" in done.err
        )
        assert "; the next launch of the sweep, or prune in an hour, removes it" in done.err
        left = [path for path in hidden.rglob("*") if path.is_file()]
        assert [path.parent.name for path in left] == ["results"]
    assert [(row["run"], row["state"]) for row in rows] == [(second, "done")]
    assert visible(runs) == {second}
    os.utime(hidden, (0, 0))
    again = found(mlpsubmit, "--yes", "--runs-dir", str(network_disk))["candidates"]
    assert [(one["kind"], one["removed"], one["left"]) for one in again] == [
        ("temporary", True, None)
    ]
    assert not hidden.exists()


def test_a_process_that_writes_into_what_is_removed(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str]
) -> None:
    first, second = grown
    results = folder / first / "results"
    # It goes on in the folder that it has opened, whatever that is called.
    writes = "import os; os.chdir(os.sys.argv[1]); print(flush=True)\n"
    writes += "while True:\n try: open('x', 'w').close()\n except OSError: break"
    command = [sys.executable, "-c", writes, results]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            done = mlpsubmit("prune", "--yes")
        finally:
            writer.kill()
    assert done.code == 0
    assert visible(folder) == {second}
    assert "not removed" not in done.err
    assert small(mlpsubmit, "noise+=1.0") == second
    assert mlpsubmit("verify", second).code == 0


def test_a_run_that_disappears_while_it_is_read(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = OSError(errno.ESTALE, "Stale file handle", str(folder / grown[0]))

    def lost(run: Any, scheduler: Any) -> Any:
        raise stale

    monkeypatch.setattr(pruning, "read_status", lost)
    done = mlpsubmit("prune", "--yes")
    assert done.code == 0
    assert f"kept: run {grown[0]} cannot be read: [Errno 116] Stale file handle" in done.out
    assert visible(folder) == set(grown)


def test_what_is_linked_elsewhere_frees_nothing(
    mlpsubmit: Command, folder: Path, workplace: Path, grown: tuple[str, str]
) -> None:
    file = folder / grown[0] / "data" / "shared.pt"
    file.write_bytes(b"x" * 10**6)
    os.link(file, workplace / "elsewhere")
    assert found(mlpsubmit)["size_bytes"] < 10**6


# ---- asking --------------------------------------------------------------------------------------


def test_it_asks_first(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = mlpsubmit("prune")
    assert refused.code == 2
    assert (
        "prune: removes nothing without a confirmation, and there is no terminal to ask in; give "
        "--yes, or --dry-run to list only"
    ) in refused.err
    both = mlpsubmit("prune", "--yes", "--dry-run")
    assert both.code == 2
    assert "--dry-run: removes nothing, and --yes removes without asking; give one" in both.err
    unknown = mlpsubmit("prune", "smal")
    assert unknown.code == 2
    assert "smal: no run of that name or id in mlpruns (did you mean 'small'?)" in unknown.err
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer in (False, True):
        monkeypatch.setattr(
            command.click, "confirm", lambda text, answer=answer: (asked.append(text), answer)[1]
        )
        assert visible(folder) == set(grown)
        done = mlpsubmit("prune")
        assert done.code == 0
        last = "removed 1 run: " if answer else "nothing was removed"
        assert done.out.splitlines()[-1].startswith(last)
    assert visible(folder) == {grown[1]}
    assert asked[0].startswith("remove 1 run (")


def test_a_name_or_a_run_restricts_it(mlpsubmit: Command, grown: tuple[str, str]) -> None:
    assert found(mlpsubmit, "small")["candidates"][0]["run"] == grown[0]
    assert found(mlpsubmit, grown[1])["candidates"] == []
    assert found(mlpsubmit, grown[0])["candidates"][0]["run"] == grown[0]


def test_older_and_damaged_runs_are_left_alone(
    mlpsubmit: Command, folder: Path, grown: tuple[str, str]
) -> None:
    file = folder / grown[0] / "sweep.json"
    publish_json(file, {**read_json(file), "format": 3})
    assert found(mlpsubmit)["candidates"] == []
    assert found(mlpsubmit)["unreadable_runs"] == 1
    wanted = "left alone: 1 run of another format, or damaged; see ls\n"
    assert mlpsubmit("prune").out.endswith(wanted)
