"""Equal failures are one reason, with the values of the axes that explain it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlpsubmit.jobs.failure_groups import Points, grouped
from mlpsubmit.results.source import Failure

SHAPE = (3, 2, 2)
AXES = [
    {"dimension": "noise", "names": ["noise"], "values": [[0.0, 0.1, 0.3]]},
    {"dimension": "width_lr", "names": ["width", "lr"], "values": [[8, 16], [0.5, 0.2]]},
    {"dimension": "trial", "names": ["trial"], "values": [[0, 1]]},
]


def indices(condition: Any) -> Any:
    """Return the indices of the points (noise, width, trial) with a condition."""
    return np.flatnonzero(np.fromfunction(np.vectorize(condition), SHAPE, dtype=int).ravel())


def common(condition: Any) -> str:
    failed = indices(condition)
    return Points(AXES, np.setdiff1d(np.arange(12), failed)).common(failed)


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        (lambda noise, width, trial: noise == 2, "noise=0.3"),
        (lambda noise, width, trial: noise > 0, "noise=0.1,0.3"),
        (lambda noise, width, trial: width == 1, "width=16 lr=0.2"),
        (lambda noise, width, trial: noise == 2 and width == 1, "noise=0.3 and width=16 lr=0.2"),
        (
            lambda noise, width, trial: noise == 0 and width == 0 and trial == 1,
            "noise=0.0 and width=8 lr=0.5 and trial=1",
        ),
        (lambda noise, width, trial: (noise + width + trial) % 2, ""),
        (lambda noise, width, trial: True, ""),
    ],
)
def test_the_values_that_failed_configs_share_and_no_other_has(condition: Any, named: str) -> None:
    assert common(condition) == named


def test_a_sweep_without_axes_has_no_values_to_name() -> None:
    assert Points([], np.zeros(0, np.int64)).common(np.array([0])) == ""


def test_errors_that_differ_in_numbers_are_one_reason_if_raised_at_one_place() -> None:
    def failure(index: int, error: str, where: str = "spec.py:3 in batch_fn") -> Failure:
        return Failure(np.array([index]), error, "", "0000000", where, "raise it")

    failures = [
        failure(0, "OSError: no such disk", where=""),
        failure(1, "ValueError: at step 20 of model 1"),
        failure(2, "ValueError: at step 1e-3 of model -2"),
        failure(3, "ValueError: at step 20 of model 1", where="spec.py:9 in size"),
    ]
    groups = grouped(failures, None, "RUN")
    assert [str(group) for group in groups] == [
        "ValueError: at step 20 of model 1 (2 configs; "
        "others with other numbers: mlpsubmit show RUN --config 2)",
        "OSError: no such disk (1 config)",
        "ValueError: at step 20 of model 1 (1 config)",
    ]
    assert [group.place for group in groups] == [
        "spec.py:3 in batch_fn: raise it",
        "raise it",
        "spec.py:9 in size: raise it",
    ]


def test_a_long_reason_is_cut() -> None:
    one = Failure(
        np.array([0]), f"ValueError: {'x' * 5000}", "", "0000000", "spec.py:3 in f", "y" * 5000
    )
    axes = [{"dimension": "name", "names": ["name"], "values": [["z" * 5000, "a"]]}]
    (group,) = grouped([one], Points(axes, np.array([1])), "RUN")
    assert str(group).startswith(f"ValueError: {'x' * 485}... (1 config: name=zzz")
    assert len(str(group)) < 650
    assert len(group.place) < 250
