"""Configs are selected by values of axes, and by the position along a zipped one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlpsubmit.errors import UserError
from mlpsubmit.runs.selection import select, select_one

SEARCH = {"dimension": "sample", "names": ["lr", "width"], "values": [[0.1, 0.2, 0.2], [8, 8, 16]]}
TRIAL = {"dimension": "trial", "names": ["trial"], "values": [[0, 1]]}
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
TARGET = {"dimension": "nHeads", "names": ["nHeads"], "values": [["$x_{0}$", "None", "none"]]}
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
            "axes": [{"dimension": "lr", "names": ["lr"], "values": [[n / 10 for n in range(99)]]}],
            "included": None,
        },
    )
    with pytest.raises(UserError) as caught:
        select(many, {"lr": 5.02})
    assert str(caught.value) == "lr: got 5.02; valid are 4.8, 4.9, 5.0, 5.1, 5.2, 5.3, ..."
