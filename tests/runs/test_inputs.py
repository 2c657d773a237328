"""Files that data was read from: a launch compares them before it reuses results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import Sweep, UserError, launch, open_run
from mlpsubmit.jobs.store.environments import publish_environments, stored_environments
from mlpsubmit.runs.run import Run


def batches(bsz: int, gen: Any, A: Any) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 3, generator=gen)
        return X, X @ A.float()

    return batch_fn


def data(scale: float = 1.0) -> dict[str, Any]:
    return {"A": scale * np.load("x.npy")}


def sweep(widths: list[int], **settings: Any) -> Sweep:
    axes = {"WIDTH": widths, **settings.pop("axes", {})}
    fixed = {"MAX_ITER": 5, "N_SAMPLES": 8, "data": data, **settings}
    return Sweep("reads", axes, batchfn=batches, **fixed)


def launched(*arguments: Any, fresh: bool = False, **settings: Any) -> Run:
    return launch(sweep(*arguments, **settings), executor="debug", fresh=fresh)


@pytest.fixture
def write(workplace: Path) -> Callable[[float], None]:
    """Return a function that writes another content to the file that the data is read from."""

    def write(value: float) -> None:
        np.save(workplace / "x.npy", np.full(3, value))

    write(1.0)
    return write


def losses(run: Run) -> list[float]:
    return [float(loss) for loss in run.collect().train_loss]


def test_a_changed_file_ends_a_relaunch_that_would_reuse_its_results(
    write: Callable[[float], None], workplace: Path
) -> None:
    first = launched([4])
    before = losses(first)
    os.utime(workplace / "x.npy", ns=(1, 1))
    assert launched([4]).id == first.id  # touched: the content is the same
    write(2.0)
    runs = sorted((workplace / "mlpruns" / "reads").glob("2*"))
    for widths in ([4], [4, 8]):
        with pytest.raises(UserError) as caught:
            launched(widths)
        assert str(caught.value) == (
            f"run {first.id}: since its data= ran, {workplace / 'x.npy'} has changed (another "
            "content of the same size); its results are those of the data that it had; to train "
            "everything on what is there now, launch with --fresh (from Python fresh=True)"
        )
    assert sorted((workplace / "mlpruns" / "reads").glob("2*")) == runs

    fresh = launched([4], fresh=True)
    assert losses(fresh)[0] > 2 * before[0]
    assert launched([4]).id == fresh.id
    grown = launched([4, 8])
    assert grown.status().reused == 1
    assert losses(grown)[0] == losses(fresh)[0]
    write(1.0)  # as it was for the first run, which continues
    with pytest.warns(UserWarning, match=f"run {fresh.id}: .*; its results are not reused"):
        assert launched([4]).id == first.id


def test_what_reuses_nothing_is_trained_on_the_file_as_it_is(
    write: Callable[[float], None],
) -> None:
    first = launched([4]).collect()
    write(2.0)
    second = launched([8]).collect()
    assert second.attrs["data_hash"] != first.attrs["data_hash"]
    assert second.train_loss.item() > first.train_loss.item()
    write(1.0)
    # Of the two, only the first has results of what is there now.
    with pytest.warns(UserWarning, match="x.npy has changed .*; its results are not reused"):
        grown = launched([4, 8, 16])
    assert grown.status().reused == 1
    assert grown.collect().attrs["data_hash"] == first.attrs["data_hash"]


def test_an_absent_file_is_reported_and_the_results_are_reused(
    write: Callable[[float], None], workplace: Path
) -> None:
    first = launched([4])
    (workplace / "x.npy").unlink()
    with pytest.warns(UserWarning, match=r"read .*/x.npy, which cannot be read here") as caught:
        assert launched([4]).id == first.id
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="which cannot be read here"):
        grown = launched([4, 8])  # on the data of the first run
    assert grown.status().complete
    assert grown.status().reused == 1


@pytest.mark.slow
def test_a_grown_study_has_the_data_of_its_results(workplace: Path) -> None:
    """Also where the function draws from a generator that nobody has seeded."""

    def drawn() -> dict[str, Any]:
        return {"A": np.random.default_rng().normal(size=3)}

    first = launched([4], data=drawn)
    grown = launched([4, 8], data=drawn)
    assert grown.status().reused == 1
    hashes = [run.collect().attrs["data_hash"] for run in (first, grown)]
    assert hashes[0] == hashes[1]
    fresh = launched([4], data=drawn, fresh=True)
    assert fresh.collect().attrs["data_hash"] != hashes[0]
    with pytest.warns(UserWarning, match=f"run {grown.id}: has other data than newer results; its"):
        whole = launched([4, 8, 16], data=drawn)
    assert whole.status().reused == 1
    assert whole.collect().attrs["data_hash"] == fresh.collect().attrs["data_hash"]


@pytest.mark.slow
def test_data_that_is_lost_and_other_data_than_that_of_the_results_fails(workplace: Path) -> None:
    def drawn() -> dict[str, Any]:
        return {"A": np.random.default_rng().normal(size=3)}

    first = launched([4], data=drawn)
    for file in (first.path / "data").glob("*.pt"):
        file.unlink()
    grown = launched([4, 8], data=drawn)
    status = grown.status()
    assert (status.done, status.failed, status.reused) == (1, 1, 1)
    (failure,) = status.failures
    assert "the data function returns other data" in failure.error
    assert failure.error.endswith("to train everything on the new data, launch with --fresh")


@pytest.mark.slow
def test_results_whose_data_is_unknown_are_not_reused(write: Callable[[float], None]) -> None:
    first = launched([4])
    for file in (first.path / "data").glob("*.json"):
        file.unlink()
    with pytest.raises(UserError, match=f"run {first.id}: its record of its data is lost; its"):
        launched([4, 8])


@pytest.mark.slow
def test_a_run_is_completed_on_the_data_that_it_has(
    write: Callable[[float], None], workplace: Path
) -> None:
    broken = workplace / "broken"
    broken.touch()

    def fails(A: Any, width: int) -> float:
        if width == 8 and broken.exists():
            raise ValueError("broken")
        return float(A[0])

    run = launched([4, 8], grabs={"seen": fails}, PACK_SIZE=1)
    assert not run.status().complete
    broken.unlink()
    write(2.0)
    text = f"; to complete that run on its own data: mlpsubmit resume {run.id}"
    with pytest.raises(UserError, match=text):
        launched([4, 8], grabs={"seen": fails}, PACK_SIZE=1)
    open_run(run.path).resume("debug")
    found = open_run(run.path).collect()
    assert found.seen.values.tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_the_attributes_hold_the_hash_of_each_data_set(write: Callable[[float], None]) -> None:
    found = launched([4], axes={"scale": [1.0, 2.0], "trial": range(2)}).collect()
    hashes = json.loads(found.attrs["data_hash"])
    assert sorted(hashes) == ["scale=1.0", "scale=2.0"]
    assert hashes["scale=1.0"] == launched([4]).collect().attrs["data_hash"]
    assert hashes["scale=1.0"] != hashes["scale=2.0"]


@pytest.mark.slow
def test_the_attributes_hold_versions_device_and_threads(write: Callable[[float], None]) -> None:
    first = launched([4])
    attributes = first.collect().attrs
    assert attributes["torch"] == torch.__version__
    assert attributes["device"] == "cpu"
    assert attributes["threads"] == torch.get_num_threads()
    assert attributes["blas"].startswith("torch: ")
    assert {"python", "mlpsubmit", "numpy", "cuda", "cpu"} <= set(attributes)
    # As if the first run had been trained by another version.
    (shard,) = first.directory.results.shards()
    (environment,) = stored_environments(shard)
    publish_environments(shard, [{**environment, "torch": "2.4.0", "threads": 7}])
    grown = launched([4, 8]).collect().attrs
    assert grown["torch"] == f"2.4.0; {torch.__version__}"
    assert grown["threads"] == f"7; {torch.get_num_threads()}"
    assert grown["cpu"] == attributes["cpu"]
    assert "bit_identity" not in attributes
    assert grown["bit_identity"] == (
        f"made with torch 2.4.0 and {torch.__version__}, threads 7 and "
        f"{torch.get_num_threads()}: bit-identity no longer holds (results agree up to rounding)"
    )


@pytest.mark.filterwarnings("default")
def test_a_file_that_a_batch_function_reads_is_reported(
    workplace: Path, mlpsubmit: Callable[..., Any]
) -> None:
    np.save("y.npy", np.ones(3))

    def reading(bsz: int, gen: Any) -> Any:
        return batches(bsz, gen, torch.from_numpy(np.load("y.npy")))

    with pytest.warns(UserWarning, match=r"other than data= reads .*/y.npy: keys do not cover"):
        launch(Sweep("reads", batchfn=reading, MAX_ITER=2, WIDTH=4, N_SAMPLES=4), executor="debug")

    spec = (workplace / "small.py").read_text()
    opened = "open('y.npy', 'rb').close()\n    def batch_fn"
    (workplace / "small.py").write_text(spec.replace("def batch_fn", opened))
    dry = mlpsubmit("launch", "small.py", "--dry-run")
    assert "y.npy: keys do not cover what it holds" in dry.err


SPEC = """
import numpy as np
import torch
from mlpsubmit import Sweep

def data():
    return {"A": np.load("x.npy")}

def batches(bsz, gen, A):
    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X @ A.float()
    return batch_fn

sweep = Sweep("reads", {"WIDTH": [4]}, batchfn=batches, data=data, MAX_ITER=5, N_SAMPLES=8)
"""


@pytest.mark.slow
def test_the_command_line_offers_fresh(
    write: Callable[[float], None], workplace: Path, mlpsubmit: Callable[..., Any]
) -> None:
    (workplace / "reads.py").write_text(SPEC)
    assert mlpsubmit("launch", "reads.py", "--executor", "debug").code == 0
    write(2.0)
    for further in ((), ("--dry-run",), ("WIDTH=[4,8]",)):
        refused = mlpsubmit("launch", "reads.py", "--executor", "debug", *further)
        assert refused.code == 2
        assert "x.npy has changed" in refused.err
        assert "launch with --fresh" in refused.err
    assert mlpsubmit("launch", "reads.py", "--executor", "debug", "--fresh").code == 0
