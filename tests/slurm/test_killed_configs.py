"""Configs that kill their process on a cluster cost themselves alone."""

from __future__ import annotations

from typing import Any

#: The configs of LR 0.1 kill their process; HUNGRY, all take memory until SLURM kills the job.
SPEC = """
import os
import signal
import time
import torch
from mlpsubmit import Sweep

def batches(lr, hungry, bsz, gen):
    def batch_fn(step):
        if lr == 0.1 and step == 10 and not hungry:
            os.kill(os.getpid(), signal.SIGSEGV)
        if hungry and step > 20:
            gigabyte = torch.ones(250_000_000)
            time.sleep(3)
        X = torch.randn(bsz, 4, generator=gen)
        return X, X.sum(1)
    return batch_fn

sweep = Sweep(
    NAME_HERE, axes={"LR": [0.1, 0.2], "WIDTH": WIDTHS_HERE}, batchfn=batches, hungry=HUNGRY_HERE,
    N_SAMPLES=32, MAX_ITER=60, LOSS_CHECKPOINTS=[],
)
"""


def spec(widths: list[int], *, hungry: bool) -> str:
    return SPEC.replace("WIDTHS_HERE", str(widths)).replace("HUNGRY_HERE", str(hungry))


def test_configs_that_kill_their_process_are_set_aside_by_their_job(study: Any) -> None:
    run = study.launch("killer", text=spec([8, 16], hungry=False))
    status = run.wait()
    assert (status.done, status.failed, status.missing) == (2, 2, 0), study.log(run)
    assert status.state == "failed"
    assert [task.state for task in status.tasks] == ["done"]
    assert run.directory.submissions() == [0]
    shown = " ".join(study.cli("status", "killer").stdout.split())
    assert (
        "failed: its process was killed by SIGSEGV (an invalid memory access, usually in compiled "
        "code) (2 configs: lr=0.1) killer.py:11 in batch_fn" in shown
    )
    dataset = run.collect()
    assert (dataset.status.sel(lr=0.1) == "failed").all()
    assert (dataset.status.sel(lr=0.2) == "done").all()


def test_a_pack_that_slurm_killed_for_its_memory_is_halved_by_resume(study: Any) -> None:
    run = study.launch("hungry", text=spec([8], hungry=True))
    status = run.wait()
    assert status.state == "crashed"
    assert [task.memory_kill for task in status.tasks] == [True]
    assert run.resume() == 1
    run.wait()
    log = run.logs("001-0000")["001-0000"].read_text()
    assert "pack 0000000: out of memory with 2 configs; continuing with 1 at a time" in log
