"""Monomials: products of powers of coordinates."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import total_ordering
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from mlpsubmit.errors import SpecError

__all__ = ["Monomial", "Monomials", "checked_monomials"]

#: One monomial, a mapping index -> exponent, or several of them.
Monomials: TypeAlias = Mapping[int, int] | Sequence[Mapping[int, int]]

_FACTOR = re.compile(r"x_\{([0-9]+)\}(?:\^([0-9]+))?")
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


@total_ordering
class Monomial(Mapping[int, int]):
    r"""A product of powers of coordinates, as an immutable mapping index -> exponent.

    ``Monomial({0: 2, 3: 1})`` is :math:`x_0^2 x_3`, ``Monomial()`` is the constant 1. It equals a
    plain dict with the same items, is hashable, and prints as ``$x_{0}^2x_{3}$``, with ascending
    indices. Monomials are ordered by degree, then by their sequences of indices:
    ``x_0^2 < x_0 x_1 < x_1^2``.

    It also equals that text, which datasets and files have as its coordinate. So it selects from
    them, alone or in a list: ``ds.sel(monomials=Monomial({0: 1}))``.

    Args:
        exponents: index -> exponent, integers (also of numpy) >= 0 and >= 1. An index may be a
            string of digits, as in the keys of a JSON file.

    Raises:
        ValueError: for anything else, naming the bad entry.

    Example:
        >>> Monomial({0: 1}) * Monomial({0: 1, 3: 1})
        $x_{0}^2x_{3}$
    """

    __slots__ = ("_exponents",)
    _exponents: dict[int, int]

    def __init__(self, exponents: Mapping[Any, Any] = _EMPTY) -> None:
        if not isinstance(exponents, Mapping):
            raise ValueError(
                f"a monomial is a mapping index -> exponent; got {exponents!r}; "
                "try Monomial({0: 1}) for x_0"
            )
        checked: dict[int, int] = {}
        for key, entry in exponents.items():
            index = _integer(key, "indices", key, entry, minimum=0)
            if index in checked:
                raise ValueError(f"a monomial has each index once; got {index} twice")
            checked[index] = _integer(entry, "exponents", key, entry, minimum=1)
        self._exponents = dict(sorted(checked.items()))

    def __getitem__(self, index: int) -> int:
        return self._exponents[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._exponents)

    def __len__(self) -> int:
        return len(self._exponents)

    def __setitem__(self, index: int, exponent: int) -> NoReturn:
        raise TypeError(
            f"a Monomial does not change; build another one: Monomial({{**m, {index}: {exponent}}})"
        )

    def __delitem__(self, index: int) -> NoReturn:
        raise TypeError(
            "a Monomial does not change; build another one from a dict: exponents = dict(m); "
            f"del exponents[{index}]; Monomial(exponents)"
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str(self) == other
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(str(self))  # as that of its text; a dict, which it may equal too, has none

    def __getattribute__(self, name: str) -> Any:
        # xarray refuses labels that have this attribute, as mappings. m[0] does not look it up.
        if name == "__getitem__":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the text as an array of numpy without dimensions, which xarray looks up."""
        import numpy as np

        text = np.empty((), object)
        text[()] = str(self)
        return text if dtype is None else text.astype(dtype)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Monomial):
            return NotImplemented
        return self._order() < other._order()

    def __mul__(self, other: object) -> Monomial:
        if not isinstance(other, Mapping):
            return NotImplemented
        return Monomial(Counter(self) + Counter(Monomial(other)))

    __rmul__ = __mul__

    def __str__(self) -> str:
        if not self:
            return "1"
        powers = {index: f"^{exponent}" if exponent > 1 else "" for index, exponent in self.items()}
        return "$" + "".join(f"x_{{{index}}}{power}" for index, power in powers.items()) + "$"

    __repr__ = __str__  # scripts of MLPscape use the repr as a key

    def __reduce__(self) -> tuple[type[Monomial], tuple[dict[int, int]]]:
        return Monomial, (dict(self._exponents),)

    def _order(self) -> tuple[int, list[tuple[int, int]]]:
        # (index, -exponent) compares as the indices with repetition do, however large the exponent.
        return self.degree(), [(index, -exponent) for index, exponent in self.items()]

    def degree(self) -> int:
        """Return the sum of the exponents: 0 for the constant."""
        return sum(self.values())

    def max_degree(self) -> int:
        """Return the largest exponent: 0 for the constant."""
        return max(self.values(), default=0)

    def copy(self) -> Monomial:
        """Return the monomial itself, since it never changes."""
        return self

    def basis(self) -> dict[int, int]:
        """Return the exponents as a new plain dict, indices ascending."""
        return dict(self._exponents)

    def basis_factors(self) -> list[Monomial]:
        """Return the factors of degree one: ``x_0^2 x_3`` is ``[x_0, x_0, x_3]``."""
        return [Monomial({index: 1}) for index, exponent in self.items() for _ in range(exponent)]

    def evaluate(self, X: Any, gamma: float = 1.0) -> Any:
        r"""Return :math:`\prod_i (\gamma x_i)^{e_i}` of each row: plain powers, without Hermite.

        Args:
            X: (n, d), an array of numpy or a tensor of torch.
            gamma: factor by which every coordinate is multiplied first.

        Returns:
            (n,), of the type and on the device of X.

        Raises:
            ValueError: if an index is not a column of X.

        Example:
            >>> Monomial({0: 2, 1: 1}).evaluate(np.array([[3.0, 10.0]]))
            array([90.])
        """
        if self and max(self) >= X.shape[1]:
            raise ValueError(
                f"the monomial {self} has the index {max(self)}, but X has {X.shape[1]} columns"
            )
        product = X[:, 0] ** 0
        for index, exponent in self.items():
            product = product * (gamma * X[:, index]) ** exponent
        return product

    @classmethod
    def from_repr(cls, text: str) -> Monomial:
        """Return the monomial that prints as this text; spaces and dollar signs are optional.

        Raises:
            ValueError: naming the position of the first invalid factor.

        Example:
            >>> Monomial.from_repr("$x_{0}^2x_{3}$") == {0: 2, 3: 1}
            True
        """
        # Positions in messages count the spaces.
        positions = [i for i, character in enumerate(text) if not character.isspace()]
        packed = "".join(text[i] for i in positions)
        start, end = 0, len(packed)
        if end >= 2 and packed[0] == packed[-1] == "$":
            start, end = 1, end - 1
        product = cls()
        if packed[start:end] == "1":
            return product
        while start < end or not product:
            factor = _FACTOR.match(packed, start, end)
            if factor is None or (factor[2] is not None and int(factor[2]) == 0):
                position = [*positions, len(text)][start]
                raise ValueError(
                    f"no monomial: {text!r} at position {position}; "
                    "valid are '1' and products such as '$x_{0}^2x_{3}$'"
                )
            product = product * {int(factor[1]): int(factor[2] or 1)}
            start = factor.end()
        return product


def checked_monomials(
    function: str, monomials: Any, d: int, dimension: str = "d"
) -> list[Monomial]:
    """Return one monomial or several as a list, each within d coordinates.

    Args:
        function: the name of the calling function, for messages.
        monomials: one Monomial (or dict index -> exponent), or a sequence of them.
        d: the number of coordinates.
        dimension: the function's name for that number, for messages.

    Raises:
        SpecError: if there are none; listing every invalid monomial and every index >= d.
    """
    several = isinstance(monomials, Sequence) and not isinstance(monomials, str)
    entries = list(monomials) if several else [] if monomials is None else [monomials]
    checked = []
    errors = [] if entries else [f"{function}: got no monomials; try Monomial({{0: 1}})"]
    for entry in entries:
        try:
            monomial = Monomial(entry)
        except ValueError as error:
            errors.append(f"{function}: bad monomial {entry!r}: {error}")
            continue
        if monomial and (highest := max(monomial)) >= d:
            errors.append(
                f"{function}: the monomial {monomial} has the index {highest}, but "
                f"{dimension}={d}; valid are 0 to {d - 1}; try a larger {dimension}"
            )
        checked.append(monomial)
    if errors:
        raise SpecError(errors)
    return checked


def _integer(value: Any, role: str, key: Any, entry: Any, minimum: int) -> int:
    """Return the index or the exponent of one entry as a Python int."""
    if role == "indices" and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(
            f"the {role} of a monomial are integers >= {minimum}; got {value!r} in "
            f"{{{key!r}: {entry!r}}}"
        )
    return number
