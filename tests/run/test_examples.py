"""The examples show what they say they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlpsubmit import launch
from mlpsubmit.loading import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def test_the_staircase_climbs_by_degree(workplace: Path) -> None:
    """The degree-1 target is learned before the degree-2 one, and that before degree 3."""
    run = launch(load_spec(EXAMPLES / "staircase.py"), executor="debug")
    dataset = run.collect()
    assert (dataset.status == "done").all()
    steps = dataset.timekeys.sel(threshold=0.1)
    assert (steps >= 0).all()
    first, second, third = (steps.isel(monomials=degree).values for degree in range(3))
    assert first.max() * 2 < second.min()
    assert second.max() * 2 < third.min()
    # While the first is learned, the others have not moved from their first loss.
    middle = dataset.train_loss.sel(step=first.max(), method="nearest")
    assert (middle.isel(monomials=0) < 0.2).all()
    assert (middle.isel(monomials=[1, 2]) > 0.7).all()


def test_the_quickstart_learns_digits(workplace: Path) -> None:
    run = launch(load_spec(EXAMPLES / "quickstart.py"), executor="debug")
    dataset = run.collect()
    assert (dataset.status == "done").all()
    final = dataset.isel(step=-1)
    assert (final.train_loss < 0.05).all()
    test = (
        final.test_loss
        if "step" in dataset.test_loss.dims
        else dataset.test_loss.isel(eval_step=-1)
    )
    # Guessing costs 1; the labels of unseen images are predicted from their pixels.
    assert (test < 0.4).all()
    # Rich training (large gamma) moves the first layer further than lazy training.
    moved = dataset.moved.isel(grab_step=-1, moved_dim0=0).mean("trial")
    assert (moved.sel(gamma=10) > 3 * moved.sel(gamma=0.1)).all()
    assert np.isfinite(dataset.moved).all()
