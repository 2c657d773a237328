"""The speed of empirical_ntk over that of one backward pass per row.

    python bench/ntk.py [--repeats N] [--save]

Both are interleaved in one process; times are medians. First the kernels are checked to be equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from options import repeats_option, save_option
from results import Figure, Recording, figure
from torch import Tensor, nn

from mlpsubmit import MLP
from mlpsubmit.grabs import empirical_ntk
from mlpsubmit.training.parametrizations import parametrize

ROWS, WIDTH, DEPTH = 256, 512, 2
INPUTS = (32, 200)


def row_by_row(model: nn.Module, X: Tensor) -> Tensor:
    """Return J J^T, the rows of J from one backward pass each: for networks of one output."""
    parameters = list(model.parameters())
    J = X.new_empty(len(X), sum(p.numel() for p in parameters))
    for row, x in zip(J, X, strict=True):
        gradients = torch.autograd.grad(model(x[None]).squeeze(), parameters)
        torch.cat([gradient.flatten() for gradient in gradients], out=row)
    return J @ J.T


def seconds(function: Callable[[], Any], calls: int) -> float:
    """Return the seconds per call, the mean of consecutive calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def measure(d_in: int, repeats: int) -> list[Figure]:
    """Time both for networks of one input dimension."""
    generator = torch.Generator().manual_seed(0)
    model = MLP(d_in, WIDTH, DEPTH)
    parametrize(model, "mup", generator=generator)
    X = torch.randn(ROWS, d_in, generator=generator)
    # These first calls, which allocate and spawn threads, are not timed.
    torch.testing.assert_close(empirical_ntk(model, X), row_by_row(model, X), rtol=1e-3, atol=1e-4)
    slow, fast = [], []
    for _ in range(repeats):
        slow.append(seconds(lambda: row_by_row(model, X), calls=1))
        fast.append(seconds(lambda: empirical_ntk(model, X), calls=20))
    case = f"{ROWS} rows, width {WIDTH}, depth {DEPTH}, d_in {d_in}"
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return [
        figure(case, "row by row", "s", slow),
        figure(case, "empirical_ntk", "s", fast),
        figure(case, "row by row / empirical_ntk", "x", ratios),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    repeats_option(parser, 7)
    save_option(parser)
    options, recording = parser.parse_args(arguments), Recording("ntk")
    print(f"empirical NTK, one output, {torch.get_num_threads()} threads")
    found = []
    for d_in in INPUTS:
        slow, fast, ratio = own = measure(d_in, options.repeats)
        found += own
        print(
            f"{ratio.case}: {1e3 * slow.median:.1f} ms row by row, {1e3 * fast.median:.2f} ms by "
            f"empirical_ntk: {ratio.median:.1f}"
        )
    recording.save(found, options.save)


if __name__ == "__main__":
    main()
