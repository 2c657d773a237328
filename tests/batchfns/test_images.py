import inspect
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import mlpsubmit
from mlpsubmit import Sweep
from mlpsubmit.batchfns import images, sample
from mlpsubmit.batchfns.image_transforms import flattened_spectrum
from mlpsubmit.errors import SpecError, UserError

HALVES = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
ALL = {"n_train": 4000, "n_test": 10_000}


def plain(**arguments):
    return images("digits", **{"normalized": False, **arguments})


def write_mnist(folder, n):
    """MNIST's files of n images of 2 x 3 pixels each; images of the same label are alike."""
    folder.mkdir(parents=True)
    for name, seed in (("train", 0), ("t10k", 1)):
        random = np.random.RandomState(seed)
        labels = random.randint(10, size=n).astype(np.uint8)
        pixels = 25 * labels[:, None] + random.randint(25, size=(n, 6)).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + struct.pack(">3i", n, 2, 3)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = bytes([0, 0, 8, 1]) + struct.pack(">i", n)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


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


def test_a_single_label_stands_for_its_group():
    mixed, groups = plain(classes=[[0, 1], 8]), plain(classes=[[0, 1], [8]])
    assert pickle.dumps(mixed) == pickle.dumps(groups)
    for name, entry in plain(classes=np.array([3, 5]))(**ALL).items():
        assert torch.equal(entry, plain(classes=[[3], [5]])(**ALL)[name])


@pytest.mark.parametrize(
    ("classes", "flags", "kind"),
    [
        (HALVES, {}, "signs"),
        (HALVES, {"binarize": False}, "one-hot"),
        (HALVES, {"onehot": False}, "numbers"),
        (HALVES, {"binarize": True, "onehot": False}, "signs"),
        (HALVES, {"binarize": False, "onehot": False}, "numbers"),
        ([0, 1, 2], {"binarize": True}, "one-hot"),
        ([0, 1, 2], {"onehot": False}, "numbers"),
        (None, {"binarize": True, "onehot": False}, "numbers"),
    ],
)
def test_kinds_of_targets(classes, flags, kind):
    labels = plain()(**ALL)["y_train"].argmax(1)
    groups = [[label] for label in range(10)] if classes is None else classes
    number_of = {label: n for n, group in enumerate(groups) for label in np.atleast_1d(group)}
    numbers = torch.tensor([number_of[label] for label in labels.tolist() if label in number_of])
    expected = {
        "signs": torch.where(numbers == 1, 1.0, -1.0),
        "one-hot": torch.nn.functional.one_hot(numbers, len(groups)).float(),
        "numbers": numbers,
    }
    found = plain(classes=classes, **flags)(**ALL)["y_train"]
    assert found.dtype == expected[kind].dtype
    assert torch.equal(found, expected[kind])


def test_class_numbers_are_what_cross_entropy_takes():
    y = plain(onehot=False)(**ALL)["y_train"]
    assert torch.nn.functional.cross_entropy(torch.zeros(len(y), 10), y) == pytest.approx(
        np.log(10)
    )


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


def test_the_spectrum_is_flattened_before_inputs_are_normalized():
    raw = plain()(**ALL)
    X, X_test = flattened_spectrum(raw["X_train"].numpy(), raw["X_test"].numpy(), 5.0)
    for flags in ({}, {"flat": False}):
        entries = images("digits", zca_strength=5.0, **flags)(**ALL)
        assert float(entries["X_train"].square().sum()) == pytest.approx(1348 * 64, rel=1e-5)
        mean = X.mean(axis=0, dtype=np.float64)
        expected = (X_test - mean) * 8 / np.sqrt(((X - mean) ** 2).sum(axis=1).mean())
        np.testing.assert_allclose(entries["X_test"].flatten(1), expected, atol=1e-4)
    raw_flattened = plain(zca_strength=5)(**ALL)
    np.testing.assert_array_equal(raw_flattened["X_train"], X)


def test_strength_zero_changes_nothing():
    entries, untouched = images("digits", zca_strength=0)(**ALL), images("digits")(**ALL)
    assert torch.equal(entries["X_test"], untouched["X_test"])


def test_data_eigvals_are_those_of_the_training_inputs():
    entries = images("digits", zca_strength=2.0, flat=False, eigvals=True)(n_train=300, n_test=5)
    X = entries["X_train"].flatten(1).double()
    expected = torch.linalg.svdvals(X).square() / 300
    np.testing.assert_allclose(entries["data_eigvals"], expected, rtol=1e-4, atol=1e-6)
    assert float(entries["data_eigvals"].sum()) == pytest.approx(64, rel=1e-5)


def test_arguments_show_in_the_signature_and_can_be_overridden():
    recipe = images("digits", classes=HALVES)
    parameters = inspect.signature(recipe).parameters
    open_names = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    assert open_names == ["n_train", "n_test"]
    assert set(parameters) == {*inspect.signature(images).parameters, "n_train", "n_test"}
    assert parameters["classes"].default == HALVES
    assert recipe(classes=[[0], [1], [2]], **ALL)["y_test"].shape[1] == 3


def test_what_is_left_out_may_come_from_axes_and_datasethps():
    assert images().keywords == {}
    Sweep(
        data=images(classes=[[0], [1]]),
        batchfn=sample,
        axes={"dataset": ["digits", "mnist"], "zca_strength": [0.0, 1.0], "flat": [True]},
        datasethps={"normalized": True, "binarize": False},
    )
    # As MLPscape's scripts write them.
    hps = {"normalized": True, "classes": None, "binarize": False}
    assert images("digits")(**ALL, **hps)["y_train"].shape == (1348, 10)


def test_grayscale_of_an_image_without_colours_is_the_image():
    gray, plainly = plain(grayscale=True)(**ALL), plain()(**ALL)
    assert torch.equal(gray["X_test"], plainly["X_test"])


def test_grayscale_of_colours(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASETPATH", str(tmp_path))
    pixels = np.random.RandomState(0).randint(256, size=(4, 3, 1024)).astype(np.uint8)
    for name in ("data_batch_1", "test_batch"):
        records = b"".join(bytes([n]) + image.tobytes() for n, image in enumerate(pixels))
        (tmp_path / f"{name}.bin").write_bytes(records)
    rows = {"n_train": 4, "n_test": 4}
    gray = images("cifar10", grayscale=True, normalized=False)(**rows)["X_train"]
    np.testing.assert_allclose(gray, pixels.mean(axis=1) / 255, rtol=1e-6)
    shaped = images("cifar10", grayscale=True, normalized=False, flat=False)(**rows)
    assert shaped["X_test"].shape == (4, 1, 32, 32)


def test_the_recipe_holds_nothing_of_the_machine_that_made_it(tmp_path, monkeypatch):
    write_mnist(tmp_path / "here" / "mnist", 20)
    write_mnist(tmp_path / "there" / "MNIST" / "raw", 30)
    pickles = []
    for value in (None, str(tmp_path / "here"), str(tmp_path / "not mounted")):
        monkeypatch.delenv("DATASETPATH", raising=False)
        if value is not None:
            monkeypatch.setenv("DATASETPATH", value)
        pickles.append(pickle.dumps(images("mnist", classes=[[0, 1, 2], 8])))
    assert len(set(pickles)) == 1
    monkeypatch.setenv("DATASETPATH", str(tmp_path / "there"))
    assert images("mnist")(**ALL)["X_train"].shape == (30, 6)
    assert pickle.loads(pickles[0])(**ALL)["X_train"].shape[1] == 6


def test_missing_files_are_reported_at_once_where_the_folder_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASETPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"'mnist' lacks train-images-idx3-ubyte"):
        images("mnist")
    assert images(classes=[0, 1]).keywords == {"classes": [[0], [1]]}


@pytest.mark.slow
def test_a_sweep_learns_from_files(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data" / "mnist", 400)
    monkeypatch.setenv("DATASETPATH", str(tmp_path / "data"))
    sweep = Sweep(
        "from_files",
        axes={"classes": [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[1], 8]], "GAMMA": [0.5, 1]},
        data=images("mnist"),
        batchfn=sample,
        ONLINE=False,
        N_SAMPLES=60,
        N_TEST=60,
        WIDTH=16,
        LR=0.5,
        MAX_ITER=100,
        LOSS_CHECKPOINTS=[0.01],
    )
    run = mlpsubmit.launch(sweep, executor="debug", runs_dir=tmp_path / "runs")
    results = run.collect()
    assert set(results.status.values.ravel()) == {"done"}
    # Guessing costs 1; images of a label differ from those of others far more than in noise.
    assert float(results.test_loss.max()) < 0.5


def test_entries_feed_sample():
    entries = images("digits")(**ALL)
    gen = torch.Generator().manual_seed(0)
    X, y = sample(**entries, bsz=32, gen=gen, online=False, split="train")(0)
    assert X.shape == (32, 64)
    assert y.shape == (32, 10)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            [[0, 1], [1, 2]],
            r"label 1 appears more than once; valid labels are 0 to 9; try classes=",
        ),
        ([[0], [10, -1]], r"'digits' has no label -1, 10; valid labels are 0 to 9"),
        ([[0, 1]], r"two groups or more, none of them empty"),
        ([[0], []], r"two groups or more, none of them empty"),
        ([0, 10], r"'digits' has no label 10; valid labels are 0 to 9"),
        ([[0, 1], 1], r"label 1 appears more than once"),
        (3, r"got classes=3; valid are groups of labels; try classes=\[\[0\], \[1\]\]"),
        ([0.5, 1], r"valid are groups of labels"),
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
        ({"n_test": 1.5}, r"images: got n_test=1\.5; valid is an integer >= 0"),
        ({"flat": "False"}, r"images: got flat='False'; valid is True or False"),
        ({"onehot": None}, r"images: got onehot=None; valid is True or False"),
        ({"dataset": "fashion"}, r"no data set 'fashion' \(did you mean 'fashion_mnist'"),
        (
            {"n_train": 1},
            r"the 1 training images are all the same.*; try a larger N_TRAIN, or norm",
        ),
    ],
)
def test_bad_values_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        images("digits")(**{**ALL, **arguments})


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf, "1", True])
def test_bad_strengths_are_refused_here_and_on_the_worker(strength):
    message = r"images: got zca_strength=.*; valid is a finite number >= 0, where 0 changes nothing"
    with pytest.raises(SpecError, match=message):
        images("digits", zca_strength=strength)
    with pytest.raises(SpecError, match=message):
        images("digits")(zca_strength=strength, **ALL)


@pytest.mark.parametrize(
    "flag", ["binarize", "onehot", "grayscale", "normalized", "flat", "eigvals"]
)
def test_bad_flags_are_refused_at_once(flag):
    with pytest.raises(SpecError, match=rf"got {flag}=1; valid is True or False"):
        images("digits", **{flag: 1})


def test_all_errors_are_listed_together():
    with pytest.raises(SpecError, match=r"4 errors") as caught:
        images("digit", classes=[[0], [0]], flat=0, zca_strength=-1)
    shown = str(caught.value)
    assert "no data set 'digit' (did you mean 'digits'?)" in shown
    assert "label 0 appears more than once; try classes=[[0], [1]]" in shown


@pytest.mark.parametrize("dataset", ["digit", ["digits"]])
def test_unknown_data_set(dataset):
    message = r"images: no data set .*digit.* \(did you mean 'digits'\?\); valid are 'digits'"
    with pytest.raises(SpecError, match=message):
        images(dataset)


@pytest.mark.parametrize(
    ("dataset", "package", "called"),
    [("digits", "sklearn", "scikit-learn"), ("svhn", "scipy", "scipy")],
)
def test_missing_package(monkeypatch, dataset, package, called):
    monkeypatch.delenv("DATASETPATH", raising=False)
    recipe = images(dataset)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"'{dataset}' needs {called}; try: pip install 'mlpsubmit\[images\]'"
    for attempt in (lambda: images(dataset), lambda: recipe(**ALL)):
        with pytest.raises(UserError, match=message):
            attempt()
