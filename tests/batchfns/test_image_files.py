"""Tiny files in the formats in which the data sets are published, written byte by byte."""

import gzip
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from mlpsubmit.batchfns import image_files, images
from mlpsubmit.errors import UserError

ENOUGH = {"n_train": 1000, "n_test": 1000}
LABELS = {"cifar100": 100, "cifar100_coarse": 20, "imagenet32": 1000}
SETS = ["mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_coarse", "svhn"]
SETS += ["imagenet32", "cifar5m"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASETPATH", str(tmp_path))
    return tmp_path


def drawn(dataset, n, seed):
    """Pixels (n, channels, height, width), uint8, and labels (n,), to be found again."""
    random = np.random.RandomState(seed)
    shape = (1, 3, 4) if "mnist" in dataset else (3, 32, 32)
    pixels = random.randint(256, size=(n, *shape)).astype(np.uint8)
    return pixels, random.randint(LABELS.get(dataset, 10), size=n)


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    content += bytes(array.ravel().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, split, pixels, labels, ending=""):
    start = {"train": "train", "test": "t10k"}[split]
    write_idx(folder / f"{start}-images-idx3-ubyte{ending}", pixels[:, 0])
    write_idx(folder / f"{start}-labels-idx1-ubyte{ending}", labels)


def write_records(path, pixels, *labels):
    records = b""
    for image, *numbers in zip(pixels, *labels, strict=True):
        red, green, blue = (plane.tobytes() for plane in image)
        records += bytes(int(number) for number in numbers) + red + green + blue
    path.write_bytes(records)


def write_svhn(path, pixels, labels):
    X = np.empty((32, 32, 3, len(pixels)), np.uint8)
    for i, image in enumerate(pixels):
        for channel, plane in enumerate(image):
            X[:, :, channel, i] = plane
    y = np.array([[10 if label == 0 else label] for label in labels], np.uint8)
    savemat(path, {"X": X, "y": y}, do_compression=True)


def write_imagenet(path, pixels, labels):
    data = np.stack([np.concatenate([plane.ravel() for plane in image]) for image in pixels])
    np.savez(path, data=data, labels=np.asarray(labels) + 1, mean=data.mean(axis=0))


def write_cifar5m(path, pixels, labels, save=np.savez, order="C"):
    X = np.zeros((len(pixels), 32, 32, 3), np.uint8, order=order)
    for channel in range(3):
        X[..., channel] = pixels[:, channel]
    save(path, X=X, Y=np.asarray(labels))


def write(folder, dataset, train, test):
    """Write a data set as two of its training files, where it has several, and its test files."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = [[array[part] for array in train] for part in (slice(3), slice(3, None))]
    if "mnist" in dataset:
        write_mnist(folder, "train", *train)
        write_mnist(folder, "test", *test)
    elif dataset == "cifar10":
        for number, half in enumerate(halves, start=1):
            write_records(folder / f"data_batch_{number}.bin", *half)
        write_records(folder / "test_batch.bin", *test)
    elif dataset.startswith("cifar100"):
        for name, (pixels, labels) in {"train": train, "test": test}.items():
            both = (labels, labels % 7) if "coarse" in dataset else (labels % 20, labels)
            write_records(folder / f"{name}.bin", pixels, *both)
    elif dataset == "svhn":
        write_svhn(folder / "train_32x32.mat", *train)
        write_svhn(folder / "test_32x32.mat", *test)
    elif dataset == "imagenet32":
        for number, half in enumerate(halves, start=1):
            write_imagenet(folder / f"train_data_batch_{number}.npz", *half)
        write_imagenet(folder / "val_data.npz", *test)
    else:
        for number, half in enumerate(halves):
            write_cifar5m(folder / f"part{number}.npz", *half)
        write_cifar5m(folder / "part5.npz", *test)


def load(dataset, rows=ENOUGH, **arguments):
    recipe = images(dataset, normalized=False, flat=False, onehot=False, **arguments)
    return recipe(**rows)


def holds(entries, split, truth):
    pixels, labels = truth
    assert entries[f"y_{split}"].dtype == torch.int64
    assert entries[f"y_{split}"].tolist() == list(labels)
    assert entries[f"X_{split}"].dtype == torch.float32
    np.testing.assert_array_equal(entries[f"X_{split}"], pixels / np.float32(255))


@pytest.mark.parametrize("dataset", SETS)
def test_every_pixel_and_label_is_found_again(root, dataset):
    train, test = drawn(dataset, 7, seed=0), drawn(dataset, 4, seed=1)
    write(root / dataset, dataset, train, test)
    entries = load(dataset, {"n_train": 7, "n_test": 4})
    holds(entries, "train", train)
    holds(entries, "test", test)
    few = load(dataset, {"n_train": 5, "n_test": 2})
    for name, entry in few.items():
        assert torch.equal(entry, entries[name][: len(entry)])
    assert len(few["X_train"]) == 5


@pytest.mark.parametrize("dataset", SETS)
def test_classes_pick_rows_in_order(root, dataset):
    train, test = drawn(dataset, 7, seed=0), drawn(dataset, 4, seed=1)
    labels = np.array([2, 7, 7, 1, 9, 2, 9])
    write(root / dataset, dataset, (train[0], labels), (test[0], np.array([9, 7, 1, 2])))
    entries = load(dataset, {"n_train": 5, "n_test": 3}, classes=[[9, 2], 1])
    holds(entries, "train", (train[0][[0, 3, 4, 5, 6]], [0, 1, 0, 0, 0]))
    holds(entries, "test", (test[0][[0, 2, 3]], [0, 1, 0]))
    assert len(load(dataset, {"n_train": 2, "n_test": 4}, classes=[9, 1])["y_train"]) == 2


@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist/MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "."),
        ("cifar10", "cifar-10-batches-bin"),
        ("cifar10", "cifar10/cifar-10-batches-bin"),
        ("cifar100_coarse", "cifar100"),
        ("svhn", "."),
        ("imagenet32", "imagenet32/Imagenet32_val_npz"),
        ("cifar5m", "cifar-5m"),
    ],
)
def test_usual_folders(root, dataset, place):
    train, test = drawn(dataset, 4, seed=0), drawn(dataset, 2, seed=1)
    write(root / place, dataset, train, test)
    holds(load(dataset, {"n_train": 4, "n_test": 2}), "train", train)


def test_the_files_of_one_data_set_may_lie_in_several_folders(root):
    train, test = drawn("imagenet32", 3, seed=0), drawn("imagenet32", 2, seed=1)
    for folder in ("Imagenet32_train_npz", "Imagenet32_val_npz"):
        (root / folder).mkdir()
    write_imagenet(root / "Imagenet32_train_npz" / "train_data_batch_1.npz", *train)
    write_imagenet(root / "Imagenet32_val_npz" / "val_data.npz", *test)
    holds(load("imagenet32", {"n_train": 3, "n_test": 2}), "test", test)


def test_fashion_mnist_is_never_taken_for_mnist(root):
    train, test = drawn("mnist", 4, seed=0), drawn("mnist", 2, seed=1)
    write(root, "mnist", train, test)
    write(root / "FashionMNIST" / "raw", "fashion_mnist", train, test)
    with pytest.raises(UserError, match=r"'mnist' lacks train-images-idx3-ubyte"):
        images("mnist")


@pytest.mark.parametrize("ending", [".gz", ""])
def test_packed_files_whatever_their_ending(root, ending):
    train, test = drawn("mnist", 4, seed=0), drawn("mnist", 2, seed=1)
    (root / "mnist").mkdir()
    write_mnist(root / "mnist", "train", *train, ending=".gz")
    write_mnist(root / "mnist", "test", *test, ending=".gz")
    for path in (root / "mnist").iterdir():
        path.rename(path.with_suffix(ending))
    entries = load("mnist")
    holds(entries, "train", train)
    holds(entries, "test", test)


def test_cifar100_has_two_labels_per_image(root):
    pixels, fine = drawn("cifar100", 6, seed=0)
    coarse = fine % 20
    for name in ("train", "test"):
        write_records(root / f"{name}.bin", pixels, coarse, fine)
    assert load("cifar100")["y_train"].tolist() == fine.tolist()
    assert load("cifar100_coarse")["y_train"].tolist() == coarse.tolist()


def test_label_ten_of_svhn_is_the_digit_zero(root):
    pixels, _ = drawn("svhn", 3, seed=0)
    for name in ("train", "test"):
        write_svhn(root / f"{name}_32x32.mat", pixels, [1, 0, 9])
    assert load("svhn", classes=[0, 9])["y_train"].tolist() == [0, 1]


def test_imagenet_in_one_file(root):
    train, test = drawn("imagenet32", 4, seed=0), drawn("imagenet32", 2, seed=1)
    (root / "imagenet").mkdir()
    write_imagenet(root / "imagenet" / "imagenet32.npz", *train)
    write_imagenet(root / "imagenet" / "val_data.npz", *test)
    entries = load("imagenet32")
    holds(entries, "train", train)
    holds(entries, "test", test)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_archives_are_read_block_by_block(root, monkeypatch, save, order):
    monkeypatch.setattr(image_files, "_BLOCK", 3)
    (pixels, _), test = drawn("cifar5m", 11, seed=0), drawn("cifar5m", 4, seed=1)
    labels = np.array([0, 5, 5, 5, 5, 5, 1, 0, 5, 1, 5])
    write_cifar5m(root / "cifar5m_part0.npz", pixels, labels, save, order)
    write_cifar5m(root / "cifar5m_part5.npz", *test, save, order)
    rows = {"n_train": 11, "n_test": 4}
    holds(load("cifar5m", {**rows, "n_train": 10}), "train", (pixels[:10], labels[:10]))
    (root / "cifar5m_part1.npz").write_bytes(b"")
    picked = load("cifar5m", {"n_train": 3, "n_test": 4}, classes=[[1, 5], 0])
    holds(picked, "train", (pixels[:3], [1, 0, 0]))
    picked = load(
        "cifar5m", {"n_train": 4, "n_test": 4}, classes=[0, 1, *range(2, 5), *range(6, 10)]
    )
    holds(picked, "train", (pixels[[0, 6, 7, 9]], [0, 1, 0, 1]))


def test_only_the_parts_and_rows_that_are_needed_are_read(root):
    train, test = drawn("cifar5m", 6, seed=0), drawn("cifar5m", 2, seed=1)
    write(root, "cifar5m", train, test)
    path = root / "part1.npz"
    whole = path.read_bytes()
    last = whole.index(train[0][5].transpose(1, 2, 0).tobytes())
    path.write_bytes(whole[:last] + bytes(8) + whole[last + 8 :])
    # The last image of part 1 is damaged: what comes before it is not, and part 2 is not there.
    holds(load("cifar5m", {"n_train": 5, "n_test": 2}), "train", [array[:5] for array in train])
    with pytest.raises(UserError, match=r"part1\.npz, of .* cannot be read: Bad CRC-32"):
        load("cifar5m", {"n_train": 6, "n_test": 2})
    path.write_bytes(b"nothing of an archive")
    holds(load("cifar5m", {"n_train": 3, "n_test": 2}), "train", [array[:3] for array in train])
    with pytest.raises(UserError, match=r"part1\.npz, of .* cannot be read: File is not a zip"):
        load("cifar5m", {"n_train": 4, "n_test": 2})


def test_a_part_that_is_missing_counts_only_once_it_is_needed(root):
    train, test = drawn("cifar10", 6, seed=0), drawn("cifar10", 2, seed=1)
    write(root, "cifar10", train, test)
    assert len(load("cifar10", {"n_train": 6, "n_test": 2})["X_train"]) == 6
    missing = r"'cifar10' lacks data_batch_3\.bin, data_batch_4\.bin, data_batch_5\.bin; looked in"
    with pytest.raises(UserError, match=missing):
        load("cifar10", {"n_train": 7, "n_test": 2})


def test_missing_files_are_all_named_with_where_they_were_looked_for(root):
    write_mnist(root, "test", *drawn("mnist", 2, seed=0))
    with pytest.raises(UserError) as caught:
        images("mnist")
    folders = [root / f for f in ("mnist", "MNIST", "MNIST/raw", "mnist/MNIST", "mnist/MNIST/raw")]
    assert str(caught.value) == (
        "images: the data set 'mnist' lacks train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (or each with .gz); looked in "
        f"{', '.join(map(str, folders))}; get them from https://ossci-datasets.s3.amazonaws.com/"
        f"mnist/, or set $DATASETPATH, now {root}, to the folder of your data sets"
    )
    write_records(root / "test_batch.bin", *drawn("cifar10", 2, seed=0))
    with pytest.raises(UserError, match=r"lacks data_batch_1\.bin, .* data_batch_5\.bin; .*binary"):
        images("cifar10")


@pytest.mark.parametrize("value", [None, ""])
def test_missing_files_without_the_variable(monkeypatch, value):
    monkeypatch.delenv("DATASETPATH", raising=False)
    if value is not None:
        monkeypatch.setenv("DATASETPATH", value)
    recipe = images("svhn")
    with pytest.raises(UserError) as caught:
        recipe(**ENOUGH)
    assert str(caught.value) == (
        "images: the data set 'svhn' is read from files, and $DATASETPATH is not set; set it to "
        "the folder of your data sets, where $DATASETPATH/svhn holds train_32x32.mat, "
        "test_32x32.mat; get them from http://ufldl.stanford.edu/housenumbers (format 2, cropped "
        "digits)"
    )


def spoil_cifar5m(**arrays):
    return lambda path: np.savez(path, **arrays)


def spoil_mat(**arrays):
    return lambda path: savemat(path, arrays)


def spoil_bytes(content):
    return lambda path: path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


X5 = np.zeros((2, 32, 32, 3), np.uint8)
XM = np.zeros((32, 32, 3, 2), np.uint8)
PACKED = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))


@pytest.mark.parametrize(
    ("dataset", "file", "spoil", "reason"),
    [
        (
            "mnist",
            "train-images-idx3-ubyte",
            truncate,
            r"has 55 bytes of data, but 60 by its header",
        ),
        ("mnist", "train-images-idx3-ubyte", spoil_bytes(b""), r"requires a buffer"),
        (
            "mnist",
            "train-images-idx3-ubyte",
            spoil_bytes(bytes([0, 0, 8, 1]) + bytes(20)),
            r"magic number is 0x00000801 instead of 0x00000803",
        ),
        ("mnist", "t10k-labels-idx1-ubyte", spoil_bytes(PACKED[:-9]), r"ended before"),
        ("mnist", "t10k-labels-idx1-ubyte", spoil_bytes(PACKED), r"has 9 labels for 2 images"),
        (
            "mnist",
            "t10k-labels-idx1-ubyte",
            spoil_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 10])),
            r"has the label 10; valid labels are 0 to 9",
        ),
        ("cifar10", "data_batch_1.bin", truncate, r"9214 bytes, not a multiple of 3073"),
        ("cifar10", "test_batch.bin", spoil_bytes(b""), r"0 bytes, not a multiple of"),
        ("cifar10", "test_batch.bin", spoil_bytes(bytes([11]) + bytes(3072)), r"the label 11;"),
        ("cifar100", "test.bin", spoil_bytes(bytes([0, 100]) + bytes(3072)), r"the label 100;"),
        ("cifar100", "test.bin", spoil_bytes(bytes(3073)), r"not a multiple of 3074"),
        ("svhn", "test_32x32.mat", spoil_bytes(b""), r"truncated"),
        ("svhn", "test_32x32.mat", spoil_bytes(b"?" * 200), r"Unknown mat file type"),
        (
            "svhn",
            "test_32x32.mat",
            spoil_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)),
            r"HDF reader for matlab v7\.3",
        ),
        ("svhn", "test_32x32.mat", truncate, r"cannot be read: .+; it is damaged"),
        ("svhn", "test_32x32.mat", spoil_mat(X=XM), r"it has no variable y"),
        (
            "svhn",
            "test_32x32.mat",
            spoil_mat(X=XM, y=[[0], [1]]),
            r"the label 0; valid labels are 1 to 10",
        ),
        ("svhn", "test_32x32.mat", spoil_mat(X=XM, y=[[1]]), r"'X' has 2 images, and 'y' has 1"),
        ("svhn", "test_32x32.mat", spoil_mat(X=XM / 2, y=[[1], [2]]), r"'X' are float64 of shape"),
        ("cifar5m", "part0.npz", truncate, r"not a zip file"),
        ("cifar5m", "part5.npz", spoil_cifar5m(X=X5), r"has no array 'Y'; it has X\.npy"),
        ("cifar5m", "part5.npz", spoil_cifar5m(X=X5, Y=[1, 10]), r"the label 10;"),
        ("cifar5m", "part5.npz", spoil_cifar5m(X=X5, Y=[1]), r"2 images, and 'Y' has 1 labels"),
        ("cifar5m", "part5.npz", spoil_cifar5m(X=X5, Y=[0.5, 1]), r"'Y' has the dtype float64"),
        (
            "cifar5m",
            "part5.npz",
            spoil_cifar5m(X=X5.transpose(0, 3, 1, 2), Y=[1, 2]),
            r"'X' are uint8 of shape \(3, 32, 32\); valid is uint8 of shape \(32, 32, 3\)",
        ),
        (
            "imagenet32",
            "val_data.npz",
            spoil_cifar5m(data=np.zeros((2, 192), np.uint8), labels=[1, 1000]),
            r"'data' are uint8 of shape \(192,\); valid is uint8 of shape \(3072,\)",
        ),
        (
            "imagenet32",
            "val_data.npz",
            spoil_cifar5m(data=np.zeros((2, 3072), np.uint8), labels=[0, 1000]),
            r"the label 0; valid labels are 1 to 1000",
        ),
    ],
)
def test_damaged_files(root, dataset, file, spoil, reason):
    write(root / dataset, dataset, drawn(dataset, 5, seed=0), drawn(dataset, 2, seed=1))
    path = root / dataset / file
    spoil(path)
    with pytest.raises(UserError, match=reason) as caught:
        load(dataset, {"n_train": 3, "n_test": 2})
    start = f"images: {path}, of the data set {dataset!r}, cannot be read: "
    assert str(caught.value).startswith(start)
    assert "; it is damaged or some other file; get it again from http" in str(caught.value)


def test_an_archive_that_ends_early(root):
    write(root, "cifar5m", drawn("cifar5m", 3, seed=0), drawn("cifar5m", 2, seed=1))
    header = {"descr": "|u1", "fortran_order": False, "shape": (2, 32, 32, 3)}
    with zipfile.ZipFile(root / "part5.npz", "w") as archive:
        with archive.open("X.npy", "w") as stream:
            np.lib.format.write_array_header_2_0(stream, header)
            stream.write(bytes(3072 + 100))
        with archive.open("Y.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array([3, 4]))
    assert len(load("cifar5m", {"n_train": 3, "n_test": 1})["X_test"]) == 1
    with pytest.raises(UserError, match=r"part5\.npz, of .* cannot be read: .*reshape"):
        load("cifar5m", {"n_train": 3, "n_test": 2})


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("key", ["X", "Y"])
def test_nothing_is_unpickled(root, key):
    write(root, "cifar5m", drawn("cifar5m", 3, seed=0), drawn("cifar5m", 2, seed=1))
    trap = root / "it ran"
    objects = np.array([Payload(trap)] * 2, dtype=object)
    np.savez(root / "part5.npz", **{"X": X5, "Y": [1, 2], key: objects})
    with pytest.raises(UserError, match=rf"its array '{key}' is pickled, and nothing is unpickled"):
        load("cifar5m", {"n_train": 3, "n_test": 2})
    # The format of cifar-10-batches-py under the name of the binary version.
    write(root, "cifar10", drawn("cifar10", 3, seed=0), drawn("cifar10", 2, seed=1))
    (root / "test_batch.bin").write_bytes(pickle.dumps(Payload(trap)))
    with pytest.raises(UserError, match=r"not a multiple of 3073"):
        load("cifar10", {"n_train": 3, "n_test": 2})
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists()


def test_classes_that_no_image_is_of(root):
    pixels, _ = drawn("cifar10", 3, seed=0)
    write(root, "cifar10", (pixels, [1, 2, 3]), (pixels, [1, 2, 3]))
    for number in (2, 3, 4, 5):
        (root / f"data_batch_{number}.bin").write_bytes((root / "test_batch.bin").read_bytes())
    message = r"none of the train images of 'cifar10' is of the classes \[\[4\], \[5\]\]"
    with pytest.raises(UserError, match=message):
        load("cifar10", classes=[4, 5])
