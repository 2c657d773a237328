"""Grabs that return dictionaries, and those whose dimensions have names."""

import numpy as np
import pytest
import torch

from mlpsubmit import grab
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.training import GrabError, grab_results, train


def final(models, fns, grabs, **further):
    settings = {"MAX_ITER": 5, "LOSS_CHECKPOINTS": [], **further.pop("settings", {})}
    return train(models, fns, settings, grabs=grabs, **further)


TRACED = {"ONLYTHRESHOLDS": False, "GRAB_EVERY": 2}


def norm(model):
    return model.input_layer.weight.norm()


def parts(model):
    W = model.input_layer.weight
    return {"norm": W.norm(), 0: W[0], "ones": np.ones((2, 3), bool)}


@pytest.mark.parametrize("settings", [{}, TRACED])
def test_every_key_is_a_result_of_its_own(gaussian, make_mlps, settings):
    got = final(
        *(make_mlps(2), [gaussian(0), gaussian(1)], {"parts": parts, "norm": norm}),
        settings=settings,
    )
    assert list(got.grabs) == ["parts_norm", "parts_0", "parts_ones", "norm"]
    assert got.entries == {f"parts_{key}": ("parts", key) for key in ("norm", "0", "ones")}
    np.testing.assert_array_equal(got.grabs["parts_norm"], got.grabs["norm"])
    leading = (2, 3) if settings else (2,)
    assert got.grabs["parts_0"].shape == (*leading, 3)
    assert (got.grabs["parts_ones"] == 1).all()


def test_keys_that_only_some_configs_have_are_nan_for_the_others(gaussian, make_mlps):
    def some(size):
        return {name: np.arange(float(size)) for name in "abc"[:size]}

    got = final(
        *(make_mlps(3), [gaussian(i) for i in range(3)], {"g": some}),
        contexts=[{"size": size} for size in (1, 2, 0)],
    )
    np.testing.assert_array_equal(got.grabs["g_a"], [[0, np.nan], [0, 1], [np.nan] * 2])
    np.testing.assert_array_equal(got.grabs["g_b"], [[np.nan] * 2, [0, 1], [np.nan] * 2])
    assert list(got.grabs) == ["g_a", "g_b"]


def test_a_grab_that_was_never_called_has_its_own_name(gaussian, make_mlps):
    def infinite(step):
        return torch.full((4, 3), 1e30), torch.full((4,), 1e30)

    got = final(make_mlps(1), [infinite], {"parts": parts}, settings={"LR": 1e30})
    assert (got.status == DIVERGED).all()
    assert np.isnan(got.grabs["parts"]).all()
    assert got.entries == {}


CASES = {
    r"returned a dictionary within a dictionary, under 'a'; .* try the key 'a_b'": (
        lambda: {"a": {"b": 1}}
    ),
    r"returned a dictionary with the key 1.5; valid are strings and integers": lambda: {1.5: 1},
    r"with the key True": lambda: {True: 1},
    r"with the key ' '": lambda: {" ": 1},
    r"with two keys '1'; rename one": lambda: {1: 1, "1": 2},
    r"returned str 'x' under 'a'; valid are numbers, arrays": lambda: {"a": "x"},
    r"4,001 results, with all others; at most 4,000 are possible": (
        lambda: dict.fromkeys(range(4001), 0)
    ),
}


@pytest.mark.parametrize("message", CASES)
def test_what_is_no_dictionary_of_results_is_refused(gaussian, make_mlps, message):
    with pytest.raises(GrabError, match=rf"grab 'g' of model 0 at step 4 .*{message}"):
        final(make_mlps(1), [gaussian(0)], {"g": CASES[message]})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"b": 1}, r"returned a dictionary of 'b', but a dictionary of 'a' before"),
        ({}, r"returned a dictionary of nothing, but a dictionary of 'a' before"),
        (1, r"returned no dictionary, but a dictionary of 'a' before"),
        ({"a": [1, 2]}, r"returned shape \(2,\) under 'a', but \(\) before"),
    ],
)
def test_the_keys_are_the_same_at_every_step(gaussian, make_mlps, second, message):
    results = iter([{"a": 1}, second, second])
    with pytest.raises(GrabError, match=message):
        final(make_mlps(1), [gaussian(0)], {"g": lambda: next(results)}, settings=TRACED)


def test_two_results_of_one_name_are_refused(gaussian, make_mlps):
    grabs = {"a": lambda: {"b": 1}, "a_b": lambda: 2}
    with pytest.raises(
        GrabError,
        match=r"two results of the name 'a_b': of the grab 'a' with the key 'b' and of the grab "
        r"'a_b'; rename one of them",
    ):
        final(make_mlps(1), [gaussian(0)], grabs)


def test_arrays_fit_the_names_of_their_dimensions(gaussian, make_mlps):
    one = grab(dims=("layer",))(lambda: [1, 2])
    with pytest.raises(GrabError, match=r"grab 'g' .* returned shape \(2,\), which has 1 dim"):
        final(make_mlps(1), [gaussian(0)], {"g": grab(dims=("a", "b"))(lambda: [1, 2])})
    other = grab(dims=("layer",))(lambda: [1, 2, 3])
    with pytest.raises(
        GrabError, match=r"'h' .* has 3 values along 'layer', and the grab 'g' 2; dimensions of one"
    ):
        final(make_mlps(1), [gaussian(0)], {"g": one, "h": other})
    # Of other configs the sizes may differ.
    sized = grab(dims="layer")(lambda size: np.zeros(size))
    got = final(
        *(make_mlps(2), [gaussian(0), gaussian(1)], {"g": sized, "h": sized}),
        contexts=[{"size": 1}, {"size": 3}],
    )
    assert got.grabs["g"].shape == (2, 3)


def test_the_most_arrays_fit_into_a_pack():
    from mlpsubmit.jobs.store.pack_schema import MOST_ARRAYS

    assert grab_results._MOST_ARRAYS < MOST_ARRAYS - 50
