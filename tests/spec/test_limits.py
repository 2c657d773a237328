"""What is endless, gigantic or cannot be printed is refused in one message, at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from mlpsubmit import Sweep
from mlpsubmit.errors import SpecError, error_message, error_text, shown
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.load import load_spec


def batches(bsz: int, gen: Any, noise: Any = 0, X: Any = None, y: Any = None) -> NoReturn:
    raise AssertionError("is not called")


class Endless:
    def __iter__(self) -> Iterator[float]:
        return itertools.repeat(1.0)


class Liar(Endless):
    def __len__(self) -> int:
        return 3


TOO_MANY = "has more than 1,000,000 values; give fewer"


@pytest.mark.parametrize(
    "values",
    [
        itertools.count(),
        (0.5 for _ in itertools.count()),
        Endless(),
        range(10**12),
        range(10**40),
        np.broadcast_to(0.5, (10**12,)),
        zip(itertools.count(), itertools.count(), strict=True),
    ],
)
@pytest.mark.parametrize("name", ["noise", "WIDTH", "MODEL", "trial"])
def test_an_axis_without_an_end_is_refused(name: str, values: Any) -> None:
    with pytest.raises(SpecError, match=f"axis {name}: {TOO_MANY}"):
        Sweep(axes={name: values}, batchfn=batches)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("N_SAMPLES", itertools.count(1)),
        ("LOSS_CHECKPOINTS", range(10**12)),
        ("TARGET_MONOMIALS", Endless()),
        ("DEVICES", itertools.count()),
    ],
)
def test_a_list_without_an_end_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{name}: {TOO_MANY}"):
        Sweep(batchfn=batches, **{name: value})


@pytest.mark.parametrize("trials", [10**7, 10**12])
def test_too_many_trials_are_refused(trials: int) -> None:
    with pytest.raises(SpecError, match=TOO_MANY):
        Sweep(batchfn=batches, NUM_TRIALS=trials)


def test_all_axes_without_an_end_are_named_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        Sweep(axes={"noise": itertools.count(), ("LR", "GAMMA"): Endless()}, batchfn=batches)
    assert [message.partition(": ")[0] for message in refused.value.errors] == [
        "axis noise",
        "axis LR, GAMMA",
    ]


def test_a_point_without_an_end_is_refused() -> None:
    with pytest.raises(SpecError, match="each point of this zip should have 2 values"):
        Sweep(axes={("LR", "GAMMA"): [itertools.count()]}, batchfn=batches)


def test_the_values_of_an_axis_are_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its length is wrong."""
    monkeypatch.setattr("mlpsubmit.spec.axes.MOST_VALUES", 4)
    with pytest.raises(SpecError, match=r"the value 1\.0 appears more than once"):
        Sweep(axes={"noise": Liar()}, batchfn=batches)


@pytest.mark.slow
def test_a_product_with_too_many_points_is_refused() -> None:
    axes = {"noise": range(100_000), "trial": range(100_000)}
    message = (
        r"axes: their product noise\[100000\] x trial\[100000\] has 1e\+10 points, and a sweep may "
        "have 10,000,000; give fewer values"
    )
    with pytest.raises(SpecError, match=message):
        Sweep(axes=axes, batchfn=batches)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("WIDTH", 10**18, "1,000,000,000"),
        ("N_SAMPLES", 10**18, "1,000,000,000"),
        ("N_TEST", 10**10, "1,000,000,000"),
        ("DEPTH", 10**9, "10,000"),
        ("MAX_ITER", 10**18, "1,000,000,000,000"),
    ],
)
def test_sizes_have_a_limit(name: str, value: int, limit: str) -> None:
    with pytest.raises(SpecError, match=f"{name}: got {value}; should be at most {limit}"):
        Sweep(batchfn=batches, **{name: value})
    with pytest.raises(SpecError, match=f"{name}: got {value}; should be at most {limit}"):
        Sweep(axes={name: [4, value]}, batchfn=batches)


@pytest.mark.parametrize("name", ["WIDTH", "LR", "SEED", "noise"])
def test_integers_too_long_to_print_are_refused(name: str) -> None:
    for axes, settings in (({name: [1, 10**5000]}, {}), ({}, {name: 10**5000})):
        with pytest.raises(SpecError, match=f"{name}: "):
            Sweep(axes=axes, batchfn=batches, **settings)


def test_gigantic_schedules_are_refused() -> None:
    with pytest.raises(SpecError, match="GRAB_EVERY"):
        Sweep(batchfn=batches, GRAB_EVERY="log:" + "9" * 5000)


@pytest.mark.slow
def test_gigantic_contents_of_functions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reduced:
        def __reduce__(self) -> Any:
            return list, (), None, itertools.count()

    with pytest.raises(TypeError, match="a range of more than 10,000,000 values"):
        digest(range(10**15))
    with pytest.raises(TypeError, match="an array of 7451 GiB is too large"):
        digest(np.broadcast_to(0.5, (10**12,)))
    monkeypatch.setattr("mlpsubmit.spec.fingerprint.MOST_ENTRIES", 1000)
    with pytest.raises(TypeError, match="a count of more than 1,000 values"):
        digest(Reduced())


@pytest.mark.parametrize("length", [101, 10**6])
def test_a_name_too_long_for_folders_is_refused(length: int) -> None:
    with pytest.raises(SpecError, match=r"name: got 'nn.*not longer than 100") as refused:
        Sweep("n" * length, batchfn=batches)
    assert len(str(refused.value)) < 500


# ---- errors of the user's classes ----------------------------------------------------------------


class Mute(BaseException):
    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


def test_an_error_that_cannot_be_printed_has_a_text() -> None:
    assert error_text(Mute()) == "Mute: (its message cannot be printed: SystemExit)"
    assert error_message(ValueError("x" * 10**6)) == "x" * 2000 + "..."
    assert shown(Mute()) == "a Mute that cannot be printed (SystemExit)"
    assert shown("x" * 1000) == "'" + "x" * 199 + "..."


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("type('Own', (BaseException,), {})('boo')", "raised Own: boo"),
        ("GeneratorExit()", "raised GeneratorExit: "),
        ("type('Mute', (Exception,), {'__str__': lambda self: 5})()", "its message cannot be"),
        ("ValueError('x' * 10**7)", r"raised ValueError: x{2000}\.\.\.$"),
    ],
)
def test_a_spec_may_raise_anything(tmp_path: Path, raised: str, text: str) -> None:
    (tmp_path / "spec.py").write_text(f"raise {raised}\n")
    with pytest.raises(SpecError, match=text):
        load_spec(tmp_path / "spec.py")


def test_where_may_raise_anything() -> None:
    def where(config: Any) -> bool:
        raise Mute

    with pytest.raises(SpecError, match=r"where: raised Mute: \(its message cannot be printed"):
        Sweep(axes={"noise": [1]}, batchfn=batches, where=where)
