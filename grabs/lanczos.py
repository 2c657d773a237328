"""The largest eigenvalues of a symmetric matrix that is known only by its products with vectors.

Block Lanczos (Golub and Van Loan, "Matrix Computations", 4th ed., 10.3) with full
reorthogonalisation and thick restarts (Wu and Simon, "Thick-restart Lanczos method for large
symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl. 22, 2000): the Krylov space grows by
one block of products at a time; where the memory is full, the better half of its Ritz vectors and
the next block stay. A block as large as the number of eigenvalues that are wanted finds each as
often as it is there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["VECTORS", "largest_eigenvalues"]

#: How many basis vectors are kept in memory, or thrice the number of eigenvalues if that is more.
VECTORS = 20

Product = Callable[[Tensor], Tensor]


def largest_eigenvalues(
    product: Product, start: Tensor, *, tolerance: float, iterations: int
) -> Tensor:
    """Return the algebraically largest eigenvalues of a symmetric matrix, descending, (count,).

    Args:
        product: from a vector (size,) to the matrix times it.
        start: (count, size) random vectors, as many as eigenvalues are wanted, count <= size.
        tolerance: it ends when each result is within this share of the largest one, in size, of
            an eigenvalue, or within rounding errors of the matrix; by the norms of the residuals.
        iterations: products at most (one block more to complete the last one). The results are
            then lower bounds.

    Returns:
        as ``start`` in dtype and device; nan where the matrix is not finite.
    """
    count, size = start.shape
    room = max(VECTORS, 3 * count)
    if size <= room:
        return _dense(product, start)
    basis = start.new_zeros(room, size)
    projected = torch.zeros(room, room, dtype=torch.float64)  # basis^T matrix basis, on the CPU
    block = _orthonormalised(start, basis[:0], negligible=0.0)
    filled = spent = 0
    while True:
        last = slice(filled, filled + len(block))
        basis[last] = block
        filled, spent = last.stop, spent + len(block)
        V = basis[:filled]
        images = [product(v) for v in block]

        # The projected matrix, whose eigenvalues are the Ritz values (a GPU-CPU sync point).
        # Vector by vector: matrix products would be rounded where PRECISION is tf32.
        overlaps = torch.stack([V @ image for image in images])
        projected[last, :filled] = host = overlaps.to(projected)
        projected[:filled, last] = host.T
        if not projected.isfinite().all():
            return start.new_full((count,), torch.nan)
        ritz, vectors = torch.linalg.eigh(projected[:filled, :filled])
        best, rounding = ritz[-count:], 32 * torch.finfo(start.dtype).eps * float(ritz.abs().max())

        # What the products have outside the space spans the next block; it gives the residuals.
        outside = torch.stack([w - h @ V for w, h in zip(images, overlaps, strict=True)])
        block = _orthonormalised(outside, V, negligible=rounding)
        coupling = torch.stack([block @ row for row in outside]).to(projected)
        errors = (vectors[last, -count:].T @ coupling).norm(dim=1)
        allowed = max(tolerance * float(best.abs().max()), rounding)
        if len(block) == 0 or errors.max() <= allowed or spent >= iterations:
            found: Tensor = best.flip(0).to(start)
            return found

        if filled + len(block) > room:
            filled = max(count, room // 2)
            _rotate(basis, vectors[:, -filled:].T.to(basis))
            projected.zero_().diagonal()[:filled] = ritz[-filled:]


def _dense(product: Product, start: Tensor) -> Tensor:
    """Return the same from the matrix itself, where it is small."""
    count, size = start.shape
    rows = [product(v) for v in torch.eye(size, dtype=start.dtype, device=start.device)]
    matrix = torch.stack(rows).to(torch.float64).cpu()
    if not matrix.isfinite().all():
        return start.new_full((count,), torch.nan)
    eigvals: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return eigvals[-count:].flip(0).to(start)


def _orthonormalised(rows: Tensor, basis: Tensor, negligible: float) -> Tensor:
    """Return orthonormal vectors that span what the rows have outside a basis.

    A row is left out where no more than a negligible length is left of it.
    """
    kept: list[Tensor] = []
    for row in rows:
        row = _outside(row, basis, kept)
        length = float(row.norm())
        if length > negligible:
            # Twice is enough: what the first subtraction rounded away is amplified by 1 / length.
            row = _outside(row / length, basis, kept)
            kept.append(row / row.norm())
    return torch.stack(kept) if kept else rows[:0]


def _outside(vector: Tensor, basis: Tensor, others: list[Tensor]) -> Tensor:
    vector = vector - (basis @ vector) @ basis
    for other in others:
        vector = vector - (other @ vector) * other
    return vector


def _rotate(basis: Tensor, coefficients: Tensor) -> None:
    """Replace the first vectors of a basis by combinations of all, piece by piece to save memory.

    Args:
        basis: (room, size).
        coefficients: (new, filled).
    """
    new, filled = coefficients.shape
    for piece in torch.split(basis, 2**20, dim=1):
        piece[:new] = torch.stack([c @ piece[:filled] for c in coefficients])
