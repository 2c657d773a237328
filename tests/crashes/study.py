"""A small study: a few configs in two packs, on a data set, saved after every few steps.

A config of width 4 and of negative noise fails.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit.jobs.store.shards import FAILED_SUFFIX, PARTIAL_SUFFIX, Shard
from mlpsubmit.spec.load import load_spec
from mlpsubmit.spec.sweep import Sweep

__all__ = ["RUNS", "study", "trained_configs"]

#: The folder of runs, in the watched folder.
RUNS = "runs"

SPEC = """
import torch
from mlpsubmit import Sweep

SHIFT = {shift}

def points(d):
    return {{"X_train": torch.linspace(-1, 1, 8 * d).reshape(8, d)}}

def noisy(noise, WIDTH, bsz, gen, X_train, X=None, y=None):
    def batch_fn(step):
        if step == 2 and noise < 0 and WIDTH == 4:
            raise ValueError("negative noise")
        inputs = X_train + torch.randn(X_train.shape, generator=gen)
        return inputs, inputs[:, 0] + noise + SHIFT
    return batch_fn

sweep = Sweep(
    "study", axes={{"WIDTH": [4, 8], "noise": {noises}}}, data=points, d=3, batchfn=noisy,
    N_SAMPLES=8, MAX_ITER=4, LR=0.1, LOSS_CHECKPOINTS=[1e-9], OPTIMIZER="adam",
    CHECKPOINT_MINUTES=1e-9,
)
"""


def study(folder: Path, noises: Sequence[float] = (0.0, 0.5), shift: float = 0.0) -> Sweep:
    """Return the sweep, from a spec file that is written to a folder."""
    file = folder / "study.py"
    file.write_text(SPEC.format(shift=shift, noises=list(noises)))
    return load_spec(file)


@contextlib.contextmanager
def trained_configs(
    finished: Callable[[list[str]], Any], partly: Callable[[list[str]], Any] | None = None
) -> Iterator[None]:
    """Call functions with the keys of the configs whose results have reached the disk.

    Args:
        finished: called after each pack of which all configs have one.
        partly: called after each pack of which others have failed, once that is on the disk, too.
    """
    append, last = Shard.append, list[str]()

    def reported(shard: Shard, name: str, content: bytes, *, sync: bool = True) -> None:
        append(shard, name, content, sync=sync)
        if not sync:
            return
        if name.endswith(FAILED_SUFFIX):
            if partly is not None:
                partly(list(last))
            last.clear()
            return
        with np.load(io.BytesIO(content)) as arrays:
            keys = [key.decode() for key in arrays["key"]]
        if name.endswith(PARTIAL_SUFFIX):
            last[:] = keys
        else:
            finished(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shard, "append", reported)
        yield
