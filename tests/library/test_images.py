import inspect
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mlpsubmit.batchfns import images, sample
from mlpsubmit.errors import SpecError, UserError

HALVES = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
ALL = {"n_train": 4000, "n_test": 10_000}


def plain(**arguments):
    return images("digits", **{"normalized": False, **arguments})


def keys(X):
    """Each image as bytes, to compare sets of images with scikit-learn's own."""
    return [(16 * image).round().to(torch.uint8).numpy().tobytes() for image in X]


def test_the_split_holds_every_image_once():
    entries = plain()(**ALL)
    assert list(entries) == ["X_train", "y_train", "X_test", "y_test"]
    assert entries["X_train"].shape == (1348, 64)
    assert entries["X_test"].shape == (449, 64)
    assert all(entry.dtype == torch.float32 for entry in entries.values())
    found = keys(entries["X_train"]) + keys(entries["X_test"])
    labels = torch.cat([entries["y_train"], entries["y_test"]]).argmax(1).tolist()
    digits = load_digits()
    expected = zip(
        [image.astype(np.uint8).tobytes() for image in digits.data], digits.target, strict=True
    )
    assert sorted(zip(found, labels, strict=True)) == sorted(expected)


def test_fewer_rows_are_a_head_of_more():
    most, few = plain()(**ALL), plain()(n_train=20, n_test=10)
    assert len(few["X_train"]) == 20
    assert len(few["y_test"]) == 10
    for name, entry in few.items():
        assert torch.equal(entry, most[name][: len(entry)])


def test_the_split_depends_on_neither_seeds_nor_classes():
    torch.manual_seed(1)
    everything = plain()(**ALL)
    torch.manual_seed(2)
    pair = plain(classes=[[3], [8]])(**ALL)
    for name in ("train", "test"):
        labels = everything[f"y_{name}"].argmax(1)
        chosen = (labels == 3) | (labels == 8)
        assert torch.equal(pair[f"X_{name}"], everything[f"X_{name}"][chosen])
        assert torch.equal(pair[f"y_{name}"], torch.where(labels[chosen] == 8, 1.0, -1.0))


def test_two_classes_are_signs_or_one_hot():
    signs = plain(classes=HALVES)(**ALL)["y_train"]
    assert signs.shape == (1348,)
    assert set(signs.tolist()) == {-1.0, 1.0}
    one_hot = plain(classes=HALVES, binarize=False)(**ALL)["y_train"]
    assert one_hot.shape == (1348, 2)
    assert torch.equal(one_hot @ torch.tensor([-1.0, 1.0]), signs)
    assert torch.equal(one_hot.sum(1), torch.ones(1348))


def test_three_classes_are_one_hot_in_the_order_given():
    three = plain(classes=[[9], [0, 1], [4]])(**ALL)["y_test"]
    by_label = plain()(**ALL)["y_test"]
    groups = torch.stack([by_label[:, 9], by_label[:, 0] + by_label[:, 1], by_label[:, 4]], 1)
    assert torch.equal(three, groups[groups.sum(1) == 1])


def test_normalization_is_that_of_the_training_rows():
    raw, entries = (
        images("digits", normalized=flag)(n_train=100, n_test=50) for flag in (False, True)
    )
    X = raw["X_train"].double().numpy()
    mean = X.mean(axis=0)
    scale = np.sqrt((np.linalg.norm(X - mean, axis=1) ** 2).mean() / 64)
    for name in ("X_train", "X_test"):
        expected = (raw[name].double().numpy() - mean) / scale
        np.testing.assert_allclose(entries[name].numpy(), expected, atol=1e-5)
    assert float(entries["X_train"].square().sum(1).mean()) == pytest.approx(64, rel=1e-5)
    assert 0 <= X.min() < X.max() <= 1


def test_images_keep_their_shape_for_convolutions():
    flat, shaped = (images("digits", flat=flag)(**ALL) for flag in (True, False))
    assert shaped["X_train"].shape == (1348, 1, 8, 8)
    assert torch.equal(shaped["X_test"].flatten(1), flat["X_test"])


def test_arguments_show_in_the_signature_and_can_be_overridden():
    recipe = images("digits", classes=HALVES)
    parameters = inspect.signature(recipe).parameters
    open_names = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    assert open_names == ["n_train", "n_test"]
    assert parameters["classes"].default == HALVES
    assert recipe(classes=[[0], [1], [2]], **ALL)["y_test"].shape[1] == 3


def test_entries_feed_sample():
    entries = images("digits")(**ALL)
    gen = torch.Generator().manual_seed(0)
    X, y = sample(**entries, bsz=32, gen=gen, online=False, split="train")(0)
    assert X.shape == (32, 64)
    assert y.shape == (32, 10)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([[0, 1], [1, 2]], r"label 1 stands more than once; valid labels are 0 to 9; try classes="),
        ([[0], [10, -1]], r"'digits' has no label -1, 10; valid labels are 0 to 9"),
        ([[0, 1]], r"two groups or more, none of them empty"),
        ([[0], []], r"two groups or more, none of them empty"),
        ([0, 6], r"got classes=\[0, 6\]; valid are groups of labels; try classes=\[\[0\], \[1\]\]"),
        (3, r"got classes=3; valid are groups of labels"),
        ([["a"], [1]], r"valid are groups of labels"),
    ],
)
def test_bad_classes_are_refused_here_and_on_the_worker(classes, message):
    with pytest.raises(SpecError, match=message):
        images("digits", classes=classes)
    with pytest.raises(SpecError, match=message):
        images("digits")(classes=classes, **ALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 0}, r"images: got n_train=0; valid is an integer >= 1"),
        ({"n_test": 1.5}, r"images: got n_test=1\.5; valid is an integer >= 1"),
        ({"flat": "False"}, r"images: got flat='False'; valid are True and False"),
        (
            {"n_train": 1},
            r"the 1 training images are all the same.*; try a larger N_TRAIN, or norm",
        ),
    ],
)
def test_bad_values_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        images("digits")(**{**ALL, **arguments})


def test_bad_flags_are_refused_at_once():
    with pytest.raises(SpecError, match=r"got binarize=1; valid are True and False"):
        images("digits", binarize=1)


@pytest.mark.parametrize("dataset", ["digit", ["digits"]])
def test_unknown_data_set(dataset):
    message = r"images: no data set .*digit.* \(did you mean 'digits'\?\); valid are 'digits'"
    with pytest.raises(SpecError, match=message):
        images(dataset)


def test_missing_scikit_learn(monkeypatch):
    recipe = images("digits")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    message = r"'digits' needs scikit-learn; try: pip install 'mlpsubmit\[images\]'"
    for attempt in (lambda: images("digits"), lambda: recipe(**ALL)):
        with pytest.raises(UserError, match=message):
            attempt()
