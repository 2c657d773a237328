"""Configs are selected by values of axes, and by the position along a zipped one."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlpsubmit.errors import UserError
from mlpsubmit.results.values import coordinate_values
from mlpsubmit.runs.selection import select, select_one
from mlpsubmit.runs.value_labels import axis_labels, label_hash

SEARCH = {"dimension": "sample", "names": ["lr", "width"], "values": [[0.1, 0.2, 0.2], [8, 8, 16]]}
SEARCH["hashes"] = [[], []]
TRIAL = {"dimension": "trial", "names": ["trial"], "values": [[0, 1]], "hashes": [[]]}
RUN: Any = SimpleNamespace(id="a", sweep={"axes": [SEARCH, TRIAL], "included": None})


@pytest.mark.parametrize(
    ("selection", "indices"),
    [
        ({"sample": 1}, [2, 3]),
        ({"sample": 2, "trial": 1}, [5]),
        ({"LR": 0.2, "WIDTH": 8}, [2, 3]),
        ({"sample": 0, "lr": 0.2}, []),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_points_of_a_zipped_axis(selection: dict[str, Any], indices: list[int]) -> None:
    assert select(RUN, selection).tolist() == indices


def test_errors_list_each_value_once() -> None:
    with pytest.raises(UserError) as caught:
        select(RUN, {"width": 9, "sample": 3, "colour": 1})
    assert str(caught.value) == (
        "width: got 9; valid are 8, 16; sample: got 3; valid are 0, 1, 2; "
        "colour: is not an axis of run a; its axes are sample, lr, width, trial"
    )
    with pytest.raises(UserError, match=r"x: sample=1 matches 2 configs .*add trial=\.\.\."):
        select_one(RUN, {"sample": 1}, "x")


LRS = {"dimension": "lr", "names": ["lr"], "values": [[0.27384196342643613, 0.1, 0.5]]}
LRS["hashes"] = [[]]
TARGET = {"dimension": "nHeads", "names": ["nHeads"], "values": [["$x_{0}$", "None", "none"]]}
TARGET["hashes"] = [[label_hash(text, text) for text in ("$x_{0}$", "None", "none")]]
SEARCHED: Any = SimpleNamespace(id="a", sweep={"axes": [LRS, TARGET], "included": None})


@pytest.mark.parametrize("shown", [0.27384196342643613, "0.273842", 0.273842, "0.274", 0.274])
def test_values_are_taken_as_tables_and_legends_show_them(shown: Any) -> None:
    assert select(SEARCHED, {"lr": shown}).tolist() == [0, 1, 2]
    if shown != 0.27384196342643613:  # what begins from its networks must have exactly this value
        with pytest.raises(UserError, match=r"lr: got '?0\.27.*; valid are 0\.2738419634"):
            select(SEARCHED, {"lr": shown}, exact={"lr"})


@pytest.mark.parametrize(
    ("text", "place"), [("$x_{0}$", 0), ("x_{0}", 0), ("X_{0}", 0), ("None", 1), ("none", 2)]
)
def test_texts_are_taken_in_another_case_where_none_is_equal(text: str, place: int) -> None:
    assert select(SEARCHED, {"nheads": text, "lr": "0.10"}).tolist() == [3 + place]


def test_the_values_next_to_a_wrong_one_are_named() -> None:
    many: Any = SimpleNamespace(
        id="a",
        sweep={
            "axes": [{**LRS, "values": [[n / 10 for n in range(99)]]}],
            "included": None,
        },
    )
    with pytest.raises(UserError) as caught:
        select(many, {"lr": 5.02})
    assert str(caught.value) == "lr: got 5.02; valid are 4.8, 4.9, 5.0, 5.1, 5.2, 5.3, ..."


def run_of(values: list[Any]) -> Any:
    """A run with an axis, as its sweep.json has it."""
    labels = axis_labels(values)
    hashes = [label_hash(*pair) for pair in zip(values, labels, strict=True)]
    axis = {"dimension": "v", "names": ["v"], "values": [labels], "hashes": [hashes]}
    return SimpleNamespace(id="a", sweep={"axes": [axis], "included": None})


def scaled(factor: float) -> Any:
    return lambda x: factor * x


@pytest.mark.parametrize(
    "values",
    [
        [1, "1", True, "True", None, "None"],
        [math.nan, 1.0, 2.5],
        [Fraction(1, 3), Fraction(1, 2), 1 / 3],
        ["a\0", r"a\0", "\udc80", r"\udc80", "b"],
        ["c\0", "d"],
        [2**53, 2**53 + 1, 2**70],
        [(0, 1), [0, 1], {"a": 0}],
        [scaled(1), scaled(2), torch.relu, torch.nn.functional.relu],
        [functools.partial(torch.mul, other=2), functools.partial(torch.mul, other=3)],
    ],
)
def test_every_value_selects_its_config_and_so_does_what_the_dataset_shows(
    values: list[Any],
) -> None:
    run = run_of(values)
    shown = coordinate_values(run.sweep["axes"][0]["values"][0])
    for n, (value, label) in enumerate(zip(values, shown, strict=True)):
        assert select(run, {"v": value}).tolist() == [n]
        assert select(run, {"v": label}).tolist() == [n]
        assert select(run, {"v": value}, exact={"v"}).tolist() == [n]


def test_texts_that_people_type_select_numbers_and_functions() -> None:
    assert select(run_of([1, 2]), {"v": "2"}).tolist() == [1]
    assert select(run_of([True, False]), {"v": "False"}).tolist() == [1]
    assert select(run_of([scaled(1), torch.relu]), {"v": "relu"}).tolist() == [1]
    assert select(run_of([scaled(1), torch.relu]), {"v": scaled(3)}).tolist() == [0]  # by its name
    assert select(run_of([Fraction(1, 2), 2]), {"v": 0.5}).tolist() == [0]
    with pytest.raises(UserError, match=r"v: got True; valid are 1, 2"):
        select(run_of([1, 2]), {"v": True})


def test_a_value_that_no_config_has_is_refused_beside_large_integers() -> None:
    with pytest.raises(UserError, match="v: got 5; valid are"):
        select(run_of([2**70, 1]), {"v": 5})


def test_where_the_value_counts_a_text_selects_nothing() -> None:
    text = (
        "v: got '1', whose code or content is another one in run a; give the same, or take that "
        "one with sel={'v': 1}"
    )
    with pytest.raises(UserError) as caught:
        select(run_of([1, 2]), {"v": "1"}, exact={"v"})
    assert str(caught.value) == text
    with pytest.raises(UserError, match=r"v: got '3'; valid are 1, 2"):
        select(run_of([1, 2]), {"v": "3"}, exact={"v"})


def test_values_of_one_text_are_told_apart_in_messages() -> None:
    run = run_of([1, "1"])
    run.sweep["axes"].append({**TRIAL})
    with pytest.raises(UserError, match=r"\(v=1 #0; v=1 #1\); select one of them: add v=\.\.\."):
        select_one(run, {"trial": 0}, "x")
