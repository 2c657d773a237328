"""Processes that import torch collect no garbage meanwhile, and as usual while they train."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlpsubmit.jobs import garbage

SPEC = """
import gc, json
from mlpsubmit import Sweep

def ones(bsz, gen):
    import torch
    state = [gc.get_threshold(), gc.get_freeze_count()]
    with open({note!r}, "a") as file:
        file.write(json.dumps(state) + "\\n")
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

sweep = Sweep("small", batchfn=ones, MAX_ITER=2, WIDTH=4, N_SAMPLES=4)
"""

PRINT_COLLECTIONS = """
import gc, sys
from mlpsubmit.jobs.garbage import postpone_collection, resume_collection
started = []
gc.callbacks.append(lambda phase, info: started.append(phase))
if sys.argv[1:]: postpone_collection()
import torch
print(len(started))
"""


def collections(*arguments: str) -> int:
    command = [sys.executable, "-c", PRINT_COLLECTIONS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_torch_is_imported_without_looking_for_garbage() -> None:
    assert collections("postponed") == 0
    assert collections() > 100


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "debug"])
def test_a_task_trains_with_the_usual_collections(executor: str, workplace: Path) -> None:
    note = workplace / "states"
    (workplace / "spec.py").write_text(SPEC.format(note=str(note)))
    command = [sys.executable, "-m", "mlpsubmit", "launch", "spec.py", "--executor", executor]
    subprocess.run(command, check=True, capture_output=True)
    states = [json.loads(line) for line in note.read_text().splitlines()]
    tried, (threshold, frozen) = states[0], states[-1]
    assert tried[0][0] > threshold[0]  # the launch calls the function, too, before it has begun
    assert threshold == list(gc.get_threshold())
    assert frozen > 100_000


def test_a_collection_that_was_not_postponed_is_not_resumed() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    garbage.resume_collection()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (usual, frozen)
    garbage.postpone_collection()
    assert gc.get_threshold() > usual
    try:
        garbage.resume_collection()
        assert gc.get_threshold() == usual
        garbage.resume_collection()
        assert gc.get_threshold() == usual
    finally:
        gc.unfreeze()
