"""Triton kernels: what PyTorch computes in many passes over memory, in one.

Imported only where Triton is installed. On a CPU, TRITON_INTERPRET=1 runs them in Triton's
interpreter: so the tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["mlp_losses_and_gradients", "sgd_step"]

# Matrices of Triton have powers of two as sizes, of at least 16: rows and columns beyond the real
# ones are zero, in weights, inputs and errors, and so contribute nothing.


@triton.jit
def _relu(z):
    return tl.where(z < 0, 0.0, z)  # NaN stays NaN, unlike in maximum()


@triton.jit
def _product(A, B):
    return tl.dot(A, B, input_precision="tf32x3")  # three products of TF32: as exact as fp32


@triton.jit
def _places(height: tl.constexpr, width: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Return where the entries of a matrix are, and which of them are real."""
    rows, columns = tl.arange(0, HEIGHT)[:, None], tl.arange(0, WIDTH)[None, :]
    return rows * width + columns, (rows < height) & (columns < width)


@triton.jit
def _matrix(
    start,
    height: tl.constexpr,
    width: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    places, real = _places(height, width, HEIGHT, WIDTH)
    return tl.load(start + places, mask=real, other=0.0)


@triton.jit
def _vector(start, size: tl.constexpr, SIZE: tl.constexpr):
    entries = tl.arange(0, SIZE)
    return tl.load(start + entries, mask=entries < size, other=0.0)


@triton.jit
def _store_matrix(
    start,
    values,
    height: tl.constexpr,
    width: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    places, real = _places(height, width, HEIGHT, WIDTH)
    tl.store(start + places, values, mask=real)


@triton.jit
def _store_vector(start, values, size: tl.constexpr, SIZE: tl.constexpr):
    entries = tl.arange(0, SIZE)
    tl.store(start + entries, values, mask=entries < size)


@triton.jit(do_not_specialize=["n", "X_stride", "y_stride", "f0_stride"])
def mlp_losses_and_gradients(
    X,
    y,
    f0,
    W1,
    b1,
    W2,
    b2,
    w3,
    b3,
    multiplier,
    losses,
    dW1,
    db1,
    dW2,
    db2,
    dw3,
    db3,
    n,
    X_stride,
    y_stride,
    f0_stride,
    scale1,
    scale2,
    d: tl.constexpr,
    width: tl.constexpr,
    DEEP: tl.constexpr,
    BIAS: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Losses and gradients of one MLP with one or two hidden layers, on one segment of its batch.

    Program (k, s) computes, for the samples from SEGMENT s on,

        h1 = relu(W1 x + b1), h2 = relu(scale1 W2 h1 + b2), f = (scale2 w3 h2 + b3) multiplier,

    the sum of (f - f0 - y)^2 / n, and its gradients. Activations stay on the chip. The sums over
    samples are made ROWS at a time, in their order.

    Args:
        X: inputs, network k's (n, d) from ``X + k X_stride`` on.
        y, f0: targets and initial outputs, (n,) each, likewise.
        W1, b1, W2, b2, w3, b3, multiplier: (K, ...); what there is none of is not read.
        losses: (K, S), written.
        dW1, db1, dW2, db2, dw3, db3: (K, S, ...), written.
        DEEP: whether there is a second hidden layer; otherwise scale1 is of h1, and scale2 unused.
    """
    k = tl.program_id(0).to(tl.int64)
    part = k * tl.num_programs(1) + tl.program_id(1)
    w1 = _matrix(W1 + k * width * d, width, d, WIDTH, D)
    u = _vector(w3 + k * width, width, WIDTH)
    m = 1.0
    if MULTIPLIED:
        m = tl.load(multiplier + k)
    v1 = tl.zeros((WIDTH,), tl.float32)
    v2 = tl.zeros((WIDTH,), tl.float32)
    v3 = 0.0
    if BIAS:
        v1 = _vector(b1 + k * width, width, WIDTH)
        v3 = tl.load(b3 + k)
    w2 = tl.zeros((WIDTH, WIDTH), tl.float32)
    if DEEP:
        w2 = _matrix(W2 + k * width * width, width, width, WIDTH, WIDTH)
        if BIAS:
            v2 = _vector(b2 + k * width, width, WIDTH)

    g1, g2 = tl.zeros((WIDTH, D), tl.float32), tl.zeros((WIDTH, WIDTH), tl.float32)
    s1, s2 = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    g3, s3, loss = tl.zeros((WIDTH,), tl.float32), 0.0, 0.0
    inputs = tl.arange(0, D)[None, :]
    begin = tl.program_id(1) * SEGMENT
    for start in range(begin, tl.minimum(begin + SEGMENT, n), ROWS):
        rows = start + tl.arange(0, ROWS)
        real = rows < n
        inside = real[:, None] & (inputs < d)
        x = tl.load(X + k * X_stride + rows[:, None] * d + inputs, mask=inside, other=0.0)
        target = tl.load(y + k * y_stride + rows, mask=real, other=0.0)
        initial = tl.load(f0 + k * f0_stride + rows, mask=real, other=0.0)

        h1 = _relu(_product(x, tl.trans(w1)) + v1[None, :])
        if DEEP:
            z2 = _product(h1, tl.trans(w2))
            last, factor = _relu(z2 * scale1 + v2[None, :]), scale2
        else:
            last, factor = h1, scale1
        f = (tl.sum(last * u[None, :], 1) * factor + v3) * m
        error = tl.where(real, f - initial - target, 0.0)
        loss += tl.sum(error * error, 0)

        df = error * (2.0 / n) * m
        g3 += tl.sum(df[:, None] * last, 0)
        s3 += tl.sum(df, 0)
        d_last = tl.where(last <= 0, 0.0, df[:, None] * (u * factor)[None, :])
        if DEEP:
            g2 += _product(tl.trans(d_last), h1)
            s2 += tl.sum(d_last, 0)
            dh1 = _product(d_last, w2) * scale1
            d1 = tl.where(h1 <= 0, 0.0, dh1)
        else:
            d1 = d_last
        g1 += _product(tl.trans(d1), x)
        s1 += tl.sum(d1, 0)

    tl.store(losses + part, loss / n)
    _store_matrix(dW1 + part * width * d, g1, width, d, WIDTH, D)
    if DEEP:
        _store_matrix(dW2 + part * width * width, g2 * scale1, width, width, WIDTH, WIDTH)
        _store_vector(dw3 + part * width, g3 * scale2, width, WIDTH)
    else:
        _store_vector(dw3 + part * width, g3 * scale1, width, WIDTH)
    if BIAS:
        _store_vector(db1 + part * width, s1, width, WIDTH)
        tl.store(db3 + part, s3)
        if DEEP:
            _store_vector(db2 + part * width, s2, width, WIDTH)


@triton.jit(do_not_specialize=["lr_stride"])
def sgd_step(p, g, lr, active, lr_stride, size, BLOCK: tl.constexpr):
    """One step of SGD, p -= lr g, of the configs that are active; the others are not touched.

    Program (i, k) updates BLOCK entries of config k.

    Args:
        p, g: parameters, changed in place, and gradients, (K, size) each.
        lr: learning rates, config k's at ``lr + k lr_stride``.
        active: (K,) bool.
        size: entries of the parameter of one config.
    """
    k = tl.program_id(1).to(tl.int64)
    if tl.load(active + k):
        entries = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside, rate = entries < size, tl.load(lr + k * lr_stride)
        old = tl.load(p + k * size + entries, mask=inside)
        step = rate * tl.load(g + k * size + entries, mask=inside)
        tl.store(p + k * size + entries, old - step, mask=inside)
