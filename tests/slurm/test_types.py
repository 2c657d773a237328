"""A partition with several types of GPU, and runs whose tasks all train on one device."""

from __future__ import annotations

from typing import Any

import pytest
import xarray as xr

ASKED = ("--executor", "slurm", "--cpus", "1", "--mem", "600M", "--time", "10")
TYPES = (
    "tasks may get v100 (16 GiB: the least that is sold under this name, 1 node) or a100 (40 GiB: "
    "the least that is sold under this name, 1 node)"
)


def test_a_partition_with_two_types_of_gpu(
    study: Any, mlpsubmit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPSUBMIT_RUNS", str(study.folder / "runs"))
    spec = study.spec("types")
    mixed = ("launch", spec, *ASKED, "--partition", "mixed")
    dry = mlpsubmit(*mixed, "--gpus", "1", "--dry-run")
    assert dry.code == 0, dry.err
    assert f"GPUs: {TYPES}\npacks are planned for v100, with the least memory\n" in dry.out
    assert "rounding only; for one type: --gpus v100:1 or --gpus a100:1\n" in dry.out
    # Refused alike, and nothing is left behind.
    for further in ((), ("--dry-run",)):
        refused = mlpsubmit(*mixed, "--gpus", "1", "--same-device", *further)
        assert refused.code == 2
        assert refused.err == (
            f"error: --same-device: {TYPES}; choose one type: --gpus v100:1 or --gpus a100:1\n"
        )
    assert not (study.folder / "runs").exists()
    pinned = (("--gpus", "a100:1"), ("--gpus", "1", "--constraint", "volta"))
    for one in pinned:
        dry = mlpsubmit(*mixed, *one, "--same-device", "--dry-run")
        assert dry.code == 0, dry.err
        assert "; packs are planned for that memory\n" in dry.out
    held = mlpsubmit(*mixed, *pinned[0], "--same-device", "--sbatch", "hold")
    assert held.code == 0, held.err
    assert mlpsubmit("cancel", "types").code == 0
    opened = study.open("types")
    run = opened.directory
    assert run.intent(0)["same_device"]
    assert study.queued(opened) == []
    # It stays so when it goes on.
    again = mlpsubmit("resume", "types", "--gpus", "1")
    assert again.code == 2
    assert TYPES in again.err
    assert run.submissions() == [0]


def test_a_task_that_gets_another_device_trains_nothing(
    study: Any, training: Any, wait_for: Any, results: Any, undisturbed: xr.Dataset
) -> None:
    """As if the run had begun on another CPU: every machine of this cluster is of one kind."""
    study.pace("other", 0.02)
    run = study.launch("other", same_device=True)
    training(run)
    bound = run.directory.device
    assert bound is not None
    assert bound["task"] == "000-0000"
    run.cancel()
    wait_for(lambda: not run.status().running)
    study.pace("other", None)
    run.directory.release_device()
    run.directory.bind_to_device("Elsewhere 1", "000-0000", "m1")
    run.resume(slurm={"time": "9"}, retries=1)
    status = wait_for(lambda: None if (own := run.status()).running else own)
    (task,) = status.tasks
    assert task.state == "crashed"
    assert task.why.startswith(
        "same_device: the run trains on Elsewhere 1, as task 000-0000 did on m1, and this task has "
        f"{bound['device']} on "
    )
    # The job of --retries tried it once more, and no more: nothing loops.
    assert run.directory.submissions() == [0, 1, 2]
    wait_for(lambda: not study.queued(run))
    assert run.directory.results.shards() == []
    told = study.cli("status", "other").stdout
    assert "crashed" in told
    assert "Elsewhere 1" in told
    run.resume(same_device=False)
    assert run.wait().complete
    assert not run.directory.intent(3)["same_device"]
    xr.testing.assert_identical(results(run), undisturbed)
