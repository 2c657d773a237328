"""Functions as they are usually written, which a launch has to accept, and the rest in words."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import Sweep
from mlpsubmit.assembly.probe import probe
from mlpsubmit.errors import SpecError


def gaussian(bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 4, generator=gen)
        return X, X[:, 0]

    return batch_fn


def teacher(bsz: int, gen: torch.Generator) -> Any:
    net = nn.Linear(4, 1).requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(generator=gen)

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 4, generator=gen)
        return X, net(X)

    return batch_fn


def read_only(bsz: int) -> Any:
    X = np.ones((bsz, 4), np.float32)
    X.setflags(write=False)
    return lambda step: (X, X[:, 0])


def leaving(bsz: int) -> Any:
    sys.exit("no data")


class NeedsLR(torch.optim.SGD):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)


def compiled(d_in: int, width: int) -> nn.Module:
    layers = nn.Sequential(nn.Linear(d_in, width), nn.ReLU(), nn.Linear(width, 1))
    model: nn.Module = torch.compile(layers, backend="eager")
    return model


def with_momentum(model: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["momentum"] = 0.9


def sweep_of(batchfn: Any = gaussian, **settings: Any) -> Sweep:
    sizes = {"WIDTH": 8, "N_SAMPLES": 8, "N_TEST": 8, "MAX_ITER": 20}
    return Sweep("s", axes={"LR": [0.1]}, batchfn=batchfn, **sizes, **settings)


@pytest.mark.filterwarnings("ignore:PARAMETRIZATION")
@pytest.mark.parametrize(
    "settings",
    [{"batchfn": teacher}, {"batchfn": read_only}, {"OPTIMIZER": NeedsLR}, {"MODEL": compiled}],
    ids=["teacher", "read-only", "lr", "compiled"],
)
def test_ordinary_functions_are_accepted(settings: Any) -> None:
    probe(sweep_of(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PARAMETRIZATION": with_momentum}, "sets momentum of the optimizer; only learning rates"),
        (
            {"OPTIMIZER": torch.optim.RMSprop, "OPTIMIZER_KWARGS": {"lr": 1.0}},
            "has 'lr', but the learning rate",
        ),
        ({"batchfn": leaving}, "a function of the spec raised SystemExit: no data"),
    ],
)
@pytest.mark.filterwarnings("ignore:PARAMETRIZATION")
def test_what_has_no_effect_or_ends_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        probe(sweep_of(**settings))
