"""Trained networks: kept with the results, loaded as modules, and measured afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit import Run, RunError, SpecError, Sweep, UserError, launch
from mlpsubmit.jobs import trust
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.stored_weights import WeightsInMemory
from mlpsubmit.training import loop


def noisy(noise: float, bsz: int, gen: torch.Generator, X: Any = None, y: Any = None) -> Any:
    def batch_fn(step: int) -> Any:
        if X is not None:
            return X, y
        drawn = torch.randn(bsz, 3, generator=gen)
        return drawn, drawn[:, 0] + noise

    return batch_fn


def moved(model: nn.Module, model0: nn.Module, X_tr: Tensor, noise: float, opt: Any) -> Tensor:
    lr = opt.param_groups[0]["lr"]
    return (model(X_tr) - model0(X_tr)).square().mean() + noise + lr


def on_tests(model: nn.Module, X_te: Tensor, y_te: Tensor, gen: torch.Generator) -> Tensor:
    return (model(X_te).squeeze() - y_te).square().mean() + torch.rand((), generator=gen)


def first(model: nn.Module) -> Tensor:
    return model.input_layer.weight


GRABS = {"moved": moved, "on_tests": on_tests, "first": first}
SETTINGS: dict[str, Any] = {"N_SAMPLES": 8, "N_TEST": 16, "LR": 0.1, "MAX_ITER": 40}
SETTINGS |= {"LOSS_CHECKPOINTS": [0.3], "SAVE_WEIGHTS": "final"}
SMALL: dict[str, Any] = {"WIDTH": 4, "noise": 0.0, "MAX_ITER": 2}


def trained(folder: Path, axes: Any = None, **settings: Any) -> Run:
    axes = {"WIDTH": [4, 6], "noise": [0.0, 0.5], "trial": range(2)} if axes is None else axes
    kept = {name: value for name, value in SETTINGS.items() if name not in axes}
    sweep = Sweep("nets", axes, batchfn=noisy, **{**kept, **settings})
    return launch(sweep, executor="debug", runs_dir=folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"METRICS": ["r2"], "METRIC_THRESHOLDS": {"train_r2": [0.5]}},
        {"ONLINE": False, "PRECISION": "fp64", "LR_SCHEDULE": "cosine"},
        {"SAVE_WEIGHTS": "log:5", "GRAB_EVERY": "log:5", "ONLYTHRESHOLDS": False},
        {"SAVE_WEIGHTS": 7, "GRAB_EVERY": 7, "ONLYTHRESHOLDS": False, "LR": 30.0, "ONLINE": False},
    ],
    ids=["online", "offline", "log-spaced", "diverging"],
)
def test_grabs_afterwards_are_those_of_the_training(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BLOCK", 8)  # configs stop before the last step, packs shrink
    run = trained(tmp_path, grabs=GRABS, **settings)
    found, afterwards = run.collect(), run.measure(GRABS)
    if "LR" in settings:
        assert (found.status == "diverged").all()
    else:
        assert len(set(found.steps.values.ravel())) > 2
    traced = "GRAB_EVERY" in settings
    assert set(afterwards.data_vars) == {*GRABS, "steps", "status"}
    for name in GRABS:
        own = (
            found[name].rename(grab_step="step") if "grab_step" in found[name].dims else found[name]
        )
        assert afterwards[name].dims == own.dims
        assert ("step" in own.dims) == traced
        np.testing.assert_array_equal(afterwards[name], own, err_msg=name)
    assert found.attrs["save_weights"] == {**SETTINGS, **settings}["SAVE_WEIGHTS"]


def test_a_model_is_the_trained_network(tmp_path: Path) -> None:
    kept = {"ONLYTHRESHOLDS": False, "EVAL_EVERY": 1, "SAVE_WEIGHTS": 10, "LOSS_CHECKPOINTS": []}
    run = trained(tmp_path, EMA_SMOOTHER=0.0, **kept)
    found = run.collect()
    model = run.model(WIDTH=6, noise=0.5, trial=1)
    model0 = run.model(width=6, noise=0.5, trial=1, initial=True)
    assert not model.training
    # The test set of a worker, by another route.
    from mlpsubmit.training.seeds import streams

    batch_fn = noisy(0.5, 16, torch.Generator().manual_seed(streams(42, 1).test))
    X, y = batch_fn(0)
    loss = (model(X) - model0(X)).squeeze().sub(y).square().mean()
    at = {"width": 6, "noise": 0.5, "trial": 1}
    np.testing.assert_allclose(loss.item(), found.test_loss.sel(at).isel(step=-1), rtol=1e-6)
    early = run.model(**at, step=10)
    loss = (early(X) - model0(X)).squeeze().sub(y).square().mean()
    np.testing.assert_allclose(loss.item(), found.test_loss.sel({**at, "step": 10}), rtol=1e-6)


def test_selections_that_are_not_one_config_are_explained(tmp_path: Path) -> None:
    run = trained(tmp_path, MAX_ITER=2)
    for selection, text in [
        ({"width": 4, "trial": 0}, r"matches 2 configs .*\(noise=0.0; noise=0.5\).* add noise="),
        ({}, r"no selection matches 8 configs .*; \.\.\.\); select one of them: add width=\.\.\."),
        (
            {"widht": 4, "noise": 3},
            r"widht: is not an axis.*'width'.*; noise: got 3; valid are 0.0, 0",
        ),
        ({"width": 4, "noise": 0, "trial": 1, "step": 1}, r"got step=1, but the final weights"),
        ({"step": 1, "initial": True, "width": 4, "noise": 0, "trial": 1}, "give one of the two"),
    ]:
        with pytest.raises(UserError, match=text):
            run.model(**selection)
    with pytest.raises(SpecError, match=r"grabs\['a'\]: got 3; should be a function, or the name"):
        run.measure({"a": 3})
    with pytest.raises(SpecError, match="measure: got no grabs"):
        run.measure({})
    with pytest.raises(UserError, match=r"division by zero.*\(width=\d, noise=0.0, trial=0\)"):
        run.measure({"bad": lambda model: 1 / 0})
    named = run.measure({"own": lambda model, WIDTH: WIDTH})
    np.testing.assert_array_equal(named.own, np.broadcast_to([[[4.0]], [[6.0]]], (2, 2, 2)))


def test_without_weights_there_is_nothing_to_load(tmp_path: Path) -> None:
    axes: dict[Any, Any] = {"trial": range(2)}
    run = trained(tmp_path, axes, **SMALL, SAVE_WEIGHTS=None)
    assert run.collect().attrs["save_weights"] == "None"
    text = r"run .* keeps no weights; launch its spec with SAVE_WEIGHTS='final', which trains"
    with pytest.raises(UserError, match=f"model: {text}"):
        run.model(trial=0)
    with pytest.raises(UserError, match=f"measure: {text}"):
        run.measure(GRABS)
    run.model(trial=0, initial=True)
    # Results without weights are not those of a sweep that keeps them.
    again = trained(tmp_path, axes, **SMALL)
    assert again.status().reused == 0
    more = trained(tmp_path, {"trial": range(3)}, **SMALL)
    assert more.status().reused == 2
    one, other = again.model(trial=1), more.model(trial=1)
    assert torch.equal(one.input_layer.weight, other.input_layer.weight)
    assert (
        more.measure({"first": first})
        .first.sel(trial=1)
        .equals(again.measure({"first": first}).first.sel(trial=1))
    )


class Sized(nn.Module):
    """As many layers and units as its arguments say, with a counter."""

    def __init__(self, units: int, deep: bool) -> None:
        super().__init__()
        inner = [nn.Linear(units, units)] if deep else []
        self.layers = nn.Sequential(nn.Linear(3, units), nn.Tanh(), *inner, nn.Linear(units, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.layers(X)
        return out


def test_weights_of_other_shapes_share_a_pack(tmp_path: Path) -> None:
    axes = {"units": [3, 5], "deep": [False, True], "LR": [0.1, 0.2]}
    further = {"MODEL": Sized, "noise": 0.0, "PACK_SIZE": 8, "MAX_ITER": 6, "PARAMETRIZATION": "sp"}
    norm = {"norm": lambda model: sum(p.square().sum() for p in model.parameters())}
    norm |= {"calls": lambda model: model.calls}
    run = trained(tmp_path, axes, grabs=norm, **further)
    (pack,) = run.directory.results.packs()
    kept = WeightsInMemory(pack)
    shapes = [
        tuple(w.shape for name, w in kept.of(row, None).items() if name.endswith("weight"))
        for row in range(8)
    ]
    assert ((3, 3), (1, 3)) in shapes
    assert ((5, 3), (5, 5), (1, 5)) in shapes
    found, afterwards = run.collect(), run.measure(norm)
    for name in norm:
        np.testing.assert_array_equal(found[name], afterwards[name])
    assert run.model(units=5, deep=True, LR=0.2).calls == found.calls.sel(
        units=5, deep=True, lr=0.2
    )


def test_functions_of_others_are_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, {"trial": range(1)}, **SMALL)
    run.path.chmod(0o777)
    for call in (lambda: run.model(trial=0), lambda: run.measure(GRABS)):
        with pytest.raises(RunError, match=r"can be written by anyone.*: trust=True"):
            call()
    assert len(run.model(trial=0, trust=True).input_layer.weight) == 4
    monkeypatch.setattr(trust, "owner", lambda path: "alice")
    text = (
        rf"^run {run.id} belongs to alice: run.model and run.measure execute the functions in it; "
        r"let alice call them, or launch its spec with another --runs-dir; or, if you trust alice: "
        "trust=True$"
    )
    with pytest.raises(RunError, match=text):
        run.model(trial=0)

    def denied(*_: Any) -> bytes:
        raise PermissionError(13, "no")

    monkeypatch.setattr(RunDirectory, "verify_pickle", denied)
    text = r"sweep.pkl cannot be read \(no\); let alice call them, or launch its spec with"
    with pytest.raises(RunError, match=text):
        run.measure(GRABS, trust=True)


def test_arguments_of_model_and_measure_are_checked(tmp_path: Path) -> None:
    run = trained(tmp_path, {"trial": range(1)}, **{**SMALL, "MAX_ITER": 3, "SAVE_WEIGHTS": 2})
    for step in ("last", 2.0, True):
        text = rf"^model: got step={step!r}; should be an integer, a step of SAVE_WEIGHTS"
        with pytest.raises(UserError, match=text):
            run.model(trial=0, step=step)  # type: ignore[arg-type]
    assert len(run.model(trial=0, step=np.int64(2)).input_layer.weight) == 4  # type: ignore[arg-type]
    grabs: Any
    for grabs, text in (
        ([len], r"got \[<built-in function len>\]; give functions by name: measure\({'norm'"),
        (len, "got <built-in function len>; give functions by name"),
        ({}, "got no grabs; give functions by name"),
        ({3: len}, "^measure: got the name 3; a name should be a string"),
    ):
        with pytest.raises(SpecError, match=text):
            run.measure(grabs)


def test_a_network_that_diverged_has_a_warning(tmp_path: Path) -> None:
    axes = {"LR": [0.01, 3000.0]}
    kept = {"SAVE_WEIGHTS": 1, "LOSS_CHECKPOINTS": [], "noise": 0.5, "MAX_ITER": 6}
    run = trained(tmp_path, axes, ONLINE=False, **kept)
    assert run.collect().status.values.tolist() == ["done", "diverged"]
    run.model(lr=0.01)
    run.model(lr=3000, step=1)
    run.model(lr=3000, initial=True)
    text = rf"model: config 1 of run {run.id} \(lr=3000.0\) diverged after \d+ steps?: its loss is "
    with pytest.warns(UserWarning, match=text) as caught:
        run.model(lr=3000)
    assert caught[0].filename == __file__
