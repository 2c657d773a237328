"""METRICS, METRIC_THRESHOLDS and STOP_ON: what they accept, and every error in words."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate, validate_one


def mine(output, y):
    return (output - y).abs().amax()


def with_scale(output, y, scale):
    return scale * mine(output, y)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        ("accuracy", {"accuracy": ("accuracy", "max")}),
        (["accuracy", "error"], {"accuracy": ("accuracy", "max"), "error": ("error", "min")}),
        ({"worst": (mine, "min")}, {"worst": (mine, "min")}),
        ({"acc": "accuracy"}, {"acc": ("accuracy", "max")}),
        (["r2", {"worst": [mine, "min"]}], {"r2": ("r2", "max"), "worst": (mine, "min")}),
        ({"r2": ("r2", "max")}, {"r2": ("r2", "max")}),
    ],
)
def test_metrics_are_read(given, expected):
    found = validate_one("metrics", given)
    assert found == expected
    assert validate_one("metrics", found) == found


def test_defaults_of_a_function_and_partials_are_taken():
    def scaled(output, y, scale=2.0, *more, **others):
        return scale

    for function in (scaled, functools.partial(with_scale, scale=2), max):
        assert validate({"METRICS": {"m": (function, "max")}}).metrics["m"].function is function


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, r"should be names \('accuracy', 'error', 'margin', 'r2'\) in a list, or a dict"),
        (3, "should be names .*; 3 is neither"),
        (np.array(3), "should be names .*; 3 is neither"),
        (["acuracy"], r"there is no metric 'acuracy' \(did you mean 'accuracy'\?\)"),
        (["accuracy", "accuracy"], "should have each name once; 'accuracy' is there twice"),
        ({"loss": (mine, "max")}, "and not 'loss'; got 'loss'"),
        ({"my metric": (mine, "max")}, "names of letters, digits and '_', and not .*'my metric'"),
        ({3: (mine, "max")}, "names of letters, digits and '_'"),
        ({"mine": mine}, r"should have a function and its direction for 'mine': \(mine, 'max'\)"),
        ({"mine": (mine, "up")}, r"\(mine, 'max'\) where larger is better, else \(mine, 'min'\)"),
        ({"mine": (3, "max")}, "should have a function and its direction"),
        ({"e": ("error", "max")}, "should have 'min' as the direction of 'error'"),
        (
            {"mine": (lambda output: output.mean(), "max")},
            r"called as f\(output, y\); <lambda> takes 1 of its arguments by position",
        ),
        ({"mine": (with_scale, "max")}, "with_scale also needs scale; try functools.partial"),
    ],
)
def test_errors_of_metrics(given, text):
    with pytest.raises(SpecError, match=rf"METRICS: got .*; {text}|METRICS: got .*{text}"):
        validate({"METRICS": given})


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        ({"METRIC_THRESHOLDS": {"test_accuracy": [0.99, 0.9, 0.9]}}, "test_accuracy", (0.9, 0.99)),
        ({"METRIC_THRESHOLDS": {"train_error": 0.1}}, "train_error", (0.1,)),
        ({"METRIC_THRESHOLDS": {"test_error": (0.1, 0.2)}}, "test_error", (0.2, 0.1)),
        ({"METRIC_THRESHOLDS": {"test_loss": [0.1, 0.5]}}, "test_loss", (0.5, 0.1)),
        (
            {"METRICS": {"m_x": (mine, "min")}, "METRIC_THRESHOLDS": {"train_m_x": [-1, 2]}},
            "train_m_x",
            (2.0, -1.0),
        ),
    ],
)
def test_thresholds_are_in_the_order_of_crossing(settings, key, expected):
    assert validate(settings).ordered_thresholds == {key: expected}


def test_thresholds_ask_for_the_metric_and_the_evaluation():
    thresholds = {"METRIC_THRESHOLDS": {"test_accuracy": [0.9]}}
    assert validate(thresholds).measured == {"accuracy": ("accuracy", "max")}
    assert validate({}).measured == {}
    everies = [
        ({}, None),
        ({"METRICS": ["accuracy"]}, None),
        ({"METRIC_THRESHOLDS": {"train_accuracy": [0.9]}}, None),
        (thresholds, 1),
        ({"METRIC_THRESHOLDS": {"test_loss": [0.9]}}, 1),
        ({**thresholds, "EVAL_EVERY": 7}, 7),
        ({"ONLINE": False}, 1),
    ]
    assert [validate(settings).test_every for settings, _ in everies] == [e for _, e in everies]


def test_what_can_stop_a_config():
    thresholds = {"METRIC_THRESHOLDS": {"test_loss": [0.9]}}
    stops = [
        validate({}).stops,
        validate({**thresholds, "LOSS_CHECKPOINTS": [], "STOP_ON": "test_loss"}).stops,
        validate({**thresholds, "LOSS_CHECKPOINTS": []}).stops,
        validate({"STOP_ON": None}).stops,
    ]
    assert stops == [True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"METRIC_THRESHOLDS": [0.9]}, "should be a dictionary of thresholds by name, such as"),
        ({"METRIC_THRESHOLDS": {"test_loss": []}}, "one finite number or more for 'test_loss'"),
        ({"METRIC_THRESHOLDS": {"test_loss": ["a"]}}, "one finite number or more for 'test_loss'"),
        (
            {"METRIC_THRESHOLDS": {"train_loss": [0.1]}},
            "got 'train_loss'; its thresholds are LOSS_CHECKPOINTS, or PERCENT_THRESHOLDS",
        ),
        (
            {"METRIC_THRESHOLDS": {"accuracy": [0.9]}},
            "got 'accuracy' (did you mean 'test_accuracy'?); valid are 'test_loss', "
            "'train_accuracy', 'train_error', 'train_margin', 'train_r2', 'test_accuracy', "
            "'test_error', 'test_margin', 'test_r2'; a metric of your own belongs in METRICS",
        ),
        (
            {"METRICS": {"m": (mine, "max")}, "METRIC_THRESHOLDS": {"test_n": [0.9]}},
            "got 'test_n' (did you mean 'test_m'?); valid are 'test_loss', 'train_m', "
            "'train_accuracy'",
        ),
        ({"METRIC_THRESHOLDS": {3: [0.9]}}, "METRIC_THRESHOLDS: got 3; valid are 'test_loss'"),
        (
            {"METRIC_THRESHOLDS": {"test_accuracy": [90]}},
            "got 'test_accuracy': 90; values of it are from 0 to 1; try 0.9",
        ),
        ({"METRIC_THRESHOLDS": {"test_r2": [1.5]}}, "'test_r2': 1.5; values of it are at most 1"),
        ({"METRIC_THRESHOLDS": {"test_loss": [0]}}, "'test_loss': 0; values of it are > 0"),
        ({"STOP_ON": 3}, "should be 'train_loss', a name in METRIC_THRESHOLDS, or None"),
        (
            {"STOP_ON": "test_accuracy"},
            "STOP_ON: got 'test_accuracy'; should be 'train_loss', None, or a name in "
            "METRIC_THRESHOLDS; there are none; try METRIC_THRESHOLDS={'test_accuracy': [0.9]}",
        ),
        (
            {"STOP_ON": "test_acc", "METRIC_THRESHOLDS": {"test_accuracy": [0.9]}},
            "(did you mean 'test_accuracy'?); there are 'test_accuracy'",
        ),
    ],
)
def test_errors_of_thresholds(settings, text):
    with pytest.raises(SpecError) as caught:
        validate(settings)
    assert text in str(caught.value)


def test_all_errors_are_told_at_once():
    with pytest.raises(SpecError) as caught:
        validate(
            {
                "METRIC_THRESHOLDS": {"train_loss": [0.1], "test_error": [5]},
                "STOP_ON": "x",
                "NESTEROV": True,
                "LR": -1,
            }
        )
    text = str(caught.value)
    assert "LR: got -1" in text
    assert "got 'train_loss'" in text
    assert "'test_error': 5" in text
    assert "STOP_ON: got 'x'" in text
