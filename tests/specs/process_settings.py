"""A spec that sets much of its process; its functions measure what reaches them."""

import argparse
import os
import random
import sys
import warnings

import numpy as np
import torch

from mlpsubmit import Sweep

os.environ["STUDY_NOISE"] = "0.25117"
os.environ.pop("STUDY_REMOVED", None)
sys.path.append("lib")
torch.set_default_dtype(torch.float64)
torch.manual_seed(7)
np.random.seed(7)
random.seed(7)
np.seterr(divide="raise")
warnings.filterwarnings("error", message="of the study")
torch.backends.cudnn.deterministic = True
torch.use_deterministic_algorithms(True)

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)


def table():
    drawn = np.random.rand() + random.random() + torch.rand(()).item()
    return {"offset": np.load("tables/offset.npy"), "shift": drawn}


def batches(bsz, gen, offset, shift):
    import targets_of_study  # found through sys.path when it is called

    noise = float(os.environ["STUDY_NOISE"])

    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen) + offset
        return X, targets_of_study.target(X) + noise * shift

    return batch_fn


def facts(model, X_tr):
    try:
        warnings.warn("of the study", stacklevel=1)
    except UserWarning:
        filtered = True
    else:
        filtered = False
    return np.array(
        [
            X_tr.dtype == next(model.parameters()).dtype == torch.float64,
            np.geterr()["divide"] == "raise",
            torch.backends.cudnn.deterministic,
            "STUDY_REMOVED" not in os.environ,
            len(sys.argv) == 1,
            filtered,
        ]
    )


sweep = Sweep(
    "settings",
    axes={"WIDTH": [4, 8], "trial": range(2)},
    data=table,
    batchfn=batches,
    grabs={"facts": facts},
    LR=parser.parse_args().lr,
    N_SAMPLES=16,
    MAX_ITER=50,
    LOSS_CHECKPOINTS=[0.5],
)
