"""ExptTrace: measurements keyed by the values of named variables.

The same interface as the class of this name in expt-core, which MLPscape scripts use and which is
not on PyPI. Written anew; it reads and is read by all three generations of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ExptTrace"]

Key: TypeAlias = tuple[Any, ...]

KEY_TYPES = (int, float, str, tuple, np.integer, np.floating)
# Names of the measurements and of their shape in the serialised dictionaries of expt-core's three
# generations, newest first.
SPELLINGS = (
    ("measurements", "val_shape"),
    ("config2outcome", "outcome_shape"),
    ("vals", "valshape"),
)
# Keywords by which `set` of the older generations takes the measurement; a variable of that name
# would be ambiguous, and one generation refuses to load it.
RESERVED = ("val", "outcome")
masked_all: Any = np.ma.masked_all  # numpy 2.2 has no types for it


class ExptTrace:
    """Measurements of one shape, each keyed by a value for every variable.

    >>> trace = ExptTrace(["width", "trial"])
    >>> trace[64, 0] = 0.5
    >>> trace[64, 1] = 0.7
    >>> trace[64, :]
    array([[0.5, 0.7]])

    Args:
        var_names: the variables, in the order of the keys' elements.

    Raises:
        ValueError: ``var_names`` is not a list, or contains "val" or "outcome", keywords by which
            older versions of ``set`` take the measurement.
    """

    @classmethod
    def multi_init(cls, num: int, var_names: list[str]) -> list[ExptTrace]:
        """Return this many independent empty traces."""
        return [cls(var_names) for _ in range(num)]

    def __init__(self, var_names: list[str]) -> None:
        if not isinstance(var_names, list):
            raise ValueError(f"var_names must be a list, got {type(var_names).__name__}")
        for name in RESERVED:
            if name in var_names:
                raise ValueError(
                    f"variable name {name!r} disallowed: set({name}=...) gives the measurement"
                )
        self.var_names = var_names.copy()
        self._measurements: dict[Key, Any] = {}
        self._shape: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return (
            f"ExptTrace({self.var_names}, measurements={len(self._measurements)}, "
            f"shape={self._shape})"
        )

    def __setitem__(self, key: Any, val: Any) -> None:
        """Record a measurement: a number, or an array of numbers of the shape of all others.

        Args:
            key: one value per variable, as a tuple; for a single variable, the value alone will do.
            val: the measurement.

        Raises:
            ValueError: the key has the wrong length, an element of another type than int, float,
                str or tuple, or a measurement already; or the measurement is not numeric or has
                another shape than the first.
        """
        key = self._checked(key)
        if not all(isinstance(element, KEY_TYPES) for element in key):
            raise ValueError(f"key {key}: elements must be int, float, str or tuple")
        if key in self._measurements:
            raise ValueError(f"key {key} already exists: overwriting not supported")
        shape = np.shape(val)
        if self._shape is None:
            if not np.issubdtype(np.asarray(val).dtype, np.number):
                raise ValueError(f"measurement must be numeric, got {val!r}")
            self._shape = shape
        elif shape != self._shape:
            raise ValueError(f"measurement shape {shape} != expected {self._shape}")
        self._measurements[key] = val

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Return measurements, with an axis per variable in front of those of a measurement.

        Args:
            key: one value per variable, or ``:`` for all its values, sorted.

        Returns:
            Shape (values of the first variable, ..., *measurement), float64 or complex128; a masked
            array if some are missing; squeezed if the key selects a single one.

        Raises:
            RuntimeError: nothing has been recorded yet.
            ValueError: the key has the wrong length or a slice other than ``:``.
            KeyError: nothing that the key selects has been recorded.
        """
        if self._shape is None:
            raise RuntimeError("must add items before getting")
        axes = [
            self._selected(name, element)
            for name, element in zip(self.var_names, self._checked(key), strict=True)
        ]
        grid = tuple(len(axis) for axis in axes)
        found: list[tuple[tuple[int, ...], Any]] = []
        for where in np.ndindex(*grid):
            config = tuple(axis[i] for axis, i in zip(axes, where, strict=True))
            if config in self._measurements:
                found.append((where, self._measurements[config]))
        if not found:
            raise KeyError(f"no measurement recorded for {self._described(key)}")
        dtype = np.result_type(np.float64, *{np.asarray(val).dtype for _, val in found})
        values: npt.NDArray[Any] = masked_all((*grid, *self._shape), dtype=dtype)
        for where, val in found:
            values[where] = val
        if len(found) < np.prod(grid):
            return values
        plain = np.array(values)
        return plain.squeeze() if len(found) == 1 else plain

    def get(self, **names: Any) -> npt.NDArray[Any]:
        """Return measurements by variable name; a variable left out (or None) is sliced in full."""
        self._check_known(names)
        return self[
            tuple(slice(None) if (v := names.get(n)) is None else v for n in self.var_names)
        ]

    def set(self, *val: Any, **names: Any) -> None:
        """Record a measurement by variable name: ``set(0.5, width=64, trial=0)``.

        The measurement may also be called ``val`` or ``outcome``, as older versions of expt-core
        do: ``set(val=0.5, width=64, trial=0)``.
        """
        given = [*val, *(names.pop(name) for name in RESERVED if name in names)]
        if len(given) != 1:
            raise ValueError(f"set takes one measurement, got {len(given)}")
        self[self._full_key(names)] = given[0]

    def is_written(self, **names: Any) -> bool:
        """Return whether a measurement is recorded for these values of all variables."""
        return self._full_key(names) in self._measurements

    def get_axis(self, name: str) -> list[Any]:
        """Return the sorted values of a variable for which something is recorded."""
        if name not in self.var_names:
            raise ValueError(f"variable {name!r} not found; valid are {self.var_names}")
        position = self.var_names.index(name)
        values = {key[position] for key in self._measurements}
        # Numbers, text and tuples cannot be compared with each other: sort them one after another.
        return sorted(values, key=lambda v: (isinstance(v, str), isinstance(v, tuple), v))

    def serialize(self) -> dict[str, Any]:
        """Return a dictionary that every generation of expt-core deserialises.

        Each generation has its own names for the measurements and their shape, so the dictionary
        has all of them. The measurements are one object under three names, which pickle writes
        once.
        """
        measurements = dict(self._measurements)
        data: dict[str, Any] = {"var_names": list(self.var_names)}
        for name, shape in SPELLINGS:
            data |= {name: measurements, shape: self._shape}
        return data

    @classmethod
    def deserialize(cls, data: Mapping[str, Any]) -> ExptTrace:
        """Return the trace that `serialize`, here or in any generation of expt-core, came from.

        Raises:
            ValueError: the variables, or the measurements with their shape, are missing.
        """
        if "var_names" not in data:
            raise ValueError("missing key in serialized data: 'var_names'")
        for name, shape in SPELLINGS:
            if name in data and shape in data:
                trace = cls(list(data["var_names"]))
                trace._measurements = dict(data[name])
                trace._shape = None if data[shape] is None else tuple(data[shape])
                return trace
        pairs = ", ".join(f"{name!r} with {shape!r}" for name, shape in SPELLINGS)
        raise ValueError(
            f"missing keys in serialized data: got {sorted(data)}; needs one of {pairs}"
        )

    def _checked(self, key: Any) -> Key:
        elements: Key = key if isinstance(key, tuple) else (key,)
        if len(elements) != len(self.var_names):
            raise ValueError(
                f"key {elements} has {len(elements)} elements, expected {len(self.var_names)}: "
                f"{self.var_names}"
            )
        return elements

    def _selected(self, name: str, element: Any) -> list[Any]:
        if not isinstance(element, slice):
            return [element]
        if element != slice(None):
            raise ValueError(f"slice start, stop and step are not supported (variable {name!r})")
        return self.get_axis(name)

    def _described(self, key: Any) -> str:
        pairs = zip(self.var_names, self._checked(key), strict=True)
        return ", ".join(f"{n}={':' if isinstance(v, slice) else repr(v)}" for n, v in pairs)

    def _check_known(self, names: Mapping[str, Any]) -> None:
        unknown = sorted(set(names) - set(self.var_names))
        if unknown:
            raise ValueError(f"unknown variables {unknown}; valid are {self.var_names}")

    def _full_key(self, names: Mapping[str, Any]) -> Key:
        self._check_known(names)
        missing = [name for name in self.var_names if names.get(name) is None]
        if missing:
            raise ValueError(f"must specify the variables {missing}")
        return tuple(names[name] for name in self.var_names)
