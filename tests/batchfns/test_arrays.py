import gc
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

from mlpsubmit.batchfns import arrays, sample
from mlpsubmit.batchfns._arrays import _COPIES
from mlpsubmit.errors import SpecError

N, M = 40, 12
X_TRAIN = torch.arange(N).float()[:, None] * torch.tensor([1.0, 10.0])
Y_TRAIN = torch.arange(N).float()
X_TEST = -torch.arange(1, M + 1).float()[:, None] * torch.tensor([1.0, 10.0])
Y_TEST = -torch.arange(1, M + 1).float()
TRAIN = {"X_train": X_TRAIN, "y_train": Y_TRAIN}
TEST = {"X_test": X_TEST, "y_test": Y_TEST}


def draw(bsz, *, online=True, split="train", seed=0, **entries):
    gen = torch.Generator().manual_seed(seed)
    return sample(bsz=bsz, gen=gen, online=online, split=split, **{**TRAIN, **entries})


def rows(y):
    return [int(value) for value in y]


def test_rows_of_X_and_y_stay_together():
    for arguments in (
        {"online": True},
        {"online": False},
        {"online": False, "split": "test", **TEST},
    ):
        X, y = draw(10, **arguments)(0)
        assert torch.equal(X, y[:, None] * torch.tensor([1.0, 10.0]))


def test_online_draws_anew_with_replacement_and_uniformly():
    batch_fn = draw(1000)
    first, second = (rows(batch_fn(step)[1]) for step in range(2))
    assert len(first) == 1000
    assert first != second
    counts = np.bincount(first, minlength=N)
    # Pearson's chi squared with N - 1 degrees of freedom: five standard deviations.
    chi_squared = float(((counts - 1000 / N) ** 2).sum() / (1000 / N))
    assert abs(chi_squared - (N - 1)) < 5 * math.sqrt(2 * (N - 1))


def test_offline_is_one_fixed_set_of_different_rows():
    batch_fn = draw(10, online=False)
    first = rows(batch_fn(0)[1])
    assert len(set(first)) == 10
    assert rows(batch_fn(7)[1]) == first
    assert rows(draw(10, online=False)(0)[1]) == first
    assert rows(draw(10, online=False, seed=1)(0)[1]) != first
    assert rows(draw(25, online=False)(0)[1])[:10] == first
    assert sorted(rows(draw(N, online=False)(0)[1])) == list(range(N))


def test_offline_refuses_more_rows_than_there_are():
    message = r"N_SAMPLES=41 training rows are requested, but the data have 40; .* N_SAMPLES=40, or"
    with pytest.raises(SpecError, match=message):
        draw(41, online=False)


def test_the_test_set_is_drawn_without_replacement_or_taken_whole():
    for online in (True, False):
        X, y = draw(5, online=online, split="test", **TEST)(0)
        assert len(X) == len(set(rows(y))) == 5
        assert max(rows(y)) < 0
        for bsz in (M, 10_000):
            X, y = draw(bsz, online=online, split="test", **TEST)(0)
            assert torch.equal(X, X_TEST)
            assert torch.equal(y, Y_TEST)


def test_without_a_test_set_online_tests_on_the_population_and_offline_refuses():
    X, y = draw(100, split="test")(0)
    assert len(X) == 100
    assert min(rows(y)) >= 0
    with pytest.raises(
        SpecError, match=r"offline training evaluates a test set, and there is none; "
    ):
        draw(5, online=False, split="test")


def test_given_X_and_y_come_back_at_every_step():
    X, y = X_TRAIN[:3], Y_TRAIN[:3]
    batch_fn = draw(3, online=False, X=X, y=y)
    for step in range(2):
        assert batch_fn(step)[0] is X
        assert batch_fn(step)[1] is y


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, r"got split='tests' \(did you mean 'test'\?\); valid are"),
        ({"split": "test", "X_test": X_TEST}, r"the test set has no y_test; give both"),
        ({"y_test": Y_TEST}, r"the test set has no X_test"),
        ({"y_train": Y_TRAIN[:7]}, r"X_train has 40 rows and y_train has 7; they should"),
        ({"X_train": X_TRAIN[:0], "y_train": Y_TRAIN[:0]}, r"has 0 rows .* at least one"),
        ({"X_train": [[1.0]] * N}, r"got X_train of type list; valid are .*; try data=arrays\("),
        ({"y_train": torch.tensor(1.0)}, r"got y_train of type Tensor; .* with a row per sample"),
        (
            {"X_train": X_TRAIN * 1j},
            r"X_train has the dtype torch.complex64; valid are real numbers",
        ),
        ({"y_train": np.array(["a"] * N)}, r"y_train has the dtype <U1; valid are real numbers"),
        ({"X_train": X_TRAIN.log()}, r"X_train has 2 entries that are NaN .* first at \[0, 0\]"),
        ({"y_train": np.full(N, 1e300)}, r"y_train has 40 entries that are NaN or infinite as fl"),
        ({"split": "test", **TEST, "y_test": Y_TEST.sqrt()}, r"y_test has 12 entries that are NaN"),
    ],
)
def test_bad_arguments_of_sample(arguments, message):
    with pytest.raises(SpecError, match=message):
        draw(5, **arguments)


def test_numpy_entries_are_converted_once_for_as_long_as_they_live():
    X, y = X_TRAIN.double().numpy(), np.arange(N)
    X.flags.writeable = False
    gc.collect()  # else entries of other tests may go meanwhile
    kept = len(_COPIES)
    first, again = (draw(10_000, split="test", X_test=X, y_test=y)(0) for _ in range(2))
    assert first[0].dtype == torch.float32
    assert first[1].dtype == torch.int64
    assert first[0] is again[0]
    assert torch.equal(first[0], X_TRAIN)
    assert len(_COPIES) == kept + 2
    del X, y
    gc.collect()
    assert len(_COPIES) == kept


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (np.dtype(">f8"), torch.float32),
        (np.longdouble, torch.float32),
        (torch.uint8, torch.uint8),
        (np.uint8, torch.uint8),
        (np.bool_, torch.bool),
        (np.uint16, torch.int64),
        (np.dtype(">i4"), torch.int64),
    ],
)
def test_entries_of_any_dtype_become_what_torch_computes_with(dtype, becomes):
    of_torch = isinstance(dtype, torch.dtype)
    X, y = (rows % 2 for rows in (X_TRAIN, Y_TRAIN))
    given = [rows.to(dtype) if of_torch else rows.numpy().astype(dtype) for rows in (X, y)]
    found = draw(N, split="test", X_test=given[0], y_test=given[1])(0)
    for one, other in zip(found, (X, y), strict=True):
        assert one.dtype == becomes
        assert torch.equal(one.float(), other)


def test_tensors_that_are_as_wanted_are_not_copied_nor_kept():
    X, y = X_TRAIN.clone(), Y_TRAIN.clone()
    kept = len(_COPIES)
    assert draw(N, split="test", X_test=X, y_test=y)(0)[0] is X
    assert len(_COPIES) == kept + 2
    del X, y
    gc.collect()
    assert len(_COPIES) == kept


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda values: values])
def test_arrays_is_sample_with_the_arrays_bound(convert):
    X, y = [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]], [1.0, 2.0, 3.0]
    batchfn = arrays(*map(convert, (X, y, X[:2], y[:2])))
    assert batchfn.func is sample
    parameters = inspect.signature(batchfn).parameters
    open_names = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    assert open_names == ["bsz", "gen", "online", "split"]
    X2, y2 = batchfn(bsz=9, gen=torch.Generator(), online=False, split="test")(0)
    assert X2.dtype == y2.dtype == torch.float32
    assert X2.tolist() == X[:2]
    assert y2.tolist() == y[:2]


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (np.array([0, 1], dtype=np.int32), torch.int64),
        (np.array([0, 1], dtype=np.uint8), torch.int64),
        (np.array([True, False]), torch.int64),
        (np.array([0.5, 1], dtype=np.float16), torch.float32),
        (torch.tensor([0.5, 1], dtype=torch.bfloat16), torch.float32),
        (torch.tensor([[0.5], [1]], dtype=torch.float64), torch.float64),  # for PRECISION='fp64'
    ],
)
def test_dtypes(y, dtype):
    bound = arrays(np.array([[1], [2]]), y).keywords
    assert bound["X_train"].dtype == torch.float32
    assert bound["y_train"].dtype == dtype
    assert bound["y_train"].shape == tuple(y.shape)


def test_arrays_are_copied_and_travel():
    X, y = np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=np.float32)
    batchfn = arrays(X, y)
    X += 1
    y += 1
    back = pickle.loads(pickle.dumps(batchfn))
    for made in (batchfn, back):
        assert not made.keywords["X_train"].any()
        assert not made.keywords["y_train"].any()


X, Y = np.ones((3, 2)), np.ones(3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:2]), r"X has 3 rows and y has 2; they should have equally many"),
        ((X, Y, X, Y[:1]), r"X_test has 3 rows and y_test has 1"),
        ((X, Y, X), r"the test set has no y_test; give both X_test and y_test"),
        ((X, Y, None, Y), r"the test set has no X_test"),
        (
            (X, Y, X[:, :1], Y),
            r"row of X has shape and dtype \(\(2,\), 'float32'\), but one of X_t",
        ),
        ((X, Y, X, Y.astype(int)), r"row of y .* 'float32'\), but one of y_test \(\(\), 'int64'\)"),
        ((Y, Y), r"X has the shape \(3,\); valid are \(n, d\) or .*; try X\[:, None\]"),
        ((X, np.ones((3, 1, 1))), r"y has the shape \(3, 1, 1\); valid are \(n,\) or \(n, d_out\)"),
        ((X * [1, math.nan], Y), r"X has 3 entries that are NaN or infinite .* first at \[0, 1\]"),
        (
            (X, Y * 1e300),
            r"y has 3 entries that are NaN or infinite as float32, the first at \[0\]",
        ),
        ((X, np.array(["a", "b", "c"])), r"y has the dtype <U1; valid are real numbers"),
        ((X[:0], Y[:0]), r"X has no rows"),
        ((np.ma.masked_equal(X, X.max()), Y), r"X has masked entries; try X.filled\(0\), or leave"),
    ],
)
def test_bad_arrays(given, message):
    with pytest.raises(SpecError, match=message):
        arrays(*given)


def test_all_that_is_wrong_is_listed_together():
    with pytest.raises(SpecError, match=r"3 errors"):
        arrays(X * math.inf, Y[:2], X)


@pytest.mark.gpu
def test_on_a_gpu_steps_never_wait_and_configs_share_one_copy():
    batchfn = arrays(X_TRAIN, Y_TRAIN, X_TEST, Y_TEST)
    gens = [torch.Generator("cuda").manual_seed(seed) for seed in range(2)]
    tests = [batchfn(bsz=99, gen=gen, online=True, split="test")(0) for gen in gens]
    assert tests[0][0] is tests[1][0]
    assert tests[0][0].is_cuda
    batch_fn = batchfn(bsz=8, gen=gens[0], online=True, split="train")
    batch_fn(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch_fn(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
