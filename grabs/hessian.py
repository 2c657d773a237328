"""The largest eigenvalues of the Hessian of the training loss: its sharpness."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlpsubmit.batchfns.validation import RULES, check_arguments, is_integer
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.lanczos import largest_eigenvalues
from mlpsubmit.grabs.losses import Loss, Parameters, objective, trained_parameters
from mlpsubmit.grabs.samples import first_rows

__all__ = ["hessian_eigenvalues", "sharpness"]


@labelled(long_name="largest eigenvalue of the Hessian")
def sharpness(
    model: nn.Module,
    X_tr: Tensor,
    y_tr: Tensor,
    model0: nn.Module,
    loss: Loss = "mse",
    centered: bool = True,
    rows: int | None = None,
    tolerance: float = 1e-3,
    iterations: int = 200,
) -> Tensor:
    r"""Return the largest eigenvalue of the Hessian of the training loss, a scalar.

    Gradient descent with learning rate :math:`\eta` on a quadratic diverges if it exceeds
    :math:`2/\eta`, and the training of networks stays close to this value (Cohen et al., "Gradient
    descent on neural networks typically occurs at the edge of stability", arXiv:2103.00065);
    :math:`\eta` is the learning rate in ``opt.param_groups``, if all parameters have the same.
    The Hessian is with respect to all trained parameters, without weight decay. The largest
    eigenvalue is the algebraically largest one, not the one of largest magnitude.

    The method is restarted Lanczos (:mod:`mlpsubmit.grabs.lanczos`) with a fixed start vector. It
    takes Hessian-vector products, usually a few tens, each at the cost of about two gradients and a
    GPU-CPU sync point. Memory: 20 vectors of the size of the parameters, and the graph of one
    gradient. Reduce the cost with GRAB_EVERY and ``rows``.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS. A sweep supplies it, and CENTERED; if ``train`` is called
            directly, contexts must hold them.
        centered: the hyperparameter CENTERED: whether f - f0 is trained, else f.
        rows: number of samples, the first ones, that the loss is taken on; None for all.
        tolerance: relative distance between the result and an eigenvalue (the error is usually of
            the order of its square), unless rounding errors of the Hessian are larger.
        iterations: maximum number of products; if they do not suffice, the result is a lower bound.

    Returns:
        The eigenvalue; nan if the Hessian is not finite.

    Raises:
        SpecError: for an invalid loss, and for numbers out of range.

    Example:
        >>> sharpness(nn.Linear(2, 1, bias=False), torch.eye(2), torch.zeros(2), nn.Linear(2, 1))
        tensor(1.)
    """
    count = 1
    return hessian_eigenvalues(
        model, X_tr, y_tr, model0, loss, centered, count, rows, tolerance, iterations
    )[0]


@labelled("_number", long_name="eigenvalue of the Hessian")
def hessian_eigenvalues(
    model: nn.Module,
    X_tr: Tensor,
    y_tr: Tensor,
    model0: nn.Module,
    loss: Loss = "mse",
    centered: bool = True,
    count: int = 5,
    rows: int | None = None,
    tolerance: float = 1e-3,
    iterations: int = 400,
) -> Tensor:
    """Return the largest eigenvalues of the Hessian of the training loss, descending, (count,).

    As :func:`sharpness`, which is the first of them; multiple eigenvalues are repeated. Memory: 20
    vectors of the size of the parameters, or 3 x count if that is more.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS.
        centered: the hyperparameter CENTERED.
        count: number of eigenvalues.
        rows: number of samples, the first ones, that the loss is taken on; None for all.
        tolerance: distance between each result and an eigenvalue, relative to the result of largest
            magnitude, unless rounding errors of the Hessian are larger.
        iterations: maximum number of products; if they do not suffice, the results are lower
            bounds.

    Returns:
        The eigenvalues; nan if the Hessian is not finite.

    Raises:
        SpecError: for an invalid loss, for numbers out of range, and for more eigenvalues than
            parameters.

    Example:
        >>> hessian_eigenvalues(nn.Linear(4, 1), torch.eye(4), torch.ones(4), nn.Linear(4, 1)).shape
        torch.Size([5])
    """
    grab = "hessian_eigenvalues"
    X, y = first_rows(grab, X_tr, rows), first_rows(grab, y_tr, rows)
    value = objective(grab, model, model0, X, y, loss, centered)
    parameters = trained_parameters(model)
    size = sum(p.numel() for p in parameters.values())
    valid_count = f"an integer from 1 to {size}, the number of parameters"
    rule = (valid_count, lambda count: is_integer(count, 1) and count <= size)
    numbers = {"count": count, "tolerance": tolerance, "iterations": iterations}
    check_arguments(grab, numbers, {**RULES, "count": rule})
    # The same vectors on every device and at every call: traces then depend on the network alone.
    like = next(iter(parameters.values()))
    start = torch.randn(count, size, generator=torch.Generator().manual_seed(0)).to(like)
    product = _hessian_product(value, parameters)
    return largest_eigenvalues(product, start, tolerance=tolerance, iterations=iterations)


def _hessian_product(
    value: Callable[[Parameters], Tensor], parameters: Parameters
) -> Callable[[Tensor], Tensor]:
    """Return the function v -> H v: a vector-Jacobian product of the gradient, as H is symmetric.

    The gradient is evaluated once, and its graph is kept for all products.
    """
    pullback = torch.func.vjp(torch.func.grad(value), parameters)[1]

    def product(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in parameters.values()])
        named = zip(parameters.items(), parts, strict=True)
        (image,) = pullback({name: part.view(p.shape) for (name, p), part in named})
        return torch.cat([image[name].flatten() for name in parameters])

    return product
