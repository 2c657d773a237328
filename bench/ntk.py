"""The speed of empirical_ntk over that of one backward pass per row.

    python bench/ntk.py [--repeats N] [--json FILE]

Both are interleaved in one process; times are medians. First the kernels are checked to be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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


def measure(d_in: int, repeats: int) -> dict[str, Any]:
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
    medians = statistics.median(slow), statistics.median(fast)
    return {
        "n": ROWS,
        "width": WIDTH,
        "depth": DEPTH,
        "d_in": d_in,
        "row_by_row_ms": 1e3 * medians[0],
        "empirical_ntk_ms": 1e3 * medians[1],
        "ratio": medians[0] / medians[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=7, help="repetitions of each measurement")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    results = [measure(d_in, options.repeats) for d_in in INPUTS]
    print(f"empirical NTK, one output, {torch.get_num_threads()} threads")
    print("  n  width depth d_in   row by row   empirical_ntk   ratio")
    for r in results:
        print(
            f"{r['n']:>3} {r['width']:>6} {r['depth']:>5} {r['d_in']:>4} "
            f"{r['row_by_row_ms']:>9.1f} ms {r['empirical_ntk_ms']:>12.2f} ms {r['ratio']:>7.1f}"
        )
    if options.json:
        content = {"threads": torch.get_num_threads(), "results": results}
        options.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
