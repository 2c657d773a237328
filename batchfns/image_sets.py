"""The image data sets there are: which files they consist of, where those are looked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

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

__all__ = ["IMAGE_SETS", "ImageSet", "folder_of_data_sets", "take"]


class ImageSet(Protocol):
    """An image data set."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def origin(self) -> str:
        """Where one gets its files, in words."""

    @property
    def labels(self) -> range:
        """The labels that its images can have."""

    @property
    def package(self) -> str | None:
        """What has to be installed to read it."""

    @property
    def white(self) -> int:
        """The value of the brightest pixels."""

    def check(self) -> None:
        """Raise a UserError where files are missing that reading anything of it needs."""

    def parts(self, split: str) -> Iterator[Part]:
        """Yield what "train" or "test" consists of, reading each part when its turn comes."""


def take(
    known: ImageSet, split: str, groups: list[list[int]], rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the first images of the groups, at most so many, and the number of each one's group.

    Parts beyond the last row that is taken are not opened.

    Returns:
        Pixels (m, channels, height, width) from 0 to 1, and group numbers (m,).

    Raises:
        UserError: for files that are missing or damaged, and where no image is of these groups.
    """
    group_of = np.full(len(known.labels), -1)
    for number, group in enumerate(groups):
        group_of[group] = number
    taken: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    try:
        for part in known.parts(split):
            numbers = group_of[part.labels]
            places = np.flatnonzero(numbers >= 0)[:rows]
            if len(places):
                taken.append((part.pixels(places), numbers[places]))
            rows -= len(places)
            if not rows:
                break
    except UnreadableFile as error:
        raise UserError(
            f"images: {error.path}, of the data set {known.name!r}, cannot be read: "
            f"{error.reason}; it is damaged or some other file; get it again from {known.origin}"
        ) from error
    if not taken:
        raise UserError(
            f"images: none of the {split} images of {known.name!r} is of the classes {groups}"
        )
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
    return np.divide(pixels, known.white, dtype=np.float32), labels


def folder_of_data_sets() -> Path | None:
    """Return what $DATASETPATH names, or None where it is not set."""
    name = os.environ.get("DATASETPATH", "")
    return Path(name).expanduser() if name else None


@dataclass(frozen=True)
class _Digits:
    """The digits that scikit-learn brings along."""

    name: str = "digits"
    origin: str = "scikit-learn"
    labels: range = range(10)
    package: str | None = "sklearn"
    white: int = 16

    def check(self) -> None:
        pass

    def parts(self, split: str) -> Iterator[Part]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # A RandomState's stream is frozen for good, so the split is the same under every numpy.
        order = np.random.RandomState(0).permutation(len(bunch.target))
        quarter = len(order) // 4
        order = order[:quarter] if split == "test" else order[quarter:]
        planes = bunch.images[order, None].astype(np.uint8)
        yield Part(bunch.target[order].astype(np.int64), lambda rows: planes[rows])


class _Layout(NamedTuple):
    """The names under which a data set's files go around; a part is read from one or two files."""

    train: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Files:
    """A data set that lies in files.

    Attributes:
        name: what the user calls it, and the folder of its own that it is looked for in.
        unpacked: further folders, as archives and other programs name them.
        layouts: the first whose first training file is there counts; without any, the first.
        read: function of the files of a part.
        origin: where one gets the files, in words.
        endings: what the names of the files may end in besides.
        namesakes: files of another data set are called the same, so that they count only in folders
            that are named after this one.
    """

    name: str
    labels: range
    unpacked: tuple[str, ...]
    layouts: tuple[_Layout, ...]
    read: Callable[..., Part]
    origin: str
    endings: tuple[str, ...] = ("",)
    namesakes: bool = False
    package: str | None = None
    white: int = 255

    def check(self) -> None:
        if absent := [*self._absent("train", 0), *self._absent("test", 0)]:
            raise UserError(self._not_found(absent))

    def parts(self, split: str) -> Iterator[Part]:
        for number, names in enumerate(self._parts(split)):
            if absent := self._absent(split, number):
                raise UserError(self._not_found(absent))
            yield self.read(*map(self._find, names))

    def _parts(self, split: str) -> tuple[tuple[str, ...], ...]:
        there = (layout for layout in self.layouts if self._find(layout.train[0][0]))
        parts: tuple[tuple[str, ...], ...] = getattr(next(there, self.layouts[0]), split)
        return parts

    def _absent(self, split: str, part: int) -> list[str]:
        """Return nothing if the files of a part are there, else all that are absent from it on."""
        parts = self._parts(split)
        if all(map(self._find, parts[part])):
            return []
        return [name for names in parts[part:] for name in names if not self._find(name)]

    def _find(self, name: str) -> Path | None:
        candidates = (
            folder / f"{name}{ending}" for folder in self._folders() for ending in self.endings
        )
        return next((path for path in candidates if path.is_file()), None)

    def _folders(self) -> list[Path]:
        root = folder_of_data_sets()
        if root is None:
            return []
        own = root / self.name
        around = [] if self.namesakes else [root]
        inner = [folder / name for folder in (root, own) for name in self.unpacked]
        return [own, *around, *inner]

    def _not_found(self, absent: list[str]) -> str:
        files = ", ".join(absent)
        if self.endings != ("",):
            files += f" (or each with {self.endings[-1]})"
        if folder_of_data_sets() is None:
            return (
                f"images: the data set {self.name!r} is read from files, and $DATASETPATH is not "
                f"set; set it to the folder of your data sets, where $DATASETPATH/{self.name} "
                f"holds {files}; get them from {self.origin}"
            )
        folders = ", ".join(map(str, self._folders()))
        return (
            f"images: the data set {self.name!r} lacks {files}; looked in {folders}; get them from "
            f"{self.origin}, or set $DATASETPATH, now {folder_of_data_sets()}, to the folder of "
            "your data sets"
        )


def _numbered(name: str, numbers: range) -> tuple[tuple[str, ...], ...]:
    return tuple((name.format(number),) for number in numbers)


_MNIST_LAYOUT = _Layout(
    train=(("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),),
    test=(("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),),
)
_CIFAR100 = _Files(
    name="cifar100",
    labels=range(100),
    unpacked=("cifar-100-binary",),
    layouts=(_Layout(train=(("train.bin",),), test=(("test.bin",),)),),
    read=partial(cifar_records, valid=range(100), label_bytes=2, label=1),
    origin="https://www.cs.toronto.edu/~kriz/cifar.html (the binary version of CIFAR-100)",
)

_FILES = [
    _Files(
        name="mnist",
        labels=range(10),
        unpacked=("MNIST", "MNIST/raw"),
        layouts=(_MNIST_LAYOUT,),
        read=idx,
        origin="https://ossci-datasets.s3.amazonaws.com/mnist/",
        endings=("", ".gz"),
        namesakes=True,
    ),
    _Files(
        name="fashion_mnist",
        labels=range(10),
        unpacked=("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        layouts=(_MNIST_LAYOUT,),
        read=idx,
        origin="https://github.com/zalandoresearch/fashion-mnist",
        endings=("", ".gz"),
        namesakes=True,
    ),
    _Files(
        name="cifar10",
        labels=range(10),
        unpacked=("cifar-10-batches-bin",),
        layouts=(
            _Layout(_numbered("data_batch_{}.bin", range(1, 6)), test=(("test_batch.bin",),)),
        ),
        read=partial(cifar_records, valid=range(10)),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html (the binary version of CIFAR-10)",
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
        labels=range(10),
        unpacked=("SVHN",),
        layouts=(_Layout(train=(("train_32x32.mat",),), test=(("test_32x32.mat",),)),),
        read=svhn,
        origin="http://ufldl.stanford.edu/housenumbers (format 2, cropped digits)",
        package="scipy",
    ),
    _Files(
        name="imagenet32",
        labels=range(1000),
        unpacked=("imagenet", "Imagenet32_train_npz", "Imagenet32_val_npz"),
        layouts=(
            _Layout(_numbered("train_data_batch_{}.npz", range(1, 11)), test=(("val_data.npz",),)),
            _Layout(train=(("imagenet32.npz",),), test=(("val_data.npz",),)),
        ),
        read=imagenet32,
        origin="https://image-net.org/download-images (downsampled, 32x32, npz format)",
    ),
    _Files(
        name="cifar5m",
        labels=range(10),
        unpacked=("cifar-5m",),
        # The last million images are for tests, as in the paper that the data set was made for.
        layouts=(
            _Layout(_numbered("part{}.npz", range(5)), test=(("part5.npz",),)),
            _Layout(_numbered("cifar5m_part{}.npz", range(5)), test=(("cifar5m_part5.npz",),)),
        ),
        read=cifar5m,
        origin="https://github.com/preetum/cifar5m",
    ),
]

IMAGE_SETS: dict[str, ImageSet] = {"digits": _Digits(), **{files.name: files for files in _FILES}}
