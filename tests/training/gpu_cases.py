"""Trainings on the CPU and on the simulated GPU; run by test_device_propagation.py as a process.

    python gpu_cases.py NAME ...

It prints JSON: per case the error if there is one, what differs, and the waits within steps.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("batchfns", "grabs", "training")]

from mlpsubmit.batchfns import normal  # noqa: E402
from mlpsubmit.native import library  # noqa: E402

# On the CPU, too, PyTorch computes and draws, as on a GPU: before others import these functions.
library.library = lambda dtype: None  # type: ignore[assignment]
normal.randn = lambda *size, generator: torch.randn(  # type: ignore[assignment]
    *size, generator=generator, device=generator.device
)

import test_grabs_in_training  # noqa: E402
import test_packs  # noqa: E402
import test_sweeps  # noqa: E402
from simulated_gpu import DEVICE, simulated_gpu  # noqa: E402

from mlpsubmit import Monomial, Sweep  # noqa: E402
from mlpsubmit.assembly.assemble import assemble  # noqa: E402
from mlpsubmit.assembly.batch_streams import data_arguments  # noqa: E402
from mlpsubmit.batchfns import arrays, epochs, polynomial, power_law  # noqa: E402
from mlpsubmit.training import Interrupted, Monitor, Trained, loop  # noqa: E402
from mlpsubmit.training.optimizers import adam  # noqa: E402
from mlpsubmit.training.parts import map_tensors  # noqa: E402
from mlpsubmit.training.saved_networks import SavedNetworks  # noqa: E402
from mlpsubmit.training.seeds import data_seed, global_rng  # noqa: E402

adam._rounded_singly = adam._in_few_operations

#: Packs shrink where blocks end.
loop.BLOCK = 4

#: One threshold is crossed in a few steps by some configs, so that packs shrink.
SETTINGS: dict[str, Any] = {
    "WIDTH": 8,
    "N_SAMPLES": 16,
    "N_TEST": 5,
    "MAX_ITER": 14,
    "LR": 0.1,
    "ONLYTHRESHOLDS": False,
    "LOSS_CHECKPOINTS": None,
    "PERCENT_THRESHOLDS": [0.9, 0.6],
    "EMA_SMOOTHER": 0.0,
}
TASK: dict[str, Any] = {
    "axes": {"LR": [0.02, 0.1, 0.3], "trial": range(2)},
    "data": power_law(d=4, alpha=1.0),
    "batchfn": polynomial,
    "monomials": Monomial({0: 1}),
    "N_SAMPLES": 16,
}


def labels(bsz: int, gen: torch.Generator) -> Any:
    """Batch function for cross_entropy."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(bsz, 4, generator=gen, device=gen.device)
        return X, (X[:, 0] > 0).long() + (X[:, 1] > 0).long()

    return batch_fn


def signs(bsz: int, gen: torch.Generator) -> Any:
    """Batch function with targets of -1 and 1."""

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 4, generator=gen, device=gen.device)
        return X, X[:, :1].sign().squeeze(1)

    return batch_fn


def images(bsz: int, gen: torch.Generator) -> Any:
    """Batch function for convolutions."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(bsz, 1, 5, 5, generator=gen, device=gen.device)
        return X, X[:, 0, 0, 0]

    return batch_fn


class Tanh(nn.Module):
    """A custom model with a buffer."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(d_in, width), nn.Linear(width, 1)
        self.register_buffer("shift", torch.linspace(-1, 1, width))

    def forward(self, X: Tensor) -> Tensor:
        output: Tensor = self.read_out(torch.tanh(self.read_in(X) + self.shift))
        return output


class Drawing(Tanh):
    """A custom model with dropout, noise, and statistics of its batches."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__(d_in, width)
        self.dropout, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(d_in, affine=False)

    def forward(self, X: Tensor) -> Tensor:
        noise = 0.1 * torch.randn_like(X) if self.training else 0.0
        output: Tensor = super().forward(self.dropout(self.norm(X) + noise))
        return output


def conv(width: int) -> nn.Module:
    """A convolutional network."""
    first, second = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(width, 1))


def squared(output: Tensor, y: Tensor) -> Tensor:
    """A loss of the user's."""
    return (output - y).square().mean()


def penalised(output: Tensor, y: Tensor, params: dict[str, Tensor]) -> Tensor:
    """A loss of the user's with a penalty on a layer."""
    return squared(output, y) + 0.01 * params["input_layer.weight"].abs().sum()


def largest(output: Tensor, y: Tensor) -> Tensor:
    """A metric of the user's."""
    return (output - y).abs().amax()


def moments(model: nn.Module, X_tr: Tensor) -> dict[str, Tensor]:
    """A grab that returns a dictionary."""
    output: Tensor = model(X_tr)
    return {"mean": output.mean(), "outputs": output[:3]}


def rescaled(model: nn.Module, optimizer: Any, gamma: float) -> None:
    """A parametrization of the user's."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def _library() -> dict[str, dict[str, Any]]:
    """Return every recipe and batch function of the library, online and offline."""
    found = {name: made() for name, made in test_sweeps.CASES.items()}
    for name, (axis, values, spec) in test_packs.CASES.items():
        points = [(value, trial) for value in values for trial in range(2)]
        found[f"{name} in a pack"] = {"axes": {(axis, "trial"): points}, **spec}
    modes = {"online": True, "offline": False}
    return {
        f"{name}, {mode}": {**spec, "ONLINE": online}
        for name, spec in found.items()
        for mode, online in modes.items()
    }


#: Per case, the settings of its spec.
SPECS: dict[str, dict[str, Any]] = {
    **_library(),
    **{
        f"{optimizer}, {mode}": {
            **TASK,
            "OPTIMIZER": optimizer,
            "WEIGHT_DECAY": 0.1,
            "ONLINE": mode == "online",
        }
        for optimizer in ("sgd", "adam", "adamw")
        for mode in ("online", "offline")
    },
    **{
        optimizer: {**TASK, "OPTIMIZER": optimizer, "WEIGHT_DECAY": 0.1, **further}
        for optimizer, further in {
            "muon": {"MOMENTUM": 0.9},
            "lion": {},
            "rmsprop": {"MOMENTUM": 0.9},
        }.items()
    },
    "momentum": {**TASK, "MOMENTUM": 0.9, "NESTEROV": True},
    "schedules, clipping and frozen parameters": {
        **TASK,
        "axes": {
            "LR_SCHEDULE": ["constant", "cosine", lambda step: 0.9**step],
            "GRAD_CLIP_NORM": [None, 0.3],
            "LR_FACTORS": [{}, {"input_layer.*": 0}],
        },
        "WARMUP_STEPS": 3,
        "OPTIMIZER": "adamw",
        "WEIGHT_DECAY": 0.1,
    },
    **{
        f"{name}, {mode}": {**TASK, "PARAMETRIZATION": name, "COMPILE": compiled}
        for name in ("mup", "ntp", "mfp", "mup-lr", "ntp-lr", "sp")
        for mode, compiled in (("closed form", "auto"), ("vmap", False))
    },
    "callable parametrization": {**TASK, "PARAMETRIZATION": rescaled},
    "callable loss": {**TASK, "LOSS": squared},
    "callable loss of parameters": {**TASK, "LOSS": penalised},
    "huber": {**TASK, "LOSS": "huber"},
    "mae": {**TASK, "LOSS": "mae", "LR_SCHEDULE": "linear", "LR_FINAL_FACTOR": 0.1},
    **{
        loss: {"axes": {"trial": range(3)}, "batchfn": signs, "N_SAMPLES": 16, "LOSS": loss}
        for loss in ("hinge", "logistic")
    },
    "fp64": {
        **TASK,
        "PRECISION": "fp64",
        "OPTIMIZER": "muon",
        "LR_SCHEDULE": "cosine",
        "GRAD_CLIP_NORM": 0.3,
        "METRICS": ["r2"],
    },
    "epochs": {
        "axes": {"LR": [0.02, 0.1], "trial": range(2)},
        "data": arrays(np.eye(20)[:, :6], np.arange(20.0) / 20),
        "batchfn": epochs,
        "N_SAMPLES": 3,
    },
    "a dictionary of grabs": {**TASK, "grabs": {"moments": moments}, "GRAB_EVERY": 5},
    "cross_entropy": {"axes": {"trial": range(3)}, "batchfn": labels, "LOSS": "cross_entropy"}
    | {"D_OUT": 3, "N_SAMPLES": 16, "LR": 1.0},
    "custom model with a buffer": {**TASK, "MODEL": Tanh},
    "dropout": {**TASK, "MODEL": Drawing},
    "convolutions": {"axes": {"LR": [0.05, 0.2]}, "batchfn": images, "MODEL": conv, "N_SAMPLES": 8},
    "uncentred": {**TASK, "CENTERED": False},
    "absolute thresholds": {**TASK, "LOSS_CHECKPOINTS": [0.9, 0.1], "PERCENT_THRESHOLDS": None},
    "thresholds only": {**TASK, "ONLYTHRESHOLDS": True},
    "metrics, at every step": {
        **TASK,
        "METRICS": ["r2", "margin", {"largest": (largest, "min")}],
        "METRIC_THRESHOLDS": {"test_accuracy": [0.7], "train_r2": [0.3], "test_loss": [0.6]},
        "STOP_ON": "train_r2",
    },
    "metrics, now and then": {
        **TASK,
        "METRICS": ["error"],
        "METRIC_THRESHOLDS": {"train_error": [0.3], "test_r2": [0.4]},
        "STOP_ON": "test_r2",
        "ONLINE": False,
        "EVAL_EVERY": 5,
        "RECORD_EVERY": 3,
    },
    "evaluated now and then": {**TASK, "ONLINE": False, "EVAL_EVERY": 5, "RECORD_EVERY": 3},
    "mixed shapes": {**TASK, "axes": {"WIDTH": [4, 8], "DEPTH": [1, 3]}},
    **{
        f"grabs, {mode}": {
            **TASK,
            "grabs": test_grabs_in_training.GRABS,
            "GRAB_EVERY": 5,
            "SAVE_WEIGHTS": 5 if mode == "online" else "final",
            "N_TEST": 32,
            "ONLINE": mode == "online",
        }
        for mode in ("online", "offline")
    },
    # Its step waits for the device at each parameter, which docs/spec.md says; no device is mixed.
    "an optimizer of torch.optim": {**TASK, "OPTIMIZER": "Adagrad", "axes": {"trial": [0]}},
}
#: Grabs whose last bits depend on the memory layout of their matrix.
DECOMPOSING = frozenset({"singular_values", "spectral_norms", "ntk_eigenvalues"})
WAITING = frozenset({"an optimizer of torch.optim"})

#: Cases that are also interrupted, saved, restored on the device, and compared with themselves.
RESUMED = (
    "adam, online",
    "adam, offline",
    "muon",
    "custom model with a buffer",
    "dropout",
    "grabs, online",
    "epochs",
    "metrics, now and then",
)
#: Cases whose state, of a shorter training, is continued to the end.
CONTINUED = ("muon", "metrics, at every step", "epochs", "grabs, online")
#: Cases whose saved networks are measured afterwards.
MEASURED = ("grabs, online", "grabs, offline")

NAMES = (
    *SPECS,
    *(f"{name}, resumed" for name in RESUMED),
    *(f"{name}, continued" for name in CONTINUED),
    *(f"{name}, measured" for name in MEASURED),
)


class Saver(Monitor):
    """Saves once, and ends the training there; or restores that state."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state, self.asked = state, 0

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def due(self, step: int) -> bool:
        self.asked += 1
        return self.state is None and self.asked == 7

    def save(self, state: dict[str, Any]) -> None:
        self.state = state
        raise Interrupted


def stacks(spec: dict[str, Any], device: torch.device) -> list[Any]:
    """Return all configs of a spec in as few packs as possible."""
    sweep = Sweep("gpu", **{k: v for k, v in {**SETTINGS, **spec}.items() if not _axis(k, spec)})
    configs, data, entries = list(sweep), sweep.data or dict, []
    for config in configs:
        with global_rng(data_seed(config.hyperparameters.seed)):
            entry = data(**data_arguments(sweep, config))
        entries.append(map_tensors(entry, lambda tensor: tensor.to(device)))
    return assemble(sweep, configs, entries, device)


def trained(spec: dict[str, Any], device: torch.device, how: str = "") -> list[Trained]:
    """Train all configs of a spec.

    Args:
        how: "resumed" from a saved state, or "continued" from one of a shorter training; or their
            networks are "measured" afterwards.
    """
    if how == "measured":
        return [_measured(stack, stack.train()) for stack in stacks(spec, device)]
    if not how:
        return [stack.train() for stack in stacks(spec, device)]
    saved, shorter = [], {"MAX_ITER": 10} if how == "continued" else {}
    for stack in stacks({**spec, **shorter}, device):
        saver = Saver()
        try:
            stack.train(saver)
        except Interrupted:
            saved.append(saver.state)
    pairs = zip(stacks(spec, device), saved, strict=True)
    return [stack.train(Saver(state)) for stack, state in pairs]


def _measured(stack: Any, made: Trained) -> Trained:
    """Call the grabs on the saved networks; return the results with these in place of theirs."""
    traced = len(made.weights_step) > 0

    def weights(config: int, column: int) -> dict[str, Any]:
        at = (config, column) if traced else config
        return {name: array[at] for name, array in made.weights.items()}

    found = stack.measure(SavedNetworks(made.steps, made.status, weights))
    return dataclasses.replace(made, grabs=found.grabs, grab_step=found.grab_step)


def _axis(setting: str, spec: dict[str, Any]) -> bool:
    """Return whether an axis of the spec has this setting's name."""
    names = [name for axis in spec["axes"] for name in ([axis] if isinstance(axis, str) else axis)]
    return setting in names


def within_steps(waits: Iterable[Any]) -> list[str]:
    """Return the waits in steps other than the first after a start: that checks shapes."""
    return [
        f"{wait.operation} at {wait.places[0]}"
        for wait in waits
        for name, variables in wait.frames
        if name in ("train_step", "_evaluate", "record")
        if variables.get("step", 0) > getattr(variables.get("pack"), "start", 0)
    ]


def differing(ours: list[Trained], others: list[Trained]) -> list[str]:
    """Return the results whose bits differ."""
    found = []
    for one, other in zip(ours, others, strict=True):
        a, b = (dataclasses.asdict(each) for each in (one, other))
        for grabs in (a, b):
            grabs.update(grabs.pop("grabs"), **grabs.pop("weights"), **grabs.pop("metrics"))
            timekeys = grabs.pop("metric_timekeys").items()
            grabs.update({f"timekeys of {name}": values for name, values in timekeys})
        found += [name for name in a if not _same(name, a[name], b[name])]
    return found


def _same(name: str, ours: Any, others: Any) -> bool:
    """Return whether two results are the same: all bits, unless LAPACK gets another layout."""
    if isinstance(ours, dict):
        return bool(ours.keys() == others.keys()) and all(
            _same(key, ours[key], others[key]) for key in ours
        )
    if not isinstance(ours, np.ndarray):
        return bool(ours == others)
    if name in DECOMPOSING:
        return np.allclose(ours, others, rtol=1e-4, atol=1e-6, equal_nan=True)
    return np.array_equal(ours, others, equal_nan=ours.dtype.kind == "f")


def report(name: str) -> dict[str, Any]:
    """Train a case on the CPU and on the simulated GPU, and compare."""
    case, _, how = name.rpartition(", ")
    if how not in ("resumed", "continued", "measured"):
        case, how = name, ""
    spec = SPECS[case]
    expected = trained(spec, torch.device("cpu"), how if how == "measured" else "")
    try:
        with simulated_gpu() as waits:
            got = trained(spec, DEVICE, how)
    except Exception:
        return {"error": traceback.format_exc()}
    return {
        "differing": differing(got, expected),
        "waits": [] if name in WAITING else within_steps(waits),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: report(name) for name in sys.argv[1:] or NAMES}))
