"""The largest eigenvalues of the Hessian of the loss that is trained: how sharp it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.batchfns.validation import COUNT, Valid, check_arguments, is_integer, is_real
from mlpsubmit.grabs.lanczos import largest_eigenvalues
from mlpsubmit.grabs.objective import Loss, Parameters, objective, trained_parameters
from mlpsubmit.grabs.samples import first_rows

__all__ = ["hessian_eigenvalues", "sharpness"]


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

    Gradient descent with step size :math:`\eta` on a quadratic diverges where it exceeds
    :math:`2/\eta`, and training of networks hovers there (Cohen et al., "Gradient descent on
    neural networks typically occurs at the edge of stability", arXiv:2103.00065);
    :math:`\eta` is the learning rate in ``opt.param_groups``, where it is one for all parameters.
    The Hessian is with respect to all trained parameters, without weight decay. Its largest
    eigenvalue is meant algebraically: negative ones of larger size do not count.

    The method is restarted Lanczos (:mod:`mlpsubmit.grabs.lanczos`) from a fixed start vector, on
    products of the Hessian and a vector: mostly some tens of them, each about the cost of two
    gradients and a GPU-CPU sync point. Memory: 20 vectors of as many entries as there are
    parameters, and the graph of one gradient. GRAB_EVERY and ``rows`` keep it affordable.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS, and ``centered`` the hyperparameter CENTERED: both arrive by
            themselves in a sweep; where ``train`` is called directly, contexts have to hold them.
        centered: whether f - f0 is trained, else f.
        rows: the loss on only the first so many samples.
        tolerance: an eigenvalue lies within this share of the result (its error is mostly of the
            order of the square), or within rounding errors of the Hessian.
        iterations: products at most; where they do not suffice, the result is a lower bound.

    Returns:
        the eigenvalue; nan where the Hessian is not finite.

    Raises:
        SpecError: for another loss, and for numbers out of range.

    Example:
        >>> sharpness(nn.Linear(2, 1, bias=False), torch.eye(2), torch.zeros(2), nn.Linear(2, 1))
        tensor(1.)
    """
    X, y = first_rows("sharpness", X_tr, rows), first_rows("sharpness", y_tr, rows)
    value = objective("sharpness", model, model0, X, y, loss, centered)
    parameters = trained_parameters(model)
    return _largest(
        "sharpness", value, parameters, count=1, tolerance=tolerance, iterations=iterations
    )[0]


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

    As :func:`sharpness`, which is the first of them, each as often as it is there. Memory: 20
    vectors of as many entries as there are parameters, or 3 x count if that is more.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS.
        centered: the hyperparameter CENTERED.
        count: how many.
        rows: the loss on only the first so many samples.
        tolerance: an eigenvalue lies within this share of the largest result, in size, around
            each, or within rounding errors of the Hessian.
        iterations: products at most; where they do not suffice, the results are lower bounds.

    Returns:
        the eigenvalues; nan where the Hessian is not finite.

    Raises:
        SpecError: for another loss, for numbers out of range, and for more eigenvalues than there
            are parameters.

    Example:
        >>> hessian_eigenvalues(nn.Linear(4, 1), torch.eye(4), torch.ones(4), nn.Linear(4, 1)).shape
        torch.Size([5])
    """
    grab = "hessian_eigenvalues"
    X, y = first_rows(grab, X_tr, rows), first_rows(grab, y_tr, rows)
    value = objective(grab, model, model0, X, y, loss, centered)
    parameters = trained_parameters(model)
    return _largest(
        grab, value, parameters, count=count, tolerance=tolerance, iterations=iterations
    )


def _largest(
    grab: str,
    value: Callable[[Parameters], Tensor],
    parameters: Parameters,
    *,
    count: int,
    tolerance: float,
    iterations: int,
) -> Tensor:
    """Return the largest eigenvalues of the Hessian of a function of the parameters, (count,)."""
    size = sum(p.numel() for p in parameters.values())
    _check(grab, size, count=count, tolerance=tolerance, iterations=iterations)
    like = next(iter(parameters.values()))
    # The same on every device and at every call: traces then differ by the network alone.
    start = torch.randn(int(count), size, generator=torch.Generator().manual_seed(0)).to(like)
    product = _hessian_product(value, parameters)
    return largest_eigenvalues(product, start, tolerance=tolerance, iterations=iterations)


def _hessian_product(
    value: Callable[[Parameters], Tensor], parameters: Parameters
) -> Callable[[Tensor], Tensor]:
    """Return the function from a vector to the Hessian times it: J^T v of the gradient, H = H^T.

    The gradient is evaluated once, and its graph kept for all products.
    """
    pullback = torch.func.vjp(torch.func.grad(value), parameters)[1]

    def product(vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [p.numel() for p in parameters.values()])
        named = zip(parameters.items(), pieces, strict=True)
        (image,) = pullback({name: piece.view(p.shape) for (name, p), piece in named})
        return torch.cat([image[name].flatten() for name in parameters])

    return product


def _check(grab: str, size: int, **numbers: Any) -> None:
    valid: Valid = {
        "count": (
            f"an integer from 1 to {size}, the number of parameters",
            lambda count: is_integer(count, 1) and count <= size,
        ),
        "tolerance": ("a number > 0, such as 1e-3", lambda share: is_real(share) and share > 0),
        "iterations": COUNT,
    }
    check_arguments(grab, numbers, valid)
