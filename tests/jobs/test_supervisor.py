"""The parent of a task's process: it starts another one if that is killed in a pack."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlpsubmit.jobs.process_end import ProcessEnd

#: A worker that trains nothing; BODY does whatever a test wants of a child.
WORKER = """
import os, signal, sys, time
from mlpsubmit.jobs.signals import STOP_SIGNALS, stop_on_signals
from mlpsubmit.jobs.supervisor import supervised

parent = supervised(lambda end: print("report:", end, flush=True))
with stop_on_signals() as stop:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    last = parent.last and (parent.last[0], str(parent.last[1]), parent.last[1].where)
    print("child:", last, flush=True)
BODY
parent.end()
sys.exit(7)
"""


def start(folder: Path, body: str) -> subprocess.Popen[str]:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    file = folder / "worker.py"
    file.write_text(WORKER.replace("BODY", lines))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-u", str(file)], stdout=pipe, text=True)


def output(process: subprocess.Popen[str]) -> list[str]:
    printed, _ = process.communicate(timeout=60)
    return [line for line in printed.splitlines() if line.startswith(("child:", "report:", "got"))]


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL (usually out of memory)"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "was killed by SIGXCPU (its limit of CPU time"),
        ("os.killpg(0, signal.SIGKILL)", "was killed by SIGKILL (usually out of memory)"),
        ("os._exit(3)", "ended with exit code 3 (os._exit, or a library that ends it)"),
    ],
)
def test_a_child_that_is_killed_in_a_pack_is_followed_by_another(
    tmp_path: Path, body: str, end: str
) -> None:
    process = start(tmp_path, f"parent.begin_pack(4)\nif last is None:\n    {body}")
    first, second = output(process)
    assert first == "child: None"
    assert second.startswith(f"child: (4, '{end}")
    assert process.returncode == 7


def test_the_line_of_the_user_in_which_a_signal_found_the_process(tmp_path: Path) -> None:
    body = "parent.begin_pack(0)\nif last is None:\n    os.abort()"
    assert output(start(tmp_path, body))[1] == (
        "child: (0, 'was killed by SIGABRT (a failed check in compiled code)', "
        "'worker.py:13 in <module>')"
    )


def test_a_child_that_is_killed_outside_of_packs_is_the_last(tmp_path: Path) -> None:
    process = start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert output(process) == [
        "child: None",
        "report: was killed by SIGKILL (usually out of memory)",
    ]
    assert process.returncode == -signal.SIGKILL


def test_a_child_that_ends_itself_is_the_last(tmp_path: Path) -> None:
    process = start(tmp_path, "parent.begin_pack(0)")
    assert output(process) == ["child: None"]
    assert process.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_reach_the_child_which_saves_and_stops(tmp_path: Path, number: int) -> None:
    body = """
parent.begin_pack(0)
print("ready", flush=True)
while not stop.is_set():
    signal.sigtimedwait([signal.SIGALRM], 0.1)  # not pause(): the signal may be here already
print("got it", flush=True)
os._exit(5)
"""
    process = start(tmp_path, body)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(number)
    assert output(process) == ["got it"], "no other child"
    assert process.returncode == 5


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    process = start(tmp_path, "print('ready', flush=True)\nsignal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    process.kill()
    assert process.communicate(timeout=60)[0] == "", "the pipe is closed once both have ended"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (ProcessEnd(signal=64), "was killed by SIGRTMAX"),
        (ProcessEnd(signal=9, memory=True), "was killed for its memory (SIGKILL)"),
        (ProcessEnd(memory=True), "was killed for its memory"),
        (ProcessEnd(), "was killed (by which signal is not known)"),
    ],
)
def test_an_end_in_words(end: ProcessEnd, text: str) -> None:
    assert str(end) == text
