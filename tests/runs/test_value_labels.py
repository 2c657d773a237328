"""Labels of values, and the hashes that identify them: equal where keys of configs are equal."""

from __future__ import annotations

import functools
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpsubmit import Monomial
from mlpsubmit.results.values import identity
from mlpsubmit.runs.value_labels import axis_labels, label_hash, value_hash
from mlpsubmit.spec.fingerprint import setting_digest

SCALARS = (
    st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, 2.0, np.float32(0.5), np.int64(2), Fraction(1, 2), Decimal(2)])
    | st.sampled_from([2**53, 2**53 + 1, 2.0**53, 2**70, 2.0**70, float("nan"), Fraction(1, 3)])
    | st.sampled_from([1 / 3, True, False, None, "", "1", "1.0", "True", "None", "nan", "()", "{}"])
    | st.sampled_from([(), [], {}, Monomial({0: 1}), "$x_{0}$", "a\0", "a\\0", "\udc80"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.lists(SCALARS, max_size=2).map(tuple)


@given(one=VALUES, other=VALUES)
def test_hashes_are_equal_where_those_of_keys_are(one: Any, other: Any) -> None:
    same = setting_digest(one) == setting_digest(other)
    assert (value_hash(one) == value_hash(other)) is same


@given(values=st.lists(VALUES, min_size=1, max_size=6))
def test_labels_with_hashes_identify_values(values: list[Any]) -> None:
    labels = axis_labels(values)
    hashes = [label_hash(*pair) for pair in zip(values, labels, strict=True)]
    found = [identity(*pair) for pair in zip(labels, hashes, strict=True)]
    assert found == [value_hash(value) for value in values]
    # Different values have different labels, as text too: the coordinate may be text.
    assert len({*map(str, labels)}) >= len({*found})


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, "1"], ["1 #0", "1 #1"]),
        ([1, "a"], [1, "a"]),
        ([True, "True", 2], ["True #0", "True #1", "2 #2"]),
        (["None", None], ["None #0", "None #1"]),
        ([torch.relu, torch.nn.functional.relu], ["relu #0", "relu #1"]),
        ([torch.relu, torch.tanh], ["relu", "tanh"]),
        ([0.1, 0.1, 0.2], [0.1, 0.1, 0.2]),  # of a zipped axis
        ([Fraction(1, 2), Fraction(1, 3)], [0.5, 1 / 3]),
        ([Fraction(1, 3), 1 / 3], [f"{1 / 3} #0", f"{1 / 3} #1"]),
        (["a\0", "a\\0"], ["a\0 #0", "a\\0 #1"]),
        ([functools.partial(torch.clamp, min=x) for x in (0, 1, 0)], None),
    ],
)
def test_values_of_one_text_are_numbered(values: list[Any], labels: list[Any] | None) -> None:
    assert axis_labels(values) == (labels or ["clamp #0", "clamp #1", "clamp #0"])


def test_only_what_labels_do_not_identify_has_a_hash() -> None:
    for value in (1, 0.5, True, "a", None, (), {}, Fraction(1, 2), np.float64(3)):
        label = axis_labels([value])[0]
        assert label_hash(value, label) == "", value
    for value in ("None", "True", "()", Fraction(1, 3), (1,), torch.relu, 1j):
        label = axis_labels([value])[0]
        assert len(label_hash(value, label)) == 16, value
