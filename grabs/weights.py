"""Measurements of the weights: the matrices themselves, their Grams, spectra, norms and distances.

Layers are the Linear and Conv2d modules of any model, in the order in which they were registered,
each as a matrix W (outputs, inputs): a Conv2d's weight is flattened to (out_channels, in_channels
x height x width). A ``layer`` is counted from 0, or from the end where it is negative. Weights are
the parameters as they are; effective ones are times the forward multiplier g of the
parametrization, as a layer computes g (W x + b). Results are new tensors on the model's device,
for the caller to read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.grabs.layers import Layer, layer_at, layers_of, scaled, weight_matrix
from mlpsubmit.grabs.matrices import indices_of

__all__ = [
    "bias",
    "distance_from_init",
    "gram_diagonal",
    "gram_trace",
    "readin_gram",
    "readin_gram_diagonal",
    "readin_gram_trace",
    "readin_weight",
    "readout_weight",
    "singular_values",
    "spectral_norms",
    "weight",
    "weight_gram",
    "weight_norms",
]


def weight(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return a copy of one layer's weight W, (outputs, inputs).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        effective: times the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> weight(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)), layer=-1).shape
        torch.Size([1, 5])
    """
    return weight_matrix(layer_at("weight", model, layer), effective).clone()


def bias(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return a copy of one layer's bias, (outputs,).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        effective: times the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have, or that has no bias.

    Example:
        >>> bias(nn.Linear(3, 5)).shape
        torch.Size([5])
    """
    found = layer_at("bias", model, layer)
    # Typed as always there, yet None where a layer was made with bias=False.
    parameter: Tensor | None = found.bias
    if parameter is None:
        raise SpecError(
            f"bias: layer {layer} of {type(model).__name__}, {found}, has none; try another layer, "
            "or a model whose layers have biases"
        )
    return scaled(found, parameter.detach()) if effective else parameter.detach().clone()


def weight_gram(
    model: nn.Module, layer: int = 0, side: str = "input", effective: bool = False
) -> Tensor:
    """Return the Gram matrix of one layer's weight W, (outputs, inputs).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        side: "input" for W^T W, (inputs, inputs); "output" for W W^T, (outputs, outputs).
        effective: of the weight times the layer's forward multiplier.

    Raises:
        SpecError: for another side, and for a layer that the model does not have.

    Example:
        >>> weight_gram(nn.Linear(3, 5)).shape
        torch.Size([3, 3])
    """
    return _gram("weight_gram", _matrix("weight_gram", model, layer, effective), side)


def gram_trace(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return tr(W^T W) of one layer's weight W, a scalar, without forming the Gram matrix.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        effective: of the weight times the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> gram_trace(nn.Linear(3, 5)).shape
        torch.Size([])
    """
    return _matrix("gram_trace", model, layer, effective).square().sum()


def gram_diagonal(
    model: nn.Module,
    layer: int = 0,
    side: str = "input",
    monomials: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
    effective: bool = False,
) -> Tensor:
    """Return the diagonal of W^T W or W W^T, W one layer's weight, without forming the matrix.

    That is how strongly the layer reads each input, or drives each output, squared.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        side: "input" for W^T W, "output" for W W^T.
        monomials: one monomial (a mapping index -> exponent), or a list of them; in a sweep, the
            axis or argument ``monomials``. The result then has only the entries of the indices
            that stand in them, ascending, each once. They are inputs of the network, so this holds
            for the inputs of the first layer, which has to be Linear; for any other layer, and
            for side "output", the result has all entries.
        effective: of the weight times the layer's forward multiplier.

    Returns:
        (inputs,) or (outputs,), or (number of indices,).

    Raises:
        SpecError: for another side, a layer or an index that the model does not have, for what is
            no monomial, and for monomials of a model whose first layer is no Linear.

    Example:
        >>> gram_diagonal(nn.Linear(3, 5), monomials={0: 1, 2: 2}).shape
        torch.Size([2])
    """
    return _gram_diagonal("gram_diagonal", model, layer, side, monomials, effective)


def singular_values(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return the singular values of one layer's weight, descending, (min(outputs, inputs),).

    A singular value decomposition takes of the order of max(outputs, inputs) x min(outputs,
    inputs)^2 operations, more than many training steps where layers are wide, so choose GRAB_EVERY
    accordingly. Those of a weight that is no longer finite are nan.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: which of them, from 0, or negative from the end.
        effective: of the weight times the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> singular_values(nn.Linear(3, 5)).shape
        torch.Size([3])
    """
    W = _matrix("singular_values", model, layer, effective)
    # The decomposition raises on what is not finite, but a diverged config is a result: nan.
    finite = W.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, W, torch.zeros_like(W)))
    return torch.where(finite, values, torch.nan)


def readin_weight(model: nn.Module) -> Tensor:
    """Return a copy of the first layer's weight W, (width, d_in).

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readin_weight(nn.Linear(3, 5)).shape
        torch.Size([5, 3])
    """
    return weight(model, layer=0)


def readout_weight(model: nn.Module) -> Tensor:
    """Return a copy of the last layer's weight W, (d_out, width).

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readout_weight(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([1, 5])
    """
    return weight(model, layer=-1)


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
    return _gram("readin_gram", _matrix("readin_gram", model, layer=0), side)


def readin_gram_trace(model: nn.Module) -> Tensor:
    """Return tr(W^T W) of the first layer's weight W, a scalar, without forming the Gram matrix.

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> readin_gram_trace(nn.Linear(3, 5)).shape
        torch.Size([])
    """
    return gram_trace(model, layer=0)


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
        SpecError: for what is no monomial, an index that the inputs do not have, and for
            monomials of a model whose first layer is no Linear.

    Example:
        >>> readin_gram_diagonal(nn.Linear(3, 5), monomials={0: 1, 2: 2}).shape
        torch.Size([2])
    """
    return _gram_diagonal("readin_gram_diagonal", model, 0, "input", monomials)


def weight_norms(model: nn.Module, effective: bool = False) -> Tensor:
    """Return the Frobenius norm of each layer's weight, (layers,).

    Args:
        model: any model with a Linear or Conv2d layer.
        effective: of the weights times their layers' forward multipliers.

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> weight_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([W.norm() for W in _matrices(model, effective)])


def spectral_norms(model: nn.Module, effective: bool = False) -> Tensor:
    """Return the largest singular value of each layer's weight, (layers,).

    Each takes an eigendecomposition of W^T W or W W^T, whichever is smaller: of the order of
    min(outputs, inputs)^3 operations, more than many training steps where layers are wide, so
    choose GRAB_EVERY accordingly. A weight that is no longer finite has the norm nan.

    Args:
        model: any model with a Linear or Conv2d layer.
        effective: of the weights times their layers' forward multipliers.

    Raises:
        SpecError: where the model has no Linear or Conv2d layer.

    Example:
        >>> spectral_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([_spectral_norm(W) for W in _matrices(model, effective)])


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


def _matrices(model: nn.Module, effective: bool = False) -> list[Tensor]:
    """Return each layer's weight as a detached matrix, which may share its memory."""
    return [weight_matrix(layer, effective) for layer in layers_of(model)]


def _matrix(grab: str, model: nn.Module, layer: int, effective: bool = False) -> Tensor:
    return weight_matrix(layer_at(grab, model, layer), effective)


def _gram(grab: str, W: Tensor, side: str) -> Tensor:
    _check_side(grab, side)
    return W.T @ W if side == "input" else W @ W.T


def _check_side(grab: str, side: str) -> None:
    if side not in ("input", "output"):
        raise SpecError(
            f"{grab}: got side={side!r}{did_you_mean(str(side), ('input', 'output'))}; "
            "valid are 'input' for W^T W and 'output' for W W^T"
        )


def _gram_diagonal(
    grab: str,
    model: nn.Module,
    layer: int,
    side: str,
    monomials: Mapping[int, int] | Sequence[Mapping[int, int]] | None,
    effective: bool = False,
) -> Tensor:
    _check_side(grab, side)
    W = _matrix(grab, model, layer, effective)
    first = layers_of(model)[0]
    reads_the_inputs = side == "input" and layer_at(grab, model, layer) is first
    # In a sweep monomials arrive uninvited, whatever layer it is.
    if monomials is None or not reads_the_inputs:
        return W.square().sum(dim=0 if side == "input" else 1)
    _check_inputs_are_coordinates(grab, model, first)
    # Columns are taken one by one, as an index tensor would have to be sent to the device.
    columns = [W[:, i] for i in indices_of(grab, monomials, W.shape[1])]
    return torch.stack(columns, dim=1).square().sum(dim=0) if columns else W.new_zeros(0)


def _check_inputs_are_coordinates(grab: str, model: nn.Module, first: Layer) -> None:
    if not isinstance(first, nn.Linear):
        raise SpecError(
            f"{grab}: the indices of monomials are inputs of an MLP, whose first layer is Linear; "
            f"got {type(model).__name__}, whose first layer is {type(first).__name__}; try "
            "monomials=None"
        )


def _spectral_norm(W: Tensor) -> Tensor:
    gram = W.T @ W if W.shape[0] > W.shape[1] else W @ W.T
    # The decomposition raises on what is not finite, but a diverged config is a result: nan.
    finite = gram.isfinite().all()
    eigvals = torch.linalg.eigvalsh(torch.where(finite, gram, torch.zeros_like(gram)))
    return torch.where(finite, eigvals[-1].clamp_min(0).sqrt(), torch.nan)
