"""Image data sets as data recipes."""

from __future__ import annotations

import functools
import importlib.util
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.batchfns.image_sets import IMAGE_SETS, ImageSet, folder_of_data_sets, take
from mlpsubmit.batchfns.image_transforms import (
    Rows,
    flattened_spectrum,
    grayscale_of,
    normalized_by_training,
    spectrum,
)
from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import COUNT, FLAG, Valid, argument_errors, is_real
from mlpsubmit.errors import SpecError, UserError, did_you_mean

__all__ = ["images"]


def images(
    dataset: str | None = None,
    classes: Sequence[int | Sequence[int]] | None = None,
    binarize: bool | None = None,
    onehot: bool | None = None,
    grayscale: bool | None = None,
    zca_strength: float | None = None,
    normalized: bool | None = None,
    flat: bool | None = None,
    eigvals: bool | None = None,
) -> Callable[..., dict[str, Tensor]]:
    r"""Return the data recipe of an image data set, for ``Sweep(data=..., batchfn=sample)``.

    The recipe runs on a worker, takes ``n_train`` and ``n_test`` from the hyperparameters, and
    yields the data entries ``X_train``, ``y_train``, ``X_test`` and ``y_test``. It gives fewer rows
    than asked for where the data set has no more. Any argument may be left out here and come from
    an axis or from ``datasethps`` instead, by its name.

    ================= ========================================== ================================
    data set          files                                      from
    ================= ========================================== ================================
    "digits"          none: it is part of scikit-learn           1797 images of 8 x 8 pixels
    "mnist"           train-images-idx3-ubyte,                   https://ossci-datasets.s3.
                      train-labels-idx1-ubyte,                   amazonaws.com/mnist/
                      t10k-images-idx3-ubyte,
                      t10k-labels-idx1-ubyte, or each .gz
    "fashion_mnist"   named as those of "mnist"                  https://github.com/
                                                                 zalandoresearch/fashion-mnist
    "cifar10"         data_batch_1.bin to data_batch_5.bin,      https://www.cs.toronto.edu/
                      test_batch.bin                             ~kriz/cifar.html, binary version
    "cifar100",       train.bin, test.bin; labels are the 100    the same page
    "cifar100_coarse" fine ones, or the 20 coarse ones
    "svhn"            train_32x32.mat, test_32x32.mat            http://ufldl.stanford.edu/
                                                                 housenumbers, cropped digits
    "imagenet32"      train_data_batch_1.npz to _10.npz or       https://image-net.org/
                      all in one imagenet32.npz; val_data.npz    download-images, npz format
    "cifar5m"         part0.npz to part5.npz, or                 https://github.com/preetum/
                      cifar5m_part0.npz to ...                   cifar5m
    ================= ========================================== ================================

    Files lie under the folder that the environment variable ``DATASETPATH`` names on the worker: in
    a folder of the data set's name ("cifar10"), in one that its archive unpacks to
    ("cifar-10-batches-bin", "MNIST/raw"), or in ``DATASETPATH`` itself, unless, as with MNIST and
    Fashion-MNIST, another data set's files have the same names. Where that folder exists on the
    machine that launches, missing files are reported there. Nothing is unpickled. Data sets of
    several training files need only as many of them as ``n_train`` reaches into.

    Which image is a training and which a test image depends on nothing: not on a seed, not on
    ``classes``. Test images are those of the test files; of "imagenet32" the validation images; of
    "cifar5m" those of part 5, as in Nakkiran, Neyshabur, Sedghi (arXiv 2010.08127); of "digits" a
    random quarter. Rows come in the order of the files, in which classes are mixed, and a smaller
    ``n_train`` is a head of a larger one. Of MNIST's test images the first 5000 are the easier
    half, so compare test losses at N_TEST=10_000. Labels are numbered from 0: those of "imagenet32"
    are 0 to 999, where its files say 1 to 1000, and 0 is the digit 0 of "svhn", where they say 10.

    Inputs go through grayscale, zca_strength and normalized in this order. With :math:`\mu` the
    mean training image, and means over the training rows taken,

    .. math:: x \mapsto \frac{x - \mu}{\sqrt{\mathrm{mean}(|x - \mu|^2) / d}}

    normalizes: training inputs then have mean 0 and mean squared norm d, 1 per pixel. And with
    U S V^T the singular value decomposition of the centred training inputs, zca_strength turns S
    into S / sqrt(w S^2 + 1), w = zca_strength / mean(S^2), up to a factor that keeps the total
    variance: 0 changes nothing, and a large value whitens. Test inputs go through the same linear
    map, that of the training inputs.

    Args:
        dataset: a name of the table.
        classes: groups of labels that become one class each, [[0, 1], [8]]; a single label may
            stand for its group, [[0, 1], 8]. Images of other labels are left out. By default every
            label is a class.
        binarize: two classes give targets (n,), float32: -1 for the first, +1 for the second. The
            default, unless onehot=False.
        onehot: other targets are one-hot (n, classes), float32, the default; otherwise the number
            of the class (n,), int64, as LOSS="cross_entropy" wants it.
        grayscale: replace the channels by their mean, by default False.
        zca_strength: >= 0, by default 0; how much the covariance spectrum is flattened.
        normalized: centre and scale the inputs, the default; otherwise pixels are from 0 to 1.
        flat: inputs (n, d), the default; otherwise (n, channels, height, width), as Conv2d takes
            them.
        eigvals: yield a further entry, ``data_eigvals`` (d,), float32: the eigenvalues of the
            second moment X_train^T X_train / n, descending. By default False.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker: an
            unknown data set, classes that overlap or that it does not have, a flag that is neither
            True nor False; and where all training images are the same.
        UserError: where a package that reads the data set is not installed, and for files that are
            missing, damaged or of another kind.

    Example:
        >>> sweep = Sweep(data=images("digits", classes=[[0], [1]]), batchfn=sample, ONLINE=False)
        >>> images("digits", classes=[[0], [1]])(n_train=300, n_test=50)["X_train"].shape
        torch.Size([280, 64])
    """
    bound = bound_recipe(_image_entries, locals())
    # Classes as lists of lists, so that one way of writing them is as good as another for a key.
    return bound if classes is None else functools.partial(bound, classes=_groups(classes))


def _check(arguments: Mapping[str, Any]) -> None:
    """Raise one error for all that is wrong with the arguments that are there.

    What a login node sees of the data sets can be said at launch, not after hours in the queue. A
    folder that only the workers see is left to them.
    """
    errors = argument_errors("images", arguments, _VALID)
    dataset = arguments.get("dataset")
    known = IMAGE_SETS.get(dataset) if isinstance(dataset, str) else None
    if "dataset" in arguments and known is None:
        errors.append(
            f"images: no data set {dataset!r}{did_you_mean(str(dataset), IMAGE_SETS)}; "
            f"valid are {', '.join(map(repr, IMAGE_SETS))}"
        )
    if arguments.get("classes") is not None:
        errors += _class_errors(arguments["classes"], known)
    if errors:
        raise SpecError(errors)
    if known is not None:
        _require(known)
        root = folder_of_data_sets()
        if root is not None and root.is_dir():
            known.check()


@recipe("images", _check)
def _image_entries(
    dataset: str,
    n_train: int,
    n_test: int,
    classes: Sequence[int | Sequence[int]] | None = None,
    binarize: bool | None = None,
    onehot: bool = True,
    grayscale: bool = False,
    zca_strength: float = 0.0,
    normalized: bool = True,
    flat: bool = True,
    eigvals: bool = False,
) -> dict[str, Tensor]:
    _check(locals())
    known = IMAGE_SETS[dataset]
    known.check()  # whether or not the folder was there to look into
    groups = _groups(known.labels if classes is None else classes)
    train, train_classes = take(known, "train", groups, n_train)
    test, test_classes = take(known, "test", groups, n_test)
    if grayscale:
        train, test = grayscale_of(train), grayscale_of(test)
    X_train, X_test = _inputs(train, test, zca_strength, normalized)
    signs = len(groups) == 2 and (onehot if binarize is None else binarize)
    entries = {
        "X_train": X_train if flat else X_train.reshape(train.shape),
        "y_train": _targets(train_classes, len(groups), signs, onehot),
        "X_test": X_test if flat else X_test.reshape(test.shape),
        "y_test": _targets(test_classes, len(groups), signs, onehot),
    }
    if eigvals:
        entries["data_eigvals"] = spectrum(X_train)
    return {name: torch.from_numpy(entry) for name, entry in entries.items()}


def _inputs(
    train: NDArray[np.float32], test: NDArray[np.float32], zca_strength: float, normalized: bool
) -> tuple[Rows, Rows]:
    """Return images (n, channels, height, width) as inputs (n, d), transformed."""
    X_train: Rows = train.reshape(len(train), -1)
    X_test: Rows = test.reshape(len(test), -1)
    if zca_strength:
        X_train, X_test = flattened_spectrum(X_train, X_test, zca_strength)
    if normalized:
        X_train, X_test = normalized_by_training(X_train, X_test)
    return X_train, X_test


def _targets(
    group_of: NDArray[np.int64], groups: int, signs: bool, onehot: bool
) -> NDArray[np.float32] | NDArray[np.int64]:
    if signs:
        return (2 * group_of - 1).astype(np.float32)
    return np.eye(groups, dtype=np.float32)[group_of] if onehot else group_of


_VALID: Valid = {
    "binarize": (FLAG[0], lambda value: value is None or FLAG[1](value)),
    "onehot": FLAG,
    "grayscale": FLAG,
    "zca_strength": (
        "a finite number >= 0, where 0 changes nothing",
        lambda strength: is_real(strength) and strength >= 0,
    ),
    "normalized": FLAG,
    "flat": FLAG,
    "eigvals": FLAG,
    "n_train": COUNT,
    "n_test": COUNT,
}


#: What packages are called where one installs them, if not as where one imports them.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def _require(known: ImageSet) -> None:
    # Looking for a package does not import it.
    package = known.package
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"the data set {known.name!r} needs {_DISTRIBUTIONS.get(package, package)}; "
            "try: pip install 'mlpsubmit[images]'"
        )


def _groups(classes: Any) -> list[list[int]]:
    """Return the classes as lists of ints, a single label as a group of its own."""
    return [
        [operator.index(label) for label in group]
        if hasattr(group, "__iter__")
        else [operator.index(group)]
        for group in classes
    ]


def _class_errors(classes: Any, known: ImageSet | None) -> list[str]:
    """Return what is wrong with the classes; which labels there are, only if the set is known."""
    example = "try classes=[[0], [1]]"
    try:
        groups = _groups(classes)
    except TypeError:
        return [f"images: got classes={classes!r}; valid are groups of labels; {example}"]
    everything = [label for group in groups for label in group]
    wrong = []
    if len(groups) < 2 or not all(groups):
        wrong.append("there should be two groups or more, none of them empty")
    if known and (unknown := sorted(set(everything) - set(known.labels))):
        wrong.append(f"{known.name!r} has no label {', '.join(map(str, unknown))}")
    if twice := sorted({label for label in everything if everything.count(label) > 1}):
        wrong.append(f"label {', '.join(map(str, twice))} stands more than once")
    if not wrong:
        return []
    valid = f"valid labels are {known.labels[0]} to {known.labels[-1]}; " if known else ""
    return [f"images: got classes={classes!r}; {'; '.join(wrong)}; {valid}{example}"]
