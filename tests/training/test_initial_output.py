"""Configs that start alike share one evaluation of the initial network, bit for bit as without."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, Interrupted, train
from mlpsubmit.training.initial_output import InitialOutput

GAMMAS = [0.5, 0.5, 1.0, 1.0, 3.0, 3.0]
TRIALS = [0, 1, 0, 1, 0, 1]


class Tanh(nn.Module):
    """A custom model: that GAMMA only scales its initial outputs is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, X):
        return self.read_out(self.read_in(X).tanh())


class Drawing(nn.Module):
    """A custom model that draws in evaluations, too."""

    def __init__(self, d, width) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(d, width), nn.Linear(width, 1)

    def forward(self, X):
        return self.read_out(functional.dropout(self.read_in(X).relu(), 0.02, training=True))


def settings(gammas, **further):
    common = {"MAX_ITER": 150, "LOSS_CHECKPOINTS": [0.9], "EMA_SMOOTHER": 0.5, "LR": 0.1}
    return [validate({**common, "GAMMA": gamma, **further}) for gamma in gammas]


@pytest.fixture
def evaluated(monkeypatch):
    """Return how many initial networks each call has evaluated."""
    counts = []
    original = InitialOutput.train

    def train(self, batch):
        counts.append(len(next(iter(self.weights.values()), ())))
        return original(self, batch)

    monkeypatch.setattr(InitialOutput, "train", train)
    return counts


def run(models, fns, hyperparameters, **further):
    generators = list({id(fn): fn.generator for fn in fns}.values())
    return train(models, fns, hyperparameters, trials=TRIALS, generators=generators, **further)


def two_sources(gaussian):
    return [gaussian(0), gaussian(1)] * 3


def own_sources(gaussian):
    return [gaussian(trial) for trial in TRIALS]


@pytest.mark.parametrize("interrupted", [False, True])
def test_gammas_share_a_network_per_trial(
    interrupted, gaussian, make_mlps, saver, same, evaluated, monkeypatch
):
    monkeypatch.setattr("mlpsubmit.training.loop.BLOCK", 4)
    apart = run(make_mlps(6), own_sources(gaussian), settings(GAMMAS))
    assert set(evaluated) > {6}  # and fewer once configs have left
    evaluated.clear()
    monitor = saver(every=14, interrupting=True) if interrupted else None
    if monitor:
        with pytest.raises(Interrupted):
            run(make_mlps(6), two_sources(gaussian), settings(GAMMAS), monitor=monitor)
        monitor.interrupting, monitor.every = False, 0
    together = run(make_mlps(6), two_sources(gaussian), settings(GAMMAS), monitor=monitor)
    same(apart, together)
    assert set(evaluated) <= {1, 2}
    assert 2 in evaluated
    assert len(set(together.steps)) > 2  # so the pack has shrunk


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_before_the_first_update_the_difference_is_zero(nonlinearity, dtype):
    """To the bit, in a pack too: the gradient of an absolute value depends on its sign."""
    trials, lrs = [0, 0, 1, 1, 0, 1, 1, 0], [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2]

    def batch_fn(step):
        X = torch.randn(33, 16, generator=torch.Generator().manual_seed(step))
        return X, functional.one_hot(X[:, :10].argmax(1), 10).to(X.dtype)

    def losses(rows):
        common = {"MAX_ITER": 2, "LOSS": "mae", "LOSS_CHECKPOINTS": [], "OPTIMIZER": "adam"}
        return train(
            [MLP(16, 31, 3, 10, nonlinearity=nonlinearity).to(dtype) for _ in rows],
            [batch_fn] * len(rows),
            [validate({**common, "LR": lrs[row]}) for row in rows],
            trials=[trials[row] for row in rows],
        ).train_loss

    together = losses(range(8))
    for row in range(8):
        assert together[row] == pytest.approx(losses([row])[0], rel=1e-5)


@pytest.mark.parametrize("make", [MLP, Drawing])
@pytest.mark.parametrize(
    ("sources", "stay"),
    [([0, 1, 0, 1, 0, 1], (0, 2, 5)), ([0, 0, 0, 1, 1, 1, 1, 1], (1, 5)), ([1, 0, 1, 0], (1, 3))],
)
def test_what_had_shrunk_goes_on_with_the_right_batches(make, sources, stay, saver, same):
    """Configs that stay share networks, and are others than the first of each network."""

    def source(seed):
        def batch_fn(step):
            X = torch.randn(100, 3, generator=torch.Generator().manual_seed(1000 * seed + step))
            return X, X[:, 0] * X[:, 1] + X[:, 2]

        return batch_fn

    def trained(monitor=None):
        common = {"MAX_ITER": 200, "PERCENT_THRESHOLDS": [0.7], "WIDTH": 16}
        lrs = [1e-5 if row in stay else 0.3 for row in range(len(sources))]
        fns = [source(0), source(1)]
        return train(
            [make(3, 16) for _ in sources],
            [fns[number] for number in sources],
            [validate({**common, "LR": lr}) for lr in lrs],
            trials=sources,
            monitor=monitor,
        )

    undisturbed, monitor = trained(), saver(every=150, interrupting=True)
    left = [row for row, steps in enumerate(undisturbed.steps) if steps == 200]
    assert 0 < len(left) <= len(sources) // 2, "so the pack has shrunk"
    with pytest.raises(Interrupted):
        trained(monitor)
    monitor.interrupting, monitor.every = False, 0
    same(undisturbed, trained(monitor))


@pytest.mark.parametrize(
    ("gammas", "networks"), [(GAMMAS, 6), ([1.0] * 6, 2)], ids=["gammas", "equal gammas"]
)
def test_other_networks_share_only_what_is_equal(gammas, networks, gaussian, same, evaluated):
    def models():
        return [Tanh() for _ in TRIALS]

    apart = run(models(), own_sources(gaussian), settings(gammas, MAX_ITER=8))
    evaluated.clear()
    together = run(models(), two_sources(gaussian), settings(gammas, MAX_ITER=8))
    same(apart, together)
    assert set(evaluated) == {networks}


def test_networks_that_differ_in_one_bit_are_kept_apart(gaussian, make_mlps, evaluated):
    models = make_mlps(6)
    for model in models:
        model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        weight = models[3].hidden_layers[0].weight
        weight[2, 3] = torch.nextafter(weight[2, 3], torch.tensor(9.0))
    common = settings([1.0] * 6, MAX_ITER=3, PARAMETRIZATION="sp")
    run(models, [gaussian(0)] * 6, common)
    assert set(evaluated) == {2}


def test_networks_in_half_precision_share_too(gaussian, evaluated):
    models = [Tanh().bfloat16() for _ in TRIALS]
    run(models, two_sources(gaussian), settings([1.0] * 6, MAX_ITER=2))
    assert set(evaluated) == {2}


def test_a_grab_sees_the_initial_network_of_its_own_gamma(gaussian, make_mlps):
    def multiplier(model0):
        return model0.output_layer.multiplier

    def first_weight(model0):
        return model0.input_layer.weight[0, 0]

    grabs = {"multiplier": multiplier, "first": first_weight}
    hyperparameters = settings(GAMMAS, MAX_ITER=3, LOSS_CHECKPOINTS=[])
    shown = run(make_mlps(6), two_sources(gaussian), hyperparameters, grabs=grabs).grabs
    assert shown["multiplier"] * GAMMAS == pytest.approx([shown["multiplier"][2]] * 6)
    assert shown["first"].tolist() == [*shown["first"][:2]] * 3
    assert shown["first"][0] != shown["first"][1]


def test_offline_sets_are_evaluated_for_each_config(gaussian, make_mlps, same):
    def fixed(fns, test_fns):
        hyperparameters = settings(GAMMAS, MAX_ITER=6, ONLINE=False)
        return run(make_mlps(6), fns, hyperparameters, test_fns=test_fns)

    tests = [gaussian(10 + number) for number in range(6)]
    again = [gaussian(10 + number) for number in range(6)]
    same(fixed(own_sources(gaussian), tests), fixed(two_sources(gaussian), again))
