"""Sweeps: axes times settings, what the command line overrides, and every error in words."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import operator
import re
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpsubmit.batchfns
import mlpsubmit.grabs
from mlpsubmit import Monomial, SpecError, Sweep
from mlpsubmit.spec.product import Axis, Product

unhurried = settings(deadline=None)  # cores may be shared


def batches(bsz, gen, noise=0.0, monomials=None, trial=0, X=None, y=None):
    raise NotImplementedError  # a spec is read without being run


def spectrum(d, alpha=1.0, offset=6.0):
    raise NotImplementedError


def trace(model, X_tr, side="input", **kwargs):
    raise NotImplementedError


def make(axes=None, **further):
    return Sweep(axes=axes, **{"batchfn": batches, **further})


def points(sweep):
    return [config.point for config in sweep]


def errors_of(function, *arguments, **named):
    with pytest.raises(SpecError) as caught:
        function(*arguments, **named)
    return caught.value.errors


def only(errors):
    (message,) = errors
    return message


# ---- the product ---------------------------------------------------------------------------------


def test_the_last_axis_varies_fastest():
    sweep = make({"WIDTH": [4, 8], "LR": [0.1, 0.2, 0.3]})
    assert len(sweep) == 6
    assert points(sweep) == [
        {"width": width, "lr": lr} for width in (4, 8) for lr in (0.1, 0.2, 0.3)
    ]
    assert sweep.product.shape == (2, 3)
    assert repr(sweep) == "Sweep('sweep', width[2] x lr[3], 6 configs)"


def test_a_sweep_without_axes_is_one_config():
    sweep = make(WIDTH=4)
    assert len(sweep) == 1
    assert points(sweep) == [{}]
    assert sweep.config(0).width == 4
    assert repr(sweep) == "Sweep('sweep', one config)"


VALUES = {
    "width": st.integers(1, 10**6),
    "lr": st.floats(1e-6, 10),
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
    "trial": st.integers(0, 10**6),
    "noise": st.one_of(st.integers(), st.text(max_size=3), st.tuples(st.booleans())),
}


@st.composite
def products(draw):
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    return {
        name: draw(st.lists(VALUES[name], min_size=1, max_size=4, unique_by=repr)) for name in names
    }


@unhurried
@given(products())
def test_indices_count_the_points_of_the_product(axes):
    sweep = make(axes)
    expected = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    assert points(sweep) == expected
    assert [config.index for config in sweep] == list(range(len(expected)))
    assert len(sweep) == sweep.product.size == len(expected)
    for index in (0, len(expected) // 2, len(expected) - 1):
        assert sweep.config(index).point == expected[index]
        assert sweep.config(np.int64(index)).point == expected[index]


@unhurried
@given(st.lists(st.integers(1, 4), max_size=4))
def test_index_arithmetic_agrees_with_numpy(shape):
    axes = [Axis((f"x{n}",), tuple((k,) for k in range(size))) for n, size in enumerate(shape)]
    product = Product(tuple(axes))
    points = [tuple(product.point(i).values()) for i in range(product.size)]
    assert points == list(np.ndindex(*shape)) == [tuple(p.values()) for p in product.points()]


@pytest.mark.parametrize("index", [-1, 4])
def test_there_is_no_config_outside_of_the_product(index):
    with pytest.raises(IndexError, match=f"config {index}: the product has 4 points"):
        make({"trial": range(4)}).config(index)


def test_a_tuple_of_names_zips():
    sweep = make({("WIDTH", "LR"): [(64, 0.1), (256, 0.03)], "trial": range(2)})
    assert points(sweep) == [
        {"width": width, "lr": lr, "trial": trial}
        for width, lr in [(64, 0.1), (256, 0.03)]
        for trial in (0, 1)
    ]
    assert sweep.product.axes[0].dimension == "width_lr"
    assert sweep.product.axes[0].values("lr") == (0.1, 0.03)


def test_where_leaves_points_out_and_keeps_their_indices():
    sweep = make(
        {"WIDTH": [4, 8, 16], "LR": [0.1, 0.2]}, where=lambda c: c["Width"] * c.LR < 2, SEED=3
    )
    assert [config.index for config in sweep] == [0, 1, 2, 3, 4]
    assert sweep.included.tolist() == [True] * 5 + [False]
    assert (len(sweep), sweep.product.size) == (5, 6)
    assert sweep.config(5).point == {"width": 16, "lr": 0.2}


def test_where_sees_every_setting():
    sweep = make(
        {"trial": range(4)}, noise=0.5, where=lambda c: c.noise == 0.5 and c.trial < c.DEPTH
    )
    assert [config.trial for config in sweep] == [0, 1]


def test_values_of_an_axis_may_come_from_any_iterable():
    wanted = [{"width": 4}, {"width": 8}]
    for values in (
        [4, 8],
        (4, 8),
        range(4, 9, 4),
        np.array([4, 8]),
        torch.tensor([4, 8]),
        {4: 0, 8: 0}.keys(),
    ):
        assert points(make({"WIDTH": values})) == wanted
    zipped = make({("WIDTH", "LR"): zip([4, 8], [0.1, 0.2], strict=True)}, N_SAMPLES=iter([2, 3]))
    assert len(zipped) == 4
    assert points(zipped.overridden({"DEPTH": 3})) == points(zipped)


def test_values_are_read_as_what_they_mean():
    sweep = make(
        {"WIDTH": [4.0], "ONLINE": ["False"], "trial": [np.int64(2)], "noise": [np.float32(0.5)]}
    )
    (point,) = points(sweep)
    assert point == {"width": 4, "online": False, "trial": 2, "noise": 0.5}
    assert [type(value) for value in point.values()] == [int, bool, int, float]


# ---- settings that mean axes ---------------------------------------------------------------------


def test_lists_of_mlpscape_become_axes_in_a_fixed_order():
    sweep = make(
        {"LR": [0.1]}, TARGET_MONOMIALS=[{0: 1}, "$x_{1}^2$"], NUM_TRIALS=2, N_SAMPLES=[8, 16]
    )
    assert [axis.names for axis in sweep.product.axes] == [
        ("lr",),
        ("n_samples",),
        ("trial",),
        ("monomials",),
    ]
    assert points(sweep)[1] == {
        "lr": 0.1,
        "n_samples": 8,
        "trial": 0,
        "monomials": Monomial({1: 2}),
    }
    assert sweep.product.shape == (1, 2, 2, 2)


def test_single_values_of_them_fix_or_make_an_axis_of_one():
    sweep = make(N_SAMPLES=8, TARGET_MONOMIALS=Monomial({0: 2}))
    assert points(sweep) == [{"monomials": Monomial({0: 2})}]
    assert sweep.config(0).n_samples == 8
    assert sweep.config(0).trial == 0


@pytest.mark.parametrize("name", ["monomials", "MONOMIALS", "TARGET_MONOMIALS", "targetmonomials"])
def test_monomials_are_one_axis_however_they_are_given(name):
    (point,) = points(make({name: [[{0: 1}, {1: 1}]]}))
    assert point == {"monomials": (Monomial({0: 1}), Monomial({1: 1}))}


def test_trials_are_one_axis_however_they_are_given():
    wanted = [{"trial": 0}, {"trial": 1}]
    assert points(make({"TRIAL": [0, 1]})) == points(make(num_trials=2)) == wanted


def test_one_trial_alone_can_be_fixed():
    config = make(trial=3).config(0)
    assert (config.trial, config["trial"], config["TRIAL"]) == (3, 3, 3)


# ---- arguments of functions ----------------------------------------------------------------------


def test_arguments_of_every_function_can_be_fixed_or_an_axis():
    functions = {"data": spectrum, "grabs": {"trace": trace}}
    fixed = make(**functions, noise=0.5, d=10, side="output")
    assert fixed.arguments == {"noise": 0.5, "d": 10, "side": "output"}
    assert {name: fixed.config(0)[name] for name in fixed.arguments} == fixed.arguments
    swept = make({"noise": [0.5], "d": [10], "side": ["output"]}, **functions)
    assert swept.config(0).point == fixed.arguments
    assert dict(swept.config(0)) == dict(fixed.config(0))


def test_arguments_of_the_model_count_too():
    def network(d_in, width, dropout=0.0):
        raise NotImplementedError

    assert make({"dropout": [0.1]}, MODEL=network).config(0).dropout == 0.1


def test_axes_may_be_arguments_of_a_loss_a_parametrization_or_a_model_alone():
    def focal(output, y, focus=1.0):
        raise NotImplementedError

    def scaled(net, opt, *, scale):
        raise NotImplementedError

    def deep(d_in, blocks):
        raise NotImplementedError

    for name, function in {"LOSS": focal, "PARAMETRIZATION": scaled, "MODEL": deep}.items():
        (argument,) = {"focus", "scale", "blocks"} & set(inspect.signature(function).parameters)
        plain = make(**{name: function, argument: 1.0})
        assert plain.arguments == {argument: 1.0}
        sweep = make({argument: [1.0, 2.0]}, **{name: function})
        assert [config[argument] for config in sweep] == [1.0, 2.0]
        assert len({config.key for config in sweep}) == 2
        assert sweep.config(0).key == plain.config(0).key
        # Also where the functions themselves are on an axis, zipped or not.
        assert len(make({name: [function], argument: [1.0, 2.0]})) == 2
        assert len(make({(name, argument): [(function, 1.0), (function, 2.0)]})) == 2

    for first in ("output", "y", "opt"):  # what both are always given
        wanted = f"{first}: functions get this argument from the training, so it cannot be set; "
        assert wanted in only(errors_of(make, LOSS=focal, **{first: 2.0}))
    assert "neither a hyper" in only(errors_of(make, LOSS=focal, net=2.0))
    assert make(LOSS=torch.dist).base.loss is torch.dist  # a built-in has no signature to read


def test_what_the_train_loop_supplies_is_no_argument_of_the_spec():
    for name in ("gen", "X_tr", "bsz", "step"):
        wanted = f"{name}: functions get this argument from the training, so it cannot be set; "
        assert wanted in only(errors_of(make, **{name: 1}))


def test_a_function_may_declare_a_hyperparameter_in_another_spelling():
    def grab(model, WIDTH, nsamples=None):
        raise NotImplementedError

    sweep = make({"WIDTH": [4]}, grabs={"g": grab}, N_SAMPLES=16)
    config = sweep.config(0)
    assert sweep.arguments == {}
    assert (config.hyperparameters.width, config.hyperparameters.n_samples) == (4, 16)
    assert (config.settings["WIDTH"], config.settings["nsamples"]) == (4, 16)


def test_arguments_bound_in_a_partial_are_arguments():
    sweep = make(data=functools.partial(spectrum, d=10), alpha=3)
    assert sweep.config(0).alpha == 3


# ---- configs -------------------------------------------------------------------------------------


def test_a_config_is_a_mapping_of_all_settings():
    config = make({"WIDTH": [4]}, noise=0.5, LR=0.1).config(0)
    assert config["WIDTH"] == config["width"] == config.Width == config.width == 4
    assert config.noise == config["noise"] == 0.5
    assert config.get("N_TRAIN") == 4000
    assert "max_iter" in config
    assert set(config) >= {"width", "lr", "noise", "trial", "max_iter"}
    assert len(config) == len(dict(config))
    assert repr(config) == "Config(width=4)"


def test_a_config_says_which_setting_it_lacks():
    config = make(WIDTH=4).config(0)
    with pytest.raises(KeyError, match=r"widht: no such setting \(did you mean 'width'\?\)"):
        config["widht"]
    with pytest.raises(AttributeError, match=r"widht: no such setting \(did you mean 'width'\?\)"):
        _ = config.widht
    assert not hasattr(config, "_private")


def test_hyperparameters_of_a_config_have_its_values():
    sweep = make({"WIDTH": [4, 8], "noise": [0.5], ("LR", "trial"): [(0.1, 1)]}, GAMMA=2)
    hyperparameters = sweep.config(1).hyperparameters
    assert (hyperparameters.width, hyperparameters.lr, hyperparameters.gamma) == (8, 0.1, 2.0)
    assert sweep.config(0).trial == 1


def test_a_config_can_be_had_with_other_settings():
    config = make({"WIDTH": [4]}, LR=0.5).config(0)
    other = config.replaced(width=8, lr=0.1)
    assert (other.width, other.hyperparameters.width, other.hyperparameters.lr) == (8, 8, 0.1)
    assert config.width == 4


# ---- overrides -----------------------------------------------------------------------------------


def test_an_override_replaces_a_setting_in_any_spelling():
    sweep = make(lr=0.5, N_TEST=7).overridden({"LR": 0.1, "ntest": 8})
    assert (sweep.base.lr, sweep.base.n_test) == (0.1, 8)


def test_an_override_replaces_an_axis():
    sweep = make({"WIDTH": [4, 8], "LR": [0.1, 0.2]})
    assert points(sweep.overridden({"width": 16})) == [{"lr": 0.1}, {"lr": 0.2}]
    assert sweep.overridden({"width": 16}).base.width == 16
    replaced = sweep.overridden({"width": [2, 3], "lr": 0.1})
    assert points(replaced) == [{"width": 2}, {"width": 3}]


def test_what_changes_the_arithmetic_alone_makes_another_sweep_of_the_same_configs():
    plain = make({"WIDTH": [4, 8]})
    for setting in ({"COMPILE": False}, {"PACK_SIZE": 1}):
        other = make({"WIDTH": [4, 8]}, **setting)
        assert other.fingerprint != plain.fingerprint
        assert [config.key for config in other] == [config.key for config in plain]


def test_the_sweep_itself_stays_as_it_is():
    sweep = make({"WIDTH": [4, 8]}, datasethps={"d": 3}, data=spectrum)
    before = sweep.fingerprint
    sweep.overridden({"WIDTH": 2, "d": [4, 5]})
    assert points(sweep) == [{"width": 4}, {"width": 8}]
    assert make({"WIDTH": [4, 8]}, datasethps={"d": 3}, data=spectrum).fingerprint == before


def test_sweeps_and_configs_are_immutable():
    sweep = make({"WIDTH": [4, 8]})
    with pytest.raises(AttributeError, match="cannot assign to field 'name'"):
        sweep.name = "other"
    config = sweep.config(0)
    text = "width: a config is immutable; use config.replaced(width=...)"
    with pytest.raises(AttributeError, match=re.escape(text)):
        config.width = 3
    assert copy.copy(config).width == 4


def test_a_refreshed_sweep_counts_what_its_functions_use_now():
    factor, most = [2], [8]

    def scaled(bsz, gen):
        return factor

    sweep = make({"WIDTH": [4, 8]}, batchfn=scaled, where=lambda c: c.width <= most[0])
    before, key = sweep.fingerprint, sweep.config(0).key
    assert (sweep.refreshed().fingerprint, len(sweep.refreshed())) == (before, 2)
    factor[0], most[0] = 3, 4
    assert sweep.fingerprint == before
    again = sweep.refreshed()
    assert again.fingerprint != before
    assert again.config(0).key != key
    assert (len(sweep), len(again)) == (2, 1)


def test_a_refreshed_sweep_keeps_what_overrides_replaced():
    sweep = make(data=functools.partial(spectrum, d=3)).overridden({"d": 5})
    assert sweep.refreshed().config(0).d == 5


def test_a_list_makes_an_axis():
    sweep = make(WIDTH=4, data=spectrum, d=3)
    assert points(sweep.overridden({"WIDTH": [4, 8]})) == [{"width": 4}, {"width": 8}]
    assert points(sweep.overridden({"d": [1, 2]})) == [{"d": 1}, {"d": 2}]
    assert points(sweep.overridden({"trial": [5, 6]})) == [{"trial": 5}, {"trial": 6}]
    assert points(sweep.overridden({"LOSS": ["mse", "cross_entropy"]})) == [
        {"loss": "mse"},
        {"loss": "cross_entropy"},
    ]


@pytest.mark.parametrize(
    ("name", "one", "read"),
    [
        ("LOSS_CHECKPOINTS", [0.3, 0.2], (0.3, 0.2)),
        ("LOSS_CHECKPOINTS", [], ()),
        ("BETAS", [0.5, 0.6], (0.5, 0.6)),
    ],
)
def test_a_list_that_is_one_value_stays_one_and_a_list_of_them_is_an_axis(name, one, read):
    sweep = make(trial=0, OPTIMIZER="adam")
    config = sweep.overridden({name: one}).config(0)
    assert (config.point, config[name]) == ({}, read)
    if one:
        assert points(sweep.overridden({name: [one, [0.1, 0.15]]}))[0] == {name.lower(): read}


def test_settings_that_mean_axes_can_be_overridden():
    sweep = make(N_SAMPLES=[8, 16], NUM_TRIALS=3, TARGET_MONOMIALS=[{0: 1}])
    assert sweep.overridden({"N_SAMPLES": 4}).product.shape == (3, 1)
    assert sweep.overridden({"N_SAMPLES": [4]}).config(0).n_samples == 4
    assert sweep.overridden({"NUM_TRIALS": 5}).product.size == 10
    assert sweep.overridden({"trial": [2]}).product.shape == (1, 2, 1)
    assert sweep.overridden({"trial": [2]}).config(0).trial == 2
    more = sweep.overridden({"TARGET_MONOMIALS": ["$x_{3}$", "$x_{4}$"]})
    assert {config.monomials for config in more} == {Monomial({3: 1}), Monomial({4: 1})}
    assert sweep.overridden({"monomials": ["$x_{3}$"]}).config(0).monomials == {3: 1}


def test_an_override_reaches_into_datasethps():
    sweep = make(data=spectrum, datasethps={"d": 3, "alpha": 2})
    fixed = sweep.overridden({"d": 5})
    assert (fixed.base.datasethps, fixed.arguments) == ({"alpha": 2}, {"d": 5})
    assert points(sweep.overridden({"d": [5, 6]})) == [{"d": 5}, {"d": 6}]


def test_an_override_beats_what_a_partial_binds():
    sweep = make(data=functools.partial(spectrum, d=3, alpha=2))
    assert sweep.overridden({"alpha": 1}).config(0).alpha == 1
    swept = sweep.overridden({"alpha": [1, 2]})
    assert points(swept) == [{"alpha": 1}, {"alpha": 2}]
    assert points(swept.overridden({"LR": 0.1})) == points(swept)


def test_one_kind_of_threshold_replaces_the_other():
    config = make().overridden({"PERCENT_THRESHOLDS": [0.5]}).config(0)
    assert config.hyperparameters.thresholds == (0.5,)


def test_overrides_keep_where_and_the_functions():
    sweep = make({"WIDTH": [4, 8]}, name="a", where=lambda c: c.width < 8, grabs={"t": trace})
    other = sweep.overridden({"WIDTH": [2, 9]})
    assert points(other) == [{"width": 2}]
    assert (other.name, other.batchfn, other.grabs) == ("a", batches, {"t": trace})


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            {"WIDHT": 3},
            "WIDHT: neither a hyperparameter nor an argument that a function of the spec declares "
            "(did you mean 'width'?)",
        ),
        (
            {"GAMMA": 3},
            "gamma: is part of the zipped axis (GAMMA, DEPTH); change that axis in the spec",
        ),
        ({"LR": 0.1, "lr": 0.2}, "lr: is given twice; keep one"),
        ({"WIDTH": []}, "axis width: has no values; give at least one or leave it out"),
        (
            {"NUM_TRIALS": [1, 2]},
            "axis num_trials: no result depends on NUM_TRIALS; give it as one value",
        ),
    ],
)
def test_a_bad_override_is_refused(overrides, text):
    sweep = make({"WIDTH": [4, 8], ("GAMMA", "DEPTH"): [(1, 2)]})
    assert errors_of(sweep.overridden, overrides) == [text]


@pytest.mark.parametrize("spec", [{"axes": {"trial": range(3)}}, {"NUM_TRIALS": 3}])
def test_one_trial_or_their_number_is_not_guessed(spec):
    sweep = make(**spec)
    assert errors_of(sweep.overridden, {"trial": 5}) == [
        "trial: got 5, and trial is an axis; write NUM_TRIALS=5 for that many trials, or trial=[5] "
        "for trial number 5 alone"
    ]
    assert len(sweep.overridden({"NUM_TRIALS": 5})) == 5
    assert points(sweep.overridden({"trial": [5]})) == [{"trial": 5}]
    assert sweep.overridden({"trial": 0}).config(0).trial == 0  # there are never 0 trials
    assert "should be an integer" in only(errors_of(sweep.overridden, {"trial": "five"}))
    # Of other axes one value is that value, and without the axis there is one trial.
    assert len(make({"WIDTH": [4, 8]}).overridden({"WIDTH": 16})) == 1
    assert make().overridden({"trial": 5}).config(0).trial == 5


@pytest.mark.parametrize("values", [[()], [], 3])
def test_an_axis_needs_a_name(values):
    errors = errors_of(make, {(): values, "WIDTH": [4, "x"]})
    assert errors[0] == (
        f"axis (): got {values} without a name; a zipped axis has names, as in "
        "('WIDTH', 'LR'): [(64, 0.1), (256, 0.03)]"
    )
    assert len(errors) == 2


def test_all_bad_overrides_are_listed_at_once():
    sweep = make({("GAMMA", "DEPTH"): [(1, 2)]})
    assert len(errors_of(sweep.overridden, {"WIDHT": 3, "DEPTH": 3, "lr": 1, "LR": 2})) == 3


# ---- errors ------------------------------------------------------------------------------------


class Lock:
    """An object without a content."""

    def __init__(self):
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        (
            {"WIDHT": [4]},
            "WIDHT: neither a hyperparameter nor an argument that a function of the spec declares "
            "(did you mean 'width'?)",
        ),
        ({"nois": [4]}, "(did you mean 'noise'?)"),
        ({"axis": [4]}, "(here it is axes=)"),
        ({"batch_fn": [4]}, "(here it is batchfn=)"),
        ({3: [4]}, "axis 3: a name should be a string"),
        ({"WIDTH": []}, "axis WIDTH: has no values; give at least one or leave it out"),
        ({"WIDTH": 4}, "axis WIDTH: got 4; should be a list of values, as in [4]"),
        (
            {"trial": 2},
            "axis trial: got 2; should be a list of values: for 2 trials range(2), or NUM_TRIALS=2 "
            "instead of the axis",
        ),
        ({"noise": "ab"}, "axis noise: got 'ab'; should be a list of values"),
        ({"noise": {"a": 1}}, "axis noise: got {'a': 1}; should be a list of values"),
        ({"noise": {1}}, "axis noise: got {1}; should be a list of values"),
        ({"noise": np.array(3)}, "axis noise: got array(3); should be a list of values"),
        (
            {"WIDTH": [4, 0]},
            "axis WIDTH: WIDTH: got 0; should be an integer >= 1 (units of each hidden layer)",
        ),
        ({"trial": [0, -1]}, "axis trial: got -1; should be an integer >= 0"),
        ({"monomials": ["x0"]}, "axis monomials: got 'x0'; no monomial: 'x0' at position 0"),
        ({"WIDTH": [4, 8, 4]}, "axis WIDTH: the value 4 appears more than once; keep one"),
        ({"WIDTH": [4, 4.0]}, "axis WIDTH: the value 4 appears more than once; keep one"),
        ({"LOSS": ["mse", "MSE"]}, "axis LOSS: the value 'mse' appears more than once; keep one"),
        ({"noise": [{"a": 1}, {"a": 1}]}, "the value {'a': 1} appears more than once"),
        ({"noise": [[1, 2], [1, 2]]}, "the value [1, 2] appears more than once"),
        ({"noise": [np.ones(2), np.ones(2)]}, "the value array([1., 1.]) appears more than once"),
        ({"noise": [torch.ones(2), torch.ones(2)]}, "the value tensor([1., 1.]) appears more than"),
        ({"noise": [lambda x: x, lambda x: x]}, "appears more than once; keep one"),
        ({"monomials": [{0: 1}, "$x_{0}$"]}, "the value $x_{0}$ appears more than once"),
        (
            {("WIDTH", "LR"): [(4, 0.1), (4, 0.1)]},
            "axis WIDTH, LR: the value (4, 0.1) appears more than once; keep one",
        ),
        (
            {("WIDTH", "LR"): [(4, 0.1), (8,)]},
            "axis WIDTH, LR: got (8,); each point of this zip should have 2 values",
        ),
        (
            {("WIDTH", "LR"): [4, 8]},
            "axis WIDTH, LR: got (4,); each point of this zip should have 2 values",
        ),
        ({"WIDTH": [4], "width": [8]}, "axis width: is given more than once; keep one"),
        (
            {"WIDTH": [4], ("LR", "WIDTH"): [(0.1, 8)]},
            "axis width: is given more than once; keep one",
        ),
        ({"VERBOSE": [True]}, "axis VERBOSE: no result depends on VERBOSE; give it as one value"),
        ({"noise": [Lock()]}, "axis noise: a value cannot be hashed by its content (cannot"),
    ],
)
def test_a_bad_axis_is_refused(axes, text):
    assert text in only(errors_of(make, axes))


def test_two_dimensions_of_one_name_are_refused():
    def batchfn(width_lr, bsz, gen):
        return lambda step: None

    axes = {("WIDTH", "LR"): [(4, 0.1), (8, 0.2)], "width_lr": [1, 2]}
    with pytest.raises(SpecError) as caught:
        Sweep(axes=axes, batchfn=batchfn)
    assert only(caught.value.errors) == (
        "axis (width, lr): its dimension in results would be width_lr, the name of another axis; "
        "change the order of its names, or rename an argument"
    )


@pytest.mark.parametrize(
    ("axes", "further", "text"),
    [
        (
            {"WIDTH": [4]},
            {"width": 8},
            "width: is an axis and also fixed to 8; keep one of the two",
        ),
        (
            {"noise": [4]},
            {"noise": 8},
            "noise: is an axis and also fixed to 8; keep one of the two",
        ),
        ({"trial": [4]}, {"NUM_TRIALS": 2}, "axis trial: is given more than once; keep one"),
        (
            {"n_samples": [4]},
            {"N_SAMPLES": [8]},
            "axis n_samples: is given more than once; keep one",
        ),
        (
            {"d": [4]},
            {"data": spectrum, "datasethps": {"d": 8}},
            "axis d: datasethps already fixes d; leave it out there or drop the axis",
        ),
        (
            {"d": [4]},
            {"data": functools.partial(spectrum, d=8)},
            "axis d: spectrum already fixes d; leave it out there or drop the axis",
        ),
        (
            {"PERCENT_THRESHOLDS": [None, [0.5]]},
            {},
            "at PERCENT_THRESHOLDS=(0.5,): got both of LOSS_CHECKPOINTS and PERCENT_THRESHOLDS; "
            "set exactly one of the two (an empty list where no threshold is wanted)",
        ),
        (
            {"MOMENTUM": [0.5, 0]},
            {"NESTEROV": True},
            "at MOMENTUM=0.0: NESTEROV needs MOMENTUM > 0; got MOMENTUM=0",
        ),
    ],
)
def test_an_axis_that_does_not_fit_the_rest_is_refused(axes, further, text):
    assert errors_of(make, axes, **further) == [text]


def test_kinds_of_thresholds_can_be_zipped():
    names = ("LOSS_CHECKPOINTS", "PERCENT_THRESHOLDS")
    sweep = make({names: [([0.1], None), (None, [0.5])]})
    assert [config.hyperparameters.thresholds for config in sweep] == [(0.1,), (0.5,)]


@pytest.mark.parametrize(
    ("further", "text"),
    [
        (
            {"WIDTH": [4, 8]},
            "WIDTH: got [4, 8]; should be an integer >= 1 (units of each hidden layer); "
            "to sweep over it, write axes={'WIDTH': [4, 8]}",
        ),
        (
            {"LOSS": torch.nn.CrossEntropyLoss},
            "LOSS: got the class CrossEntropyLoss; should be CrossEntropyLoss()",
        ),
        (
            {"LR_SCHEDULE": torch.optim.lr_scheduler.CosineAnnealingLR},
            "LR_SCHEDULE: got the class CosineAnnealingLR; should be a function of the step",
        ),
        (
            {"MODEL": torch.nn.Linear(3, 1)},
            "MODEL: got a module (Linear); should be a function that returns a new one each time",
        ),
        (
            {"batchfn": lambda bsz, step: (bsz, step)},
            "batchfn: <lambda> takes step, which only what it returns is given: a function of the",
        ),
        ({"GRAB_EVERY": [0, 1, 3]}, "GRAB_EVERY: got [0, 1, 3]; should be an integer >= 1, or "),
        ({"METRICS": ["acc"]}, "METRICS: got ['acc']; should be names ('accuracy', 'error', "),
        ({"BETAS": (0.9, 0.98)}, "BETAS: got (0.9, 0.98), which OPTIMIZER='sgd' does not use"),
        ({"NUM_TRIALS": 0}, "NUM_TRIALS: got 0; should be an integer >= 1"),
        ({"N_SAMPLES": []}, "axis n_samples: has no values; give at least one or leave it out"),
        ({"trial": -1}, "trial: got -1; should be an integer >= 0"),
        ({"monomials": "x0"}, "monomials: got 'x0'; no monomial: 'x0' at position 0"),
        (
            {"batchfn": None},
            "batchfn: missing; give the function that yields batches, for example "
            "batchfn=mlpsubmit.batchfns.polynomial",
        ),
        ({"batchfn": 3}, "batchfn: got 3; should be a function"),
        ({"data": {"X": 1}}, "data: got {'X': 1}; should be a function"),
        ({"where": True}, "where: got True; should be a function"),
        ({"grabs": {"a": 3}}, "grabs['a']: got 3; should be a function"),
        (
            {"batchfn": max},
            "max: its signature cannot be read, so its arguments cannot be matched by name; wrap "
            "it in a function that declares them",
        ),
        ({"name": ""}, "name: got ''; should be letters, digits, '.', '_' and '-', as in"),
        ({"name": "../x"}, "name: got '../x'; should be letters, digits, '.', '_' and '-', as in"),
        ({"name": ".x"}, "name: got '.x'; should be letters"),
        ({"name": 3}, "name: got 3; should be letters"),
    ],
)
def test_a_bad_setting_is_refused(further, text):
    message = only(errors_of(make, **further))
    assert text in message
    assert ("to sweep over it" in message) == ("to sweep over it" in text)


def test_a_message_is_told_once_however_many_names_it_concerns():
    text = only(errors_of(make, {"q": [1]}, batchfn=max, r=2))
    assert text.startswith("max: its signature cannot be read")


def test_where_should_leave_something():
    assert errors_of(make, {"trial": range(3)}, where=lambda c: False) == [
        "where: leaves none of the 3 points; check its condition against the axes"
    ]


def test_where_that_raises_says_where():
    text = only(errors_of(make, {"trial": range(3)}, where=lambda c: 1 / (c.trial - 2)))
    assert text == "where: raised ZeroDivisionError: division by zero at Config(trial=2)"
    text = only(errors_of(make, {"trial": [0]}, where=operator.itemgetter("widht")))
    assert "raised KeyError" in text
    assert "did you mean 'width'?" in text


def test_what_cannot_be_told_by_its_content_is_refused():
    lock = threading.Lock()

    def grab(model):
        return lock

    text = only(errors_of(lambda: make(grabs={"g": grab}).config(0).key))
    assert text.startswith("grab[g]: cannot be hashed by its content (cannot pickle")
    assert "no open files, locks or generators: make those inside a function" in text


def test_all_errors_are_listed_at_once():
    errors = errors_of(
        Sweep,
        "a b",
        {"WIDHT": [4], "LR": [], "DEPTH": [1, 1], "GAMMA": [0, -1]},
        data=3,
        MAX_ITER=0,
        N_SAMPLES=[0],
        NUM_TRIALS=0,
        colour="red",
    )
    starts = [
        "name: got 'a b'",
        "batchfn: missing",
        "data: got 3",
        "WIDHT: neither",
        "axis LR: has no values",
        "axis DEPTH: the value 1 appears more than once",
        "axis GAMMA: GAMMA: got 0",
        "axis GAMMA: GAMMA: got -1",
        "axis n_samples: N_SAMPLES: got 0",
        "colour: neither",
        "NUM_TRIALS: got 0",
        "MAX_ITER: got 0",
    ]
    assert [m[: len(s)] for m, s in zip(errors, starts, strict=True)] == starts


def test_named_grabs_that_are_not_there_are_listed_with_the_other_errors():
    with pytest.raises(SpecError) as caught:
        make(OTHER_MODEL_GRABS={"a": "readin_gram_trase", "b": 3, "c": "trace"}, WIDTH=0)
    first, second, third = caught.value.errors
    assert first.startswith(
        "OTHER_MODEL_GRABS['a']: no grab named 'readin_gram_trase' (did you mean "
        "'readin_gram_trace'?); valid are activation_kernel, "
    )
    assert second == ("OTHER_MODEL_GRABS['b']: got 3; should be a function, or the name of a grab")
    assert third.startswith("WIDTH: got 0")


# ---- what stands in the wrong place, or is fixed twice ------------------------------------------

LIBRARY = mlpsubmit.batchfns


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            lambda: {"data": LIBRARY.power_law, "batchfn": LIBRARY.polynomial},
            "data: got the function power_law itself; call it: data=power_law(...)",
        ),
        (
            lambda: {"data": LIBRARY.polynomial},
            "data: got the batch function polynomial; write batchfn=pol",
        ),
        (
            lambda: {"batchfn": LIBRARY.images("digits")},
            "batchfn: got the data recipe images(...); write it as data=, with a batch function "
            "that takes its entries, such as batchfn=sample",
        ),
        (
            lambda: {"batchfn": LIBRARY.arrays},
            "batchfn: got the function arrays itself; call it, if it returns a batch function or a "
            "data recipe: batchfn=arrays(...) or data=arrays(...)",
        ),
        (
            lambda: {"batchfn": LIBRARY.polynomial},
            "batchfn: polynomial needs the spectrum of its inputs, and there is no data=; write "
            "for example data=power_law(d=200, alpha=2.0)",
        ),
        (
            lambda: {"batchfn": LIBRARY.sample},
            "batchfn: sample draws rows of data entries, and there is no data=; write for example "
            "data=images('digits'), or batchfn=arrays(X, y) instead",
        ),
    ],
)
def test_library_functions_in_the_wrong_place(settings, text):
    assert [m for m in errors_of(make, **settings()) if m.startswith(text)]


def test_sample_may_be_given_arrays():
    make(batchfn=LIBRARY.sample, X_train=np.ones((3, 2)), y_train=np.ones(3))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"data": functools.partial(spectrum, d=8), "d": 6},
            "d: spectrum fixes it to 8, and the spec to 6; keep one of the two",
        ),
        (
            {"data": functools.partial(spectrum, d=8), "datasethps": {"d": 6}},
            "d: spectrum fixes it to 8, and the spec to 6; keep one of the two",
        ),
        (
            {"data": spectrum, "d": 8, "datasethps": {"d": 6}},
            "d: datasethps fixes it to 6, and the spec to 8; keep one of the two",
        ),
    ],
)
def test_a_value_that_is_fixed_twice_in_two_ways(settings, text):
    assert errors_of(make, **settings) == [text]


def test_a_value_that_is_fixed_twice_alike_or_replaced_from_outside_is_none():
    sweep = make(data=functools.partial(spectrum, d=8), d=8)
    assert sweep.overridden({"d": 5}).config(0).d == 5
    lone = make(data=functools.partial(spectrum, d=8))
    assert lone.overridden({"d": 5}).config(0).d == 5


def test_functions_may_fix_an_argument_each_in_its_own_way():
    def first(model, layer):
        return layer

    grabs = {str(layer): functools.partial(first, layer=layer) for layer in range(2)}
    assert len(make(grabs=grabs)) == 1


def test_schedules_on_axes_are_checked_at_every_point():
    def slow(step, power):
        return (1 + step) ** -power

    axes = {"LR_SCHEDULE": ["constant", slow, "cosine"], "WARMUP_STEPS": [0, 7], "power": [1, 2]}
    assert len(make(axes, MAX_ITER=8)) == 12
    text = "at LR_SCHEDULE='cosine', WARMUP_STEPS=7: WARMUP_STEPS=7 leaves no step of MAX_ITER=7"
    (message,) = errors_of(make, axes, MAX_ITER=7)
    assert message.startswith(text)
    text = "axis LR_FINAL_FACTOR: no LR_SCHEDULE of the spec uses LR_FINAL_FACTOR, so no result"
    for schedule in ("constant", slow):
        (message,) = errors_of(make, {"LR_FINAL_FACTOR": [0, 0.1]}, LR_SCHEDULE=schedule)
        assert message.startswith(text)
    assert len(make({"LR_FINAL_FACTOR": [0, 0.1]}, LR_SCHEDULE="Linear")) == 2


def test_errors_of_settings_that_do_not_fit_together_are_listed_at_once():
    axes = {
        "LR_SCHEDULE": ["constant", "cosine"],
        "STOP_ON": ["train_loss", "test_accuracy", "test_r3"],
        "METRIC_THRESHOLDS": [{"test_accuracy": [0.9]}, {"test_mine": [0.9]}],
    }
    messages = errors_of(make, axes, MAX_ITER=7, WARMUP_STEPS=7)
    own, known = (
        "METRIC_THRESHOLDS={'test_mine': (0.9,)}",
        "METRIC_THRESHOLDS={'test_accuracy': (0.9,)}",
    )
    assert [message.partition(": got")[0] for message in messages[1:]] == [
        f"at {own}: METRIC_THRESHOLDS",
        f"at STOP_ON='test_accuracy', {own}: STOP_ON",
        f"at STOP_ON='test_r3', {known}: STOP_ON",
        f"at STOP_ON='test_r3', {own}: STOP_ON",
    ]
    assert messages[0].startswith("at LR_SCHEDULE='cosine': WARMUP_STEPS=7 leaves no step")
    many = {"WARMUP_STEPS": range(1000), "LR_SCHEDULE": ["linear"]}
    assert len(errors_of(make, many, MAX_ITER=7)) == 10  # and no list without an end


def test_errors_of_settings_that_do_not_fit_together_are_listed_with_all_others():
    axes = {"MOMENTUM": [0.9, 0.0], "WIDTH": [4, "wide"]}
    messages = errors_of(make, axes, NESTEROV=True, LR=-1)
    assert [message.partition(": ")[0] for message in messages] == [
        "axis WIDTH",
        "LR",
        "at MOMENTUM=0.0",
    ]
    # What an axis that cannot be read would have held is not known.
    (message,) = errors_of(make, {"MOMENTUM": [0.9, "x"]}, NESTEROV=True)
    assert message.startswith("axis MOMENTUM: ")
    (message,) = errors_of(make, {"OPTIMIZER": ["sdg", "adam"]}, MOMENTUM=0.9)
    assert message.startswith("axis OPTIMIZER: ")


#: Of which NESTEROV=True without momentum is refused.
NESTEROV_OR_NOT = {"NESTEROV": [True, False], "trial": range(2), "MOMENTUM": [0.0, 0.9]}


def test_settings_have_to_fit_together_where_a_sweep_has_them():
    text = "NESTEROV needs MOMENTUM > 0; got MOMENTUM=0"
    assert errors_of(make, NESTEROV_OR_NOT) == [f"at NESTEROV=True, MOMENTUM=0.0: {text}"]
    # The first point of the product is one of those that are left out.
    sweep = make(NESTEROV_OR_NOT, where=lambda c: c.momentum > 0 or not c.nesterov)
    assert len(sweep) == 6
    left = NESTEROV_OR_NOT | {"LR": [0.1, 0.2]}
    for where in (lambda c: c.trial == 0, lambda c: c.trial == 1 or not c.nesterov):
        assert errors_of(make, left, where=where) == [f"at NESTEROV=True, MOMENTUM=0.0: {text}"]
    names = ("MOMENTUM", "NESTEROV", "LR")
    zipped = {names: [(0.0, True, 0.1), (0.9, True, 0.1)], "trial": range(2)}
    assert len(make(zipped, where=lambda c: c.momentum)) == 2
    assert errors_of(make, zipped, where=lambda c: c.trial) == [
        f"at MOMENTUM=0.0, NESTEROV=True: {text}"
    ]


def test_an_axis_over_n_train_needs_a_function_that_takes_it():
    text = (
        "axis N_TRAIN: no function of the spec takes N_TRAIN, so no result depends on it; data "
        "recipes such as images do"
    )
    assert errors_of(make, {"N_TRAIN": [10, 20]}) == [text]
    images = LIBRARY.images("digits")
    assert len(make({"N_TRAIN": [10, 20]}, data=images, batchfn=LIBRARY.sample)) == 2
    assert len(make({"N_TRAIN": [10, 20]}, batchfn=lambda bsz, **kwargs: None)) == 2


@pytest.mark.parametrize(
    ("axes", "settings", "name"),
    [
        ({"MOMENTUM": [0.0, 0.9]}, {"OPTIMIZER": "adam"}, "MOMENTUM"),
        ({"BETAS": [(0.9, 0.99), (0.8, 0.99)]}, {}, "BETAS"),
        ({("EPS", "LR"): [(1e-8, 0.1), (1e-6, 0.2)]}, {"OPTIMIZER": "sgd"}, "EPS"),
    ],
)
def test_an_axis_that_the_optimizer_does_not_use(axes, settings, name):
    (message,) = errors_of(make, axes, **settings)
    assert message.endswith(f": no optimizer of the spec uses {name}, so no result depends on it")
    assert len(make(axes | {"OPTIMIZER": ["sgd", "adam"]})) == 4
    for optimizer in (torch.optim.Adagrad, "Adagrad"):
        assert len(make(axes, OPTIMIZER=optimizer)) == 2


def test_a_setting_that_no_optimizer_of_an_axis_uses():
    optimizers = {"OPTIMIZER": ["Adam", "adamw"]}
    text = "MOMENTUM: got 0.9, which none of OPTIMIZER=['adam', 'adamw'] uses (sgd, muon, rmsprop"
    (message,) = errors_of(make, optimizers, MOMENTUM=0.9)
    assert message.startswith(text)
    (message,) = errors_of(make, optimizers | {"MOMENTUM": [0.5, 0.9]})
    assert message.startswith("axis MOMENTUM: no optimizer of the spec uses MOMENTUM")
    assert len(make({"OPTIMIZER": ["adam", "sgd"]}, MOMENTUM=0.9, BETAS=(0.9, 0.99))) == 2
    schedules = {"LR_SCHEDULE": ["constant", "linear"]}
    assert len(make(schedules, LR_FINAL_FACTOR=0.1)) == 2


@pytest.mark.parametrize("name", ["GRAB_EVERY", "RECORD_EVERY"])
def test_settings_of_traces_need_a_config_with_traces(name):
    text = f"axis {name}: ONLYTHRESHOLDS=True keeps final values alone, so no result depends on it"
    axis = {name: [1, 10]}
    assert errors_of(make, axis) == errors_of(make, axis, ONLYTHRESHOLDS="yes") == [text]
    traces = {"ONLYTHRESHOLDS": [True, False]}
    assert len(make(axis, ONLYTHRESHOLDS=False)) == len(make(traces, **{name: 10})) == 2
    assert len(make({("ONLYTHRESHOLDS", name): [(True, 1), (False, 10)]})) == 2
    assert errors_of(make, {"LR": [0.1, 1]}, **{name: 10})[0].startswith(f"{name}: got 10, which")
    with_traces = make({"LR": [0.1, 1]}, ONLYTHRESHOLDS=False, **{name: 10})
    assert with_traces.overridden({"ONLYTHRESHOLDS": True}).base.onlythresholds
    assert len(make({"RECORD_EVERY": [1, 10]}, METRICS=["r2"])) == 2


def test_an_optimizer_may_be_spelt_in_any_case():
    assert len(make({"BETAS": [(0.9, 0.99), (0.8, 0.99)]}, OPTIMIZER="Adam")) == 2


def test_grabs_that_are_no_mapping_of_functions():
    (message,) = errors_of(make, grabs=[len])
    assert message == (
        "grabs: got [<built-in function len>]; should be a mapping of names to functions, as in "
        "grabs={'sharpness': sharpness}"
    )
    assert errors_of(make, grabs={3: len}) == ["grabs: got the name 3; a name should be a string"]
    (message,) = errors_of(make, grabs={"s": "sharpnes"})
    assert message.startswith("grabs['s']: no grab named 'sharpnes' (did you mean 'sharpness'?); ")
    assert make(grabs={"s": "sharpness"}).grabs == {"s": mlpsubmit.grabs.sharpness}


ARRAYS = {"X_train": np.arange(1600.0).reshape(40, 40), "y_train": np.arange(40.0)}
WITHOUT = "should be a function, without parentheses: "


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"data": ARRAYS}, [f"{WITHOUT}data=load"]),
        ({"batchfn": ARRAYS}, [f"{WITHOUT}batchfn=my_batches"]),
        ({"where": ARRAYS}, [f"{WITHOUT}where=kept"]),
        (
            {"grabs": {"a": ARRAYS["X_train"], "b": 3}},
            [
                "should be a function, or the name of a grab, without parentheses: sharpness",
                "grabs['b']: got 3; should be a function, or the name of a grab",
            ],
        ),
        ({"grabs": ARRAYS["X_train"]}, ["as in grabs={'sharpness': sharpness}"]),
        (
            {"OTHER_MODEL_GRABS": ARRAYS},
            2 * ["should be a function, or the name of a grab, without parentheses: sharpness"],
        ),
        ({"axes": {"noise": ARRAYS}}, ["should be a list of values"]),
        (
            {"axes": {"GAMMA": ARRAYS["X_train"]}},
            3 * ["(richness: outputs are divided by it)"] + ["and 37 further errors of its values"],
        ),
        ({"axes": {"trial": [ARRAYS["X_train"]]}}, ["should be an integer >= 0"]),
        ({"axes": {"WIDTH": [8]}, "WIDTH": ARRAYS}, ["; keep one of the two"]),
    ],
)
def test_what_a_call_returned_is_shown_in_one_short_line(settings, ends):
    errors = errors_of(lambda: Sweep(**{"batchfn": batches, **settings}))
    for error, end in zip(errors, ends, strict=True):
        assert error.endswith(end)
        assert len(error) < 400
        assert "\n" not in error


def test_functions_take_what_they_get_by_position() -> None:
    wrong = {"LR_SCHEDULE": lambda: 1.0, "LOSS": lambda output, *, y: output.sum()}
    with pytest.raises(SpecError) as caught:
        Sweep("wrong", {}, batchfn=lambda bsz: None, **wrong)
    valid = "valid is a function that is called as"
    assert caught.value.errors == [
        f"LOSS: <lambda> takes 1 of its arguments by position; {valid} f(output, y)",
        f"LR_SCHEDULE: <lambda> takes 0 of its arguments by position; {valid} f(step)",
    ]
    right = {"LR_SCHEDULE": lambda *steps: 1.0, "LOSS": torch.nn.functional.mse_loss}
    assert len(Sweep("right", {}, batchfn=lambda bsz: None, **right)) == 1


def test_the_names_of_grabs_are_those_of_any_config():
    named = {"OTHER_MODEL_GRABS": [{}, {"t": "readin_gram_trace"}]}
    assert Sweep(batchfn=batches, axes=named, grabs={"n": lambda model: 0.0}).grab_names == {
        "n",
        "t",
    }
    assert not Sweep(batchfn=batches).grab_names
