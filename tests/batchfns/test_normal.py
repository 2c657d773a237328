"""Gaussian numbers against Philox in plain integers, known answers, and their distribution."""

from __future__ import annotations

import math
import platform
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from mlpsubmit.batchfns import normal, randn
from mlpsubmit.native.library import library
from mlpsubmit.training.precision import functions_dtype

LOWER = 2**32 - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["in C", "by numpy"])
def computed(request: pytest.FixtureRequest) -> None:
    if request.param == "by numpy":
        request.getfixturevalue("without_c")
    else:
        assert library(torch.float32) is not None, "this machine has no C compiler"


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as in its paper, in integers of any size."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & LOWER,
            (first >> 32) ^ counter[3] ^ key[1],
            first & LOWER,
        ]
        key = [(key[0] + 0x9E3779B9) & LOWER, (key[1] + 0xBB67AE85) & LOWER]
    return counter


def signed_24_bits(word: int) -> int:
    return (word - 2**32 if word >= 2**31 else word) >> 8


def expected(seed: int, count: int) -> list[float]:
    """The numbers as documented: blocks of 16 counters, in double precision."""
    key = int(torch.empty((), dtype=torch.int64).random_(generator=generator(seed)))
    numbers: list[float] = []
    for start in range(0, count, 64):
        block = [
            philox([c, 0, 0, 0], [key & LOWER, key >> 32])
            for c in range(start // 4, start // 4 + 16)
        ]
        for pair in (0, 2):
            radii = [
                math.sqrt(-2 * math.log((signed_24_bits(words[pair]) + 2**23 + 1) / 2**24))
                for words in block
            ]
            angles = [math.pi * signed_24_bits(words[pair + 1]) / 2**23 for words in block]
            polar = list(zip(radii, angles, strict=True))
            numbers += [r * math.cos(a) for r, a in polar]
            numbers += [r * math.sin(a) for r, a in polar]
    return numbers[:count]


def test_known_answers_of_philox() -> None:
    # From Random123's kat_vectors, for counter and key of zeros and of ones.
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([LOWER] * 4, [LOWER] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (5, 13), (3, 7, 11)])
def test_they_are_those_of_the_documentation(computed: None, shape: tuple[int, ...]) -> None:
    for seed in range(4):
        found = randn(*shape, generator=generator(seed))
        assert found.shape == shape
        wanted = torch.tensor(expected(seed, found.numel()), dtype=torch.float64).view(shape)
        torch.testing.assert_close(found.double(), wanted, rtol=5e-7, atol=1e-7)


def test_calls_draw_on_from_the_state_of_the_generator(computed: None) -> None:
    gen = generator()
    first, state, second = randn(70, generator=gen), gen.get_state(), randn(70, generator=gen)
    assert not torch.equal(first, second)
    gen.set_state(state)
    assert torch.equal(randn(70, generator=gen), second)


def test_all_precisions_get_the_same_numbers(computed: None) -> None:
    single = randn(100, 3, generator=generator())
    with functions_dtype("fp64"):
        double = randn(100, 3, generator=generator())
    assert double.dtype == torch.float64
    assert torch.equal(double, single.double())


def test_they_are_independent_and_normal(computed: None) -> None:
    gen = generator(1)
    X = np.stack([randn(100_000, generator=gen).numpy() for _ in range(8)]).astype(np.float64)
    n = X.shape[1]
    np.testing.assert_allclose(X.mean(1), 0, atol=5 / math.sqrt(n))
    np.testing.assert_allclose(np.corrcoef(X), np.eye(8), atol=5 / math.sqrt(n))
    for lag in (1, 2, 16, 32, 64):  # within a block, and from block to block
        np.testing.assert_allclose((X[:, lag:] * X[:, :-lag]).mean(1), 0, atol=5 / math.sqrt(n))
    squares = (X[:, 16:] ** 2 - 1) * (X[:, :-16] ** 2 - 1)
    np.testing.assert_allclose(squares.mean(1), 0, atol=5 * 2 / math.sqrt(n))
    for order, moment, variance in ((2, 1, 2), (4, 3, 96), (6, 15, 10170)):
        np.testing.assert_allclose((X**order).mean(), moment, atol=5 * math.sqrt(variance / X.size))
    edges = np.array([-4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4])
    below = [(edge > X).mean() for edge in edges]
    cdf = [(1 + math.erf(edge / math.sqrt(2))) / 2 for edge in edges]
    np.testing.assert_allclose(below, cdf, atol=5 * 0.5 / math.sqrt(X.size))


def test_the_ends_of_the_words_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 becomes the largest radius, and all ones a radius of zero."""
    for word in (-(2**31), 2**31 - 1, 0, -1):
        words = [np.full(16, word, np.int32)] * 4
        monkeypatch.setattr(normal, "_words", lambda key, counters, words=words: words)
        numbers = normal._by_numpy(0, 64)
        assert np.isfinite(numbers).all()
        assert abs(numbers).max() <= math.sqrt(48 * math.log(2)) + 1e-6


def test_on_other_devices_they_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Elsewhere:
        device = torch.device("cuda")

    monkeypatch.setattr(torch, "randn", lambda *size, **given: seen.append((size, given)))
    randn(2, 3, generator=Elsewhere())  # type: ignore[arg-type]
    assert seen[0][0] == (2, 3)
    assert seen[0][1]["device"] == torch.device("cuda")


def test_this_machine_compiles_them() -> None:
    assert platform.machine() not in ("x86_64", "aarch64") or library(torch.float64) is not None


def test_where_tensors_have_no_memory_they_are_those_of_torch() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert randn(3, 2, generator=generator()).shape == (3, 2)
    with torch.device("meta"):
        assert randn(3, 2, generator=generator()).device.type == "cpu"


def test_threads_and_inference_mode_leave_each_other_alone() -> None:
    """A thread whose first numbers are drawn in inference mode, and many threads at once."""
    expected = [randn(9, generator=generator(seed)) for seed in range(200)]

    def first() -> torch.Tensor:
        with torch.inference_mode():
            randn(9, generator=generator())
        return randn(9, generator=generator(1))

    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(first).result(), expected[1])
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda seed: randn(9, generator=generator(seed)), range(200))
        assert all(map(torch.equal, found, expected))
