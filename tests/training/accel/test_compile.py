"""Custom models train through torch.compile as without it, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, Interrupted, StateError, train
from mlpsubmit.training.accel.compile import Compiled, compile_wanted, sharing_compiled
from mlpsubmit.training.stack import Stack

CPU = torch.device("cpu")


class Tanh(nn.Module):
    """A custom model."""

    def __init__(self, d_out: int = 1) -> None:
        super().__init__()
        self.read_in, self.hidden = nn.Linear(3, 6), nn.Linear(6, 6)
        self.nonlin, self.read_out = nn.ReLU(), nn.Linear(6, d_out)

    def forward(self, X):
        return self.read_out(self.nonlin(self.hidden(self.read_in(X).tanh())))


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Give the compiler an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    yield tmp_path / "cache"
    torch.compiler.reset()


def run(gaussian, compile_it, kind="mse", monitor=None, count=4, **further):
    fns = [gaussian(seed, kind=kind) for seed in range(count)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for sp, which keeps the models' own weights
        models = [Tanh(3 if kind == "cross_entropy" else 1) for _ in fns]
    common = {"MAX_ITER": 40, "LOSS": kind, "LR": 0.1, "COMPILE": compile_it, **further}
    settings = [validate({**common, "GAMMA": 0.5 + seed}) for seed in range(count)]
    generators = [fn.generator for fn in fns]
    return train(models, fns, settings, generators=generators, monitor=monitor)


def penalised(output, y, params):
    return (output - y).square().mean() + 0.01 * params["hidden.weight"].abs().sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("mse", {"LOSS": penalised, "MAX_ITER": 10, "METRICS": ["r2"]}),
        ("mse", {"PERCENT_THRESHOLDS": [0.9], "EMA_SMOOTHER": 0.5}),
        ("cross_entropy", {"ONLYTHRESHOLDS": False, "CENTERED": False, "WEIGHT_DECAY": 0.1}),
        ("mse", {"ONLINE": False, "PARAMETRIZATION": "sp", "MOMENTUM": 0.5}),
    ],
    ids=["penalty", "shrinking", "cross entropy", "offline"],
)
def test_compiled_is_plain_to_rounding(kind, further, gaussian, same, fresh_cache, monkeypatch):
    monkeypatch.setattr("mlpsubmit.training.loop.BLOCK", 8)
    compiled = run(gaussian, True, kind, **further)
    assert list(fresh_cache.rglob("*.so"))  # so it was
    plain = run(gaussian, False, kind, **further)
    same(plain, compiled, rtol=1e-5)
    assert not further.get("PERCENT_THRESHOLDS") or (plain.steps < 24).sum() >= 2  # it has shrunk


@pytest.mark.slow
def test_a_compiled_training_is_resumed_bit_by_bit(gaussian, saver, same, fresh_cache):
    undisturbed = run(gaussian, True)
    monitor = saver(every=25, interrupting=True)
    with pytest.raises(Interrupted):
        run(gaussian, True, monitor=monitor)
    same(undisturbed, run(gaussian, True, monitor=saver(monitor.state)))
    with pytest.raises(
        StateError, match=r"from torch\.compile, those of this training from autograd"
    ):
        run(gaussian, False, monitor=saver(monitor.state))


@pytest.mark.slow
def test_a_training_that_would_be_compiled_does_not_go_on_from_a_plain_one(gaussian, saver):
    # As one of COMPILE="auto" that a larger MAX_ITER makes worth it.
    monitor = saver(every=25, interrupting=True)
    with pytest.raises(Interrupted):
        run(gaussian, False, monitor=monitor)
    text = r"from autograd, those of this training from torch\.compile"
    with pytest.raises(StateError, match=text):
        run(gaussian, True, monitor=saver(monitor.state))


@pytest.mark.slow
def test_a_stack_that_shrinks_often_is_compiled_at_every_size(gaussian, fresh_cache, monkeypatch):
    from torch._dynamo import config

    monkeypatch.setattr("mlpsubmit.training.loop.BLOCK", 4)
    sizes = []
    original = Stack.shrink

    def shrink(self, keep):
        original(self, keep)
        sizes.append((len(self), self.method))

    monkeypatch.setattr(Stack, "shrink", shrink)
    with config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        run(gaussian, True, PERCENT_THRESHOLDS=[0.9], EMA_SMOOTHER=0.5)
    assert len(sizes) >= 2
    assert all(method == "torch.compile" for _, method in sizes)


@pytest.mark.slow
def test_a_training_that_could_not_compile_goes_on_without(gaussian, saver, same, fresh_cache):
    from torch._inductor import config

    monitor = saver(every=3, interrupting=True)
    missing = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.warns(UserWarning, match="COMPILE"), pytest.raises(Interrupted):
        run(gaussian, True, monitor=monitor, MAX_ITER=6)
    assert monitor.state["parts"]["stack"]["method"] == "autograd"
    resumed = run(gaussian, True, monitor=saver(monitor.state), MAX_ITER=6)
    same(run(gaussian, False, MAX_ITER=6), resumed)


@pytest.mark.slow
def test_without_a_compiler_the_training_goes_on(gaussian, same, fresh_cache):
    missing = {"cpp.cxx": ("no-such-compiler",)}
    from torch._inductor import config

    with (
        config.patch(missing),
        pytest.warns(UserWarning, match="COMPILE: the model could not be compiled .* trains"),
    ):
        trained = run(gaussian, True, MAX_ITER=5)
    same(run(gaussian, False, MAX_ITER=5), trained)


@pytest.mark.slow
def test_what_the_function_itself_raises_is_raised():
    def failing(X):
        raise ZeroDivisionError("of its own")

    function = Compiled(failing, Tanh())
    with (
        pytest.warns(UserWarning, match="could not be compiled"),
        pytest.raises(ZeroDivisionError, match="of its own"),
    ):
        function(torch.ones(2))


@pytest.mark.parametrize(
    ("model", "device", "minutes", "expected"),
    [
        (Tanh(), "cpu", 6, True),
        (Tanh(), "cpu", 4, False),
        (Tanh(), "cuda", 60, False),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 1)), "cpu", 60, False),
    ],
)
def test_auto_compiles_where_the_training_is_long(model, device, minutes, expected):
    operations_per_step = 8 * 1e5 * 1000
    steps = minutes * 60 * 1e11 * torch.get_num_threads() / operations_per_step
    settings = {"N_SAMPLES": 1000, "MAX_ITER": round(steps)}
    for choice, wanted in {"auto": expected, True: True, False: False}.items():
        common = validate({**settings, "COMPILE": choice})
        assert compile_wanted(common, model, torch.device(device), weights=10**5) == wanted


def test_the_mlp_is_not_compiled(gaussian, fresh_cache):
    fn = gaussian(0)
    train([MLP(3, 6)], [fn], {"MAX_ITER": 2, "COMPILE": True}, generators=[fn.generator])
    assert not fresh_cache.exists()


@pytest.mark.slow
@pytest.mark.parametrize("own", ["Tanh", "GELU"])
def test_a_short_training_never_loads_the_compiler(own):
    code = (
        "import sys, torch; from torch import nn; from mlpsubmit.training import train\n"
        "from mlpsubmit.jobs.throughput.roofline import _passes\n"
        f"make = lambda: nn.Sequential(nn.Linear(2, 3), nn.{own}(), nn.Linear(3, 1))\n"
        "batch_fn = lambda step: (torch.ones(4, 2), torch.ones(4))\n"
        "train([make(), make()], [batch_fn] * 2, {'MAX_ITER': 2})\n"
        "assert _passes(make(), torch.ones(4, 2)) == (72, 168)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tasks_share_what_is_compiled_by_kind_of_machine(tmp_path, monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)

    def folder():
        with sharing_compiled(tmp_path):
            return os.environ[name]

    own = folder()
    assert own.startswith(f"{tmp_path}/")
    assert folder() == own
    assert name not in os.environ
    monkeypatch.setattr("mlpsubmit.native.cpu.cpu_name", lambda: "another")
    assert folder() != own
    monkeypatch.setenv(name, "/tmp/torchinductor_somebody")  # as torch leaves it behind
    assert folder().startswith(f"{tmp_path}/")
    monkeypatch.setenv(name, "the user's")
    assert folder() == "the user's"
    assert os.environ[name] == "the user's"
