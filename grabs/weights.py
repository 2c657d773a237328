"""Measurements of the weights: the matrices themselves, their Grams, norms and distances.

Layers are the Linear and Conv2d modules of any model, in the order in which they were registered,
each as a matrix W (outputs, inputs): a Conv2d's weight is flattened to (out_channels, in_channels
x height x width). Weights are the parameters as they are, without the forward multipliers of the
parametrization. Results are new tensors on the model's device, for the caller to read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.errors import SpecError, did_you_mean

__all__ = [
    "distance_from_init",
    "readin_gram",
    "readin_gram_diagonal",
    "readin_gram_trace",
    "readin_weight",
    "readout_weight",
    "spectral_norms",
    "weight_norms",
]


def readin_weight(model: nn.Module) -> Tensor:
    """Return a copy of the first layer's weight W, (width, d_in).

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readin_weight(nn.Linear(3, 5)).shape
        torch.Size([5, 3])
    """
    return _matrices(model)[0].clone()


def readout_weight(model: nn.Module) -> Tensor:
    """Return a copy of the last layer's weight W, (d_out, width).

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readout_weight(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([1, 5])
    """
    return _matrices(model)[-1].clone()


def readin_gram(model: nn.Module, side: str = "input") -> Tensor:
    """Return the Gram matrix of the first layer's weight W, (width, d_in).

    Args:
        model: any model with a Linear or Conv2d layer.
        side: "input" for W^T W, (d_in, d_in); "output" for W W^T, (width, width).

    Raises:
        SpecError: for another side, and where the model has no Linear or Conv2d layer.

    Example:
        >>> readin_gram(nn.Linear(3, 5)).shape
        torch.Size([3, 3])
    """
    if side not in ("input", "output"):
        raise SpecError(
            f"readin_gram: got side={side!r}{did_you_mean(str(side), ('input', 'output'))}; "
            "valid are 'input' for W^T W and 'output' for W W^T"
        )
    W = _matrices(model)[0]
    return W.T @ W if side == "input" else W @ W.T


def readin_gram_trace(model: nn.Module) -> Tensor:
    """Return tr(W^T W) of the first layer's weight W, a scalar, without forming the Gram matrix.

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readin_gram_trace(nn.Linear(3, 5)).shape
        torch.Size([])
    """
    return _matrices(model)[0].square().sum()


def readin_gram_diagonal(
    model: nn.Module,
    monomials: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
) -> Tensor:
    """Return the diagonal of W^T W, W the first layer's weight: how strongly it reads each input.

    Args:
        model: any model with a Linear or Conv2d layer; with monomials, one that begins with Linear.
        monomials: one monomial (a mapping index -> exponent), or a list of them. Then the result
            has only the entries of the indices that stand in them, ascending, each once.

    Returns:
        (d_in,), or (number of indices,).

    Raises:
        SpecError: for an index that the inputs do not have, and for monomials of a model whose
            first layer is no Linear.

    Example:
        >>> readin_gram_diagonal(nn.Linear(3, 5), monomials={0: 1, 2: 2}).shape
        torch.Size([2])
    """
    W = _matrices(model)[0]
    if monomials is None:
        return W.square().sum(dim=0)
    first = _layers(model)[0]
    if not isinstance(first, nn.Linear):
        raise SpecError(
            "readin_gram_diagonal: the indices of monomials are inputs of an MLP, whose first "
            f"layer is Linear; got {type(model).__name__}, whose first layer is "
            f"{type(first).__name__}; try monomials=None"
        )
    # Columns are taken one by one, as an index tensor would have to be sent to the device.
    columns = [W[:, index] for index in _indices(monomials, d=W.shape[1])]
    return torch.stack(columns, dim=1).square().sum(dim=0) if columns else W.new_zeros(0)


def weight_norms(model: nn.Module) -> Tensor:
    """Return the Frobenius norm of each layer's weight, (layers,).

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> weight_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([W.norm() for W in _matrices(model)])


def spectral_norms(model: nn.Module) -> Tensor:
    """Return the largest singular value of each layer's weight, (layers,).

    Each takes an eigendecomposition of W^T W or W W^T, whichever is smaller: of the order of
    min(outputs, inputs)^3 operations, more than many training steps where layers are wide, so
    choose GRAB_EVERY accordingly. A weight that is no longer finite has the norm nan.

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> spectral_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([_spectral_norm(W) for W in _matrices(model)])


def distance_from_init(model: nn.Module, model0: nn.Module) -> Tensor:
    """Return |W - W0| / |W0| for each layer, Frobenius norms, (layers,): 0 at initialisation.

    A layer that was initialised to zero is at nan as long as it stays there, then at inf.

    Args:
        model: the network.
        model0: the same network at initialisation.

    Raises:
        SpecError: where the two have different layers, or none.

    Example:
        >>> distance_from_init(nn.Linear(3, 5), nn.Linear(3, 5)).shape
        torch.Size([1])
    """
    now, before = _matrices(model), _matrices(model0)
    shapes = [[tuple(W.shape) for W in matrices] for matrices in (now, before)]
    if shapes[0] != shapes[1]:
        raise SpecError(
            "distance_from_init: model and model0 should have the same layers; got weights of "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    pairs = zip(now, before, strict=True)
    return torch.stack([(W - W0).norm() / W0.norm() for W, W0 in pairs])


def _layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise SpecError(
            f"the weights of {type(model).__name__} cannot be measured: it has no Linear or Conv2d "
            "layer; write a grab of your own for it"
        )
    return layers


def _matrices(model: nn.Module) -> list[Tensor]:
    """Return each layer's weight as a detached matrix, which still shares its memory."""
    return [layer.weight.detach().flatten(1) for layer in _layers(model)]


def _spectral_norm(W: Tensor) -> Tensor:
    gram = W.T @ W if W.shape[0] > W.shape[1] else W @ W.T
    # The decomposition raises on what is not finite, but a diverged config is a result: nan.
    finite = gram.isfinite().all()
    eigvals = torch.linalg.eigvalsh(torch.where(finite, gram, torch.zeros_like(gram)))
    return torch.where(finite, eigvals[-1].clamp_min(0).sqrt(), torch.nan)


def _indices(monomials: Any, d: int) -> list[int]:
    entries = [monomials] if isinstance(monomials, Mapping) else list(monomials)
    indices = sorted({int(index) for monomial in entries for index in monomial})
    if indices and not (indices[0] >= 0 and indices[-1] < d):
        raise SpecError(
            f"readin_gram_diagonal: got monomials={monomials!r}, but the read-in layer has {d} "
            f"inputs; valid indices are 0 to {d - 1}"
        )
    return indices
