"""How the local executor shares a machine out."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mlpsubmit.jobs.executors import local
from mlpsubmit.jobs.executors.local import LocalExecutor, usable_cores
from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.spec.hyperparameters import validate


def test_tasks_and_threads_share_the_cores() -> None:
    cores = usable_cores(None)
    assert cores == len(os.sched_getaffinity(0))
    for tasks in range(1, cores + 1):
        executor = LocalExecutor(validate({}), tasks)
        assert executor.max_tasks(cost=1e9) == tasks
        assert tasks * executor.threads_per_worker(tasks) <= cores
        # A run planned for wide tasks is never resumed by more of them than there are cores for.
        assert executor.tasks(threads=cores, packs=100, cost=1e9) == 1
        assert executor.tasks(threads=1, packs=100, cost=1e9) == tasks
        assert executor.tasks(threads=1, packs=1, cost=1e9) == 1
    everything = LocalExecutor(validate({}), None)
    most = everything.max_tasks(cost=1e9)
    assert most * everything.threads_per_worker(most) <= cores
    assert everything.threads_per_worker(1) == cores


SHOWN = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"


@pytest.mark.parametrize(("devices", "seen"), [(["4", "7"], ["4", "7"]), ([], ["", ""])])
def test_each_worker_sees_its_own_gpu(
    devices: list[str], seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = (
        f"import os, sys; print([os.environ[n] for n in {SHOWN}], sys.stdin.read(), os.getsid(0))"
    )
    monkeypatch.setattr(local, "module_command", lambda *_: [sys.executable, "-c", show])
    executor = LocalExecutor(validate({}), 1)
    executor.devices = devices
    submission = Submission(tmp_path, "x", 2, 2, 3)
    submission.folder.mkdir(parents=True)
    jobs = list(executor.submit(submission))
    while any(is_alive(job.to_json()) for job in jobs):
        time.sleep(0.01)
    assert [job.id for job in jobs] == ["002-0000", "002-0001"]
    for job, device in zip(jobs, seen, strict=True):
        log = submission.run.log(2, job.id).read_text()
        assert log == f"{[device, '3', '3']}  {job.pid}\n"


SPEC = """
import os
import torch
from mlpsubmit import Sweep

def watched(bsz, gen, X=None, y=None):
    def batch_fn(step):
        with open({log!r}, "a") as log:
            ids = os.getpid(), torch.get_num_threads(), os.getsid(0), os.getppid()
            print(*ids, file=log)
        return torch.ones(bsz, 2), torch.ones(bsz)
    return batch_fn

sweep = Sweep("watched", {{"WIDTH": [4, 5, 6, 7, 8]}}, batchfn=watched, MAX_ITER=20, N_SAMPLES=2)
"""


@pytest.mark.slow
def test_no_more_processes_than_slots_each_with_its_share_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpsubmit import launch
    from mlpsubmit.spec.load import load_spec

    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    (tmp_path / "watched.py").write_text(SPEC.format(log=str(log)))
    run = launch(load_spec(tmp_path / "watched.py"), spec=tmp_path / "watched.py", executor="local")
    status = run.wait()
    assert status.complete
    max_tasks = LocalExecutor(validate({}), None).max_tasks(cost=1e9)
    assert len(status.tasks) == min(max_tasks, 5)
    rows = [list(map(int, line.split())) for line in log.read_text().splitlines()]
    rows = [row for row in rows if row[0] != os.getpid()]  # the probe of the launch
    assert len({pid for pid, *_ in rows}) == min(max_tasks, 5)
    assert {threads for _, threads, *_ in rows} == {run.directory.plan["threads"]}
    assert os.getsid(0) not in {session for *_, session, _ in rows}, "Ctrl-C reaches none of them"
    jobs = run.directory.task_jobs(0)
    assert {job["pid"] for job in jobs.values()} == {parent for *_, parent in rows}
    assert list(run.logs()) == list(jobs)
