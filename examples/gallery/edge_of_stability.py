"""Gradient descent trains at the edge of stability.

Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs at the
edge of stability", arXiv:2103.00065, figure 1. In full-batch gradient descent with learning
rate η, the largest eigenvalue of the Hessian of the training loss (the sharpness) rises to 2/η,
above which a quadratic would diverge, and then hovers "right at, or just above, this value". The
training loss then rises on many steps, and falls nevertheless over long times.

The setting is that of the paper's fully-connected network (tanh, two hidden layers, squared loss),
at a smaller scale: 256 handwritten digits instead of CIFAR-10, and width 64. With seeds 42, 1
and 2, the medians of the sharpness times η/2 are 1.007 to 1.020.
"""

from claims import Claim

from mlpsubmit import Sweep
from mlpsubmit.batchfns import images, sample
from mlpsubmit.grabs import sharpness

sweep = Sweep(
    name="edge_of_stability",
    axes={"LR": [1, 2, 3], "trial": range(3)},
    data=images("digits", classes=[[digit] for digit in range(10)], onehot=True),
    batchfn=sample,
    grabs={"sharpness": sharpness},
    ONLINE=False,
    N_SAMPLES=256,
    WIDTH=64,
    NONLINEARITY="tanh",
    PARAMETRIZATION="sp",
    CENTERED=False,
    MAX_ITER=3000,
    LOSS_CHECKPOINTS=[],
    EMA_SMOOTHER=0,  # the loss of each step
    ONLYTHRESHOLDS=False,
    EVAL_EVERY=3000,
    GRAB_EVERY=30,
)

PANELS = 2


def plot(ds, axes):
    for colour, lr in enumerate(ds.lr.values):
        style = {"color": f"C{colour}", "lw": 0.8}
        for run in ds.sel(lr=lr).transpose("trial", ...).trial:
            one = ds.sel(lr=lr, trial=run)
            axes[0].semilogy(ds.step, one.train_loss, **style)
            axes[1].plot(ds.grab_step, one.sharpness, **style)
        axes[1].axhline(2 / lr, color=f"C{colour}", ls="--", lw=1)
        axes[1].plot([], [], color=f"C{colour}", label=f"η = {lr:g}")
    axes[1].plot([], [], "k--", lw=1, label="2/η")
    axes[0].set(xlabel="step", ylabel="train loss")
    axes[1].set(xlabel="step", ylabel="sharpness", ylim=(0, None))
    axes[1].legend(ncols=2, fontsize=8)


def claims(ds):
    late = ds.sharpness.isel(grab_step=slice(ds.sizes["grab_step"] // 2, None)) * ds.lr / 2
    first = (ds.sharpness * ds.lr / 2).isel(grab_step=0, lr=0)
    loss = ds.train_loss.isel(step=slice(ds.sizes["step"] // 2, None))
    found = [
        Claim(
            f"sharpness times η/2, median over the second half of the steps, η = {lr:g}",
            "right at, or just above, 1",
            late.sel(lr=lr).median().item(),
            0.98,
            1.08,
        )
        for lr in ds.lr.values
    ]
    rises = (loss.diff("step") > 0).mean().item()
    ends = (loss.isel(step=-1) / loss.isel(step=0)).max().item()
    return [
        *found,
        Claim(
            f"the same at the first step, η = {first.lr.item():g}",
            "less",
            first.mean().item(),
            high=0.7,
        ),
        Claim("share of the second half's steps on which the loss rises", "> 0", rises, 0.1),
        Claim("loss at the end over that at half the steps, its maximum", "< 1", ends, high=0.8),
    ]


SMALL = {"LR": [2, 3], "NUM_TRIALS": 1, "MAX_ITER": 1200, "N_SAMPLES": 128}
