"""Triton kernels: what PyTorch computes in many passes over memory, in one.

Imported only where Triton is installed. On a CPU, TRITON_INTERPRET=1 runs them in Triton's
interpreter: so the tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["layer_product", "loss_step", "mlp_losses_and_gradients", "sgd_step"]

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


@triton.jit
def layer_product(
    A,
    B,
    C,
    bias,
    gate,
    sums,
    M,
    N,
    summands,
    A_stride,
    B_stride,
    scale,
    A_ACROSS: tl.constexpr,
    B_ACROSS: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GATED: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of C = scale A B + bias of one network, of what follows it, and its column sums.

    A program computes ROWS x COLUMNS entries of one network. Programs that run at the same time
    have the same columns of B, which are read from memory once.

    Args:
        A: (M, summands), or (summands, M) if A_ACROSS, network k's from ``A + k A_stride`` on.
        B: (summands, N), or (N, summands) if B_ACROSS, likewise.
        C: (K, M, N), written; negative entries become zero if RELU, and those at which ``gate``
            is not positive if GATED.
        bias: (K, N). What there is none of is not read.
        gate: (K, M, N).
        sums: (K, tiles along M, N), written: of each tile's rows of C.
        PRECISION: of the products, such as "bf16x6": six products of bf16, as exact as fp32.
    """
    tiles = tl.cdiv(M, ROWS)
    all_tiles = tiles * tl.cdiv(N, COLUMNS)
    k = (tl.program_id(0) // all_tiles).to(tl.int64)
    number = tl.program_id(0) % all_tiles
    tile_m, tile_n = number % tiles, number // tiles
    rows = tile_m.to(tl.int64) * ROWS + tl.arange(0, ROWS)  # a matrix may have 2^31 entries
    columns = tile_n.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    if A_ACROSS:
        a = A + k * A_stride + depth[None, :] * M + rows[:, None]
    else:
        a = A + k * A_stride + rows[:, None] * summands + depth[None, :]
    if B_ACROSS:
        b = B + k * B_stride + columns[None, :] * summands + depth[:, None]
    else:
        b = B + k * B_stride + depth[:, None] * N + columns[None, :]
    real_rows, real_columns = (rows < M)[:, None], (columns < N)[None, :]

    tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, summands, DEPTH):
        inside = start + depth < summands
        left = tl.load(a, mask=real_rows & inside[None, :], other=0.0)
        right = tl.load(b, mask=inside[:, None] & real_columns, other=0.0)
        tile = tl.dot(left, right, tile, input_precision=PRECISION)
        a += DEPTH * M if A_ACROSS else DEPTH
        b += DEPTH if B_ACROSS else DEPTH * N
    tile *= scale

    places, real = rows[:, None] * N + columns[None, :], real_rows & real_columns
    if BIAS:
        tile += tl.load(bias + k * N + columns, mask=columns < N, other=0.0)[None, :]
    if RELU:
        tile = _relu(tile)
    if GATED:
        signal = tl.load(gate + k * M * N + places, mask=real, other=0.0)
        tile = tl.where(signal <= 0, 0.0, tile)
    if SUMS:
        sum_of_rows = sums + (k * tiles + tile_m) * N + columns
        tl.store(sum_of_rows, tl.sum(tile, 0), mask=columns < N)
    tl.store(C + k * M * N + places, tile, mask=real)


@triton.jit(do_not_specialize=["blocks", "lr_stride", "lr_column", "made_stride", "made_column"])
def sgd_step(
    ps,
    gs,
    sizes,
    blocks,
    lr,
    made,
    lr_stride,
    lr_column,
    made_stride,
    made_column,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of SGD, p -= lr g, of P parameters, where it is made; the others are not touched.

    A program updates BLOCK entries of each parameter of one config.

    Args:
        ps, gs: parameters, changed in place, and gradients, (K, size) each.
        sizes: entries of each parameter of one config.
        blocks: programs for one config.
        lr: learning rates, that of config k and parameter i at ``lr + k lr_stride + i lr_column``.
        made: bool, likewise.
    """
    k = (tl.program_id(0) // blocks).to(tl.int64)
    entries = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for i in tl.static_range(P):
        if tl.load(made + k * made_stride + i * made_column):
            inside, rate = entries < sizes[i], tl.load(lr + k * lr_stride + i * lr_column)
            old = tl.load(ps[i] + k * sizes[i] + entries, mask=inside)
            step = rate * tl.load(gs[i] + k * sizes[i] + entries, mask=inside)
            tl.store(ps[i] + k * sizes[i] + entries, old - step, mask=inside)


@triton.jit(do_not_specialize=["K", "T"])
def loss_step(
    losses,
    smoothed,
    smoother,
    active,
    steps,
    thresholds,
    uncrossed,
    crossed_after,
    made,
    K,
    T,
    STOPS: tl.constexpr,
    CONFIGS: tl.constexpr,
):
    """Smooth the losses of CONFIGS configs, count their step and compare with T thresholds.

    Args:
        losses: (K,).
        smoothed: (K,) float64, changed: s smoothed + (1 - s) loss, for those that are active.
        smoother: s, (K,) float64.
        active: (K,) bool, changed: false from where a smoothed loss is not finite, and if STOPS
            after the last threshold has been crossed.
        steps: (K,) int64, changed: how many each config has made.
        thresholds: (K, T) float64.
        uncrossed: (K, T) bool, changed.
        crossed_after: (K, T) int64, changed: steps made when a threshold was crossed.
        made: (K,) bool, written: which configs make this step.
    """
    k = tl.program_id(0) * CONFIGS + tl.arange(0, CONFIGS)
    inside = k < K
    s, old = tl.load(smoother + k, mask=inside), tl.load(smoothed + k, mask=inside)
    loss = tl.load(losses + k, mask=inside).to(tl.float64)
    was_active = tl.load(active + k, mask=inside, other=0) != 0
    # With the roundings of torch.addcmul(old * s, loss, 1 - s).
    now = tl.where(was_active, tl.fma(loss, 1 - s, old * s), old)
    makes = was_active & (now - now == 0)
    count = tl.load(steps + k, mask=inside) + makes
    goes_on = makes
    for t in range(T):
        place = k * T + t
        open_before = tl.load(uncrossed + place, mask=inside, other=0) != 0
        newly = (now < tl.load(thresholds + place, mask=inside)) & makes & open_before
        tl.store(crossed_after + place, count, mask=inside & newly)
        tl.store(uncrossed + place, open_before ^ newly, mask=inside)
        if STOPS:  # of the last threshold, in the end
            goes_on = makes & (open_before ^ newly)
    tl.store(smoothed + k, now, mask=inside)
    tl.store(steps + k, count, mask=inside)
    tl.store(active + k, goes_on, mask=inside)
    tl.store(made + k, makes, mask=inside)
