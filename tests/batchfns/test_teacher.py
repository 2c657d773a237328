import copy
import inspect
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

import mlpsubmit
from mlpsubmit import Sweep
from mlpsubmit.batchfns import polynomial, power_law, teacher, teacher_weights
from mlpsubmit.errors import SpecError
from mlpsubmit.training.seeds import streams

EIGVALS = torch.tensor([4.0, 1.0, 0.25, 0.5, 2.0])
NUMPY = {
    "relu": (lambda u: np.maximum(u, 0), math.sqrt(2)),
    "tanh": (np.tanh, None),
    # E[erf(z)^2] = (2/pi) arcsin(2/3): Williams, Computing with infinite networks, 1997.
    "erf": (erf, 1 / math.sqrt(2 / math.pi * math.asin(2 / 3))),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=200, seed=0, step=0, **arguments):
    arguments = {"d": 5, **({} if "network" in arguments else {"teacher_width": 7}), **arguments}
    return teacher(bsz=n, gen=generator(seed), **arguments)(step)


def redrawn(shapes, seed):
    """The weights as documented: one tensor after another out of a generator of this seed."""
    gen = generator(seed)
    return [torch.randn(shape, generator=gen).double().numpy() for shape in shapes]


@pytest.mark.parametrize("nonlinearity", NUMPY)
@pytest.mark.parametrize("depth", [1, 3])
def test_outputs_are_the_formula(nonlinearity, depth):
    m = 7
    X, y = batch(
        data_eigvals=EIGVALS,
        teacher_depth=depth,
        teacher_nonlinearity=nonlinearity,
        teacher_seed=3,
        standardized=False,
    )
    sigma, gain = NUMPY[nonlinearity]
    if gain is None:
        z, dz = np.linspace(-12, 12, 100_001, retstep=True)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        gain = (sigma(z) ** 2 @ density * dz) ** -0.5
    first, *hidden, readout = redrawn([(m, 5), *[(m, m)] * (depth - 1), (m,)], 3)
    h = gain * sigma(X.double().numpy() @ first.T / math.sqrt(float(EIGVALS.sum())))
    for weight in hidden:
        h = gain * sigma(h @ weight.T / math.sqrt(m))
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), h @ readout / math.sqrt(m), rtol=2e-5, atol=2e-5)


def test_weights_and_targets_are_those_of_every_version():
    W1, W2, a = teacher_weights(2, teacher_width=2, teacher_depth=2, teacher_seed=3)
    torch.testing.assert_close(W1, torch.tensor([[0.803276, 0.174833], [0.088978, -0.613718]]))
    torch.testing.assert_close(W2, torch.tensor([[0.046182, -1.368259], [0.337495, 1.011116]]))
    torch.testing.assert_close(a, torch.tensor([-1.435179, 0.977432]))
    X, y = batch(3, d=2, teacher_width=2, teacher_seed=3)
    expected = torch.tensor([[-0.861976, 0.711365], [-0.206056, 1.938818], [-0.229212, -0.47381]])
    torch.testing.assert_close(X, expected)
    torch.testing.assert_close(y, torch.tensor([0.655966, 0.671982, -0.083789]))


def test_a_sequential_with_the_weights_copied_is_the_teacher():
    W, a = teacher_weights(5, teacher_width=7, teacher_seed=2)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(W / math.sqrt(5))
        model[2].weight.copy_(a[None] * math.sqrt(2 / 7))
    X, y = batch(teacher_seed=2)
    X_same, y_same = batch(network=model, teacher_seed=2)
    assert torch.equal(X, X_same)
    torch.testing.assert_close(y, y_same[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"teacher_width": 1},
        {"teacher_width": 50},
        {"teacher_depth": 3, "teacher_nonlinearity": "tanh"},
        {"data_eigvals": EIGVALS},
        {"network": lambda x: torch.stack([5 + x[:, 0] ** 2, -x.sum(1)], dim=1)},
    ],
)
def test_outputs_have_mean_0_and_variance_1(arguments):
    n = 100_000
    _, y = batch(n, seed=1, **arguments)
    for moment, expected in ((y, 0.0), (y.square(), 1.0)):
        # Both this sample and the 10,000 inputs of the standardization scatter: five deviations.
        error = moment.std(0) * math.sqrt(1 / n + 1 / 10_000)
        assert ((moment.mean(0) - expected).abs() < 5 * error).all()


def test_inputs_are_those_of_polynomial_whatever_the_teacher():
    expected = polynomial({0: 1}, EIGVALS, bsz=8, gen=generator())
    settings = [{}, {"teacher_seed": 1}, {"teacher_depth": 2}, {"network": lambda x: x[:, 0]}]
    for step in range(2):
        X, _ = expected(step)
        for arguments in settings:
            arguments = (
                {"teacher_width": 3, **arguments} if "network" not in arguments else arguments
            )
            batch_fn = teacher(bsz=8, gen=generator(), data_eigvals=EIGVALS, **arguments)
            if step:
                batch_fn(0)
            assert torch.equal(batch_fn(step)[0], X)


def test_isotropic_inputs_are_a_spectrum_of_ones():
    for one, two in zip(batch(), batch(data_eigvals=torch.ones(5)), strict=True):
        assert torch.equal(one, two)


def test_the_teacher_follows_from_its_seed_alone():
    torch.manual_seed(5)
    one = batch()[1]
    torch.manual_seed(6)
    assert torch.equal(batch()[1], one)
    assert not torch.equal(batch(teacher_seed=1)[1], one)
    assert not torch.equal(batch(seed=1)[1], one)
    # Another stream of inputs, but the same function: undo the shift and scale by a fit of a line.
    X, y = batch(seed=1, teacher_seed=4)
    W, a = teacher_weights(5, teacher_width=7, teacher_seed=4)
    T = torch.relu(X @ W.T) @ a
    assert float(torch.corrcoef(torch.stack([T, y]))[0, 1]) == pytest.approx(1, abs=1e-5)


def test_the_network_of_the_user_is_copied_frozen_and_left_as_it_is():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    batch_fn = teacher(bsz=6, gen=generator(), network=model, d=5, standardized=False)
    X, y = batch_fn(0)
    assert model.training
    assert y.shape == (6, 2)
    assert not y.requires_grad
    torch.testing.assert_close(y, copy.deepcopy(model).eval()(X).detach())
    with torch.no_grad():
        model[0].weight.zero_()
    frozen, expected = batch_fn(1), copy.deepcopy(model).eval()
    expected.load_state_dict(before)
    torch.testing.assert_close(frozen[1], expected(frozen[0]).detach())


def test_given_X_and_y_come_back_at_every_step():
    X, y = batch(4)
    batch_fn = teacher(bsz=4, gen=generator(), X=X, y=y)
    for step in range(2):
        assert batch_fn(step)[0] is X
        assert batch_fn(step)[1] is y


def test_composes_with_power_law_in_a_sweep(tmp_path):
    sweep = Sweep(
        axes={"teacher_width": [1, 4], "alpha": [0.0, 2.0]},
        data=power_law(),
        batchfn=teacher,
        DATASETHPS={"d": 6},
        N_SAMPLES=50,
        WIDTH=8,
        MAX_ITER=2,
        ONLYTHRESHOLDS=False,
    )
    results = mlpsubmit.launch(sweep, executor="debug", runs_dir=tmp_path).collect()
    assert set(results.status.values.ravel()) == {"done"}
    seed = streams(42, 0).train
    for width, alpha in itertools.product([1, 4], [0.0, 2.0]):
        spectrum = power_law(d=6, alpha=alpha)()
        y = teacher(bsz=50, gen=generator(seed), teacher_width=width, **spectrum)(0)[1]
        # A centred network is 0 at first, so that its loss is the mean square of the targets.
        found = results.train_loss.sel(teacher_width=width, alpha=alpha, step=0)
        assert float(found) == pytest.approx(float(y.square().mean()), rel=1e-5)


def test_a_network_of_the_user_keeps_its_key_when_pickled():
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))
    sweep = Sweep(data=power_law(d=6, alpha=1.0), batchfn=teacher, network=model)
    copied = pickle.loads(pickle.dumps(sweep))
    assert next(iter(copied)).key == next(iter(sweep)).key


def test_no_argument_has_the_name_of_a_models():
    """A setting reaches every function that declares it: MLP has width, depth and nonlinearity."""
    from mlpsubmit.training import MLP

    assert set(inspect.signature(teacher).parameters).isdisjoint(inspect.signature(MLP).parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_width": 0}, r"teacher: got teacher_width=0; valid is an integer >= 1"),
        ({"teacher_depth": 1.5}, r"got teacher_depth=1\.5; valid is an integer >= 1"),
        ({"teacher_seed": -1}, r"got teacher_seed=-1; valid is an integer from 0 to 2\*\*32 - 1"),
        ({"standardized": "no"}, r"got standardized='no'; valid is True or False"),
        (
            {"teacher_nonlinearity": "tahn"},
            r"got teacher_nonlinearity='tahn'; valid is 'relu', 'tanh', 'erf' or an elementwise "
            r"function \(did you mean 'tanh'\?\)",
        ),
        ({"teacher_nonlinearity": torch.sum}, r"teacher_nonlinearity is not elementwise; valid is"),
        ({"teacher_nonlinearity": torch.zeros_like}, r"has the mean square 0 under N\(0, 1\)"),
        ({"network": 3}, r"got network=3; valid is an nn\.Module or a function x \(n, d\) -> y"),
        (
            {"network": torch.sum, "teacher_width": 3},
            r"got both of teacher_width and network; give",
        ),
        ({"teacher_width": None}, r"got neither of teacher_width and network; give exactly one"),
        (
            {"network": torch.sum},
            r"the network gave the shape \(\) for 10000 inputs; valid is a te",
        ),
        ({"network": lambda x: 3.0}, r"the network gave float for 10000 inputs"),
        ({"network": lambda x: 0.1 + 0 * x}, r"an output that is constant or not finite over Gaus"),
        ({"network": lambda x: x / 0}, r"constant or not finite .* try another network, or stand"),
        ({"d": None}, r"teacher: the dimension of the inputs is not given; give d=200, or a spect"),
        ({"d": 0}, r"teacher: got d=0; valid is an integer >= 1"),
        ({"data_eigvals": torch.ones(4)}, r"teacher: got d=5, but data_eigvals has 4 entries; lea"),
        ({"data_eigvals": torch.ones(5, 1)}, r"teacher: data_eigvals has the shape \(5, 1\); vali"),
        (
            {"data_eigvals": -torch.ones(5)},
            r"data_eigvals has 5 entries that are negative or not f",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SpecError, match=message):
        batch(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0}, r"teacher_weights: got d=0; valid is an integer >= 1, such as 200"),
        (
            {"teacher_width": 2.0},
            r"teacher_weights: got teacher_width=2\.0; valid is an integer >=",
        ),
        ({"teacher_depth": 0}, r"teacher_weights: got teacher_depth=0; valid is an integer >= 1"),
        ({"teacher_seed": -1}, r"teacher_weights: got teacher_seed=-1; valid is an integer from 0"),
        ({"d": None, "teacher_seed": "a"}, r"2 errors"),
    ],
)
def test_bad_arguments_of_the_weights(arguments, message):
    with pytest.raises(SpecError, match=message):
        teacher_weights(**{"d": 5, "teacher_width": 3, **arguments})


def test_integers_may_be_those_of_numpy():
    chosen = {"d": 5, "teacher_width": 7, "teacher_depth": 3, "teacher_seed": 3}
    of_numpy = {name: np.int64(value) for name, value in chosen.items()}
    for one, other in zip(teacher_weights(**chosen), teacher_weights(**of_numpy), strict=True):
        assert torch.equal(one, other)
    assert all(map(torch.equal, batch(**chosen), batch(**of_numpy)))


def test_all_bad_values_are_listed_together():
    with pytest.raises(SpecError, match=r"3 errors"):
        batch(teacher_width=0, teacher_depth=0, teacher_seed=-1)


@pytest.mark.gpu
def test_on_a_gpu_the_teacher_is_the_same_and_steps_never_wait():
    gen = torch.Generator("cuda").manual_seed(0)
    batch_fn = teacher(bsz=50, gen=gen, teacher_width=7, d=5)
    X, y = (part.cpu() for part in batch_fn(0))
    W, a = teacher_weights(5, teacher_width=7)
    T = torch.relu(X @ W.T) @ a
    assert float(torch.corrcoef(torch.stack([T, y]))[0, 1]) == pytest.approx(1, abs=1e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch_fn(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
