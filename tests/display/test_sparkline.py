"""Curves in a line of text."""

from __future__ import annotations

import math

import pytest

from mlpsubmit.display.sparkline import sparkline


def test_bars_go_from_the_lowest_to_the_highest() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1, 0], 9) == "█▇▆▅▅▄▃▂▁"
    assert sparkline([0.0, 1.0, -1.0], 9) == "▅█▁"


def test_positive_values_are_on_a_logarithmic_scale() -> None:
    decades = [10.0**-n for n in range(8)]
    assert sparkline(decades, 8) == "█▇▆▅▄▃▂▁"
    assert sparkline(decades, 8, ascii_only=True) == "#*+=~-._"


def test_of_many_values_the_last_of_each_share_is_shown() -> None:
    assert len(sparkline(range(1000), 12)) == 12
    values = [1.0] * 99 + [5.0]
    assert sparkline(values, 10) == "▁▁▁▁▁▁▁▁▁█"
    assert sparkline([3.0, 1.0, 2.0, 1.0], 2) == sparkline([1.0, 1.0], 2)


@pytest.mark.parametrize("lost", [None, math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_a_mark(lost: float | None) -> None:
    assert sparkline([4.0, lost, 1.0], 5) == "█x▁"
    assert sparkline([lost], 5) == "x"


def test_values_whose_differences_overflow_are_a_curve() -> None:
    assert sparkline([-1.7e308, 0.0, 1.7e308], 5) == "▁▅█"
    assert sparkline([5e-324, 1.7e308], 5) == "▁█"
    assert sparkline([0.0, 5e-324], 5) == "▁█"


def test_nothing_and_a_constant_are_curves_too() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([2.0, 2.0], 5) == "▁▁"
