"""Teachers: targets that are the outputs of a fixed network on Gaussian inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.gaussian import check_outputs, gaussian_batches, standard_deviations
from mlpsubmit.batchfns.validation import RULES, check_arguments, check_exactly_one
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.protocol import BatchFn

__all__ = ["teacher", "teacher_weights"]

#: A function of inputs (n, d) that returns outputs (n,) or (n, d_out).
Network: TypeAlias = Callable[[Tensor], Tensor]

_NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
}

#: Number of inputs for the mean and variance of a teacher, the default size of a test set.
REFERENCE_INPUTS = 10_000


def teacher(
    bsz: int,
    gen: torch.Generator,
    teacher_width: int | None = None,
    teacher_depth: int = 1,
    teacher_nonlinearity: str | Callable[[Tensor], Tensor] = "relu",
    teacher_seed: int = 0,
    network: Network | None = None,
    standardized: bool = True,
    d: int | None = None,
    data_eigvals: Tensor | None = None,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    r"""Batch function of Gaussian inputs and the outputs of a fixed random network on them.

    With :math:`x \sim N(0, \Lambda)`, weights W_1 (m, d), W_2, ..., W_L (m, m) and a (m,) of
    independent N(0, 1) entries, and c such that :math:`c^2\, E[\sigma(z)^2] = 1` for z ~ N(0, 1):

    .. math::
        h_1 = c\,\sigma\Big(\frac{W_1 x}{\sqrt{\mathrm{tr}\,\Lambda}}\Big), \qquad
        h_l = c\,\sigma\Big(\frac{W_l h_{l-1}}{\sqrt m}\Big), \qquad
        T(x) = \frac{a \cdot h_L}{\sqrt m},

    so that preactivations and T have mean square 1 over weights and inputs. Over the inputs alone,
    mean and variance depend on the network: y is T shifted and scaled to E[y] = 0 and E[y^2] = 1,
    with both estimated on 10,000 fixed inputs (thus to within a few percent).

    The weights depend on ``teacher_seed`` alone: all trials, configs and devices have the same
    teacher, and ``teacher_seed`` can be an axis. The inputs depend on the generator alone: configs
    that differ in their teachers see the same X, that of ``polynomial``.

    Args:
        bsz: batch size n.
        gen: the generator of all draws, on the device where X and y are needed.
        teacher_width: m, the number of units in each hidden layer.
        teacher_depth: L, the number of hidden layers.
        teacher_nonlinearity: sigma: "relu", "tanh", "erf", or an elementwise function of tensors.
        teacher_seed: seed of its weights and of the inputs for its mean and variance.
        network: a teacher to use instead of a random one: an nn.Module (copied, in eval mode) or a
            function from x (n, d) to (n,) or (n, d_out).
        standardized: whether outputs are shifted and scaled as above; otherwise y is T(x), or
            network(x).
        d: input dimension, for inputs of covariance I.
        data_eigvals: (d,) the diagonal of Lambda, as ``power_law`` returns it.
        X: if X and y are given, every step returns them (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (n, d), y (n,) or (n, d_out))``, float32, without gradients.

    Raises:
        SpecError: listing bad values; if both or neither of teacher_width and network are
            given; and for outputs of the wrong shape, or that are constant or not finite.

    Example:
        >>> sweep = Sweep(axes={"teacher_width": [1, 4, 16]}, batchfn=teacher, d=50)
        >>> X, y = teacher(teacher_width=4, d=50, bsz=10_000, gen=torch.Generator())(0)
        >>> round(float(y.square().mean()), 1)
        1.0
    """
    if X is not None and y is not None:
        return fixed(X, y)
    scale = standard_deviations("teacher", d, data_eigvals, gen.device)
    _check(locals())
    if isinstance(network, nn.Module):
        apply: Network = copy.deepcopy(network).to(gen.device).eval()
    elif network is not None:
        apply = network
    else:
        assert teacher_width is not None
        weights = teacher_weights(len(scale), teacher_width, teacher_depth, teacher_seed)
        apply = _random_network(weights, teacher_nonlinearity, scale)
    if standardized:
        apply = _standardized(apply, scale, teacher_seed)
    return gaussian_batches(scale, bsz, gen, lambda Z, X: apply(X))


def teacher_weights(
    d: int, teacher_width: int, teacher_depth: int = 1, teacher_seed: int = 0
) -> list[Tensor]:
    """Return the weights of the network of :func:`teacher`, before any scaling, on the CPU.

    For grabs that compare the weights of the student with those of the teacher.

    Returns:
        W_1 (m, d), W_2, ..., W_L (m, m) and a (m,), float32, entries N(0, 1).

    Raises:
        SpecError: listing every bad value.

    Example:
        >>> [tuple(weight.shape) for weight in teacher_weights(5, teacher_width=3, teacher_depth=2)]
        [(3, 5), (3, 3), (3,)]
    """
    check_arguments("teacher_weights", locals())
    m, hidden = int(teacher_width), int(teacher_depth) - 1
    shapes = [(m, int(d)), *[(m, m)] * hidden, (m,)]
    gen = torch.Generator().manual_seed(int(teacher_seed))
    return [torch.randn(shape, generator=gen) for shape in shapes]


def _check(arguments: dict[str, Any]) -> None:
    nonlinearity = arguments["teacher_nonlinearity"]
    known = callable(nonlinearity) or str(nonlinearity) in _NONLINEARITIES
    hint = "" if known else did_you_mean(str(nonlinearity), _NONLINEARITIES)
    rules = {
        **RULES,
        "teacher_nonlinearity": (
            f"{', '.join(map(repr, _NONLINEARITIES))} or an elementwise function{hint}",
            lambda _: known,
        ),
    }
    optional = {name: arguments[name] for name in ("teacher_width", "network")}
    absent = {"d", *(name for name, value in optional.items() if value is None)}
    given = {name: value for name, value in arguments.items() if name not in absent}
    check_arguments("teacher", given, rules)  # d is checked already
    example = "teacher_width=16 for a random network, or network= for your own"
    check_exactly_one("teacher", optional, example)


def _random_network(weights: list[Tensor], nonlinearity: Any, scale: Tensor) -> Network:
    """Return T for the weights W_1, ..., W_L and a, and inputs with standard deviations scale."""
    activation = nonlinearity if callable(nonlinearity) else _NONLINEARITIES[nonlinearity]
    gain = _gain(activation)
    first, *others, readout = (weight.to(scale.device) for weight in weights)
    scaled = [first / scale.square().sum().sqrt()]
    scaled += [weight * (gain / math.sqrt(weight.shape[1])) for weight in others]
    columns = [weight.T for weight in scaled]
    last = readout * (gain / math.sqrt(len(readout)))

    def apply(inputs: Tensor) -> Tensor:
        h = inputs
        for weight in columns:
            h = activation(h @ weight)
        return h @ last

    return apply


def _gain(activation: Callable[[Tensor], Tensor]) -> float:
    """Return c with c^2 E[activation(z)^2] = 1 for z ~ N(0, 1), by Gauss-Hermite quadrature."""
    nodes, weights = hermegauss(100)
    z = torch.from_numpy(nodes).to(torch.get_default_dtype())
    values = activation(z)
    if not isinstance(values, Tensor) or values.shape != z.shape:
        raise SpecError(
            "teacher: teacher_nonlinearity is not elementwise; valid is a function that maps a "
            "tensor to one of the same shape"
        )
    square = float(values.detach().double().square() @ torch.from_numpy(weights / weights.sum()))
    if not 0 < square < math.inf:
        raise SpecError(
            f"teacher: teacher_nonlinearity has the mean square {square:g} under N(0, 1); valid is "
            "a positive number"
        )
    return 1 / math.sqrt(square)


def _standardized(network: Network, scale: Tensor, teacher_seed: int) -> Network:
    """Return a network shifted and scaled to outputs of mean 0 and variance 1."""
    # Another stream than that of the weights: these inputs would repeat its numbers.
    seed = int(np.random.SeedSequence(int(teacher_seed)).generate_state(1)[0])
    gen = torch.Generator().manual_seed(seed)
    inputs = torch.randn(REFERENCE_INPUTS, len(scale), generator=gen).to(scale.device) * scale
    with torch.no_grad():
        outputs = network(inputs)
    n = REFERENCE_INPUTS
    check_outputs("teacher: the network", outputs, n, f"{n} inputs")
    mean, deviation = outputs.mean(0), outputs.std(0)
    # The deviation of a constant is rounding error. A read-back, but only here, where the batch
    # function is made.
    if not bool((deviation > 1e-5 * outputs.abs().amax(0)).all()):
        raise SpecError(
            "teacher: the network has an output that is constant or not finite over Gaussian "
            "inputs, so it cannot be standardized; try another network, or standardized=False"
        )
    return lambda inputs: (network(inputs) - mean) / deviation
