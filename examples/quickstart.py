"""Handwritten digits, small against large, learned by MLPs of two widths in three regimes.

GAMMA is the richness of training: small is lazy (features stay close to
their initialisation), large is rich.

    mlpsubmit launch examples/quickstart.py
    mlpsubmit collect quickstart --out results.nc --plot results.png
"""

from mlpsubmit import Sweep
from mlpsubmit.batchfns import images, sample
from mlpsubmit.grabs import distance_from_init

sweep = Sweep(
    name="quickstart",
    axes={"WIDTH": [32, 128], "GAMMA": [0.1, 1, 10], "trial": range(3)},
    # Labels are -1 for the first group of digits and +1 for the second.
    data=images("digits", classes=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
    batchfn=sample,
    ONLINE=False,
    N_SAMPLES=512,
    LR=0.5,
    MAX_ITER=2000,
    LOSS_CHECKPOINTS=[0.3, 0.05],
    ONLYTHRESHOLDS=False,
    RECORD_EVERY="log:60",
    EVAL_EVERY="log:60",
    GRAB_EVERY="log:20",
    grabs={"moved": distance_from_init},
)
