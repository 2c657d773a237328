"""The best LR at each width, by optimizer and parametrization.

    OMP_NUM_THREADS=1 python bench/lr_transfer.py [--quick] [--only TEXT] [--json FILE]

The train loss on y = x0 + x0 x1, online, is averaged (geometric mean) over the second half of 120
steps and over trials, for LRs half a decade apart. Printed are, per width, the LR at which it is
lowest, and the loss of the largest width at the best LR of the smallest, relative to its lowest.
"SGD's factors" are mup's multipliers and initial weights with the learning-rate factors that are
right for SGD, and EPS as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from options import only_option
from torch import nn
from workload import DEVICE, polynomials

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, parametrize, streams, train

STEPS, TRIALS, D = 120, 3, 8
WIDTHS = (32, 128, 512, 1024)
SETTINGS = {"MAX_ITER": STEPS, "LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False}


def sgd_factors(model: nn.Module, opt: torch.optim.Optimizer, gamma: float, optimizer: str) -> None:
    """Give a model mup's multipliers and initial weights, and leave the learning rate as it is."""
    parametrize(model, "mup", gamma=gamma)


#: Per case its settings, and its LRs as powers of 10.
CASES: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "adam, mup": ({"OPTIMIZER": "adam"}, (-1.5, 0.5)),
    "adam, SGD's factors": ({"OPTIMIZER": "adam", "PARAMETRIZATION": sgd_factors}, (-3.5, -1.0)),
    "adam, sp": ({"OPTIMIZER": "adam", "PARAMETRIZATION": "sp"}, (-3.5, -1.0)),
    "adam, ntp": ({"OPTIMIZER": "adam", "PARAMETRIZATION": "ntp"}, (-1.0, 1.0)),
    "adamw, mup, WEIGHT_DECAY=0.3": ({"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.3}, (-1.5, 0.5)),
    "adam, mup, GAMMA=10": ({"OPTIMIZER": "adam", "GAMMA": 10.0}, (-1.0, 1.0)),
    "adam, mup, GAMMA=0.1": ({"OPTIMIZER": "adam", "GAMMA": 0.1}, (-1.0, 1.0)),
    "adam, mup, EPS=1e-2": ({"OPTIMIZER": "adam", "EPS": 1e-2}, (-1.5, 0.5)),
    "adam, mup, DEPTH=3": ({"OPTIMIZER": "adam", "DEPTH": 3}, (-1.5, 0.5)),
}


def losses(width: int, settings: dict[str, Any], lrs: NDArray[Any], trials: int) -> NDArray[Any]:
    """Return the losses, by LR: geometric means over steps and trials, inf where one diverged."""
    grid = [(lr, trial) for lr in lrs for trial in range(trials)]
    hs = [validate({**SETTINGS, **settings, "WIDTH": width, "LR": lr}) for lr, _ in grid]
    generators = [torch.Generator(DEVICE).manual_seed(streams(42, t).train) for t in range(trials)]
    batch_fns = [polynomials(D, 32, generator) for generator in generators]
    torch.manual_seed(0)  # the initial weights under sp
    trained = train(
        [MLP(D, width, h.depth) for h in hs],
        [batch_fns[trial] for _, trial in grid],
        hs,
        trials=[trial for _, trial in grid],
        contexts=[{"optimizer": h.optimizer} for h in hs],
        generators=generators,
        device=DEVICE,
    )
    logs = np.log(trained.train_loss[:, STEPS // 2 :]).reshape(len(lrs), -1)
    return np.exp(np.where(np.isfinite(logs), logs, np.inf).mean(1))


def main() -> None:
    """Print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="widths up to 256, one trial")
    only_option(parser, CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    widths, trials = ((32, 128, 256), 1) if options.quick else (WIDTHS, TRIALS)
    found = {}
    for name, (settings, (low, high)) in CASES.items():
        if options.only not in name:
            continue
        lrs = 10 ** np.arange(low, high + 0.1, 0.5)
        curves = np.array([losses(width, settings, lrs, trials) for width in widths])
        found[name] = {"widths": widths, "lrs": lrs.tolist(), "losses": curves.tolist()}
        best = lrs[curves.argmin(1)]
        kept = curves[-1, curves[0].argmin()] / curves[-1].min()
        print(f"{name:30}", *(f"{lr:9.2g}" for lr in best), f"{kept:9.2f}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
