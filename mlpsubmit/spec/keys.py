"""The keys of configs and the fingerprint of a sweep, as functions of the checked spec.

A key is the sum of the digests of a config's settings, as two 64-bit lanes that are added
separately modulo 2^64. So the order of settings does not matter, a value counts the same whether it
is fixed or on an axis, and the keys of a million configs take a few vector additions. Settings at
their default are left out, so that a later release may add one without changing older keys. Equal
values of any type count the same. A function whose effect cannot be seen counts as another one in
every launch: its results are never reused.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import SpecError
from mlpsubmit.results.labels import NO_LABELS
from mlpsubmit.spec.axes import NO_CONTENT
from mlpsubmit.spec.fingerprint import DIGEST_BYTES, setting_digest
from mlpsubmit.spec.hyperparameters import (
    OF_AXES,
    OPTIMIZERS,
    OUTSIDE_RESULTS,
    Hyperparameters,
    canonical_name,
)
from mlpsubmit.spec.initial_weights import InitialWeights
from mlpsubmit.spec.read import Spec

__all__ = [
    "NUMERICS",
    "KeyTables",
    "common_entries",
    "config_keys",
    "counts",
    "fingerprint",
    "key_tables",
    "taken_of_axes",
    "values_of",
]

#: Part of every key; raised when a release changes the results that the same settings give.
NUMERICS = 10

_LANES = DIGEST_BYTES // 8

#: The setting that counts with the hash of the weights that it refers to.
_INITIAL = "init_weights"


@dataclass(frozen=True, eq=False)
class KeyTables:
    """The contributions of all settings to keys.

    Attributes:
        base: (2,) uint64, of what all configs have in common.
        axes: per axis, (points, 2) uint64, of each of its points.
        initial: with INIT_WEIGHTS, which network each config begins from, and for each of these
            (n, 2) uint64, of the hash of its weights.
    """

    base: NDArray[np.uint64]
    axes: tuple[NDArray[np.uint64], ...]
    initial: tuple[InitialWeights, NDArray[np.uint64]] | None = None


def key_tables(spec: Spec) -> KeyTables:
    """Hash the settings and functions of a spec.

    Raises:
        SpecError: where one holds something that has no content to hash, such as an open file, or
            uses something of a library that the user has replaced.
    """
    unseen: list[str] = []
    axes = [
        np.array([_lanes(_counted(spec, axis.names, point), unseen) for point in axis.points])
        for axis in spec.product.axes
    ]
    base = np.array(_lanes(common_entries(spec), unseen))
    initial = None
    if spec.initial is not None:
        named = ([(_INITIAL, found)] if found else [] for found in spec.initial.hashes)
        initial = spec.initial, np.array([_lanes(entries, unseen) for entries in named])
    if unseen:
        warnings.warn(
            f"{'; '.join(dict.fromkeys(unseen))}: what this does is not part of the keys of "
            "configs, so every launch trains them again and no result is reused; use functions and "
            "modules by their names instead",
            stacklevel=2,
        )
    return KeyTables(base, tuple(axes), initial)


def _counted(spec: Spec, names: Iterable[str], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of settings, but for one whose effect has a table of its own."""
    known = {str(one) for one in values_of(spec, "optimizer")} <= {*OPTIMIZERS}
    for name, value in zip(names, values, strict=True):
        if known and name in _AS_UNSET and value == _AS_UNSET[name]:
            yield name, None
        elif name != _INITIAL or spec.initial is None:
            yield name, value


#: Values that mean the same as None with the optimizers that all have these defaults.
_AS_UNSET = {"weight_decay": 0.0, "eps": 1e-8}


def values_of(spec: Spec, name: str) -> Sequence[Any]:
    """Return all values of a hyperparameter in a spec."""
    on_axis = (axis.values(name) for axis in spec.product.axes if name in axis.names)
    return next(on_axis, [getattr(spec.base, name)])


def config_keys(tables: KeyTables, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the keys (n, 2) uint64 of the configs at n flat indices."""
    total = np.tile(tables.base, (len(indices), 1))
    if tables.initial is not None:
        initial, table = tables.initial
        total += table[initial.numbers(tuple(map(len, tables.axes)), indices)]
    for table in reversed(tables.axes):  # the last axis varies fastest
        indices, column = np.divmod(indices, len(table))
        total += table[column]
    return total


def fingerprint(spec: Spec, tables: KeyTables) -> str:
    """Return the hex hash of a whole sweep: equal for two launches of an unchanged spec."""
    axes = [(axis.names, axis.points, axis.dimension) for axis in spec.product.axes]
    # Neither is part of a key, but rounding depends on both.
    arithmetic = (spec.base.pack_size, spec.base.compile)
    # A run's sweep.json has the labels of its grabs, so other labels need another run.
    labels = {name: own.as_json() for name, own in spec.labels.items() if own != NO_LABELS}
    initial = None if tables.initial is None else tables.initial[1].tobytes()
    base = (tables.base.tobytes(), initial)
    parts = (spec.name, *base, axes, spec.where, *arithmetic, labels)
    return _digest("where", *parts).hex()


def common_entries(spec: Spec) -> list[tuple[str, Any]]:
    """Return the names and values of everything that is not on an axis."""
    axis_names = spec.product.names
    names = [name for name in Hyperparameters.model_fields if name not in axis_names]
    entries = list(_counted(spec, names, (getattr(spec.base, name) for name in names)))
    entries += spec.arguments.items()
    entries += [(f"{name}()", getattr(spec.base, name)) for name in sorted(taken_of_axes(spec))]
    if "trial" not in axis_names | set(spec.arguments):
        entries.append(("trial", 0))
    entries += [("batchfn()", spec.batchfn), ("data()", spec.data), ("numerics()", NUMERICS)]
    entries += [(f"grab()[{name}]", grab) for name, grab in spec.grabs.items()]
    if spec.process is not None:
        entries += [(f"process()[{name}]", part) for name, part in spec.process.determining.items()]
    return entries


def _lanes(entries: Iterable[tuple[str, Any]], unseen: list[str]) -> list[np.uint64]:
    """Return the sum, lane by lane modulo 2^64, of the digests of (name, value) entries.

    Args:
        unseen: takes a text for each part of a value that is in no digest.
    """
    total = np.zeros(_LANES, dtype=np.uint64)
    for name, value in entries:
        if counts(name, value):
            own: list[str] = []
            content = _digest(name, name, value, unseen=own)
            if own:
                content = secrets.token_bytes(DIGEST_BYTES)
                unseen += [f"{name.replace('()', '')}: {text}" for text in own]
            total += np.frombuffer(content, dtype="<u8")
    return list(total)


def _digest(place: str, *values: Any, unseen: list[str] | None = None) -> bytes:
    try:
        return setting_digest(*values, unseen=unseen)
    except TypeError as error:
        raise SpecError(f"{place.replace('()', '')}: {NO_CONTENT.format(error)}") from error
    except SpecError as error:
        texts = [f"{place.replace('()', '')}: {text}" for text in error.errors]
        raise SpecError(texts) from error


def taken_of_axes(spec: Spec) -> set[str]:
    """Return the other names of axes that functions declare: results depend on them."""
    return {str(canonical_name(name)) for name in spec.accepted.declared} & OF_AXES


def counts(name: str, value: Any) -> bool:
    """Return whether a setting is part of a key: it affects results and is not at its default."""
    field = Hyperparameters.model_fields.get(name)
    return field is None or (name not in OUTSIDE_RESULTS and value != field.default)
