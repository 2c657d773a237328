"""Muon moves a weight along all of its singular directions, SGD and Adam along few.

Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, section 3.4, and Jordan et al.,
https://kellerjordan.github.io/posts/muon. Muon replaces the momentum U S V^T of a weight matrix by
U S' V^T, where five Newton-Schulz iterations make S' "something like" diagonal "with S'_ii ~
Uniform(0.5, 1.5)" (a comment of Jordan's code). So it explores diverse directions: "for over 90% of
the weight matrices, the SVD entropy when optimized by Muon is higher than that of AdamW". The SVD
entropy is -Σ p_i log p_i / log n, with p_i = σ_i² / Σ_j σ_j²; it is 1 if all n are equal.

The paper trains language models. Here the weight is the hidden one of an MLP on handwritten digits,
with full batches. Left: its first update, over its learning rate; five iterations do not suffice
where the gradient has its smallest singular values. Right: its whole change when the train loss
falls below 0.01. As the weight is dominated by its random initialisation at this size, the entropy
of its change is given; the order of the paper is tested for the weight itself. With seeds 42, 1
and 2 the entropy of the change is 0.96 with Muon, at most 0.60 with SGD and 0.69 with Adam.
"""

import numpy as np
import torch
from claims import Claim

from mlpsubmit import Sweep, grab
from mlpsubmit.batchfns import images, sample


@grab(dims=("index",))
def spectra(model, model0, opt):
    weight, weight0 = (network.hidden_layers[0].weight for network in (model, model0))
    (lr,) = (g["lr"] for g in opt.param_groups if g["name"] == "hidden_layers.0.weight")
    change = torch.linalg.svdvals(weight - weight0)
    return {"change": change, "over_lr": change / lr, "weight": torch.linalg.svdvals(weight)}


sweep = Sweep(
    name="muon",
    axes={
        ("OPTIMIZER", "LR"): [("sgd", 0.3), ("adam", 0.001), ("muon", 0.003)],
        "MAX_ITER": [1, 3000],
        "trial": range(3),
    },
    data=images("digits", classes=[[digit] for digit in range(10)], onehot=True),
    batchfn=sample,
    grabs={"sv": spectra},
    ONLINE=False,
    N_SAMPLES=512,
    WIDTH=128,
    PARAMETRIZATION="sp",
    CENTERED=False,
    LOSS_CHECKPOINTS=[0.01],
    EVAL_EVERY=3000,
)

PANELS = 2


def plot(ds, axes):
    for colour, name in enumerate(ds.optimizer.values):
        one = ds.isel(optimizer_lr=colour)
        first, last = one.sv_over_lr.sel(max_iter=1), one.sv_change.sel(max_iter=3000)
        for ax, values in zip(axes, [first, last / last.max("index")], strict=True):
            mean, index = values.mean("trial"), np.arange(values.sizes["index"]) + 1
            ax.semilogy(index, mean, color=f"C{colour}", label=name)
            low, high = values.min("trial"), values.max("trial")
            ax.fill_between(index, low, high, color=f"C{colour}", alpha=0.2, lw=0)
    axes[0].axhspan(0.5, 1.5, color="grey", alpha=0.2, lw=0, label="0.5 to 1.5")
    axes[0].set(ylabel="σ of the first update / learning rate", ylim=(1e-4, 100))
    axes[1].set(ylabel="σ of the change / its largest, at train loss 0.01", ylim=(1e-3, 1.2))
    for ax in axes:
        ax.set(xlabel="index of the singular value")
    axes[0].legend(fontsize=8)


def entropy(values):
    p = values**2 / (values**2).sum("index")
    return -(p * np.log(p)).sum("index") / np.log(values.sizes["index"])


def claims(ds):
    sgd, adam, muon = (ds.isel(optimizer_lr=i) for i in range(3))
    first = muon.sv_over_lr.sel(max_iter=1)
    change = [entropy(one.sv_change.sel(max_iter=3000)) for one in (sgd, adam, muon)]
    weight = [entropy(one.sv_weight.sel(max_iter=3000)) for one in (adam, muon)]
    return [
        Claim("Muon's first update: largest σ / LR", "0.5 to 1.5", first.max().item(), 0.5, 1.5),
        Claim("Muon's first update: median σ / LR", "0.5 to 1.5", first.median().item(), 0.5, 1.5),
        Claim("SVD entropy of the change, Muon, smallest", "near 1", change[2].min().item(), 0.85),
        Claim("the same of SGD, largest", "lower", change[0].max().item(), high=0.75),
        Claim("the same of Adam, largest", "lower", change[1].max().item(), high=0.8),
        Claim(
            "share of the weights with a higher SVD entropy with Muon than with Adam",
            "over 90%",
            (weight[1] > weight[0]).mean().item(),
            0.9,
        ),
    ]
