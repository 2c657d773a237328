"""Means over trials with their bands, and curves that end where configs stopped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlpsubmit.results.source import Array

__all__ = [
    "ERRORBARS",
    "NO_BAND",
    "Curve",
    "Estimate",
    "curve",
    "estimate",
    "mean_curve",
    "t_quantile",
]

#: The bands around a mean, as seaborn names them, and what a legend says of them.
ERRORBARS = {
    "se": "standard error",
    "sd": "standard deviation",
    "range": "range",
    "ci": "95% confidence interval",
}

#: No band at all; in Python also None, as in seaborn.
NO_BAND = "none"

#: The 97.5% quantiles of Student's t distribution with 1 to 10 degrees of freedom.
_T = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
_Z = 1.959964


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means with their bands.

    Args:
        mean: of shape () or (T,), as low and high, the ends of the band.
        count: how many values each is over.
    """

    mean: Array
    low: Array
    high: Array
    count: int


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve and its band, shape (T,) each, and the curves of its members after its end.

    Args:
        diverged: whether it is of a config that diverged.
        cut: whether there were too many tails.
        tails: the steps and values of members that trained on when the first one had stopped.
    """

    steps: Array
    estimate: Estimate
    diverged: bool = False
    cut: bool = False
    tails: tuple[tuple[Array, Array], ...] = ()


def t_quantile(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t distribution, to four digits."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Abramowitz and Stegun, 26.7.5.
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def estimate(values: Array, errorbar: str) -> Estimate:
    """Return the mean of finite values over their first dimension, with a band.

    Args:
        values: shape (n,) or (n, T), n at least 1.
        errorbar: one of ERRORBARS, or NO_BAND. ``se`` is the standard deviation, with n - 1 in its
            denominator, over the root of n; ``ci`` the interval of Student's t distribution. Of one
            value all are empty, as NO_BAND is: low and high are the mean.
    """
    count = len(values)
    mean: Array = values.mean(axis=0)
    if count == 1 or errorbar == NO_BAND:
        return Estimate(mean, mean, mean, count)
    if errorbar == "range":
        return Estimate(mean, values.min(axis=0), values.max(axis=0), count)
    with np.errstate(invalid="ignore"):  # where a trace is infinite there is no band
        half = values.std(axis=0, ddof=1)
    if errorbar != "sd":
        half = half / np.sqrt(count)
    if errorbar == "ci":
        half = half * t_quantile(count - 1)
    return Estimate(mean, mean - half, mean + half, count)


def curve(steps: Array, values: Array, last: float) -> tuple[Array, Array]:
    """Return the part of a trace until its config stopped.

    Args:
        steps: shape (T,).
        values: shape (T,); NaN where nothing was recorded. After the last step they are those of
            the last step.
        last: the last step of the config; NaN if that is not known.
    """
    recorded = ~np.isnan(values)
    steps, values = steps[recorded], values[recorded]
    after = np.flatnonzero(steps > last)
    if not len(after):
        return steps, values
    ends = after[0]
    if ends and steps[ends - 1] == last:
        return steps[:ends], values[:ends]
    return np.append(steps[:ends], last), values[: ends + 1]


def mean_curve(
    steps: Array, values: Array, last: Array, diverged: Array, errorbar: str, most_tails: int
) -> list[Curve]:
    """Return the mean of traces as far as all of them go, then each trace from there on.

    Those of configs that diverged are not in the mean, but curves of their own.

    Args:
        steps: shape (T,).
        values: shape (n, T).
        last: the last step of each config, shape (n,).
        diverged: which configs diverged, shape (n,).
        errorbar: one of ERRORBARS, or NO_BAND.
        most_tails: without the traces that go on if there are more.
    """
    alone = [_single(steps, values[i], last[i], diverged=True) for i in np.flatnonzero(diverged)]
    values, last = values[~diverged], last[~diverged]
    common = ~np.isnan(values).any(axis=0) & (steps <= np.nanmin(np.append(last, np.inf)))
    if len(values) < 2 or not common.any():
        return [*(_single(steps, own, end) for own, end in zip(values, last, strict=True)), *alone]
    end = steps[common][-1]
    tails = []
    for own, stop in zip(values, last, strict=True):
        its_steps, its_values = curve(steps, own, stop)
        later = its_steps >= end
        if later.sum() > 1:
            tails.append((its_steps[later], its_values[later]))
    cut = len(tails) > most_tails
    mean = estimate(values[:, common], errorbar)
    return [Curve(steps[common], mean, cut=cut, tails=() if cut else tuple(tails)), *alone]


def _single(steps: Array, values: Array, last: float, *, diverged: bool = False) -> Curve:
    its_steps, its_values = curve(steps, values, last)
    return Curve(its_steps, Estimate(its_values, its_values, its_values, 1), diverged)
