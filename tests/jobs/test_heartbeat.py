"""Which process a heartbeat or a job belongs to."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import files
from mlpsubmit.jobs.heartbeat import Heartbeat, is_alive, process_start


def test_a_process_is_alive_by_its_id_its_boot_and_its_start() -> None:
    started = process_start(os.getpid())
    assert started is not None
    process = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": started}
    assert is_alive(process)
    boot, _, ticks = started.partition(":")
    assert not is_alive({**process, "process_start": f"{boot}:{int(ticks) + 1}"})
    assert not is_alive({**process, "process_start": f"an earlier boot:{ticks}"})


def test_a_slow_disk_does_not_stop_who_updates_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk writes only once the fields have been updated."""
    heartbeat = Heartbeat(tmp_path / "beat.json", 100.0, step=0)
    writing, updated, written = threading.Event(), threading.Event(), []

    def publish(path: Path, fields: dict[str, Any], *, sync: bool) -> None:
        writing.set()
        updated.wait()
        written.append(fields["step"])

    monkeypatch.setattr(files, "publish_json", publish)
    beating = threading.Thread(target=heartbeat.publish, daemon=True)
    beating.start()
    assert writing.wait(60)
    updating = threading.Thread(target=lambda: heartbeat.update(step=1), daemon=True)
    updating.start()
    updating.join(60)
    waits = updating.is_alive()
    updated.set()
    beating.join(60)
    assert not waits, "the update waits for the disk"
    assert heartbeat["step"] == 1
    heartbeat.publish()
    assert written == [0, 1]


def test_short_packs_do_not_write_the_heartbeat_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = 100.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(files, "publish_json", lambda _, fields, **__: written.append(fields))
    heartbeat = Heartbeat(tmp_path / "beat.json", 100.0)
    heartbeat.publish()
    for pack, seconds in (("a", 0.0), ("b", 0.1), ("c", 0.7), ("d", 0.3)):
        now += seconds
        heartbeat.update(state="training", pack=pack)
        heartbeat.publish_soon()
    # At once when the state changes: who was killed in training is treated differently.
    assert [(one["state"], one.get("pack")) for one in written] == [
        ("starting", None),
        ("training", "a"),
        ("training", "d"),
    ]
