"""Numbers that are equal are one value in keys and on axes, whatever their type."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit import SpecError, Sweep
from mlpsubmit.results.values import coordinate_values
from mlpsubmit.runs.value_labels import axis_labels
from mlpsubmit.spec.fingerprint import setting_digest

unhurried = settings(deadline=None, max_examples=50)  # cores may be shared


def batches(bsz, gen, noise=0.0, table=None):
    raise NotImplementedError


def make(axes=None, **further):
    return Sweep(axes=axes, **{"batchfn": batches, **further})


def key(**further):
    return make(**further).config(0).key


def values(sweep, name="noise"):
    return [config[name] for config in sweep]


ZEROS = [
    *(0, 0.0, -0.0, np.float64(0), np.float32(-0.0), np.int8(0), np.uint64(0), np.array(0)),
    *(torch.tensor(0), torch.tensor(0.0, dtype=torch.bfloat16), Fraction(0), Decimal("0.00")),
]


@pytest.mark.parametrize("zero", ZEROS, ids=lambda zero: f"{type(zero).__name__} {zero}")
def test_every_zero_is_one_value(zero):
    assert key(noise=zero) == key(noise=0)
    assert key(axes={"noise": [zero]}) == key(noise=0)
    with pytest.raises(SpecError, match="appears more than once; keep one"):
        make({"noise": [zero, 1, 0]})


@pytest.mark.parametrize("other", [False, np.bool_(False), None, "0", "", b"0", [0], (0,), 0j])
def test_what_is_no_number_is_no_zero(other):
    assert key(noise=other) != key(noise=0)
    assert len(make({"noise": [other, 0]})) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, np.int64(1)),
        (0.5, torch.tensor(0.5)),
        (0.5, Fraction(1, 2)),
        (0.1, np.float64(0.1)),
        (2**53, float(2**53)),
        (10**300, Fraction(10**300)),
        (math.inf, np.float32("inf")),
        (math.nan, np.float64("nan")),
        (True, np.bool_(True)),
        ("a", np.str_("a")),
        ([1, [2.0]], [1.0, [2]]),
        ((1, 2), (np.float64(1), torch.tensor(2))),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
        ({1: 2}, {1.0: 2}),
        ({1, 2}, {2.0, 1.0}),
        ({"a": {"b": (0,)}}, {"a": {"b": (0.0,)}}),
    ],
)
def test_equal_values_have_equal_keys(one, other):
    assert key(noise=one) == key(noise=other)
    assert key(datasethps={"noise": one}) == key(datasethps={"noise": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        ([1], [True]),
        ({1: 0}, {True: 0}),
        (0.1, np.float32(0.1)),
        (1, "1"),
        ((1,), [1]),
        (np.array([1, 2]), np.array([1.0, 2.0])),
        (np.array([1, 2]), [1, 2]),
        (np.str_("a"), b"a"),
        (Fraction(1, 3), 1 / 3),
        (Decimal("0.1"), 0.1),
        (10**300, 10**300 + 1),
        ([0.0], [-0.0]),
    ],
)
def test_other_values_have_other_keys(one, other):
    assert key(noise=one) != key(noise=other)
    assert len(make({"table": [one, other]})) == 2


numbers = st.integers() | st.floats() | st.fractions() | st.integers(-3, 3).map(float)
numbers |= st.floats(width=32).map(np.float32) | st.integers(-128, 127).map(np.int8)
numbers |= st.decimals(allow_nan=False, allow_infinity=False) | st.booleans()
numbers = numbers.filter(lambda number: repr(number) not in ("-0.0", "np.float32(-0.0)"))


def equal(one, other):
    kinds = {isinstance(value, bool) for value in (one, other)}
    return len(kinds) == 1 and (one == other or (one != one and other != other))


def is_finite(number):
    return not isinstance(number, float) or math.isfinite(number)


@unhurried
@given(numbers, numbers)
def test_digests_are_equal_just_where_numbers_are(one, other):
    one, other = (v.item() if isinstance(v, np.generic) else v for v in (one, other))
    for a, b in itertools.combinations((one, other, Fraction(other) if is_finite(other) else 0), 2):
        assert (setting_digest(a) == setting_digest(b)) == equal(a, b)


@unhurried
@given(st.lists(st.integers(-(2**60), 2**60) | st.floats(allow_nan=False), min_size=1, max_size=4))
def test_an_axis_is_refused_or_hands_out_values_of_one_type(listed):
    try:
        found = values(make({"noise": listed}))
    except SpecError:
        assert len(set(listed)) < len(listed) or any(float(v) != v for v in listed)
        return
    assert found == listed
    assert len({type(value) for value in found}) == 1
    assert (type(found[0]) is float) == any(type(value) is float for value in listed)


def test_an_axis_of_ints_and_floats_hands_floats_to_functions_and_results():
    sweep = make({"noise": [0, 0.3, np.int64(1), True, None, "a"]})
    assert [repr(value) for value in values(sweep)] == ["0.0", "0.3", "1.0", "True", "None", "'a'"]
    labels = axis_labels(make({"noise": [0, 0.5, 2]}).product.axes[0].values("noise"))
    assert coordinate_values(labels).dtype == np.float64
    zipped = make({("noise", "table"): [(0, 1), (0.5, 2)]})
    assert [repr(config.noise) for config in zipped] == ["0.0", "0.5"]
    assert [repr(config.table) for config in zipped] == ["1", "2"]


def test_otherwise_values_arrive_as_written():
    written = {"noise": [0, 2, 1], "table": [[1, 2.0], (1, 0)]}
    sweep = make(written)
    assert [repr(v) for v in values(sweep)][::2] == ["0", "2", "1"]
    assert [repr(v) for v in values(sweep, "table")][:2] == ["[1, 2.0]", "(1, 0)"]
    assert repr(make(noise=1).config(0).noise) == "1"
    assert repr(make(noise=1.0).config(0).noise) == "1.0"
    assert coordinate_values(axis_labels([0, 2, 1])).dtype == np.int64
    assert repr(make(noise=-0.0).config(0).noise) == "0.0"  # as all zeros have one key


def test_true_is_not_one_in_results():
    assert coordinate_values(axis_labels([True, 1])).tolist() == ["True", "1"]
    assert coordinate_values(axis_labels([Fraction(1, 2), Decimal("0.25")])).tolist() == [0.5, 0.25]


def test_an_integer_that_is_no_float_is_refused_beside_floats():
    with pytest.raises(SpecError) as caught:
        make({"noise": [2**53 + 1, 0.5], "table": [10**400, 0.5]})
    assert caught.value.errors[0] == (
        "axis noise: got the integer 9007199254740993, which no float equals, beside floats; an "
        "axis that has both gives floats to functions: write all values as integers, or as floats"
    )
    assert len(caught.value.errors) == 2
    assert len(make({"noise": [2**53 + 1, 2**53]})) == 2
    assert key(noise=2**53 + 1) != key(noise=float(2**53))


def test_a_value_fixed_twice_may_be_of_two_types():
    def spectrum(d):
        raise NotImplementedError

    assert make(data=spectrum, datasethps={"d": 6}, d=6.0).config(0).d == 6
    with pytest.raises(SpecError, match="keep one of the two"):
        make(data=spectrum, datasethps={"d": 1}, d=True)


def test_nan_twice_is_a_repeated_value():
    with pytest.raises(SpecError, match="the value nan appears more than once"):
        make({"noise": [math.nan, float("nan"), 1]})
