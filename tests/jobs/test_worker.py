"""The process of a task: how it starts, and what it does where it is interrupted."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlpsubmit import Sweep, files, launch
from mlpsubmit.jobs import worker
from mlpsubmit.jobs.command_line import WORKER, module_command
from mlpsubmit.jobs.executors import local
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.slurm.requeue import REQUEUE
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.runs.run import Run
from mlpsubmit.spec import load


def ones(bsz: int, gen: Any, signal_at: int = -1) -> Any:
    def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.ones(bsz, 2), torch.ones(bsz)

    return batch_fn


@pytest.fixture
def launched(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Launch a sweep of two tasks on this machine without starting a process."""

    def launched(**further: Any) -> Run:
        settings = {"batchfn": ones, "MAX_ITER": 10, "N_SAMPLES": 4, **further}
        sweep = Sweep("waits", {"WIDTH": [4, 8]}, **settings)
        # The functions of this module travel by value, as those of a spec do.
        return launch(sweep, executor="local", tasks=2, spec=Path(__file__))

    monkeypatch.setattr(local, "usable_cores", lambda _: 2)
    monkeypatch.setattr(local.LocalExecutor, "submit", lambda *_: iter(()))
    return launched


@pytest.mark.slow
def test_a_parent_may_start_the_workers_of_all_its_devices(launched: Any, workplace: Path) -> None:
    """In a folder whose modules are called like ours and Python's own."""
    run = launched()
    for name in ("jobs", "random", "json", "torch", "mlpsubmit"):
        (workplace / f"{name}.py").write_text("raise ImportError('the wrong one')")
    submitted = run.path, 0, sweep_hash(run.directory)
    commands = [module_command(WORKER, *submitted, task) for task in range(2)]
    processes = [subprocess.Popen(command, cwd=workplace) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert run.status().complete
    assert sorted(path.name for path in run.directory.results.shards()) == [
        "000-0000.0.tar",
        "000-0001.0.tar",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("safe", [{}, {"PYTHONSAFEPATH": "1"}])
def test_only_the_working_directory_is_searched_last(safe: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import sys; print(repr([sys.path[0], sys.path[-1]]))")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **safe}
    done = subprocess.run(
        module_command("shown"), env=environment, capture_output=True, text=True, check=True
    )
    first, last = ast.literal_eval(done.stdout)
    assert first == str(tmp_path)
    is_safe = safe and sys.version_info >= (3, 11)  # which knows the variable
    assert bool(last) == bool(is_safe)


@pytest.mark.parametrize(
    ("executor", "cancelled", "code"),
    [("slurm", False, REQUEUE), ("slurm", True, 0), ("local", False, 0)],
)
def test_an_interrupted_task_asks_to_be_queued_again(
    executor: str,
    cancelled: bool,
    code: int,
    launched: Any,
    records: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not one that was cancelled, nor a local run within somebody's job: that job is not ours."""
    run = launched(signal_at=3)
    file = run.directory.submission(0) / run_directory.INTENT
    files.publish_json(
        file,
        {**records.intent(executor=executor), "slices": json.loads(file.read_bytes())["slices"]},
    )
    if cancelled:
        monkeypatch.setattr(type(run.directory), "superseded", lambda *_: None)
        run.directory.end_submission(0, "cancelled")
    assert worker.main(str(run.path), 0, sweep_hash(run.directory), 0) == code
    assert "interrupted, its state is saved" in capsys.readouterr().out
    assert run.directory.last_heartbeat("000-0000")["state"] == "interrupted"


def test_a_task_without_the_gpu_that_it_was_given_does_not_train_on_the_cpu(
    launched: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = launched()
    file = run.directory.submission(0) / run_directory.INTENT
    files.publish_json(file, {**json.loads(file.read_bytes()), "gpus": True})
    assert worker.main(str(run.path), 0, sweep_hash(run.directory), 0) == 1
    shown = capsys.readouterr().out
    assert f"this task should have a GPU, and torch sees none: torch {torch.__version__}" in shown
    assert "CUDA_VISIBLE_DEVICES is 'MIG-1'; install a build of torch for that driver" in shown
    beat = run.directory.last_heartbeat("000-0000")
    assert (beat["state"], beat["packs_done"]) == ("crashed", 0)
    assert beat["error"] in shown


def test_a_task_with_another_python_says_so(
    launched: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launched()
    monkeypatch.setattr(load, "THIS_RELEASE", "3.99")
    assert worker.main(str(run.path), 0, sweep_hash(run.directory), 0) == 1
    assert "the sweep was launched with Python 3.1" in capsys.readouterr().out
    task = run.status().tasks[0]
    assert task.state == "crashed"
    assert ", and this is Python 3.99 (" in task.why


def test_a_task_whose_submission_has_ended_trains_nothing(
    launched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launched()
    run.directory.end_submission(0, "cancelled")
    assert worker.main(str(run.path), 0, sweep_hash(run.directory), 1) == 0
    assert capsys.readouterr().out == "nothing to do: cancelled\n"
    assert run.directory.heartbeats() == {}


def test_a_process_that_is_killed_before_it_trains_is_reported_by_its_parent(
    launched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launched()
    worker.report_end(str(run.path), 0, 1, ProcessEnd(signal=int(signal.SIGBUS)))
    task = run.status().tasks[1]
    assert task.state == "crashed"
    assert task.why.startswith("its process was killed by SIGBUS (usually a memory-mapped file")
    assert ", before it trained anything\n" in capsys.readouterr().out
