"""Numbers as text in reports."""

from __future__ import annotations

import math

import pytest

from mlpsubmit.report.columns import distinct
from mlpsubmit.report.numerals import digits_apart, numeral


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (3, "3"),
        (1024.0, "1,024"),
        (999_999, "999,999"),
        (1_000_000, "1·10⁶"),
        (1_048_576.0, "1.049·10⁶"),
        (123_456.789, "123500"),
        (0.333333, "0.3333"),
        (-0.00123456, "-0.001235"),
        (0.00012, "1.2·10⁻⁴"),
        (5e-324, "4.941·10⁻³²⁴"),
        (-1.7976931348623157e308, "-1.798·10³⁰⁸"),
        (0.99999, "1"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_the_digits_that_are_read(value: float, text: str) -> None:
    assert numeral(value) == text


def test_all_digits_of_counts_are_shown() -> None:
    assert numeral(1_234_567, whole=True) == "1,234,567"
    assert numeral(1_234_567.0, whole=True) == "1,234,567"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.1],
        [0.1, 0.2],
        [0.1, 0.1 + 1e-9],
        [1 / 3, math.nextafter(1 / 3, 1)],
        [1e300, 1.0001e300],
    ],
)
def test_different_values_of_an_axis_are_different_texts(values: list[float]) -> None:
    digits = digits_apart(values)
    assert len({numeral(value, digits) for value in values}) == len(values)
    assert digits >= 4


def test_labels_of_different_values_are_distinct() -> None:
    assert distinct(["a", "b"]) == ["a", "b"]
    assert distinct(["x", "x"], ["$x$", "x"]) == ["$x$", "x"]
    assert distinct(["f", "f", "f (2)"]) == ["f", "f (2)", "f (2) (2)"]
