"""Random numbers of evaluations: they take none from the training."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.training import train


class Noisy(nn.Module):
    """Draws in eval mode, too."""

    def __init__(self, draw):
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(3, 4), nn.Linear(4, 1), draw

    def forward(self, X):
        return self.b(torch.tanh(self.a(X)) + self.draw())


DRAWS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: float(np.random.rand()),
    "random": lambda: random.random(),
}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


def losses(gaussian, model, **further):
    torch.manual_seed(0)
    settings = {
        "MAX_ITER": 6,
        "LOSS_CHECKPOINTS": [],
        "ONLYTHRESHOLDS": False,
        "EMA_SMOOTHER": 0.0,
        "PARAMETRIZATION": "sp",
        **further.pop("settings", {}),
    }
    fns = {"test_fns": [gaussian(5)]} if "EVAL_EVERY" in settings else {}
    return train([model()], [gaussian(0)], settings, **fns, **further).train_loss


@pytest.mark.parametrize("centered", [False, True])
def test_a_loss_that_draws_trains_alike_however_often_it_is_evaluated(gaussian, draw, centered):
    def loss(output, y):
        return ((output - y) ** 2 * (0.5 + draw())).mean()

    def network():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    settings = {"LOSS": loss, "CENTERED": centered}
    wanted = losses(gaussian, network, settings=settings)
    found = losses(gaussian, network, settings={**settings, "EVAL_EVERY": 1})
    np.testing.assert_array_equal(found, wanted)
    again = losses(gaussian, network, settings={**settings, "EVAL_EVERY": 3})
    np.testing.assert_array_equal(again, wanted)


@pytest.mark.parametrize("centered", [False, True])
def test_a_model_that_draws_trains_alike_whatever_is_evaluated(gaussian, draw, centered):
    settings = {"CENTERED": centered}
    wanted = losses(gaussian, lambda: Noisy(draw), settings=settings)
    found = losses(gaussian, lambda: Noisy(draw), settings={**settings, "EVAL_EVERY": 1})
    np.testing.assert_array_equal(found, wanted)
    grabs = {"output": lambda model, X_tr: model(X_tr).detach().sum().item()}
    measured = losses(gaussian, lambda: Noisy(draw), settings=settings, grabs=grabs)
    np.testing.assert_array_equal(measured, wanted)
