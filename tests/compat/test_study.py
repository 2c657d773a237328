"""From a script's iterators and configurations to a sweep, its packs and its keys."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from mlpsubmit import SpecError, open_run
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.compat import Monomial, base_args, run_job_iterator
from mlpsubmit.compat.study import read_study
from mlpsubmit.jobs.plan import make_plan


def any_bfn(bsz, gen, X=None, y=None, **kwargs):
    def batch_fn(step):
        inputs = torch.randn(bsz, 4, generator=gen)
        return inputs, inputs[:, 0]

    return batch_fn


def study(iterators, names, config=None, **bfn_config):
    return read_study(iterators, names, config, {"base_bfn": any_bfn, **bfn_config}, "study")


def axes(iterators, names, config=None, **bfn_config):
    sweep = study(iterators, names, config, **bfn_config).sweep
    return {axis.dimension: [point[0] for point in axis.points] for axis in sweep.product.axes}


# ---- iterators ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["ntrain", "trial"], ["n", "trials"], ["N_SAMPLES", "NUM_TRIALS"], ["N_TRAIN", "SEED"], None],
)
def test_the_first_iterator_is_the_sample_size_and_the_second_the_trial(names):
    """Whatever their names, as in MLPscape."""
    assert axes([[8], [0, 1]], names) == {"n_samples": [8], "trial": [0, 1]}


def test_further_iterators_set_hyperparameters_and_keep_their_names():
    found = study(
        [[8], range(2), [0.1, 1], [Monomial({0: 1})], ["a", "b"], [10, 20]],
        ["ntrain", "trial", "gamma", "monomials", "kind", "N_TRAIN"],
    )
    names = ["ntrain", "trial", "gamma", "monomials", "kind", "N_TRAIN"]
    assert list(found.names.values()) == names
    axes = ["n_samples", "trial", "gamma", "monomials", "kind", "n_train"]
    assert list(found.names) == axes


def test_names_that_a_sweep_cannot_have(run, config):
    """Keywords of Python, names of the train loop, and names that are not identifiers."""

    def bfn(bsz, gen, X=None, y=None, **kwargs):
        def batch_fn(step):
            total = kwargs["lambda"] + kwargs["learning rate"]
            return torch.ones(bsz, 2), torch.full((bsz,), float(total))

        return batch_fn

    grab = lambda y_tr, output, **kwargs: y_tr[0] + kwargs["$\\beta$"] + output  # noqa: E731
    result = run(
        [[4], [0], [1, 2], [10], [100], [1000]],
        ["ntrain", "trial", "lambda", "learning rate", "$\\beta$", "output"],
        config(otherreturns={"sum": grab}),
        {"base_bfn": bfn},
    )
    assert result["var_axes"][2:] == ["lambda", "learning rate", "$\\beta$", "output"]
    found = result["extras"]["sum"]["config2outcome"]
    assert found == {(4, 0, 1, 10, 100, 1000): 1111.0, (4, 0, 2, 10, 100, 1000): 1112.0}


def test_lists_of_monomials_and_other_targets_arrive_as_they_are(run, config):
    seen = []

    def bfn(monomials, bsz, gen, X=None, y=None):
        seen.append(monomials)
        return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

    values = [[Monomial({0: 1}), Monomial({1: 1})], "first"]
    result = run([[4], [0], values], ["ntrain", "trial", "monomials"], config(), {"base_bfn": bfn})
    assert result["jobs"] == [(4, 0, "[$x_{0}$, $x_{1}$]"), (4, 0, "first")]
    assert all(value in values for value in seen)


def test_an_axis_that_no_function_takes_is_an_axis(run, config):
    def bfn(bsz, gen, X=None, y=None):
        return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

    result = run([[4], [0], [1, 2]], ["ntrain", "trial", "idle"], config(), {"base_bfn": bfn})
    assert result["jobs"] == [(4, 0, 1), (4, 0, 2)]


def test_no_iterators_at_all(run, config):
    result = run([], [], config(N_SAMPLES=[6]), {"base_bfn": any_bfn})
    assert result["jobs"] == [()]
    assert result["var_axes"] == []


# ---- global_config -----------------------------------------------------------------------------


def test_hyperparameters_in_any_spelling():
    sweep = study(
        [[8], range(2)],
        ["ntrain", "trial"],
        {"WIDTH": 8192, "width": 64, "depth": 3, "MAX_ITER": 1e2, "LOSS_CHECKPOINTS": 0.1}
        | {"N_SAMPLES": [1024], "NUM_TRIALS": 2, "determinsitic": False, "only_thresholds": 0},
    ).sweep
    base = sweep.base
    assert (base.width, base.depth, base.max_iter) == (64, 3, 100)
    assert base.loss_checkpoints == (0.1,)
    assert base.deterministic is base.onlythresholds is False


def test_what_parse_args_returned_is_taken_whole():
    args = base_args()
    args.WIDTH, args.GAMMA, args.N_TOT = 64, [0.1, 1], 5000
    found = study([args.N_SAMPLES, range(args.NUM_TRIALS), args.GAMMA], ["n", "t", "GAMMA"], args)
    assert found.sweep.base.width == 64
    assert found.sweep.base.datasethps == {}  # they are for the script, which makes its own data
    assert isinstance(args, argparse.Namespace)


def test_percent_thresholds_stand_in_for_thresholds_at_their_default():
    args = base_args()
    args.PERCENT_THRESHOLDS = [0.5]
    assert study([[8]], ["n"], args).sweep.base.percent_thresholds == (0.5,)
    found = axes([[8], [0], [[0.5], [0.1]]], ["n", "trial", "percent_thresholds"], base_args())
    assert found["percent_thresholds"] == [(0.5,), (0.1,)]


def test_functions_get_what_the_script_says_as_it_spells_it(run, config):
    names = ("ntrain", "trial", "GAMMA", "width", "LR", "DIM", "d_in", "own")

    def everything(model, X_tr, y_tr, X_te, y_te, opt, **kwargs):
        assert kwargs["kind"] == "x"
        assert "otherreturns" not in kwargs
        return [kwargs[name] for name in names]

    def some(model, ntrain, DIM, WIDTH, width, own, d_in, noise=3, depth=None):
        return [ntrain, DIM, WIDTH, width, own, d_in, noise, depth]

    result = run(
        [[6], [1], [0.5, 2.0], ["x"]],
        ["ntrain", "trial", "GAMMA", "kind"],
        config(width=5, own=7, otherreturns={"all": everything, "some": some}),
        {"base_bfn": any_bfn},
    )
    assert result["extras"]["some"]["config2outcome"][6, 1, 0.5, "x"].tolist() == [
        *(6, 4, 5, 5, 7, 4, 3, 2)
    ]
    found = result["extras"]["all"]["config2outcome"][6, 1, 2.0, "x"]
    assert found.tolist() == [6, 1, 2.0, 5, 0.1, 4, 4, 7]


def test_tensors_are_handed_on_and_what_is_no_tensor_stays_what_it_is(run, config):
    held = {"table": torch.arange(3.0), "array": np.arange(3.0), "net": torch.nn.Linear(2, 1)}

    def bfn(table, array, net, bsz, gen, X=None, y=None):
        assert isinstance(array, np.ndarray)
        assert table.device == next(net.parameters()).device == gen.device

        def batch_fn(step):
            inputs = torch.randn(bsz, 2, generator=gen, device=gen.device)
            with torch.no_grad():
                return inputs, net(inputs)[:, 0] + table.sum() + array.sum()

        return batch_fn

    grab = lambda lookup, **kwargs: lookup.sum()  # noqa: E731
    result = run(
        [[4], [0]],
        ["n", "trial"],
        config(lookup=torch.ones(4), otherreturns={"sum": grab}, LR=0.01),  # whatever the net
        {"base_bfn": bfn, **held},
    )
    assert result["extras"]["sum"]["config2outcome"] == {(4, 0): 4.0}


# ---- packs -------------------------------------------------------------------------------------


def test_configs_that_draw_the_same_share_a_pack_and_its_batches():
    """As in the image examples, whose batch function has **kwargs."""
    names = ["ntrain", "trial", "GAMMA", "LR"]
    sweep = study(
        [[8], range(2), [0.1, 1, 10], [0.1, 0.2]],
        names,
        {"width": 8, "MAX_ITER": 2, "otherreturns": {"g": lambda GAMMA, **kwargs: GAMMA}},
    ).sweep
    plan = make_plan(sweep, 1, 1)
    assert (plan.packs, plan.configs) == (1, 12)
    (stack,) = assemble(sweep, list(sweep), [{}] * 12, torch.device("cpu"))
    assert len(stack.models) == 12
    assert len(set(map(id, stack.batch_fns))) == 2  # one for each trial


def test_an_iterator_over_data_reaches_kwargs_and_one_over_a_hyperparameter_does_not(run, config):
    seen = {}

    def bfn(bsz, gen, X=None, y=None, **kwargs):
        seen.update(kwargs)
        return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

    def declaring(bsz, gen, X, y, GAMMA, trial, split, device):
        seen.update(declared=(GAMMA, trial, split, str(device)))
        return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

    iterators, names = [[4], [3], [2.0], [0.5]], ["ntrain", "trial", "GAMMA", "alpha"]
    run(iterators, names, config(), {"base_bfn": bfn, "more": 1})
    assert seen == {"alpha": 0.5, "more": 1}
    run(iterators, names, config(), {"base_bfn": declaring})
    assert seen["declared"] == (2.0, 3, "train", "cpu")


def test_what_no_result_depends_on_changes_no_key():
    """More trials, monomials or output, or another name, keep all results."""

    def keys(**changes):
        grabs = {"g": lambda model, **kwargs: 0.0}
        args = base_args()
        vars(args).update(width=8, TARGET_MONOMIALS=[{0: 1}], otherreturns=grabs, **changes)
        sweep = study([[8], range(args.NUM_TRIALS)], ["ntrain", "trial"], args).sweep
        return [config.key for config in sweep]

    plain = keys()
    more = keys(NUM_TRIALS=3, EXPT_NAME="other", VERBOSE=True, other_model_grabs={"a": "b"})
    assert more[:1] == plain
    assert keys(LR=0.5) != plain
    assert keys(something="else") != plain


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"EXPT_NAME": "my study (2)"}, "my-study-2"),
        ({"EXPT_NAME": "***"}, "script"),
        ({"EXPT_NAME": "mlp-learning-curves"}, "first_script"),
        ({}, "first_script"),
    ],
)
def test_the_name_of_the_run(monkeypatch, config, expected):
    import __main__

    monkeypatch.setattr(__main__, "__file__", "/somewhere/first_script.py", raising=False)
    found = read_study([[8]], ["n"], config, {"base_bfn": any_bfn}, None)
    assert found.sweep.name == expected
    monkeypatch.delattr(__main__, "__file__")
    named = read_study([[8]], ["n"], {}, {"base_bfn": any_bfn}, None)
    assert named.sweep.name == "notebook"


def test_a_name_that_is_given_counts(workplace, config):
    run_job_iterator(
        [[4]], ["n"], config(EXPT_NAME="other"), {"base_bfn": any_bfn}, False, name="given"
    )
    assert open_run("given").status().complete


def test_a_bad_name_is_refused():
    with pytest.raises(SpecError, match=r"name: got 'a/b'; should be letters"):
        read_study([[8]], ["n"], {}, {"base_bfn": any_bfn}, "a/b")
