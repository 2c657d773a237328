"""Every batch function in a small pack: what configs learn together they learn alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.batchfns import (
    Monomial,
    arrays,
    from_dataset,
    modular_addition,
    multi_index,
    polynomial,
    power_law,
    sample,
    sparse_parity,
    teacher,
)

X, Y = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
TABLE = (X[9:], Y[9:, 0], X[:9], Y[:9, 0])
DATASETS = [torch.utils.data.TensorDataset(*TABLE[i : i + 2]) for i in (0, 2)]

GAUSSIAN = power_law(d=5, alpha=1.0)

#: {case: (an axis, two of its values, the rest of the spec)}; the axis is zipped with the trial.
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "arrays": ("GAMMA", [1, 2], {"batchfn": arrays(*TABLE)}),
    "from_dataset": ("GAMMA", [1, 2], {"batchfn": from_dataset(*DATASETS)}),
    "modular_addition": ("pair_seed", [0, 1], {"batchfn": sample, "data": modular_addition(p=6)}),
    "modular_addition, labels": (
        "train_fraction",
        [0.6, 0.7],
        {
            "batchfn": sample,
            "data": modular_addition(p=6, labels=True),
            "LOSS": "cross_entropy",
            "D_OUT": 6,
        },
    ),
    "multi_index": (
        "link",
        [2, Monomial({0: 1, 1: 1})],
        {"batchfn": multi_index, "data": GAUSSIAN},
    ),
    "multi_index, function": (
        "direction_seed",
        [0, None],
        {"batchfn": multi_index, "link": torch.sin, "d": 5},
    ),
    "polynomial": (
        "monomials",
        [Monomial({0: 1}), Monomial({1: 2})],
        {"batchfn": polynomial, "data": GAUSSIAN},
    ),
    "sparse_parity": ("k", [1, 2], {"batchfn": sparse_parity, "d": 5}),
    "teacher": ("teacher_width", [1, 4], {"batchfn": teacher, "data": GAUSSIAN}),
    "teacher, network": (
        "standardized",
        [True, False],
        {"batchfn": teacher, "network": torch.nn.Linear(5, 1), "d": 5},
    ),
}


def losses(sweep: Sweep, packs: list[list[Any]]) -> list[np.ndarray]:
    """Train the packs one after another; return the traces (K, steps) of both losses."""
    found = []
    for configs in packs:
        data = sweep.data or dict
        entries = [data(**data_arguments(sweep, config)) for config in configs]
        (stack,) = assemble(sweep, configs, entries, torch.device("cpu"))
        trained = stack.train()
        found.append((trained.train_loss, trained.test_loss))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_pack_is_its_configs_one_by_one(case: str, online: bool) -> None:
    name, values, spec = CASES[case]
    sweep = Sweep(
        axes={(name, "trial"): [(values[0], 0), (values[1], 0), (values[0], 1)]},
        WIDTH=8,
        N_SAMPLES=16,
        N_TEST=5,
        MAX_ITER=8,
        LR=0.1,
        ONLINE=online,
        EVAL_EVERY=1,
        ONLYTHRESHOLDS=False,
        LOSS_CHECKPOINTS=[],
        **spec,
    )
    configs = list(sweep)
    together = losses(sweep, [configs])
    alone = losses(sweep, [[config] for config in configs])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert one.shape == (3, 8)
        assert np.isfinite(one).all()
        assert len(np.unique(one, axis=0)) == 3  # the axis and the trial make a difference
        assert (one[:, -1] != one[:, 0]).all()
