"""The exit code and the message of a script whose jobs cannot run, unless it catches them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlpsubmit import SpecError
from mlpsubmit.compat import run_job_iterator

pytestmark = pytest.mark.slow  # each starts a process

SCRIPT = """
import os, signal, sys
import torch
from mlpsubmit.compat import run_job_iterator

def bfn(bsz, gen, X=None, y=None):
    def batch_fn(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return torch.ones(bsz, 2), torch.ones(bsz)
    return batch_fn

def main(lr):
    config = dict(width=4, MAX_ITER=10, LR=lr)
    run_job_iterator([[4], [0]], ["n", "trial"], config, dict(base_bfn=bfn), use_mp=False)

"""


def ended(folder, *lines, flags=()):
    (folder / "script.py").write_text(SCRIPT + "\n".join(lines))
    return subprocess.run(
        [sys.executable, *flags, "script.py"],
        cwd=folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_error_ends_a_script_with_its_message_alone(workplace):
    done = ended(workplace, "main(-1)")
    assert done.returncode == 2
    assert done.stderr == "LR: got -1; should be a finite number > 0 (base learning rate)\n"


def test_ctrl_c_ends_a_script_without_a_traceback(workplace):
    done = ended(workplace, "main(0.1)")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_script_can_catch_an_error_and_other_errors_are_as_ever(workplace):
    lines = ["try: main(-1)", "except Exception as error: print(type(error).__name__)", "1 / 0"]
    done = ended(workplace, *lines)
    assert (done.returncode, done.stdout) == (1, "SpecError\n")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_an_interactive_python_shows_the_exception(workplace):
    done = ended(workplace, "main(-1)", flags=["-i"])
    assert "Traceback" in done.stderr
    assert "SpecError: LR: got -1" in done.stderr


def test_a_hook_of_the_scripts_own_stays(workplace, monkeypatch):
    def own(kind, error, trace):
        raise NotImplementedError

    monkeypatch.setattr(sys, "excepthook", own)
    with pytest.raises(SpecError):
        run_job_iterator(3)
    assert sys.excepthook is own
