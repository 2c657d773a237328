"""What every batch function that draws keeps to, whichever it is."""

import inspect
import pickle

import pytest
import torch

from mlpsubmit.batchfns import arrays, multi_index, polynomial, sample, sparse_parity, teacher
from mlpsubmit.batchfns.fixed_batch import fixed

ROWS = {"X_train": torch.rand(50, 4), "y_train": torch.rand(50), "online": True, "split": "train"}
FUNCTIONS = {
    "sample": (sample, ROWS),
    "polynomial": (polynomial, {"monomials": {0: 1}, "data_eigvals": torch.ones(4)}),
    "teacher": (teacher, {"teacher_width": 3, "d": 4}),
    "sparse_parity": (sparse_parity, {"k": 2, "d": 4}),
    "multi_index": (multi_index, {"link": 2, "d": 4}),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def made(request):
    """A factory bsz, seed -> batch_fn, its arguments given by name."""
    function, arguments = request.param
    return lambda bsz=5, seed=0, **more: function(
        **arguments, bsz=bsz, gen=generator(seed) if isinstance(seed, int) else seed, **more
    )


@pytest.mark.parametrize("bsz", [1, 2, 17, 1000])
def test_batches_have_any_size_and_single_precision(made, bsz):
    X, y = made(bsz)(0)
    assert X.shape == (bsz, 4)
    assert y.shape == (bsz,)
    assert X.dtype == y.dtype == torch.float32
    assert not X.requires_grad
    assert not y.requires_grad


def test_the_generator_decides_everything(made):
    torch.manual_seed(1)
    one = made()
    torch.manual_seed(2)
    same, other = made(), made(seed=1)
    for step in range(3):
        for expected, found in zip(one(step), same(step), strict=True):
            assert torch.equal(expected, found)
        assert not torch.equal(one(step)[0], other(step)[0])
        same(step)


def test_the_global_generator_is_left_alone(made):
    before = torch.get_rng_state()
    made()(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_generator_continues_as_it_would_have(made):
    """As checkpoints do: the state of the generator is all the state that there is."""
    gen = generator(0)
    batch_fn = made(seed=gen)
    batch_fn(0)
    state = gen.get_state()
    expected = batch_fn(1)
    resumed = generator(9)
    batch_fn = made(seed=resumed)
    resumed.set_state(state)
    for one, other in zip(expected, batch_fn(1), strict=True):
        assert torch.equal(one, other)


def test_batches_are_not_overwritten_by_the_next(made):
    batch_fn = made()
    first = batch_fn(0)
    kept = [part.clone() for part in first]
    batch_fn(1)
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


def test_the_fixed_set_comes_back(made):
    X, y = torch.rand(5, 4), torch.rand(5)
    for batch_fn in (made(X=X, y=y), fixed(X, y)):
        for step in (0, 7):
            assert batch_fn(step)[0] is X
            assert batch_fn(step)[1] is y


@pytest.mark.parametrize("function", [function for function, _ in FUNCTIONS.values()])
def test_functions_travel_and_declare_the_protocol(function):
    assert pickle.loads(pickle.dumps(function)) is function
    parameters = inspect.signature(function).parameters
    assert {"bsz", "gen", "X", "y"} <= set(parameters)
    assert parameters["X"].default is None
    assert parameters["y"].default is None


def test_arrays_is_a_batch_function_too():
    batch_fn = arrays([[1.0], [2.0]], [1.0, 2.0])(
        bsz=3, gen=generator(0), online=True, split="train"
    )
    assert batch_fn(0)[0].shape == (3, 1)
