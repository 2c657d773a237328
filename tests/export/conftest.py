"""A run to export: with curves, odd names, configs that diverge and configs that failed."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlpsubmit.jobs.store.shards import Shard, failures_json, members
from mlpsubmit.runs.run import Run, open_run
from tests.report.conftest import launched

STUDY = """
import torch
from mlpsubmit import Sweep

def batches(note, factor, bsz, gen, X=None, y=None):
    def batch(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] * (1e25 if note == "x\\ny" else 1)
    return batch

def size(model):
    return model.input_layer.weight.abs().mean()

def two(model):
    return torch.stack([own.abs().mean() for own in list(model.parameters())[:2]])

sweep = Sweep(
    "odd",
    axes={"WIDTH": [4, 8], "note": ["a/b", "a∕b", "x\\ny", "fails"], "factor": [float("nan")]},
    batchfn=batches,
    N_SAMPLES=16,
    MAX_ITER=40,
    LR=0.1,
    LOSS_CHECKPOINTS=[0.9, 1e-9],
    ONLYTHRESHOLDS=False,
    RECORD_EVERY=3,
    EVAL_EVERY=7,
    GRAB_EVERY=10,
    N_TEST=16,
    PACK_SIZE=1,
    grabs={"size": size, "crossed_size": size, "two/$x_0$": two, "large": lambda: torch.ones(9)},
)
"""

ERROR, TRACEBACK = (
    "ValueError: no *data*\n</b>",
    "Traceback:\n  *spec*\nValueError: no *data*\n</b>",
)

Contents = dict[str, bytes]


def contents_of(shard: Path) -> Contents:
    """Return the members of a shard by name."""
    return {member.name: member.read() for member in members(shard)}


def write(shard: Path, contents: Contents) -> None:
    """Write a shard, which appears complete."""
    with Shard(hidden := shard.with_suffix(".new")) as file:
        for name, content in contents.items():
            file.append(name, content, sync=False)
    if hidden.exists():
        hidden.replace(shard)
    else:
        shard.unlink()


def failed(contents: Contents) -> Contents:
    """Return the members of a shard with the failures of the configs that are called so."""
    found: Contents = {}
    for name, content in contents.items():
        with np.load(io.BytesIO(content)) as arrays:
            index = arrays["index"].tolist()
        if index[0] % 4 == 3:
            about = {"error": ERROR, "traceback": TRACEBACK, "where": "spec.py:1", "line": "x"}
            stem = name.removesuffix(".npz")
            found[f"{stem}.failed.json"] = failures_json([], [{"indices": index, **about}])
        else:
            found[name] = content
    return found


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight configs, six done and two diverged."""
    return launched(tmp_path_factory.mktemp("study"), STUDY)


@pytest.fixture(scope="session")
def shard(whole: Run) -> Path:
    """The only shard of the run."""
    (found,) = whole.path.glob("results/*.tar")
    return found


@pytest.fixture(scope="session")
def study(whole: Run, shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, as if the last note of each width had failed: four done, two diverged."""
    path = tmp_path_factory.mktemp("failed") / whole.name / whole.id
    shutil.copytree(whole.path, path)
    write(path / "results" / shard.name, failed(contents_of(shard)))
    return open_run(path)


@pytest.fixture
def own_study(study: Run, tmp_path: Path) -> Run:
    """A copy of it, to change."""
    shutil.copytree(study.path, copy := tmp_path / "runs" / study.name / study.id)
    return open_run(copy)


@pytest.fixture
def keep(own_study: Run, shard: Path) -> Callable[[int], None]:
    """Return a function that gives the copy the first results only, by their number."""
    contents = list(failed(contents_of(shard)).items())

    def kept(count: int) -> None:
        write(own_study.path / "results" / shard.name, dict(contents[:count]))

    return kept


@pytest.fixture
def resumed(own_study: Run, shard: Path) -> Callable[[], None]:
    """Return a function that gives the copy the results of the configs that had failed."""

    def complete() -> None:
        task, attempt, _ = shard.name.rsplit(".", 2)
        later = own_study.path / "results" / f"{task}.{int(attempt) + 1}.tar"
        write(later, contents_of(shard))

    return complete
