"""A training that was interrupted, after whichever step, ends bit by bit as an undisturbed one."""

from __future__ import annotations

import io

import pytest
import torch

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import Interrupted, StateError, train

STEPS = 26


def everything(model, model0, X_tr, y_tr, X_te, opt):
    test = 0.0 if X_te is None else X_te.sum()
    start = sum(p.sum() for p in model0.parameters())
    return torch.stack([model(X_tr).norm(), y_tr.norm(), start, torch.as_tensor(test)])


def on_disk(state):
    """Write a state to a file and read it back, as the task of a run does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Job:
    """A training whose batch functions, models and generators are made anew at every attempt."""

    def __init__(self, gaussian, make_mlps, lrs, **settings):
        self.gaussian, self.make_mlps = gaussian, make_mlps
        base = validate({"MAX_ITER": STEPS, "PERCENT_THRESHOLDS": [0.8], **settings})
        self.hs = [base.model_copy(update={"lr": lr}) for lr in lrs]

    def run(self, monitor=None):
        K = len(self.hs)
        fns = [self.gaussian(k % 2) for k in range(2)]
        models = self.make_mlps(K)
        trained = train(
            models,
            [fns[k % 2] for k in range(K)],
            self.hs,
            test_fns=[self.gaussian(9)] * K,
            grabs={"everything": everything},
            generators=[fn.generator for fn in fns],
            monitor=monitor,
        )
        return trained, [model.state_dict() for model in models]


SETTINGS = {
    "sgd": {},
    "momentum": {"MOMENTUM": 0.9, "WEIGHT_DECAY": 0.01, "SAVE_WEIGHTS": "final"},
    "adam": {"OPTIMIZER": "adam", "SAVE_WEIGHTS": 4},
    "adamw": {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1},
    "muon": {"OPTIMIZER": "muon", "WEIGHT_DECAY": 0.1, "WARMUP_STEPS": 5},
    "sp": {"PARAMETRIZATION": "sp", "EVAL_EVERY": 3},
    "Adagrad": {"OPTIMIZER": "Adagrad", "PARAMETRIZATION": "sp"},
    "LBFGS": {
        "OPTIMIZER": "LBFGS",
        "PARAMETRIZATION": "sp",
        "OPTIMIZER_KWARGS": {"max_iter": 3},
    },
}


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize(
    ("every", "name", "only"),
    [
        pytest.param(
            every,
            name,
            only,
            marks=[pytest.mark.slow] * ((every == 3 or only) and name != "sgd"),
            id=f"{every}-{name}-{'final' if only else 'traces'}",
        )
        for every in (7, 3)
        for name in SETTINGS
        for only in (True, False)
    ],
)
def test_interrupted_and_resumed_is_undisturbed(
    every, name, only, online, gaussian, make_mlps, saver, same, short_blocks
):
    lrs = (0.01,) if name in ("Adagrad", "LBFGS") else (0.1, 0.03, 1e4, 1e-5, 0.02)
    further = {"ONLINE": online, "ONLYTHRESHOLDS": only, "GRAB_EVERY": 2, **SETTINGS[name]}
    job = Job(gaussian, make_mlps, lrs, **further)
    undisturbed, weights = job.run()

    state, attempts = None, 0
    while True:
        monitor = saver(state, every=every, interrupting=True)
        try:
            resumed, again = job.run(monitor)
            break
        except Interrupted:
            state, attempts = on_disk(monitor.state), attempts + 1
    assert attempts >= min(undisturbed.steps.max() - 1, STEPS - 2) // every
    same(undisturbed, resumed)
    for one, other in zip(weights, again, strict=True):
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, other[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "further",
    [
        {"OPTIMIZER": "lion", "WEIGHT_DECAY": 0.1},
        {
            "OPTIMIZER": "rmsprop",
            "MOMENTUM": 0.9,
            "OPTIMIZER_KWARGS": {"centered": True},
        },
    ],
    ids=["lion", "rmsprop"],
)
def test_state_of_further_optimizers_is_saved(
    further, gaussian, make_mlps, saver, same, short_blocks
):
    job = Job(gaussian, make_mlps, (0.1, 1e-5, 0.02), ONLYTHRESHOLDS=False, **further)
    monitor = saver(every=7, interrupting=True)
    with pytest.raises(Interrupted):
        job.run(monitor)
    same(job.run()[0], job.run(saver(on_disk(monitor.state)))[0])


def test_saving_after_every_step_changes_nothing(gaussian, make_mlps, saver, same, short_blocks):
    job = Job(gaussian, make_mlps, (0.1, 0.03, 1e4, 1e-5), ONLYTHRESHOLDS=False)
    same(job.run()[0], job.run(saver(every=1))[0])


@pytest.mark.slow
@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse traces", "final"])
def test_every_single_step_can_be_the_interrupted_one(
    sparse, online, gaussian, make_mlps, saver, same, short_blocks
):
    further = {"GRAB_EVERY": "log:4", "EVAL_EVERY": 9, "RECORD_EVERY": 5} if sparse else {}
    if online:  # whose losses are noisy
        further |= {"EMA_SMOOTHER": 0.6, "PERCENT_THRESHOLDS": [0.8]}
    job = Job(
        gaussian, make_mlps, (0.1, 1e-5, 1e4), ONLINE=online, ONLYTHRESHOLDS=not sparse, **further
    )
    undisturbed, _ = job.run()
    stop = undisturbed.steps[0] - 1
    assert 4 <= stop < STEPS - 1  # in the second block or later
    assert not sparse or stop not in [*undisturbed.grab_step, *undisturbed.eval_step]
    for step in range(1, int(undisturbed.steps.max())):
        monitor = saver(every=step, interrupting=True)
        with pytest.raises(Interrupted):
            job.run(monitor)
        assert monitor.state["start"] == step
        kept = saver(monitor.state)
        same(undisturbed, job.run(kept)[0])
        same(undisturbed, job.run(kept)[0])  # continuing leaves the saved state as it is


def test_the_same_batch_functions_may_go_on(gaussian, make_mlps, saver, same):
    settings = {"MAX_ITER": 9, "ONLINE": False}

    def run(fns, monitor=None):
        generators = [fn.generator for fn in fns]
        return train(make_mlps(2), fns, settings, generators=generators, monitor=monitor)

    undisturbed = run([gaussian(0), gaussian(1)])
    fns, monitor = [gaussian(0), gaussian(1)], saver(every=4, interrupting=True)
    with pytest.raises(Interrupted):
        run(fns, monitor)
    same(undisturbed, run(fns, saver(monitor.state)))


def test_a_state_that_does_not_fit_is_refused(gaussian, make_mlps, saver):
    monitor = saver(every=1)
    train(make_mlps(2), [gaussian(0)] * 2, {"MAX_ITER": 2}, monitor=monitor)
    state = monitor.state
    with pytest.raises(StateError, match="its format is 0, but this training expects 10; discard"):
        train(make_mlps(2), [gaussian(0)] * 2, {}, monitor=saver({**state, "format": 0}))
    with pytest.raises(StateError, match="its models is 2, but this training expects 3"):
        train(make_mlps(3), [gaussian(0)] * 3, {}, monitor=saver(state))
    with pytest.raises(StateError, match=r"weights input_layer\.weight"):
        train(make_mlps(2, width=7), [gaussian(0)] * 2, {}, monitor=saver(state))


def test_progress_is_told_at_every_read_back(gaussian, make_mlps, saver, short_blocks):
    job = Job(gaussian, make_mlps, (0.1, 1e4, 1e-5), PERCENT_THRESHOLDS=[0.9])
    monitor = saver()
    trained, _ = job.run(monitor)
    assert [p.step for p in monitor.seen] == [4, 8, 12, 16, 20, 24, 26]
    assert all(p.max_iter == 26 and p.active + p.finished == 3 for p in monitor.seen)
    assert monitor.seen[-1].active == 0
    assert monitor.seen[-1].losses.tolist() == trained.train_loss.tolist()
    assert monitor.seen[0].losses.shape == (3,)
