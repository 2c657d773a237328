"""How long does an MLP take to learn monomials of degree 1, 2 and 3?

Gaussian inputs whose covariance falls as a power law; targets are products of Hermite polynomials.
The loss falls like a staircase: the higher the degree, the later the step.

    mlpsubmit launch examples/staircase.py
    mlpsubmit collect staircase --out staircase.nc --plot staircase.png
"""

from mlpsubmit import Monomial, Sweep
from mlpsubmit.batchfns import polynomial, power_law
from mlpsubmit.grabs import readin_gram_trace

sweep = Sweep(
    name="staircase",
    axes={
        "monomials": [Monomial({0: 1}), Monomial({0: 1, 1: 1}), Monomial({0: 1, 1: 1, 2: 1})],
        "trial": range(2),
    },
    data=power_law(d=16, alpha=1.0, offset=3.0),
    batchfn=polynomial,
    WIDTH=128,
    GAMMA=1.0,
    N_SAMPLES=256,
    LR=0.2,
    MAX_ITER=3000,
    PERCENT_THRESHOLDS=[0.5, 0.1],
    ONLYTHRESHOLDS=False,
    RECORD_EVERY="log:100",
    GRAB_EVERY="log:20",
    grabs={"readin_trace": readin_gram_trace},
)
