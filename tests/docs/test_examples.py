"""The examples run, and their results are those that they claim."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlpsubmit import launch, open_run
from mlpsubmit.runs.locate import runs_of
from mlpsubmit.spec.load import load_spec

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
    # Guessing has loss 1; the labels of unseen images are predicted from their pixels.
    assert (test < 0.4).all()
    # Rich training (large gamma) moves the first layer further than lazy training.
    moved = dataset.moved.isel(grab_step=-1, layer=0).mean("trial")
    assert (moved.sel(gamma=10) > 3 * moved.sel(gamma=0.1)).all()
    assert np.isfinite(dataset.moved).all()


def test_a_script_in_the_style_of_mlpscape_trains_only_what_is_missing(workplace: Path) -> None:
    """Monomials are learned in the order of their eigenvalues; a fourth trial trains alone."""

    def printed_steps(*arguments: str) -> list[list[int]]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "mlpscape_style.py"), *arguments],
            env={**os.environ, "EXPTPATH": str(workplace)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        steps = re.findall(r"GAMMA=([\d.]+) +steps \[(.*?)\]", done.stdout)
        assert [gamma for gamma, _ in steps] == ["0.3", "1"] * 3
        return [[int(float(step)) for step in row.split(",")] for _, row in steps]

    before = printed_steps("--NUM_TRIALS", "3")
    slow, fast = before[::2], before[1::2]
    # In the mean: in one trial in ten, the two of degree 1 take equally long.
    assert 0 < sum(slow[0]) < sum(slow[1]) < sum(slow[2])
    assert 0 < sum(fast[0]) < sum(fast[1]) < sum(fast[2])
    after = printed_steps("--NUM_TRIALS", "4")
    assert [row[:3] for row in after] == before
    first, second = map(open_run, runs_of(workplace / "mlpruns" / "mlpscape_style"))
    assert first.status().done == 18
    assert (second.status().done, second.status().reused) == (24, 18)
    result = pickle.loads((workplace / "mlpscape_style" / "result.pickle").read_bytes())
    assert result["var_axes"] == ["ntrain", "trial", "GAMMA", "monomials"]
    assert set(result["extras"]) == {"W_trace", "output"}
