"""Sparse parities are learned in a number of steps that grows as n^O(k), and abruptly.

Barak, Edelman, Goel, Kakade, Malach and Zhang, "Hidden progress in deep learning: SGD learns
parities near the computational limit", arXiv:2207.08799. The label of n random signs is the product
of k of them. Many kinds of networks learn it by SGD, "with discontinuous phase transitions in the
training curves", and "learning abruptly occurs at approximately n^O(k) iterations", which is close
to lower bounds.

The setting is one of the paper's: a ReLU network with one hidden layer in PyTorch's initialisation,
hinge loss, fresh batches, constant LR. We could read no exponents in the paper, so the form of the
claim is tested: for each k the steps are a power of n, and the exponent grows by a constant per
unit of k, at most 1. The exponents depend on the batch size and LR. With seeds 42, 1 and 2 they
grow by 0.38, 0.31 and 0.42 per unit of k.
"""

import numpy as np
from claims import Claim

from mlpsubmit import Sweep
from mlpsubmit.batchfns import sparse_parity

sweep = Sweep(
    name="parity",
    axes={"k": [2, 3, 4, 5, 6], "d": [12, 16, 24, 32, 48, 64], "trial": range(4)},
    where=lambda c: c.k <= 4 or c.d <= 32,
    batchfn=sparse_parity,
    LOSS="hinge",
    DEPTH=1,
    WIDTH=256,
    PARAMETRIZATION="sp",
    CENTERED=False,
    LR=0.1,
    N_SAMPLES=64,
    N_TEST=1000,
    MAX_ITER=40_000,
    LOSS_CHECKPOINTS=[],
    ONLYTHRESHOLDS=False,
    RECORD_EVERY="log:300",
    EVAL_EVERY="log:300",
    METRICS=["accuracy"],
    METRIC_THRESHOLDS={"test_accuracy": [0.6, 0.9, 0.98]},
    STOP_ON="test_accuracy",
)

PANELS = 2


def steps(ds, k, accuracy=0.9):
    """Return n, and the steps until the test accuracy is reached (n, trials)."""
    found = ds.timekeys_test_accuracy.sel(k=k, threshold_test_accuracy=accuracy)
    found = found.transpose("d", "trial").dropna("d")
    return found.d.values, found.values + 1


def plot(ds, axes):
    for colour, k in enumerate(ds.k.values):
        style = {"color": f"C{colour}", "label": f"k = {k}"}
        for trial in ds.trial.values:
            curve = ds.test_accuracy.sel(k=k, d=24, trial=trial)
            axes[0].semilogx(ds.step + 1, curve, color=f"C{colour}", lw=0.8)
        n, found = steps(ds, k)
        mean = np.exp(np.log(found).mean(1))
        spread = np.abs([found.min(1) - mean, found.max(1) - mean])
        axes[1].errorbar(n, mean, spread, fmt="o", ms=4, **style)
        slope, offset = np.polyfit(np.log(n), np.log(mean), 1)
        axes[1].plot(n, np.exp(offset) * n**slope, color=f"C{colour}", lw=1)
    axes[0].set(xlabel="step", ylabel="test accuracy, n = 24")
    axes[1].set(xlabel="bits n", ylabel="steps until it is 90%", xscale="log", yscale="log")
    axes[1].set_xticks(ds.d.values, [str(n) for n in ds.d.values])
    axes[1].minorticks_off()
    axes[1].legend(fontsize=8)


def claims(ds):
    slopes, fits, sudden = [], [], []
    for k in ds.k.values:
        n, found = steps(ds, k)
        mean = np.log(found).mean(1)
        slopes.append(np.polyfit(np.log(n), mean, 1)[0])
        fits.append(np.corrcoef(np.log(n), mean)[0, 1] ** 2)
        sudden.append(np.median(1 - steps(ds, k, 0.6)[1] / found))
    growth = np.polyfit(ds.k.values, slopes, 1)[0]
    correlation = np.corrcoef(ds.k.values, slopes)[0, 1]
    abrupt = "share of the steps to 90% accuracy that come after 60%, median, k > 2: the largest"
    return [
        Claim("R² of log steps in log n, smallest of all k", "1, a power of n", min(fits), 0.85),
        Claim("growth of the exponent per unit of k", "O(1), at most 1", growth, 0.2, 1),
        Claim("correlation of the exponent with k", "1", correlation, 0.8),
        Claim(abrupt, "abrupt", max(sudden[1:]), high=0.45),
    ]


SMALL = {"k": [2, 3, 5], "d": [12, 16, 24], "NUM_TRIALS": 2}
