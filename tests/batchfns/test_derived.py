"""Recipes made of others: held-out sets, label noise, corrupted inputs."""

import itertools
import pickle
import warnings

import cloudpickle
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from mlpsubmit import Sweep, launch
from mlpsubmit.arguments import call, declared, function_name
from mlpsubmit.batchfns import (
    arrays,
    corruption,
    epochs,
    from_dataset,
    held_out,
    images,
    label_noise,
    modular_addition,
    sample,
)
from mlpsubmit.errors import SpecError
from mlpsubmit.spec.fingerprint import digest

N = 300
X = torch.arange(N * 4, dtype=torch.float32).reshape(N, 4) + 1
LABELS = torch.arange(N) % 5
SIGNS = 2.0 * (torch.arange(N) % 2) - 1
ONE_HOT = torch.eye(5)[LABELS]
REAL = torch.linspace(-1, 1, N)
TEST = X[:20] * -1


def noisy(y, noise, seed=0, **more):
    made = label_noise(arrays(X, y, TEST, y[:20]), noise, **more)
    return call(made, {"seed": seed, "trial": 0})


# ---- label noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [LABELS, SIGNS, SIGNS[:, None], ONE_HOT], ids=lambda y: f"{y.dtype}")
def test_a_fraction_of_the_labels_is_flipped_to_another_class(y):
    entries = [noisy(y, noise) for noise in (0.0, 0.2, 0.4, 1.0)]
    for entry, flipped in zip(entries, (0, 60, 120, 300), strict=True):
        assert int(entry["noisy"].sum()) == flipped  # exactly, and always to another class
        assert entry["y_train"].dtype == y.dtype
        assert entry["y_train"].shape == y.shape
        assert torch.equal(entry["y_clean"], y)
        assert torch.equal(entry["y_test"], y[:20])
        assert torch.equal(entry["X_train"], X)
        changed = (entry["y_train"] != y).reshape(N, -1).any(1)
        assert torch.equal(changed, entry["noisy"])
        kinds = {tuple(row) for row in entry["y_train"].reshape(N, -1).tolist()}
        assert kinds == {tuple(row) for row in y.reshape(N, -1).tolist()}
    for less, more in itertools.pairwise(entries):  # nested, with the same labels
        assert not (less["noisy"] & ~more["noisy"]).any()
        rows = less["noisy"]
        assert torch.equal(less["y_train"][rows], more["y_train"][rows])


def test_other_classes_are_equally_likely():
    flipped = noisy(torch.zeros(N, dtype=torch.long).index_fill(0, torch.arange(5), 1), 1.0)
    assert set(flipped["y_train"].tolist()) == {0, 1}
    y = noisy(LABELS, 1.0)["y_train"]
    shifts = torch.bincount((y - LABELS) % 5, minlength=5)
    assert shifts[0] == 0
    # Each of 4 classes for 300 rows: mean 75, five standard deviations of a binomial.
    assert ((shifts[1:] - 75).abs() < 5 * (300 * 0.25 * 0.75) ** 0.5).all()


def test_random_and_shuffled_labels():
    y = noisy(LABELS, 1.0, noise_kind="random")
    kept = N - int(y["noisy"].sum())
    assert abs(kept - N / 5) < 5 * (N * 0.2 * 0.8) ** 0.5  # one class in five is the true one
    shuffled = noisy(LABELS, 0.5, noise_kind="shuffle")["y_train"]
    assert torch.equal(shuffled.bincount(), LABELS.bincount())
    assert 0 < int((shuffled != LABELS).sum()) <= 150


def test_gaussian_noise_on_real_targets_is_one_draw_times_its_size():
    one, two = (noisy(REAL, size, noise_kind="gaussian")["y_train"] - REAL for size in (0.5, 1.0))
    assert torch.allclose(2 * one, two, atol=1e-5)
    assert abs(float(two.std()) - 1) < 0.2
    assert noisy(REAL, 3.0, noise_kind="gaussian")["noisy"].all()
    double = noisy(REAL.double(), 0.5, noise_kind="gaussian")["y_train"]
    assert double.dtype == torch.float64


def test_rows_have_the_same_noise_in_a_larger_training_set():
    small = label_noise(arrays(X[:100], LABELS[:100]), 1.0)(seed=0)["y_train"]
    assert torch.equal(small, noisy(LABELS, 1.0)["y_train"][:100])


def test_the_seed_decides_the_noise_and_the_trial_only_where_it_is_asked_for():
    assert torch.equal(noisy(LABELS, 0.5)["y_train"], noisy(LABELS, 0.5)["y_train"])
    assert not torch.equal(noisy(LABELS, 0.5)["y_train"], noisy(LABELS, 0.5, seed=1)["y_train"])
    shared = label_noise(arrays(X, LABELS), 0.5)
    own = label_noise(arrays(X, LABELS), 0.5, per_trial=True)
    assert "trial" in declared(own) - declared(shared)
    one, two = (own(seed=0, trial=trial)["noisy"] for trial in (0, 1))
    assert not torch.equal(one, two)


# ---- corrupted inputs ----------------------------------------------------------------------------


def corrupted(amount, kind, images=X, tested=TEST):
    made = corruption(arrays(images, LABELS, tested, LABELS[:20]), amount, kind)
    return made(seed=0)


def test_gaussian_noise_and_masks_grow_with_the_amount():
    one, two = (corrupted(size, "gaussian")["X_train"] - X for size in (0.5, 1.0))
    assert torch.allclose(2 * one, two, atol=1e-3)
    assert abs(float(two.std()) - 1) < 0.15
    masks = [corrupted(amount, "mask")["X_train"] == 0 for amount in (0.0, 0.2, 0.6, 1.0)]
    assert not (masks[1] & ~masks[2]).any()
    means = [float(mask.float().mean()) for mask in masks]
    assert means == pytest.approx([0, 0.2, 0.6, 1], abs=0.07)


def test_shuffled_pixels_are_one_permutation_for_training_and_test_images():
    entries = corrupted(1.0, "shuffled_pixels")
    order = [int(value) - 1 for value in entries["X_train"][0]]
    assert sorted(order) == [0, 1, 2, 3] != order
    assert torch.equal(entries["X_train"], X[:, order])
    assert torch.equal(entries["X_test"], TEST[:, order])
    assert torch.equal(corrupted(0.0, "shuffled_pixels")["X_train"], X)


def test_random_pixels_are_a_permutation_of_each_image():
    half, whole = (corrupted(amount, "random_pixels")["X_train"] for amount in (0.5, 1.0))
    assert torch.equal(whole.sort(1).values, X)
    moved = (half != X).any(1)
    assert 100 < int(moved.sum()) <= 150
    assert torch.equal(half[moved], whole[moved])
    assert torch.equal(corrupted(0.5, "random_pixels")["X_test"], TEST)


def test_gaussian_images_have_the_mean_and_the_variance_of_the_data():
    some, whole = (corrupted(amount, "gaussian_images")["X_train"] for amount in (0.3, 1.0))
    assert int((some != X).any(1).sum()) == 90
    assert float(whole.mean()) == pytest.approx(float(X.mean()), rel=0.1)
    assert float(whole.std()) == pytest.approx(float(X.std()), rel=0.1)


@pytest.mark.parametrize("kind", ["shuffled_pixels", "random_pixels"])
def test_the_channels_of_a_pixel_move_together(kind):
    pixels = torch.arange(N * 2 * 6.0).reshape(N, 2, 3, 2)
    pixels[:, 1] = pixels[:, 0] + 0.5
    moved = corrupted(1.0, kind, pixels, pixels[:20])["X_train"]
    assert not torch.equal(moved, pixels)
    assert torch.equal(moved[:, 1], moved[:, 0] + 0.5)
    assert torch.equal(moved[:, 0].reshape(N, -1).sort(1).values, pixels[:, 0].reshape(N, -1))


# ---- held-out sets -------------------------------------------------------------------------------


def split(test_size, y=REAL, **more):
    return call(held_out(arrays(X, y), test_size, **more), {"seed": 0, "trial": 0})


@pytest.mark.parametrize(("test_size", "count"), [(0.2, 60), (60, 60), (60.0, 60), (1, 1)])
def test_rows_are_in_one_of_the_sets_and_keep_their_targets_and_order(test_size, count):
    entries = split(test_size)
    assert len(entries["X_test"]) == count
    for name in ("train", "test"):
        rows = ((entries[f"X_{name}"][:, 0] - 1) / 4).long()
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(entries[f"y_{name}"], REAL[rows])
    both = torch.cat([entries["X_train"], entries["X_test"]])
    assert torch.equal(both.sort(0).values, X)


@pytest.mark.parametrize("stratified", [False, True])
def test_a_smaller_test_set_is_part_of_a_larger_one(stratified):
    y = (torch.arange(N) % 10 == 0).long()  # a rare class
    small, large = (split(size, y, stratified=stratified) for size in (0.1, 0.3))
    assert set(small["X_test"][:, 0].tolist()) < set(large["X_test"][:, 0].tolist())
    if stratified:
        assert [int(entries["y_test"].sum()) for entries in (small, large)] == [3, 9]


def test_a_test_set_of_the_source_is_replaced():
    entries = held_out(arrays(X, REAL, TEST, REAL[:20]), 10)(seed=0)
    assert (len(entries["X_train"]), len(entries["X_test"])) == (N - 10, 10)
    assert (entries["X_test"] > 0).all()


# ---- composed ------------------------------------------------------------------------------------


def of_user(n_train, gen, scale=1.0):
    rows = torch.randn(n_train, 4, generator=gen)
    return {"X_train": rows.numpy() * scale, "y_train": rows[:, 0].sign(), "extra": 3}


def with_any(gen, **datasethps):
    return {"X_train": np.ones((6, 2)), "y_train": [1, 0, 1, 0, 1, 0], **datasethps}


def test_recipes_compose_in_any_order_and_keep_other_entries():
    made = label_noise(held_out(corruption(of_user, corruption_kind="mask"), 0.25), noise=0.5)
    assert declared(made) >= {"n_train", "gen", "scale", "corruption", "test_size", "noise", "seed"}
    offered = {"n_train": 40, "gen": torch.Generator(), "seed": 0, "corruption": 0.5, "trial": 1}
    entries = call(made, offered)
    assert (entries["extra"], len(entries["X_train"]), int(entries["noisy"].sum())) == (3, 30, 15)
    other = call(held_out(label_noise(corruption(of_user), 0.5), 0.25), offered)
    assert len(other["noisy"]) == len(other["y_clean"]) == len(other["y_train"]) == 30
    some = held_out(with_any, 2)
    assert set(call(some, {"seed": 0, "gen": None, "a": 1})) >= {"X_test", "a"}


def test_a_composed_recipe_travels_and_counts_by_its_content():
    made = label_noise(held_out(images("digits", classes=[[0], [1]]), 0.25), noise=0.5)
    assert function_name(made) == "label_noise"
    assert {"dataset", "classes", "noise"} <= made.keywords.keys()
    again = pickle.loads(cloudpickle.dumps(made))
    assert digest(again) == digest(made)
    others = [
        label_noise(held_out(images("digits", classes=[[0], [2]]), 0.25), noise=0.5),
        label_noise(images("digits", classes=[[0], [1]]), noise=0.5),
        label_noise(held_out(images("digits", classes=[[0], [1]]), 0.25), 0.5, per_trial=True),
    ]
    assert len({digest(one) for one in (made, *others)}) == 4


def test_the_arrays_of_the_user_are_left_alone():
    rows, y = np.ones((6, 2)), np.array([0, 1, 0, 1, 0, 1])

    def mine():
        return {"X_train": rows, "y_train": y}

    label_noise(corruption(mine, 1.0), 1.0)(seed=0)
    assert (rows == 1).all()
    assert y.tolist() == [0, 1] * 3
    rows[0] = 2  # still writable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: label_noise(images), "got the function images itself; call it: label_noise"),
        (lambda: held_out(sample), "held_out: got the batch function sample, not data; try held"),
        (lambda: corruption("mnist"), "corruption: got 'mnist'; should be a data recipe; try"),
        (lambda: label_noise(images("digits"), 1.5), r"got noise=1.5; valid is a fraction from 0"),
        (lambda: label_noise(images("digits"), -1, "gaussian"), r"noise=-1; valid is .* >= 0"),
        (lambda: label_noise(images("digits"), 0.1, "flips"), "noise_kind='flips'.*'flip'"),
        (lambda: corruption(images("digits"), 2, "mask"), r"corruption=2; valid is a fraction"),
        (lambda: corruption(images("digits"), 2, "blur"), r"corruption_kind='blur'; valid are"),
        (lambda: held_out(images("digits"), 1.5), "test_size=1.5; valid is a fraction between"),
        (lambda: held_out(images("digits"), 1.0), "test_size=1.0; valid is a fraction between"),
        (lambda: held_out(images("digits"), 5, 2), "stratified=2; valid is True or False"),
        (lambda: held_out(images("digits"), 5, per_trial=3), "per_trial=3; valid is True or False"),
        (lambda: label_noise(label_noise(images("digits"))), "label_noise has the argument noise"),
        (lambda: noisy(REAL, 0.1), "the targets, .* are not classes; .* try noise_kind='gaussian'"),
        (
            lambda: noisy(LABELS, 0.1, noise_kind="gaussian"),
            "targets of the dtype int64, which are",
        ),
        (lambda: split(0.1, stratified=True), "are not classes; .* try stratified=False"),
        (lambda: split(N), "leaves 0 for training and 300 for the test"),
        (lambda: held_out(lambda: {"X": 1}, 1)(seed=0), "returned X; valid is a mapping with the"),
        (lambda: held_out(lambda: None, 1)(seed=0), "returned NoneType; valid is a mapping"),
        (
            lambda: held_out(lambda: {"X_train": np.ones((2, 1)), "y_train": [1]}, 1)(seed=0),
            "X_train has 2 rows and y_train has 1",
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_all_errors_of_both_recipes_are_listed():
    with pytest.raises(SpecError) as caught:
        label_noise(held_out(modular_addition(p=7)), 2)
    assert len(caught.value.errors) == 1
    axes = {"noise": [0.1, 2.0], "test_size": [0.1], "p": [7, 1]}
    sweep = Sweep(axes=axes, data=label_noise(held_out(modular_addition())), batchfn=sample)
    with pytest.raises(SpecError) as caught:
        launch(sweep, executor="debug")
    text = str(caught.value)
    assert "got noise=2.0" in text
    assert "got p=1" in text


def test_fractions_are_axes_and_a_grab_sees_what_is_noisy(tmp_path):
    def memorized(model, X_train, y_train, noisy):
        return ((model(X_train)[:, 0] * y_train > 0) & noisy).float().mean()

    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = label_noise(held_out(from_dataset(TensorDataset(rows, rows[:, 0].sign())), 0.25))
    sweep = Sweep(
        "noisy",
        {"noise": [0, 0.2, 0.4], "trial": range(2)},
        data=data,
        batchfn=epochs,
        N_SAMPLES=10,
        WIDTH=8,
        MAX_ITER=4,
        EVAL_EVERY=2,
        LOSS_CHECKPOINTS=[],
        grabs={"memorized": memorized},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = launch(sweep, executor="debug", runs_dir=tmp_path).collect()
    assert (dataset.status == "done").all()
    assert len(np.unique(dataset.train_loss)) == 6
    assert (dataset.memorized.sel(noise=0) == 0).all()
    assert np.isfinite(dataset.test_loss).all()
