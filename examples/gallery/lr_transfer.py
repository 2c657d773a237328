"""Under μP the best learning rate of a narrow network is that of a wide one.

Yang et al., "Tensor programs V: tuning large neural networks via zero-shot hyperparameter
transfer", arXiv:2203.03466 (figures 1 and 3: a Transformer with Adam, MLPs with SGD). In the
maximal update parametrization the best learning rate hardly depends on the width, so that it can be
tuned on a narrow network. In the standard parametrization (that of PyTorch) it falls with the
width.

The best LR is the middle of those whose loss is at most 1.5 times the lowest (the vertical lines).
The minimum itself depends on the draws: at width 512 and under SGD, half a decade of rates is
equally good. Two forms of the claim are tested, as the figures give no numbers:
the slope of the best LR in the width, in logarithms, is 0 with mup and negative with sp; and the
best LR of width 32 gives a loss at width 512 that is about the lowest with mup, and not with sp.
The target is a random ReLU network of eight units on Gaussian inputs. Losses are those on the test
set after 100 steps; error bars are standard deviations over trials. With seeds 42, 1 and 2,
the slopes are -0.13 to 0.01 with mup and -0.84 to -0.32 with sp, the ratios of losses
1.00 to 1.13 and 1.9 to 2.7.
"""

import numpy as np
from claims import Claim

from mlpsubmit import Sweep
from mlpsubmit.batchfns import teacher

#: The lowest log10 of the learning rates of each case, which span two and a half decades.
LOWEST = {("sgd", "mup"): -2, ("sgd", "sp"): -2.75, ("adam", "mup"): -2.25, ("adam", "sp"): -3.5}

sweep = Sweep(
    name="lr_transfer",
    axes={
        "OPTIMIZER": ["sgd", "adam"],
        "PARAMETRIZATION": ["mup", "sp"],
        "WIDTH": [32, 128, 512],
        "LR": np.logspace(-3.5, 0.5, 17),
        "trial": range(8),
    },
    where=lambda c: -0.1 < np.log10(c.lr) - LOWEST[c.optimizer, c.parametrization] < 2.6,
    batchfn=teacher,
    teacher_width=8,
    d=16,
    N_SAMPLES=64,
    N_TEST=1000,
    MAX_ITER=100,
    EVAL_EVERY=100,
    LOSS_CHECKPOINTS=[],
)


def curves(ds, optimizer, parametrization):
    """Return log10 of learning rates, and of losses (widths, rates, trials), at most 0."""
    case = ds.test_loss.sel(optimizer=optimizer, parametrization=parametrization)
    included = (ds.status != "excluded").sel(optimizer=optimizer, parametrization=parametrization)
    included = included.any(["width", "trial"]).values
    losses = np.log10(case.where(case < 1, 1.0)).transpose("width", "lr", "trial")
    return np.log10(case.lr.values[included]), losses.values[:, included]


def best(x, loss):
    fine = np.linspace(x[0], x[-1], 2001)
    good = fine[np.interp(fine, x, loss) <= loss.min() + np.log10(1.5)]
    return (good[0] + good[-1]) / 2


PANELS = 2


def plot(ds, axes):
    for ax, optimizer in zip(axes, ["sgd", "adam"], strict=True):
        for parametrization, style in {"mup": "o-", "sp": "s--"}.items():
            x, losses = curves(ds, optimizer, parametrization)
            for colour, (width, loss) in enumerate(zip(ds.width.values, losses, strict=True)):
                label, mean = f"{parametrization}, width {width}", loss.mean(1)
                ax.errorbar(
                    10**x, mean, loss.std(1), fmt=style, ms=4, lw=1, c=f"C{colour}", label=label
                )
                ax.axvline(10 ** best(x, mean), color=f"C{colour}", ls=style[1:], lw=0.6)
        ax.set(xscale="log", xlabel="LR", ylabel="log₁₀ test loss", title=optimizer)
    axes[0].legend(fontsize=8)


def claims(ds):
    found = []
    for parametrization in ("mup", "sp"):
        for optimizer in ds.optimizer.values:
            x, losses = curves(ds, optimizer, parametrization)
            losses, case = losses.mean(2), f"{optimizer}, {parametrization}"
            optima = [best(x, loss) for loss in losses]
            slope = np.polyfit(np.log10(ds.width.values), optima, 1)[0]
            ratio = 10 ** (np.interp(optima[0], x, losses[-1]) - losses[-1].min())
            texts = f"{case}: slope of the best LR in the width", f"{case}: loss over the lowest"
            if parametrization == "mup":
                found.append(Claim(texts[0], "0", slope, -0.15, 0.15))
                found.append(Claim(texts[1], "1", ratio, high=1.2))
            else:
                found.append(Claim(texts[0], "negative", slope, high=-0.25))
                found.append(Claim(texts[1], "above 1", ratio, low=1.5))
    return found
