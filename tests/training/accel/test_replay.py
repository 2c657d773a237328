"""Replayed steps are eager steps bit for bit, and refused where they could not be.

On a CPU a tape takes the place of a CUDA graph: it holds torch's operations on their memory, and
repeats them without their Python code. On a GPU the same tests record graphs.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlpsubmit import Monomial, Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.batchfns import (
    arrays,
    epochs,
    multi_index,
    polynomial,
    power_law,
    sparse_parity,
    teacher,
)
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, Interrupted, batches, loop, train
from mlpsubmit.training.accel import replay
from mlpsubmit.training.accel.cuda_graph import CudaRecorder
from mlpsubmit.training.accel.replay import (
    LARGEST_RECORDED,
    WORTHWHILE_STEPS,
    ReplayedSteps,
    replay_wanted,
)
from mlpsubmit.training.monitor import Monitor

STEPS = 26
LRS = (0.1, 0.03, 1e4, 1e-5, 0.02)  # the third one diverges


@pytest.fixture(autouse=True)
def _recordable(without_c, monkeypatch):
    """Leave out what a tape cannot hold: functions in C and numpy's, which only a CPU has."""

    def randn(*size, generator):
        return torch.randn(*size, generator=generator, device=generator.device)

    monkeypatch.setattr("mlpsubmit.batchfns.gaussian.randn", randn)
    monkeypatch.setattr("mlpsubmit.training.optimizers.adam._root", torch.sqrt)


class Tape(TorchDispatchMode):
    """Records operations, to repeat them on the same memory."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        fresh = not any(value.alias_info for value in function._schema.returns)
        self.operations.append((function, args, kwargs or {}, result if fresh else None))
        return result

    @torch.no_grad()
    def again(self):
        for function, args, kwargs, result in self.operations:
            found = function(*args, **kwargs)
            if isinstance(result, torch.Tensor):  # else a view, or a change in place
                result.copy_(found)


class Waits(TorchDispatchMode):
    """Notes operations for which a CPU would wait for a GPU: numbers copied to or from it."""

    WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.WAITING:
            self.found.append("somewhere")
        return function(*args, **(kwargs or {}))


class CountedAside(batches.Aside):
    """Counts the works that are done aside, and their parts."""

    def __init__(self):
        self.works, self.parts = 0, 0

    def __call__(self, work):
        self.works += 1
        return super().__call__(work)

    def each(self, works):
        made = super().each(works)
        self.parts += len(made)
        return made


class Recorder:
    """Records tapes, and counts recordings and replays."""

    def __init__(self):
        self.recorded, self.replays, self.tapes, self.asides = 0, 0, [], []

    @contextlib.contextmanager
    def watched(self):
        mode = Waits()
        with mode:
            yield mode.found

    def aside(self):
        self.asides.append(CountedAside())
        return self.asides[-1]

    @property
    def holds_memory(self):
        return any(tape() is not None for tape in self.tapes)

    def record(self, works, generators):
        gc.disable()
        try:
            assert not self.holds_memory, "that of two packs of recordings would be held at once"
        finally:
            gc.enable()
        self.recorded += 1
        return [self.recording(work) for work in works]

    def recording(self, work):
        tape = Tape()
        self.tapes.append(weakref.ref(tape))
        buffers = self.replayed._pack.buffers
        kept = [buffer.clone() for buffer in buffers]
        with tape:
            made = work()
        for buffer, was in zip(buffers, kept, strict=True):
            buffer.copy_(was)  # a GPU does nothing while it records

        def replay():
            self.replays += 1
            tape.again()
            return self.spoiled(made)

        return replay

    def spoiled(self, made):
        return made


class Graphs(CudaRecorder):
    """Records CUDA graphs, and counts recordings and replays."""

    def __init__(self, device):
        super().__init__(device)
        self.recorded, self.replays = 0, 0

    def record(self, works, generators):
        self.recorded += 1
        return [self.counted(replay) for replay in super().record(works, generators)]

    def counted(self, replay):
        def counting():
            self.replays += 1
            return replay()

        return counting


class NeverRecording(CudaRecorder):
    """Refuses to record, so that all steps are eager."""

    def record(self, works, generators):
        raise RuntimeError("not recorded")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def replaying(monkeypatch):
    """Make the train loop replay its steps, through a given recorder."""

    def by(recorder):
        def replayed(step_fn, pack, common, shared=False):
            recorder.replayed = ReplayedSteps(step_fn, pack, recorder)
            return recorder.replayed

        monkeypatch.setattr(loop, "replayed", replayed)
        monkeypatch.setattr(batches, "EAGER_DEVICES", frozenset())
        return recorder

    return by


@pytest.fixture
def recording(replaying, device):
    """Make the train loop replay its steps, from a call on; return the recorder."""
    return lambda: replaying(Recorder() if device.type == "cpu" else Graphs(device))


def drawing(seed, device="cpu"):
    """Return a batch function whose only state is its generator, and that generator."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(step):
        X = torch.randn(8, 3, generator=generator, device=device)
        return X, X[:, 0] * X[:, 1] + X[:, 2]

    return draw, generator


@pytest.fixture
def job(make_mlps, device):
    """Return a factory of trainings, each of which can be run several times."""

    def made(make=make_mlps, **settings):
        base = validate({"MAX_ITER": STEPS, "PERCENT_THRESHOLDS": [0.8], **settings})
        hs, K = [base.model_copy(update={"lr": lr}) for lr in LRS], len(LRS)

        def run(monitor=None):
            sources, models = [drawing(k, device) for k in range(2)], make(K)
            trained = train(
                models,
                [sources[k % 2][0] for k in range(K)],
                hs,
                test_fns=[drawing(9, device)[0]] * K,
                trials=[k % 2 for k in range(K)],
                grabs={"norm": lambda model, X_tr, y_tr: model(X_tr).norm() + y_tr.norm()},
                generators=[generator for _, generator in sources],
                monitor=monitor,
                device=device,
            )
            return trained, [model.state_dict() for model in models]

        return run

    return made


def assert_equal_weights(ours, others):
    for one, other in zip(ours, others, strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, equal_nan=True)


def penalised(output, y, params):
    """Return a loss of the user's with a penalty on a layer."""
    return (output - y).square().mean() + 0.01 * params["input_layer.weight"].abs().sum()


def largest(output, y):
    """Return a metric of the user's."""
    return (output - y).abs().amax()


SETTINGS = {
    "sgd": {},
    "momentum": {"MOMENTUM": 0.9, "WEIGHT_DECAY": 0.01},
    "adam": {"OPTIMIZER": "adam"},
    "adamw": {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1},
    "uncentred": {"CENTERED": False, "RECORD_EVERY": 3, "EVAL_EVERY": 5},
    "sp": {"PARAMETRIZATION": "sp"},
    "muon": {"OPTIMIZER": "muon", "WEIGHT_DECAY": 0.1},
    "scheduled": {
        "LR_SCHEDULE": "cosine",
        "WARMUP_STEPS": 3,
        "GRAD_CLIP_NORM": 0.5,
        "LR_FACTORS": {"input_layer.*": 0, "*.bias": 0.1},
    },
    "lion, mae": {"OPTIMIZER": "lion", "LOSS": "mae"},
    "rmsprop, a loss of parameters": {"OPTIMIZER": "rmsprop", "LOSS": penalised},
    "metrics at every step": {
        "METRICS": ["r2", {"largest": (largest, "min")}],
        "METRIC_THRESHOLDS": {"train_r2": [0.9], "test_loss": [1e-9]},
        "PRECISION": "fp64",
    },
    "metrics now and then": {
        "METRICS": ["accuracy", "margin"],
        "METRIC_THRESHOLDS": {"train_accuracy": [0.5, 1.0]},
        "STOP_ON": "train_accuracy",
        "RECORD_EVERY": 4,
        "EVAL_EVERY": 5,
        "LOSS": "huber",
    },
}
#: Cases in which the largest learning rate makes no loss infinite.
FINITE = (
    *("adam", "adamw", "muon", "scheduled", "lion, mae", "rmsprop, a loss of parameters"),
    *("metrics at every step", "metrics now and then"),
)


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize(
    ("name", "only"),
    [
        pytest.param(
            name, only, marks=[pytest.mark.slow] * (only and name != "sgd"), id=f"{name}-{id}"
        )
        for name in SETTINGS
        for only, id in ((True, "final"), (False, "traces"))
    ],
)
def test_replayed_steps_are_eager_steps(
    name, only, online, job, same, short_blocks, recording, capsys
):
    run = job(ONLINE=online, ONLYTHRESHOLDS=only, GRAB_EVERY=2, **SETTINGS[name])
    eager, weights = run()
    recorder = recording()
    replayed, again = run()
    same(eager, replayed)
    assert_equal_weights(weights, again)
    assert capsys.readouterr().out == ""
    assert recorder.replays > 4
    assert eager.status.max() == 2 or name in FINITE


def test_steps_that_nothing_looks_at_are_replayed_together(job, same, recording, capsys):
    run = job(MAX_ITER=64, PERCENT_THRESHOLDS=[1e-9])
    eager, weights = run()
    recorder = recording()
    replayed, again = run()
    same(eager, replayed)
    assert_equal_weights(weights, again)
    # Step 0 is plain and step 1 watched; 2 and 3 are checked one by one, 4 to 11 together; then
    # there are six strides, and four single steps up to the end of the block.
    assert recorder.replays == 2 + 1 + 6 + 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"EVAL_EVERY": 20},
        {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 17, "EVAL_EVERY": 13, "GRAB_EVERY": 29},
        {"ONLYTHRESHOLDS": False, "RECORD_EVERY": "log:9", "GRAB_EVERY": "log:5"},
        {"ONLINE": False, "EVAL_EVERY": 11},
    ],
    ids=str,
)
def test_nothing_is_skipped_between_the_steps_of_a_stride(settings, job, same, recording):
    run = job(MAX_ITER=90, **settings)
    eager, weights = run()
    recorder = recording()
    replayed, again = run()
    same(eager, replayed)
    assert_equal_weights(weights, again)
    assert recorder.replays < 70


class Counted(nn.Module):
    """A network that counts its forward passes in a buffer, and depends on their number."""

    def __init__(self) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(3, 6), nn.Linear(6, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, X):
        self.passes.add_(1)
        return self.read_out(self.read_in(X).tanh()) * (1 + 0.001 * self.passes)


@pytest.mark.parametrize("centred", [True, False])
def test_buffers_that_a_network_changes_are_replayed_too(centred, job, same, recording):
    run = job(CENTERED=centred, make=lambda K: [Counted() for _ in range(K)])
    eager, weights = run()
    recorder = recording()
    replayed, again = run()
    same(eager, replayed)
    assert_equal_weights(weights, again)
    assert recorder.replays > 4


def dropped():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1))


def test_what_a_packed_network_draws_is_replayed_too(job, same, recording):
    run = job(make=lambda K: [dropped() for _ in range(K)])
    eager, weights = run()
    recorder = recording()
    replayed, again = run()
    same(eager, replayed)
    assert_equal_weights(weights, again)
    assert recorder.replays > 4


def test_a_network_that_draws_alone_is_not_replayed(same, recording, capsys, device):
    """It draws from torch's global generators, which a recording does not restore."""

    def run():
        draw, generator = drawing(0, device)
        settings = {"MAX_ITER": STEPS, "LR": 0.1}
        return train([dropped()], [draw], settings, generators=[generator], device=device)

    eager = run()
    recorder = recording()
    same(eager, run())
    assert recorder.recorded == 0
    reason = "steps are not replayed: the model draws random numbers, and trains alone"
    assert f"from step 1 on, {reason}" in capsys.readouterr().out


def test_steps_whose_metric_draws_are_not_replayed(job, same, recording, capsys):
    def noisy(output, y):
        return (output - y).abs().mean() + torch.rand(())

    run = job(METRICS={"noisy": (noisy, "min")}, ONLYTHRESHOLDS=False)
    eager, _ = run()
    recorder = recording()
    same(eager, run()[0])
    assert recorder.recorded == 0
    reason = "steps are not replayed: METRICS 'noisy' draws random numbers"
    assert f"from step 1 on, {reason}" in capsys.readouterr().out


def test_a_shrunken_stack_is_recorded_anew(job, same, short_blocks, recording, capsys):
    run = job(MAX_ITER=60, PERCENT_THRESHOLDS=[0.97], ONLINE=False)
    eager, _ = run()
    assert len(np.unique(eager.steps)) > 2
    recorder = recording()
    same(eager, run()[0])
    assert recorder.recorded >= 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)]
)
def test_an_interrupted_training_goes_on_bit_by_bit(
    every, online, job, saver, same, short_blocks, recording
):
    run = job(ONLINE=online, OPTIMIZER="adam", ONLYTHRESHOLDS=False)
    eager, weights = run()
    recorder, state = recording(), None
    while True:
        monitor = saver(state, every=every, interrupting=True)
        try:
            resumed, again = run(monitor)
            break
        except Interrupted:
            state = monitor.state
    same(eager, resumed)
    assert_equal_weights(weights, again)
    assert (recorder.replays > 0) == (every > 2)
    same(eager, run(saver(every=1))[0])


class Counting:
    def __init__(self, seed):
        self.calls, self.generator = 0, torch.Generator().manual_seed(seed)

    def __call__(self, step):
        self.calls += 1
        X = torch.randn(8, 3, generator=self.generator) * (1 + self.calls % 3)
        return X, X[:, 0]


def looking(look):
    def make(seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(step):
            X = torch.randn(8, 3, generator=generator) + look(step)
            return X, X[:, 0]

        return draw, generator

    return make


def aside(draw_aside):
    """Return a factory of batch functions that draw from another source too."""
    return looking(lambda step: draw_aside())


def eagerly(step_fn, pack, common, shared=False):
    return lambda step, until: (step, *step_fn(step))


def refused(make, recorder, same, make_mlps, capsys, **settings):
    """Train with and without a recorder; return the line that says why it was not used."""

    def run(seeds=(0, 1)):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        made = [make(seed) for seed in seeds]
        trained = train(
            make_mlps(2),
            [fn for fn, _ in made],
            {"MAX_ITER": 12, "LR": 0.01, "ONLYTHRESHOLDS": False, **settings},
            generators=[generator for _, generator in made],
        )
        return trained, made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "replayed", eagerly)
        eager, _ = run()
    trained, made = run()
    same(eager, trained)
    (line,) = capsys.readouterr().out.splitlines()
    return line, made, recorder


LOOKS = {
    "arithmetic": lambda step: 2 * step + 1,
    "comparison": lambda step: 1.0 if step > 5 else 0.0,
    "equality": lambda step: float(step == 7),
    "truth": lambda step: 0.5 if step else 0.0,
    "index": lambda step: torch.arange(100)[step],
    "slice": lambda step: torch.arange(100)[step : step + 1],
    "lookup": lambda step: {5: 0.5}.get(step, 0.0),
    "text": lambda step: len(f"{step}"),
    "type": lambda step: 1.0 if isinstance(step, int) else 0.0,
    "full": lambda step: torch.full((3,), step),
    "ones": lambda step: torch.ones(step).sum(),
    "times a tensor": lambda step: torch.ones(3) * step,
    "in place": lambda step: torch.ones(3).mul_(step),
    "numpy": lambda step: float(np.sin(step)),
    "seed": lambda step: torch.randn(3, generator=torch.Generator().manual_seed(step)),
    "method": lambda step: step.bit_length(),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_batch_function_that_uses_its_step_is_not_replayed(
    name, replaying, same, make_mlps, capsys
):
    recorder = replaying(Recorder())
    line, _, _ = refused(looking(LOOKS[name]), recorder, same, make_mlps, capsys)
    assert line == "from step 2 on, steps are not replayed: a batch function uses its step"
    assert recorder.recorded == 0


def test_batches_are_drawn_aside_in_recordings(replaying, make_mlps):
    recorder = replaying(Recorder())
    functions, generators = zip(drawing(1), drawing(2), strict=True)
    draws = [functions[0], functions[1], functions[0]]
    train(make_mlps(3), draws, {"MAX_ITER": STEPS}, trials=[0, 1, 0], generators=generators)
    assert recorder.recorded == 1
    # The watched step, the recording of one, and that of a stride.
    assert [(one.works, one.parts) for one in recorder.asides] == [(1, 2), (1, 2), (8, 16)]


@pytest.mark.gpu
@pytest.mark.parametrize("functions", [1, 3, 20])
def test_on_a_gpu_batches_drawn_aside_are_not_overwritten(functions, same, replaying):
    """With steps that take longer than the batches, so that these are drawn far ahead."""
    K, device = 40, torch.device("cuda")

    def drawn(generator):
        def draw(step):
            X = torch.randn(2048, 64, generator=generator, device=device)
            return X, (X @ X.mT).sum(1).tanh()  # with memory of its own in between

        return draw

    def run():
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(functions)]
        draws = [drawn(generator) for generator in generators]
        trials = [k % functions for k in range(K)]
        settings = {"MAX_ITER": 4 * 64, "ONLYTHRESHOLDS": False, "RECORD_EVERY": 64, "LR": 0.1}
        return train(
            [MLP(64, 256) for _ in range(K)],
            [draws[trial] for trial in trials],
            {**settings, "GRAB_EVERY": 64},
            trials=trials,
            grabs={"batch": lambda X_tr, y_tr: X_tr.sum() + y_tr.sum()},
            generators=generators,
            device=device,
        )

    replaying(NeverRecording(device))
    eager = run()
    recorder = replaying(Graphs(device))
    same(eager, run())
    assert recorder.replays > 25


@pytest.mark.gpu
def test_on_a_gpu_a_process_may_begin_with_a_training():
    code = """
import torch
from mlpsubmit.training import MLP, train
batch = lambda step: (torch.ones(4, 3), torch.ones(4))
print(train([MLP(3, 4)], [batch], {"MAX_ITER": 3}, device="cuda").train_loss)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shares", [True, False])
def test_a_device_that_others_use_is_recorded_for_as_such(shares, monkeypatch, make_mlps):
    made = []

    def recorder(device, shared):
        made.append(shared)
        return Recorder()

    def on_a_gpu(step_fn, pack, common, shared):
        seen = SimpleNamespace(start=0, device=torch.device("cuda"), weights=1)
        replay.replayed(step_fn, seen, validate({"COMPILE": True}), shared=shared)
        return lambda step, until: (step, *step_fn(step))

    monkeypatch.setattr(replay, "CudaRecorder", recorder)
    monkeypatch.setattr(loop, "replayed", on_a_gpu)
    monitor = Monitor()
    monitor.shares_device = shares
    train(make_mlps(1), [drawing(1)[0]], {"MAX_ITER": 2}, monitor=monitor)
    assert made == [shares]


KEEPS = "from step 1 on, steps are not replayed: a batch function, the model or the loss may keep"


def test_a_batch_function_that_counts_is_called_once_per_step(replaying, same, make_mlps, capsys):
    recorder = replaying(Recorder())

    def make(seed):
        function = Counting(seed)
        return function, function.generator

    line, made, _ = refused(make, recorder, same, make_mlps, capsys)
    assert line.startswith(KEEPS)
    assert [function.calls for function, _ in made] == [12, 12]
    assert recorder.recorded == 0


ASIDE = {
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: torch.rand(3),
}


@pytest.mark.parametrize("name", ASIDE)
def test_a_batch_function_that_draws_from_elsewhere_is_not_replayed(
    name, replaying, same, make_mlps, capsys
):
    recorder = replaying(Recorder())
    line, _, _ = refused(aside(ASIDE[name]), recorder, same, make_mlps, capsys)
    assert line.startswith(KEEPS)


def test_what_cannot_be_told_apart_is_not_replayed(replaying, same, make_mlps, capsys):
    recorder = replaying(Recorder())

    def make(seed):
        numbers = (0.1 * n for n in itertools.count())  # cannot be copied, nor hashed
        return aside(lambda: next(numbers))(seed)

    line, _, _ = refused(make, recorder, same, make_mlps, capsys)
    assert line.startswith(KEEPS)


def test_a_loss_that_keeps_something_is_not_replayed(replaying, same, make_mlps, capsys):
    recorder = replaying(Recorder())

    class Fading:
        def __init__(self):
            self.weight = 1.0

        def __call__(self, output, y):
            self.weight *= 0.9
            return self.weight * (output - y).square().mean()

    def run_with(recorder):
        return refused(drawing, recorder, same, make_mlps, capsys, LOSS=Fading())

    with pytest.raises(AssertionError):  # the loss itself goes on from one training to the next
        run_with(recorder)
    assert KEEPS in capsys.readouterr().out
    assert recorder.recorded == 0


def test_a_batch_function_that_waits_for_the_device_is_not_replayed(
    replaying, same, make_mlps, capsys
):
    recorder = replaying(Recorder())
    line, _, _ = refused(
        aside(lambda: torch.ones(3).sum().item()), recorder, same, make_mlps, capsys
    )
    assert line == "from step 1 on, steps are not replayed: they wait for the device, in somewhere"


def test_where_recording_fails_the_steps_go_on(replaying, same, make_mlps, capsys):
    class Broken(Recorder):
        def record(self, works, generators):
            works[0]()  # a capture that ends half-way: generators have moved
            for buffer, was in zip(self.replayed._pack.buffers, self.kept, strict=True):
                buffer.copy_(was)
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

        @contextlib.contextmanager
        def watched(self):
            yield []
            self.kept = [buffer.clone() for buffer in self.replayed._pack.buffers]

    recorder = replaying(Broken())
    line, _, _ = refused(drawing, recorder, same, make_mlps, capsys)
    assert line == (
        "from step 2 on, steps are not replayed: RuntimeError: operation not permitted when "
        "stream is capturing"
    )


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("how", ["wrong", "off", "raises"])
def test_a_replay_that_goes_wrong_leaves_no_trace(at, how, replaying, same, make_mlps, capsys):
    class Faulty(Recorder):
        def spoiled(self, made):
            if self.replays < at:
                return made
            if how == "raises":
                raise RuntimeError("launch failed")
            if how == "off":  # the generators are not where they ought to be
                self.replayed._pack.generators[0].manual_seed(0)
                return made
            bits = self.replayed._pack.buffers[0].view(torch.int32)
            bits.flatten()[0] ^= 1  # the last bit of a weight
            return made

    recorder = replaying(Faulty())
    line, _, _ = refused(drawing, recorder, same, make_mlps, capsys, ONLYTHRESHOLDS=True)
    reason = {"raises": "RuntimeError: launch failed"}.get(
        how, "a replayed step differs from the same step made eagerly"
    )
    assert line == f"from step {at + 1} on, steps are not replayed: {reason}"
    assert recorder.replays == at
    assert not recorder.holds_memory


def test_what_was_refused_once_is_not_tried_again(job, same, short_blocks, replaying, capsys):
    class Broken(Recorder):
        def record(self, works, generators):
            raise RuntimeError("no graphs here")

    run = job(MAX_ITER=60, PERCENT_THRESHOLDS=[0.97], ONLINE=False)
    eager, _ = run()
    replaying(Broken())
    same(eager, run()[0])  # its stack shrinks: see above
    assert capsys.readouterr().out.count("no graphs here") == 1


def test_a_step_that_no_longer_fits_beside_its_recording_is_made_without(
    replaying, same, make_mlps, capsys, monkeypatch
):
    recorder = replaying(Recorder())
    step_fn = loop.train_step

    def tight(pack, step):
        made = step_fn(pack, step)
        if recorder.replays == 1 and recorder.holds_memory:
            raise torch.cuda.OutOfMemoryError("no room for 2 GiB")
        return made

    monkeypatch.setattr(loop, "train_step", tight)
    line, _, _ = refused(drawing, recorder, same, make_mlps, capsys)
    assert line == "from step 2 on, steps are not replayed: OutOfMemoryError: no room for 2 GiB"


def affine(bsz, gen, d=5):
    """Return a user's batch function whose only state is its generator."""
    scale = torch.arange(1.0, d + 1, device=gen.device)

    def batch_fn(step):
        X = torch.randn(bsz, d, generator=gen, device=gen.device) * scale
        return X, X.sum(1)

    return batch_fn


LIBRARY = {
    "user": {"batchfn": affine},
    "polynomial": {
        "batchfn": polynomial,
        "data": power_law(d=5, alpha=1.0),
        "axes": {"monomials": [Monomial({0: 1}), Monomial({1: 2})]},
    },
    "sparse_parity": {"batchfn": sparse_parity, "d": 6, "axes": {"k": [2, 3]}},
    "multi_index": {"batchfn": multi_index, "d": 6, "link": Monomial({0: 1, 1: 2})},
    "teacher": {"batchfn": teacher, "data": power_law(d=5, alpha=1.0), "teacher_width": 3},
    "arrays": {"batchfn": arrays(np.eye(9), np.arange(9.0), np.eye(9), np.arange(9.0))},
    "epochs": {"batchfn": epochs, "data": arrays(np.eye(9), np.arange(9.0))},
    "offline": {"batchfn": affine, "ONLINE": False},
}


@pytest.mark.parametrize("name", LIBRARY)
def test_batch_functions_of_a_sweep_can_be_replayed(name, recording, device, same, capsys):
    given = dict(LIBRARY[name])
    axes = {"LR": [0.1, 0.01], "trial": range(2), **given.pop("axes", {})}
    sweep = Sweep("s", axes, WIDTH=4, N_SAMPLES=6, N_TEST=5, MAX_ITER=9, **given)
    entry = {k: v.to(device) for k, v in (sweep.data() if sweep.data else {}).items()}

    def run():
        configs = list(sweep)
        (stack,) = assemble(sweep, configs, [entry] * len(configs), device)
        return stack.train(Monitor())

    eager, recorder = run(), recording()
    same(eager, run())
    assert capsys.readouterr().out == ""
    assert recorder.replays == 7  # all but the first steps: one is plain, one is watched


@pytest.mark.slow
@pytest.mark.parametrize("only", [True, False], ids=["final", "traces"])
def test_minibatches_by_epoch_are_replayed(only, recording, device, same, saver, capsys):
    """Over the ends of epochs and blocks, several steps at once, and from the middle of a block."""
    data = arrays(np.eye(20), np.arange(20.0) / 20)  # six steps per epoch
    axes = {"LR": [0.1, 1e-4], "trial": range(2)}
    traces = {"ONLYTHRESHOLDS": only, "RECORD_EVERY": 16, "PERCENT_THRESHOLDS": [0.05]}
    sweep = Sweep(
        "s", axes, data=data, batchfn=epochs, WIDTH=4, N_SAMPLES=3, MAX_ITER=150, **traces
    )
    entry = {name: rows.to(device) for name, rows in sweep.data().items()}
    drawn = []

    def run(monitor=None):
        (stack,) = assemble(sweep, [*sweep], [entry] * 4, device)
        drawn.append([function(149)[1] for function in stack.batch_fns])
        return stack.train(monitor or Monitor())

    eager, recorder = run(), recording()
    same(eager, run())
    assert recorder.replays > 20
    for every in (40, 70):
        state = None
        while True:
            monitor = saver(state, every=every, interrupting=True)
            try:
                resumed = run(monitor)
                break
            except Interrupted:
                state = monitor.state
        same(eager, resumed)
    assert capsys.readouterr().out == ""
    assert all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[-1], strict=True))


def test_when_replay_is_wanted():
    def asked(steps=WORTHWHILE_STEPS, weights=LARGEST_RECORDED, **settings):
        return replay_wanted(validate(settings), steps, weights)

    assert asked()
    assert not asked(steps=WORTHWHILE_STEPS - 1)
    assert not asked(weights=LARGEST_RECORDED + 1)
    assert asked(steps=5, weights=LARGEST_RECORDED + 1, COMPILE=True)
    assert not asked(COMPILE=False)
    assert not asked(OPTIMIZER="Adagrad", COMPILE=True)
    assert not asked(OPTIMIZER=torch.optim.Adagrad, COMPILE=True)


def test_on_a_cpu_nothing_is_recorded(make_mlps, monkeypatch):
    monkeypatch.setattr(ReplayedSteps, "__init__", lambda *_: pytest.fail("there is no CUDA graph"))
    train(make_mlps(1), [drawing(0)[0]], {"MAX_ITER": 2})


@pytest.fixture
def graphs(device):
    """Return a recorder of CUDA graphs."""
    return CudaRecorder(device)


on_gpu = pytest.mark.parametrize(
    "device", [pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=["cuda"]
)


@on_gpu
def test_what_waits_for_a_gpu_is_found_where_it_stands(device, graphs):
    numbers = torch.arange(4.0, device=device)
    with graphs.watched() as waits:
        numbers.sum().item()
        numbers[[0, 2]]
        numbers.add_(1)
    assert len(set(waits)) == 2
    assert all(__file__ in place for place in waits)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert numbers.tolist() == [1, 2, 3, 4]


@on_gpu
@pytest.mark.parametrize("how", ["raises", "waits", "unregistered"])
def test_after_a_failed_capture_all_goes_on(device, graphs, how):
    ours, other = (torch.Generator(device).manual_seed(seed) for seed in (1, 2))
    expected = [torch.randn(3, generator=g, device=device) for g in (ours, other)]
    for seed, generator in enumerate((ours, other), start=1):
        generator.manual_seed(seed)
    stream = torch.cuda.current_stream()

    def work():
        drawn = torch.randn(3, generator=ours, device=device)
        if how == "waits":
            drawn.sum().item()
        if how == "unregistered":
            torch.randn(3, generator=other, device=device)
        raise KeyError("half-way")

    with pytest.raises(Exception, match=r"."):
        graphs.record([work], [ours])
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    for generator, seed, numbers in zip((ours, other), (1, 2), expected, strict=True):
        generator.manual_seed(seed)
        assert torch.equal(torch.randn(3, generator=generator, device=device), numbers)
    torch.randn(3, device=device)  # the default generator draws as well
    (replay,) = graphs.record([lambda: torch.randn(3, generator=ours, device=device)], [ours])
    ours.manual_seed(1)
    assert torch.equal(replay(), expected[0])


@on_gpu
def test_a_graph_draws_on_from_its_generators(device, graphs):
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(3)]

    def draw():
        return torch.stack([torch.randn(5, generator=g, device=device) for g in generators])

    expected = [draw().clone() for _ in range(4)]
    states = [generator.get_state() for generator in generators]
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)
    once, twice = graphs.record([draw, lambda: (draw(), draw())[1]], generators)
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)
    assert torch.equal(once(), expected[0])
    assert torch.equal(twice(), expected[2])
    assert torch.equal(once(), expected[3])
    for generator, state in zip(generators, states, strict=True):
        assert torch.equal(generator.get_state(), state)
