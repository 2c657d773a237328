"""Seeds follow from (SEED, trial) alone; schedules begin at 0 and end at the last step."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.protocol import DONE
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import streams, train, weights_rng
from mlpsubmit.training.schedules import Schedule


def test_streams_are_what_they_always_were():
    # Fixed for good: other seeds here would make every finished run another one.
    assert streams(42, 0)[:3] == (8069173719269958482, 67091864417934941, 5800923004941853430)
    assert streams(0, 3)[:3] == (1001541652813893466, 7360708936354833380, 1007078887981175204)


def test_streams_differ_between_trials_seeds_and_purposes():
    seeds = [seed for s in range(5) for t in range(20) for seed in streams(s, t)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_initial_weights_follow_from_seed_and_trial_alone(gaussian, make_mlps):
    def start(K, position, trial, **further):
        hs = validate({"MAX_ITER": 1, "LR": 1e-30, **further})
        trials = list(range(50, 50 + K))
        trials[position] = trial
        models = make_mlps(K, width=7)
        train(models, [gaussian(0)] * K, hs, trials=trials)
        return models[position].input_layer.weight

    one = start(1, 0, 3)
    assert torch.equal(one, start(4, 2, 3, MAX_ITER=2, N_SAMPLES=5))
    assert torch.equal(one, start(2, 1, 3, OPTIMIZER="adam", ONLINE=False))
    assert not torch.equal(one, start(1, 0, 4))
    assert not torch.equal(one, start(1, 0, 3, SEED=1))


def test_the_weights_stream_of_a_model_of_its_own_initialisation():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with weights_rng(42, 1):
        one = torch.nn.Linear(3, 3).weight
    assert torch.equal(before, torch.get_rng_state())
    with weights_rng(42, 1):
        assert torch.equal(one, torch.nn.Linear(3, 3).weight)
    with weights_rng(42, 2):
        assert not torch.equal(one, torch.nn.Linear(3, 3).weight)


def test_intervals_end_with_the_last_step():
    assert Schedule(1, 4).steps.tolist() == [0, 1, 2, 3]
    assert Schedule(3, 8).steps.tolist() == [0, 3, 6, 7]
    assert Schedule(7, 8).steps.tolist() == [0, 7]
    assert Schedule(100, 8).steps.tolist() == [0, 7]
    assert Schedule(5, 1).steps.tolist() == [0]


def test_log_spaced_steps_are_even_in_the_logarithm():
    assert Schedule("log:4", 1000).steps.tolist() == [0, 9, 99, 999]
    assert Schedule("log:2", 9).steps.tolist() == [0, 8]
    assert Schedule("log:50", 5).steps.tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(2, 100), st.booleans())
def test_every_schedule_is_increasing_and_complete(max_iter, n, log):
    steps = Schedule(f"log:{n}" if log else n, max_iter).steps
    assert steps.dtype == np.int64
    assert (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (0, max_iter - 1)
    assert not log or len(steps) <= n
    at = Schedule(f"log:{n}" if log else n, max_iter)
    assert [step for step in range(-n, max_iter + n) if step in at] == steps.tolist()
    since = 0
    for step in range(1, max_iter):
        since = 1 if step - 1 in at else since + 1
        assert at.since_previous(step) == since


@pytest.mark.parametrize(("online", "step"), [(True, 3), (False, 2)])
def test_memory_without_traces_does_not_grow_with_max_iter(online, step, gaussian, make_mlps):
    values = iter((10.0, 9.0, 8.0, 7.0, 6.0))  # offline every other one is a test loss

    def falling(output, y):
        return output.square().mean() * 0 + next(values, 1.0)

    hs = validate(
        {
            "MAX_ITER": 10**9,
            "ONLINE": online,
            "LOSS": falling,
            "EMA_SMOOTHER": 0,
            "LOSS_CHECKPOINTS": [7.5],
            "RECORD_EVERY": 1,
            "GRAB_EVERY": 1,
        }
    )
    tracemalloc.start()
    try:
        result = train(
            make_mlps(1), [gaussian(0)], hs, test_fns=[gaussian(1)], grabs={"one": lambda model: 1}
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.status.tolist() == [DONE]
    assert result.steps.tolist() == [step + 1]
    assert result.timekeys.tolist() == [[step]]
    assert peak < 50e6


def test_the_package_is_imported_without_torch():
    code = "import sys, mlpsubmit.training as t; assert 'torch' not in sys.modules; dir(t)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import mlpsubmit.training as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="attribute nope"):
        _ = package.nope
