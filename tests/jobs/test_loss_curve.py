"""The loss of a pack, as few points as a heartbeat can carry."""

from __future__ import annotations

import json

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
