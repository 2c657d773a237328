"""What a launch finds out by training one step, and what a worker does before a long training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import Monomial, SpecError, Sweep, launch
from mlpsubmit.assembly.probe import PROBE_GRABS, probe
from mlpsubmit.batchfns import (
    arrays,
    images,
    modular_addition,
    polynomial,
    power_law,
    sample,
    sparse_parity,
)
from mlpsubmit.errors import UserError
from mlpsubmit.grabs import gram_trace, weight
from mlpsubmit.training.measurements import GrabError


def gaussian(bsz: int, gen: torch.Generator, noise: float = 0.0) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def small(axes: dict[str, Any] | None = None, **settings: Any) -> Sweep:
    fixed = {"WIDTH": 4, "N_SAMPLES": 6, "N_TEST": 5, "MAX_ITER": 3, "batchfn": gaussian}
    given = {**fixed, **settings}
    return Sweep("probed", axes or {}, **{k: v for k, v in given.items() if k not in (axes or {})})


# ---- grabs ---------------------------------------------------------------------------------------

TOO_DEEP = {"w": functools.partial(weight, layer=7)}


def test_a_grab_that_fails_is_told_at_launch(tmp_path: Path) -> None:
    sweep = small({"GAMMA": [1.0, 2.0]}, grabs=TOO_DEEP)
    with pytest.raises(GrabError, match=r"grab 'w' of model 0 at step 0 failed: .*got layer=7"):
        launch(sweep, executor="debug", runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_grabs_of_large_networks_are_not_called_at_launch() -> None:
    probe(small(grabs=TOO_DEEP, WIDTH=PROBE_GRABS["width"] + 1))
    probe(small(grabs=TOO_DEEP, N_SAMPLES=PROBE_GRABS["n_samples"] + 1))
    with pytest.raises(GrabError):
        probe(small(grabs=TOO_DEEP, WIDTH=PROBE_GRABS["width"]))


def test_a_grab_sees_the_networks_in_their_own_size() -> None:
    probe(small(WIDTH=100, grabs={"last": lambda model: model.input_layer.weight[99, 0]}))


@pytest.mark.parametrize(("max_iter", "step"), [(5000, 0), (100, 99)])
def test_a_grab_that_fails_on_a_worker_does_so_before_a_long_training(
    tmp_path: Path, max_iter: int, step: int
) -> None:
    def fails(model: Any, scale: float) -> float:
        raise ValueError("nothing to measure")

    settings: dict[str, Any] = {"MAX_ITER": max_iter, "LOSS_CHECKPOINTS": []}
    sweep = small(data=lambda: {"scale": 1.0}, grabs={"f": fails}, **settings)
    run = launch(sweep, executor="debug", runs_dir=tmp_path, keep_going=True)
    assert run.status().failed == 1
    wanted = f"grab 'f' of model 0 at step {step} failed: ValueError: nothing to measure"
    assert wanted in run.status().failures[0].error


def test_the_rehearsal_changes_no_result(tmp_path: Path) -> None:
    def noisy(model: Any, gen: torch.Generator) -> torch.Tensor:
        return gram_trace(model) + torch.randn((), generator=gen)

    def results(sweep: Sweep, folder: str) -> Any:
        return launch(sweep, executor="debug", runs_dir=tmp_path / folder).collect()

    settings: dict[str, Any] = {"MAX_ITER": 1000, "LOSS_CHECKPOINTS": [], "grabs": {"g": noisy}}
    axes = {"LR": [0.1, 0.01], "trial": range(2)}
    kept = results(small(axes, ONLYTHRESHOLDS=False, GRAB_EVERY=999, **settings), "kept")
    final = results(small(axes, **settings), "final")
    np.testing.assert_array_equal(final.train_loss, kept.train_loss.isel(step=-1))
    assert np.isfinite(final.g).all()


def test_state_is_found_on_a_worker_where_the_data_are_computed_there(tmp_path: Path) -> None:
    def shuffled(X_all: torch.Tensor, bsz: int, gen: torch.Generator) -> Any:
        order = torch.arange(0)

        def batch_fn(step: int) -> Any:
            nonlocal order
            if step % 4 == 0:
                order = torch.randperm(len(X_all), generator=gen)
            rows = order[:bsz]
            return X_all[rows], X_all[rows, 0]

        return batch_fn

    sweep = small(data=lambda: {"X_all": torch.randn(24, 3)}, batchfn=shuffled, MAX_ITER=40)
    run = launch(sweep, executor="debug", runs_dir=tmp_path, keep_going=True)
    assert run.status().failed == 1
    wanted = (
        "batchfn shuffled: batch_fn(5) depends on more than step and gen (its variable 'order')"
    )
    assert wanted in run.status().failures[0].error


# ---- arguments on axes ---------------------------------------------------------------------------


def test_every_point_of_a_library_functions_own_axes_is_checked() -> None:
    axes = {"d": [5, 10], "k": [2, 8], "trial": range(2)}
    with pytest.raises(SpecError) as caught:
        probe(small(axes, batchfn=sparse_parity))
    (message,) = caught.value.errors
    assert "k=8" in message
    assert message.endswith("(at Config(d=5, k=8, trial=0))")
    probe(small(axes, batchfn=sparse_parity, where=lambda c: c.k <= c.d))


def test_where_there_is_no_axis_no_place_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        probe(small(batchfn=sparse_parity, d=4, k=9))
    assert str(caught.value).startswith("sparse_parity: ")
    assert "Config" not in str(caught.value)


def test_the_first_point_is_told_without_its_place() -> None:
    with pytest.raises(SpecError, match=r"index 5.*d=3") as caught:
        probe(
            small(
                {"monomials": [Monomial({0: 1}), Monomial({5: 1})]},
                batchfn=functools.partial(polynomial, data_eigvals=torch.ones(3)),
            )
        )
    assert len(caught.value.errors) == 1


def test_more_rows_than_there_are_is_told_at_launch() -> None:
    data = arrays(np.ones((10, 2)), np.ones(10), np.ones((4, 2)), np.ones(4))
    with pytest.raises(SpecError, match=r"N_SAMPLES=20 training rows .* the data have 10"):
        probe(small({"N_SAMPLES": [5, 20]}, batchfn=data, ONLINE=False))


@pytest.mark.parametrize(
    ("data", "axes", "message"),
    [
        (power_law(alpha=1.0), {"d": [3, 0]}, r"power_law: got d=0; .*\(at Config\(d=0\)\)"),
        (images("digits"), {"classes": [[[0], [1]], [[0], [17]]]}, r"has no label 17"),
        (images(), {"dataset": ["digits", "mnst"]}, "no data set 'mnst'"),
        (modular_addition(), {"p": [7, 1]}, "modular_addition: got p=1"),
    ],
)
def test_every_set_of_a_recipes_arguments_is_checked(
    data: Any, axes: dict[str, Any], message: str
) -> None:
    batchfn = polynomial if "d" in axes else sample
    further = {"monomials": Monomial({0: 1})} if "d" in axes else {}
    with pytest.raises(SpecError, match=message):
        probe(small(axes, data=data, batchfn=batchfn, **further))


def test_functions_of_the_user_are_not_called_for_every_point() -> None:
    made = []

    def mine(noise: float, bsz: int, gen: torch.Generator) -> Any:
        made.append(noise)
        return gaussian(bsz, gen, noise)

    probe(small({"noise": [0.0, 1.0, 2.0]}, batchfn=mine))
    assert set(made) == {0.0}


def test_arguments_that_no_function_takes_are_listed_in_one_warning() -> None:
    with pytest.warns(UserWarning, match="datasethps") as caught:
        probe(small(datasethps={"nois": 3, "bins": 2}))
    assert [str(warning.message) for warning in caught] == [
        "datasethps: no function of the spec takes 'bins', 'nois' (did you mean 'noise'?); they "
        "take noise"
    ]
    with pytest.warns(UserWarning, match="'q', 'r'; they take noise$"):  # of all values of an axis
        probe(small({"datasethps": [{"noise": 1.0, "q": 1}, {"noise": 2.0, "r": 1}]}))
    # Functions of the spec share them.
    probe(small(datasethps={"noise": 3.0, "d": 2}, data=lambda d: {}))
    probe(small(datasethps={"anything": 3}, grabs={"g": lambda model, **kwargs: 1.0}))


def test_all_of_these_are_errors_of_the_user() -> None:
    assert issubclass(GrabError, UserError)


# ---- random numbers that do not come from gen, and data that a launch may compute ----------------


def test_draws_from_global_generators_are_refused() -> None:
    def careless(bsz: int, gen: torch.Generator) -> Any:
        def batch_fn(step: int) -> Any:
            X = torch.randn(bsz, 3)
            return X, X[:, 0] + np.random.randn()

        return batch_fn

    message = "batchfn careless draws from the global generator of numpy and torch"
    with pytest.raises(SpecError, match=message):
        probe(small(batchfn=careless))


def test_what_does_not_fit_cheap_data_is_told_at_launch() -> None:
    settings: dict[str, Any] = {"data": power_law(d=3, alpha=1.0), "batchfn": polynomial}
    axes = {"monomials": [Monomial({0: 1}), Monomial({5: 1})]}
    with pytest.raises(
        SpecError, match=r"has the index 5, .*\(at Config\(monomials=\$x_\{5\}\$\)\)"
    ):
        probe(small(axes, **settings))
    with pytest.raises(GrabError, match="got layer=7"):
        probe(small(monomials=Monomial({0: 1}), grabs=TOO_DEEP, **settings))


# ---- schedules and learning rates by parameter ---------------------------------------------------


def test_a_schedule_is_called_for_the_last_step_at_launch() -> None:
    def ends(step: int, shift: float) -> float:
        return 1.0 if step < 2 else shift - 1.0

    with pytest.raises(SpecError, match=r"LR_SCHEDULE: ends\(2\) gave -1.0; valid is a finite"):
        probe(small({"LR_SCHEDULE": ["cosine", ends]}, shift=0.0))
    probe(small({"LR_SCHEDULE": ["cosine", ends]}, shift=1.0))

    def fails(step: int) -> float:
        return 1.0 / (2 - step)

    with pytest.raises(SpecError, match=r"a function of the spec raised ZeroDivisionError.*line"):
        probe(small(LR_SCHEDULE=fails))


def test_a_schedule_that_keeps_state_is_refused() -> None:
    calls = []

    def counts(step: int) -> float:
        calls.append(step)
        return 1.0 / len(calls)

    with pytest.raises(SpecError, match=r"LR_SCHEDULE: .*counts.*compute the factor from the step"):
        probe(small(LR_SCHEDULE=counts))


def test_patterns_of_parameter_names_are_checked_at_launch() -> None:
    """For every model, and for the built-in MLP also where only workers have the data."""
    frozen = {"hidden_layers.*": 0}
    probe(small({"DEPTH": [2, 3]}, LR_FACTORS=frozen))
    text = r"LR_FACTORS: no parameter of the model matches 'hidden_layers\.\*'.*at .*depth=1"
    with pytest.raises(SpecError, match=text):
        probe(small({"DEPTH": [2, 1]}, LR_FACTORS=frozen))
    with pytest.raises(SpecError) as caught:  # the first config has it, which trains a step
        probe(small({"WIDTH": [2, 3]}, LR_FACTORS={"imput": 0}))
    assert len(caught.value.errors) == 1

    def network(d_in: int, width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(d_in, width), torch.nn.Linear(width, 1))

    axes = {"MODEL": ["mlp", network], "LR_FACTORS": [{}, {"input_layer.*": 0}]}
    with pytest.raises(SpecError, match=r"they are 0\.weight, 0\.bias, 1\.weight, 1\.bias"):
        probe(small(axes))

    def entries() -> dict[str, Any]:
        raise AssertionError("only workers compute the data")

    def rows(bsz: int, gen: torch.Generator, table: torch.Tensor) -> Any:
        return lambda step: (table[:bsz], table[:bsz, 0])

    with pytest.raises(SpecError, match="LR_FACTORS: no parameter of the model matches 'imput'"):
        probe(small(LR_FACTORS={"imput": 0}, data=entries, batchfn=rows))


# ---- configs that would train one at a time ------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(d_in, width), nn.Linear(width, 1)

    def forward(self, X: torch.Tensor) -> Any:
        return self.out(self.rnn(X)[0])


def test_errors_of_different_checks_are_listed_together() -> None:
    sweep = small(LR_FACTORS={"imput": 0}, LR_SCHEDULE=lambda step: -1.0)
    with pytest.raises(SpecError) as caught:
        probe(sweep)
    factors, schedule = caught.value.errors
    assert factors.startswith("LR_FACTORS: no parameter of the model matches 'imput'; they are ")
    assert schedule.startswith("LR_SCHEDULE: ")
    assert "gave -1.0; valid is a finite number >= 0" in schedule


def dropped(d_in: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d_in, width), nn.Dropout(0.5), nn.Linear(width, 1))


def choosy(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = (output - y).square().mean()
    return loss if loss < 1 else loss.sqrt()


def test_a_launch_tells_which_configs_train_one_at_a_time() -> None:
    axes = {"MODEL": [dropped, Recurrent], "trial": range(2)}
    settings: dict[str, Any] = {"PARAMETRIZATION": "sp"}
    with pytest.warns(UserWarning, match="one at a time") as told:
        probe(small(axes, **settings))
    assert [str(one.message) for one in told] == [
        "configs with MODEL=Recurrent train one at a time, not together: rnn is an nn.GRU, which "
        "computes one model at a time"
    ]
    branch = r"LOSS choosy has a branch that depends on the data \(line \d+ of test_probe.py: "
    with pytest.warns(UserWarning, match=f"configs train one at a time, not together: {branch}"):
        probe(small({"trial": range(2)}, LOSS=choosy, **settings))
    # Nothing to say where there is one config, or where packs of one were asked for.
    probe(small(MODEL=Recurrent, **settings))
    probe(small({"trial": range(2)}, MODEL=Recurrent, PACK_SIZE=1, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"METRIC_THRESHOLDS": {"test_accuracy": [0.5, 0.9]}},
        {"axes": {"METRIC_THRESHOLDS": [{}, {"test_accuracy": [0.9]}]}},
        {"METRIC_THRESHOLDS": {"test_error": [0.1, 0.5]}},
    ],
)
def test_default_thresholds_that_stop_before_others_are_told(settings: dict[str, Any]) -> None:
    axes = settings.pop("axes", None)
    name, last = ("error", 0.1) if "test_error" in str(settings) else ("accuracy", 0.9)
    text = (
        "METRIC_THRESHOLDS: a config stops once its train loss is below 0.1, the default of "
        rf"LOSS_CHECKPOINTS, even if test_{name} has not crossed {last}; write "
        rf"LOSS_CHECKPOINTS=\[\] to train on, STOP_ON='test_{name}' to stop there, or "
        "STOP_ON='train_loss' if this"
    )
    with pytest.warns(UserWarning, match=text):
        probe(small(axes, **settings))
    for chosen in (
        {"STOP_ON": "train_loss"},
        {"LOSS_CHECKPOINTS": [0.1]},
        {"PERCENT_THRESHOLDS": [0.1]},
    ):
        probe(small(axes, **settings, **chosen))
