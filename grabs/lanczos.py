"""The largest eigenvalues of a symmetric matrix, given its products with vectors.

Block Lanczos (Golub and Van Loan, "Matrix Computations", 4th ed., 10.3) with full
reorthogonalisation and thick restarts (Wu and Simon, "Thick-restart Lanczos method for large
symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl. 22, 2000): the Krylov space grows by one
block of products at a time; when the memory is full, the better half of its Ritz vectors and the
next block are kept. With one vector per eigenvalue in a block, multiple eigenvalues are found with
their multiplicity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["VECTORS", "largest_eigenvalues"]

#: Basis vectors in memory, or three times the number of eigenvalues if that is more.
VECTORS = 20

Product = Callable[[Tensor], Tensor]


def largest_eigenvalues(
    product: Product, start: Tensor, *, tolerance: float, iterations: int
) -> Tensor:
    """Return the algebraically largest eigenvalues of a symmetric matrix, descending, (count,).

    Args:
        product: function of a vector v (size,) that returns the product of the matrix and v.
        start: (count, size) random vectors, one per eigenvalue, count <= size.
        tolerance: the iteration stops when the residual of each result is below this fraction of
            the result of largest magnitude, or below the rounding errors of the matrix.
        iterations: maximum number of products (up to one block more, to complete the last one).
            The results are then lower bounds.

    Returns:
        The eigenvalues, with dtype and device of ``start``; nan if the matrix is not finite.
    """
    count, size = start.shape
    room = max(VECTORS, 3 * count)
    if size <= room:
        return _dense(product, start)
    space = _Krylov(room, start)
    block, spent = _orthonormalised(start, space.vectors, negligible=0.0), 0
    while True:
        outside = space.add(block, [product(v) for v in block])
        spent += len(block)
        if not space.projected.isfinite().all():
            return start.new_full((count,), torch.nan)
        ritz, vectors = torch.linalg.eigh(space.projected)
        best, rounding = ritz[-count:], 32 * torch.finfo(start.dtype).eps * float(ritz.abs().max())

        # The parts of the products outside the space span the next block, and give the residuals.
        last = vectors[-len(block) :, -count:]
        block = _orthonormalised(outside, space.vectors, negligible=rounding)
        coupling = torch.stack([block @ row for row in outside]).to(last)
        errors = (last.T @ coupling).norm(dim=1)
        allowed = max(tolerance * float(best.abs().max()), rounding)
        if len(block) == 0 or errors.max() <= allowed or spent >= iterations:
            found: Tensor = best.flip(0).to(start)
            return found

        if len(space.vectors) + len(block) > room:
            kept = max(count, room // 2)
            space.restart(ritz[-kept:], vectors[:, -kept:])


class _Krylov:
    """An orthonormal basis that grows by blocks, and the matrix projected onto its span.

    Args:
        room: maximum number of vectors.
        like: (any, size), a tensor with the size, dtype and device of the vectors.
    """

    def __init__(self, room: int, like: Tensor) -> None:
        self._filled = 0
        self._basis = like.new_zeros(room, like.shape[1])
        self._projected = torch.zeros(room, room, dtype=torch.float64)

    @property
    def vectors(self) -> Tensor:
        """V (filled, size)."""
        return self._basis[: self._filled]

    @property
    def projected(self) -> Tensor:
        """V matrix V^T, (filled, filled), on the CPU; its eigenvalues are the Ritz values."""
        return self._projected[: self._filled, : self._filled]

    def add(self, block: Tensor, images: list[Tensor]) -> Tensor:
        """Add vectors and their products with the matrix (a GPU-CPU sync point).

        Returns:
            The parts of the products outside the space, one per row.
        """
        new = slice(self._filled, self._filled + len(block))
        self._basis[new] = block
        self._filled = new.stop
        V = self.vectors
        # Vector by vector: matrix products would be rounded if PRECISION is tf32.
        overlaps = torch.stack([V @ image for image in images])
        self.projected[new] = host = overlaps.to(self._projected)
        self.projected[:, new] = host.T
        return torch.stack([w - h @ V for w, h in zip(images, overlaps, strict=True)])

    def restart(self, eigvals: Tensor, eigvecs: Tensor) -> None:
        """Keep only some eigenvectors (filled, kept) of the projected matrix."""
        coefficients = eigvecs.T.to(self._basis)
        for chunk in torch.split(self._basis, 2**20, dim=1):  # in chunks, to save memory
            filled = chunk[: self._filled]
            chunk[: len(coefficients)] = torch.stack([c @ filled for c in coefficients])
        self._filled = len(eigvals)
        self._projected.zero_()
        self.projected.diagonal().copy_(eigvals)


def _dense(product: Product, start: Tensor) -> Tensor:
    """Return the same from a small matrix itself."""
    count, size = start.shape
    rows = [product(v) for v in torch.eye(size, dtype=start.dtype, device=start.device)]
    matrix = torch.stack(rows).to(torch.float64).cpu()
    if not matrix.isfinite().all():
        return start.new_full((count,), torch.nan)
    eigvals: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return eigvals[-count:].flip(0).to(start)


def _orthonormalised(rows: Tensor, basis: Tensor, negligible: float) -> Tensor:
    """Return orthonormal vectors that span the parts of the rows outside a basis.

    A row is dropped if the length of that part is negligible.
    """
    kept: list[Tensor] = []
    for row in rows:
        row = _outside(row, basis, kept)
        length = float(row.norm())
        if length > negligible:
            # Twice is enough: rounding errors of the first subtraction are amplified by 1 / length.
            row = _outside(row / length, basis, kept)
            kept.append(row / row.norm())
    return torch.stack(kept) if kept else rows[:0]


def _outside(vector: Tensor, basis: Tensor, others: list[Tensor]) -> Tensor:
    vector = vector - (basis @ vector) @ basis
    for other in others:
        vector = vector - (other @ vector) * other
    return vector
