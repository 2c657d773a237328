import inspect
import math
import pickle

import cloudpickle
import numpy as np
import pytest
import torch

from mlpsubmit.arguments import call, function_name
from mlpsubmit.batchfns import images, modular_addition, power_law, synthetic
from mlpsubmit.batchfns.validation import argument_errors, check_arguments, is_integer, is_real
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.spec.fingerprint import digest

#: For each recipe some of its arguments, and one that is left out and has no default.
RECIPES = [
    (power_law, {"d": 5, "offset": 2.0}, "alpha"),
    (modular_addition, {"pair_seed": 3}, "p"),
    (images, {"classes": [[0], [1]], "flat": False}, "dataset"),
    (synthetic, {"d": 5, "cutoff_mode": 9}, "n_train"),
]
every_recipe = pytest.mark.parametrize(("recipe", "some", "left_out"), RECIPES)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers(value):
    assert is_integer(value, 3)
    assert not is_integer(value, 4)


@pytest.mark.parametrize("value", [3.0, np.float64(3), True, np.bool_(1), "3", None, np.array([3])])
def test_what_is_no_integer(value):
    assert not is_integer(value, 0)


@pytest.mark.parametrize("value", [3, -0.5, np.float32(1), np.int64(1)])
def test_numbers(value):
    assert is_real(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None, 1j, torch.tensor(1.0)])
def test_what_is_no_finite_number(value):
    assert not is_real(value)


def test_every_error_is_listed_and_what_is_absent_or_unknown_is_none():
    found = argument_errors("f", {"pair_seed": 2**32, "flat": 1, "gen": None})
    assert found == [
        "f: got pair_seed=4294967296; valid is an integer from 0 to 2**32 - 1",
        "f: got flat=1; valid is True or False",
    ]
    check_arguments("f", {"k": 1, "flat": np.bool_(False), "pair_seed": 0})
    with pytest.raises(SpecError, match=r"^f: got k=0; valid is an integer >= 1$"):
        check_arguments("f", {"k": 0})
    check_arguments("f", {"k": 0}, rules={"k": ("anything", lambda value: True)})


@every_recipe
def test_messages_call_a_recipe_what_the_user_does(recipe, some, left_out):
    made = recipe(**some)
    assert function_name(made) == recipe.__name__
    offered = {"n_test": 3, "gen": None}
    with pytest.raises(SpecError, match=rf"^{recipe.__name__} needs .*'{left_out}'"):
        call(made, offered)


@every_recipe
def test_only_what_is_given_is_bound(recipe, some, left_out):
    assert recipe().keywords == {}
    assert recipe(**some).keywords == some
    assert set(inspect.signature(recipe).parameters) <= set(inspect.signature(recipe()).parameters)


@every_recipe
def test_recipes_pickle_by_reference_and_count_by_their_arguments(recipe, some, left_out):
    made = recipe(**some)
    for pickler in (pickle, cloudpickle):
        again = pickle.loads(pickler.dumps(made))
        assert again.func is made.func
        assert again.keywords == made.keywords
        assert digest(again) == digest(made) == digest(recipe(**some))
    assert digest(recipe()) != digest(made)
    assert len({digest(other()) for other, *_ in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(
    ("recipe", "arguments", "errors"),
    [
        (power_law, {"d": 0, "alpha": -1}, ["got d=0;", "got alpha=-1;"]),
        (power_law, {"normalized": 1}, ["got normalized=1; valid is True or False"]),
        (modular_addition, {"p": 1, "labels": 0}, ["got p=1;", "got labels=0;"]),
        (modular_addition, {"p": 2, "train_fraction": 0.01}, ["leaves 0 for training and 4"]),
        (images, {"dataset": "digit", "flat": 0}, ["got flat=0;", "no data set 'digit'"]),
        (images, {"dataset": "digits", "classes": [0, 10]}, ["'digits' has no label 10"]),
        (synthetic, {"n_train": 0, "kmax": -1}, ["got n_train=0;", "got kmax=-1;"]),
        (synthetic, {"d": 2, "cutoff_mode": 7, "kmax": 2}, ["try cutoff_mode=6, or kmax=3"]),
    ],
)
def test_a_launch_can_have_some_arguments_checked(recipe, arguments, errors):
    check = recipe().func.check
    with pytest.raises(SpecError) as caught:
        check({**arguments, "gen": None})
    assert len(caught.value.errors) == len(errors)
    for found, expected in zip(caught.value.errors, errors, strict=True):
        assert found.startswith(f"{recipe.__name__}: ")
        assert expected in found


@every_recipe
def test_a_check_is_content_with_nothing_and_with_what_is_right(recipe, some, left_out):
    check = recipe().func.check
    check({})
    check({**some, "n_train": 5, "n_test": np.int64(5)})


def test_the_check_of_images_looks_for_files_where_it_can(tmp_path, monkeypatch):
    check = images().func.check
    monkeypatch.setenv("DATASETPATH", str(tmp_path / "not mounted here"))
    check({"dataset": "mnist"})
    check({"dataset": "mnist", "classes": None, "binarize": None})
    monkeypatch.setenv("DATASETPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'mnist' lacks train-images-idx3-ubyte"):
        check({"dataset": "mnist"})
