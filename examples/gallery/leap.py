"""The leap of a target decides how the time to learn it grows with the dimension.

Abbe, Boix-Adserà and Misiakiewicz, "SGD learning on neural networks: leap complexity and
saddle-to-saddle dynamics", arXiv:2302.11055. The leap of a target of few of d Gaussian inputs is
the largest number of inputs that one of its Hermite monomials adds to those of earlier ones. The
conjecture: SGD learns it in a time of order d^max(leap, 2), up to logarithms. As a step costs a
time of order d, the steps grow as d for leaps 1 and 2, up to logarithms, and faster beyond.

Here x₁ + x₁x₂ has leap 1, x₁x₂ leap 2 and x₁x₂x₃ leap 3. They are learned by ReLU networks with
one hidden layer in PyTorch's initialisation, from fresh batches. LR falls as 1/d, as it has to for
inputs of squared norm d. The logarithm is that of the escape from small weights: steps are compared
with d log d. Of leap 3 the order alone is tested: its exponent needs larger d. With seeds 42, 1
and 2 the slopes are 1.05 to 1.12 for leap 1, 1.16 to 1.18 for leap 2, and larger by 0.40, 0.40 and
0.58 for leap 3.
"""

import numpy as np
from claims import Claim

from mlpsubmit import Monomial, Sweep
from mlpsubmit.batchfns import multi_index

x1, x2, x3 = (Monomial({i: 1}) for i in range(3))
TARGETS = {1: [x1, x1 * x2], 2: x1 * x2, 3: x1 * x2 * x3}


def target(leap, d, bsz, gen):
    return multi_index(TARGETS[leap], bsz, gen, d=d)


sweep = Sweep(
    name="leap",
    axes={
        "leap": [1, 2, 3],
        ("d", "LR"): [(d, 1 / d) for d in (16, 24, 32, 48, 64, 96, 128, 192)],
        "trial": range(3),
    },
    where=lambda c: c.leap < 3 or c.d <= 48,
    batchfn=target,
    DEPTH=1,
    WIDTH=128,
    PARAMETRIZATION="sp",
    N_SAMPLES=64,
    N_TEST=1000,
    MAX_ITER=40_000,
    LOSS_CHECKPOINTS=[],
    EMA_SMOOTHER=0,  # the test loss as it is
    EVAL_EVERY="log:300",
    METRIC_THRESHOLDS={"test_loss": [0.3]},
    STOP_ON="test_loss",
)


def steps(ds, leap):
    """Return d, and the steps until the test loss is below 0.3 (d, trials)."""
    found = ds.timekeys_test_loss.sel(leap=leap)[..., 0].transpose("d_lr", "trial")
    found = found[found.notnull().all("trial").values]
    return found.d.values, found.values + 1


def plot(ds, ax):
    for leap, label in zip(ds.leap.values, ["x₁ + x₁x₂", "x₁x₂", "x₁x₂x₃"], strict=False):
        d, found = steps(ds, leap)
        mean, style = np.exp(np.log(found).mean(1)), {"color": f"C{leap - 1}"}
        spread = np.abs([found.min(1) - mean, found.max(1) - mean])
        ax.errorbar(d, mean, spread, fmt="o", ms=4, label=f"leap {leap}: {label}", **style)
        if leap < 3:
            line = d * np.log(d)
            ax.plot(d, line * np.exp(np.log(mean / line).mean()), **style)
    ax.plot([], [], "grey", label="proportional to d log d")
    ax.set(xlabel="dimension d", ylabel="steps until test loss 0.3", xscale="log", yscale="log")
    ax.set_xticks(ds.d.values, [str(d) for d in ds.d.values])
    ax.minorticks_off()
    ax.legend(fontsize=8)


def claims(ds):
    found = []
    for leap in [1, 2]:
        d, measured = steps(ds, leap)
        growth = (np.log(measured) - np.log(np.log(d))[:, None]).mean(1)
        slope = np.polyfit(np.log(d), growth, 1)[0]
        text = f"leap {leap}: slope of log (steps / log d) in log d"
        found.append(Claim(text, "1, up to logarithms", slope, 0.8, 1.3))
    if 3 in ds.leap:
        d, measured = steps(ds, 3)
        ratio = np.log(measured).mean(1) - np.log(steps(ds, 2)[1][: len(d)]).mean(1)
        slope = np.polyfit(np.log(d), ratio, 1)[0]
        text = "slope of log steps in log d, leap 3 minus leap 2"
        found.append(Claim(text, "1 for large d", slope, 0.1, 1.2))
    return found


SMALL = {"leap": [1, 2], "NUM_TRIALS": 1}
