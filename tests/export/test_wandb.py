"""Offline files of W&B, read record by record with its own messages."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from wandb.proto import wandb_internal_pb2 as messages

from mlpsubmit import UserError, export_run
from mlpsubmit.export.wandb_runs import wandb_id
from mlpsubmit.runs.run import Run
from tests.export.wandb_server import WandbServer, serving

pytestmark = pytest.mark.slow

#: Bytes of a block in the files, whose format is that of LevelDB's logs, and of the file's head.
BLOCK, HEAD = 1 << 15, 7


@pytest.fixture(autouse=True)
def _nobody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nobody is logged in, and nothing is set."""
    home = tmp_path_factory.mktemp("home")
    os.environ.pop("WANDB_SERVICE", None)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home))
    monkeypatch.chdir(home)
    yield
    wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)  # else later processes would look for what has ended


class Stored:
    """A run of W&B, as its file has it."""

    def __init__(self, file: Path) -> None:
        self.run: Any = None
        self.exit_code: int | None = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= values(record.run.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of one curve."""
        rows = [row for row in self.history if name in row]
        return [row["_step"] for row in rows], [row[name] for row in rows]


def values(items: Any) -> dict[str, Any]:
    return {"/".join([one.key] if one.key else one.nested_key): json.loads(one.value_json)
            for one in items}  # fmt: skip


def records(file: Path) -> Iterator[Any]:
    content, at, found = file.read_bytes(), HEAD, b""
    while at < len(content):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        found += content[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # a whole record, or the end of one
            yield messages.Record.FromString(found)
            found = b""


def stored(folder: Path) -> dict[str, Stored]:
    """Return the runs of an export by their names; each is there once."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    found = {own.run.display_name: own for own in map(Stored, files)}
    assert len(found) == len(files)
    return found


@pytest.fixture(scope="module")
def folder(study: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, exported."""
    out = tmp_path_factory.mktemp("wandb")
    return export_run(study, "wandb", out=out, offline=True, project="p")


def test_a_run_for_each_config(study: Run, folder: Path) -> None:
    found, dataset = stored(folder), study.collect()
    assert len(found) == 8
    config = dataset.isel(width=0, note=0, factor=0)
    own = found["width=4, note=a∕b, factor=nan"]
    assert (own.run.project, own.run.run_group, own.run.job_type) == ("p", "odd", "config")
    assert list(own.run.tags) == ["done", study.id]
    assert own.exit_code == 0
    assert own.config["width"] == 4
    assert own.config["note"] == "a/b"
    assert own.config["factor"] == "nan"  # which JSON has not as a number
    assert own.config["lr"] == 0.1
    assert own.config["onlythresholds"] is False
    origin = own.config["mlpsubmit"]
    assert origin["run"] == study.id
    assert own.run.run_id == wandb_id("odd", origin["key"])
    last = int(config.steps) - 1
    for name in ("train_loss", "test_loss", "size"):
        steps, losses = own.curve(name)
        clock = config[str(config[name].dims[0])].values
        assert steps == [*clock[clock < last].tolist(), last]
        np.testing.assert_array_equal(losses, config[name].values[: len(steps)])
    assert own.curve("two_x_0_dim0_1")[0] == own.curve("size")[0]
    assert own.summary["timekeys_0_9"] == int(config.timekeys[0])
    assert own.summary["steps"] == last + 1
    assert own.summary["status"] == "done"
    assert not {"timekeys_1e_09", "error", "large"} & set(own.summary)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", name) for row in own.history for name in row)


def test_how_configs_ended(study: Run, folder: Path) -> None:
    found = stored(folder)
    diverged = found[r"width=4, note=x\ny, factor=nan"]
    assert (diverged.exit_code, diverged.summary["status"]) == (0, "diverged")
    assert diverged.curve("train_loss") == ([0], [math.inf])
    assert diverged.config["note"] == "x\ny"
    failed = found["width=8, note=fails, factor=nan"]
    assert (failed.exit_code, failed.summary["status"]) == (1, "failed")
    assert list(failed.run.tags) == ["failed", study.id]
    assert failed.summary["error"] == r"ValueError: no *data*\n</b>"
    assert "\n    ValueError: no *data*\n    </b>" in failed.run.notes
    assert failed.history == []


def test_nothing_of_this_machine_is_recorded(folder: Path) -> None:
    assert {own.run.host for own in stored(folder).values()} == {""}
    assert not list(folder.glob("wandb/offline-run-*/files/*"))


def test_exported_again_what_is_new_is_added(
    own_study: Run, keep: Callable[[int], None], resumed: Callable[[], None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    keep(3)
    export_run(own_study, "wandb", out=out, offline=True)
    first = sorted(out.glob("wandb/offline-run-*"))
    keep(8)
    export_run(own_study, "wandb", out=out, offline=True)
    second = sorted(out.glob("wandb/offline-run-*"))
    assert (len(first), len(second)) == (3, 8)
    assert set(first) < set(second)
    resumed()
    export_run(own_study, "wandb", out=out, offline=True)
    third = stored(out)
    assert len(third) == 8
    assert all(own.exit_code == 0 for own in third.values())
    assert third["width=8, note=fails, factor=nan"].curve("train_loss")[0]
    with pytest.raises(UserError) as refused:
        export_run(own_study, "wandb", out=out, offline=True, project="other")
    assert str(refused.value) == (
        f"{out}: has an export with project 'mlpsubmit', not 'other'; give another --out"
    )


def test_killed_in_between_it_goes_on(study: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "mlpsubmit",
        "export",
        study.path,
        "--to",
        "wandb",
        "--offline",
    ]
    with subprocess.Popen([*command, "--out", out], stdout=subprocess.DEVNULL) as process:
        while len(list(out.glob("wandb/offline-run-*"))) < 3:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    export_run(study, "wandb", out=out, offline=True)
    found, expected = stored(out), stored(folder)
    assert set(found) == set(expected)
    assert {name: own.exit_code for name, own in found.items()} == \
        {name: own.exit_code for name, own in expected.items()}  # fmt: skip
    assert {name: len(own.history) for name, own in found.items()} == \
        {name: len(own.history) for name, own in expected.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (
            "online",
            "W&B: not logged in to https://wandb.test; run: wandb login, or set WANDB_API_KEY; or "
            "write files with --offline, and send them later",
        ),
        (
            "disabled",
            "W&B: got the mode 'disabled' (WANDB_MODE, or its settings), in which nothing is "
            "written for each config; valid are online and offline",
        ),
    ],
)
def test_nothing_begins_where_nothing_could_be_written(
    study: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.test")
    with pytest.raises(UserError) as refused:
        export_run(study, "wandb", out=tmp_path / "out")
    assert str(refused.value) == message
    assert not (tmp_path / "out").exists()


def test_offline_as_wandb_is_set(
    study: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "from-there")
    out = export_run(study, "wandb", out=tmp_path / "out", sel={"width": 4, "note": "a/b"})
    (own,) = stored(out).values()
    assert own.run.project == "from-there"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server on this machine, and an account there."""
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.address)
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        yield found
        wandb.teardown()


def test_online_what_was_sent_is_completed_and_nothing_is_sent_twice(
    own_study: Run, resumed: Callable[[], None], server: WandbServer, tmp_path: Path
) -> None:
    selection = {"width": 4, "note": ["a/b", "fails"]}
    export_run(own_study, "wandb", out=tmp_path / "one", sel=selection)
    assert len(server.runs) == 2
    done, failed = sorted(server.runs.values(), key=lambda run: run.exit_code or 0)
    assert (done.exit_code, failed.exit_code, failed.steps) == (0, 1, [])
    assert failed.about["tags"] == ["failed", own_study.id]
    whole = list(done.history)
    assert len(set(done.steps)) == len(whole) == 20

    # As if the export had been killed, before it recorded anything: from another folder.
    done.history[7:], done.summary, done.exit_code = [], whole[6], None
    resumed()
    export_run(own_study, "wandb", out=tmp_path / "two", sel=selection)
    assert len(server.runs) == 2
    assert done.history[:7] == whole[:7]
    assert [losses(row) for row in done.history] == [losses(row) for row in whole]
    assert (done.exit_code, failed.exit_code) == (0, 0)
    assert len(failed.steps) == 20
    assert failed.about["tags"] == ["done", own_study.id]
    summary = json.loads(failed.summary)
    assert (summary["status"], summary["steps"], summary.get("error")) == ("done", 40, None)


def losses(row: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(row).items()
            if name not in ("_timestamp", "_runtime")}  # fmt: skip


def test_wandb_sends_the_files(folder: Path, server: WandbServer) -> None:
    program = Path(sys.executable).with_name("wandb")
    done = subprocess.run([program, "sync", "--yes"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {str(run.about["displayName"]): run for run in server.runs.values()}
    for name, own in stored(folder).items():
        assert found[name].exit_code == own.exit_code
        assert found[name].about["groupName"] == "odd"
        assert found[name].steps == [row["_step"] for row in own.history]
