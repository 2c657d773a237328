"""Every recipe and batch function of the library in a sweep, from launch to the dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import mlpsubmit.batchfns as library
from mlpsubmit import Monomial, Sweep, launch
from mlpsubmit.batchfns import (
    arrays,
    from_dataset,
    images,
    modular_addition,
    multi_index,
    polynomial,
    power_law,
    sample,
    sparse_parity,
    synthetic,
    teacher,
)
from mlpsubmit.grabs import held_out_loss

X, Y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40.0) / 40

#: Per function: what a spec says, with two values of one of its own arguments on an axis.
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "power_law": lambda: {
        "data": power_law(d=5),
        "batchfn": polynomial,
        "monomials": Monomial({0: 1}),
        "axes": {"alpha": [0.5, 2.0]},
    },
    "polynomial": lambda: {
        "data": power_law(d=5, alpha=1.0),
        "batchfn": polynomial,
        "axes": {"monomials": [Monomial({0: 1}), [Monomial({0: 2}), Monomial({1: 1})]]},
    },
    "images": lambda: {
        "data": images("digits"),
        "batchfn": sample,
        "axes": {"classes": [[[0], [1]], [[0, 1, 2], [3], 4]]},
    },
    "synthetic": lambda: {
        "data": synthetic(d=5, cutoff_mode=20, kmax=4),
        "batchfn": sample,
        "axes": {"noise_size": [0.0, 1.0]},
        "N_TRAIN": 60,
    },
    "modular_addition": lambda: {
        "data": modular_addition(p=7),
        "batchfn": sample,
        "axes": {"train_fraction": [0.5, 0.6]},
    },
    "modular_addition for cross_entropy": lambda: {
        "data": modular_addition(p=7, labels=True),
        "batchfn": sample,
        "axes": {"pair_seed": [0, 1]},
        "LOSS": "cross_entropy",
        "D_OUT": 7,
    },
    "arrays": lambda: {
        "batchfn": arrays(X[9:], Y[9:], X[:9], Y[:9]),
        "axes": {"N_SAMPLES": [10, 20]},
    },
    "from_dataset": lambda: {
        "batchfn": from_dataset(TensorDataset(X[9:], Y[9:]), TensorDataset(X[:9], Y[:9])),
        "axes": {"N_SAMPLES": [10, 20]},
    },
    "sparse_parity": lambda: {"batchfn": sparse_parity, "axes": {"k": [1, 2]}, "d": 4},
    "multi_index": lambda: {"batchfn": multi_index, "axes": {"link": [1, 2]}, "d": 4, "k": 2},
    "teacher": lambda: {
        "data": power_law(d=5, alpha=1.0),
        "batchfn": teacher,
        "axes": {"teacher_width": [2, 4]},
    },
}


def test_no_recipe_or_batch_function_is_left_out() -> None:
    helpers = {"BatchFn", "Monomial", "randn", "sample", "teacher_weights"}
    helpers |= {"corruption", "epochs", "held_out", "label_noise"}  # in tests of their own
    helpers |= {name for name in library.__all__ if name.startswith(("hea_", "hermite"))}
    helpers |= {name for name in library.__all__ if name.endswith("_level_coeffs")}
    assert {name.partition(" ")[0] for name in CASES} == set(library.__all__) - helpers


@pytest.mark.parametrize("online", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("name", CASES)
def test_a_sweep_over_an_argument_of_its_own_trains(
    tmp_path: Path, name: str, online: bool
) -> None:
    case = CASES[name]()
    axes = {**case.pop("axes"), "trial": range(2)}
    settings = {"N_SAMPLES": 20, "N_TEST": 30, "WIDTH": 8, "LR": 0.05, "MAX_ITER": 8, **case}
    settings = {key: value for key, value in settings.items() if key not in axes}
    sweep = Sweep(
        "library",
        axes,
        ONLINE=online,
        LOSS_CHECKPOINTS=[],
        grabs={"held_out": held_out_loss},
        **settings,
    )
    dataset = launch(sweep, executor="debug", runs_dir=tmp_path).collect()
    assert dataset.status.shape == (2, 2)
    assert (dataset.status == "done").all()
    # Both values of the argument matter, and trials differ.
    losses = dataset.train_loss.values
    assert np.isfinite(losses).all()
    assert len(np.unique(losses)) == 4
    assert np.isfinite(dataset.held_out).all()
    assert ("test_loss" in dataset) == (not online)
    if not online:  # smoothed from the first loss on, so that it lags behind
        assert np.isfinite(dataset.test_loss).all()
        assert not np.array_equal(dataset.test_loss, dataset.train_loss)
