"""What looks like a mistake is reported on stderr, in a line, and does not stop the script."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlpsubmit.compat import base_args
from mlpsubmit.compat.study import read_study


def plain(bsz, gen, X=None, y=None):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))


def passing(bsz, gen, X=None, y=None, **kwargs):
    return plain(bsz, gen)


def declaring(kind, bsz, gen, X=None, y=None):
    return plain(bsz, gen)


def grab(model, kind, **kwargs):
    return 0.0


def notices(iterators, names, config=None, base_bfn=plain):
    study = read_study(iterators, names, config or {}, {"base_bfn": base_bfn}, "study")
    return list(study.notices)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], {"a": ("sample size", "ntrain"), "b": ("trial", "trial")}),
        (["a", "rep"], {"a": ("sample size", "ntrain")}),
        (["ntrain", "b"], {"b": ("trial", "trial")}),
        (None, {"iter_0": ("sample size", "ntrain"), "iter_1": ("trial", "trial")}),
    ],
)
def test_what_is_taken_by_its_place(names, expected):
    assert notices([[8], range(2)], names) == [
        f"iterator {name!r} is taken for the {meaning} because of its place; name it {known} to be "
        "sure"
        for name, (meaning, known) in expected.items()
    ]


def test_an_iterator_that_no_function_declares():
    iterators, names = [[8], [0], [1, 2]], ["ntrain", "trial", "kind"]
    nothing = "no function declares iterator 'kind': its values change nothing"
    assert notices(iterators, names) == [nothing]
    assert notices(iterators, names, base_bfn=passing) == [
        f"{nothing} unless passing looks for it in **kwargs"
    ]
    assert notices(iterators, names, base_bfn=declaring) == []
    assert notices(iterators, names, {"otherreturns": {"g": grab}}, passing) == []
    # One value has nothing to change.
    assert notices([[8], [0], [1]], names) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [("GAMA", "GAMMA"), ("max_iters", "MAX_ITER"), ("Dpeth", "DEPTH"), ("N_TESTS", "N_TEST")],
)
def test_what_looks_like_a_hyperparameter(key, meant):
    assert notices([[8]], ["n"], {key: 3, "GAMMA": 1.0}) == [
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
def test_what_a_function_asks_for_is_no_mistake(config):
    assert notices([[8]], ["ntrain"], config) == []


def test_a_run_prints_them_on_stderr(run, config, gaussian, capsys):
    run([[8], [0]], ["size", "trial"], config(), {"base_bfn": gaussian})
    line = "run_job_iterator: iterator 'size' is taken for the sample size because of its place"
    assert line in capsys.readouterr().err
