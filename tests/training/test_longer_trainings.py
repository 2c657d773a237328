"""A kept state goes on as if a larger MAX_ITER or further thresholds were there from the start."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import loop, train
from mlpsubmit.training.kept_states import KeptSteps, is_uncrossed
from mlpsubmit.training.monitor import Monitor


class Keeper(Monitor):
    """Keeps the last state, and the last one before a config had stopped at a threshold."""

    def __init__(self, state=None):
        self.state, self.last, self.uncrossed = state, None, None

    def restore(self):
        return self.state

    def keep(self, state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.last = torch.load(file, weights_only=True)
        if is_uncrossed(self.last):
            self.uncrossed = self.last


def final(model, X_tr):
    return model(X_tr).norm()


LRS = (0.1, 0.03, 1e4, 1e-5, 0.06)


def run(gaussian, make_mlps, monitor=None, **settings):
    base = validate({"KEEP_STATE": True, "EMA_SMOOTHER": 0.5, "LR": 0.1, **settings})
    fns = [gaussian(0), gaussian(1)]
    return train(
        make_mlps(len(LRS)),
        [fns[k % 2] for k in range(len(LRS))],
        [base.model_copy(update={"lr": lr}) for lr in LRS],
        test_fns=[gaussian(9)] * len(LRS),
        grabs={"final": final},
        generators=[fn.generator for fn in fns],
        monitor=monitor,
    )


CASES = {
    "sgd": {},
    "offline": {"ONLINE": False, "SAVE_WEIGHTS": "final"},
    "adam": {"OPTIMIZER": "adam", "SAVE_WEIGHTS": 5},
    "traces": {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 3, "GRAB_EVERY": 4, "EVAL_EVERY": 5},
    "offline traces": {"ONLYTHRESHOLDS": False, "ONLINE": False, "SAVE_WEIGHTS": 7}
    | {"METRICS": ["r2"], "METRIC_THRESHOLDS": {"test_loss": [0.8, 0.5]}},
}


#: Of which one is quick enough to be tried at every change.
NAMES = [pytest.param(n, marks=pytest.mark.slow if n != "sgd" else ()) for n in CASES]


@pytest.mark.parametrize("steps", [(22, 38), (24, 33), (2, 25)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_more_steps_are_those_of_a_longer_training(
    name, steps, gaussian, make_mlps, same, monkeypatch
):
    monkeypatch.setattr(loop, "BLOCK", 4)
    settings = {**CASES[name], "LOSS_CHECKPOINTS": [0.9, 0.6]}
    before, after = steps
    keeper = Keeper()
    shorter = run(gaussian, make_mlps, keeper, MAX_ITER=before, **settings)
    assert keeper.last["start"] == before - 1
    whole = run(gaussian, make_mlps, MAX_ITER=after, **settings)
    same(whole, run(gaussian, make_mlps, Keeper(keeper.last), MAX_ITER=after, **settings))
    if before > 20:  # some have stopped at a threshold, others go on
        assert (shorter.steps < before).any() or CASES[name].get("OPTIMIZER") == "adam"
        assert (whole.steps > before).any()


@pytest.mark.parametrize("name", NAMES)
def test_further_thresholds_are_those_of_a_training_with_all(
    name, gaussian, make_mlps, same, monkeypatch
):
    monkeypatch.setattr(loop, "BLOCK", 4)
    keeper, first = Keeper(), [0.9, 0.6]
    shorter = run(gaussian, make_mlps, keeper, MAX_ITER=30, LOSS_CHECKPOINTS=first, **CASES[name])
    settings = {**CASES[name], "LOSS_CHECKPOINTS": [*first, 0.4, 0.3], "MAX_ITER": 35}
    whole = run(gaussian, make_mlps, **settings)
    assert keeper.uncrossed["start"] < keeper.last["start"]
    assert keeper.uncrossed["start"] < shorter.steps[shorter.status == 1].min()
    same(whole, run(gaussian, make_mlps, Keeper(keeper.uncrossed), **settings))
    assert (whole.timekeys[:, -1] > 0).any()


def test_keeping_states_changes_nothing(gaussian, make_mlps, same) -> None:
    settings = {"MAX_ITER": 150, "LOSS_CHECKPOINTS": [0.3]}
    same(
        run(gaussian, make_mlps, Keeper(), **settings),
        run(gaussian, make_mlps, KEEP_STATE=False, **settings),
    )


def test_states_are_kept_ever_more_rarely() -> None:
    kept = KeptSteps(True, 100_000, 64)
    counts = [steps for steps in range(100_001) if steps in kept]
    assert counts[:12] == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384]
    assert counts[-1] == 99_999
    assert len(counts) < 45
    assert max(b / a for a, b in itertools.pairwise(counts[12:])) <= 1.25
    looks = [kept.next_look(step) for step in range(1000)]
    assert looks == [min(c - 1 for c in counts if c > step) for step in range(1000)]
    assert KeptSteps(False, 1000, 64).next_look(0) == 1000
    assert 1 in KeptSteps(True, 2, 64)
    assert np.isfinite(KeptSteps(True, 1, 64).next_look(0))
