"""Settings that have to fit together, on axes and under where=: as each config by itself."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from mlpsubmit import SpecError, Sweep
from mlpsubmit.spec.hyperparameters import validate

#: Values of settings of which some do not fit others.
VALUES = {
    "loss_checkpoints": [None, [0.1]],
    "percent_thresholds": [None, [0.5]],
    "nesterov": [None, True],
    "momentum": [None, 0.0, 0.9],
    "optimizer": ["sgd", "muon", "Adagrad"],
    "optimizer_kwargs": [{}, {"ns_steps": 3}, {"ns_steps": 0}],
    "lr_schedule": ["constant", "linear"],
    "warmup_steps": [0, 5, 9],
    "max_iter": [5, 9, 20],
    "metrics": [[], ["r2"]],
    "metric_thresholds": [{}, {"test_r2": 0.5}, {"test_other": 0.5}],
    "stop_on": ["train_loss", "test_r2"],
}

#: Spelled out, as the default depends on the first point of the product.
ALWAYS = {"loss_checkpoints": [0.1], "percent_thresholds": None}


def batches(bsz, gen):
    return lambda step: None


def errors_of(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except SpecError as error:
        return set(error.errors)
    return set()


@st.composite
def sweeps(draw):
    """Axes, of which two may be zipped, fixed settings, and which points to keep."""
    names = draw(st.lists(st.sampled_from(list(VALUES)), min_size=3, max_size=6, unique=True))
    zipped, *single = (tuple(names[:2]), *names[2:4])
    pairs = list(itertools.product(*(VALUES[name] for name in zipped)))
    axes = {zipped: draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=3, unique_by=repr))}
    for name in single:
        axes[name] = draw(
            st.lists(st.sampled_from(VALUES[name]), min_size=1, max_size=2, unique_by=repr)
        )
    fixed = {name: draw(st.sampled_from(VALUES[name])) for name in names[4:]}
    fixed |= {name: value for name, value in ALWAYS.items() if name not in names}
    size = len(list(itertools.product(*axes.values())))
    kept = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    return axes, fixed, kept


@settings(deadline=None)
@given(sweeps())
def test_a_sweep_is_refused_just_where_a_config_that_it_keeps_would_be(sweep):
    axes, fixed, kept = sweep
    expected = set()
    for values in itertools.compress(itertools.product(*axes.values()), kept):
        point = dict(zip(next(iter(axes)), values[0], strict=True))
        point |= dict(zip(list(axes)[1:], values[1:], strict=True))
        expected |= errors_of(validate, {**fixed, **point})
    if any(", which OPTIMIZER=" in error for error in expected):
        return  # an optimizer of an axis need not use all settings
    found = errors_of(
        Sweep, "a", axes, batchfn=batches, where=lambda config: kept[config.index], **fixed
    )
    assert bool(found) == bool(expected)
    if all(error.startswith("at ") for error in found):
        assert {error for error in expected if not any(error in other for other in found)} == set()
