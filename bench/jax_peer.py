"""What a user would write instead of mlpsubmit: ``jit(vmap(scan(step)))`` in JAX, on a CPU.

    python bench/jax_peer.py tune [--only TEXT] [--core N]    the ways to write it, on this machine

The numerics are those of mlpsubmit (mup, centred output, smoothed losses, thresholds that stop a
config, a masked update), which ``peers.py`` checks before anything is timed. This file imports JAX
and numpy alone: it may run under another interpreter than mlpsubmit, and answers one request per
line of JSON (:func:`serve`). A process has one thread on one core.

How fast it is depends on how it is written: see :data:`WAYS`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

# Read when JAX is imported: one thread for products, and one for everything else.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["XLA_FLAGS"] = f"{_ONE_THREAD} {os.environ.get('XLA_FLAGS', '')}"
os.environ.update({"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import Array, lax  # noqa: E402

SMOOTHER = 0.9
BETAS, EPS = (0.9, 0.999), 1e-8

Tree = Any  # a pytree of arrays


@dataclass(frozen=True)
class Case:
    """What is trained: T trials with G values of GAMMA each, which share batches: K = T G configs.

    Attributes:
        network: ``relu`` is the built-in MLP, ``tanh`` a network of the user's.
        d: input dimension.
        samples: in a batch, offline in the training set.
        test_rows: rows of the test set, offline; 0 online.
        every: steps between evaluations of the test set.
    """

    width: int
    steps: int
    trials: int
    thresholds: Sequence[float]
    gammas: Sequence[float] = (1.0,)
    network: str = "relu"
    optimizer: str = "sgd"
    lr: float = 0.01
    d: int = 32
    samples: int = 256
    test_rows: int = 0
    every: int = 1


@dataclass(frozen=True)
class Way:
    """How the same mathematics is written.

    Attributes:
        transposed: weights are stored as (inputs, outputs) instead of (outputs, inputs).
        chunk: trials in a call of the program, one call after another; 0 for all.
        rows: of the test set, evaluated at a time; 0 for all.
        generator: JAX's implementation of random keys.
    """

    transposed: bool = True
    chunk: int = 0
    rows: int = 0
    generator: str = "threefry2x32"


#: Ways that :func:`tune` compares, the fastest first. Model-steps/s of one core of an AMD EPYC (Zen
#: 5) with AVX-512, the largest of five rounds beside other load; a semicolon separates runs:
#:
#: - Width 64: 9,150 with all 16 configs in a call, 8,700 in chunks of 8, 9,050 of 4; 7,900 in those
#:   of 4, 7,400 of 2, 7,000 of 1. Transposed weights: 9,390 instead of 8,810. ``unsafe_rbg`` keys:
#:   6,280; of both kinds of ``rbg`` keys at widths 256 and 1024 the same as of threefry.
#: - Width 256: 1,010 with all, 1,150 in chunks of 8, 1,240 of 4; 1,040 in chunks of 4, 1,060 of 2,
#:   1,020 of 1; with transposed weights 1,070 in chunks of 4, 1,090 of 2.
#: - Width 1024: 55 to 63 in any of these ways.
#: - adam: 875 with all, 1,120 in chunks of 4, 1,160 of 2, 1,110 of 1.
#: - 8 values of GAMMA: 1,380 with all, 1,520 with one trial in a call. As a ``vmap`` over GAMMA in
#:   that over the trials, instead of one over all: 1,270.
#: - Offline, 2 configs in a call: 410; all: 390; with the test set in blocks of 1,000 rows
#:   instead of 500: 388; as a whole: 363.
#: - tanh: 8,600 with all, 8,400 in chunks of 2.
#:
#: No gain, within 2%: no traces of losses, no masks, ``scan`` inside of ``vmap`` (the best of nine
#: rounds; the median is slower). No gain from XLA's flags for oneDNN, XNNPACK and YNNPACK; its
#: flags of vector widths and of fast math could not be told from noise.
WAYS = {
    "many": (Way(), Way(chunk=4), Way(transposed=False), Way(generator="unsafe_rbg")),
    "few": (Way(chunk=2), Way(chunk=4), Way(), Way(transposed=False, chunk=2)),
    "one": (Way(chunk=1), Way(), Way(transposed=False, chunk=1)),
    "rows": (Way(chunk=2, rows=500), Way(rows=500), Way(rows=1000), Way()),
}


def ways(case: Case) -> tuple[Way, ...]:
    """Return the ways to write a case, the fastest first."""
    if case.test_rows:
        return WAYS["rows"]
    if len(case.gammas) > 1:
        return WAYS["one"]
    return WAYS["many"] if case.width <= 64 else WAYS["few"]


# ---- the network ---------------------------------------------------------------------------------


def multipliers(case: Case) -> list[float]:
    """Return the forward multipliers of mup, but for GAMMA."""
    return [math.sqrt(case.width / case.d), 1.0, math.sqrt(1 / case.width)]


def output(case: Case, way: Way, weights: Tree, X: Array) -> Array:
    """Return the outputs (n,) of a network with GAMMA = 1 on inputs (n, d)."""
    signal = X
    for layer, (g, (W, b)) in enumerate(zip(multipliers(case), weights, strict=True)):
        signal = signal @ (W if way.transposed else W.T) + b
        signal = signal if g == 1.0 else g * signal
        if layer < 2:
            relu = case.network == "relu"
            signal = jax.nn.relu(math.sqrt(2) * signal) if relu else jnp.tanh(signal)
    return signal[:, 0]


def initial_weights(case: Case, way: Way, key: Array) -> Tree:
    """Draw weights and biases of mup."""
    sizes, weights = (case.d, case.width, case.width, 1), []
    for layer, (d_in, d_out) in enumerate(pairwise(sizes)):
        shapes = ((d_in, d_out) if way.transposed else (d_out, d_in), (d_out,))
        keys = jax.random.split(jax.random.fold_in(key, layer))
        drawn = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
        weights.append(tuple(one / math.sqrt(case.width) for one in drawn))
    return weights


def outputs_of_rows(case: Case, way: Way, weights: Tree, X: Array) -> Array:
    """Return the outputs (n,) on a large set, some rows at a time."""
    if not way.rows or len(X) % way.rows:
        return output(case, way, weights, X)
    blocks = X.reshape(-1, way.rows, X.shape[-1])
    return lax.map(partial(output, case, way, weights), blocks).reshape(-1)


# ---- the optimizers ------------------------------------------------------------------------------


def learning_rates(case: Case, gamma: Array) -> Tree:
    """Return the learning rate of each parameter."""
    if case.optimizer == "sgd":
        lr = case.lr * jnp.where(gamma >= 1, gamma, gamma**2)
        return [(lr, lr)] * 3
    lr = case.lr * jnp.minimum(1.0, gamma)
    fan_ins = (case.d, case.width, case.width)
    return [(lr / (g * n), lr / g) for g, n in zip(multipliers(case), fan_ins, strict=True)]


def moments(case: Case, weights: Tree) -> Tree:
    """Return the state of the optimizer before the first step."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return () if case.optimizer == "sgd" else (zeros, zeros)


def updated(
    case: Case, gamma: Array, weights: Tree, state: Tree, gradients: Tree, t: Array
) -> tuple[Tree, Tree]:
    """Return weights and state of the optimizer after step t."""
    lrs = learning_rates(case, gamma)
    if case.optimizer == "sgd":
        return jax.tree.map(lambda p, g, lr: p - lr * g, weights, gradients, lrs), state
    (one, two), (read_in, hidden, readout) = BETAS, multipliers(case)
    orders = (read_in / case.width, hidden / case.width, readout)
    epss = [(EPS * order / gamma,) * 2 for order in orders]
    m = jax.tree.map(lambda m, g: one * m + (1 - one) * g, state[0], gradients)
    v = jax.tree.map(lambda v, g: two * v + (1 - two) * g * g, state[1], gradients)
    count = (t + 1).astype(jnp.float32)
    first, root = 1 - one**count, jnp.sqrt(1 - two**count)

    def moved(p: Array, m: Array, v: Array, lr: Array, eps: Array) -> Array:
        return p - lr / first * m / (jnp.sqrt(v) / root + eps)

    return jax.tree.map(moved, weights, m, v, lrs, epss), (m, v)


# ---- one config ----------------------------------------------------------------------------------


def target(X: Array) -> Array:
    """Return the targets (n,) of inputs (n, d)."""
    return X[..., 0] * X[..., 1]


def begin(case: Case, weights: Tree) -> dict[str, Any]:
    """Return the state of a config before its first step."""
    return {
        "weights": weights,
        "moments": moments(case, weights),
        "train_loss": jnp.zeros(()),
        "test_loss": jnp.zeros(()),
        "active": jnp.ones((), bool),
        "steps": jnp.zeros((), jnp.int32),
        "evaluated_at": jnp.zeros((), jnp.int32),
        "timekeys": jnp.full((len(case.thresholds),), -1, jnp.int32),
    }


def step(
    case: Case, way: Way, state: dict[str, Any], gamma: Array, X: Array, initial: Array, t: Array
) -> dict[str, Any]:
    """Make step t of a config that has not stopped.

    Args:
        X: the batch (n, d).
        initial: (n,), the outputs with GAMMA = 1 of the network at initialisation.
    """

    def loss_of(weights: Tree) -> Array:
        centred = (output(case, way, weights, X) - initial) / gamma
        return jnp.mean((centred - target(X)) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(state["weights"])
    smoothed = jnp.where(t == 0, loss, SMOOTHER * state["train_loss"] + (1 - SMOOTHER) * loss)
    smoothed = jnp.where(state["active"], smoothed, state["train_loss"])
    made = state["active"] & jnp.isfinite(smoothed)
    below = smoothed < jnp.array(case.thresholds, jnp.float32)
    timekeys = jnp.where(below & made & (state["timekeys"] < 0), t, state["timekeys"])
    kept = (state["weights"], state["moments"])
    moved = updated(case, gamma, *kept, gradients, t)
    weights, moments = jax.tree.map(partial(jnp.where, made), moved, kept)
    return {
        **state,
        "weights": weights,
        "moments": moments,
        "train_loss": smoothed,
        "active": made & (timekeys[-1] < 0),
        "steps": state["steps"] + made,
        "timekeys": timekeys,
    }


def evaluate(
    case: Case, way: Way, state: dict[str, Any], gamma: Array, X: Array, initial: Array
) -> dict[str, Any]:
    """Smooth the test loss of a config: it counts for all steps since the last evaluation."""
    outputs = outputs_of_rows(case, way, state["weights"], X)
    loss = jnp.mean(((outputs - initial) / gamma - target(X)) ** 2)
    share = SMOOTHER ** (state["steps"] - state["evaluated_at"]).astype(jnp.float32)
    smoothed = share * state["test_loss"] + (1 - share) * loss
    smoothed = jnp.where(state["evaluated_at"] == 0, loss, smoothed)
    return {**state, "test_loss": smoothed, "evaluated_at": state["steps"]}


# ---- a training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Where inputs come from.

    Attributes:
        train: of a source and a step, batches (T, n, d).
        test: of a source, test sets (T, n, d).
    """

    train: Callable[[Tree, Array], Array]
    test: Callable[[Tree], Array]


def train(case: Case, way: Way, weights: Tree, source: Tree, draws: Draws) -> tuple[Tree, Array]:
    """Train K configs; return their states, and their smoothed losses (steps, K).

    Args:
        weights: initial weights, each (T, ...).
        source: what ``draws`` take.
    """
    trials, count = weights[0][0].shape[0], len(case.gammas)
    gammas = jnp.tile(jnp.array(case.gammas, jnp.float32), trials)
    per_config = partial(jnp.repeat, repeats=count, axis=0) if count > 1 else lambda a: a
    outputs = jax.vmap(partial(output, case, way))
    every_step = jax.vmap(partial(step, case, way), in_axes=(0, 0, 0, 0, None))
    every_test = jax.vmap(partial(evaluate, case, way))
    fixed: tuple[Array, Array] | None = None
    if case.test_rows:  # offline: both sets, and f0 on them, are always the same
        X, X_test = draws.train(source, jnp.zeros((), jnp.int32)), draws.test(source)
        fixed = (per_config(X), per_config(outputs(weights, X)))
        test_outputs = jax.vmap(partial(outputs_of_rows, case, way))(weights, X_test)
        test = (per_config(X_test), per_config(test_outputs))

    def body(states: Tree, t: Array) -> tuple[Tree, Array]:
        batch = fixed
        if batch is None:
            X = draws.train(source, t)
            batch = (per_config(X), per_config(outputs(weights, X)))
        states = every_step(states, gammas, *batch, t)
        return states, states["train_loss"]

    def block(states: Tree, steps: Array) -> tuple[Tree, Array]:
        states, losses = lax.scan(body, states, steps)
        return every_test(states, gammas, *test), losses

    states = jax.vmap(partial(begin, case))(jax.tree.map(per_config, weights))
    if fixed is None:
        return lax.scan(body, states, jnp.arange(case.steps))
    traces = []
    for steps in evaluated_blocks(case):
        states, losses = lax.scan(block, states, steps)
        traces.append(losses.reshape(-1, *losses.shape[2:]))
    return states, jnp.concatenate(traces)


def evaluated_blocks(case: Case) -> Iterator[Array]:
    """Yield steps (B, n): the test set is evaluated after each of B blocks of n steps.

    That is after step 0, then every so many steps, and after the last one.
    """
    yield jnp.arange(1)[None]
    whole, rest = divmod(case.steps - 1, case.every)
    if whole:
        yield 1 + jnp.arange(whole * case.every).reshape(whole, case.every)
    if rest:
        yield case.steps - rest + jnp.arange(rest)[None]


# ---- programs ------------------------------------------------------------------------------------


def gaussian(case: Case) -> Draws:
    """Return draws of Gaussian inputs from keys, one per trial: fresh ones at every step."""

    def draw(keys: Array, t: Array | int, rows: int) -> Array:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), (rows, case.d)))(keys)

    return Draws(
        train=lambda keys, t: draw(keys, t, case.samples),
        test=lambda keys: draw(keys, case.steps, case.test_rows),
    )


def timed_program(case: Case, way: Way) -> Callable[[], float]:
    """Compile a training from drawn weights; return a function that runs it, and its seconds."""

    def whole(keys: Array) -> Tree:
        weights = jax.vmap(partial(initial_weights, case, way))(keys)
        return train(case, way, weights, keys, gaussian(case))[0]

    keys = jax.random.split(jax.random.key(0, impl=way.generator), case.trials)
    size = way.chunk or case.trials
    parts = [keys[i : i + size] for i in range(0, case.trials, size)]
    compiled = {len(part): jax.jit(whole).lower(part).compile() for part in parts}

    def run() -> float:
        begun, made = time.perf_counter(), case.steps
        for part in parts:
            states = jax.block_until_ready(compiled[len(part)](part))
            made = min(made, int(states["steps"].min()))
        seconds = time.perf_counter() - begun
        if made < case.steps:
            raise RuntimeError(f"{case}: a config has stopped after {made} steps")
        return seconds

    return run


def checked(case: Case, way: Way, file: str, out: str) -> None:
    """Train from the weights and on the batches in a file; write losses, steps and timekeys."""
    with np.load(file) as arrays:
        content = {name: jnp.asarray(arrays[name]) for name in arrays.files}
    weights = [
        (content[f"W{i}"].mT if way.transposed else content[f"W{i}"], content[f"b{i}"])
        for i in range(3)
    ]
    draws = Draws(train=lambda arrays, t: arrays["X"][t], test=lambda arrays: arrays["X_test"])
    inputs = {name: content[name] for name in ("X", "X_test") if name in content}
    training = jax.jit(lambda weights, inputs: train(case, way, weights, inputs, draws))
    states, traces = training(weights, inputs)
    found = {name: states[name] for name in ("train_loss", "test_loss", "steps", "timekeys")}
    np.savez(out, trace=np.asarray(traces).T, **found)


def product_rate(n: int = 1024, seconds: float = 0.3) -> float:
    """Return the FLOPs per second of products of n x n matrices."""
    A = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(jnp.matmul).lower(A, A).compile()
    product(A, A).block_until_ready()
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        product(A, A).block_until_ready()
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - begun)


# ---- requests ------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests from the standard input, a line of JSON each, until it ends.

    ``prepare`` compiles a case in the fastest way and with all configs in one vmap, ``run`` runs
    the one of that name and way and answers with its seconds,
    ``check`` trains on given batches, ``product`` measures products, ``version`` names JAX.
    """
    programs: dict[tuple[str, bool], Callable[[], float]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        kind, name = request["request"], request.get("name", "")
        case = Case(**request["case"]) if "case" in request else None
        answer: dict[str, Any] = {}
        if kind == "prepare" and case is not None:
            fastest = timed_program(case, ways(case)[0])
            as_it_is = fastest if ways(case)[0] == Way() else timed_program(case, Way())
            programs |= {(name, False): fastest, (name, True): as_it_is}
        elif kind == "check" and case is not None:
            checked(case, ways(case)[0], request["file"], request["out"])
        elif kind == "run":
            answer["seconds"] = programs[name, request["one_vmap"]]()
        elif kind == "product":
            answer["rate"] = product_rate()
        elif kind == "version":
            answer["version"] = jax.__version__
        print(json.dumps(answer), flush=True)


def tune(cases: Mapping[str, Case], rounds: int = 5) -> None:
    """Compare the ways to write each case: the median and the largest speed of some rounds."""
    for name, case in cases.items():
        programs = {way: timed_program(case, way) for way in ways(case)}
        for program in programs.values():
            program()
        speeds: dict[Way, list[float]] = {way: [] for way in programs}
        made = case.trials * len(case.gammas) * case.steps
        for _ in range(rounds):
            for way, program in programs.items():
                speeds[way].append(made / program())
        for way, found in speeds.items():
            print(f"{name:<10}{statistics.median(found):>8,.0f}{max(found):>8,.0f}  {way}")


#: Thresholds that no training reaches.
_NEVER = (1e-4, 1e-5)

TUNED = {
    "64": Case(64, 800, 16, _NEVER),
    "256": Case(256, 80, 16, _NEVER),
    "1024": Case(1024, 8, 16, _NEVER),
    "gamma": Case(256, 100, 2, _NEVER, gammas=[0.5 * 1.5**i for i in range(8)]),
    "adam": Case(256, 60, 16, _NEVER, optimizer="adam"),
    "offline": Case(256, 100, 4, _NEVER, samples=1024, test_rows=10_000, every=100),
    "tanh": Case(64, 500, 16, _NEVER, network="tanh"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=("serve", "tune"))
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--core", type=int, help="the core to run on")
    options = parser.parse_args(arguments)
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    if options.command == "serve":
        serve()
    else:
        tune({name: case for name, case in TUNED.items() if options.only in name})


if __name__ == "__main__":
    main()
