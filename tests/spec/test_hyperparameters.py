"""Hyperparameters: every name in any spelling, every default, every error in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlpsubmit.errors import SpecError, shown
from mlpsubmit.spec.hyperparameters import (
    OUTSIDE_RESULTS,
    STACKED,
    Hyperparameters,
    canonical_name,
    validate,
    validate_one,
)
from mlpsubmit.spec.initial_weights import from_run
from mlpsubmit.spec.rules import NOT_USED_BY_ALL, RULES
from mlpsubmit.spec.setting_types import log_spaced

unhurried = settings(deadline=None)  # cores may be shared

#: The table of DESIGN.md: {name: (default, another valid value)}.
TABLE = {
    "ONLINE": (True, False),
    "N_SAMPLES": (1024, 7),
    "N_TRAIN": (4000, 7),
    "N_TEST": (10_000, 7),
    "NUM_TRIALS": (1, 7),
    "MAX_ITER": (100_000, 7),
    "LR": (1e-2, 0.5),
    "DEPTH": (2, 7),
    "WIDTH": (8192, 7),
    "GAMMA": (1.0, 0.5),
    "LOSS_CHECKPOINTS": ((0.15, 0.1), (0.3,)),
    "PERCENT_THRESHOLDS": (None, (0.5,)),
    "EMA_SMOOTHER": (0.9, 0.5),
    "ONLYTHRESHOLDS": (True, False),
    "SEED": (42, 7),
    "DETERMINISTIC": (True, False),
    "DEVICES": ("all", (0, 2)),
    "VERBOSE": (False, True),
    "datasethps": ({}, {"d": 3}),
    "TARGET_MONOMIALS": (None, [{0: 1}]),
    "other_model_grabs": ({}, {"a": "readin_gram"}),
    "other_model_kwargs": ({}, {"a": {"side": "input"}}),
    "other_model_gram": ({}, {"a": True}),
    "OPTIMIZER": ("sgd", "adamw"),
    "MOMENTUM": (None, 0.5),
    "WEIGHT_DECAY": (None, 0.5),
    "LOSS": ("mse", "cross_entropy"),
    "PARAMETRIZATION": ("mup", "sp"),
    "CENTERED": (True, False),
    "MODEL": ("mlp", dict),
    "RECORD_EVERY": (1, "log:20"),
    "EVAL_EVERY": (None, 7),
    "GRAB_EVERY": (1, 7),
    "PRECISION": ("fp32", "bf16"),
    "PACK_SIZE": ("auto", 7),
    "CHECKPOINT_MINUTES": (5.0, 0.5),
}

#: What the table's "..." stands for, and the number of classes.
FURTHER = {
    "NESTEROV": (None, False),
    "BETAS": (None, (0.5, 0.6)),
    "EPS": (None, 0.5),
    "OPTIMIZER_KWARGS": ({}, {"rho": 0.9}),
    "LR_SCHEDULE": ("constant", "cosine"),
    "WARMUP_STEPS": (0, 7),
    "LR_FINAL_FACTOR": (0.0, 0.5),
    "LR_FACTORS": ({}, {"*.bias": 0.0}),
    "GRAD_CLIP_NORM": (None, 0.5),
    "METRICS": ({}, {"accuracy": ("accuracy", "max")}),
    "METRIC_THRESHOLDS": ({}, {"test_loss": (0.5,)}),
    "STOP_ON": ("train_loss", None),
    "D_OUT": (None, 7),
    "COMPILE": ("auto", False),
    "SAVE_WEIGHTS": (None, "final"),
    "INIT_WEIGHTS": (None, from_run("x")),
    "KEEP_STATE": (False, True),
}
EVERY = {**TABLE, **FURTHER}

#: What a setting is valid with only.
FITTING = {
    "OPTIMIZER_KWARGS": {"OPTIMIZER": "Adadelta"},
    "BETAS": {"OPTIMIZER": "adam"},
    "EPS": {"OPTIMIZER": "adam"},
    "LR_FINAL_FACTOR": {"LR_SCHEDULE": "linear"},
    "RECORD_EVERY": {"ONLYTHRESHOLDS": False},
    "GRAB_EVERY": {"ONLYTHRESHOLDS": False},
}


def errors_of(function, *arguments):
    with pytest.raises(SpecError) as caught:
        function(*arguments)
    return caught.value.errors


@st.composite
def spelt_names(draw):
    """A name, and the same in any case, with underscores left out and put in."""
    name = draw(st.sampled_from(sorted(EVERY)))
    letters = name.replace("_", "")
    cases = draw(st.lists(st.booleans(), min_size=len(letters), max_size=len(letters)))
    gaps = draw(st.lists(st.sampled_from(["", "", "_"]), min_size=len(letters)))
    cased = [c.upper() if up else c.lower() for c, up in zip(letters, cases, strict=True)]
    return name, "".join(c + gap for c, gap in zip(cased, gaps, strict=False))


def test_defaults_are_those_of_the_table():
    assert dict(validate({})) == {name.lower(): default for name, (default, _) in EVERY.items()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"ONLINE": False}, 1),
        ({"EVAL_EVERY": None, "ONLINE": False}, 1),
        ({"EVAL_EVERY": 1}, 1),
        ({"EVAL_EVERY": "log:5", "ONLINE": False}, "log:5"),
    ],
)
def test_online_the_test_loss_is_evaluated_only_on_request(settings, expected):
    assert validate(settings).test_every == expected


def test_every_setting_says_what_it_means():
    assert all(field.description for field in Hyperparameters.model_fields.values())


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_name_is_accepted_in_several_spellings(name):
    default, other = EVERY[name]
    spellings = (name, name.lower(), name.upper(), name.replace("_", ""), name.title())
    further = FITTING.get(name, {})
    got = [getattr(validate({spelling: other, **further}), name.lower()) for spelling in spellings]
    assert got == [other] * len(spellings)
    assert got[0] != default or name == "NESTEROV"


@unhurried
@given(spelt_names())
def test_names_match_whatever_their_case_and_underscores(spelt):
    name, spelling = spelt
    assert canonical_name(spelling) == name.lower()
    other = EVERY[name][1]
    further = FITTING.get(name, {})
    assert validate({spelling: other, **further}) == validate({name: other, **further})


def test_misspellings_of_mlpscape_are_accepted():
    assert validate({"DETERMINSITIC": False}).deterministic is False
    assert validate({"parameterization": "ntp"}).parametrization == "ntp"


def test_named_groups_of_settings_exist():
    named = STACKED | OUTSIDE_RESULTS | NOT_USED_BY_ALL
    assert set(Hyperparameters.model_fields) >= named.union(*(rule.reads for rule in RULES))


# ---- values that are accepted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"WIDTH": 64.0}, "width", 64),
        ({"MAX_ITER": 1e4}, "max_iter", 10_000),
        ({"WIDTH": np.int32(64)}, "width", 64),
        ({"WIDTH": np.float64(64)}, "width", 64),
        ({"WIDTH": torch.tensor(64)}, "width", 64),
        ({"SEED": 0}, "seed", 0),
        ({"SEED": 10**30}, "seed", 10**30),
        ({"LR": 1}, "lr", 1.0),
        ({"LR": np.float32(0.5)}, "lr", 0.5),
        ({"LR": np.array(0.5)}, "lr", 0.5),
        ({"LR": torch.tensor(0.5)}, "lr", 0.5),
        ({"EMA_SMOOTHER": 0}, "ema_smoother", 0.0),
        ({"ONLINE": False}, "online", False),
        ({"ONLINE": "False"}, "online", False),
        ({"ONLINE": "no"}, "online", False),
        ({"ONLINE": "Y"}, "online", True),
        ({"ONLINE": "false"}, "online", False),
        ({"ONLINE": 0}, "online", False),
        ({"ONLINE": np.False_}, "online", False),
        ({"VERBOSE": "True"}, "verbose", True),
        ({"VERBOSE": 1}, "verbose", True),
        ({"LOSS_CHECKPOINTS": [0.1, 1, 0.1, 0.5]}, "loss_checkpoints", (1.0, 0.5, 0.1)),
        ({"LOSS_CHECKPOINTS": 0.3}, "loss_checkpoints", (0.3,)),
        ({"LOSS_CHECKPOINTS": np.array([0.25, 0.5])}, "loss_checkpoints", (0.5, 0.25)),
        ({"LOSS_CHECKPOINTS": []}, "loss_checkpoints", ()),
        ({"PERCENT_THRESHOLDS": (0.5,)}, "loss_checkpoints", None),
        ({"LOSS_CHECKPOINTS": None, "PERCENT_THRESHOLDS": []}, "percent_thresholds", ()),
        ({"DEVICES": "ALL"}, "devices", "all"),
        ({"DEVICES": 1}, "devices", (1,)),
        ({"DEVICES": np.int64(1)}, "devices", (1,)),
        ({"DEVICES": np.array([1, 0])}, "devices", (1, 0)),
        ({"OPTIMIZER": "SGD"}, "optimizer", "sgd"),
        ({"OPTIMIZER": "AdamW"}, "optimizer", "adamw"),
        ({"OPTIMIZER": "Adagrad"}, "optimizer", "Adagrad"),
        ({"OPTIMIZER": torch.optim.Rprop}, "optimizer", torch.optim.Rprop),
        ({"LOSS": "MSE"}, "loss", "mse"),
        ({"LOSS": math.dist}, "loss", math.dist),
        ({"PARAMETRIZATION": "MUP-LR"}, "parametrization", "mup-lr"),
        ({"RECORD_EVERY": 3.0}, "record_every", 3),
        ({"GRAB_EVERY": "log:2"}, "grab_every", "log:2"),
        ({"BETAS": [0, np.float64(0.5)]}, "betas", (0.0, 0.5)),
        ({"PACK_SIZE": "auto"}, "pack_size", "auto"),
        ({"D_OUT": 3.0}, "d_out", 3),
        ({"NESTEROV": True, "MOMENTUM": 0.5}, "nesterov", True),
    ],
)
def test_values_are_read_as_what_they_mean(settings, name, expected):
    got = getattr(validate({**settings, **FITTING.get(name.upper(), {})}), name)
    assert got == expected
    assert type(got) is type(expected)


def test_thresholds_are_those_of_the_kind_that_is_set():
    assert validate({}).thresholds == (0.15, 0.1)
    assert validate({"PERCENT_THRESHOLDS": [0.1, 0.5]}).thresholds == (0.5, 0.1)
    assert validate({"LOSS_CHECKPOINTS": []}).thresholds == ()


def test_schedules_are_steps_or_a_number_of_events():
    assert log_spaced(5) is None
    assert log_spaced("log:20") == 20


@unhurried
@given(st.floats(min_value=1e-300, max_value=1e300), st.integers(1, 10**12))
def test_numbers_keep_their_value(number, count):
    read = validate({"LR": number, "MAX_ITER": count})
    assert (read.lr, read.max_iter) == (number, count)


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        validate({}).width = 3


def test_mappings_are_copies():
    mine = {"d": 3}
    read = validate({"datasethps": mine})
    mine["d"] = 4
    assert read.datasethps == {"d": 3}
    assert validate({}).datasethps is not validate({}).datasethps


# ---- values that are refused ---------------------------------------------------------------------

COUNT = "should be an integer >= 1"
POSITIVE = "should be a finite number > 0"
BELOW_ONE = "should be a finite number >= 0 and < 1"
LOG = "'log:N' for N log-spaced steps (N from 2 to 1,000,000)"
EVENTS = f"should be an integer >= 1, or {LOG}"
EVENTS_OR_NONE = f"should be an integer >= 1, {LOG}, or None"
FINAL_ALONE = ", or 'log:N'; the final ones alone with ONLYTHRESHOLDS=True)"
BOOLEAN = "should be True or False"
OPTIMIZERS = (
    "should be one of 'sgd', 'adam', 'adamw', 'muon', 'lion', 'rmsprop', or a torch.optim class or "
    "its name"
)
INDICES = "should be 'all' or a list of distinct GPU indices such as [0, 1]"
THRESHOLDS = "should be a list of positive finite numbers"
BETAS = "should be two numbers >= 0 and < 1, such as (0.9, 0.999)"
NAMES = "should be a dictionary whose keys are names"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WIDTH", 0, COUNT),
        ("WIDTH", -3, COUNT),
        ("WIDTH", 2.5, COUNT),
        ("WIDTH", True, COUNT),
        ("WIDTH", np.True_, COUNT),
        ("WIDTH", "64", COUNT),
        ("WIDTH", None, COUNT),
        ("WIDTH", [64, 128], COUNT),
        ("WIDTH", math.nan, COUNT),
        ("WIDTH", math.inf, COUNT),
        ("WIDTH", 10**400, COUNT),
        ("DEPTH", 0, COUNT),
        ("N_SAMPLES", 0, COUNT),
        ("NUM_TRIALS", 0, COUNT),
        ("SEED", -1, "should be an integer >= 0"),
        ("LR", 0, POSITIVE),
        ("LR", -1, POSITIVE),
        ("LR", math.nan, POSITIVE),
        ("LR", math.inf, POSITIVE),
        ("LR", 10**400, POSITIVE),
        ("LR", True, POSITIVE),
        ("LR", "0.1", POSITIVE),
        ("LR", 1j, POSITIVE),
        ("GAMMA", 0, POSITIVE),
        ("WEIGHT_DECAY", -0.1, "should be a finite number >= 0"),
        ("MOMENTUM", 1, BELOW_ONE),
        ("EMA_SMOOTHER", 1, BELOW_ONE),
        ("EMA_SMOOTHER", -0.1, BELOW_ONE),
        ("ONLINE", "maybe", BOOLEAN),
        ("ONLINE", 2, BOOLEAN),
        ("ONLINE", None, BOOLEAN),
        ("RECORD_EVERY", 0, EVENTS),
        ("RECORD_EVERY", None, EVENTS + " (steps between recorded losses" + FINAL_ALONE),
        ("GRAB_EVERY", None, EVENTS + " (steps between grabs" + FINAL_ALONE),
        ("GRAB_EVERY", "log:2000000", EVENTS),
        ("RECORD_EVERY", 1.5, EVENTS),
        ("RECORD_EVERY", True, EVENTS),
        ("EVAL_EVERY", "log:1", EVENTS_OR_NONE),
        ("EVAL_EVERY", "log:", EVENTS_OR_NONE),
        ("GRAB_EVERY", "every 3", EVENTS),
        ("DEVICES", "gpu", INDICES),
        ("DEVICES", [], INDICES),
        ("DEVICES", [0, 0], INDICES),
        ("DEVICES", [-1], INDICES),
        ("DEVICES", [True], INDICES),
        ("DEVICES", 0.5, INDICES),
        ("LOSS_CHECKPOINTS", "0.1", THRESHOLDS),
        ("LOSS_CHECKPOINTS", {0.1: 1}, THRESHOLDS),
        ("LOSS_CHECKPOINTS", [0.1, 0], "should be a list of positive finite numbers; 0 is not"),
        ("LOSS_CHECKPOINTS", [-0.1], "should be a list of positive finite numbers; -0.1 is not"),
        ("PERCENT_THRESHOLDS", [math.nan], "a list of positive finite numbers; nan is not"),
        ("PERCENT_THRESHOLDS", [True], "a list of positive finite numbers; True is not"),
        ("PERCENT_THRESHOLDS", [10**400], "should be a list of positive finite numbers; 1000"),
        ("BETAS", 0.9, BETAS),
        ("BETAS", (0.9,), BETAS),
        ("BETAS", (0.9, 1), BETAS),
        ("BETAS", (0.9, math.nan), BETAS),
        ("datasethps", [1], NAMES),
        ("datasethps", {1: 2}, NAMES),
        ("OPTIMIZER", "sdg", OPTIMIZERS),
        ("OPTIMIZER", 3, OPTIMIZERS),
        (
            "LOSS",
            "msee",
            "one of 'mse', 'cross_entropy', 'hinge', 'logistic', 'mae', 'huber', or a callable("
            "output, y) or (output, y, params) -> scalar (did you mean 'mse'?)",
        ),
        (
            "PRECISION",
            "fp16",
            "should be one of 'fp32', 'tf32', 'bf16', 'fp64' (did you mean 'fp64'?)",
        ),
        ("PARAMETRIZATION", "mub", "'sp', or a callable(model, optimizer) (did you mean 'mup'?)"),
        ("MODEL", "resnet", "one of 'mlp', or a callable that returns an nn.Module"),
        ("D_OUT", 0, "should be an integer >= 1 or None"),
        ("COMPILE", "never", "should be 'auto', True or False"),
        ("COMPILE", 2, "should be 'auto', True or False"),
        ("PACK_SIZE", 0, "should be an integer >= 1 or 'auto'"),
        ("PACK_SIZE", "many", "should be an integer >= 1 or 'auto'"),
        ("CHECKPOINT_MINUTES", 0, POSITIVE),
    ],
)
def test_a_bad_value_is_told_with_what_is_valid(name, value, text):
    (message,) = errors_of(validate, {name: value})
    meaning = Hyperparameters.model_fields[name.lower()].description
    assert message.startswith(f"{name.upper()}: got {shown(value)}; ")
    assert text in message
    assert message.endswith(f" ({meaning})") != (" one of " in message and name != "PRECISION")
    assert errors_of(validate_one, name.lower(), value) == [message]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("WIDHT", " (did you mean 'width'?)"),
        ("learning_rate", " (here it is LR)"),
        ("BATCH_SIZE", " (here it is N_SAMPLES)"),
        ("epochs", " (here it is MAX_ITER, in steps)"),
        ("temperature_of_the_room", ""),
        ("N_SAMPLE", " (did you mean 'n_samples'?)"),
        ("optimiser", " (did you mean 'optimizer'?)"),
        ("", ""),
    ],
)
def test_an_unknown_name_is_told_with_the_closest_one(name, hint):
    assert errors_of(validate, {name: 3}) == [f"{name}: no such hyperparameter{hint}"]


def test_a_name_in_two_spellings_is_refused():
    assert errors_of(validate, {"WIDTH": 3, "width": 4}) == [
        "width and WIDTH are the same hyperparameter; keep one"
    ]


NEITHER_NOR_BOTH = (
    "got {} of LOSS_CHECKPOINTS and PERCENT_THRESHOLDS; set exactly one of the two "
    "(an empty list where no threshold is wanted)"
)


def test_exactly_one_kind_of_threshold_is_set():
    both = {"LOSS_CHECKPOINTS": [0.1], "PERCENT_THRESHOLDS": [0.1]}
    assert errors_of(validate, both) == [NEITHER_NOR_BOTH.format("both")]
    assert errors_of(validate, {"LOSS_CHECKPOINTS": None}) == [NEITHER_NOR_BOTH.format("neither")]


def test_nesterov_needs_momentum():
    text = "NESTEROV needs MOMENTUM > 0; got MOMENTUM=0"
    assert errors_of(validate, {"NESTEROV": True}) == [text]


def test_all_errors_are_listed_at_once():
    with pytest.raises(SpecError) as caught:
        validate({"WIDHT": 3, "WIDTH": 0, "width": 3, "LR": -1, "ONLINE": "off"})
    assert str(caught.value) == (
        "5 errors:\n"
        "  - WIDHT: no such hyperparameter (did you mean 'width'?)\n"
        "  - width and WIDTH are the same hyperparameter; keep one\n"
        "  - ONLINE: got 'off'; should be True or False "
        "(a fresh batch every step, or one fixed training set)\n"
        "  - LR: got -1; should be a finite number > 0 (base learning rate)\n"
        "  - WIDTH: got 0; should be an integer >= 1 (units of each hidden layer)"
    )


def test_schedules_rates_and_limits_are_checked_together():
    settings = {
        "LR_SCHEDULE": "cosin",
        "WARMUP_STEPS": -1,
        "LR_FINAL_FACTOR": -0.1,
        "LR_FACTORS": {"*.bias": -1},
        "GRAD_CLIP_NORM": 0,
    }
    errors = errors_of(validate, settings)
    assert [error.partition(":")[0] for error in errors] == list(settings)
    for error, text in zip(
        errors,
        [
            "one of 'constant', 'linear', 'cosine', or a callable of the step that returns a "
            "factor of LR (did you mean 'cosine'?)",
            "an integer >= 0",
            "a finite number >= 0",
            "a dictionary of finite factors >= 0 by patterns of parameter names, such as "
            "{'input_layer.*': 0, 'output_layer.*': 0.1}; {} leaves all as they are",
            "a finite number > 0 or None",
        ],
        strict=True,
    ):
        assert f"should be {text}" in error
    assert validate({"LR_FACTORS": {"a": np.float32(0)}}).lr_factors == {"a": 0.0}
    assert errors_of(validate, {"LR_FACTORS": {"a": float("inf")}})
    assert errors_of(validate, {"LR_FACTORS": [1]})


def test_all_settings_that_do_not_fit_together_are_listed():
    settings = {"NESTEROV": True, "LR_SCHEDULE": "linear", "WARMUP_STEPS": 9, "MAX_ITER": 9}
    assert errors_of(validate, settings) == [
        "NESTEROV needs MOMENTUM > 0; got MOMENTUM=0",
        "WARMUP_STEPS=9 leaves no step of MAX_ITER=9 for LR_SCHEDULE='linear'; set WARMUP_STEPS "
        "below MAX_ITER, or LR_SCHEDULE='constant'",
    ]
    assert errors_of(validate, {"WARMUP_STEPS": 10, "MAX_ITER": 9}) == [
        "WARMUP_STEPS=10 is more than MAX_ITER=9, so no step reaches LR; set WARMUP_STEPS to "
        "MAX_ITER at most"
    ]
    assert validate({"WARMUP_STEPS": 9, "MAX_ITER": 9}).has_lr_schedule
    assert validate({"WARMUP_STEPS": 9, "MAX_ITER": 9, "LR_SCHEDULE": lambda step: 1.0})


KEY, STOP = "METRIC_THRESHOLDS: got", "STOP_ON: got"
NESTEROV = "NESTEROV needs MOMENTUM > 0"


@pytest.mark.parametrize(
    ("bad", "others", "further"),
    [
        (
            {"METRICS": ["accuracy", "r3"]},
            {
                "METRIC_THRESHOLDS": {"test_r3": 1, "test_mine": 1, "test_accuracy": 90},
                "STOP_ON": "test_r4",
            },
            [f"{KEY} 'test_mine'", f"{KEY} 'test_accuracy': 90", f"{STOP} 'test_r4'"],
        ),
        (
            {"METRICS": {"mine": len, 3: len}},
            {"METRIC_THRESHOLDS": {"test_mine": 9, "test_r3": 1}, "STOP_ON": "test_mine"},
            [f"{KEY} 'test_r3'"],
        ),
        (
            {"METRIC_THRESHOLDS": {"test_r3": "much", "test_r2": 0.5, "train_loss": 1}},
            {"STOP_ON": "test_r4"},
            [f"{KEY} 'test_r3'", f"{KEY} 'train_loss'", f"{STOP} 'test_r4'"],
        ),
        ({"METRIC_THRESHOLDS": 0.9}, {"STOP_ON": "test_r2"}, []),
        ({"STOP_ON": 3}, {"METRIC_THRESHOLDS": {"test_r3": 1}}, [f"{KEY} 'test_r3'"]),
        ({"LOSS_CHECKPOINTS": "low"}, {"PERCENT_THRESHOLDS": [0.5]}, ["got both of"]),
        ({"OPTIMIZER": "sdg"}, {"NESTEROV": True, "MOMENTUM": 0, "EPS": 1e-3}, [NESTEROV]),
        ({"OPTIMIZER": "sdg"}, {"NESTEROV": True}, []),
        ({"OPTIMIZER_KWARGS": 3}, {"NESTEROV": True}, [NESTEROV]),
        (
            {"MOMENTUM": 2},
            {"NESTEROV": True, "OPTIMIZER_KWARGS": {"rho": 1}},
            ["OPTIMIZER_KWARGS: got 'rho'"],
        ),
        ({"MAX_ITER": 0}, {"LR_SCHEDULE": "linear", "WARMUP_STEPS": 9}, []),
    ],
)
def test_a_bad_value_hides_no_error_that_is_one_whatever_was_meant(bad, others, further):
    (name,) = bad
    errors = errors_of(validate, {**bad, **others})
    for error, beginning in zip(errors, [f"{name}: got ", *further], strict=True):
        assert error.startswith(beginning)


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        (
            {"OPTIMIZER": "lion", "MOMENTUM": 0.9, "EPS": 1e-6},
            [
                "EPS: got 1e-06, which OPTIMIZER='lion' does not use (adam, adamw, muon, rmsprop "
                "do); leave it out",
                "MOMENTUM: got 0.9, which OPTIMIZER='lion' does not use (sgd, muon, rmsprop do); "
                "leave it out",
            ],
        ),
        (
            {"BETAS": (0.9, 0.99)},
            [
                "BETAS: got (0.9, 0.99), which OPTIMIZER='sgd' does not use (adam, adamw, muon, "
                "lion do); leave it out"
            ],
        ),
        (
            {"LR_FINAL_FACTOR": 0.1, "LR_SCHEDULE": "constant"},
            [
                "LR_FINAL_FACTOR: got 0.1, which LR_SCHEDULE='constant' does not use (linear, "
                "cosine do); leave it out"
            ],
        ),
        (
            {"LR_FINAL_FACTOR": 0.1, "LR_SCHEDULE": errors_of},
            [
                "LR_FINAL_FACTOR: got 0.1, which LR_SCHEDULE=errors_of does not use (linear, "
                "cosine do); leave it out"
            ],
        ),
    ],
)
def test_a_setting_that_nothing_uses_is_refused(settings, texts):
    assert errors_of(validate, settings) == texts


def test_settings_of_traces_need_traces():
    text = (
        "{}, which has no effect with ONLYTHRESHOLDS=True, the default: {}; set "
        "ONLYTHRESHOLDS=False to keep traces, or leave {} out (it may stay where "
        "ONLYTHRESHOLDS=True is written out)"
    )
    losses, grabs = "the final losses alone are kept", "grabs are called once, at the end"
    of_losses = text.format("RECORD_EVERY: got 'log:9'", losses, "RECORD_EVERY")
    of_grabs = text.format("GRAB_EVERY: got 100", grabs, "GRAB_EVERY")
    settings = {"RECORD_EVERY": "log:9", "GRAB_EVERY": 100}
    assert errors_of(validate, settings) == [of_grabs, of_losses]
    # Thresholds on metrics of the batch are looked at every RECORD_EVERY.
    assert errors_of(validate, {**settings, "METRICS": ["r2"]}) == [of_grabs]
    assert errors_of(validate, {**settings, "METRIC_THRESHOLDS": {"train_r2": 0.5}}) == [of_grabs]
    assert validate({"RECORD_EVERY": 1, "GRAB_EVERY": 1}).onlythresholds
    for said in (False, True):
        assert validate({**settings, "ONLYTHRESHOLDS": said}).grab_every == 100


def test_settings_that_ask_for_nothing_are_no_settings_that_nothing_uses():
    asked = {"OPTIMIZER": "lion", "MOMENTUM": 0, "NESTEROV": False}
    assert validate({**asked, "LR_FINAL_FACTOR": 0}).momentum == 0
    assert validate({"OPTIMIZER": "Adagrad", "MOMENTUM": 0.9}).momentum == 0.9  # it may use any
