"""Configs are selected by values of axes, and by the position along a zipped one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlpsubmit.errors import UserError
from mlpsubmit.runs.selection import select, select_one

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
