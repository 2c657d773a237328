"""What a command is doing, at a terminal: each is a real one, of a child process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlpsubmit.display.progress import doing

#: Names two blocks, one within the other; each goes on until a line comes.
SCRIPT = """
import sys
from mlpsubmit.display.progress import doing, show_what_is_done
show_what_is_done()
with doing("importing \\x1b[31mtorch"):
    print("a result")
    sys.stdin.readline()
    with doing("planning"):
        sys.stdin.readline()
print("over")
"""


@contextmanager
def terminal(
    script: str = SCRIPT, **variables: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a script with its standard error on a terminal; yield its end that we read."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, **variables},
    )
    os.close(theirs)
    try:
        yield ours, child
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def shown_until(ours: int, text: str) -> str:
    """Read the terminal until it has shown a text."""
    shown = ""
    while text not in shown:
        shown += os.read(ours, 4096).decode()
    return shown


def proceed(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


def test_what_is_done_is_shown_in_place() -> None:
    with terminal(TERM="xterm") as (ours, child):
        shown = shown_until(ours, "importing \\u001b[31mtorch ...")
        proceed(child)
        shown += shown_until(ours, "planning ...")
        proceed(child)
        # What is printed into a pipe meanwhile stays in it, although the terminal is another.
        assert child.communicate()[0] == b"a result\nover\n"
        assert "a result" not in shown


def test_no_thread_waits_while_a_function_of_the_user_may_fork() -> None:
    counted = SCRIPT.replace(
        'print("a result")', "import threading; print(threading.active_count())"
    )
    with terminal(counted, TERM="xterm") as (ours, child):
        shown_until(ours, "importing")
        proceed(child)
        proceed(child)
        assert child.communicate()[0] == b"1\nover\n"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    with terminal(TERM="dumb") as (ours, child):
        assert shown_until(ours, "\n") == "importing \\u001b[31mtorch ...\r\n"
        proceed(child)
        assert shown_until(ours, "\n") == "planning ...\r\n"
        proceed(child)
        assert child.communicate()[0] == b"a result\nover\n"


def test_nothing_is_shown_where_no_terminal_is() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT.replace("sys.stdin.readline()", "__import__('time').sleep(0.2)"),
        ],
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"a result\nover\n", b"")


def test_errors_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), doing("this"):
        raise KeyError
    assert capsys.readouterr().err == ""


#: A display that is in place when the process is told to end.
LIVE = """
import time
from mlpsubmit.display.console import transient
from mlpsubmit.display.progress import show_cursor_at_end
show_cursor_at_end()
transient(lambda: "waiting").start(refresh=True)
time.sleep(60)
"""


def test_a_command_that_is_killed_leaves_a_visible_cursor() -> None:
    with terminal(LIVE, TERM="xterm") as (ours, child):
        assert "\x1b[?25l" in shown_until(ours, "waiting")
        child.terminate()
        child.communicate()
        assert child.returncode == -signal.SIGTERM
        shown_until(ours, "\x1b[?25h")
