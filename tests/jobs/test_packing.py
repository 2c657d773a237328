"""Whatever the functions of a spec make of its configs: packed, they are as one by one."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mlpsubmit import Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.jobs.pack_parts import PackParts
from mlpsubmit.training import loop
from mlpsubmit.training.comparison import StackingError

CPU = torch.device("cpu")
SCALE = 1.0  # which a twist changes


class Net(nn.Module):
    """Three layers, with places for whatever a twist puts there."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.c = nn.Linear(5, 1)
        self.act: nn.Module = nn.Tanh()
        self.own: Any = None

    def forward(self, X: Tensor) -> Tensor:
        h = self.act(self.b(self.act(self.a(X))))
        if self.own is not None:
            h = self.own(self, h)
        return self.c(h) * self.scale * SCALE


class Holder:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def hook(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return output * self.value


def scaled(value: float, module: Any, args: Any, output: Tensor) -> Tensor:
    return output * value


# ---- twists: each makes something of a network depend on v (1 or 1.5), or just be unusual


def closure(net, v):
    net.c.register_forward_hook(lambda module, args, output: output * v)


def partial_hook(net, v):
    net.c.register_forward_hook(functools.partial(scaled, v))


def bound_method(net, v):
    net.c.register_forward_hook(Holder(v).hook)


def default(net, v):
    net.c.register_forward_hook(lambda module, args, output, scale=v: output * scale)


def function_attribute(net, v):
    def hook(module, args, output):
        return output * hook.scale

    hook.scale = v
    net.c.register_forward_hook(hook)


def pre_hook(net, v):
    net.b.register_forward_pre_hook(lambda module, args: (args[0] * v,))


def backward_hook(net, v):
    net.b.register_full_backward_hook(lambda module, inner, outer: (inner[0] * v,))


def gradient_hook(net, v):
    net.a.weight.register_hook(lambda gradient: gradient * v)


def forward_function(net, v):
    net.forward = types.MethodType(lambda self, X: Net.forward(self, X) * v, net)


def number(net, v):
    net.scale = v


def nested(net, v):
    net.config = {"in": [0, {"scale": v}]}
    net.own = lambda self, h: h * self.config["in"][1]["scale"]


def text(net, v):
    net.kind = "tanh" if v > 1 else "relu"
    net.own = lambda self, h: getattr(torch, self.kind)(h)


def held(net, v):
    net.holder = Holder([v])
    net.own = lambda self, h: h * self.holder.value[0]


def local_class(net, v):
    class Act(nn.Module):
        def forward(self, h):
            return torch.tanh(h * v)

    net.act = Act()


def made_class(net, v):
    net.act = type("Act", (nn.Module,), {"forward": lambda self, h: h.sin() * self.s, "s": v})()


def equal_classes(net, v):
    class Act(nn.Module):
        def forward(self, h):
            return torch.sin(h)

    net.act = Act()


def mode(net, v):
    class Act(nn.Module):
        def forward(self, h):
            return h.sin() if self.training else h.cos()

    net.act = Act().train(v > 1)


def frozen(net, v):
    net.a.weight.requires_grad_(v > 1)


def tied(net, v):
    net.own = lambda self, h: self.d(h)
    if v > 1:
        net.d.weight = net.b.weight


def twice(net, v):
    net.d = net.b if v > 1 else net.d
    net.own = lambda self, h: self.d(h)


def shared_memory(net, v):
    net.own = lambda self, h: self.d(h)
    if v > 1:
        net.d.weight.data = net.b.weight.data


def buffer(net, v):
    net.register_buffer("shift", torch.tensor(v), persistent=v > 1)
    net.own = lambda self, h: h + self.shift


def plain_tensor(net, v):
    net.offset = torch.tensor(v)
    net.own = lambda self, h: h + self.offset


def closed_tensor(net, v):
    shift = torch.tensor(v)
    net.own = lambda self, h: h + shift


def closed_parameter(net, v):
    bias = net.a.bias
    net.own = lambda self, h: h + bias * v


def closed_module(net, v):
    b = net.b
    net.own = lambda self, h: h + b(h)


def hidden_module(net, v):
    net.extra = [nn.Linear(5, 5)]
    net.own = lambda self, h: self.extra[0](h)


def counter(net, v):
    net.register_buffer("calls", torch.zeros(()))

    def own(self, h):
        self.calls += 1
        return h * (1 + v * self.calls / 100)

    net.own = own


def replaced_counter(net, v):
    net.register_buffer("calls", torch.zeros(()))

    def own(self, h):
        self.calls = self.calls + 1
        return h * (1 + v * self.calls / 100)

    net.own = own


def batch_norm(net, v):
    net.act = nn.BatchNorm1d(5, momentum=v / 4)
    net.own = lambda self, h: h + self.act.running_mean


def layer_norm(net, v):
    net.act = nn.Sequential(nn.LayerNorm(5), nn.ReLU())


def weight_norm(net, v):
    if v > 1:
        parametrizations.weight_norm(net.b)


def spectral_norm(net, v):
    parametrizations.spectral_norm(net.b, n_power_iterations=1)


def old_weight_norm(net, v):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net.b)


def inner_hook(net, v):
    def own(self, h):
        h = h * 1
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * v)
        return h

    net.own = own


def branching(net, v):
    net.own = lambda self, h: h / h.norm() if h.norm() > v else h


def double(net, v):
    if v > 1:
        net.double()


def in_a_global(net, v):
    global SCALE
    SCALE = v


def in_a_class(net, v):
    Net.scale = v


TWISTS = [
    *(closure, partial_hook, bound_method, default, function_attribute, pre_hook, backward_hook),
    *(gradient_hook, forward_function, number, nested, text, held, local_class, made_class),
    *(equal_classes, mode, frozen, tied, twice, shared_memory, buffer, plain_tensor),
    *(closed_tensor, closed_parameter, closed_module, hidden_module, counter, replaced_counter),
    *(batch_norm, layer_norm, weight_norm, spectral_norm, old_weight_norm, inner_hook, branching),
    *(double, in_a_global, in_a_class),
]


#: Twists that make parameters, which a PARAMETRIZATION may not.
IN_MODELS = (batch_norm, layer_norm, weight_norm, old_weight_norm)


# ---- losses


def huber(output, y, v):
    return nn.functional.huber_loss(output, y, delta=v)


def choosy(output, y):
    loss = (output - y).square().mean()
    return loss if loss > 0.5 else loss * 1.5


LOSSES = ["mse", huber, choosy, nn.MSELoss(), functools.partial(huber, v=1.5)]


# ---- training


def batches(bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(bsz, 3, generator=gen)
        return X, (X[:, :1] * X[:, 1:2]) + 1

    return batch_fn


def outputs(model, X_tr):
    return model(X_tr).mean().double()


def weights(model):
    return torch.stack([t.double().norm() for t in model.state_dict().values()])


def family(first: list[Callable], then: list[Callable], loss: Any, lrs: bool, **more: Any) -> Sweep:
    """Return a sweep whose MODEL applies some twists, and its PARAMETRIZATION others."""

    def model(v):
        net = Net()
        for twist in first:
            twist(net, v)
        return net

    def parametrization(net, optimizer, v):
        for twist in then:
            twist(net, v)
        if lrs:
            (group,) = optimizer.param_groups
            last = group["params"].pop()
            optimizer.add_param_group({"params": [last], "lr": group["lr"] * v})

    given = {
        "MODEL": model,
        "PARAMETRIZATION": parametrization,
        "LOSS": loss,
        "N_SAMPLES": 6,
        "N_TEST": 5,
        "MAX_ITER": 12,
        "ONLYTHRESHOLDS": False,
        "RECORD_EVERY": 3,
        "GRAB_EVERY": 6,
        "EVAL_EVERY": 5,
        "PERCENT_THRESHOLDS": [0.95],
        "D_OUT": 1,
        **more,
    }
    axes = {"v": [1.0, 1.5], "LR": [0.005, 0.02]}
    return Sweep("family", axes=axes, batchfn=batches, grabs=GRABS, **given)


GRABS = {"outputs": outputs, "weights": weights}


def reset() -> None:
    global SCALE
    SCALE, Net.scale = 1.0, 1.0


def packed(sweep: Sweep) -> tuple[dict[int, Any], list[list[int]]]:
    """Train all configs of a sweep as one pack; return their results, and the stacks."""
    configs, results, divided = list(sweep), {}, []
    parts = PackParts.whole(len(configs))
    reset()
    while parts.left:
        part = parts.left[0]
        try:
            for stack in assemble(sweep, [configs[k] for k in part], [{}] * len(part), CPU):
                given = [part[row] for row in stack.rows]
                divided.append(given)
                trained = stack.train()
                results |= {k: result_of(trained, row) for row, k in enumerate(given)}
                part = parts.left[0]
            parts.drop_first()
        except StackingError as error:
            whole = divided.pop() if divided and divided[-1][0] not in results else part
            groups = error.groups or [[row] for row in range(len(whole))]
            parts.separate([[whole[row] for row in group] for group in groups], set(results))
    return results, divided


def result_of(trained: Any, row: int) -> dict[str, np.ndarray]:
    named = {n: getattr(trained, n) for n in ("status", "steps", "train_loss", "test_loss")}
    return {name: values[row] for name, values in {**named, **trained.grabs}.items()}


def alone(sweep: Sweep) -> dict[int, Any]:
    results = {}
    for k, config in enumerate(sweep):
        reset()
        (stack,) = assemble(sweep, [config], [{}], CPU)
        results[k] = result_of(stack.train(), 0)
    return results


def compare(sweep: Sweep) -> list[list[int]]:
    """Check that packed equals one by one; return the stacks of the pack."""
    together, stacks = packed(sweep)
    single = alone(sweep)
    reset()
    assert together.keys() == single.keys()
    for k, result in single.items():
        for name, value in result.items():
            got = together[k][name][tuple(map(slice, value.shape))]
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6, err_msg=f"{name} of {k}")
    return stacks


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "BLOCK", 4)


@pytest.mark.slow
@pytest.mark.parametrize("twist", TWISTS, ids=lambda twist: twist.__name__)
def test_a_twist_of_the_model(twist: Callable) -> None:
    compare(family([twist], [], "mse", False))


def fit_together(twists: list[Callable]) -> bool:
    """Return whether PyTorch lets these twists be applied to one network."""
    net = Net()
    try:
        for twist in twists:
            twist(net, 1.5)
    except (AttributeError, KeyError, RuntimeError, TypeError):
        return False
    finally:
        reset()
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PARAMETRIZATION")  # of a callable one with adam
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_families(data: st.DataObject) -> None:
    first = data.draw(st.lists(st.sampled_from(TWISTS), max_size=2))
    then = [twist for twist in TWISTS if twist not in (*IN_MODELS, *first)]
    more = {"OPTIMIZER": data.draw(st.sampled_from(["sgd", "adam"]))}
    more["ONLINE"] = data.draw(st.booleans())
    more["CENTERED"] = data.draw(st.booleans())
    after = data.draw(st.lists(st.sampled_from(then), max_size=2))
    loss = data.draw(st.sampled_from(LOSSES))
    assume(fit_together([*first, *after]))
    compare(family(first, after, loss, data.draw(st.booleans()), **more))
