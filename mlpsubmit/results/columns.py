"""Columns of a long table, with what is missing marked, for CSV and for parquet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import UserError
from mlpsubmit.results.source import Array

__all__ = ["Column", "Table", "without_complex"]

CSV_COLUMNS_PER_GRAB = 1000


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        values: shape (rows,), or (rows, ...) for an array grab.
        missing: mask of the same shape.
    """

    values: Array
    missing: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, values: Array) -> Column:
        """Return the column in which what is not a number is missing."""
        numeric = values.dtype.kind in "fc"
        return cls(values, np.isnan(values) if numeric else np.zeros(values.shape, np.bool_))

    @classmethod
    def of_counts(cls, values: Array) -> Column:
        """Return an integer column of what is float in the dataset only to have NaN."""
        return cls(np.nan_to_num(values).astype(np.int64), np.isnan(values))

    def __getitem__(self, where: Any) -> Column:
        return Column(self.values[where], self.missing[where])

    def fields(self) -> Iterator[Any]:
        """Return the entries as builtins for a row of CSV, "" for a missing one."""
        values = self.values.tolist()
        if self.values.dtype.kind in "OU":
            # The csv module quotes "\n" but not "\r", which many readers take for a new line.
            values = [value.replace("\r", "\\r") for value in values]
        pairs = zip(values, self.missing.tolist(), strict=True)
        return ("" if missing else value for value, missing in pairs)

    def flat(self, name: str) -> Table:
        """Return one column per entry of an array, named ``name[i,j]``."""
        shape = self.values.shape[1:]
        if math.prod(shape) > CSV_COLUMNS_PER_GRAB:
            raise UserError(
                f"grab {name!r} has {math.prod(shape):,} entries per row, too many for columns of "
                f"a .csv (at most {CSV_COLUMNS_PER_GRAB:,}); write .nc, .zarr or .parquet instead"
            )
        if not shape:
            return {name: self}
        entries = [(slice(None), *where) for where in np.ndindex(*shape)]
        return {f"{name}[{','.join(map(str, entry[1:]))}]": self[entry] for entry in entries}

    def arrow(self) -> Any:
        """Return the column as an Arrow array, of lists for every further axis."""
        import pyarrow as pa

        shape = self.values.shape
        array = pa.array(self.values.ravel(), mask=self.missing.ravel())
        for axis in range(len(shape) - 1, 0, -1):
            offsets = np.arange(math.prod(shape[:axis]) + 1, dtype=np.int32) * shape[axis]
            array = pa.ListArray.from_arrays(offsets, array)
        return array


Table: TypeAlias = dict[str, Column]


def without_complex(table: Table) -> Table:
    """Return the table with complex columns as two, for neither format has complex numbers."""
    parts: Table = {}
    for name, column in table.items():
        values = column.values
        if values.dtype.kind == "c":
            parts[f"{name}.real"] = Column(values.real, column.missing)
            parts[f"{name}.imag"] = Column(values.imag, column.missing)
        else:
            parts[name] = column
    return parts
