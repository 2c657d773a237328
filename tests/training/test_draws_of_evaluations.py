"""Random numbers of evaluations: they take none from the training."""

from __future__ import annotations

import copy
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


def test_initial_outputs_draw_from_the_stream_of_their_config(gaussian):
    def trained(trials):
        torch.manual_seed(0)
        network = Noisy(DRAWS["torch"])
        settings = {"MAX_ITER": 3, "PARAMETRIZATION": "sp", "ONLYTHRESHOLDS": False}
        models, batches = [copy.deepcopy(network) for _ in trials], gaussian(0)
        result = train(models, [batches] * len(trials), settings, trials=trials)
        return result.train_loss

    together = trained([0, 1])
    np.testing.assert_allclose(together, [trained([0])[0], trained([1])[0]], rtol=1e-6)
    assert (together[0] != together[1]).all()


@pytest.mark.parametrize("every", [1, 2])
def test_a_metric_that_draws_has_a_stream_of_its_config(gaussian, draw, every):
    def some(output, y):
        return (output - y).abs().mean() + draw()

    def trained(trials, metrics):
        torch.manual_seed(0)
        network = Noisy(DRAWS["torch"])
        settings = {
            "MAX_ITER": 6,
            "PARAMETRIZATION": "sp",
            "ONLYTHRESHOLDS": False,
            "RECORD_EVERY": every,
            "METRICS": metrics,
        }
        models, batches = [copy.deepcopy(network) for _ in trials], gaussian(0)
        return train(models, [batches] * len(trials), settings, trials=trials)

    metrics = {"some": (some, "min"), "again": (some, "min")}
    together, without = trained([0, 1], metrics), trained([1], [])
    alone = trained([1], metrics)
    np.testing.assert_array_equal(alone.train_loss, without.train_loss)
    found, wanted = together.metrics["train_some"], alone.metrics["train_some"]
    np.testing.assert_allclose(found[1], wanted[0], rtol=1e-6)
    # Each measurement draws the same numbers.
    np.testing.assert_array_equal(found, together.metrics["train_again"])
    assert (found[0] != found[1]).all()
