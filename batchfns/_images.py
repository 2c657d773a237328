"""Image data sets as data recipes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.batchfns.image_sets import IMAGE_SETS, ImageSet, datasets_folder, read_images
from mlpsubmit.batchfns.image_transforms import (
    Rows,
    flattened_spectrum,
    grayscale_of,
    normalized_by_training,
    spectrum,
)
from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import argument_errors
from mlpsubmit.errors import SpecError, did_you_mean

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
    returns the data entries ``X_train``, ``y_train``, ``X_test`` and ``y_test``, with fewer rows
    if the data set has no more. Any argument may be omitted here and come from an axis or from
    ``datasethps`` instead.

    Data sets are "digits" (part of scikit-learn), "mnist", "fashion_mnist", "cifar10", "cifar100",
    "cifar100_coarse", "svhn", "imagenet32" and "cifar5m". Their files must be in the folder that
    the environment variable ``DATASETPATH`` names on the worker:
    ``help("mlpsubmit.batchfns.image_sets")`` lists them and where to get them. If that folder
    exists where the sweep is launched, missing files are reported there.

    Neither a seed nor ``classes`` affects which images are for training and which for tests. Test
    images are those of the test files: the validation images of "imagenet32", part 5 of "cifar5m"
    (Nakkiran, Neyshabur, Sedghi, arXiv 2010.08127), a random quarter of "digits". Rows have the
    order of the files, in which classes are mixed, so a smaller ``n_train`` is a prefix of a larger
    one. The first 5000 test images of MNIST are the easier half: compare test losses at
    N_TEST=10_000. Labels start at 0: "imagenet32" has 0 to 999 (1 to 1000 in its files), and in
    "svhn" 0 is the digit 0 (10 in its files).

    Inputs are transformed by grayscale, zca_strength and normalized, in this order. Normalized
    inputs are :math:`(x - \mu) / \sqrt{\mathrm{mean}(|x - \mu|^2) / d}`, with :math:`\mu` and the
    mean over the training rows. With the singular value decomposition U S V^T of the centred
    training inputs, zca_strength replaces S by S / sqrt(w S^2 + 1), w = zca_strength / mean(S^2),
    times a factor that preserves the total variance: 0 changes nothing, and a large value whitens.
    Test inputs are transformed by the same linear map.

    Args:
        dataset: the name of a data set.
        classes: groups of labels, each of which becomes one class, [[0, 1], [8]]; a single label
            may replace its group, [[0, 1], 8]. Images with other labels are left out. By default
            every label is a class.
        binarize: whether targets are (n,), float32, -1 for the first and +1 for the second of two
            classes. The default for two classes, unless onehot=False.
        onehot: whether other targets are one-hot (n, classes), float32 (the default); otherwise
            they are class numbers (n,), int64, for LOSS="cross_entropy".
        grayscale: whether to replace the channels by their mean, by default False.
        zca_strength: strength of the ZCA transform, >= 0, by default 0.
        normalized: whether to centre and scale the inputs (the default); else pixels are in [0, 1].
        flat: whether inputs are (n, d) (the default), or (n, channels, height, width), for Conv2d.
        eigvals: whether to add the data entry ``data_eigvals`` (d,), float32: the eigenvalues of
            X_train^T X_train / n, descending. By default False.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker; and if
            all training images are equal.
        UserError: if the package that reads the data set is not installed, and for files that
            are missing or damaged.

    Example:
        >>> sweep = Sweep(data=images("digits", classes=[[0], [1]]), batchfn=sample, ONLINE=False)
        >>> images("digits", classes=[[0], [1]])(n_train=300, n_test=50)["X_train"].shape
        torch.Size([280, 64])
    """
    bound = bound_recipe(_image_entries, locals())
    # Always as lists of lists, so that the key does not depend on how the classes were written.
    return bound if classes is None else functools.partial(bound, classes=_groups(classes))


def _check(arguments: Mapping[str, Any]) -> None:
    """Raise one error that lists every bad argument.

    At launch, files are checked if the folder of data sets exists: it may exist on workers only.
    """
    errors = argument_errors("images", arguments)
    dataset = arguments.get("dataset")
    image_set = IMAGE_SETS.get(dataset) if isinstance(dataset, str) else None
    if "dataset" in arguments and image_set is None:
        errors.append(
            f"images: no data set {dataset!r}{did_you_mean(str(dataset), IMAGE_SETS)}; "
            f"valid are {', '.join(map(repr, IMAGE_SETS))}"
        )
    if arguments.get("classes") is not None:
        errors += _class_errors(arguments["classes"], image_set)
    if errors:
        raise SpecError(errors)
    if image_set is not None:
        image_set.check_package()
        root = datasets_folder()
        if root is not None and root.is_dir():
            image_set.check_files()


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
    image_set = IMAGE_SETS[dataset]
    image_set.check_files()  # even if the folder does not exist
    groups = _groups(image_set.labels if classes is None else classes)
    train, train_groups = read_images(image_set, "train", groups, n_train)
    test, test_groups = read_images(image_set, "test", groups, max(1, n_test))
    if grayscale:
        train, test = grayscale_of(train), grayscale_of(test)
    X_train: Rows = train.reshape(len(train), -1)
    X_test: Rows = test.reshape(len(test), -1)
    if zca_strength:
        X_train, X_test = flattened_spectrum(X_train, X_test, zca_strength)
    if normalized:
        X_train, X_test = normalized_by_training(X_train, X_test)
    signs = len(groups) == 2 and (onehot if binarize is None else binarize)
    entries = {
        "X_train": X_train if flat else X_train.reshape(train.shape),
        "y_train": _targets(train_groups, len(groups), signs, onehot),
        "X_test": X_test if flat else X_test.reshape(test.shape),
        "y_test": _targets(test_groups, len(groups), signs, onehot),
    }
    if n_test == 0:
        del entries["X_test"], entries["y_test"]
    if eigvals:
        entries["data_eigvals"] = spectrum(X_train)
    return {name: torch.from_numpy(entry) for name, entry in entries.items()}


def _targets(
    group_of: NDArray[np.int64], groups: int, signs: bool, onehot: bool
) -> NDArray[np.float32] | NDArray[np.int64]:
    if signs:
        return (2 * group_of - 1).astype(np.float32)
    return np.eye(groups, dtype=np.float32)[group_of] if onehot else group_of


def _groups(classes: Any) -> list[list[int]]:
    """Return the classes as lists of ints, a single label as a group of one."""
    return [
        [operator.index(label) for label in group]
        if hasattr(group, "__iter__")
        else [operator.index(group)]
        for group in classes
    ]


def _class_errors(classes: Any, image_set: ImageSet | None) -> list[str]:
    """Return the errors of the classes; labels are only checked if the data set is known."""
    example = "try classes=[[0], [1]]"
    try:
        groups = _groups(classes)
    except TypeError:
        return [f"images: got classes={classes!r}; valid are groups of labels; {example}"]
    everything = [label for group in groups for label in group]
    wrong = []
    if len(groups) < 2 or not all(groups):
        wrong.append("there should be two groups or more, none of them empty")
    if image_set and (unknown := sorted(set(everything) - set(image_set.labels))):
        wrong.append(f"{image_set.name!r} has no label {', '.join(map(str, unknown))}")
    if twice := sorted({label for label in everything if everything.count(label) > 1}):
        wrong.append(f"label {', '.join(map(str, twice))} appears more than once")
    if not wrong:
        return []
    labels = image_set.labels if image_set else ()
    valid = f"valid labels are {labels[0]} to {labels[-1]}; " if labels else ""
    return [f"images: got classes={classes!r}; {'; '.join(wrong)}; {valid}{example}"]
