"""Which process a heartbeat or a job belongs to."""

from __future__ import annotations

import os
import socket

from mlpsubmit.jobs.heartbeat import is_alive, process_start


def test_a_process_is_alive_by_its_id_its_boot_and_its_start() -> None:
    started = process_start(os.getpid())
    assert started is not None
    process = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": started}
    assert is_alive(process)
    boot, _, ticks = started.partition(":")
    assert not is_alive({**process, "process_start": f"{boot}:{int(ticks) + 1}"})
    assert not is_alive({**process, "process_start": f"an earlier boot:{ticks}"})
