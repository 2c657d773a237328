"""Small versions of the studies with classes in MLPscape's and modelscape's examples."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from mlpsubmit.compat import base_args


def general_batch_fn(X_total, y_total, X=None, y=None, bsz=128, gen=None, **kwargs):
    def batch_fn(step, X=X, y=y):
        if X is not None and y is not None:
            return X, y
        rows = torch.randint(0, len(X_total), (bsz,), generator=gen, device=gen.device)
        return X_total.to(gen.device)[rows], y_total.to(gen.device)[rows]

    return batch_fn


class Residual(nn.Module):
    def __init__(self, in_channels=3, width=4, num_blocks=1, d_out=10):
        super().__init__()
        self.input_layer = nn.Conv2d(in_channels, width, 3, padding=1)
        self.hidden_layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(num_blocks)
        )
        self.output_layer = nn.Linear(width, d_out)

    def forward(self, x):
        h = torch.relu(self.input_layer(x))
        for block in self.hidden_layers:
            h = h + torch.relu(block(h))
        return self.output_layer(h.mean(dim=(2, 3)))


class SignDescent(torch.optim.Optimizer):
    """Steps of size lr along the signs of the gradients."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad.sign()


def labelled_images(count=60):
    """Images whose brightest channel is their class."""
    gen = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (count,), generator=gen)
    images = 0.1 * torch.randn(count, 3, 4, 4, generator=gen)
    images[torch.arange(count), labels] += 1.0
    return {"X_total": images, "y_total": labels, "base_bfn": general_batch_fn}


def small_args(**changes):
    args = base_args()
    vars(args).update(N_TEST=30, N_SAMPLES=[16], NUM_TRIALS=2, MAX_ITER=60, width=4, WIDTH=4)
    vars(args).update(LOSS_CHECKPOINTS=[0.9, 0.5], DIM=48, ONLYTHRESHOLDS=True, **changes)
    return args


def test_a_residual_network_learns_integer_labels(run, traces):
    args = small_args(GAMMA=[0.5, 1.0], LR=0.02)
    config = {
        **vars(args),
        "MODEL_CLASS": Residual,
        "OPTIMIZER_CLASS": torch.optim.Adam,
        "LOSS_CLASS": nn.CrossEntropyLoss,
        "d_out": 3,
        "otherreturns": {"blocks": lambda model, **kwargs: len(model.hidden_layers)},
    }
    iterators = [args.N_SAMPLES, range(args.NUM_TRIALS), args.GAMMA]
    result = run(iterators, ["ntrain", "trial", "GAMMA"], config, labelled_images())
    losses = traces(result)["losses"][:, :, :]
    assert losses.shape == (1, 2, 2)
    assert (losses < math.log(3) / 2).all()  # guessing costs log 3
    assert (traces(result)["blocks"][:, :, :] == 1).all()


def test_a_custom_optimizer_and_initialisation(run, traces):
    seen = []

    def zero_readout(model, opt, lr, **kwargs):
        seen.append(lr)
        nn.init.zeros_(model.output_layer.weight)
        nn.init.zeros_(model.output_layer.bias)
        return model, opt

    args = small_args(LR=0.01)
    config = {
        **vars(args),
        "model_class": Residual,
        "optimizer_class": SignDescent,
        "loss": "CrossEntropyLoss",
        "post_init_fn": zero_readout,
        "d_out": 3,
        "otherreturns": {},
    }
    iterators = [args.N_SAMPLES, range(args.NUM_TRIALS)]
    result = run(iterators, ["ntrain", "trial"], config, labelled_images())
    losses = traces(result)["losses"][:, :]
    assert (losses < math.log(3) / 2).all()
    assert np.allclose(seen, 0.01)
