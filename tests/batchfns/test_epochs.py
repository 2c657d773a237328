"""Minibatches by epoch: each row once per epoch, and nothing to save but the step."""

import io

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from mlpsubmit import Sweep, launch
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.batch_streams import SharedBatches, settings_of, sharing_key
from mlpsubmit.assembly.repeatable_batches import check_batches
from mlpsubmit.batchfns import arrays, epochs, from_dataset, images, sample
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import LooksAhead
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.seeds import streams

N = 11
ROWS = {"X_train": torch.arange(N).float()[:, None], "y_train": torch.arange(N).float()}
TEST = {"X_test": -torch.ones(4, 1), "y_test": -torch.arange(4.0)}


def made(bsz=4, seed=0, online=True, split="train", **more):
    gen = torch.Generator().manual_seed(seed)
    return epochs(**{**ROWS, **more}, bsz=bsz, gen=gen, online=online, split=split)


def drawn(batch_fn, steps):
    return torch.cat([batch_fn(step)[1] for step in steps]).tolist()


def test_an_epoch_has_every_row_once_but_for_those_left_over():
    batch_fn = made(bsz=4)
    of_epochs = [drawn(batch_fn, range(2 * e, 2 * e + 2)) for e in range(40)]
    assert all(len(set(rows)) == 8 for rows in of_epochs)
    assert len(set(map(tuple, of_epochs))) == 40  # reshuffled
    assert {row for rows in of_epochs for row in rows} == set(range(N))  # none is always left over
    assert sorted(drawn(made(bsz=N), [5])) == sorted(drawn(made(bsz=1), range(N, 2 * N)))
    X, y = batch_fn(3)
    assert (X.shape, y.shape) == ((4, 1), (4,))
    assert torch.equal(X[:, 0], y)


def test_a_batch_follows_from_the_step_and_the_seed_alone():
    steps = [7, 0, 3, 7, 2]
    in_order = made()
    expected = {step: drawn(in_order, [step]) for step in range(8)}
    out_of_order = made()
    assert [drawn(out_of_order, [step]) for step in steps] == [expected[step] for step in steps]
    assert drawn(made(seed=1), range(2)) != drawn(made(), range(2))
    gen = torch.Generator().manual_seed(0)
    before = gen.get_state()
    epochs(**ROWS, bsz=4, gen=gen, online=True, split="train")(0)
    assert torch.equal(gen.get_state(), before)


def test_minibatches_of_any_size_run_through_the_same_order():
    assert drawn(made(bsz=2), range(5)) == drawn(made(bsz=5), range(2)) == drawn(made(10), [0])


def test_the_minibatches_of_a_block_are_read_on_the_device():
    batch_fn, called = made(bsz=3), made(bsz=3)
    assert isinstance(batch_fn, LooksAhead)
    for first, block in ((5, 8), (8, 8), (16, 8), (3, 4)):  # from the middle of a block on
        batch_fn.load(first, block)
        for step in range(first, block * (first // block + 1)):
            for one, other in zip(batch_fn.next(), called(step), strict=True):
                assert torch.equal(one, other)
    assert drawn(batch_fn, [2]) == drawn(called, [2])


def test_the_test_set_is_that_of_sample():
    X, y = made(split="test", bsz=100, **TEST)(0)
    assert torch.equal(X, TEST["X_test"])
    assert torch.equal(y, TEST["y_test"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"bsz": 12},
            "epochs: got minibatches of N_SAMPLES=12, and the data have 11 training rows",
        ),
        ({"online": False}, "epochs: got ONLINE=False, where every step trains on the same rows"),
        ({"split": "val"}, "epochs: got split='val'"),
        ({"y_train": torch.ones(3)}, "epochs: X_train has 11 rows and y_train has 3"),
        ({"X_train": [1, 2]}, "epochs: got X_train of type list; .*try data=arrays"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(SpecError, match=message):
        made(**given)


def test_wrong_places_are_refused_when_the_spec_is_read():
    with pytest.raises(
        SpecError, match=r"epochs draws rows of data entries, and there is no data="
    ):
        Sweep(batchfn=epochs)
    for given in ({"ONLINE": False}, {"online": "false"}):
        with pytest.raises(SpecError, match="ONLINE=False means one fixed set for all steps"):
            Sweep(batchfn=epochs, data=images("digits"), **given)
    with pytest.raises(SpecError, match="got the batch function sample; write batchfn=sample"):
        Sweep(batchfn=epochs, data=sample)


SWEEP = {
    "batchfn": epochs,
    "N_SAMPLES": 4,
    "WIDTH": 4,
    "MAX_ITER": 6,
    "EVAL_EVERY": 3,
    "LOSS_CHECKPOINTS": [],
    "ONLYTHRESHOLDS": False,
}


@pytest.mark.parametrize(
    "data",
    [
        arrays(ROWS["X_train"], ROWS["y_train"], TEST["X_test"], TEST["y_test"]),
        from_dataset(
            TensorDataset(ROWS["X_train"], ROWS["y_train"]),
            TensorDataset(TEST["X_test"], TEST["y_test"]),
        ),
    ],
    ids=["arrays", "from_dataset"],
)
def test_arrays_are_data_for_any_batch_function(tmp_path, data):
    def noted(X_train, model):
        return float(len(X_train))

    axes = {"LR": [0.01, 0.02], "trial": range(2)}
    sweep = Sweep("rows", axes, data=data, grabs={"rows": noted}, **SWEEP)
    dataset = launch(sweep, executor="debug", runs_dir=tmp_path).collect()
    assert (dataset.status == "done").all()
    assert (dataset.rows == N).all()
    first = dataset.train_loss.isel(step=0)
    assert (first.isel(lr=0) == first.isel(lr=1)).all()  # paired: the same batches
    assert (first.isel(trial=0) != first.isel(trial=1)).all()


def test_a_test_set_is_not_of_the_rows_of_the_training():
    sweep = Sweep(data=arrays(ROWS["X_train"], ROWS["y_train"]), **SWEEP)
    with pytest.raises(
        SpecError, match=r"by EVAL_EVERY, .* data=held_out\(arrays\(X, y\), test_si"
    ):
        assemble(sweep, list(sweep), [sweep.data()], torch.device("cpu"))


def test_configs_with_equal_data_share_their_batches_and_state_is_not_kept():
    data = arrays(ROWS["X_train"], ROWS["y_train"])
    sweep = Sweep(axes={"LR": [0.1, 0.2], "trial": range(2)}, data=data, **SWEEP)
    entry, cpu = sweep.data(), torch.device("cpu")
    contexts = [settings_of(sweep, config, entry, cpu) for config in sweep]
    seeds = [streams(42, config.trial).train for config in sweep]
    keys = [
        sharing_key(epochs, *one, seed)
        for one, seed in zip([(context, entry) for context in contexts], seeds, strict=True)
    ]
    assert keys[0] == keys[2] != keys[1]
    check_batches(sweep, sweep.config(0), entry, cpu, "batchfn epochs")  # as for a user's own
    shared = SharedBatches(epochs, contexts[0], streams(42, 0), cpu).of_stack(None)
    assert sorted(drawn(shared, range(2)))[0] >= 0


class Saver(Monitor):
    """Saves the state after three steps, or begins with a saved one."""

    def __init__(self, saved=None):
        self.saved, self.restored = saved, saved

    def restore(self):
        return self.restored and torch.load(io.BytesIO(self.restored), weights_only=True)

    def due(self, step):
        return self.restored is None and step == 2

    def save(self, state):
        stream = io.BytesIO()
        torch.save(state, stream)
        self.saved = stream.getvalue()


def test_a_training_goes_on_in_the_middle_of_an_epoch_bit_for_bit():
    data = arrays(ROWS["X_train"], ROWS["y_train"], TEST["X_test"], TEST["y_test"])
    axes = {"N_SAMPLES": [2], "trial": range(2)}  # five steps per epoch
    settings = {**SWEEP, "MAX_ITER": 8, "EVAL_EVERY": 8}
    del settings["N_SAMPLES"]
    sweep = Sweep(axes=axes, data=data, **settings)
    entry = sweep.data()

    def trained(saver):
        (stack,) = assemble(sweep, list(sweep), [entry] * 2, torch.device("cpu"))
        return stack.train(saver)

    saver = Saver()
    straight, resumed = trained(saver), trained(Saver(saver.saved))
    assert saver.saved
    assert np.array_equal(straight.train_loss, resumed.train_loss)
    assert len(np.unique(straight.train_loss)) == straight.train_loss.size
