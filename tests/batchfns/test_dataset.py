import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from mlpsubmit import Sweep
from mlpsubmit.batchfns import from_dataset, sample
from mlpsubmit.errors import SpecError

X = torch.arange(24, dtype=torch.float32).reshape(12, 2)
Y = torch.arange(12, dtype=torch.float32) / 3


class Pair(NamedTuple):
    x: object
    y: object


class Listed(Dataset):
    """A map-style data set of the usual kind."""

    def __init__(self, items):
        self.items, self.read = list(items), []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        return self.items[index]


class Streamed(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


def loaded(dataset):
    """All items as PyTorch's own loader puts them together."""
    return next(iter(DataLoader(dataset, batch_size=len(dataset))))


def whole(batchfn, split="train"):
    gen = torch.Generator().manual_seed(0)
    rows = len(batchfn.keywords[f"X_{split}"])
    return batchfn(bsz=rows, gen=gen, online=False, split=split)(0)


KINDS = {
    "tensors": Listed(zip(X, Y, strict=True)),
    "numpy": Listed(zip(X.numpy(), Y.numpy(), strict=True)),
    "named": Listed(Pair(x, y) for x, y in zip(X, Y, strict=True)),
    "TensorDataset": TensorDataset(X, Y),
    "Subset": Subset(Subset(TensorDataset(X, Y), range(2, 12)), [5, 0, 3]),
    "Subset of a Dataset": Subset(Listed(zip(X, Y, strict=True)), np.array([5, 0, 3])),
    "ranks": TensorDataset(torch.rand(5, 3, 4, 4), torch.rand(5, 2)),
    "labels": Listed((x, i % 3) for i, x in enumerate(X)),
    "label tensors": TensorDataset(X, torch.arange(12, dtype=torch.uint8)),
}


@pytest.mark.parametrize("dataset", KINDS.values(), ids=KINDS)
def test_rows_are_those_of_a_data_loader(dataset):
    batchfn = from_dataset(dataset)
    assert batchfn.func is sample
    for name, expected in zip(("X_train", "y_train"), loaded(dataset), strict=True):
        found = batchfn.keywords[name]
        floating = expected.is_floating_point() or name == "X_train"
        assert found.dtype == (torch.float32 if floating else torch.int64)
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0)


def test_an_epoch_of_a_loader_is_a_permutation_of_the_offline_set():
    dataset = KINDS["tensors"]
    found = whole(from_dataset(dataset, dataset))
    loader = DataLoader(dataset, batch_size=5, shuffle=True)
    epoch = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    for one, other in zip(found, epoch, strict=True):
        assert torch.equal(one.sort(0).values, other.sort(0).values)
    assert not torch.equal(found[1], Y)


def test_a_test_set_and_its_absence():
    train, test = TensorDataset(X[:8], Y[:8]), TensorDataset(X[8:], Y[8:])
    found = whole(from_dataset(train, test), "test")
    assert torch.equal(found[0], X[8:])
    assert torch.equal(found[1], Y[8:])
    with pytest.raises(SpecError, match=r"offline training evaluates a test set"):
        from_dataset(train)(bsz=2, gen=torch.Generator(), online=False, split="test")


def test_a_plain_list_of_pairs_will_do():
    assert from_dataset([([1.0, 2.0], 1), ([3.0, 4.0], 0)]).keywords["y_train"].tolist() == [1, 0]


def test_items_are_read_once_in_order_and_later_changes_do_not_reach_the_sweep():
    dataset = Listed(zip(X.clone(), Y, strict=True))
    batchfn = from_dataset(dataset)
    dataset.items[0][0].zero_()
    whole(batchfn)
    assert dataset.read == list(range(12))
    assert torch.equal(batchfn.keywords["X_train"], X)
    stored = TensorDataset(X.clone(), Y)
    batchfn = from_dataset(stored)
    stored.tensors[0].zero_()
    assert torch.equal(batchfn.keywords["X_train"], X)


def test_images_become_channels_first_from_0_to_1():
    colours = np.random.default_rng(0).integers(0, 256, (4, 3, 5), dtype=np.uint8)  # h, w, bands
    items = [
        Image.fromarray(colours[:, :, 0]),
        Image.fromarray(colours[:, :, :3]),
        Image.fromarray(colours[:, :, 0] > 128),
        Image.fromarray(colours[:, :, 0].astype(np.float32)),
    ]
    expected = [
        colours[None, :, :, 0] / 255,
        np.moveaxis(colours[:, :, :3], 2, 0) / 255,
        colours[None, :, :, 0] > 128,
        colours[None, :, :, 0],
    ]
    for image, pixels in zip(items, expected, strict=True):
        found = from_dataset([(image, 0), (image, 1)]).keywords["X_train"]
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), np.stack([pixels] * 2), rtol=1e-6)


def test_in_a_sweep_it_has_a_content_and_travels():
    def key():
        sweep = Sweep(batchfn=from_dataset(KINDS["numpy"]), N_SAMPLES=4)
        return next(iter(pickle.loads(pickle.dumps(sweep)))).key

    assert key() == key()


PAIRS = [(x, y) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Streamed(),
            r"dataset is of type Streamed, an IterableDataset, .*; try from_dataset\(list\(",
        ),
        (
            3,
            r"from_dataset: dataset is of type int; valid is a data set with len\(dataset\)",
        ),
        (DataLoader(PAIRS), r"dataset is of type DataLoader; valid is a data set"),
        ({0: PAIRS[0]}, r"dataset is of type dict; valid is a data set"),
        ([], r"dataset is of type list, without items"),
        (TensorDataset(X[:0], Y[:0]), r"dataset is of type TensorDataset, without items"),
        (
            TensorDataset(X, Y, Y),
            r"item 0 of dataset is of type tuple and length 3; valid is a pair \(x, y\)",
        ),
        ([*PAIRS, X[0]], r"item 12 of dataset is of type Tensor; valid is a pair \(x, y\)"),
        ([PAIRS[0], {"x": 1, "y": 2}], r"item 1 of dataset is of type dict; valid is a pair"),
        (
            [PAIRS[0], ("text", 1)],
            r"the x of dataset, item 1, is of type str; valid are numbers: an",
        ),
        ([({"a": 1}, 1)], r"the x of dataset, item 0, is of type dict; valid are numbers"),
        (
            [PAIRS[0], ([1.0, 2.0], None)],
            r"the y of dataset, item 1, is of type NoneType; valid are num",
        ),
        (
            [([[1.0], [2.0, 3.0]], 1)],
            r"the x of dataset, item 0, is of type list; valid .* a list of",
        ),
        (
            [*PAIRS, ([1.0], 2)],
            r"the x of dataset has the shape \(1,\) in item 12, but \(2,\) in i",
        ),
        (
            [([1.0], 2), ([1.0], [2, 3])],
            r"the y of dataset has the shape \(2,\) in item 1, but \(\)",
        ),
        ([(1.0, 2.0)], r"from_dataset: X has the shape \(1,\); valid are \(n, d\) or"),
        ([([1.0], [[2.0]])], r"from_dataset: y has the shape \(1, 1, 1\); valid are \(n,\) or"),
        (
            [([1.0, math.nan], 1)],
            r"from_dataset: X has 1 entries that are NaN .* first at \[0, 1\]",
        ),
        (
            TensorDataset(X, Y * math.inf),
            r"from_dataset: y has 12 entries that are NaN or infinite",
        ),
    ],
)
def test_bad_data_sets(dataset, message):
    with pytest.raises(SpecError, match=message):
        from_dataset(dataset)


def test_errors_of_both_data_sets_are_listed_together():
    with pytest.raises(SpecError, match=r"2 errors") as caught:
        from_dataset([("a", 1)], [])
    assert caught.value.errors == [
        "from_dataset: the x of dataset, item 0, is of type str; valid are numbers: an "
        "array, a tensor, a list of the same length in every item, or an image",
        "from_dataset: test_dataset is of type list, without items",
    ]


def test_data_sets_that_do_not_fit_together():
    with pytest.raises(
        SpecError, match=r"a row of X has shape and dtype \(\(2,\), 'float32'\), but"
    ):
        from_dataset(TensorDataset(X, Y), TensorDataset(X[:, :1], Y))
