"""What looks like a slip is told on stderr, in one line, and does not stop the script."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlpsubmit.compat import base_args
from mlpsubmit.compat.studies import read_study


def silent(bsz, gen, X=None, y=None):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))


def listening(bsz, gen, X=None, y=None, **kwargs):
    return silent(bsz, gen)


def asking(kind, bsz, gen, X=None, y=None):
    return silent(bsz, gen)


def grab(model, kind, **kwargs):
    return 0.0


def told(iterators, names, config=None, base_bfn=silent):
    study = read_study(iterators, names, config or {}, {"base_bfn": base_bfn}, "study")
    return list(study.notices)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["a", "b"],
            "took iterator 'a' for the sample size and 'b' for the trial, by their places; name "
            "them ntrain and trial to be sure",
        ),
        (
            ["a", "rep"],
            "took iterator 'a' for the sample size, by its place; name it ntrain to be sure",
        ),
        (
            ["ntrain", "b"],
            "took iterator 'b' for the trial, by its place; name it trial to be sure",
        ),
        (
            None,
            "took iterator 'iter_0' for the sample size and 'iter_1' for the trial, by their "
            "places; name them ntrain and trial to be sure",
        ),
    ],
)
def test_what_is_taken_by_its_place(names, expected):
    assert told([[8], range(2)], names) == [expected]


def test_an_iterator_that_no_function_declares():
    iterators, names = [[8], [0], [1, 2]], ["ntrain", "trial", "kind"]
    nothing = "no function declares iterator 'kind': its values change nothing"
    assert told(iterators, names) == [nothing]
    assert told(iterators, names, base_bfn=listening) == [
        f"{nothing} unless listening looks for it in **kwargs"
    ]
    assert told(iterators, names, base_bfn=asking) == []
    assert told(iterators, names, {"otherreturns": {"g": grab}}, listening) == []
    # One value has nothing to change.
    assert told([[8], [0], [1]], names) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [("GAMA", "GAMMA"), ("max_iters", "MAX_ITER"), ("Dpeth", "DEPTH"), ("N_TESTS", "N_TEST")],
)
def test_what_looks_like_a_hyperparameter(key, meant):
    assert told([[8]], ["n"], {key: 3, "GAMMA": 1.0}) == [
        f"global_config has {key!r}, which is no hyperparameter and which no function declares; "
        f"did you mean {meant}?"
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"beta": 0.5, "LOSS_CLASS": nn.SmoothL1Loss},
        {"lr_decay": 0.1, "OPTIMIZER_CLASS": torch.optim.Adagrad},
        {"widths": 3, "otherreturns": {"g": lambda model, widths: widths}},
        {"N_TOT": 10, "DATASET": "cifar10", "classes": None, "alpha": 1.0, "noise": 0.1},
        vars(base_args()),
    ],
)
def test_what_a_function_asks_for_is_no_slip(config):
    assert told([[8]], ["ntrain"], config) == []


def test_a_run_tells_it_on_stderr(run, config, gaussian, capsys):
    run([[8], [0]], ["size", "trial"], config(), {"base_bfn": gaussian})
    line = "run_job_iterator: took iterator 'size' for the sample size, by its place; name it"
    assert line in capsys.readouterr().err
