"""Random search: an axis whose points are drawn from a distribution per setting.

The draws of a setting follow from the seed and its name alone. So more points with the same seed
extend the earlier ones, whose results are reused, and a further setting changes none of the others.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import SpecError, shown
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.hyperparameters import canonical_name
from mlpsubmit.spec.limits import MOST_VALUES

__all__ = [
    "Distribution",
    "SearchNames",
    "choice",
    "distinct",
    "loguniform",
    "randint",
    "random_search",
    "uniform",
]


#: Draws per point, beyond which there are no further different ones.
_MOST_REPEATS = 10_000


class SearchNames(tuple[str, ...]):
    """The names of a random search: a key of ``axes``, as the tuple of names of a zipped axis.

    Attributes:
        dimension: the name of the dimension in results.
    """

    dimension: str

    @classmethod
    def of(cls, names: Iterable[str], dimension: str) -> SearchNames:
        """Return the key of these names."""
        made = cls(names)
        made.dimension = dimension
        return made


@dataclass(frozen=True)
class Distribution:
    """A distribution of the values of a setting.

    Attributes:
        text: as one writes it.
        value: from a uniform draw in [0, 1) to a value: the inverse of the distribution function.
        count: how many values there are; infinite for real numbers.
    """

    text: str
    value: Callable[[float], Any]
    count: float = math.inf

    def __repr__(self) -> str:
        return self.text


# ---- distributions -------------------------------------------------------------------------------


def uniform(low: float, high: float) -> Distribution:
    """Return the uniform distribution of real numbers from low to high.

    Raises:
        SpecError: unless low < high are finite real numbers.

    Example:
        >>> axes = random_search(20, MOMENTUM=uniform(0, 0.9))
    """
    text = f"uniform({low!r}, {high!r})"
    _check_bounds(text, low, high, _is_real, "finite real numbers low < high")
    return Distribution(text, lambda u: float(low + u * (high - low)))


def loguniform(low: float, high: float) -> Distribution:
    """Return the distribution of real numbers from low to high whose logarithm is uniform.

    Raises:
        SpecError: unless 0 < low < high are finite real numbers.

    Example:
        >>> axes = random_search(20, LR=loguniform(1e-4, 1))
    """
    text = f"loguniform({low!r}, {high!r})"
    valid = "finite real numbers 0 < low < high"
    _check_bounds(text, low, high, lambda bound: _is_real(bound) and bound > 0, valid)
    start, span = math.log(low), math.log(high) - math.log(low)
    return Distribution(text, lambda u: float(min(max(math.exp(start + u * span), low), high)))


def randint(low: int, high: int) -> Distribution:
    """Return the uniform distribution of the integers from low to high, both included.

    Raises:
        SpecError: unless low < high are integers.

    Example:
        >>> axes = random_search(20, DEPTH=randint(1, 4))
    """
    text = f"randint({low!r}, {high!r})"
    _check_bounds(text, low, high, _is_integer, "integers low < high")
    first, count = int(low), int(high) - int(low) + 1
    return Distribution(text, lambda u: first + min(int(u * count), count - 1), count)


def choice(*values: Any) -> Distribution:
    """Return the uniform distribution over some values, of any kind.

    Raises:
        SpecError: for fewer than two values, and for one that is given twice.

    Example:
        >>> axes = random_search(20, WIDTH=choice(64, 256), OPTIMIZER=choice("sgd", "adam"))
    """
    text = f"choice({', '.join(map(shown, values))})"
    if len(values) < 2:
        listed = len(values) == 1 and isinstance(values[0], (list, tuple, range, np.ndarray))
        hint = "; try choice(*values)" if listed else "; give a single one as a setting"
        raise SpecError(f"{text}: got {len(values)} value(s); valid are two or more{hint}")
    if len({_content((value,)) for value in values}) < len(values):
        raise SpecError(f"{text}: has a value twice; keep one")
    return Distribution(text, lambda u: values[int(u * len(values))], len(values))


def _check_bounds(
    text: str, low: Any, high: Any, is_valid: Callable[[Any], bool], valid: str
) -> None:
    if not (is_valid(low) and is_valid(high) and low < high):
        raise SpecError(f"{text}: valid are {valid}")


def _is_real(bound: Any) -> bool:
    real = isinstance(bound, numbers.Real) and not isinstance(bound, bool)
    return real and math.isfinite(bound)


def _is_integer(bound: Any) -> bool:
    return isinstance(bound, numbers.Integral) and not isinstance(bound, bool)


# ---- the search ----------------------------------------------------------------------------------


def random_search(
    n: int, *, seed: int = 0, dimension: str = "sample", **distributions: Distribution
) -> dict[SearchNames, list[tuple[Any, ...]]]:
    """Return the axes of a random search: n points, drawn independently for each setting.

    It is one zipped axis, for ``Sweep(axes=random_search(...))`` or together with others:
    ``axes={**random_search(...), "trial": range(3)}``. All points differ: a draw that repeats an
    earlier point is left out. With the same seed, the points of a smaller n are the first ones of a
    larger n, so that a launch with more points trains only the new ones.

    The draws of a setting are those of numpy's PCG64, seeded with (seed, its name); a random search
    over one more setting has the same values of all others.

    Args:
        n: how many points.
        seed: of the draws.
        dimension: the name of the axis in results, where several settings are searched.
        distributions: of each setting, by its name: a hyperparameter, or an argument of a function
            of the spec; ``uniform``, ``loguniform``, ``randint`` or ``choice``.

    Returns:
        {names: points}, with one value per name in each point.

    Raises:
        SpecError: listing every error; if there are fewer than n different points.

    Example:
        >>> axes = random_search(200, LR=loguniform(1e-4, 1), WIDTH=choice(64, 256))
        >>> sweep = Sweep(axes={**axes, "trial": range(3)}, batchfn=sparse_parity, k=2, d=10)
        >>> len(sweep)
        600
    """
    if errors := _errors(n, seed, dimension, distributions):
        raise SpecError([f"random_search: {error}" for error in errors])
    points: list[tuple[Any, ...]] = []
    drawn = n
    while len(points) < n:
        if drawn > _MOST_REPEATS * n:  # uniform(1, 1 + 1e-15): there are few floats between
            raise SpecError(
                f"random_search: got n={n}, but found only {len(points)} different points"
            )
        columns = [
            [distribution.value(u) for u in _uniform(seed, name, drawn)]
            for name, distribution in distributions.items()
        ]
        points = distinct(zip(*columns, strict=True))
        drawn *= 2
    return {SearchNames.of(distributions, dimension): points[:n]}


def distinct(points: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return points without those that repeat an earlier one, compared as keys compare them."""
    found: dict[Any, tuple[Any, ...]] = {}
    for point in points:
        found.setdefault(_content(point), point)
    return [*found.values()]


def _errors(n: Any, seed: Any, dimension: Any, distributions: dict[str, Any]) -> list[str]:
    errors = []
    if not (_is_integer(n) and 1 <= n <= MOST_VALUES):
        errors.append(f"got n={shown(n)}; valid is a number of points from 1 to {MOST_VALUES}")
        n = 1
    if not (_is_integer(seed) and seed >= 0):
        errors.append(f"got seed={shown(seed)}; valid is an integer >= 0")
    if not (isinstance(dimension, str) and dimension.isidentifier()):
        errors.append(f"got dimension={shown(dimension)}; valid is a name such as 'sample'")
    if not distributions:
        errors.append("got no settings; give a distribution of each, as in LR=loguniform(1e-4, 1)")
    for name, given in distributions.items():
        if not isinstance(given, Distribution):
            listed = isinstance(given, (list, tuple, range, np.ndarray))
            hint = f"; try {name}=choice(*values)" if listed else ""
            errors.append(
                f"got {name}={shown(given)}; valid are uniform(low, high), loguniform(low, high), "
                f"randint(low, high) and choice(...){hint}; give a single value as a setting"
            )
    if not errors:
        count = math.prod(given.count for given in distributions.values())
        if count < n:
            errors.append(
                f"got n={n}, but there are only {count} different points; try n={count}, or axes "
                "with all values"
            )
    return errors


def _uniform(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Return the first uniform draws in [0, 1) for a setting, (count,): 53 bits each.

    They are made from raw bits, which numpy promises not to change.
    """
    own = canonical_name(name) or name
    bits = np.random.PCG64(np.random.SeedSequence([int(seed), *own.encode()]))
    return np.asarray((bits.random_raw(count) >> np.uint64(11)) * 2.0**-53)


def _content(point: tuple[Any, ...]) -> Any:
    """Return what is equal for equal points, compared as keys compare them."""
    plain = all(type(value) in (int, float, str) for value in point)  # the fast path
    return point if plain else setting_digest(*point)
