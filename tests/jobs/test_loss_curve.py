"""The loss of a pack, as few points as a heartbeat can carry."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from mlpsubmit.jobs.loss_curve import MOST, LossCurve
from mlpsubmit.jobs.store.records import Beat


@pytest.mark.parametrize("count", [0, 1, MOST, MOST + 1, 1000, 12_345])
def test_points_are_few_and_at_equal_distances_from_the_first(count: int) -> None:
    curve = LossCurve()
    for step in range(count):
        curve.add(64 * (step + 1), 1.0 / (step + 1))
    points = curve.to_json()
    assert min(count, MOST // 2) <= len(points) <= MOST
    steps = np.array([step for step, _ in points])
    assert len(set(np.diff(steps))) <= 1
    assert not count or steps[0] == 64
    assert [loss for _, loss in points] == pytest.approx(64 / steps)


def test_a_heartbeat_carries_losses_of_any_size_and_those_that_are_not_finite() -> None:
    curve = LossCurve()
    for step, loss in enumerate([1.7976931348623157e308, 5e-324, -1.0, None]):
        curve.add(step, loss)
    beat = {"state": "training", "started": 0.0, "updated": 0.0, "losses": curve.to_json()}
    written = json.dumps({**beat, "doing": "building networks"}, allow_nan=False)
    read = TypeAdapter(Beat).validate_python(json.loads(written), strict=True)
    assert [loss for _, loss in read["losses"]] == [1.7976931348623157e308, 5e-324, -1.0, None]


@pytest.mark.parametrize("count", [0, 1, 7, MOST, MOST + 1, 1000])
@pytest.mark.parametrize("ahead", [0, 5])
def test_a_curve_that_goes_on_is_that_of_an_uninterrupted_pack(count: int, ahead: int) -> None:
    """The state may be older than the last points, which are then made again."""
    whole, first = LossCurve(), LossCurve()
    for number in range(count + ahead):
        first.add(64 * (number + 1), 1.0 / (number + 1))
    second = LossCurve.restored(first.to_state(), 64 * count)
    for number in range(2 * count):
        whole.add(64 * (number + 1), 1.0 / (number + 1))
        if number >= count:
            second.add(64 * (number + 1), 1.0 / (number + 1))
    points = second.to_json()
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert len(points) <= MOST
    if not ahead or count + ahead <= MOST:
        assert points == whole.to_json()


@pytest.mark.parametrize(
    "saved",
    [
        None,
        3,
        "curve",
        {},
        {"points": [], "every": 0, "seen": 0},
        {"points": [[1]], "every": 1, "seen": 1},
        {"points": [["a", "b"]], "every": 1, "seen": 1},
        {"points": [(1, float("nan")), (2, float("inf"))], "every": -3, "seen": 2},
        {"points": [(float("inf"), 1.0)], "every": 1, "seen": 1},
        {"points": [(-4, 1.0), (70, 1.0)], "every": 1, "seen": 2},
        {"points": [(i, 1.0) for i in range(10_000)], "every": 1, "seen": 10_000},
    ],
)
def test_damage_to_a_saved_curve_costs_no_more_than_its_points(saved: Any) -> None:
    curve = LossCurve.restored(saved, 64)
    curve.add(128, 0.5)
    assert curve.to_json()[-1] == (128, 0.5)
    assert len(curve.to_json()) <= MOST
    json.dumps(curve.to_json(), allow_nan=False)
