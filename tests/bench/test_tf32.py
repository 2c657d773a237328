"""The emulation of TF32 that bench/precision.py measures with."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def tf32(bench):
    return bench("tf32")


@pytest.fixture
def rounded(tf32):
    return lambda values: tf32.to_tf32(torch.from_numpy(np.array(values, np.float32))).numpy()


def floats(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def nearest(values):
    """Round to multiples of the spacing of 11 significant bits, in float64, where all is exact."""
    exact = np.asarray(values, np.float64)
    exponent = np.maximum(np.frexp(exact)[1], -125)  # subnormal numbers share one spacing
    spacing = np.ldexp(1.0, exponent - 11)
    return np.rint(exact / spacing) * spacing  # rint takes ties to even


@pytest.mark.parametrize("exponent", [0, 1, 100, 127, 200, 253])
def test_every_pattern_of_the_dropped_bits_is_rounded_to_the_nearest_and_ties_to_even(
    exponent, rounded
):
    low = np.arange(1 << 15, dtype=np.uint32)  # two kept bits above the 13 that are dropped
    for sign in (0, 1):
        for high in (0, 0x2A, 0xFF):
            values = floats(np.uint32((sign << 31) | (exponent << 23) | (high << 15)) | low)
            np.testing.assert_array_equal(rounded(values), nearest(values).astype(np.float32))


def test_results_have_ten_mantissa_bits(rounded):
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    result = rounded(values)
    assert not (result.view(np.uint32) & 0x1FFF).any()
    np.testing.assert_array_equal(rounded(result), result)
    assert 0 < np.abs(result / values - 1).max() <= 2.0**-11


def test_zeros_infinities_and_nan_stay(rounded):
    values = floats([0x7F800000, 0xFF800000, 0x00000000, 0x80000000, 0x7FC00000, 0x7FFFFFFF])
    result = rounded(values)
    np.testing.assert_array_equal(result[:4].view(np.uint32), values[:4].view(np.uint32))
    assert np.isnan(result[4:]).all()
    assert rounded(floats([0x7F7FFFFF]))[0] == np.inf  # the largest float32 is nearer to 2^128


def products(A, B, C):
    """Return A B, or C + A B, in every variant that the train loop may come to use."""
    return {
        "bmm": torch.bmm(A, B),
        "matmul": A @ B,
        "mm": torch.mm(A[0], B[0]),
        "bmm, out": torch.bmm(A, B, out=torch.empty_like(C)),
        "baddbmm": torch.baddbmm(C, A, B, alpha=0.5),
        "baddbmm, in place": C.clone().baddbmm_(A, B),
        "addmm": torch.addmm(C[0], A[0], B[0]),
        "addmm, in place": C[0].clone().addmm_(A[0], B[0]),
        "linear": torch.nn.functional.linear(A[0], B[0].T, C[0, 0]),
    }


def test_both_factors_of_every_kind_of_product_are_rounded_and_nothing_else(tf32):
    generator = torch.Generator().manual_seed(0)
    A, B, C = (torch.randn(2, 4, 4, generator=generator) for _ in range(3))
    plain = products(A, B, C)
    expected = products(tf32.to_tf32(A), tf32.to_tf32(B), C)
    with tf32.Tf32Products() as mode:
        found = products(A, B, C)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
        assert not torch.equal(found[name], plain[name]), name
    assert mode.operations == 2 * 4**3 * sum(1 if v.ndim == 2 else 2 for v in found.values())


def test_products_of_a_backward_pass_are_rounded_too(tf32):
    A, B = torch.randn(3, 5, requires_grad=True), torch.randn(5, 2)
    d = torch.randn(3, 2)
    with tf32.Tf32Products():
        (A @ B).backward(d)
    torch.testing.assert_close(A.grad, tf32.to_tf32(d) @ tf32.to_tf32(B).T, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_products_of_other_types_are_left_alone(dtype, tf32):
    A = torch.randn(3, 3).to(dtype)
    with tf32.Tf32Products() as mode:
        found = A @ A
    assert torch.equal(found, A @ A)
    assert mode.operations == 0
