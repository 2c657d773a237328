"""Runs that stay on one kind of device: the first task binds them, and others train nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import Sweep, UserError, launch
from mlpsubmit.errors import DamageError
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.store.environments import (
    publish_environments,
    stored_environments,
)
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.results.names import device_kind
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.hyperparameters import validate

Command = Callable[..., Any]


def batches(bsz: int, gen: Any) -> Any:
    import torch

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 2, generator=gen)
        return X, X[:, 0]

    return batch_fn


def started(trials: int = 2, **how: Any) -> Run:
    fixed = {"MAX_ITER": 3, "N_SAMPLES": 4, "WIDTH": 4, "LOSS_CHECKPOINTS": [], "PACK_SIZE": 1}
    sweep = Sweep("study", {"trial": range(trials)}, batchfn=batches, **fixed)
    return launch(sweep, executor="debug", **how)


def on(monkeypatch: pytest.MonkeyPatch, cpu: str) -> None:
    """From now on, train on another model of CPU, by its name."""
    monkeypatch.setattr("mlpsubmit.jobs.environment.cpu_name", lambda: cpu)


def without_result(run: Run, pack: str = "0000001") -> None:
    """Leave the results of one attempt with only those packs that come before one."""
    shard = run.directory.results.shards()[0]
    (member,) = [own for own in run.directory.results.members() if own.name.startswith(pack)]
    os.truncate(shard, member.offset - 512)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"device": "NVIDIA A100-SXM4-40GB", "cpu": "x"}, "NVIDIA A100-SXM4-40GB"),
        ({"device": "cpu", "cpu": "x", "instructions": "AVX2"}, "x (AVX2)"),
        (
            {"device": "cpu", "cpu": "x", "instructions": "AVX2", "c_functions": "not compiled"},
            "x (AVX2), without the functions in C",
        ),
        ({"device": "cpu", "cpu": "x", "c_functions": "compiled"}, "x"),
        ({"torch": "2"}, ""),
    ],
)
def test_kinds_of_devices(environment: dict[str, Any], kind: str) -> None:
    assert device_kind(environment) == kind


def test_of_tasks_that_start_at_once_one_binds_the_run(tmp_path: Path, records: Any) -> None:
    run: RunDirectory = records.create(tmp_path / "run")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: run.bind_to_device(f"GPU {n}", f"000-{n}", "x"), range(64)))
    assert len({own["device"] for own in found}) == 1
    assert found[0] == run.device
    assert run.leftovers() == []
    (run.path / "results/device.json").write_text("{")
    with pytest.raises(DamageError, match=r"device\.json"):
        run.bind_to_device("GPU 1", "000-0001", "x")
    assert run.device is None


def test_a_task_on_another_device_trains_nothing(
    workplace: Path, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "Fast 9000")
    run = started(same_device=True)
    assert run.directory.device is not None
    bound = run.directory.device["device"]
    assert bound.startswith("Fast 9000")
    assert run.directory.device["task"] == "000-0000"
    without_result(run)
    on(monkeypatch, "Slow 1")
    # A scheduler may place it anywhere: what a launch finds out on this machine is left aside.
    with monkeypatch.context() as patch:
        patch.setattr("mlpsubmit.jobs.executors.base.Executor.device_error", lambda *_: "")
        run.resume("debug")
    (task,) = run.status().tasks
    assert (task.name, task.state, run.status().done) == ("001-0000", "crashed", 1)
    assert task.why.startswith(f"same_device: the run trains on {bound}, as task 000-0000 did on ")
    assert "this task has Slow 1" in task.why
    assert "--no-same-device" in task.why
    assert len(run.directory.results.shards()) == 1, "nothing of it is left"

    refused = mlpsubmit("resume", "--executor", "debug")
    assert refused.code == 2
    assert f"--same-device: the results so far were made on {bound}, and this machine has " in (
        refused.err
    )
    assert run.directory.submissions() == [0, 1], "and nothing was submitted"
    on(monkeypatch, "Fast 9000")
    assert mlpsubmit("resume", "--executor", "debug").code == 0
    assert run.directory.intent(2)["same_device"]


def test_a_run_may_be_let_go_on_elsewhere(
    workplace: Path, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "Fast 9000")
    run = started(same_device=True)
    without_result(run)
    on(monkeypatch, "Slow 1")
    assert mlpsubmit("resume", "--executor", "debug", "--no-same-device").code == 0
    assert run.status().complete
    assert not run.directory.intent(1)["same_device"]
    # From then on its results are of several.
    without_result(run, "0000000")
    refused = mlpsubmit("resume", "--executor", "debug", "--same-device")
    assert refused.code == 2
    assert f"results of run {run.id} were made on Fast 9000" in refused.err
    assert "launch with --fresh" in refused.err


def test_a_run_without_results_is_bound_to_no_device(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "Fast 9000")
    run = started(same_device=True)
    (shard,) = run.directory.results.shards()
    shard.unlink()
    on(monkeypatch, "Slow 1")
    run.resume("debug")
    assert run.status().complete
    assert run.directory.device is not None
    assert run.directory.device["device"].startswith("Slow 1")


def test_results_that_are_reused_bind_a_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "Fast 9000")
    first = started()
    on(monkeypatch, "Slow 1")
    with pytest.raises(UserError, match=r"results so far were made on Fast 9000.*has Slow 1"):
        started(3, same_device=True)
    assert [run.name for run in (workplace / "mlpruns" / "study").iterdir() if run.is_dir()] == [
        first.id
    ]
    on(monkeypatch, "Fast 9000")
    grown = started(3, same_device=True)
    assert grown.directory.device is not None
    assert grown.directory.device["device"].startswith("Fast 9000")
    shard = grown.directory.results.shards()[-1]
    (own,) = stored_environments(shard)
    publish_environments(shard, [own, {**own, "cpu": "Third"}])
    with pytest.raises(UserError, match=r"of the runs that are reused were made on .* and on"):
        started(4, same_device=True)
    assert started(4, same_device=True, fresh=True).status().complete


def test_gpus_of_several_kinds_are_to_be_chosen_among(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "mlpsubmit.jobs.executors.local"
    monkeypatch.setattr(f"{module}.gpus", lambda *_: ["0", "1", "2"])
    monkeypatch.setattr(f"{module}.gpu_names", lambda _: ["A100", "V100", "A100"])
    assert LocalExecutor(validate({}), None).device_error("") == (
        "the GPUs are of several kinds: A100 (0, 2); V100 (1); choose some of one kind with DEVICES"
    )
    monkeypatch.setattr(f"{module}.gpu_names", lambda _: [])
    assert LocalExecutor(validate({}), None).device_error("") == ""


def test_a_dry_run_refuses_what_a_launch_would(
    workplace: Path, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalExecutor, "device_error", lambda *_: "there are two kinds")
    for further in ([], ["--dry-run"]):
        refused = mlpsubmit("launch", "small.py", "--executor", "local", "--same-device", *further)
        assert (refused.code, refused.err) == (2, "error: --same-device: there are two kinds\n")
    assert not (workplace / "mlpruns").exists()
