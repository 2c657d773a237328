"""Packs and sources made of plain dictionaries, and random sweeps of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from mlpsubmit.results.source import Dimension, Layout


class FakePack:
    """A pack whose arrays are values, or functions that make them when they are read."""

    def __init__(self, name: str, arrays: dict[str, Any]) -> None:
        self.name = name
        self.held = arrays

    def __getitem__(self, array: str) -> np.ndarray:
        value = self.held[array]
        return value() if isinstance(value, Callable) else value

    def arrays(self) -> Sequence[str]:
        return list(self.held)


@dataclass(frozen=True, eq=False)
class Failure:
    """A pack that ended in an exception."""

    indices: np.ndarray
    error: str


@dataclass
class FakeSource:
    held: list[FakePack] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def packs(self) -> Iterator[FakePack]:
        return iter(self.held)

    def failures(self) -> Iterable[Failure]:
        return self.failed


def make_pack(index: Sequence[int], *, thresholds: int = 0, **arrays: Any) -> FakePack:
    """A pack of these points with final losses, unless arrays say otherwise.

    A grab is given as ``grab__name``.
    """
    k = len(index)
    values = {
        "index": np.array(index, dtype=np.int64),
        "key": np.array([f"{i:032x}" for i in index], dtype="S32"),
        "status": np.ones(k, dtype=np.uint8),
        "steps": np.array([10 + i for i in index], dtype=np.int64),
        "seconds": np.array([i / 4 for i in index]),
        "timekeys": np.add.outer(np.array(index), np.arange(thresholds)).astype(np.int64),
        "train_loss": np.array([1 + i for i in index], dtype=float),
        "test_loss": np.array([2 + i for i in index], dtype=float),
    }
    values |= {name.replace("grab__", "grab."): np.asarray(v) for name, v in arrays.items()}
    return FakePack(f"pack-{'-'.join(map(str, index))}", values)


def make_layout(
    thresholds: Sequence[float] = (),
    included: np.ndarray | None = None,
    attributes: dict[str, Any] | None = None,
    **axes: Sequence[Any],
) -> Layout:
    dimensions = tuple(Dimension(name, {name: tuple(values)}) for name, values in axes.items())
    return Layout(dimensions, tuple(thresholds), attributes or {}, included)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
VALUES = [
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    TEXT,
    st.booleans(),
    st.one_of(st.integers(-5, 5), TEXT),
]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    dimensions = []
    for axis in range(draw(st.integers(0, 3))):
        kinds = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=2))
        size = draw(st.integers(1, 3))
        names = [f"a{axis}"] if len(kinds) == 1 else [f"a{axis}x", f"a{axis}y"]
        columns = {
            name: tuple(draw(st.lists(kind, min_size=size, max_size=size)))
            for name, kind in zip(names, kinds, strict=True)
        }
        dimensions.append(Dimension(f"a{axis}", columns))
    points = math.prod(dimension.size for dimension in dimensions)
    mask = draw(st.none() | st.lists(st.booleans(), min_size=points, max_size=points))
    return Layout(
        tuple(dimensions),
        tuple(draw(st.lists(st.floats(0, 1), max_size=2, unique=True))),
        {"name": draw(TEXT), "seed": draw(st.integers(0, 2**60)), "version": 0.5},
        None if mask is None else np.array(mask),
    )


@st.composite
def sources(draw: st.DrawFn, layout: Layout) -> FakeSource:
    """Some packs of some of the points, overlapping; traces, final values or both of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = draw(st.sampled_from([("final",), ("trace",), ("final", "trace")]))
    apart = draw(st.booleans())
    grabs = draw(st.sets(st.sampled_from(["scalar", "integer", "flag", "wave", "gram", "steps"])))
    packs = []
    for _ in range(draw(st.integers(0, 4))):
        count = int(rng.integers(1, min(layout.size, 3) + 1))
        index = np.sort(rng.choice(layout.size, count, replace=False))
        pack = random_pack(rng, index, len(layout.thresholds), grabs)
        if draw(st.sampled_from(kinds)) == "trace":
            add_traces(rng, pack, apart)
        if rng.random() < 0.2:  # trained online
            for array in ("test_loss", "eval_step"):
                pack.held.pop(array, None)
        packs.append(pack)
    failures = [
        Failure(rng.choice(layout.size, 1), f"ValueError: boom {draw(TEXT)}")
        for _ in range(draw(st.integers(0, 2)))
    ]
    return FakeSource(packs, failures)


def random_pack(
    rng: np.random.Generator, index: np.ndarray, thresholds: int, grabs: set[str]
) -> FakePack:
    k, width = len(index), int(rng.integers(1, 9))
    made = {
        "scalar": rng.normal(size=k).astype(np.float32),
        "integer": rng.integers(0, 9, k).astype(np.uint8),
        "flag": rng.integers(0, 2, k).astype(np.bool_),
        "wave": rng.normal(size=(k, 2)) + 1j,
        "gram": rng.normal(size=(k, width, width)),
        "steps": rng.integers(0, 9, (k, 2)),
    }
    return make_pack(
        index.tolist(),
        thresholds=thresholds,
        status=rng.integers(1, 3, k).astype(np.uint8),
        timekeys=rng.integers(-1, 9, (k, thresholds)),
        train_loss=rng.normal(size=k),
        test_loss=rng.normal(size=k),
        **{f"grab__{name}": made[name] for name in grabs},
    )


def add_traces(rng: np.random.Generator, pack: FakePack, apart: bool) -> None:
    """Turn a pack's values into traces: each value plus the step it is recorded at."""
    steps = {name: np.flatnonzero(rng.random(6) < 0.6) for name in ("step", "eval", "grab")}
    steps = {name: found if found.size else np.array([3]) for name, found in steps.items()}
    if not apart:
        steps = dict.fromkeys(steps, steps["step"])
    clocks = {"train_loss": "step", "test_loss": "eval"}
    for array, values in pack.held.items():
        if array in clocks or array.startswith("grab."):
            at = steps[clocks.get(array, "grab")]
            trace = values[:, None] + at.reshape(1, -1, *[1] * (values.ndim - 1))
            pack.held[array] = trace.astype(values.dtype)
    pack.held |= {"step": steps["step"], "eval_step": steps["eval"], "grab_step": steps["grab"]}


@pytest.fixture(scope="session")
def fakes() -> SimpleNamespace:
    return SimpleNamespace(
        Failure=Failure,
        Pack=FakePack,
        Source=FakeSource,
        pack=make_pack,
        layout=make_layout,
        layouts=layouts,
        sources=sources,
    )
