"""From configs to stacks: what is shared, what is kept apart, and what users are told."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import SpecError, Sweep, train
from mlpsubmit.assembly import assemble as assembling
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.assembly.probe import probe
from mlpsubmit.training import BatchError
from mlpsubmit.training.seeds import streams

CPU = torch.device("cpu")


def gaussian(bsz: int, gen: torch.Generator, d: int = 3, noise: float = 0.0) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, d, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def stacks(sweep: Sweep, entries: dict[str, Any] | None = None) -> list[Any]:
    configs = list(sweep)
    return assemble(sweep, configs, [entries or {}] * len(configs), CPU)


def small(axes: dict[str, Any], **settings: Any) -> Sweep:
    fixed = {"WIDTH": 4, "N_SAMPLES": 6, "N_TEST": 5, "MAX_ITER": 3, "batchfn": gaussian}
    given = {**fixed, **settings}
    return Sweep("assembled", axes, **{k: v for k, v in given.items() if k not in axes})


def test_configs_that_draw_the_same_share_a_source() -> None:
    (stack,) = stacks(small({"LR": [0.1, 0.2], "trial": range(2), "noise": [0.0, 1.0]}))
    sources = {id(batch_fn) for batch_fn in stack.batch_fns}
    assert len(stack.models) == 8
    assert (
        len(sources) == len(stack.generators) == 4
    )  # trial x noise: the learning rate draws nothing
    by_config = {
        (c["trial"], c["noise"], c["lr"]): f
        for c, f in zip(stack.contexts, stack.batch_fns, strict=True)
    }
    assert by_config[0, 0.0, 0.1] is by_config[0, 0.0, 0.2]
    # Configs that differ in noise alone see the same inputs: the same stream, drawn apart.
    same, other = by_config[0, 0.0, 0.1](1)[0], by_config[0, 1.0, 0.1](1)[0]
    assert torch.equal(same, other)
    assert not torch.equal(same, by_config[1, 0.0, 0.1](1)[0])


def test_the_first_batch_is_drawn_once_from_the_stream_of_training_data() -> None:
    (stack,) = stacks(small({}))
    seeds = streams(42, 0)
    reference = gaussian(6, torch.Generator().manual_seed(seeds.train))
    for step in range(3):
        X, y = stack.batch_fns[0](step)
        expected = reference(step)
        assert torch.equal(X, expected[0])
        assert torch.equal(y, expected[1])


def test_the_test_set_has_a_stream_of_its_own_and_is_drawn_offline_only() -> None:
    (offline,) = stacks(small({"trial": range(2)}, ONLINE=False))
    reference = gaussian(5, torch.Generator().manual_seed(streams(42, 1).test))(0)
    assert torch.equal(offline.test_fns[1](0)[0], reference[0])
    (online,) = stacks(small({}))
    assert online.test_fns == []
    (asked,) = stacks(small({}, grabs={"g": lambda X_te: X_te.sum()}))
    assert len(asked.test_fns) == 1


def test_the_offline_set_comes_back_as_x_and_y() -> None:
    seen = []

    def kept(bsz: int, gen: torch.Generator, X: Any = None, y: Any = None) -> Any:
        seen.append(X)
        return (lambda step: (X, y)) if X is not None else gaussian(bsz, gen)

    (stack,) = stacks(small({}, ONLINE=False, batchfn=kept))
    X, y = stack.batch_fns[0](0)
    assert torch.equal(X, seen[1])
    assert torch.equal(y, X[:, 0])


def test_the_training_set_is_the_first_one_whatever_is_made_of_it_then() -> None:
    def doubled(bsz: int, gen: torch.Generator, X: Any = None, y: Any = None) -> Any:
        return (lambda step: (X, 2 * y)) if X is not None else gaussian(bsz, gen)

    with pytest.warns(UserWarning, match=r"batchfn doubled: offline, .* it returned another y"):
        (stack,) = stacks(small({}, ONLINE=False, batchfn=doubled))
    for step in range(2):
        X, y = stack.batch_fns[0](step)
        assert torch.equal(y, X[:, 0])


def test_shapes_that_differ_train_as_stacks_of_their_own() -> None:
    """An argument of a batch function may change shapes, which no plan can know."""
    sweep = small({"d": [2, 5], "trial": range(2)})
    parts = stacks(sweep)
    assert [stack.rows for stack in parts] == [[0, 1], [2, 3]]
    assert [stack.models[0].input_layer.in_features for stack in parts] == [2, 5]
    trained = [stack.train() for stack in parts]
    assert all(np.isfinite(part.train_loss).all() for part in trained)


def test_a_data_entry_and_a_setting_of_one_name_are_refused() -> None:
    sweep = small({"noise": [0.0, 1.0]}, data=lambda: {"scale": 1.0}, d=3)
    for entry in ({"noise": 2.0}, {"d": 5}):
        with pytest.raises(SpecError, match=f"returned entries called {next(iter(entry))}, which"):
            stacks(sweep, entry)


def test_test_sets_of_other_sizes_train_as_stacks_of_their_own() -> None:
    def batches(held_out: int, n_samples: int, gen: torch.Generator, split: str) -> Any:
        return gaussian(n_samples if split == "train" else held_out, gen)

    axes = {"held_out": [5, 4], "trial": range(2)}
    first, second = stacks(small(axes, batchfn=batches, ONLINE=False))
    assert [first.rows, second.rows] == [[0, 1], [2, 3]]
    assert all(np.isfinite(stack.train().test_loss).all() for stack in (first, second))


def test_other_numbers_of_samples_than_asked_for_are_refused() -> None:
    """A curve over N_SAMPLES would be flat from where the data end."""

    def sliced(bsz: int, gen: torch.Generator) -> Any:
        return gaussian(min(bsz, 6), gen)

    with pytest.raises(SpecError) as caught:
        stacks(small({}, batchfn=sliced, ONLINE=False, N_SAMPLES=8))
    assert str(caught.value) == (
        "batchfn sliced: got 6 samples; should be bsz = 8, which is N_SAMPLES; set N_SAMPLES=6, "
        "or, if the function decides how many there are, leave bsz out of its arguments"
    )
    (stack,) = stacks(small({}, batchfn=sliced, ONLINE=False, N_SAMPLES=6, N_TEST=9))
    assert np.isfinite(stack.train().test_loss).all()


def test_stacks_of_one_pack_train_as_they_would_alone() -> None:
    """They train one after another: none may draw on from where another has stopped."""

    def model(d_in: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def losses(hidden: list[int]) -> dict[int, float]:
        parts = stacks(small({"hidden": hidden}, MODEL=model, LOSS_CHECKPOINTS=[]))
        return {stack.contexts[0]["hidden"]: float(stack.train().train_loss[0]) for stack in parts}

    together, alone = losses([4, 8]), losses([4]) | losses([8])
    assert together == losses([8, 4]) == alone


class Slope(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.slope * X


def sloped(d_in: int, slope: float) -> nn.Module:
    return nn.Sequential(nn.Linear(d_in, 4), Slope(slope), nn.Linear(4, 1))


def test_models_that_compute_otherwise_are_no_pack_of_equals() -> None:
    """Equal shapes are not enough: one model's code would stand for all."""
    axes = {"slope": [0.5, 1.0], "trial": range(2)}
    parts = stacks(small(axes, MODEL=sloped, LOSS_CHECKPOINTS=[]))
    assert [stack.rows for stack in parts] == [[0, 1], [2, 3]]
    (alone,) = stacks(small({"slope": [1.0]}, MODEL=sloped, LOSS_CHECKPOINTS=[]))
    assert parts[1].train().train_loss[0] == pytest.approx(alone.train().train_loss[0], rel=1e-6)

    models = [sloped(3, 0.5), sloped(3, 1.0)]
    batch = (torch.ones(2, 3), torch.ones(2))
    with pytest.raises(SpecError, match=r"they differ in 1\.slope; train them sep"):
        train(models, [lambda step: batch] * 2, {"MAX_ITER": 2})


def test_a_pack_of_one_config_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is neither walked through nor, if it is the library's, evaluated once more."""
    called: list[str] = []
    for name in ("signature", "check_layers"):
        function = getattr(assembling, name)
        noting = partial(_noting, called, name, function)
        monkeypatch.setattr(assembling, name, noting)
    stacks(small({}))
    assert called == []
    stacks(small({}, MODEL=sloped, slope=0.5))
    assert called == ["check_layers"]
    stacks(small({"LR": [0.1, 0.2]}))
    assert called == ["check_layers", "signature", "signature"]


def _noting(called: list[str], name: str, function: Any, *arguments: Any, **named: Any) -> Any:
    called.append(name)
    return function(*arguments, **named)


def test_grabs_get_a_generator_and_a_batch_size_of_their_own() -> None:
    def drawn(gen: torch.Generator, bsz: int) -> torch.Tensor:
        return torch.randn(2, generator=gen) + bsz

    axes = {"trial": range(2)}
    one, two = (stacks(small(axes, grabs={"drawn": drawn}))[0].train().grabs for _ in range(2))
    np.testing.assert_array_equal(one["drawn"], two["drawn"])
    assert (one["drawn"][0] != one["drawn"][1]).all()
    assert (abs(one["drawn"] - 6) < 5).all()


class Backwards(nn.Module):
    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.out = nn.Linear(4, 1)
        self.inp = nn.Linear(d_in, 4)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.out(self.inp(X))


def ragged(bsz: int, gen: torch.Generator) -> Any:
    raise IndexError("no such sample")


def test_models_get_what_they_declare() -> None:
    made = []

    def convolutional(input_shape: Any, d_out: int, width: int, channels: int) -> nn.Module:
        made.append((input_shape, d_out, width, channels))
        inner = nn.Conv2d(input_shape[0], channels, 3)
        return nn.Sequential(inner, nn.ReLU(), nn.Flatten(), nn.Linear(channels * 4, d_out))

    def pictures(bsz: int, gen: torch.Generator) -> Any:
        return lambda step: (torch.randn(bsz, 2, 4, 4, generator=gen), torch.ones(bsz, 3))

    (stack,) = stacks(small({"channels": [5]}, MODEL=convolutional, batchfn=pictures))
    assert made == [((2, 4, 4), 3, 4, 5)] * 2  # whether it makes a new one each time
    assert np.isfinite(stack.train().train_loss).all()


def test_initial_weights_under_sp_follow_from_seed_and_trial() -> None:
    one, two = (stacks(small({"trial": [0, 1]}, PARAMETRIZATION="sp"))[0].models for _ in range(2))
    assert torch.equal(one[0].input_layer.weight, two[0].input_layer.weight)
    assert not torch.equal(one[0].input_layer.weight, one[1].input_layer.weight)


def test_named_grabs_with_arguments_and_on_a_gram_matrix() -> None:
    def corner(W: torch.Tensor, i: int = 0) -> torch.Tensor:
        return W[i, i].clone()

    sweep = small(
        {},
        grabs={"corner": corner},
        OTHER_MODEL_GRABS={"gram": "readin_gram", "trace": "readin_gram_trace"},
        OTHER_MODEL_KWARGS={"gram": {"side": "output"}, "corner": {"i": 1}},
        OTHER_MODEL_GRAM={"corner": True},
    )
    (stack,) = stacks(sweep)
    grabs = stack.train().grabs
    weight = stack.models[0].input_layer.weight.detach()
    np.testing.assert_allclose(grabs["gram"][0], weight @ weight.T, rtol=1e-5)
    np.testing.assert_allclose(grabs["trace"][0], weight.square().sum(), rtol=1e-5)
    np.testing.assert_allclose(grabs["corner"][0], (weight.T @ weight)[1, 1], rtol=1e-5)


HELD, NORM = nn.Linear(3, 1), nn.BatchNorm1d(3, affine=False)


def with_weight(weight: torch.Tensor) -> nn.Module:
    network = nn.Linear(3, 1)
    network.weight = nn.Parameter(weight.detach())
    return network


def stepless() -> None:
    raise AssertionError("is not called")


def reading(A: Any, bsz: int, gen: Any) -> Any:
    raise AssertionError("only workers have A")


def test_classes_that_only_workers_see_may_be_counted_on_a_zipped_axis() -> None:
    zipped: Any = {("LOSS", "D_OUT"): [("mse", 1), ("cross_entropy", 3)]}
    probe(small(zipped, data=lambda gen: {}, batchfn=reading))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LOSS": "cross_entropy"}, "D_OUT: not set, and LOSS='cross_entropy' with class labels"),
        ({"MODEL": lambda d_in: "a model"}, "returned str; should be an nn.Module"),
        ({"MODEL": lambda: HELD}, "MODEL <lambda>: returns the same weight each time that it is"),
        ({"MODEL": lambda: nn.Sequential(HELD, nn.Linear(1, 1))}, "the same 0.weight each time"),
        ({"MODEL": lambda: with_weight(HELD.weight)}, "return a copy: copy.deepcopy(module), or"),
        ({"MODEL": lambda: nn.Sequential(NORM, nn.Linear(3, 1))}, "the same 0.running_mean each"),
        ({"OTHER_MODEL_GRABS": {"t": "readin_gram_trase"}}, "readin_gram_trace"),
        ({"OTHER_MODEL_KWARGS": {"t": {"i": 1}}}, "OTHER_MODEL_KWARGS: no grab is called 't'"),
        ({"OTHER_MODEL_GRAM": {"t": True}}, "OTHER_MODEL_GRAM: no grab is called 't'"),
        ({"OPTIMIZER": "Adma"}, "torch.optim has no optimizer 'Adma'"),
        ({"MODEL": Backwards}, "defined in the order out, inp, but the signal passes inp, out"),
        ({"batchfn": ragged}, "a function of the spec raised IndexError: no such sample at "),
        ({"grabs": {"g": lambda modle: 0}}, "grab 'g' needs 'modle' (did you mean 'model'?)"),
        (
            {"batchfn": lambda bsz, gen: stepless},
            "batchfn <lambda>: returned stepless(), which does not take step; it should be a "
            "function of the step, as in lambda step: (X, y)",
        ),
    ],
)
def test_errors_show_in_the_probe(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        probe(small({}, **settings))


def test_a_model_may_copy_what_it_holds_and_share_what_no_training_changes() -> None:
    before, frozen = copy.deepcopy(HELD.state_dict()), nn.Linear(3, 3).requires_grad_(False)

    def network() -> nn.Module:
        draws = np.random.rand(1)[0]  # another build draws nothing from these
        return nn.Sequential(frozen, copy.deepcopy(HELD), nn.Linear(1, 1, bias=draws < 2))

    np.random.seed(0)
    drawn = []
    for _ in range(2):
        (stack,) = stacks(small({}, MODEL=network, PARAMETRIZATION="sp", CENTERED=False))
        drawn.append(np.random.get_state()[2])
    assert drawn[1] == 2 * drawn[0] == 4
    assert np.isfinite(stack.train().train_loss).all()
    assert all(torch.equal(HELD.state_dict()[name], value) for name, value in before.items())


@pytest.mark.slow
def test_the_probe_looks_at_every_optimizer_of_an_axis() -> None:
    probe(small({"OPTIMIZER": ["sgd", "Adagrad"]}, PARAMETRIZATION="sp"))
    with pytest.raises(SpecError, match="has no optimizer 'NoSuch'"):
        probe(small({"OPTIMIZER": ["sgd", "NoSuch"]}))


def test_the_probe_warns_of_every_combination_without_a_theory() -> None:
    with pytest.warns(UserWarning, match="OPTIMIZER=Adagrad") as caught:
        probe(small({"OPTIMIZER": ["sgd", "Adagrad"], "trial": range(3)}))
    assert len({str(one.message) for one in caught}) == 1
    decays = {"LR": [0.1, 0.2], "WEIGHT_DECAY": [0.0, 0.1, 0.2]}
    with pytest.warns(UserWarning, match="WEIGHT_DECAY with OPTIMIZER=adam: a penalty") as caught:
        probe(small({"OPTIMIZER": ["sgd", "adam"], **decays}))
    assert len(caught) == 1
    zipped = {("OPTIMIZER", "WEIGHT_DECAY"): [("adam", 0.0), ("adamw", 0.1)]}
    probe(small(zipped))


def test_the_probe_draws_few_samples_and_trains_no_wide_network() -> None:
    drawn = []

    def counted(bsz: int, gen: torch.Generator) -> Any:
        drawn.append(bsz)
        return gaussian(bsz, gen)

    probe(small({"WIDTH": [16384]}, N_SAMPLES=10**6, batchfn=counted))
    assert set(drawn) == {4096, 32}
    assert drawn.count(4096) == 1


def test_data_functions_get_datasethps_settings_and_axes() -> None:
    def spectrum(d: int, alpha: float, n_train: int, scale: float = 1.0) -> Any:
        raise AssertionError("data functions run on workers only")

    sweep = small({"alpha": [1.0, 2.0]}, data=spectrum, DATASETHPS={"d": 7}, N_TRAIN=9)
    arguments = [data_arguments(sweep, config) for config in sweep]
    assert arguments == [{"d": 7, "alpha": a, "n_train": 9} for a in (1.0, 2.0)]
    probe(sweep)

    with pytest.raises(SpecError, match="spectrum needs 'd'"):
        probe(small({"alpha": [1.0]}, data=spectrum))


def test_functions_get_no_settings_of_how_a_sweep_is_computed() -> None:
    """Results are reused whatever these are."""
    seen: list[dict[str, Any]] = []

    def everything(**given: Any) -> Any:
        seen.append(given)
        return gaussian(given["bsz"], given["gen"])

    def declares(bsz: int, gen: torch.Generator, num_trials: int, verbose: str = "mine") -> Any:
        seen.append(locals())
        return gaussian(bsz, gen)

    stacks(small({}, batchfn=everything, VERBOSE=True, PACK_SIZE=3, NUM_TRIALS=1))
    outside = {"verbose", "pack_size", "keep_state", "checkpoint_minutes", "devices", "compile"}
    assert not seen[0].keys() & (outside | {"num_trials", "target_monomials"})
    assert {"lr", "n_samples", "seed"} <= seen[0].keys()
    seen.clear()
    stacks(small({}, batchfn=declares, VERBOSE=True, NUM_TRIALS=2))
    assert {(one["num_trials"], one["verbose"]) for one in seen} == {(2, "mine")}
    with pytest.raises(SpecError, match="needs 'pack_size'; give the argument in the spec"):
        stacks(small({}, batchfn=lambda pack_size: None))


class Routed(nn.Module):
    """Three layers, and what may be wrong about the last one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.d = nn.Linear(4, 1) if kind in ("unused", "two heads") else None

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(X).relu()).relu()
        if self.kind == "weight alone":
            return nn.functional.linear(h, self.c.weight, self.c.bias)
        output = self.c(h)
        if self.d is not None and self.kind == "two heads":
            output = output + self.d(h)
        return output.tanh() if self.kind == "nonlinear" else output


@pytest.mark.parametrize(
    ("kind", "mup", "gamma"),
    [
        ("plain", "", ""),
        ("unused", "does not pass its layer d, which is defined last", "does not pass its layer d"),
        ("weight alone", "not pass its layer c, which is defined last", "not pass its layer c"),
        ("two heads", "", "GAMMA divides the output of its last layer d, to which its own output"),
        ("nonlinear", "", "GAMMA divides the output of its last layer c, to which its own output"),
    ],
)
def test_what_is_scaled_as_the_output_is_the_output(kind: str, mup: str, gamma: str) -> None:
    def said(axes: dict[str, Any], **settings: Any) -> str:
        try:
            probe(small(axes, MODEL=Routed, kind=kind, **settings))
        except SpecError as error:
            return str(error)
        return ""

    own = {"PARAMETRIZATION": "sp"}
    for axes, settings, wanted in (
        ({}, {}, mup),
        ({}, own, ""),
        ({"GAMMA": [1, 2]}, {}, gamma),
        ({"GAMMA": [1, 2]}, own, gamma),
        ({"GAMMA": [1, 2]}, {"PARAMETRIZATION": lambda model, optimizer: None}, gamma),
        ({"GAMMA": [1, 2]}, {"PARAMETRIZATION": lambda model, optimizer, gamma: None}, ""),
    ):
        found = said(axes, **settings)
        assert (wanted in found) if wanted else not found, (axes, settings, found)


def test_a_training_set_that_is_returned_as_the_test_set_is_told() -> None:
    X = torch.randn(6, 3)

    def same(X_train: Any) -> Any:
        return lambda step: (X_train, X_train[:, 0])

    def other(X_train: Any, split: str) -> Any:
        return lambda step: (X_train, X_train[:, 0] + (split == "test"))

    with pytest.warns(UserWarning, match="batchfn same: its test set is its training set, and so"):
        stacks(small({}, batchfn=same, ONLINE=False), {"X_train": X})
    stacks(small({}, batchfn=other, ONLINE=False), {"X_train": X})
    stacks(small({}, batchfn=same, EVAL_EVERY=2), {"X_train": X})  # the population

    def three(X_train: Any, split: str) -> Any:
        more = (1,) if split == "test" else ()
        return lambda step: (X_train, X_train[:, 0], *more)

    (stack,) = stacks(small({}, batchfn=three, ONLINE=False), {"X_train": X})
    with pytest.raises(BatchError, match=r"returned 3 values; expected a pair \(X, y\)"):
        stack.train()
