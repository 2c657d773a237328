import inspect
import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from mlpsubmit import Sweep
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.batchfns import modular_addition, sample
from mlpsubmit.errors import SpecError


def pairs(X, p):
    """The pairs (a, b) that rows of inputs stand for."""
    return list(zip(X[:, :p].argmax(1).tolist(), X[:, p:].argmax(1).tolist(), strict=True))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("p", [2, 5, 12])
def test_the_whole_table_is_there_once_and_right(p, normalized):
    entries = modular_addition(p=p, normalized=normalized)()
    X = torch.cat([entries["X_train"], entries["X_test"]])
    y = torch.cat([entries["y_train"], entries["y_test"]])
    assert X.dtype == y.dtype == torch.float32
    table = dict(zip(pairs(X, p), y.argmax(1).tolist(), strict=True))
    assert len(X) == len(table) == p * p
    for a, b in itertools.product(range(p), repeat=2):
        assert table[a, b] == (a + b) % p
    for rows in (X[:, :p], X[:, p:], y):
        high, low = rows.max(1).values, rows.min(1).values
        assert ((rows == high[:, None]).sum(1) == 1).all()
        assert ((rows == low[:, None]).sum(1) == p - 1).all()
    if normalized:
        for rows in (X, y):
            torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), rtol=0, atol=1e-6)
            torch.testing.assert_close(rows.square().mean(0), torch.ones(rows.shape[1]))
    else:
        assert set(X.unique().tolist()) == set(y.unique().tolist()) == {0.0, 1.0}


def test_labels_are_the_sums_for_cross_entropy():
    entries = modular_addition(p=7, labels=True)()
    for split in ("train", "test"):
        y = entries[f"y_{split}"]
        assert y.dtype == torch.int64
        assert y.tolist() == [(a + b) % 7 for a, b in pairs(entries[f"X_{split}"], 7)]


@pytest.mark.parametrize("fraction", [0.2, 0.35, 0.5, 0.9])
def test_the_split_is_disjoint_nested_and_of_the_size_that_is_documented(fraction):
    p = 10
    entries, half = (modular_addition(p=p, train_fraction=f)() for f in (fraction, 0.5))
    train, test = (pairs(entries[f"X_{split}"], p) for split in ("train", "test"))
    assert len(train) == round(fraction * 100)
    assert not set(train) & set(test)
    other = pairs(half["X_train"], p)
    assert set(train) <= set(other) or set(other) <= set(train)


def test_the_split_is_the_seeds():
    X = [modular_addition(p=11, pair_seed=seed)()["X_train"] for seed in (0, 0, 1)]
    assert torch.equal(X[0], X[1])
    assert set(pairs(X[0], 11)) != set(pairs(X[2], 11))
    # A random half of 121 pairs: without a bias to small sums or first operands.
    recipes = [modular_addition(p=11, pair_seed=seed) for seed in range(40)]
    a = np.array([a for recipe in recipes for a, _ in pairs(recipe()["X_train"], 11)])
    assert abs(a.mean() - 5) < 5 * math.sqrt(10 / len(a))


def test_batches_of_sample_are_training_pairs_whatever_the_generator():
    p = 6
    entries = modular_addition(p=p, train_fraction=0.5)()
    train, test = (set(pairs(entries[f"X_{split}"], p)) for split in ("train", "test"))

    def drawn(bsz, seed, online, split):
        gen = torch.Generator().manual_seed(seed)
        batch_fn = sample(**entries, bsz=bsz, gen=gen, online=online, split=split)
        X, y = batch_fn(0)
        assert [(a + b) % p for a, b in pairs(X, p)] == y.argmax(1).tolist()
        return pairs(X, p)

    for seed in range(3):
        assert set(drawn(50, seed, True, "train")) <= train
        assert set(drawn(5, seed, False, "train")) <= train
        assert set(drawn(18, seed, False, "train")) == train
        assert set(drawn(10_000, seed, False, "test")) == test
    with pytest.raises(SpecError, match=r"N_SAMPLES=36 .* the data have 18; .*; try N_SAMPLES=18,"):
        drawn(36, 0, False, "train")


def test_arguments_may_be_axes_or_come_from_datasethps():
    recipe = pickle.loads(pickle.dumps(modular_addition(train_fraction=0.3)))
    parameters = inspect.signature(recipe).parameters
    assert parameters["train_fraction"].default == 0.3
    assert parameters["p"].default is inspect.Parameter.empty
    sweep = Sweep(
        data=recipe, batchfn=sample, axes={"pair_seed": [3, 4]}, DATASETHPS={"p": 13}, ONLINE=False
    )
    entries = [recipe(**data_arguments(sweep, config)) for config in sweep]
    assert [len(e["X_train"]) for e in entries] == [round(0.3 * 169)] * 2
    assert not torch.equal(entries[0]["X_train"], entries[1]["X_train"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, r"modular_addition: got p=1; valid is an integer >= 2, such as 97"),
        ({"p": 7.0}, r"got p=7\.0; valid is an integer >= 2"),
        ({"train_fraction": 0}, r"got train_fraction=0; valid is a number between 0 and 1"),
        ({"train_fraction": 1.0}, r"got train_fraction=1\.0; valid is a number between 0 and 1"),
        ({"train_fraction": "half"}, r"got train_fraction='half'"),
        ({"pair_seed": 2**32}, r"got pair_seed=4294967296; valid is an integer from 0 to"),
        ({"labels": 1}, r"got labels=1; valid is True or False"),
        ({"normalized": "yes"}, r"got normalized='yes'; valid is True or False"),
    ],
)
def test_bad_values_are_refused_here_and_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        modular_addition(**arguments)
    with pytest.raises(SpecError, match=message):
        modular_addition(p=5)(**arguments)


def test_a_fraction_that_leaves_nothing():
    message = r"train_fraction=0\.1 of the 4 pairs of p=2 leaves 0 for training and 4 for the test"
    with pytest.raises(SpecError, match=message):
        modular_addition(p=2, train_fraction=0.1)
    with pytest.raises(SpecError, match=message):
        modular_addition(train_fraction=0.1)(p=2)


def test_numbers_may_be_those_of_numpy():
    expected = modular_addition(p=13, train_fraction=0.25, pair_seed=3)()
    found = modular_addition(
        p=np.int8(13), train_fraction=np.float32(0.25), pair_seed=np.int64(3), labels=np.bool_(0)
    )()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_all_bad_values_are_listed_together():
    with pytest.raises(SpecError, match=r"2 errors"):
        modular_addition(p=0, train_fraction=2)
