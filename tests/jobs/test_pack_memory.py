"""Packs for a GPU: as large as its memory allows, by an estimate that is held against tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlpsubmit import MLP, Sweep, train
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.executors.slurm import SlurmExecutor
from mlpsubmit.jobs.gpus import (
    ASSUMED_MEMORY,
    free_memory,
    visible_entries,
)
from mlpsubmit.jobs.pack_memory import LARGEST_ON_GPU, RECORDED_COPIES, RESERVED, config_bytes
from mlpsubmit.jobs.plan import LARGEST_PACK, Plan, make_plan
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.launch import prepare
from mlpsubmit.slurm_templates import Template
from mlpsubmit.spec.hyperparameters import validate

GIB = 1 << 30

#: The estimate is that of GPUs, which compute by PyTorch.
pytestmark = pytest.mark.usefixtures("without_c")


def batches(bsz: int, gen: torch.Generator, d: int) -> Any:
    raise NotImplementedError


def sizes(memory: int | None, max_tasks: int = 1, **settings: Any) -> list[int]:
    sweep = Sweep("s", {"trial": range(2000)}, batchfn=batches, d=32, **settings)
    plan = make_plan(sweep, max_tasks, 1, memory=memory)
    assert Plan.from_json(plan.to_json()).pack_sizes.tolist() == plan.pack_sizes.tolist()
    return sorted(set(plan.pack_sizes.tolist()))


def test_without_a_gpu_packs_are_as_large_as_caches_allow() -> None:
    assert max(sizes(None, WIDTH=64, N_SAMPLES=64)) <= LARGEST_PACK


def test_small_networks_fill_a_gpu_up_to_a_limit() -> None:
    for memory in (8 * GIB, 80 * GIB):
        assert sizes(memory, WIDTH=64, N_SAMPLES=256) == [500]
    assert LARGEST_ON_GPU == 512


def test_packs_grow_with_memory() -> None:
    large = {"WIDTH": 512, "ONLINE": False, "N_SAMPLES": 1024, "N_TEST": 10_000}
    found = [max(sizes(gib * GIB, **large)) for gib in (8, 16, 24)]
    assert found == sorted(set(found))
    assert 20 <= found[0] <= 60  # some 130 MB each
    assert sizes(8 * GIB, WIDTH=16_384) == sizes(GIB, WIDTH=64) == [1]


def test_beyond_what_keeps_a_gpu_busy_more_memory_changes_nothing() -> None:
    assert sizes(40 * GIB, WIDTH=4096) == sizes(80 * GIB, WIDTH=4096)


def test_all_slots_have_work() -> None:
    assert max(sizes(80 * GIB, max_tasks=8, WIDTH=64)) <= 250


def test_a_pack_size_that_is_given_stands() -> None:
    assert sizes(80 * GIB, WIDTH=64, PACK_SIZE=3) == [2, 3]
    assert sizes(80 * GIB, WIDTH=64, OPTIMIZER="Adagrad") == [1]


class Peak(TorchDispatchMode):
    """Records how many bytes the tensors take that are made, at most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.known:
            self.known.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


class Layers(nn.Module):
    """A network that is differentiated as it is written."""

    def __init__(self, d: int, width: int, depth: int) -> None:
        super().__init__()
        dims = [d, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(dims))
        self.readout = nn.Linear(width, 1, bias=False)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            X = layer(X).relu()
        out: torch.Tensor = self.readout(X)
        return out


def measured(
    model: type[nn.Module], d: int, width: int, depth: int, **settings: Any
) -> tuple[float, float]:
    """Return the bytes per config that a pack takes in training, and the estimate of them."""
    h, K = validate({"WIDTH": width, "DEPTH": depth, "MAX_ITER": 3, **settings}), 6

    def source(n: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)

        def batch_fn(step: int) -> Any:
            return torch.randn(n, d, generator=generator), torch.randn(n, generator=generator)

        return batch_fn

    with Peak() as watch:
        train(
            [model(d, width, depth) for _ in range(K)],
            [source(h.n_samples, seed) for seed in range(K)],
            h,
            test_fns=[source(h.n_test, 9 + seed) for seed in range(K)],
            grabs={"last": lambda X_tr: X_tr.sum()},
        )
    names = ("width", "depth", "n_samples", "n_test", "online")
    values = {name: np.array([float(getattr(h, name))]) for name in names}
    values["eval_every"] = np.array([float(h.eval_every or 0)])
    values["precision"] = np.array([4.0])
    weights = sum(parameter.numel() for parameter in model(d, width, depth).parameters())
    estimate = config_bytes(np.array([float(weights)]), {**values, "d": np.array([float(d)])})
    return watch.peak / K, float(estimate[0]) - 4 * RECORDED_COPIES * weights


SHAPES = {
    "weights": {"d": 32, "width": 256, "depth": 3, "N_SAMPLES": 16, "N_TEST": 16},
    "activations": {"d": 8, "width": 64, "depth": 2, "N_SAMPLES": 512, "N_TEST": 16},
    "deep": {"d": 8, "width": 32, "depth": 8, "N_SAMPLES": 512, "N_TEST": 16},
    "test set": {"d": 8, "width": 64, "depth": 2, "N_SAMPLES": 64, "N_TEST": 400},
    "inputs": {"d": 512, "width": 8, "depth": 2, "N_SAMPLES": 256, "N_TEST": 16},
    "tested": {"d": 8, "width": 64, "depth": 2, "N_SAMPLES": 64, "N_TEST": 400, "EVAL_EVERY": 1},
}


#: Up to how many times what is taken here the estimate may be. Activations count twice in it, for
#: the recorded step of a GPU, which a CPU does not have (its weights are left out); an optimizer
#: with more state takes more of the weights' seven copies.
LARGEST_RATIO = {
    "weights": 3.2,
    "activations": 3.3,
    "deep": 3.9,
    "test set": 3.4,
    "inputs": 4.6,  # only where steps are recorded are batches drawn ahead
    "tested": 3.4,
}


@pytest.mark.parametrize("model", [MLP, Layers])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("optimizer", [{}, {"OPTIMIZER": "adam"}], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_holds_what_a_pack_takes(
    name: str, optimizer: dict[str, str], online: bool, model: type[nn.Module]
) -> None:
    taken, estimate = measured(model, **SHAPES[name], ONLINE=online, **optimizer)
    assert taken < estimate < LARGEST_RATIO[name] * taken


class Driver:
    """NVML's functions, on a machine with some GPUs, of which one is divided into instances.

    Args:
        free: bytes by the UUID of a GPU or an instance.
    """

    def __init__(self, free: dict[str, int]) -> None:
        self.free = free
        self.opened = 0

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return sum(uuid.startswith("GPU") for uuid in self.free)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= self.nvmlDeviceGetCount():
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return list(self.free)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.free:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(free=self.free[handle])


@pytest.mark.parametrize(
    ("entries", "free"),
    [
        ([0, 2], 10 * GIB),
        (["0", "1"], 40 * GIB),
        (["GPU-2"], 10 * GIB),
        (["GPU-0123", "GPU-1abc"], 40 * GIB),
        (["MIG-5"], 5 * GIB),
        ([7], ASSUMED_MEMORY),
        (["GPU-9"], ASSUMED_MEMORY),
    ],
)
def test_the_fullest_gpu_of_this_machine_decides(
    entries: list[Any], free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"GPU-0123": 40 * GIB, "GPU-1abc": 80 * GIB, "GPU-2def": 10 * GIB, "MIG-5": 5 * GIB}
    driver = Driver(sizes)
    for name in vars(Driver):
        if name.startswith("nvml"):
            monkeypatch.setattr(pynvml, name, getattr(driver, name))
    assert free_memory(entries) == free
    assert driver.opened == 0


def test_without_a_driver_an_amount_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert free_memory([0]) == ASSUMED_MEMORY


@pytest.mark.gpu
def test_the_driver_counts_like_cuda() -> None:
    free, _ = torch.cuda.mem_get_info(0)
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    assert free_memory([uuid]) == pytest.approx(free, rel=0.1)


@pytest.mark.parametrize(
    ("devices", "visible", "entries"),
    [
        ([0, 1], "", ["0", "1"]),
        ([1, 0], "4, 6,7", ["6", "4"]),
        ([1], "GPU-0123,GPU-1abc", ["GPU-1abc"]),
        ([0], "MIG-5", ["MIG-5"]),
        ([], "0", []),
    ],
)
def test_a_worker_sees_its_gpu_by_index_or_uuid(
    devices: list[int], visible: str, entries: list[str]
) -> None:
    assert visible_entries(devices, visible) == entries


@pytest.mark.parametrize(
    ("gpus", "memory"),
    [
        ("a100-80gb:1", 80 * GIB),
        ("a100_3g.20gb:1", 20 * GIB),
        ("H200_141GiB:2", 141 * GIB),
        ("a100:1", 40 * GIB),
        ("fast:1", ASSUMED_MEMORY),
        (1, ASSUMED_MEMORY),
        (0, None),
    ],
)
def test_on_a_cluster_the_type_of_gpu_may_say_its_memory(
    gpus: int | str, memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpsubmit.jobs.executors.slurm.configured", lambda: True)
    template = Template.from_table({"gpus": gpus, "mem": "1G"}, Path("mine.toml"))
    assert SlurmExecutor(1, template).memory() == memory
    assert ASSUMED_MEMORY > RESERVED


def test_without_gpus_there_is_no_such_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpsubmit.jobs.executors.local.gpus", lambda *_: [])
    assert LocalExecutor(validate({}), None).memory() is None


def test_a_launch_plans_for_the_memory_of_its_executor(tmp_path: Path) -> None:
    class OnGpus(LocalExecutor):
        def memory(self, earlier: Iterable[RunDirectory] = ()) -> int | None:
            return 80 * GIB

    sweep = Sweep("s", {"trial": range(300)}, batchfn=batches, d=32, WIDTH=64)
    largest = [
        prepare(sweep, executor(sweep.base, 1), tmp_path).plan.pack_sizes.max()
        for executor in (LocalExecutor, OnGpus)
    ]
    assert largest[0] <= LARGEST_PACK
    assert largest[1] == 300
