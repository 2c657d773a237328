"""Deep linear networks learn each mode at the time of the exact solution.

Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
linear neural networks", arXiv:1312.6120, section 1. With white inputs, and with weights that are
balanced and aligned with the singular vectors of the target map at initialisation, the modes
decouple. In a network of N weight matrices, the strength u of the mode with singular value s obeys
τ du/dt = N u^(2 - 2/N) (s - u). For N = 2 its solution is a sigmoid that takes the time
t = τ/(2s) ln(u (s - u₀) / (u₀ (s - u))) from u₀ to u: a mode is learned in a time of order τ/s, the
stronger the earlier.

Time is in units of τ, here C/(2 LR) steps, for the mean squared error over C outputs. The hidden
layers of every trial are in other random orthogonal bases. For N > 2 the equation is integrated
numerically. The paper's tanh networks and random initial weights are left out. With seeds 42, 1
and 2 the furthest ratio is 1.002.
"""

import numpy as np
import torch
from claims import Claim
from torch import nn

from mlpsubmit import Sweep, grab
from mlpsubmit.batchfns import arrays

D, U0, TAU = 5, 0.01, 1000  # outputs, strength of each mode at initialisation, steps
S = np.arange(1.0, D + 1)  # singular values of the target map U diag(S) V^T
U, V = (np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0] for seed in (0, 1))
X = np.sqrt(D) * np.eye(D)  # white: X^T X / n = 1
Y = X @ (U * S @ V.T).T


def linear_network(d_in, depth):
    bases = [nn.init.orthogonal_(torch.empty(d_in, d_in)) for _ in range(depth)]
    bases = [torch.tensor(V).float(), *bases, torch.tensor(U).float()]
    net = nn.Sequential(*(nn.Linear(d_in, d_in, bias=False) for _ in range(depth + 1)))
    for layer, before, after in zip(net, bases[:-1], bases[1:], strict=True):
        layer.weight.data = U0 ** (1 / (depth + 1)) * after @ before.T
    return net


@grab(dims=("s",), coords={"s": S.tolist()})
def strengths(model, X_tr):
    W = model(X_tr).T @ X_tr / len(X_tr)
    return (torch.tensor(U).to(W).T @ W @ torch.tensor(V).to(W)).diagonal()


sweep = Sweep(
    name="saxe",
    axes={"DEPTH": [1, 2, 3], "trial": range(3)},
    MODEL=linear_network,
    batchfn=arrays(X, Y),
    grabs={"u": strengths},
    ONLINE=False,
    N_SAMPLES=D,
    N_TEST=0,
    PARAMETRIZATION="sp",  # the weights as they are
    CENTERED=False,
    LR=D / 2 / TAU,
    MAX_ITER=7 * TAU,
    LOSS_CHECKPOINTS=[],
    ONLYTHRESHOLDS=False,
    GRAB_EVERY=20,
)


def solution(s, depth):
    """Return times in units of tau, and the strength of a mode at these times."""
    u, N = np.geomspace(U0, 0.999 * s, 2000), depth + 1
    pace = 1 / (N * u ** (2 - 2 / N) * (s - u))
    return np.concatenate([[0], ((pace[1:] + pace[:-1]) / 2 * np.diff(u)).cumsum()]), u


def plot(ds, ax):
    t = (ds.grab_step + 1) / TAU
    for colour, s in enumerate(S):
        for depth, style in zip(ds.depth.values, ["-", "--", ":"], strict=False):
            u = ds.u.sel(depth=depth, s=s, trial=0)
            label = f"s = {s:g}" if depth == 1 else None
            ax.plot(t, u, style, color=f"C{colour}", lw=3, alpha=0.5, label=label)
            ax.plot(*solution(s, depth), "k", lw=0.8)
    ax.set(xlabel="time t / τ", ylabel="strength u of the mode", xlim=(0, t.max()))
    for depth, style in zip(ds.depth.values, ["-", "--", ":"], strict=False):
        ax.plot([], [], style, color="grey", lw=3, alpha=0.5, label=f"N = {depth + 1}")
    ax.plot([], [], "k", lw=0.8, label="exact solution")
    ax.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))


def claims(ds):
    t = (ds.grab_step.values + 1) / TAU
    found = []
    for depth in ds.depth.values:
        ratios = [
            np.interp(s / 2, u, t) / np.interp(s / 2, *solution(s, depth)[::-1])
            for s in S
            for u in ds.u.sel(depth=depth, s=s).transpose("trial", "grab_step").values
        ]
        text = f"time to half of s, over that of the solution, N = {depth + 1}: the furthest from 1"
        found.append(Claim(text, "1", max(ratios, key=lambda r: abs(r - 1)), 0.99, 1.01))
    return found


SMALL = {"DEPTH": [1, 2], "NUM_TRIALS": 1}
