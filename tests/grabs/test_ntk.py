"""The neural tangent kernel against gradients taken one by one, closed forms and torch.func."""

import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.utils.parametrize import register_parametrization as parametrize_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlpsubmit import MLP, SpecError, train
from mlpsubmit import grabs as library
from mlpsubmit.grabs import (
    empirical_ntk,
    empirical_ntk_trace,
    ntk_alignment,
    ntk_eigenvalues,
    ntk_eigenvectors,
)
from mlpsubmit.spec.hyperparameters import PARAMETRIZATIONS
from mlpsubmit.training.parametrizations import parametrize

IMAGES = (3, 6, 5)
NAMES = [name for name in library.__all__ if "ntk" in name]


class Function(nn.Module):
    """A network whose forward pass is a function of it and of X."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.compute = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, X):
        return self.compute(self, X)


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape))


def conv_net(*layers):
    features = nn.Sequential(*layers)
    size = features(torch.zeros(1, *IMAGES)).numel()
    return nn.Sequential(features, nn.Tanh(), nn.Flatten(), nn.Linear(size, 2))


def shared():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    return net


def frozen(*names):
    net = MLP(4, 5, 2, 2)
    for name in names:
        net.get_parameter(name).requires_grad_(False)
    return net


def overridden():
    """A layer whose forward function was replaced, as mupify does it."""
    net = MLP(4, 5, 2, 2)
    layer = net.input_layer
    layer.forward = lambda X: nn.functional.linear(X, layer.weight, layer.bias) * 3
    return net


def reparametrized():
    layer = nn.Linear(4, 2)
    parametrize_weights(layer, "weight", Function(lambda _, W: W.sin()))
    return layer


#: Networks by name: of inputs (4,), and of images where the name begins with conv.
NETS = {
    "one layer": lambda: nn.Linear(4, 2),
    "custom nonlinearity": lambda: MLP(4, 5, 2, 2, nonlinearity=Function(lambda _, X: X * X.sin())),
    "inplace": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
    "residual": lambda: Function(
        lambda net, X: net.c(X + net.b(torch.tanh(net.a(X)))),
        a=nn.Linear(4, 5),
        b=nn.Linear(5, 4),
        c=nn.Linear(4, 2),
    ),
    "by keyword": lambda: Function(
        lambda net, X: nn.functional.linear(weight=net.W, input=X, bias=net.b),
        W=matrix(2, 4),
        b=matrix(2),
    ),
    "rows in second place": lambda: Function(
        lambda net, X: net.b(torch.tanh(net.a(X.view(-1, 2, 2).transpose(0, 1)))).sum(0),
        a=nn.Linear(2, 3),
        b=nn.Linear(3, 2),
    ),
    "positions among the rows": lambda: Function(
        lambda net, X: net.b(torch.tanh(net.a(X.reshape(-1, 2))).view(len(X), -1)),
        a=nn.Linear(2, 3),
        b=nn.Linear(6, 2),
    ),
    "reused layer": lambda: Function(
        lambda net, X: net.b(net.a(torch.tanh(net.a(X)))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)
    ),
    "output without an axis": lambda: Function(lambda net, X: net.a(X)[:, 0], a=nn.Linear(4, 2)),
    "output with two axes": lambda: Function(
        lambda net, X: net.a(X).tanh().view(-1, 3, 2), a=nn.Linear(4, 6)
    ),
    "overridden forward function": overridden,
    "frozen": lambda: frozen("input_layer.weight", "output_layer.bias", "hidden_layers.0.bias"),
    "scalar parameter": lambda: Function(
        lambda net, X: net.scale * net.a(X).tanh(),
        a=nn.Linear(4, 2),
        scale=nn.Parameter(torch.tensor(1.5)),
    ),
    "unused layer": lambda: Function(lambda net, X: net.a(X), a=nn.Linear(4, 2), b=nn.Linear(4, 2)),
    "weight of two layers": shared,
    "transposed weight": lambda: Function(
        lambda net, X: torch.tanh(net.a(X)) @ net.a.weight, a=nn.Linear(4, 3)
    ),
    "used otherwise too": lambda: Function(
        lambda net, X: net.a(X) * net.a.weight.norm(), a=nn.Linear(4, 2)
    ),
    "rescaled weight": lambda: Function(
        lambda net, X: nn.functional.linear(X, net.a.weight / 2, net.a.bias), a=nn.Linear(4, 2)
    ),
    "rescaled bias": lambda: Function(
        lambda net, X: nn.functional.linear(X, net.a.weight, net.a.bias * 3), a=nn.Linear(4, 2)
    ),
    "detached bias": lambda: Function(
        lambda net, X: nn.functional.linear(X, net.a.weight, net.a.bias.detach() * 3),
        a=nn.Linear(4, 2),
    ),
    "used otherwise only": lambda: Function(
        lambda net, X: net.a(X).detach() * net.a.weight.norm() * net.a.bias.norm(),
        a=nn.Linear(4, 2),
    ),
    "reparametrized": reparametrized,
    "no module": lambda: Function(
        lambda net, X: torch.tanh(X @ net.W) @ net.V, W=matrix(4, 5), V=matrix(5, 2)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
    "batch norm in eval mode": lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).eval(),
    "partly detached": lambda: Function(
        lambda net, X: net.b(torch.tanh(net.a(X).detach() * net.a(X))),
        a=nn.Linear(4, 5),
        b=nn.Linear(5, 2),
    ),
    "constant": lambda: Function(lambda net, X: X * 2, a=nn.Linear(4, 2)),
    "conv": lambda: conv_net(nn.Conv2d(3, 4, 3)),
    "conv of everything": lambda: conv_net(nn.Conv2d(3, 4, (6, 5), bias=False)),
    "conv with options": lambda: conv_net(
        nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3)
    ),
    "conv without bias": lambda: conv_net(nn.Conv2d(3, 4, 2, stride=2, bias=False)),
    "conv same": lambda: conv_net(nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(2, 1))),
    "conv valid": lambda: conv_net(nn.Conv2d(3, 4, 2, padding="valid")),
    "conv circular": lambda: conv_net(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
    "conv of conv": lambda: conv_net(
        nn.Conv2d(3, 4, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, groups=2)
    ),
    "conv twice": lambda: conv_net(*[nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()] * 2),
    "conv without a batch": lambda: Function(
        lambda net, X: net.a(torch.stack([net.conv(x) for x in X]).flatten(1)),
        conv=nn.Conv2d(3, 2, 3),
        a=nn.Linear(24, 2),
    ),
}


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def net_and_inputs(name, n=5):
    net = NETS[name]()
    return net, torch.randn(n, *(IMAGES if name.startswith("conv") else (4,)))


def jacobian(model, X):
    """The gradient of every output at every row, one backward pass each, (n, C, parameters)."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradient(output):
        if not output.requires_grad:
            return torch.zeros(sum(p.numel() for p in trained))
        parts = torch.autograd.grad(output, trained, retain_graph=True, allow_unused=True)
        pairs = zip(parts, trained, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    return torch.stack([torch.stack([gradient(f) for f in model(x[None]).flatten()]) for x in X])


def expected(model, X):
    """The kernels of all pairs of outputs, (n, n, C, C)."""
    J = jacobian(model, X)
    return torch.einsum("iap,jbp->ijab", J, J)


def check(model, X, **options):
    K = expected(model, X)
    traced = torch.einsum("ijaa->ij", K) / K.shape[2]
    close(empirical_ntk(model, X, outputs="full", **options), K)
    close(empirical_ntk(model, X, **options), traced)
    close(empirical_ntk_trace(model, X, **options), traced.trace())


def close(tensor, values):
    assert not tensor.requires_grad
    torch.testing.assert_close(tensor, values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [1, 3])
def test_mlp(depth, bias, d_out):
    check(MLP(4, 6, depth, d_out, bias=bias), torch.randn(5, 4))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("d_out", [1, 3])
def test_parametrizations_with_their_multipliers(parametrization, d_out):
    model = MLP(4, 6, 2, d_out)
    parametrize(model, parametrization, gamma=3.0)
    check(model, torch.randn(5, 4))


@pytest.mark.parametrize("parametrization", ["mup", "ntp-lr"])
def test_convolutions_with_their_multipliers(parametrization):
    model = conv_net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2))
    parametrize(model, parametrization, gamma=0.2)
    check(model, torch.randn(4, *IMAGES))


@pytest.mark.parametrize("name", NETS)
def test_any_model(name):
    check(*net_and_inputs(name))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_is_wider_on_one_side():
    check(conv_net(nn.Conv2d(3, 4, (2, 4), padding="same")), torch.randn(5, *IMAGES))


@pytest.mark.parametrize("name", ["custom nonlinearity", "reused layer", "layer norm", "conv"])
def test_against_jacrev(name):
    model, X = net_and_inputs(name)
    weights = {key: p.detach() for key, p in model.named_parameters()}
    J = torch.func.vmap(
        jacrev(lambda values, x: functional_call(model, values, (x[None],))[0]), (None, 0)
    )(weights, X)
    J = torch.cat([j.flatten(2) for j in J.values()], dim=2)
    close(empirical_ntk(model, X, outputs="full"), torch.einsum("iap,jbp->ijab", J, J))


def test_closed_forms_of_a_linear_model():
    X = torch.randn(6, 4)
    close(empirical_ntk(nn.Linear(4, 1), X), X @ X.T + 1)
    close(empirical_ntk(nn.Linear(4, 3, bias=False), X), X @ X.T)
    eye = torch.eye(3)[None, None]
    close(empirical_ntk(nn.Linear(4, 3), X, outputs="full"), (X @ X.T + 1)[:, :, None, None] * eye)


def test_gradient_descent_moves_the_outputs_along_the_kernel():
    model, X, y = MLP(4, 6, 2), torch.randn(5, 4), torch.randn(5, 1)
    f = model(X)
    (0.5 * (f - y).square().sum()).backward()
    K, rate = empirical_ntk(model, X), 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    torch.testing.assert_close((model(X) - f) / rate, -K @ (f - y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["layer norm", "no module", "conv", "conv twice", "reused layer"])
@pytest.mark.parametrize("chunk_bytes", [1, 3000, 20_000])
def test_nothing_depends_on_how_the_work_is_cut(name, chunk_bytes):
    check(*net_and_inputs(name, n=3), chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("outputs", ["trace", "full"])
@pytest.mark.parametrize("chunk_bytes", [2**28, 40_000, 1])
@pytest.mark.parametrize("n", [3, 13])
def test_symmetry_to_the_last_bit(outputs, chunk_bytes, n):
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Linear(7, 33), nn.LayerNorm(33), nn.ReLU(), nn.Linear(33, 3))
    K = empirical_ntk(model, torch.randn(n, 7), outputs=outputs, chunk_bytes=chunk_bytes)
    assert K.dtype == torch.float32
    assert torch.equal(K, K.transpose(0, 1) if outputs == "trace" else K.permute(1, 0, 3, 2))


class Largest(TorchDispatchMode):
    """Records how many entries the largest tensor has that is made: views take no memory."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        there = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
        for tensor in tensors_of(result):
            if tensor.untyped_storage().data_ptr() not in there:
                self.entries = max(self.entries, tensor.numel())
        return result


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def largest(function, *args, **kwargs):
    with Largest() as watch:
        function(*args, **kwargs)
    return watch.entries


@pytest.mark.parametrize("grab", [empirical_ntk, empirical_ntk_trace])
def test_gradients_with_respect_to_linear_layers_are_never_written_out(grab):
    n, width = 10, 100
    model = MLP(4, width, 3, 2)
    parametrize(model, "mup")
    assert largest(grab, model, torch.randn(n, 4)) < width * width
    reference = largest(jacobian, model, torch.randn(n, 4))
    assert reference > 2 * n * 2 * width * width, "the recorder sees what is made"


@pytest.mark.parametrize("grab", [empirical_ntk, empirical_ntk_trace])
@pytest.mark.parametrize("outputs_at_once", [1, 3])
def test_memory_is_bounded(grab, outputs_at_once):
    n, C, width = 12, 3, 40
    model = Function(
        lambda net, X: torch.tanh(torch.tanh(X @ net.U) @ net.W) @ net.V,
        U=matrix(4, width),
        W=matrix(width, width),
        V=matrix(width, C),
    )
    X, parameters = torch.randn(n, 4), sum(p.numel() for p in model.parameters())
    assert largest(grab, model, X) >= n * C * width * width
    bound = outputs_at_once * parameters
    assert largest(grab, model, X, chunk_bytes=2 * 8 * bound) <= bound


def test_patches_of_images_count_towards_the_bound():
    model = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.Flatten(), nn.Linear(400, 1))
    X = torch.randn(6, 2, 20, 20)
    patches = 2 * 49 * 400
    assert largest(empirical_ntk, model, X) >= 6 * patches
    assert largest(empirical_ntk, model, X, chunk_bytes=2 * 8 * 2 * (patches + 2000)) <= 3 * patches


def test_only_the_first_rows():
    model, X, y = MLP(4, 6, 2), torch.randn(5, 4), torch.randn(5)
    K = empirical_ntk(model, X)[:3, :3]
    close(empirical_ntk(model, X, rows=3), K)
    close(empirical_ntk_trace(model, X, rows=3), K.trace())
    close(ntk_eigenvalues(model, X, count=1, rows=3), torch.linalg.eigvalsh(K)[-1:])
    close(ntk_alignment(model, X, y, rows=3), y[:3] @ K @ y[:3] / (K.norm() * y[:3].square().sum()))
    close(empirical_ntk(model, X, rows=99), empirical_ntk(model, X))
    sizes = {"rows": np.int64(3), "chunk_bytes": np.int64(1)}
    close(empirical_ntk(model, X, **sizes), K)
    close(ntk_eigenvalues(model, X, np.int64(2), **sizes), ntk_eigenvalues(model, X, 2, rows=3))


def cosine(K, G):
    return torch.nn.functional.cosine_similarity(K.flatten(), G.flatten(), dim=0)


def test_alignment():
    model, X, y = MLP(4, 6, 2), torch.randn(5, 4), torch.randn(5)
    K = empirical_ntk(model, X)
    for outputs in ("trace", "full"):
        close(ntk_alignment(model, X, y, outputs=outputs), cosine(K, torch.outer(y, y)))
        close(ntk_alignment(model, X, y[:, None], outputs=outputs), cosine(K, torch.outer(y, y)))
    assert ntk_alignment(model, X, torch.zeros(5)).isnan()


def test_alignment_with_several_outputs():
    model, X, Y = MLP(4, 6, 2, 3), torch.randn(5, 4), torch.randn(5, 3)
    K = expected(model, X)
    close(ntk_alignment(model, X, Y), cosine(torch.einsum("ijaa->ij", K), Y @ Y.T))
    G = torch.einsum("ia,jb->ijab", Y, Y)
    close(ntk_alignment(model, X, Y, outputs="full"), cosine(K, G))


def test_alignment_with_classes_is_that_of_one_hot_targets():
    model, X, y = MLP(4, 6, 2, 3), torch.randn(5, 4), torch.tensor([0, 1, 0, 0, 1])
    same_class = (y[:, None] == y).to(X.dtype)
    close(ntk_alignment(model, X, y), cosine(empirical_ntk(model, X), same_class))
    close(ntk_alignment(model, X, y[:, None]), ntk_alignment(model, X, y))
    close(ntk_alignment(model, X, y[:, None], rows=3), ntk_alignment(model, X[:3], y[:3]))
    one_hot = torch.eye(3)[y]
    close(
        ntk_alignment(model, X, y, outputs="full"),
        ntk_alignment(model, X, one_hot, outputs="full"),
    )


def test_integer_targets_of_one_output_are_numbers():
    model, X, signs = MLP(4, 6, 2), torch.randn(5, 4), torch.tensor([1, -1, 1, 1, -1])
    close(ntk_alignment(model, X, signs), ntk_alignment(model, X, signs.double()))


def test_alignment_is_one_for_the_kernel_of_the_targets():
    X = torch.randn(5, 1)
    close(ntk_alignment(nn.Linear(1, 1, bias=False), X, 3 * X), torch.tensor(1.0))


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_eigenpairs(outputs):
    model, X = MLP(4, 6, 2, 2), torch.randn(5, 4)
    K = empirical_ntk(model, X, outputs=outputs)
    K = K if outputs == "trace" else K.transpose(1, 2).reshape(10, 10)
    eigvals, eigvecs = np.linalg.eigh(K.numpy())
    values = ntk_eigenvalues(model, X, count=3, outputs=outputs)
    vectors = ntk_eigenvectors(model, X, count=3, outputs=outputs)
    close(values, torch.from_numpy(eigvals[:-4:-1].copy()))
    close(K @ vectors, vectors * values)
    close(vectors.T @ vectors, torch.eye(3))
    largest_entries = vectors[vectors.abs().argmax(dim=0), range(3)]
    np.testing.assert_allclose(largest_entries, np.abs(eigvecs[:, :-4:-1]).max(axis=0))


def test_a_network_that_is_no_longer_finite():
    model, X = MLP(4, 6, 2), torch.randn(5, 4)
    with torch.no_grad():
        model.input_layer.weight[0, 0] = torch.inf
    assert empirical_ntk(model, X).isnan().any()
    assert ntk_eigenvalues(model, X, count=2).isnan().all()
    assert ntk_eigenvectors(model, X, count=2).isnan().all()


def measure(name, model, X):
    grab = getattr(library, name)
    offered = {"X_tr": X, "y_tr": torch.randn(len(X), 2), "count": 2}
    declared = inspect.signature(grab).parameters
    return grab(model, **{key: value for key, value in offered.items() if key in declared})


def everything_of(model):
    hooks = [
        {name: dict(value) for name, value in vars(module).items() if name.endswith("hooks")}
        for module in model.modules()
    ]
    flags = [p.requires_grad for p in model.parameters()] + [m.training for m in model.modules()]
    return copy.deepcopy(model.state_dict()), hooks, flags


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["layer norm", "conv of conv", "batch norm in eval mode"])
def test_the_model_is_left_as_it_is(name, net):
    model, X = net_and_inputs(net)
    model.register_forward_hook(lambda module, args, output: output * 2)
    before = everything_of(model)
    X.requires_grad_()
    measure(name, model, X)
    after = everything_of(model)
    assert before[1:] == after[1:]
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert all(tensor.grad is None for tensor in (X, *model.parameters()))


def test_the_model_is_left_as_it_is_when_it_raises():
    def raise_on_the_third_call(net, X):
        net.calls.append(X)
        if len(net.calls) == 3:
            raise RuntimeError("out of luck")
        return net.layer(X)

    model = Function(raise_on_the_third_call, layer=nn.Linear(4, 2), calls=[])
    before = everything_of(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        empirical_ntk(model, torch.randn(3, 4))
    torch.testing.assert_close(before, everything_of(model), rtol=0, atol=0)
    X = torch.randn(3, 4)
    close(empirical_ntk(model, X), X @ X.T + 1)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.BatchNorm1d(5, affine=False, track_running_stats=False),
        lambda: Function(lambda _, X: X - X.mean(dim=0)),
        lambda: Function(lambda _, X: X.flip(0)),
    ],
)
@pytest.mark.parametrize("n", [1, 6])
def test_rows_that_influence_each_other_are_refused(mixing, n):
    model = nn.Sequential(nn.Linear(4, 5), mixing(), nn.Tanh(), nn.Linear(5, 1))
    before = everything_of(model)
    message = (
        r"tangent kernel of Sequential cannot be taken: it is that of outputs f\(x\) at single "
        r"rows x of a batch, but here .* depends on other rows; try a model without batch norm"
    )
    with pytest.raises(SpecError, match=message):
        empirical_ntk(model, torch.randn(n, 4))
    torch.testing.assert_close(before[0], everything_of(model)[0], rtol=0, atol=0)


def test_inputs_that_are_no_floating_point_numbers():
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    check(model, torch.randint(7, (5, 2)))


MODEL, INPUTS = MLP(4, 6, 2, 2).float(), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: empirical_ntk(MODEL, INPUTS, outputs="ful"),
            r"empirical_ntk: got outputs='ful' \(did you mean 'full'\?\); valid are 'trace' for",
        ),
        (
            lambda: ntk_eigenvalues(MODEL, INPUTS, count=4),
            r"ntk_eigenvalues: got count=4, but the kernel is a matrix \(3, 3\); valid are "
            r"integers from 1 to 3",
        ),
        (
            lambda: ntk_eigenvectors(MODEL, INPUTS, count=0, outputs="full"),
            r"ntk_eigenvectors: got count=0, but the kernel is a matrix \(6, 6\); valid are",
        ),
        (lambda: ntk_eigenvalues(MODEL, INPUTS, count=2.0), r"got count=2.0, but the kernel is"),
        (
            lambda: ntk_alignment(MODEL, INPUTS, torch.zeros(3, 1)),
            r"ntk_alignment: got y_tr of shape \(3, 1\) for 3 rows and 2 outputs; valid are",
        ),
        (
            lambda: empirical_ntk_trace(MODEL, INPUTS, rows=0),
            r"empirical_ntk_trace: got rows=0; valid is",
        ),
        (
            lambda: ntk_alignment(MODEL, INPUTS, torch.zeros(3)),
            r"ntk_alignment: got y_tr of shape \(3,\) for 3 rows and 2 outputs; valid are targets "
            r"\(n, C\) = \(3, 2\), or classes, integers of shape \(n,\) or \(n, 1\)$",
        ),
        (
            lambda: ntk_alignment(nn.Linear(4, 1), INPUTS, torch.zeros(3, 2)),
            r"got y_tr of shape \(3, 2\) for 3 rows and 1 outputs; valid are targets .*\(3, 1\)$",
        ),
        (
            lambda: empirical_ntk(nn.Linear(4, 1).requires_grad_(False), INPUTS),
            r"tangent kernel of Linear cannot be taken: it is a sum over the parameters that "
            r"require gradients, and none does; try model.requires_grad_\(\)",
        ),
    ],
)
def test_errors(make, message):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize("d_out", [1, 2])
def test_in_the_train_loop(d_out):
    torch.set_default_dtype(torch.float32)
    X, Y = torch.randn(6, 4), torch.randn(6, d_out)
    models = [MLP(4, 8, 2, d_out) for _ in range(3)]
    result = train(
        models,
        [lambda step: (X, Y)] * 3,
        {"MAX_ITER": 4, "LOSS_CHECKPOINTS": [], "LR": 0.2},
        trials=range(3),
        grabs={
            "kernel": empirical_ntk,
            "before": lambda model0, X_tr: empirical_ntk(model0, X_tr),
            "trace": empirical_ntk_trace,
            "alignment": ntk_alignment,
        },
    )
    for config, model in enumerate(models):
        K = torch.einsum("ijaa->ij", expected(model, X)) / d_out
        np.testing.assert_allclose(result.grabs["kernel"][config], K, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.grabs["trace"][config], K.trace(), rtol=1e-4)
        np.testing.assert_allclose(result.grabs["alignment"][config], cosine(K, Y @ Y.T), rtol=1e-4)
    assert len(np.unique(result.grabs["before"][:, 0, 0])) == 3
    assert not np.isclose(result.grabs["before"], result.grabs["kernel"]).any()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["layer norm", "conv of conv", "reused layer"])
def test_on_a_gpu(name):
    model, X = net_and_inputs(name)
    K = empirical_ntk(model, X, outputs="full")
    on_gpu = empirical_ntk(model.cuda(), X.cuda(), outputs="full")
    assert on_gpu.is_cuda
    close(on_gpu.cpu(), K)
