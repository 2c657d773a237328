"""Writes in place into batches, data entries and weights: found and refused, by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import SpecError, Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, BatchError, loop, train
from mlpsubmit.training.guard import Guard, WriteError

SETTINGS = {"MAX_ITER": 12, "LOSS_CHECKPOINTS": []}


class Writing(nn.Module):
    """A network whose forward pass writes into its input."""

    def __init__(self, write) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
        self.write = write

    def forward(self, X):
        X = self.write(X)
        return self.last(self.first(X).relu())


def multiplied(X):
    return X.mul_(2)


def added(X):
    X += 1
    return X


def through_data(X):
    X.data.mul_(2)
    return X


WRITES = [multiplied, added, through_data, nn.ReLU(inplace=True), nn.functional.relu_]


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("write", WRITES, ids=lambda w: getattr(w, "__name__", "ReLU"))
@pytest.mark.parametrize("K", [1, 2])
def test_a_forward_pass_that_changes_its_input_is_refused(K, write, online, gaussian):
    fns = [gaussian(k) for k in range(K)]
    settings = {**SETTINGS, "ONLINE": online, "PARAMETRIZATION": "sp"}
    with pytest.raises(WriteError, match=r"MODEL Writing: its forward pass changes its input X in"):
        train([Writing(write) for _ in range(K)], fns, settings)


def test_a_forward_pass_that_changes_its_input_later_is_refused(gaussian):
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.calls = nn.Linear(3, 6), nn.Linear(6, 1), 0

        def forward(self, X):
            self.calls += 1
            return self.last(self.first(X.mul_(2) if self.calls > 8 else X))

    for online in (True, False):
        with pytest.raises(WriteError, match="MODEL Late changes X in place: all configs"):
            train([Late()], [gaussian(0)], {**SETTINGS, "ONLINE": online})


def doubles_y(output, y):
    loss = (output - y).square().mean()
    y.mul_(2)
    return loss


def subtracts_from_y(output, y):
    y -= output
    return y.square().mean()


def doubles_data_of_y(output, y):
    loss = (output - y).square().mean()
    y.data.mul_(2)
    return loss


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("loss", [doubles_y, doubles_data_of_y, subtracts_from_y])
@pytest.mark.parametrize("K", [1, 2])
def test_a_loss_that_changes_its_targets_is_refused(K, loss, online, gaussian, make_mlps):
    fns = [gaussian(k) for k in range(K)]
    with pytest.raises(WriteError, match=f"LOSS {loss.__name__} changes (y|output or y) in pl"):
        train(make_mlps(K), fns, {**SETTINGS, "ONLINE": online, "LOSS": loss})


# ---- grabs ---------------------------------------------------------------------------------------


@torch.no_grad()
def in_place(tensor):
    tensor.mul_(2)


def by_data(tensor):
    tensor.data.mul_(2)


def by_numpy(tensor):
    tensor.detach().numpy()[...] *= 2


TARGETS = {
    "model.input_layer.weight": lambda model, **_: model.input_layer.weight,
    "model0.output_layer.weight": lambda model0, **_: model0.output_layer.weight,
    "X_tr": lambda X_tr, **_: X_tr,
    "y_tr": lambda y_tr, **_: y_tr,
    "X_te": lambda X_te, **_: X_te,
    "y_te": lambda y_te, **_: y_te,
    "entry": lambda entry, **_: entry,
}


@pytest.mark.parametrize("only", [True, False], ids=["final", "traces"])
@pytest.mark.parametrize("write", [in_place, by_data, by_numpy], ids=lambda w: w.__name__)
@pytest.mark.parametrize("name", TARGETS)
def test_a_grab_that_changes_what_it_is_given_is_refused(name, write, only, gaussian, make_mlps):
    def grab(**kwargs):
        write(TARGETS[name](**kwargs))
        return 0.0

    def train_with(grab):
        return train(
            make_mlps(2),
            [gaussian(0)] * 2,
            {**SETTINGS, "ONLYTHRESHOLDS": only, "ONLINE": False},
            test_fns=[gaussian(5)] * 2,
            contexts=[{"entry": torch.ones(3)}] * 2,
            grabs={"g": grab},
        )

    step = 11 if only else 0
    with pytest.raises(WriteError, match=f"grab 'g' of model 0 at step {step} changes {name} in p"):
        train_with(grab)
    copied = train_with(lambda **kwargs: TARGETS[name](**kwargs).detach().clone().mul_(2).sum())
    assert np.isfinite(copied.grabs["g"]).all()


def test_a_grab_that_sets_a_learning_rate_is_refused(gaussian, make_mlps):
    def halves(opt):
        opt.param_groups[0]["lr"] /= 2
        return 0.0

    with pytest.raises(WriteError, match=r"grab 'h' of model 0 at step 11 changes opt\.param"):
        train(make_mlps(1), [gaussian(0)], SETTINGS, grabs={"h": halves})


def test_a_grab_leaves_buffers_as_they_were(gaussian, same):
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, X):
            self.mean.mul_(0.9).add_(0.1 * X.mean())
            return self.last(self.first(X - self.mean))

    settings = {**SETTINGS, "ONLYTHRESHOLDS": False, "CENTERED": False}

    def run(grabs):
        torch.manual_seed(0)
        model = Normalised()
        trained = train([model], [gaussian(0)], settings, grabs=grabs)
        trained.grabs.clear()
        trained.grab_step = trained.grab_step[:0]
        return trained, model.mean.clone()

    (measured, mean), (alone, expected) = (
        run({"out": lambda model, X_tr: model(X_tr).mean()}),
        run({}),
    )
    same(measured, alone)
    assert torch.equal(mean, expected)


# ---- batch functions and data entries ------------------------------------------------------------


def test_one_buffer_for_the_batches_of_all_configs_is_refused(make_mlps):
    buffer = torch.zeros(8, 3)

    def filling(seed):
        generator = torch.Generator().manual_seed(seed)

        def filled(step):
            buffer.normal_(generator=generator)
            return buffer, torch.ones(8)

        return filled

    with pytest.raises(WriteError, match="batch function filled changes the X that it has return"):
        train(make_mlps(2), [filling(0), filling(1)], SETTINGS)
    array = np.zeros((8, 3), np.float32)

    def numpy_filling(seed):
        def filled(step):
            array[:] = seed
            return array, np.ones(8, np.float32)

        return filled

    with pytest.raises(WriteError, match="batch function filled changes the X"):
        train(make_mlps(2), [numpy_filling(1), numpy_filling(2)], SETTINGS)


def test_a_batch_that_changes_after_it_was_returned_is_refused(make_mlps):
    buffer, y = torch.zeros(8, 3), torch.ones(8)

    def refilled(step):
        return buffer.fill_(step + 1)[:, :3], y

    with pytest.raises(WriteError, match="batch function refilled changes the X that it has retu"):
        train(make_mlps(1), [refilled], SETTINGS)


def test_a_data_entry_that_a_batch_function_changes_is_refused(make_mlps, monkeypatch):
    monkeypatch.setattr(loop, "BLOCK", 4)

    def drawing(write, at=5):
        entry = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

        def drawn(step):
            if step == at:
                write(entry)
            return entry[:8].clone(), torch.ones(8)

        return train(make_mlps(1), [drawn], SETTINGS, contexts=[{"entry": entry}])

    with pytest.raises(WriteError, match="batch function drawn changes entry, which it is given"):
        drawing(in_place)
    one_of = "one of: MODEL MLP, LOSS mse, batch function drawn;"
    for at in (1, 5, 11):  # found at block ends 1, 2 and the last
        with pytest.raises(WriteError, match=f"entry was changed in place .* {one_of}"):
            drawing(by_numpy, at)
    drawing(lambda entry: entry.clone().mul_(2))


ENTRIES = {
    "the other byte order": lambda: np.ones(3, np.dtype(np.float32).newbyteorder()),
    "reversed": lambda: np.arange(3.0)[::-1],
    "long doubles": lambda: np.ones(3, np.longdouble),
    "a column of records": lambda: np.zeros(3, "f4, i2")["f0"],
    "on the meta device": lambda: torch.ones(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")  # torch announces changes of the last two
@pytest.mark.parametrize("kind", ENTRIES)
def test_entries_may_be_arrays_and_tensors_of_any_kind(kind, gaussian, make_mlps):
    contexts = [{"entry": ENTRIES[kind]()}]
    grabs = {"seen": lambda entry: entry is contexts[0]["entry"]}
    trained = train(make_mlps(1), [gaussian(0)], SETTINGS, contexts=contexts, grabs=grabs)
    assert trained.grabs["seen"].all()


@pytest.mark.parametrize("kind", [*ENTRIES][:2])
def test_changes_of_arrays_that_torch_does_not_take_are_found(kind, gaussian, make_mlps):
    def doubles(entry):
        entry *= 2
        return 0.0

    contexts = [{"entry": ENTRIES[kind]()}]
    with pytest.raises(WriteError, match="grab 'g' of model 0 at step 11 changes entry in place"):
        train(make_mlps(1), [gaussian(0)], SETTINGS, contexts=contexts, grabs={"g": doubles})


def test_a_write_just_before_a_shrink_is_found(gaussian, make_mlps, short_blocks):
    """Block 3 ends with version counters alone; then a shrink copies the training set."""
    common = {"ONLINE": False, "ONLYTHRESHOLDS": False, "EMA_SMOOTHER": 0.0, "MAX_ITER": 40}
    common |= {"LOSS_CHECKPOINTS": [], "GRAB_EVERY": 9}
    seen = []

    def trained(write, **changes):
        def grab(X_tr):
            seen.append(X_tr)
            if len(seen) == 3:  # at step 9, of config 0: into the training set of config 1
                write(seen[1])
            return 0.0

        seen.clear()
        hs = [validate({**common, **changes, "LR": lr}) for lr in (0.1, 1e-4)]
        fns = [gaussian(k) for k in range(2)]
        return train(make_mlps(2), fns, hs, grabs={"g": grab})

    losses = trained(lambda X: None).train_loss[0]
    stopping = {"LOSS_CHECKPOINTS": [float(losses[9:11].mean())]}
    assert trained(lambda X: None, **stopping).steps.tolist() == [11, 40]
    with pytest.raises(WriteError, match="X of the training set was changed in place"):
        trained(by_numpy, **stopping)


def test_a_training_set_that_a_function_keeps_and_changes_is_refused(make_mlps, monkeypatch):
    monkeypatch.setattr(loop, "BLOCK", 4)
    X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def late(write):
        kept = X.clone()

        def loss(output, y):
            if next(calls) == 9:
                write(kept)
            return (output - y).square().mean()

        calls = iter(range(100))
        settings = {**SETTINGS, "ONLINE": False, "LOSS": loss}
        return train(make_mlps(1), [lambda step: (kept, kept[:, 0])], settings)

    with pytest.raises(WriteError, match="MODEL MLP changes X in place"):
        late(in_place)
    with pytest.raises(WriteError, match="X of the training set was changed in place"):
        late(by_numpy)


def test_data_entries_are_guarded_while_models_and_batches_are_made():
    def shuffling(X_all, bsz, gen):
        X_all[:] = X_all[torch.randperm(len(X_all), generator=gen)]
        return lambda step: (X_all[:bsz].clone(), torch.ones(bsz))

    entry = {"X_all": torch.randn(20, 3)}
    sweep = Sweep("made", {}, batchfn=shuffling, data=lambda: entry, WIDTH=4, N_SAMPLES=5)
    with pytest.raises(
        WriteError, match="batchfn shuffling, or MODEL mlp, changes the data entry X"
    ):
        assemble(sweep, [sweep.config(0)], [entry], torch.device("cpu"))


def test_checksums_see_order_single_bits_and_every_type():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        tensor = (10 * torch.randn(300, 7, generator=generator)).to(dtype)
        guard = Guard({"t": tensor}, sampled=True, whole=True)
        assert guard.changed() == guard.changed(whole=True) == []
        tensor.data[[3, 4]] = (
            tensor[[4, 3]].logical_not() if dtype is torch.bool else tensor[[4, 3]]
        )
        assert guard.changed() == guard.changed(whole=True) == ["t"]
    large = torch.zeros(1 << 20)
    guard = Guard({"t": large}, sampled=True, whole=True)
    large.data[12345] = 1e-30
    assert guard.written() == []
    assert guard.changed(whole=True) == ["t"]
    assert Guard({}).changed() == []


# ---- what is no batch ----------------------------------------------------------------------------

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
NOT_BATCHES = {
    "complex X": ((X * 1j, X[:, 0]), "gave X of complex numbers (complex64); expected real ones"),
    "complex y": ((X, X[:, 0] * 1j), "gave y of complex numbers (complex64)"),
    "complex array": ((X.numpy() * 1j, X[:, 0]), "gave X of complex numbers (complex64)"),
    "masked X": ((np.ma.masked_less(X.numpy(), 0), X[:, 0]), "gave X with masked entries"),
    "masked y": ((X, np.ma.masked_less(X[:, 0].numpy(), 0)), "masked entries; expected numbers al"),
    "sparse X": ((X.to_sparse(), X[:, 0]), "gave X as a tensor that is not dense (sparse_coo)"),
    "sparse y": ((X, X[:, 0].to_sparse()), "try y.to_dense()"),
    "mkldnn X": ((X.to_mkldnn(), X[:, 0]), "not dense (_mkldnn); expected a dense one; try X.to_d"),
    "no columns": ((X[:, :0], X[:, 0]), "X of shape (8, 0) and y of shape (8,)"),
    "no rows": ((X[:0], X[:0, 0]), "X of shape (0, 3) and y of shape (0,)"),
    "None X": ((None, X[:, 0]), "gave X of type NoneType; expected a tensor or an array of numb"),
    "None y": ((X, None), "gave y of type NoneType"),
    "text": ((X, np.array(["a"] * 8)), "gave y of type ndarray"),
    "ragged": (([[1.0], [1.0, 2.0]], X[:2, 0]), "gave X of type list"),
    "a dictionary": ({"X": X, "y": X}, "returned dict; expected a pair (X, y) of tensors"),
    "three": ((X, X, X), "returned 3 values; expected a pair (X, y) of tensors"),
}


@pytest.mark.parametrize("name", NOT_BATCHES)
def test_what_is_no_batch_is_refused(name):
    drawn, text = NOT_BATCHES[name]

    def returned(step):
        return drawn

    with pytest.raises(BatchError) as caught:
        train([MLP(3, 4, 2)], [returned], {"MAX_ITER": 2})
    assert text in str(caught.value)
    assert "batch function returned" in str(caught.value)
    sweep = Sweep("wrong", {}, batchfn=lambda bsz: returned, WIDTH=4)
    with pytest.raises(SpecError) as caught:
        assemble(sweep, [sweep.config(0)], [{}], torch.device("cpu"))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.double]
)
def test_other_real_numbers_become_those_of_the_model(dtype):
    inputs = (X > 0).to(dtype)
    wanted, got = (
        train([MLP(3, 4, 2)], [lambda step, x=x: (x, X[:, 0])], SETTINGS).train_loss
        for x in (inputs.float(), inputs)
    )
    np.testing.assert_array_equal(got, wanted)


def test_arrays_of_any_byte_order_and_stride_are_batches():
    x = X.numpy()
    wanted = train([MLP(3, 4, 2)], [lambda step: (X, X[:, 0])], SETTINGS).train_loss
    for array in (x.astype(">f4"), x[::-1].copy()[::-1], np.asfortranarray(x)):
        got = train([MLP(3, 4, 2)], [lambda step, a=array: (a, a[:, 0])], SETTINGS).train_loss
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_tensors_of_inference_mode_are_copied():
    with torch.inference_mode():
        inputs = X.clone()
    wanted, got = (
        train([MLP(3, 4, 2)], [lambda step, x=x: (x, X[:, 0])], SETTINGS).train_loss
        for x in (X, inputs)
    )
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            lambda f: f * 1j,
            "returned shape (2, 1) and complex64; valid is a tensor (n, ...) of flo",
        ),
        (lambda f: f > 0, "returned shape (2, 1) and bool; valid is a tensor"),
        (lambda f: f[:, :0], "returned shape (2, 0) and float32; valid are 1 output or more"),
        (lambda f: (f, f), "its forward pass returned tuple; valid is a tensor"),
        (lambda f: f.sum(), "returned shape () and float32; valid is a tensor (n, ...)"),
        (lambda f: None, "its forward pass returned NoneType; valid is a tensor"),
    ],
)
def test_outputs_that_are_no_real_numbers_are_refused(output, text, gaussian):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)

        def forward(self, X):
            return output(self.last(self.first(X)))

    with pytest.raises(BatchError) as caught:
        train([Odd()], [gaussian(0)], SETTINGS)
    assert "MODEL Odd: " in str(caught.value)
    assert text in str(caught.value)


def test_a_complex_loss_is_refused(gaussian, make_mlps):
    def turned(output, y):
        return (output - y).square().mean() * 1j

    with pytest.raises(SpecError, match=r"turned\(output, y\) gave shape \(\) of torch.complex64"):
        train(make_mlps(1), [gaussian(0)], {**SETTINGS, "LOSS": turned})
