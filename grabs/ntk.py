"""The empirical neural tangent kernel of a network, its spectrum and its alignment with targets.

K_ij^ab = sum over theta of (d f_a(x_i) / d theta) (d f_b(x_j) / d theta), for outputs a and b at
rows i and j; theta are the parameters that require gradients, as stored in the model, so the
forward multipliers of a parametrization are part of f. The kernel is that of gradient flow with one
learning rate for all parameters: for the loss sum over i of (f(x_i) - y_i)^2 / 2, df/dt is
-K (f - y) (Jacot, Gabriel and Hongler, "Neural tangent kernel: convergence and generalization in
neural networks", arXiv:1806.07572).

A network with C outputs has one kernel per pair of outputs. ``outputs="trace"`` is the mean of
those of each output with itself, sum over a of K^aa / C, the default of neural-tangents
(``trace_axes=(-1,)``); ``outputs="full"`` is all of them. For C = 1 both have the same entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpsubmit.batchfns.validation import check_choice, is_integer
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.jacobians import Factor, RowJacobian
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.matrices import nan_unless_finite
from mlpsubmit.grabs.samples import first_rows

__all__ = [
    "empirical_ntk",
    "empirical_ntk_trace",
    "ntk_alignment",
    "ntk_eigenvalues",
    "ntk_eigenvectors",
]

#: Default memory for the gradients that are in memory at a time.
_CHUNK_BYTES = 2**28


@labelled(
    *("_sample", "_other_sample", "_output", "_other_output"),
    long_name="neural tangent kernel",
    optional=2,
)
def empirical_ntk(
    model: nn.Module,
    X_tr: Tensor,
    outputs: str = "trace",
    rows: int | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Return the empirical neural tangent kernel, symmetric to the last bit, (n, n).

    For one output, K_ij = sum over theta of (d f(x_i) / d theta) (d f(x_j) / d theta). The outputs
    at a row must depend on that row alone. The gradients with respect to Linear layers are never
    formed, so the cost is about that of a few training steps (Novak, Sohl-Dickstein and
    Schoenholz, arXiv:2206.08720).

    Args:
        model: the network; theta are its parameters that require gradients.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        outputs: for a network with C outputs, "trace" for the mean of the outputs' own kernels,
            or "full" for the kernels of all pairs of outputs.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.
        chunk_bytes: approximate memory for the gradients, besides the kernel itself. If they need
            more, some are computed repeatedly.

    Returns:
        (n, n); with outputs="full" (n, n, C, C), whose entry [i, j, a, b] belongs to output a at
        row i and output b at row j, as in neural-tangents with ``trace_axes=()``.

    Raises:
        SpecError: if the output at one row depends on other rows, if no parameter requires
            a gradient, and for invalid ``outputs`` or ``rows``.

    Example:
        >>> empirical_ntk(nn.Linear(2, 1), torch.eye(2))
        tensor([[2., 1.],
                [1., 2.]])
    """
    jacobian = _jacobian("empirical_ntk", model, X_tr, outputs, rows, chunk_bytes)
    K = _kernel(jacobian, outputs)
    return K.transpose(1, 2) if outputs == "full" else K.squeeze((1, 3))


@labelled(long_name="trace of the neural tangent kernel")
def empirical_ntk_trace(
    model: nn.Module, X_tr: Tensor, rows: int | None = None, chunk_bytes: int = _CHUNK_BYTES
) -> Tensor:
    """Return the trace of the empirical neural tangent kernel, without forming it, a scalar.

    It is sum over i and a of |d f_a(x_i) / d theta|^2 / C, the trace of :func:`empirical_ntk` for
    ``outputs="trace"``.

    Args:
        model: the network; theta are its parameters that require gradients.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.
        chunk_bytes: approximate memory for the gradients.

    Raises:
        SpecError: as :func:`empirical_ntk`.

    Example:
        >>> empirical_ntk_trace(nn.Linear(2, 1), torch.eye(2))
        tensor(4.)
    """
    jacobian = _jacobian("empirical_ntk_trace", model, X_tr, "trace", rows, chunk_bytes)
    total = jacobian.zeros()
    for block in jacobian.blocks:
        for factor in jacobian.at(block):
            total += factor.squares().sum()
    return total / jacobian.n_outputs


@labelled(long_name="alignment of the neural tangent kernel with the targets")
def ntk_alignment(
    model: nn.Module,
    X_tr: Tensor,
    y_tr: Tensor,
    outputs: str = "trace",
    rows: int | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Return the alignment of the empirical neural tangent kernel with the targets, a scalar.

    For one output, y^T K y / (|K|_F |y|^2), at most 1, the value for K = y y^T (Cristianini,
    Shawe-Taylor, Elisseeff and Kandola, "On kernel-target alignment", NeurIPS 2001; for tangent
    kernels in training: Baratin et al., arXiv:2008.00938). For C outputs, the cosine of K (n, n)
    and Y Y^T, <K, Y Y^T>_F / (|K|_F |Y Y^T|_F); with outputs="full", that of the whole kernel, as
    a matrix (n C, n C), and vec(Y) vec(Y)^T. Nothing is centred. It is nan if all targets are 0.

    Args:
        model: the network; theta are its parameters that require gradients.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, C) targets; for C > 1 also classes, integers (n,) or (n, 1), which are
            converted to one-hot rows.
        outputs: the kernel of a network with C > 1 outputs, as for :func:`empirical_ntk`.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.
        chunk_bytes: approximate memory for the gradients.

    Raises:
        SpecError: as :func:`empirical_ntk`, and for targets that do not match the outputs.

    Example:
        >>> ntk_alignment(nn.Linear(2, 1, bias=False), torch.eye(2), torch.ones(2))
        tensor(0.7071)
    """
    jacobian = _jacobian("ntk_alignment", model, X_tr, outputs, rows, chunk_bytes)
    Y = _targets(y_tr, len(X_tr), jacobian.n_outputs)[: jacobian.n_rows]
    K = _matrix(_kernel(jacobian, outputs))
    Y = Y.to(K.dtype).reshape(len(K), -1)
    alignment: Tensor = (Y * (K @ Y)).sum() / (K.norm() * (Y.T @ Y).norm())
    return alignment


@labelled("_number", long_name="eigenvalue of the neural tangent kernel")
def ntk_eigenvalues(
    model: nn.Module,
    X_tr: Tensor,
    count: int = 10,
    outputs: str = "trace",
    rows: int | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Return the largest eigenvalues of the empirical neural tangent kernel, descending, (count,).

    They are eigenvalues of the matrix K, not of K / n. All n are computed, in O(n^3) operations:
    with thousands of rows, reduce the cost with ``rows`` or GRAB_EVERY. They are nan if the network
    is not finite.

    Args:
        model: the network; theta are its parameters that require gradients.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        count: number of eigenvalues.
        outputs: "trace" for those of the kernel (n, n), or "full" for those of the kernels of all
            pairs of outputs as one matrix (n C, n C); see :func:`empirical_ntk`.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.
        chunk_bytes: approximate memory for the gradients.

    Raises:
        SpecError: as :func:`empirical_ntk`, and for more eigenvalues than the matrix has.

    Example:
        >>> ntk_eigenvalues(nn.Linear(2, 1), torch.eye(2), count=2).round()
        tensor([3., 1.])
    """
    jacobian = _jacobian("ntk_eigenvalues", model, X_tr, outputs, rows, chunk_bytes)
    _check_count("ntk_eigenvalues", jacobian, count, outputs)
    K = _matrix(_kernel(jacobian, outputs))
    return nan_unless_finite(lambda K: torch.linalg.eigvalsh(K).flip(0)[:count], K)


@labelled("_sample", "_number", long_name="eigenvector of the neural tangent kernel")
def ntk_eigenvectors(
    model: nn.Module,
    X_tr: Tensor,
    count: int = 10,
    outputs: str = "trace",
    rows: int | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """Return the eigenvectors of the largest eigenvalues of the neural tangent kernel, (n, count).

    Column k belongs to eigenvalue k of :func:`ntk_eigenvalues`. It has unit length, and its entry
    of largest magnitude is positive. For a multiple eigenvalue, the basis of its eigenspace is
    arbitrary.

    Args:
        model: the network; theta are its parameters that require gradients.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        count: number of eigenvectors.
        outputs: "trace", or "full" for those of the kernels of all pairs of outputs as one matrix:
            (n C, count), with row i C + a for output a at row i.
        rows: number of inputs, the first ones, that the kernel is taken on; None for all.
        chunk_bytes: approximate memory for the gradients.

    Raises:
        SpecError: as :func:`empirical_ntk`, and for more eigenvectors than the matrix has.

    Example:
        >>> ntk_eigenvectors(nn.Linear(2, 1), torch.eye(2), count=1)
        tensor([[0.7071],
                [0.7071]])
    """
    jacobian = _jacobian("ntk_eigenvectors", model, X_tr, outputs, rows, chunk_bytes)
    _check_count("ntk_eigenvectors", jacobian, count, outputs)

    def largest_eigenvectors(K: Tensor) -> Tensor:
        vectors = torch.linalg.eigh(K).eigenvectors.flip(1)[:, :count]
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        signed: Tensor = vectors * largest.sign()
        return signed

    return nan_unless_finite(largest_eigenvectors, _matrix(_kernel(jacobian, outputs)))


def _jacobian(
    grab: str, model: nn.Module, X: Tensor, outputs: str, rows: int | None, chunk_bytes: int
) -> RowJacobian:
    valid = "'trace' for the mean of the outputs' kernels and 'full' for all pairs of outputs"
    check_choice(grab, "outputs", outputs, ("trace", "full"), valid)
    return RowJacobian(model, first_rows(grab, X, rows), chunk_bytes)


def _kernel(jacobian: RowJacobian, outputs: str) -> Tensor:
    """Return the kernel (n, C, n, C), or the mean over outputs of its diagonal (n, 1, n, 1)."""
    n, full = jacobian.n_rows, outputs == "full"
    C = jacobian.n_outputs if full else 1
    K = jacobian.zeros(n, C, n, C)
    for index, block in enumerate(jacobian.blocks):
        factors = jacobian.at(block, pooled=not full)
        here = (block.rows, block.outputs if full else slice(None))
        # A A^T as computed by BLAS is not necessarily symmetric to the last bit.
        square = _products(factors, factors)
        K[here + here] += (square + square.permute(2, 3, 0, 1)) / 2
        for other in jacobian.blocks[index + 1 :]:
            if full or other.outputs == block.outputs:
                there = (other.rows, other.outputs if full else slice(None))
                products = _products(factors, jacobian.at(other, pooled=not full))
                K[here + there] += products
                K[there + here] += products.permute(2, 3, 0, 1)
    return K if full else K / jacobian.n_outputs


def _products(factors: list[Factor], others: list[Factor]) -> Tensor:
    """Return the inner products of the gradients at two blocks, (m, c, m', c')."""
    first, *rest = (f.products(g) for f, g in zip(factors, others, strict=True))
    return sum(rest, first)


def _matrix(K: Tensor) -> Tensor:
    """Return a kernel (n, C, n, C) as a matrix (n C, n C)."""
    return K.flatten(2).flatten(0, 1)


def _targets(y: Tensor, n: int, C: int) -> Tensor:
    """Return the targets at n rows of C outputs, (n, C)."""
    if y.numel() == n and C > 1 and not y.is_floating_point():
        y = nn.functional.one_hot(y.reshape(n).long(), C)
    if len(y) != n or y.numel() != n * C:
        classes = ", or classes, integers of shape (n,) or (n, 1)" if C > 1 else ""
        raise SpecError(
            f"ntk_alignment: got y_tr of shape {tuple(y.shape)} for {n} rows and {C} outputs; "
            f"valid are targets (n, C) = {(n, C)}{classes}"
        )
    return y.reshape(n, C)


def _check_count(grab: str, jacobian: RowJacobian, count: int, outputs: str) -> None:
    size = jacobian.n_rows * (jacobian.n_outputs if outputs == "full" else 1)
    if not (is_integer(count, 1) and count <= size):
        raise SpecError(
            f"{grab}: got count={count!r}, but the kernel is a matrix ({size}, {size}); valid are "
            f"integers from 1 to {size}"
        )
