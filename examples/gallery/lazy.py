"""In the lazy limit, the tangent kernel drifts in proportion to the richness.

Chizat, Oyallon and Bach, "On lazy training in differentiable programming", arXiv:1812.07956,
section 2. A smooth model whose output is 0 at initialisation and multiplied by a scale α = 1/γ
trains as its linearisation if α is large: the weights move by O(1/α), and the outputs differ from
those of the linear model by O(1/α). Then the neural tangent kernel, too, differs by O(1/α) from
that at initialisation. All three are proportional to γ, the setting GAMMA.

The paper gives orders: slopes of log-log fits over γ ≤ 0.001 are compared with one. The linear
model is the network at γ = 10⁻⁶. The nonlinearity is tanh, because ReLU is not smooth: its kernel
also changes where units change sign. In the wide network the drift of the kernel has a small term
of order γ and a large one of order γ², which takes over near γ = 0.003. Error bars are standard
deviations over trials, of logarithms. With seeds 42, 1 and 2, all slopes are
from 0.997 to 1.006.
"""

import numpy as np
from claims import Claim
from torch import nn

from mlpsubmit import MLP, Sweep, grab
from mlpsubmit.batchfns import multi_index
from mlpsubmit.grabs import distance_from_init, empirical_ntk, on_test_set


def kernel_drift(model, model0, X_tr):
    K, K0 = empirical_ntk(model, X_tr), empirical_ntk(model0, X_tr)
    return (K - K0).norm() / K0.norm()


@grab(dims=("sample",))
def outputs(model, model0, X_te):
    return (model(X_te) - model0(X_te)).detach()[:, 0]


sweep = Sweep(
    name="lazy",
    axes={"WIDTH": [16, 256], "GAMMA": [1e-6, *np.logspace(-4, 0, 9)], "trial": range(5)},
    MODEL=MLP,
    nonlinearity=nn.Tanh(),
    batchfn=multi_index,
    d=10,
    k=1,
    link=2,
    grabs={"ntk": on_test_set(kernel_drift), "weights": distance_from_init, "f": outputs},
    ONLINE=False,
    N_SAMPLES=32,
    N_TEST=32,
    LR=0.3,
    MAX_ITER=500,
    EVAL_EVERY=500,
    LOSS_CHECKPOINTS=[],
    PRECISION="fp64",
)


def drifts(ds):
    """Return relative changes by their names, without the linear model, the smallest gamma."""
    f, linear = ds.f, ds.f.isel(gamma=0)
    distance = np.sqrt(((f - linear) ** 2).sum("sample") / (linear**2).sum("sample"))
    found = {"kernel": ds.ntk, "outputs": distance, "weights": ds.weights.isel(layer=0)}
    return {name: drift.isel(gamma=slice(1, None)) for name, drift in found.items()}


def plot(ds, ax):
    for colour, (name, drift) in enumerate(drifts(ds).items()):
        for width, style in zip(ds.width.values, ["o-", "s--"], strict=False):
            logs, label = np.log(drift.sel(width=width)), f"{name}, width {width}"
            mean, factor = np.exp(logs.mean("trial")), np.exp(logs.std("trial"))
            bars = [mean - mean / factor, mean * factor - mean]
            ax.errorbar(mean.gamma, mean, bars, fmt=style, ms=4, lw=1, c=f"C{colour}", label=label)
    ax.plot(mean.gamma, 0.3 * mean.gamma, "k:", label="∝ γ")
    ax.set(xscale="log", yscale="log", xlabel="richness γ", ylabel="relative change in training")
    ax.legend(fontsize=8)


def claims(ds):
    found = []
    for name, drift in drifts(ds).items():
        lazy = np.log(drift.sel(gamma=slice(0, 2e-3))).mean("trial")
        for width in ds.width.values:
            slope = np.polyfit(np.log(lazy.gamma), lazy.sel(width=width), 1)[0]
            text = f"relative change of the {name}, width {width}: slope in γ"
            found.append(Claim(text, "1", slope, 0.95, 1.05))
    return found


SMALL = {"WIDTH": [16], "NUM_TRIALS": 2, "MAX_ITER": 200, "GAMMA": [1e-6, 1e-4, 1e-3]}
