"""Errors of a script are all reported at once, before anything is trained."""

from __future__ import annotations

import pytest
import torch

from mlpsubmit import SpecError
from mlpsubmit.compat import base_args, run_job_iterator


def any_bfn(bsz, gen, X=None, y=None, noise=0.0):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))


def errors_of(iterators, names=None, config=None, bfn_config=None, **more):
    if bfn_config is None:
        bfn_config = {"base_bfn": any_bfn}
    with pytest.raises(SpecError) as raised:
        run_job_iterator(iterators, names, config, bfn_config, False, name="study", **more)
    return raised.value.errors


@pytest.fixture(autouse=True)
def _nothing_is_made(workplace):
    yield
    assert not (workplace / "mlpruns").exists()


@pytest.mark.parametrize(
    ("iterators", "names", "expected"),
    [
        ([[8], [0]], ["n"], "iterator_names: got 1 names for 2 iterators; give one each"),
        ([[8], [0]], ["n", "n"], "iterator_names: n and n are the same setting; keep one"),
        (
            [[8], [0], [1], [2]],
            ["n", "trial", "a b", "a b"],
            "iterator_names: a b and a b are the same setting; keep one",
        ),
        (
            [[8], [0], [1]],
            ["n", "trial", "trial"],
            "iterator_names: trial and trial are the same setting; keep one",
        ),
        (
            [[1], [0]],
            ["GAMMA", "trial"],
            "iterator_names: 'GAMMA' takes the place of n_samples; the first iterator is the "
            "sample size and the second the trial; put all others after them",
        ),
        ([[0], [8]], ["trial", "ntrain"], "iterator_names: 'ntrain' takes the place of trial; the"),
        ([[8], []], ["n", "trial"], "iterator trial: has no values; give at least one or leave it"),
        ([[8], 3], ["n", "trial"], "iterator trial: got 3; should be a list of values"),
        ([[8], "ab"], ["n", "kind"], "iterator kind: got 'ab'; should be a list of values"),
        ({"n": [8]}, None, "iterators: got {'n': [8]}; should be a list of lists"),
        (3, None, "iterators: got 3; should be a list of lists"),
        ([[8], [1]], ["n", "val"], "iterator_names: 'val' is a name that ExptTrace reserves; give"),
        (
            [[8], [0], [1], [2]],
            ["n", "trial", "WIDTH", "width"],
            "iterator_names: WIDTH and width are the same s",
        ),
    ],
)
def test_iterators(iterators, names, expected):
    (message,) = errors_of(iterators, names)
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("bfn_config", "expected"),
    [
        ({}, "bfn_config: has no base_bfn; give it the batch function, as in bfn_config=dict(base"),
        ({"bfn_name": "any_bfn"}, "bfn_config: has no base_bfn; "),
        ({"base_bfn": 3}, "base_bfn: got 3; should be a function"),
        (
            {"base_bfn": any_bfn, "X": 1},
            "bfn_config: any_bfn takes no 'X' out of it; it takes noise, and the train loop gives",
        ),
        (
            {"base_bfn": any_bfn, "nois": 1},
            "bfn_config: any_bfn takes no 'nois' out of it (did you mean 'noise'?); it takes noise",
        ),
        ({"base_bfn": any_bfn, "trial": 1}, "trial: is an iterator and also in bfn_config; keep o"),
        (
            {"bfn_file": "no.py", "bfn_name": "f"},
            "bfn_file: got 'no.py'; should be the path of a P",
        ),
        ([1], "bfn_config: got [1]; should be a dictionary, or what parse_args returned"),
    ],
)
def test_bfn_config(bfn_config, expected):
    assert errors_of([[8], [0]], ["n", "trial"], None, bfn_config)[0].startswith(expected)


def test_what_a_batch_function_needs():
    def needy(bsz, gen, monomial, X=None, y=None):
        raise NotImplementedError

    (message,) = errors_of([[8], [0], [1]], ["n", "trial", "monomials"], {}, {"base_bfn": needy})
    assert message.startswith("base_bfn: needy needs 'monomial' (did you mean 'monomials'?); avai")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"GAMMA": [0.1, 1]},
            "GAMMA: got [0.1, 1]; should be a finite number > 0 (richness: outputs are divided by "
            "it); to vary it, add it to iterators and iterator_names",
        ),
        ({"LR": (1, 2)}, "LR: got (1, 2); should be a finite number > 0 (base learning rate); to "),
        ({"LR": "fast"}, "LR: got 'fast'; should be a finite number > 0 (base learning rate)"),
        (
            {"WIDTH": 64, "width": 32},
            "WIDTH=64 and width=32 are two spellings of one hyperparameter; keep one",
        ),
        ({"X_te": torch.ones(2, 2)}, "X_te: is only half of a test set; give both X_te and y_te"),
        ({"otherreturns": [1]}, "otherreturns: got [1]; should be a dictionary of functions"),
        ({"otherreturns": {"g": "trace"}}, "otherreturns['g']: got 'trace'; should be a function"),
        (
            {"otherreturns": {"g": lambda model, alpa: 0}, "alpha": 1},
            "otherreturns['g']: <lambda> needs 'alpa' (did you mean 'alpha'?); available are X",
        ),
        (
            {"optimizer_instance": object()},
            "optimizer_instance: an existing optimizer belongs to an ",
        ),
        (3, "global_config: got 3; should be a dictionary, or what parse_args returned"),
    ],
)
def test_global_config(config, expected):
    (message,) = errors_of([[8]], ["n"], config)
    assert message.startswith(expected)


def test_a_list_for_what_is_no_iterator_even_among_arguments():
    args = base_args()
    args.GAMMA, args.LR = [0.1, 1], [0.1, 0.2]
    found = errors_of([[8]], ["n"], args)
    assert [message.partition(":")[0] for message in found] == ["LR", "GAMMA"]


def test_all_errors_at_once():
    found = errors_of(
        [[8], [], [1], [2]],
        ["n", "trial", "val", "trial"],
        {"X_te": 1},
        {"base_bfn": any_bfn, "gen": 1},
    )
    assert len(found) == 5
    found = errors_of(
        [[8]],
        ["n"],
        {"GAMMA": [1, 2], "LR": 0, "MODEL_CLASS": 3, "otherreturns": {"a": 1, "b": 2}},
    )
    assert len(found) == 5


def test_bad_values_of_iterators():
    (message,) = errors_of([[8], [0], [1, -1]], ["n", "trial", "GAMMA"])
    assert message == (
        "axis gamma: GAMMA: got -1; should be a finite number > 0 "
        "(richness: outputs are divided by it)"
    )
    (message,) = errors_of([["a"], [0]], ["ntrain", "trial"])
    assert "N_SAMPLES: got 'a'; should be an integer >= 1" in message
    (message,) = errors_of([[8], [0], [2, 2]], ["n", "trial", "alpha"])
    assert message == "axis alpha: the value 2 appears more than once; keep one"


def test_a_function_that_raises_is_named():
    def broken(bsz, gen, X=None, y=None):
        raise ValueError("boom")

    (message,) = errors_of([[8], [0]], ["n", "trial"], {"width": 4}, {"base_bfn": broken})
    assert message.startswith("a function of the spec raised ValueError: boom at ")
