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
    space = _Krylov(room, start)
    block, spent = _orthonormalised(start, space.vectors, negligible=0.0), 0
    while True:
        outside = space.add(block, [product(v) for v in block])
        spent += len(block)
        if not space.projected.isfinite().all():
            return start.new_full((count,), torch.nan)
        ritz, vectors = torch.linalg.eigh(space.projected)
        best, rounding = ritz[-count:], 32 * torch.finfo(start.dtype).eps * float(ritz.abs().max())

        # What the products have outside the space spans the next block; it gives the residuals.
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
    """Orthonormal vectors that come block by block, and the matrix projected on their space.

    Args:
        room: how many vectors there may be.
        like: (any, size), of their size, type and device.
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
        """Add vectors, given the products with them (a GPU-CPU sync point).

        Returns:
            what the products have outside the space, one a row.
        """
        new = slice(self._filled, self._filled + len(block))
        self._basis[new] = block
        self._filled = new.stop
        V = self.vectors
        # Vector by vector: matrix products would be rounded where PRECISION is tf32.
        overlaps = torch.stack([V @ image for image in images])
        self.projected[new] = host = overlaps.to(self._projected)
        self.projected[:, new] = host.T
        return torch.stack([w - h @ V for w, h in zip(images, overlaps, strict=True)])

    def restart(self, eigvals: Tensor, eigvecs: Tensor) -> None:
        """Go on with some eigenvectors (filled, kept) of the projected matrix alone."""
        _rotate(self._basis, eigvecs.T.to(self._basis))
        self._filled = len(eigvals)
        self._projected.zero_()
        self.projected.diagonal().copy_(eigvals)


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
