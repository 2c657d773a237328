"""The cases of modelscape's own tests, which run here unchanged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.compat import MLP, ExptTrace, run_job_iterator


@pytest.fixture(autouse=True)
def _in_an_empty_folder(workplace):
    """Runs are kept in the working directory."""


def random_bfn(bsz, gen=None, X=None, y=None, dim=4, **kwargs):
    def batch_fn(step):
        if X is not None and y is not None:
            return X, y
        inputs = torch.randn(bsz, dim, generator=gen, device=gen.device)
        return inputs, torch.randn(bsz, generator=gen, device=gen.device)

    return batch_fn


def labelled_bfn(bsz, gen=None, X=None, y=None, dim=4, num_classes=3, **kwargs):
    def batch_fn(step):
        inputs = torch.randn(bsz, dim, generator=gen, device=gen.device)
        return inputs, torch.randint(0, num_classes, (bsz,), generator=gen, device=gen.device)

    return batch_fn


def settings(**changes):
    return {
        "LR": 1e-2,
        "MAX_ITER": 2,
        "LOSS_CHECKPOINTS": [1e9],
        "GAMMA": 1.0,
        "EMA_SMOOTHER": 0.0,
        "ONLYTHRESHOLDS": True,
        "VERBOSE": False,
        "ONLINE": True,
        "N_TEST": 8,
        "SEED": 0,
        "DIM": 4,
        "width": 8,
        "depth": 2,
        **changes,
    }


def outcomes(trace):
    return list(trace["config2outcome"].values())


def test_iterables_that_can_be_read_only_once():
    result = run_job_iterator(
        [(n for n in [4, 8]), [0]],
        ["ntrain", "trial"],
        settings(),
        bfn_config={"base_bfn": random_bfn, "dim": 4},
        use_mp=False,
    )
    assert result["jobs"] == [(4, 0), (8, 0)]
    assert len(outcomes(result["losses"])) == 2


@pytest.mark.parametrize("online", [True, False])
def test_online_and_offline(online):
    result = run_job_iterator(
        [[4], [0]],
        ["ntrain", "trial"],
        settings(ONLINE=online),
        bfn_config={"base_bfn": random_bfn, "dim": 4},
        use_mp=False,
    )
    assert math.isfinite(outcomes(result["losses"])[0])


def test_a_grab_gets_an_iterator_that_only_it_names():
    grab = lambda model, opt, alpha, **kwargs: float(alpha)  # noqa: E731
    result = run_job_iterator(
        [[4], [0], [1.5, 2.5]],
        ["ntrain", "trial", "alpha"],
        settings(otherreturns={"alpha_val": grab}),
        bfn_config={"base_bfn": random_bfn, "dim": 4},
        use_mp=False,
    )
    assert result["extras"]["alpha_val"]["config2outcome"] == {(4, 0, 1.5): 1.5, (4, 0, 2.5): 2.5}


def test_trials_draw_different_data():
    grabs = {"sum": lambda X_te, **kwargs: float(X_te.sum().item())}
    result = run_job_iterator(
        [[8], [0, 1]],
        ["ntrain", "trial"],
        settings(MAX_ITER=1, ONLYTHRESHOLDS=False, otherreturns=grabs),
        bfn_config={"base_bfn": random_bfn, "dim": 4},
        use_mp=False,
    )
    first, second = outcomes(result["extras"]["sum"])
    assert first.shape == (1,)
    assert not np.allclose(first, second)


def test_adam_and_cross_entropy_by_the_names_of_torch():
    result = run_job_iterator(
        [[8], [0]],
        ["ntrain", "trial"],
        settings(d_out=3, optimizer="Adam", loss="CrossEntropyLoss", LOSS_CHECKPOINTS=[1e-1]),
        bfn_config={"base_bfn": labelled_bfn, "dim": 4, "num_classes": 3},
        use_mp=False,
    )
    # Centred, the first output is zero: every class has probability 1 / 3.
    assert outcomes(result["losses"])[0] == pytest.approx(math.log(3), rel=0.1)
    assert outcomes(result["timekeys"])[0].tolist() == [-1]


def test_a_model_class():
    class CustomMLP(MLP):
        pass

    grabs = {"own": lambda model, **kwargs: float(type(model).__name__ == "CustomMLP")}
    result = run_job_iterator(
        [[8], [0]],
        ["ntrain", "trial"],
        settings(MODEL_CLASS=CustomMLP, otherreturns=grabs),
        bfn_config={"base_bfn": random_bfn, "dim": 4},
        use_mp=False,
    )
    assert outcomes(result["extras"]["own"]) == [1.0]


def test_a_model_class_and_a_batch_function_out_of_files(workplace):
    (workplace / "custom_model.py").write_text(
        "import torch.nn as nn\n"
        "class CustomMLP(nn.Module):\n"
        "    def __init__(self, d_in=1, width=8, depth=2, d_out=1, **kwargs):\n"
        "        super().__init__()\n"
        "        self.input_layer = nn.Linear(d_in, width)\n"
        "        self.output_layer = nn.Linear(width, d_out)\n"
        "    def forward(self, x):\n"
        "        return self.output_layer(self.input_layer(x).relu())\n"
    )
    (workplace / "functions.py").write_text(
        "import torch\n"
        "def ones(bsz, gen, dim, X=None, y=None):\n"
        "    return lambda step: (torch.ones(bsz, dim), torch.ones(bsz))\n"
    )
    grabs = {"units": lambda model, X_tr, **kwargs: [model.input_layer.out_features, X_tr.sum()]}
    result = run_job_iterator(
        [[8], [0]],
        ["ntrain", "trial"],
        settings(MODEL_FILE="custom_model.py", MODEL_NAME="CustomMLP", otherreturns=grabs),
        bfn_config={"bfn_file": "functions.py", "bfn_name": "ones", "dim": 4},
        use_mp=False,
    )
    assert outcomes(result["extras"]["units"])[0].tolist() == [8.0, 32.0]


class BasicBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        return torch.relu(self.conv(x)) + x


class SmallResNet(nn.Module):
    def __init__(self, in_channels=1, width=8, num_blocks=2, d_out=1):
        super().__init__()
        self.input_layer = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.hidden_layers = nn.ModuleList([BasicBlock(width) for _ in range(num_blocks)])
        self.output_layer = nn.Linear(width, d_out)

    def forward(self, x):
        h = torch.relu(self.input_layer(x))
        for block in self.hidden_layers:
            h = block(h)
        return self.output_layer(h.mean(dim=(2, 3)))


def test_a_small_residual_network_with_arguments_out_of_global_config():
    def image_bfn(X_total, y_total, X=None, y=None, bsz=128, gen=None, **kwargs):
        def batch_fn(step, X=X, y=y):
            if X is not None and y is not None:
                return X, y
            rows = torch.randint(0, len(X_total), (bsz,), generator=gen, device=gen.device)
            return X_total.to(gen.device)[rows], y_total.to(gen.device)[rows]

        return batch_fn

    images = torch.randn(20, 1, 4, 4)
    grabs = {"blocks": lambda model, **kwargs: len(model.hidden_layers)}
    result = run_job_iterator(
        [[8], range(2), [0.1, 1, 10]],
        ["ntrain", "trial", "GAMMA"],
        settings(
            ONLINE=False,
            GAMMA=[0.1, 1, 10],
            MODEL_CLASS=SmallResNet,
            OPTIMIZER_CLASS=torch.optim.Adam,
            LOSS_CLASS=nn.MSELoss,
            in_channels=1,
            num_blocks=3,
            width=4,
            DIM=16,
            LOSS_CHECKPOINTS=0.1,
            otherreturns=grabs,
        ),
        bfn_config={"X_total": images, "y_total": images.mean((1, 2, 3)), "base_bfn": image_bfn},
        use_mp=False,
    )
    assert len(result["jobs"]) == 6
    assert set(outcomes(result["extras"]["blocks"])) == {3.0}
    assert np.isfinite(ExptTrace.deserialize(result["losses"])[:, :, :]).all()
