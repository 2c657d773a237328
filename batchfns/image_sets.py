"""The image data sets: their labels, their files, and where to get these.

================= ============================================ =============================
data set          files                                        from
================= ============================================ =============================
"digits"          none: it is part of scikit-learn             1797 images of 8 x 8 pixels
"mnist"           train-images-idx3-ubyte,                     https://ossci-datasets.s3.
                  train-labels-idx1-ubyte,                     amazonaws.com/mnist/
                  t10k-images-idx3-ubyte,
                  t10k-labels-idx1-ubyte, or each .gz
"fashion_mnist"   as for "mnist"                               https://github.com/
                                                               zalandoresearch/fashion-mnist
"cifar10"         data_batch_1.bin to data_batch_5.bin,        https://www.cs.toronto.edu/
                  test_batch.bin                               ~kriz/cifar.html, binary version
"cifar100",       train.bin, test.bin; labels are the 100      the same page
"cifar100_coarse" fine ones, or the 20 coarse ones
"svhn"            train_32x32.mat, test_32x32.mat              http://ufldl.stanford.edu/
                                                               housenumbers, cropped digits
"imagenet32"      train_data_batch_1.npz to _10.npz or         https://image-net.org/
                  all in one imagenet32.npz; val_data.npz      download-images, npz format
"cifar5m"         part0.npz to part5.npz, or                   https://github.com/preetum/
                  cifar5m_part0.npz to ...                     cifar5m
================= ============================================ =============================

Files are searched for in the folder that the environment variable ``DATASETPATH`` names: in a
subfolder with the name of the data set ("cifar10"), in one that its archive unpacks to
("cifar-10-batches-bin", "MNIST/raw"), or in ``DATASETPATH`` itself, except where another data set
has files of the same names (MNIST and Fashion-MNIST). Of a data set with several training files,
only as many are needed as ``n_train`` reaches into. Nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.batchfns.image_files import (
    Part,
    UnreadableFile,
    cifar5m,
    cifar_records,
    idx,
    imagenet32,
    svhn,
)
from mlpsubmit.errors import UserError

__all__ = ["IMAGE_SETS", "ImageSet", "datasets_folder", "read_images"]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """An image data set.

    Attributes:
        name: its name for users.
        origin: where to get its files, for messages.
        labels: the labels that its images can have.
        package: the package that reads it, by its import name, if any.
        white: the value of the brightest pixels.
    """

    name: str
    origin: str
    labels: range = range(10)
    package: str | None = None
    white: int = 255

    def check_package(self) -> None:
        """Raise a UserError if the package that reads it is not installed, without importing it."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            distribution = "scikit-learn" if self.package == "sklearn" else self.package
            raise UserError(
                f"the data set {self.name!r} needs {distribution}; "
                "try: pip install 'mlpsubmit[images]'"
            )

    def check_files(self) -> None:
        """Raise a UserError if a file is missing that is needed for any number of images."""

    def parts(self, split: str) -> Iterator[Part]:
        """Yield the parts of the "train" or "test" images, each read when it is needed."""
        raise NotImplementedError


def read_images(
    image_set: ImageSet, split: str, groups: list[list[int]], rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the first images whose labels are in one of the groups, and the indices of the groups.

    Parts after the last row taken are not opened.

    Returns:
        Pixels (m, channels, height, width) from 0 to 1, and indices of groups (m,), m <= rows.

    Raises:
        UserError: for files that are missing or damaged, and if no image is in these groups.
    """
    group_of = np.full(len(image_set.labels), -1)
    for index, group in enumerate(groups):
        group_of[group] = index
    taken: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    try:
        for part in image_set.parts(split):
            indices = group_of[part.labels]
            chosen = np.flatnonzero(indices >= 0)[:rows]
            if len(chosen):
                taken.append((part.pixels(chosen), indices[chosen]))
            rows -= len(chosen)
            if not rows:
                break
    except UnreadableFile as error:
        path, reason = error.args
        raise UserError(
            f"images: {path}, of the data set {image_set.name!r}, cannot be read: {reason}; it is "
            f"damaged or some other file; get it again from {image_set.origin}"
        ) from error
    if not taken:
        raise UserError(
            f"images: none of the {split} images of {image_set.name!r} is of the classes {groups}"
        )
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
    return np.divide(pixels, image_set.white, dtype=np.float32), labels


def datasets_folder() -> Path | None:
    """Return the folder that $DATASETPATH names, or None if it is not set."""
    name = os.environ.get("DATASETPATH", "")
    return Path(name).expanduser() if name else None


class _Digits(ImageSet):
    """The digits of scikit-learn; a random quarter is for tests."""

    def parts(self, split: str) -> Iterator[Part]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # The stream of RandomState is frozen: the split is the same with every version of numpy.
        order = np.random.RandomState(0).permutation(len(bunch.target))
        quarter = len(order) // 4
        order = order[:quarter] if split == "test" else order[quarter:]
        planes = bunch.images[order, None].astype(np.uint8)
        yield Part(bunch.target[order].astype(np.int64), lambda rows: planes[rows])


#: One set of names for the files of a data set: per split, the one or two files of each part.
_Layout: TypeAlias = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class _Files(ImageSet):
    """A data set in files.

    Attributes:
        unpacked: further folders to search, with the names that archives and other programs use.
        layouts: the first one whose first training file exists is used, else the first.
        read: function of the paths of a part's files.
        endings: alternative suffixes of the file names.
        namesakes: whether another data set has files of the same names, so that they are only
            searched for in folders named after this one.
    """

    unpacked: tuple[str, ...]
    layouts: tuple[_Layout, ...]
    read: Callable[..., Part]
    endings: tuple[str, ...] = ("",)
    namesakes: bool = False

    def check_files(self) -> None:
        self._check([*self._absent("train", 0), *self._absent("test", 0)])

    def parts(self, split: str) -> Iterator[Part]:
        for index, names in enumerate(self._parts(split)):
            self._check(self._absent(split, index))
            yield self.read(*map(self._find, names))

    def _parts(self, split: str) -> Sequence[Sequence[str]]:
        found = (layout for layout in self.layouts if self._find(layout["train"][0][0]))
        return next(found, self.layouts[0])[split]

    def _absent(self, split: str, index: int) -> list[str]:
        """Return nothing if the files of a part exist, else all absent ones from this part on."""
        parts = self._parts(split)
        if all(map(self._find, parts[index])):
            return []
        return [name for names in parts[index:] for name in names if not self._find(name)]

    def _find(self, name: str) -> Path | None:
        candidates = (
            folder / f"{name}{ending}" for folder in self._folders() for ending in self.endings
        )
        return next((path for path in candidates if path.is_file()), None)

    def _folders(self) -> list[Path]:
        root = datasets_folder()
        if root is None:
            return []
        own = root / self.name
        inner = [folder / name for folder in (root, own) for name in self.unpacked]
        return [own, *inner] if self.namesakes else [own, root, *inner]

    def _check(self, absent: list[str]) -> None:
        """Raise a UserError if files are absent."""
        if not absent:
            return
        files = ", ".join(absent)
        if self.endings != ("",):
            files += f" (or each with {self.endings[-1]})"
        if datasets_folder() is None:
            raise UserError(
                f"images: the data set {self.name!r} is read from files, and $DATASETPATH is not "
                f"set; set it to the folder of your data sets, where $DATASETPATH/{self.name} "
                f"holds {files}; get them from {self.origin}"
            )
        folders = ", ".join(map(str, self._folders()))
        raise UserError(
            f"images: the data set {self.name!r} lacks {files}; looked in {folders}; get them from "
            f"{self.origin}, or set $DATASETPATH, now {datasets_folder()}, to the folder of "
            "your data sets"
        )


def _single_files(train: Sequence[str], test: str) -> _Layout:
    """Return the layout of a data set with one file per part."""
    return {"train": [[name] for name in train], "test": [[test]]}


_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html (the binary version of {})"
_MNIST = _Files(
    name="mnist",
    unpacked=("MNIST", "MNIST/raw"),
    layouts=(
        {
            "train": [["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]],
            "test": [["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]],
        },
    ),
    read=idx,
    origin="https://ossci-datasets.s3.amazonaws.com/mnist/",
    endings=("", ".gz"),
    namesakes=True,
)
_CIFAR100 = _Files(
    name="cifar100",
    labels=range(100),
    unpacked=("cifar-100-binary",),
    layouts=(_single_files(["train.bin"], "test.bin"),),
    read=partial(cifar_records, valid=range(100), label_bytes=2, label=1),
    origin=_CIFAR.format("CIFAR-100"),
)

_ALL: list[ImageSet] = [
    _Digits(name="digits", origin="scikit-learn", package="sklearn", white=16),
    _MNIST,
    replace(
        _MNIST,
        name="fashion_mnist",
        unpacked=("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        origin="https://github.com/zalandoresearch/fashion-mnist",
    ),
    _Files(
        name="cifar10",
        unpacked=("cifar-10-batches-bin",),
        layouts=(_single_files([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"),),
        read=partial(cifar_records, valid=range(10)),
        origin=_CIFAR.format("CIFAR-10"),
    ),
    _CIFAR100,
    replace(
        _CIFAR100,
        name="cifar100_coarse",
        labels=range(20),
        unpacked=("cifar-100-binary", "cifar100", "cifar100/cifar-100-binary"),
        read=partial(cifar_records, valid=range(20), label_bytes=2, label=0),
    ),
    _Files(
        name="svhn",
        unpacked=("SVHN",),
        layouts=(_single_files(["train_32x32.mat"], "test_32x32.mat"),),
        read=svhn,
        origin="http://ufldl.stanford.edu/housenumbers (format 2, cropped digits)",
        package="scipy",
    ),
    _Files(
        name="imagenet32",
        labels=range(1000),
        unpacked=("imagenet", "Imagenet32_train_npz", "Imagenet32_val_npz"),
        layouts=(
            _single_files([f"train_data_batch_{i}.npz" for i in range(1, 11)], "val_data.npz"),
            _single_files(["imagenet32.npz"], "val_data.npz"),
        ),
        read=imagenet32,
        origin="https://image-net.org/download-images (downsampled, 32x32, npz format)",
    ),
    _Files(
        name="cifar5m",
        unpacked=("cifar-5m",),
        # The last million images are for tests, as in the paper of the data set.
        layouts=tuple(
            _single_files([f"{stem}{i}.npz" for i in range(5)], f"{stem}5.npz")
            for stem in ("part", "cifar5m_part")
        ),
        read=cifar5m,
        origin="https://github.com/preetum/cifar5m",
    ),
]

IMAGE_SETS = {image_set.name: image_set for image_set in _ALL}
