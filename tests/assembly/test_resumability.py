"""Functions that keep state: a resumed training is undisturbed, or they are refused at launch.

The independent route: 40 steps at once, against 32 and, with everything made anew, 8 more.
"""

from __future__ import annotations

import collections
import functools
import io
import itertools
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit import SpecError, Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.held_state import difference, held
from mlpsubmit.assembly.probe import probe
from mlpsubmit.training import Interrupted, Monitor
from mlpsubmit.training.guard import WriteError

STEPS, SAVED = 40, 32
DATA = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))


class Saver(Monitor):
    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state, self.steps = state, 0

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def due(self, step: int) -> bool:
        self.steps += 1
        return self.state is None and self.steps == SAVED

    def save(self, state: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(state, stream)
        stream.seek(0)
        self.state = torch.load(stream, weights_only=True)
        raise Interrupted


def sweep_of(**settings: Any) -> Sweep:
    fixed: dict[str, Any] = {"WIDTH": 8, "N_SAMPLES": 8, "N_TEST": 8, "MAX_ITER": STEPS, "LR": 0.05}
    fixed |= {"batchfn": independent, "LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False}
    return Sweep("stateful", {}, **{**fixed, **settings})


def trained(sweep: Sweep, monitor: Monitor | None) -> Any:
    COUNTS.clear()  # as a process of its own has it
    torch.manual_seed(0)
    (stack,) = assemble(sweep, [sweep.config(0)], [{}], torch.device("cpu"))
    result = stack.train(monitor)
    weights = [tensor.clone() for tensor in stack.models[0].state_dict().values()]
    return [
        torch.from_numpy(result.train_loss),
        *map(torch.tensor, result.grabs.values()),
        *weights,
    ]


def resumes_equal(sweep: Sweep) -> bool:
    """Return whether a training that is interrupted equals one that is not."""
    undisturbed, saver = trained(sweep, None), Saver()
    with pytest.raises(Interrupted):
        trained(sweep, saver)
    try:
        resumed = trained(sweep, Saver(saver.state))
    except Exception:
        return False
    return all(torch.equal(one, other) for one, other in zip(undisturbed, resumed, strict=True))


# ---- batch functions -----------------------------------------------------------------------------

COUNTS: collections.Counter[str] = collections.Counter()


def pair(X: Tensor) -> tuple[Tensor, Tensor]:
    return X, X[:, 0] * X[:, 1]


def independent(bsz: int, gen: torch.Generator) -> Any:
    return lambda step: pair(torch.randn(bsz, 3, generator=gen))


def of_the_step(bsz: int, gen: torch.Generator) -> Any:
    return lambda step: pair(torch.randn(bsz, 3, generator=gen) * (1 if step < 20 else 2))


def numpy_of_the_step(bsz: int) -> Any:
    return lambda step: pair(torch.from_numpy(np.random.RandomState(step).randn(bsz, 3)))


def seeded_epochs(bsz: int, gen: torch.Generator) -> Any:
    order: dict[str, Any] = {"epoch": -1}

    def batch_fn(step: int) -> Any:
        epoch, i = divmod(step, len(DATA) // bsz)
        if order["epoch"] != epoch:
            seeded = torch.Generator().manual_seed(gen.initial_seed() + epoch)
            order.update(epoch=epoch, rows=torch.randperm(len(DATA), generator=seeded))
        return pair(DATA[order["rows"][i * bsz : (i + 1) * bsz]])

    return batch_fn


def cached_epochs(bsz: int) -> Any:
    @functools.lru_cache(maxsize=2)
    def rows(epoch: int) -> Tensor:
        return torch.randperm(len(DATA), generator=torch.Generator().manual_seed(epoch))

    def batch_fn(step: int) -> Any:
        epoch, i = divmod(step, len(DATA) // bsz)
        return pair(DATA[rows(epoch)[i * bsz : (i + 1) * bsz]])

    return batch_fn


def remembered(bsz: int, gen: torch.Generator) -> Any:
    scales: dict[int, float] = {}

    def batch_fn(step: int) -> Any:
        scale = scales.setdefault(step, 1 + step / 100)
        return pair(scale * torch.randn(bsz, 3, generator=gen))

    return batch_fn


def lazy_constant(bsz: int, gen: torch.Generator) -> Any:
    basis = None

    def batch_fn(step: int) -> Any:
        nonlocal basis
        if basis is None:
            basis = torch.randn(3, 3, generator=gen)
        return pair(torch.randn(bsz, 3, generator=gen) @ basis)

    return batch_fn


class Precomputed:
    def __init__(self, bsz: int, gen: torch.Generator) -> None:
        self.pool = torch.randn(100, 3, generator=gen)
        self.bsz, self.gen = bsz, gen

    def __call__(self, step: int) -> Any:
        return pair(self.pool[torch.randint(100, (self.bsz,), generator=self.gen)])


class NotesTheStep:
    def __init__(self, bsz: int, gen: torch.Generator) -> None:
        self.bsz, self.gen, self.step = bsz, gen, 0

    def __call__(self, step: int) -> Any:
        self.step = step
        return pair((1 + self.step / 50) * torch.randn(self.bsz, 3, generator=self.gen))


class CountsCalls:
    def __init__(self, bsz: int, gen: torch.Generator) -> None:
        self.bsz, self.gen, self.calls = bsz, gen, 0

    def __call__(self, step: int) -> Any:
        self.calls += 1
        scale = 1 if self.calls < 35 else 2
        return pair(scale * torch.randn(self.bsz, 3, generator=self.gen))


def shuffled_epochs(bsz: int, gen: torch.Generator) -> Any:
    order = torch.arange(0)

    def batch_fn(step: int) -> Any:
        nonlocal order
        i = step % (len(DATA) // bsz)
        if i == 0:
            order = torch.randperm(len(DATA), generator=gen)
        return pair(DATA[order[i * bsz : (i + 1) * bsz]])

    return batch_fn


def shuffled_at_a_start(bsz: int, gen: torch.Generator) -> Any:
    order = torch.arange(0)

    def batch_fn(step: int) -> Any:
        nonlocal order
        start = step * bsz % len(DATA)
        if start == 0:
            order = torch.randperm(len(DATA), generator=gen)
        return pair(DATA[order[start : start + bsz]])

    return batch_fn


def cached_draws(bsz: int, gen: torch.Generator) -> Any:
    rows = functools.cache(lambda epoch: torch.randperm(len(DATA), generator=gen))

    def batch_fn(step: int) -> Any:
        epoch, i = divmod(step, len(DATA) // bsz)
        return pair(DATA[rows(epoch)[i * bsz : (i + 1) * bsz]])

    return batch_fn


def changed_at_a_step(bsz: int, gen: torch.Generator) -> Any:
    held: list[Tensor] = [torch.ones(3)]

    def batch_fn(step: int) -> Any:
        if step == 20:
            held[0] = torch.randn(3, generator=gen)
        return pair(held[0] * torch.randn(bsz, 3, generator=gen))

    return batch_fn


def changed_at_milestones(bsz: int, gen: torch.Generator) -> Any:
    scale = 1.0

    def batch_fn(step: int) -> Any:
        nonlocal scale
        if step in {20, 30}:
            scale *= 0.5
        return pair(scale * torch.randn(bsz, 3, generator=gen))

    return batch_fn


class ChangedAtAnOffset:
    def __init__(self, bsz: int, gen: torch.Generator) -> None:
        self.bsz, self.gen, self.offset, self.scale = bsz, gen, 7, 1.0

    def __call__(self, step: int) -> Any:
        if step % 10 == self.offset:
            self.scale *= 0.5
        return pair(self.scale * torch.randn(self.bsz, 3, generator=self.gen))


def over_a_list(bsz: int) -> Any:
    parts = iter(torch.randn(100, bsz, 3, generator=torch.Generator().manual_seed(0)))
    return lambda step: pair(next(parts))


def in_a_cycle(bsz: int) -> Any:
    parts = itertools.cycle(torch.randn(7, bsz, 3, generator=torch.Generator().manual_seed(0)))
    return lambda step: pair(next(parts))


def in_turns(bsz: int) -> Any:
    parts = itertools.cycle(torch.randn(2, bsz, 3, generator=torch.Generator().manual_seed(0)))
    return lambda step: pair(next(parts))


#: One for all batch functions.
TURNS = itertools.cycle([1.0, 2.0])


def in_global_turns(bsz: int, gen: torch.Generator) -> Any:
    return lambda step: pair(next(TURNS) * torch.randn(bsz, 3, generator=gen))


def from_a_generator(bsz: int, gen: torch.Generator) -> Any:
    def batches() -> Iterator[Tensor]:
        scale = 1.0
        while True:
            yield scale * torch.randn(bsz, 3, generator=gen)
            scale *= 1.01

    parts = batches()
    return lambda step: pair(next(parts))


def numpy_generator(bsz: int) -> Any:
    rng = np.random.default_rng(0)
    return lambda step: pair(torch.from_numpy(rng.standard_normal((bsz, 3))))


def numpy_random_state(bsz: int) -> Any:
    rng = np.random.RandomState(0)
    return lambda step: pair(torch.from_numpy(rng.randn(bsz, 3)))


def python_random(bsz: int) -> Any:
    rng = random.Random(0)
    return lambda step: pair(torch.tensor([[rng.random()] * 3] * bsz))


def own_torch_generator(bsz: int) -> Any:
    own = torch.Generator().manual_seed(0)
    return lambda step: pair(torch.randn(bsz, 3, generator=own))


def default_argument(bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int, seen: list[int] = []) -> Any:  # noqa: B006
        seen.append(step)
        return pair((1 + len(seen) / 50) * torch.randn(bsz, 3, generator=gen))

    return batch_fn


def global_counter(bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int) -> Any:
        COUNTS["calls"] += 1
        return pair((1 + COUNTS["calls"] / 50) * torch.randn(bsz, 3, generator=gen))

    return batch_fn


def function_attribute(bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int) -> Any:
        batch_fn.calls += 1  # type: ignore[attr-defined]
        return pair(torch.randn(bsz, 3, generator=gen) * batch_fn.calls)  # type: ignore[attr-defined]

    batch_fn.calls = 0  # type: ignore[attr-defined]
    return batch_fn


def recent(bsz: int, gen: torch.Generator) -> Any:
    last: collections.deque[Tensor] = collections.deque([torch.zeros(bsz, 3)], maxlen=2)

    def batch_fn(step: int) -> Any:
        last.append(torch.randn(bsz, 3, generator=gen))
        return pair(0.5 * (last[0] + last[1]))

    return batch_fn


def loader(bsz: int, gen: torch.Generator) -> Any:
    from torch.utils.data import DataLoader

    made = DataLoader(DATA, batch_size=bsz, shuffle=True, generator=gen)  # type: ignore[arg-type]
    parts = itertools.chain.from_iterable(itertools.repeat(made))
    return lambda step: pair(next(parts))


GLOBAL = {
    "torch": lambda bsz: lambda step: pair(torch.randn(bsz, 3)),
    "numpy": lambda bsz: lambda step: pair(torch.from_numpy(np.random.randn(bsz, 3))),
    "random": lambda bsz: lambda step: pair(torch.full((bsz, 3), random.random())),
}

BATCHES_ACCEPTED = [
    *(independent, of_the_step, numpy_of_the_step, seeded_epochs, cached_epochs, remembered),
    *(lazy_constant, Precomputed, NotesTheStep),
]
BATCHES_REFUSED = {
    CountsCalls: "batchfn CountsCalls: its attribute 'calls' changes",
    shuffled_epochs: r"batchfn shuffled_epochs: batch_fn\(7\) depends .* \(its variable 'order'\)",
    shuffled_at_a_start: r"batch_fn\(7\) depends on more than step and gen \(its variable 'order'",
    cached_draws: r"batchfn cached_draws: batch_fn\(7\) depends on more than step and gen",
    changed_at_a_step: r"batch_fn\(21\) depends on more than step and gen \(its variable 'held'\[0",
    changed_at_milestones: r"batch_fn\(21\) depends .* its variable 'scale'|\(its variable 'scale'",
    ChangedAtAnOffset: r"batchfn ChangedAtAnOffset: batch_fn\(8\) depends .*scale",
    over_a_list: "batchfn over_a_list: .*its variable 'parts'",
    in_a_cycle: "batchfn in_a_cycle: ",
    in_turns: "batchfn in_turns: ",
    in_global_turns: "batchfn in_global_turns: ",
    from_a_generator: "batchfn from_a_generator: .*its variable 'parts' its variable 'scale'",
    numpy_generator: "batchfn numpy_generator: .*its variable 'rng'",
    numpy_random_state: "batchfn numpy_random_state: .*its variable 'rng'",
    python_random: "batchfn python_random: .*its variable 'rng'",
    own_torch_generator: "batchfn own_torch_generator: .*its variable 'own'",
    default_argument: "batchfn default_argument: .*the default of its argument 'seen'",
    global_counter: r"the global 'COUNTS'\['calls'\]",
    function_attribute: "batchfn function_attribute: .*calls",
    recent: "batchfn recent: .*its variable 'last'",
    loader: "batchfn loader: ",
}


@pytest.mark.parametrize("batchfn", BATCHES_ACCEPTED, ids=lambda f: f.__name__)
def test_batch_functions_of_step_and_gen_resume_undisturbed(batchfn: Any) -> None:
    sweep = sweep_of(batchfn=batchfn)
    probe(sweep)
    assert resumes_equal(sweep)


@pytest.mark.parametrize("batchfn", BATCHES_REFUSED, ids=lambda f: f.__name__)
def test_batch_functions_that_keep_state_are_refused(batchfn: Any) -> None:
    sweep = sweep_of(batchfn=batchfn)
    with pytest.raises(SpecError, match=BATCHES_REFUSED[batchfn]) as caught:
        probe(sweep)
    assert "compute it from step, and draw from gen" in str(caught.value)
    assert not resumes_equal(sweep)


@pytest.mark.parametrize("name", GLOBAL)
def test_global_generators_are_no_source_of_batches(name: str) -> None:
    with pytest.raises(SpecError, match=f"draws from the global generator of {name}, whose state"):
        probe(sweep_of(batchfn=GLOBAL[name]))
    probe(sweep_of(batchfn=independent))


# ---- optimizers ----------------------------------------------------------------------------------


class Warm(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.t, self.base = 0, [group["lr"] for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        for group, base in zip(self.param_groups, self.base, strict=True):
            group["lr"] = base * min(1, (self.t + 1) / 36)
        self.t += 1
        return super().step(closure)


class WarmSaved(Warm):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "t": self.t}

    def load_state_dict(self, state: Any) -> None:
        self.t = state.pop("t")
        super().load_state_dict(state)


class WarmInGroups(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["t"] = group.get("t", 0) + 1
            group["lr"] = 0.1 * min(1, group["t"] / 36)
        return super().step(closure)


class Scheduled(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self, 50)

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if hasattr(self, "schedule"):
            self.schedule.step()
        return result


class ScheduledSaved(Scheduled):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self.schedule.load_state_dict(state.pop("schedule"))
        super().load_state_dict(state)


class Update(torch.optim.Optimizer):
    """p -= lr times what a subclass makes of the gradient."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(group["lr"] * self.update(p, p.grad))

    def update(self, p: Any, g: Tensor) -> Tensor:
        raise NotImplementedError


class InState(Update):
    def update(self, p: Any, g: Tensor) -> Tensor:
        state = self.state[p]
        state["m"] = 0.9 * state.get("m", 0.0) + g
        state["n"] = state.get("n", 0) + 1
        return state["m"] / state["n"]


class OnParameters(Update):
    def update(self, p: Any, g: Tensor) -> Tensor:
        p.momentum = 0.9 * getattr(p, "momentum", 0.0) + g
        return p.momentum


class ById(Update):
    def update(self, p: Any, g: Tensor) -> Tensor:
        moments: dict[int, Any] = vars(self).setdefault("moments", {})
        moments[id(p)] = 0.9 * moments.get(id(p), 0.0) + g
        return moments[id(p)]


class InClass(Update):
    steps = 0

    def update(self, p: Any, g: Tensor) -> Tensor:
        InClass.steps += 1
        return g / InClass.steps


class InDoublePrecision(Update):
    """torch rounds it to the precision of the parameters when it is loaded."""

    def update(self, p: Any, g: Tensor) -> Tensor:
        self.state[p]["m"] = 0.9 * self.state[p].get("m", 0.0) + g.double() / 3
        return self.state[p]["m"].float()


class Langevin(Update):
    def update(self, p: Any, g: Tensor) -> Tensor:
        return g + 0.01 * torch.randn_like(p)


class OwnGenerator(Update):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.noise = torch.Generator().manual_seed(0)

    def update(self, p: Any, g: Tensor) -> Tensor:
        return g + 0.01 * torch.randn(p.shape, generator=self.noise)


class OwnGeneratorSaved(OwnGenerator):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "noise": self.noise.get_state()}

    def load_state_dict(self, state: Any) -> None:
        self.noise.set_state(state.pop("noise"))
        super().load_state_dict(state)


class NumpyNoise(Update):
    def update(self, p: Any, g: Tensor) -> Tensor:
        return g + 0.01 * torch.from_numpy(np.random.randn(*p.shape)).float()


class Lookahead(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.inner, self.count = torch.optim.Adam(self.param_groups, lr=lr), 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


def made_by_a_function(params: Any, lr: float = 1e-3) -> Any:
    return Warm(params, lr=lr)


OPTIMIZERS: dict[Any, str] = {
    **dict.fromkeys(["RMSprop", "NAdam", "Adagrad", "ASGD", "Rprop", "Adamax"], ""),
    **dict.fromkeys([WarmSaved, WarmInGroups, ScheduledSaved, InState, Langevin, NumpyNoise], ""),
    OwnGeneratorSaved: "",
    Warm: "OPTIMIZER Warm: its attribute 't' changes during the training but is not in a che",
    made_by_a_function: "OPTIMIZER made_by_a_function: its attribute 't'",
    Scheduled: "OPTIMIZER Scheduled: its attribute 'schedule",
    OnParameters: "OPTIMIZER OnParameters: .*momentum",
    ById: "OPTIMIZER ById: .*moments",
    InClass: "OPTIMIZER InClass: .*steps",
    InDoublePrecision: "OPTIMIZER InDoublePrecision: .*state",
    OwnGenerator: "OPTIMIZER OwnGenerator: its attribute 'noise'",
    Lookahead: "OPTIMIZER Lookahead: its attribute .*inner",
}


def test_an_optimizer_with_a_counter_of_its_own_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'t' changes .*; keep it in self.state or param_groups"):
        probe(sweep_of(OPTIMIZER=Warm, PARAMETRIZATION="sp", PACK_SIZE=1))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: getattr(o, "__name__", o))
def test_optimizers_resume_undisturbed_or_are_refused(optimizer: Any) -> None:
    sweep = sweep_of(OPTIMIZER=optimizer, PARAMETRIZATION="sp", PACK_SIZE=1)
    if refused := OPTIMIZERS[optimizer]:
        with pytest.raises(SpecError, match=refused):
            probe(sweep)
        InClass.steps = 0
        assert not resumes_equal(sweep)
    else:
        probe(sweep)
        assert resumes_equal(sweep)


# ---- models, losses, grabs -----------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(d_in, 8), nn.Linear(8, 1)
        self.calls = 0

    def forward(self, X: Tensor) -> Tensor:
        return self.last(self.first(X).tanh()) * self.scale()

    def scale(self) -> Any:
        return 1.0


class InAnAttribute(Net):
    def scale(self) -> Any:
        self.calls += 1
        return 1 + self.calls / 1000


class KeepsActivations(Net):
    def forward(self, X: Tensor) -> Tensor:
        self.hidden = self.first(X).tanh()
        return self.last(self.hidden)


class CountingLoss:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return (output - y).square().mean() * (1 + self.calls / 1000)


def huber(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.huber_loss(output, y)


def distance(model: Any, model0: Any) -> Tensor:
    return (model.input_layer.weight - model0.input_layer.weight).norm()


class DistanceSinceLast:
    def __init__(self) -> None:
        self.last: Any = 0.0

    def __call__(self, model: Any) -> Tensor:
        weight = model.input_layer.weight.detach().clone()
        moved, self.last = (weight - self.last).norm(), weight
        return moved


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"MODEL": Net}, ""),
        ({"MODEL": KeepsActivations}, ""),
        ({"LOSS": huber}, ""),
        ({"LOSS": nn.SmoothL1Loss()}, ""),
        ({"grabs": {"moved": distance}}, ""),
        ({"MODEL": InAnAttribute}, "MODEL InAnAttribute: its attribute 'calls' changes"),
        ({"LOSS": CountingLoss()}, "LOSS CountingLoss: its attribute 'calls' changes"),
        (
            {"grabs": {"m": DistanceSinceLast()}},
            "grab 'm' keeps state .* differs .* in its results; c",
        ),
        ({"grabs": {"r": lambda: torch.rand(())}}, "grab 'r' draws from the global .* of torch"),
    ],
)
def test_models_losses_and_grabs_resume_undisturbed_or_are_refused(
    settings: dict[str, Any], refused: str
) -> None:
    sweep = sweep_of(**settings)
    if refused:
        with pytest.raises(SpecError, match=refused):
            probe(sweep)
    else:
        probe(sweep)
        assert resumes_equal(sweep)


def test_a_value_that_chooses_other_code_is_probed() -> None:
    def either(kind: str, bsz: int, gen: torch.Generator) -> Any:
        return independent(bsz, gen) if kind == "iid" else shuffled_epochs(bsz, gen)

    sweep = Sweep("kinds", {"kind": ["iid", "epochs"]}, batchfn=either, WIDTH=8, N_SAMPLES=8)
    with pytest.raises(SpecError, match=r"batchfn either: batch_fn\(7\) depends"):
        probe(sweep)


def test_what_a_function_does_at_a_later_step_does_not_happen_at_launch() -> None:
    def acting(bsz: int, gen: torch.Generator) -> Any:
        def batch_fn(step: int) -> Any:
            if step >= 9:
                raise SystemExit(step)
            return pair(torch.randn(bsz, 3, generator=gen))

        return batch_fn

    def failing(bsz: int, gen: torch.Generator) -> Any:
        def batch_fn(step: int) -> Any:
            scale = dict[str, int]()
            scale["n"] = 1
            if step == 9:
                raise ValueError("the data are used up")
            return pair(torch.randn(bsz, 3, generator=gen))

        return batch_fn

    probe(sweep_of(batchfn=acting))
    probe(sweep_of(batchfn=failing))


def test_a_training_set_that_is_not_drawn_again_is_refused() -> None:
    drawn = itertools.count()

    def numbered(bsz: int, gen: torch.Generator) -> Any:
        number = next(drawn)
        return lambda step: pair(number + torch.randn(bsz, 3, generator=gen))

    with pytest.raises(SpecError, match="its training set is another one when it is drawn again"):
        probe(sweep_of(batchfn=numbered, ONLINE=False))


def test_a_batch_function_that_reuses_its_buffer_is_refused() -> None:
    def refilled(bsz: int, gen: torch.Generator) -> Any:
        X = np.zeros((bsz, 3), np.float32)

        def batch_fn(step: int) -> Any:
            X[:] = torch.randn(bsz, 3, generator=gen).numpy()
            return X, X[:, 0].copy()

        return batch_fn

    with pytest.raises(WriteError, match="batchfn refilled changes the X that it has returned bef"):
        probe(sweep_of(batchfn=refilled))


# ---- what objects hold ---------------------------------------------------------------------------


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str | None]] = {
    "attribute": (CountingLoss, lambda o: setattr(o, "calls", 1), ".calls"),
    "slot": (Slotted, lambda o: setattr(o, "n", 1), ".n"),
    "nested": (lambda: {"a": [Slotted()]}, lambda o: setattr(o["a"][0], "n", 1), "['a'][0].n"),
    "new attribute": (CountingLoss, lambda o: setattr(o, "more", 1), ".more"),
    "list": (lambda: [1, 2], lambda o: o.append(3), ""),
    "set": (lambda: {1, 2}, lambda o: o.add(3), ""),
    "entry": (lambda: {"n": 1}, lambda o: o.update(n=2), "['n']"),
    "cache": (lambda: {"n": 1}, lambda o: o.update(m=2), None),
    "tensor": (lambda: torch.zeros(2), lambda o: o.add_(1), ""),
    "array": (lambda: np.zeros((5, 2)), lambda o: o.fill(1), ""),
    "iterator": (lambda: iter([1, 2]), next, ""),
    "generator": (lambda: (i for i in (1, 2)), next, ""),
    "count": (itertools.count, next, ""),
    "zip": (lambda: zip([1, 2], [3, 4], strict=True), next, ""),
    "bit generator": (lambda: np.random.PCG64(0), lambda o: o.random_raw(), ""),
    "seed sequence": (lambda: np.random.SeedSequence(0), lambda o: o.spawn(1), ""),
    "partial": (lambda: functools.partial(print, []), lambda o: o.args[0].append(1), ".args[0]"),
    "method": (lambda: CountingLoss().__call__, lambda o: o(torch.ones(2), 0), ".calls"),
    "module": (lambda: types.SimpleNamespace(n=1), lambda o: setattr(o, "n", 2), ".n"),
    "bound builtin": (lambda: random.Random(0).random, lambda o: o(), ""),
    "wrapped next": (lambda: iter([1, 2]).__next__, lambda o: o(), ""),
    "objects in a set": (lambda: {print, 1}, lambda o: o.discard(1), ""),
    "deque": (lambda: collections.deque([1]), lambda o: o.rotate(), None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_object_holds_is_compared_by_place(name: str) -> None:
    make, change, place = CHANGES[name]
    value = make()
    before = held(value)
    assert difference(before, held(value)) is None
    change(value)
    found = difference(before, held(value))
    assert found is None if place is None else found is not None and found.startswith(place)


def test_an_object_that_holds_itself_is_read_once() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert difference(held(cycle), held(cycle)) is None


# ---- models that draw ----------------------------------------------------------------------------


class Dropped(Net):
    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self.drop = nn.Dropout(0.5)

    def scale(self) -> Any:
        return self.drop(torch.ones(8, 1))[:1]


class OwnDraws(Net):
    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self.gen = torch.Generator().manual_seed(0)

    def scale(self) -> Any:
        return torch.rand((), generator=self.gen)


class NumpyScale(Net):
    def scale(self) -> Any:
        return float(np.random.rand())


def spread(model: nn.Module, X_te: Tensor) -> Tensor:
    model.train()
    return torch.stack([model(X_te) for _ in range(3)]).std()


def draws_itself(model: nn.Module) -> float:
    return float(np.random.rand())


def test_models_that_draw_resume_undisturbed() -> None:
    for model in (Dropped, NumpyScale):
        sweep = sweep_of(MODEL=model, PARAMETRIZATION="sp", grabs={"spread": spread})
        probe(sweep)
        assert resumes_equal(sweep)
    refused = "OwnDraws: its attribute 'gen' changes .*; random numbers need no generator"
    with pytest.raises(SpecError, match=refused):
        probe(sweep_of(MODEL=OwnDraws, PARAMETRIZATION="sp"))
    with pytest.raises(SpecError, match="grab 'own' draws from the global generator of numpy"):
        probe(sweep_of(MODEL=Dropped, PARAMETRIZATION="sp", grabs={"own": draws_itself}))
