"""The best learning rate grows as γ² in the lazy regime, and as γ^(2/L) in the rich one.

Atanasov, Meterez, Simon and Pehlevan, "The optimization landscape of SGD across the feature
learning strength", arXiv:2410.04642 (abstract, and the phase portraits of learning rate and
richness). The output of a network of L layers is divided by γ. The learning rate η* of the lowest
loss after a given number of steps of online SGD scales as γ² for γ ≪ 1, and as γ^(2/L) for γ ≫ 1.

η is the learning rate of the weights: LR times the factor that GAMMA has in mlpsubmit, γ² below 1
and γ from there on. The best LR itself is thus the same at all γ for L = 2, and falls for deeper
networks in the rich regime. η* is the minimum of a parabola through the log loss at the best LR of
the grid and its neighbours; slopes are those of log-log fits for γ ≤ 0.01 and for γ ≥ 10. The paper
trains on images; here the target is the mean of a linear and a quadratic monomial of Gaussian
inputs. The form of the claim is tested, the two slopes. Error bars are over trials.
With seeds 42, 1 and 2, the slopes are 1.995 to 2.085 for γ ≤ 0.01, and for γ ≥ 10 they are
0.978 to 1.011 (L = 2), 0.677 to 0.695 (L = 3) and 0.526 to 0.533 (L = 4).
"""

import numpy as np
import torch
from claims import Claim

from mlpsubmit import Monomial, Sweep
from mlpsubmit.batchfns import polynomial

sweep = Sweep(
    name="richness",
    axes={
        "DEPTH": [1, 2, 3],
        "GAMMA": np.logspace(-4, 3, 15),
        "LR": np.logspace(-2.5, 1, 15),
        "trial": range(4),
    },
    data=lambda: {"data_eigvals": torch.ones(8)},
    batchfn=polynomial,
    monomials=[Monomial({0: 1}), Monomial({0: 1, 1: 1})],
    WIDTH=64,
    N_SAMPLES=64,
    N_TEST=1000,
    MAX_ITER=500,
    EVAL_EVERY=500,
    LOSS_CHECKPOINTS=[],
)


def log_losses(ds):
    """Return log10 of the test loss, 0 where a training diverged or did worse: means of trials."""
    return np.log10(ds.test_loss).where(ds.test_loss < 1, 0.0).mean("trial")


def factor(gamma):
    return np.where(gamma < 1, gamma**2, gamma)


def best(ds):
    """Return the best learning rates of the weights, by the number of layers."""
    x, found = np.log10(ds.lr.values), {}
    for depth in ds.depth.values:
        minima = []
        for loss in log_losses(ds).sel(depth=depth).transpose("gamma", "lr").values:
            i = np.clip(loss.argmin(), 1, len(x) - 2)
            a, b, _ = np.polyfit(x[i - 1 : i + 2], loss[i - 1 : i + 2], 2)
            minima.append(np.clip(-b / (2 * a), x[i - 1], x[i + 1]))
        found[int(depth) + 1] = factor(ds.gamma.values) * 10 ** np.array(minima)
    return found


PANELS = 2


def plot(ds, axes):
    gamma, optima = ds.gamma.values, best(ds)
    rates = factor(gamma)[:, None] * ds.lr.values
    loss = log_losses(ds).sel(depth=2).transpose("gamma", "lr")
    grid = np.broadcast_to(gamma[:, None], rates.shape)
    mesh = axes[0].pcolormesh(grid, rates, loss, shading="gouraud", cmap="viridis_r")
    axes[0].figure.colorbar(mesh, label="log₁₀ test loss")
    axes[0].plot(gamma, optima[3], "o", c="C3", label="best learning rate, L = 3")
    for L, eta in optima.items():
        spread = np.std([np.log(best(ds.sel(trial=[t]))[L]) for t in ds.trial.values], axis=0)
        axes[1].errorbar(gamma, eta, eta * spread, fmt="o", ms=4, c=f"C{L}", label=f"L = {L}")
        for ax in axes if L == 3 else axes[1:]:
            for side, slope in ((gamma <= 1, 2), (gamma >= 1, 2 / L)):
                at = np.exp(np.log(eta / gamma**slope)[side & (abs(np.log10(gamma)) >= 1)].mean())
                ax.plot(gamma[side], at * gamma[side] ** slope, "k--", lw=1)
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="richness γ", ylabel="learning rate η")
        ax.plot([], [], "k--", lw=1, label="∝ γ² and ∝ γ^(2/L)")
        ax.legend(fontsize=8, loc="upper left")


def claims(ds):
    logs, found = np.log10(ds.gamma.values), []
    for L, eta in best(ds).items():
        for text, side, slope in (("γ ≤ 0.01", logs < -1.9, 2), ("γ ≥ 10", logs > 0.9, 2 / L)):
            ours = np.polyfit(logs[side], np.log10(eta[side]), 1)[0]
            form = "2" if slope == 2 else f"2/{L}"
            found.append(
                Claim(f"slope of η*, L = {L}, {text}", form, ours, slope - 0.15, slope + 0.15)
            )
    return found


SMALL = {
    "DEPTH": [1, 2],
    "GAMMA": [0.001, 0.01, 10.0, 100.0],
    # Over six seeds, slopes at γ ≥ 10 are 0.85 to 1.05 with 2 trials, 0.98 to 1.04 with 8.
    "NUM_TRIALS": 8,
    "WIDTH": 32,
    "N_SAMPLES": 32,
}
