"""MLPs learn monomials in the order of their kernel eigenvalues.

Karkada, Turnbull, Liu and Simon, "Predicting kernel regression learning curves from only raw data
statistics", arXiv:2510.14878 (abstract, and the experiments with MLPs). For Gaussian inputs with
variances γᵢ, the Hermite eigenstructure ansatz gives the kernel eigenvalue c(deg m) ∏ γᵢ^mᵢ to the
product of Hermite polynomials of the monomial m. MLPs in the feature-learning regime learn these
functions in the order of the eigenvalues of the kernel of a shallow ReLU network.

Each target is learned by networks of its own, with online SGD at GAMMA=1; its time is the step at
which the train loss is below 0.15 (the target has mean square 1). The paper gives the order and no
number for it: the rank correlation is tested. The guide line of the authors' plot of times against
1/λ has the slope 1/2 (notebooks/mlp-training-updated-plots.py of their repository,
JoeyTurn/hermite-eigenstructure-ansatz). Their networks have the width 8192, with 200 inputs and
batches of 1024; here the width is 256, with 30 inputs and batches of 256. Error bars are standard
deviations over trials. With seeds 42, 1 and 2, the correlation is 0.977 to 0.981, the slope
0.465 to 0.467.
"""

import numpy as np
from claims import Claim

from mlpsubmit import Monomial, Sweep
from mlpsubmit.batchfns import (
    hea_eigenvalue,
    hea_monomials,
    polynomial,
    power_law,
    relu_ntk_level_coeffs,
)

data = power_law(d=30, alpha=1.5, offset=3.0)
VARIANCES = data()["data_eigvals"]
COEFFS = relu_ntk_level_coeffs(VARIANCES)
_, MODES = hea_monomials(VARIANCES, n=600, level_coeffs=COEFFS)


def spread_out(degree, count=7):
    """Return some of the leading modes of a degree, further and further apart."""
    modes = [mode for mode in MODES if mode.degree() == degree]
    return [modes[int(i) - 1] for i in np.geomspace(1, len(modes), count)]


sweep = Sweep(
    name="hea",
    axes={"monomials": sorted({*spread_out(1), *spread_out(2), *spread_out(3)}), "trial": range(3)},
    data=data,
    batchfn=polynomial,
    WIDTH=256,
    DEPTH=2,
    GAMMA=1.0,
    N_SAMPLES=256,
    LR=0.1,
    MAX_ITER=20_000,
    LOSS_CHECKPOINTS=[0.15],
)


def times(ds):
    """Return degrees, kernel eigenvalues, and learning times (monomials, trials)."""
    modes = [Monomial.from_repr(text) for text in ds.monomials.values]
    eigvals = [hea_eigenvalue(mode, VARIANCES, COEFFS) for mode in modes]
    steps = ds.timekeys.isel(threshold=0).transpose("monomials", "trial").values
    return np.array([mode.degree() for mode in modes]), np.array(eigvals), steps


def plot(ds, ax):
    degrees, eigvals, steps = times(ds)
    for degree in (1, 2, 3):
        at, mean, std = degrees == degree, steps.mean(1), steps.std(1)
        ax.errorbar(1 / eigvals[at], mean[at], std[at], fmt="o", label=f"degree {degree}")
    guide = np.sort(1 / eigvals)
    ax.plot(
        guide,
        np.exp(np.log(steps * eigvals[:, None] ** 0.5).mean()) * guide**0.5,
        "k--",
        lw=1,
        label="slope 1/2",
    )
    ax.set(xscale="log", yscale="log", ylabel="steps to train loss 0.15")
    ax.set(xlabel="1 / predicted kernel eigenvalue, λ⁻¹")
    ax.legend(fontsize=8)


def claims(ds):
    _, eigvals, steps = times(ds)
    ranks = [np.argsort(np.argsort(values)) for values in (1 / eigvals, steps.mean(1))]
    slope = np.polyfit(np.log(1 / eigvals), np.log(steps).mean(1), 1)[0]
    return [
        Claim(
            "rank correlation of time and 1/λ",
            "learned in this order",
            np.corrcoef(ranks)[0, 1],
            0.95,
            1,
        ),
        Claim("slope of log time against log 1/λ", "1/2 (guide line)", slope, 0.4, 0.6),
    ]


SMALL = {
    "monomials": [Monomial(m) for m in ({0: 1}, {4: 1}, {0: 2}, {1: 1, 2: 1}, {3: 1, 8: 1})],
    "NUM_TRIALS": 1,
    "WIDTH": 64,
    "N_SAMPLES": 64,
    "LR": 0.2,
}
