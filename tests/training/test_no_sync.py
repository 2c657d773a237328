"""The loop does not wait for the device: what it reads back does not grow with the steps."""

from __future__ import annotations

import pytest
import torch

from mlpsubmit.training import loop, train

READS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_reads_from_the_device_do_not_grow_with_the_steps(
    optimizer, online, gaussian, make_mlps, monkeypatch
):
    count = 0

    def counted(method):
        def read(*args, **kwargs):
            nonlocal count
            count += 1
            return method(*args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))

    def reads(steps):
        nonlocal count
        count = 0
        monkeypatch.setattr(loop, "BLOCK", steps)
        settings = {
            "MAX_ITER": steps,
            "ONLINE": online,
            "OPTIMIZER": optimizer,
            "ONLYTHRESHOLDS": False,
            "GRAB_EVERY": 1000,
            "LOSS_CHECKPOINTS": [1e-9],
        }
        train(
            make_mlps(3),
            [gaussian(k) for k in range(3)],
            settings,
            test_fns=[gaussian(9)] * 3,
            grabs={"mean": lambda model, X_tr: model(X_tr).mean()},
        )
        return count

    assert reads(5) == reads(25) > 0
