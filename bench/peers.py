"""Processes that train the same in JAX, and the proof that it is the same.

Before anything is timed, :func:`check` trains with mlpsubmit and in JAX, from the same weights on
the same batches: losses and the steps of thresholds should be equal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.errors import UserError
from mlpsubmit.protocol import BatchFn
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import streams, train
from mlpsubmit.training.parametrizations import parametrize
from mlpsubmit.training.result import Trained

__all__ = ["Peers", "Problem", "check", "jax_python"]

PEER = Path(__file__).with_name("jax_peer.py")

#: Steps of a check; the trainings differ by at most this share of a loss.
STEPS, TOLERANCE = 24, 1e-5


@dataclass(frozen=True)
class Problem:
    """What both train: T trials with G values of GAMMA each, which share batches.

    Attributes:
        network: constructs the model.
        settings: hyperparameters, besides those that follow from the rest.
        batch_fn: from samples and a generator to a batch function.
        test_rows: rows of the test set, offline; 0 online.
    """

    network: Callable[[], nn.Module]
    settings: Mapping[str, Any]
    batch_fn: Callable[[int, torch.Generator], BatchFn]
    width: int
    trials: int
    steps: int
    gammas: Sequence[float] = (1.0,)
    samples: int = 256
    test_rows: int = 0
    every: int = 1
    kind: str = "relu"
    thresholds: Sequence[float] = field(default_factory=tuple)

    def for_jax(self) -> dict[str, Any]:
        """Return it as ``jax_peer.Case`` takes it."""
        same = ("width", "steps", "trials", "gammas", "samples", "test_rows", "every", "thresholds")
        return {
            **{name: getattr(self, name) for name in same},
            "network": self.kind,
            "optimizer": self.settings.get("OPTIMIZER", "sgd"),
            "lr": self.settings["LR"],
        }


def _file() -> IO[str]:
    return tempfile.TemporaryFile("w+")


def jax_python(given: str | None) -> str | None:
    """Return the interpreter that imports JAX: the given one, or this; None if this does not.

    Raises:
        UserError: for a given one that does not.
    """
    if given is None:
        return sys.executable if importlib.util.find_spec("jax") else None
    try:
        done = subprocess.run([given, "-c", "import jax"], capture_output=True, text=True)
        why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
    except OSError as error:
        why = str(error)
    if why:
        raise UserError(
            f"--jax-python: got {given}, which does not import jax ({why}); give an interpreter "
            "that does, or none: make bench installs jax beside mlpsubmit"
        )
    return given


class Peers:
    """Processes of ``jax_peer.py``, each of one thread on a core of its own.

    Args:
        python: an interpreter that imports JAX.
        count: of processes.

    Attributes:
        version: of JAX.
    """

    def __init__(self, python: str, count: int) -> None:
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        cores = [[f"--core={allowed[i % len(allowed)]}"] if allowed else [] for i in range(count)]
        self._files = contextlib.ExitStack()
        self._errors = [self._files.enter_context(_file()) for _ in range(count)]
        self._processes = [
            subprocess.Popen(
                [python, str(PEER), "serve", *core],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for core, errors in zip(cores, self._errors, strict=True)
        ]
        self._pool = ThreadPoolExecutor(len(self._processes))
        self.version: str = self.ask({"request": "version"})[0]["version"]

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:  # which closes its pipes
                pass
        self._pool.shutdown()
        self._files.close()

    def __len__(self) -> int:
        return len(self._processes)

    def ask(self, request: Mapping[str, Any], first: bool = False) -> list[dict[str, Any]]:
        """Send a request to all at the same time, or to the first alone; return the answers."""
        numbers = range(1 if first else len(self))
        return list(self._pool.map(lambda number: self._ask(number, request), numbers))

    def _ask(self, number: int, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._errors[number].seek(0)
            told = self._errors[number].read().strip()[-2000:]
            raise SystemExit(f"the process of JAX ended at {request['request']!r}:\n{told}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def prepare(self, name: str, problem: Problem) -> None:
        """Compile a problem, of which each process trains its share of the trials."""
        own = replace(problem, trials=problem.trials // len(self))
        self.ask({"request": "prepare", "name": name, "case": own.for_jax()})

    def speed(self, name: str, problem: Problem, one_vmap: bool = False) -> float:
        """Return the model-steps per second of all, by the seconds of the slowest.

        Args:
            one_vmap: whether all configs of a process are in one call, or as many as is fastest.
        """
        request = {"request": "run", "name": name, "one_vmap": one_vmap}
        slowest = max(answer["seconds"] for answer in self.ask(request))
        configs = problem.trials // len(self) * len(self) * len(problem.gammas)
        return configs * problem.steps / slowest

    def product_rate(self) -> float:
        """Return the FLOPs per second of large products in all of them together."""
        return float(sum(answer["rate"] for answer in self.ask({"request": "product"})))


# ---- the same numerics ---------------------------------------------------------------------------


def check(peers: Peers, name: str, problem: Problem) -> float:
    """Return the largest relative difference of losses, of mlpsubmit and JAX.

    The thresholds are between the losses of a first training, so that some configs stop early.

    Raises:
        SystemExit: if losses differ, or the steps at which thresholds are crossed.
    """
    problem = replace(
        problem,
        steps=STEPS,
        trials=4 if len(problem.gammas) == 1 else 2,
        every=min(problem.every, 9),
        test_rows=min(problem.test_rows, 1000),
    )
    X, X_test = _inputs(problem)
    losses = _ours(problem, X, X_test).train_loss
    problem = replace(problem, thresholds=_between(losses))
    ours = _ours(problem, X, X_test)
    with tempfile.TemporaryDirectory() as folder:
        file, out = f"{folder}/given.npz", f"{folder}/found.npz"
        given = {"X": X} if X_test is None else {"X": X, "X_test": X_test}
        np.savez(file, **given, **_initial_weights(problem))
        case = problem.for_jax()
        peers.ask({"request": "check", "case": case, "file": file, "out": out}, first=True)
        with np.load(out) as found:
            theirs = dict(found)
    return compare(name, ours, theirs)


def compare(name: str, ours: Trained, theirs: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Return the largest relative difference of losses; raise where trainings are not the same."""
    steps = (ours.steps, ours.timekeys), (theirs["steps"], theirs["timekeys"])
    for what, own, other in zip(("steps made", "steps of thresholds"), *steps, strict=True):
        if not np.array_equal(own, other):
            raise SystemExit(f"{name}: {what} are {own.tolist()}, in JAX {other.tolist()}")
    if not 0 < (ours.timekeys[:, -1] >= 0).sum() < len(ours.steps):
        raise SystemExit(f"{name}: a check needs configs that stop and others that do not")
    pairs = {"train losses": (ours.train_loss, theirs["trace"])}
    if np.isfinite(ours.test_loss).all() and ours.test_loss.size:
        pairs["test losses"] = (ours.test_loss[:, -1], theirs["test_loss"])
    worst = 0.0
    for what, (own, other) in pairs.items():
        difference = float(np.max(np.abs(other - own) / np.abs(own)))
        if not difference < TOLERANCE:
            raise SystemExit(
                f"{name}: {what} differ from those of JAX by {difference:.1e}, and should by at "
                f"most {TOLERANCE:g}: they do not train the same, so nothing is timed"
            )
        worst = max(worst, difference)
    return worst


def _inputs(problem: Problem) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Draw batches (S, T, n, d), offline one for all steps, and test sets (T, n, d)."""
    generators = [torch.Generator().manual_seed(trial) for trial in range(problem.trials)]
    drawn = [problem.batch_fn(problem.samples, generator) for generator in generators]
    count = 1 if problem.test_rows else problem.steps
    X = torch.stack([torch.stack([draw(step)[0] for draw in drawn]) for step in range(count)])
    if not problem.test_rows:
        return X.numpy(), None
    tests = [problem.batch_fn(problem.test_rows, generator)(0)[0] for generator in generators]
    return X.numpy(), torch.stack(tests).numpy()


def _initial_weights(problem: Problem) -> dict[str, np.ndarray[Any, Any]]:
    """Return weights W0, W1, ... and biases b0, b1, ... as they are at first, each (T, ...)."""
    layers: dict[str, list[Tensor]] = {}
    for trial in range(problem.trials):
        model, seeds = problem.network(), streams(42, trial)
        parametrize(model, "mup", generator=torch.Generator().manual_seed(seeds.weights))
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for i, layer in enumerate(linear):
            layers.setdefault(f"W{i}", []).append(layer.weight.detach())
            layers.setdefault(f"b{i}", []).append(layer.bias.detach())
    return {name: torch.stack(tensors).numpy() for name, tensors in layers.items()}


def _ours(
    problem: Problem, X: np.ndarray[Any, Any], X_test: np.ndarray[Any, Any] | None
) -> Trained:
    """Train with mlpsubmit on given inputs, and keep the losses of all steps."""
    common = {
        **problem.settings,
        "MAX_ITER": problem.steps,
        "WIDTH": problem.width,
        "LOSS_CHECKPOINTS": list(problem.thresholds),
        "ONLYTHRESHOLDS": False,
        "ONLINE": not problem.test_rows,
        "N_SAMPLES": problem.samples,
        "SEED": 42,
        **({"EVAL_EVERY": problem.every} if problem.test_rows else {}),
    }
    trials = [trial for trial in range(problem.trials) for _ in problem.gammas]
    given = [_given(X[:, trial]) for trial in range(problem.trials)]
    tests = None if X_test is None else [_given(one[None]) for one in X_test]
    return train(
        [problem.network() for _ in trials],
        [given[trial] for trial in trials],
        [validate({**common, "GAMMA": gamma}) for _ in given for gamma in problem.gammas],
        trials=trials,
        test_fns=None if tests is None else [tests[trial] for trial in trials],
    )


def _given(inputs: np.ndarray[Any, Any]) -> BatchFn:
    """Return a batch function of given inputs (S, n, d)."""
    X = torch.from_numpy(inputs)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        return X[step], X[step, :, 0] * X[step, :, 1]

    return batch_fn


def _between(losses: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return two thresholds far from all losses (K, S); some configs cross the second one."""
    lowest, values = losses.min(axis=1), np.sort(losses.ravel())
    middle = (values[1:] + values[:-1]) / 2
    gaps = (values[1:] - values[:-1]) / middle
    ranges = ((lowest.min(), lowest.max()), (lowest.max(), values[-1]))
    last, first = (
        float(middle[inside][gaps[inside].argmax()])
        for inside in ((middle > low) & (middle < high) for low, high in ranges)
    )
    return first, last
