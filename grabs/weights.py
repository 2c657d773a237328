"""Measurements of the weights: the matrices themselves, their Grams, spectra, norms and distances.

Layers are the Linear and Conv2d modules of any model, in the order of their registration, each
with a weight matrix W (outputs, inputs): that of a Conv2d is flattened to (out_channels,
in_channels x height x width). A ``layer`` is an index from 0, or negative from the end. Weights are
the parameters as stored; effective weights include the forward multiplier g of the parametrization
(a layer computes g (W x + b)). Results are new tensors on the model's device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpsubmit.batchfns.monomial import Monomials
from mlpsubmit.batchfns.validation import check_choice
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.layers import layer_at, layers_of, scaled, weight_matrix
from mlpsubmit.grabs.matrices import indices_of, monomial_indices, nan_unless_finite

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


@labelled("_output", "_input", long_name="weight")
def weight(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return a copy of one layer's weight W, (outputs, inputs).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        effective: whether to multiply it by the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> weight(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)), layer=-1).shape
        torch.Size([1, 5])
    """
    return weight_matrix(layer_at("weight", model, layer), effective).clone()


@labelled("_output", long_name="bias")
def bias(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return a copy of one layer's bias, (outputs,).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        effective: whether to multiply it by the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have, or a layer without bias.

    Example:
        >>> bias(nn.Linear(3, 5)).shape
        torch.Size([5])
    """
    found = layer_at("bias", model, layer)
    # Typed as a Tensor, but None for a layer with bias=False.
    parameter: Tensor | None = found.bias
    if parameter is None:
        raise SpecError(
            f"bias: layer {layer} of {type(model).__name__}, {found}, has none; try another layer, "
            "or a model whose layers have biases"
        )
    return scaled(found, parameter.detach()) if effective else parameter.detach().clone()


@labelled("_row", "_column", long_name="Gram matrix of the weight")
def weight_gram(
    model: nn.Module, layer: int = 0, side: str = "input", effective: bool = False
) -> Tensor:
    """Return the Gram matrix of one layer's weight W, (outputs, inputs).

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        side: "input" for W^T W, (inputs, inputs); "output" for W W^T, (outputs, outputs).
        effective: whether the weight is multiplied by the layer's forward multiplier.

    Raises:
        SpecError: for an invalid side, and for a layer that the model does not have.

    Example:
        >>> weight_gram(nn.Linear(3, 5)).shape
        torch.Size([3, 3])
    """
    W = weight_matrix(layer_at("weight_gram", model, layer), effective)
    _check_side("weight_gram", side)
    return W.T @ W if side == "input" else W @ W.T


@labelled(long_name="trace of the weight's Gram matrix")
def gram_trace(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return tr(W^T W) of one layer's weight W, a scalar, without forming the Gram matrix.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        effective: whether the weight is multiplied by the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> gram_trace(nn.Linear(3, 5)).shape
        torch.Size([])
    """
    return weight_matrix(layer_at("gram_trace", model, layer), effective).square().sum()


@labelled(
    "_index", long_name="diagonal of the weight's Gram matrix", coords=monomial_indices("_index")
)
def gram_diagonal(
    model: nn.Module,
    layer: int = 0,
    side: str = "input",
    monomials: Monomials | None = None,
    effective: bool = False,
) -> Tensor:
    """Return the diagonal of W^T W or W W^T, W one layer's weight, without forming the matrix.

    Its entries are the squared norms of the columns of W, one per input, or of the rows, one per
    output.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        side: "input" for W^T W, "output" for W W^T.
        monomials: one monomial (a mapping index -> exponent), or a list of them; in a sweep, the
            axis or argument ``monomials``. They select the entries of the indices that appear in
            them, ascending, each once. Indices are inputs of the network, so they apply to the
            inputs of the first layer, which must be Linear; for any other layer, and for side
            "output", the result has all entries.
        effective: whether the weight is multiplied by the layer's forward multiplier.

    Returns:
        (inputs,) or (outputs,), or (number of indices,).

    Raises:
        SpecError: for an invalid side, layer, index or monomial, and for monomials if the first
            layer of the model is not Linear.

    Example:
        >>> gram_diagonal(nn.Linear(3, 5), monomials={0: 1, 2: 2}).shape
        torch.Size([2])
    """
    _check_side("gram_diagonal", side)
    found, first = layer_at("gram_diagonal", model, layer), layers_of(model)[0]
    W = weight_matrix(found, effective)
    # A sweep supplies the monomials of the target for every layer.
    if monomials is None or side == "output" or found is not first:
        return W.square().sum(dim=0 if side == "input" else 1)
    if not isinstance(first, nn.Linear):
        raise SpecError(
            "gram_diagonal: the indices of monomials are inputs of an MLP, whose first layer is "
            f"Linear; got {type(model).__name__}, whose first layer is {type(first).__name__}; try "
            "monomials=None"
        )
    # Columns are taken one by one: an index tensor would have to be copied to the device.
    columns = [W[:, i] for i in indices_of("gram_diagonal", monomials, W.shape[1])]
    return torch.stack(columns, dim=1).square().sum(dim=0) if columns else W.new_zeros(0)


@labelled("_number", long_name="singular value of the weight")
def singular_values(model: nn.Module, layer: int = 0, effective: bool = False) -> Tensor:
    """Return the singular values of one layer's weight, descending, (min(outputs, inputs),).

    The decomposition takes O(max(outputs, inputs) x min(outputs, inputs)^2) operations, more than
    many training steps for wide layers: choose GRAB_EVERY accordingly. The values are nan if the
    weight is not finite.

    Args:
        model: any model with a Linear or Conv2d layer.
        layer: its index, from 0, or negative from the end.
        effective: whether the weight is multiplied by the layer's forward multiplier.

    Raises:
        SpecError: for a layer that the model does not have.

    Example:
        >>> singular_values(nn.Linear(3, 5)).shape
        torch.Size([3])
    """
    W = weight_matrix(layer_at("singular_values", model, layer), effective)
    return nan_unless_finite(torch.linalg.svdvals, W)


@labelled("_output", "_input", long_name="weight of the first layer")
def readin_weight(model: nn.Module) -> Tensor:
    """Return a copy of the first layer's weight W, (width, d_in).

    Raises:
        SpecError: if the model has no Linear or Conv2d layer.

    Example:
        >>> readin_weight(nn.Linear(3, 5)).shape
        torch.Size([5, 3])
    """
    return weight(model, layer=0)


@labelled("_output", "_input", long_name="weight of the last layer")
def readout_weight(model: nn.Module) -> Tensor:
    """Return a copy of the last layer's weight W, (d_out, width).

    Raises:
        SpecError: if the model has no Linear or Conv2d layer.

    Example:
        >>> readout_weight(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([1, 5])
    """
    return weight(model, layer=-1)


@labelled("_row", "_column", long_name="Gram matrix of the first layer's weight")
def readin_gram(model: nn.Module, side: str = "input") -> Tensor:
    """Return the Gram matrix of the first layer's weight W, (width, d_in).

    Args:
        model: any model with a Linear or Conv2d layer.
        side: "input" for W^T W, (d_in, d_in); "output" for W W^T, (width, width).

    Raises:
        SpecError: for an invalid side, and if the model has no Linear or Conv2d layer.

    Example:
        >>> readin_gram(nn.Linear(3, 5)).shape
        torch.Size([3, 3])
    """
    return weight_gram(model, layer=0, side=side)


@labelled(long_name="trace of the first layer's Gram matrix")
def readin_gram_trace(model: nn.Module) -> Tensor:
    """Return tr(W^T W) of the first layer's weight W, a scalar, without forming the Gram matrix.

    Raises:
        SpecError: if the model has no Linear or Conv2d layer.

    Example:
        >>> readin_gram_trace(nn.Linear(3, 5)).shape
        torch.Size([])
    """
    return gram_trace(model, layer=0)


@labelled(
    *("_index",),
    long_name="diagonal of the first layer's Gram matrix",
    coords=monomial_indices("_index"),
)
def readin_gram_diagonal(model: nn.Module, monomials: Monomials | None = None) -> Tensor:
    """Return the diagonal of W^T W, W the first layer's weight: squared norms, one per input.

    Args:
        model: any model with a Linear or Conv2d layer; with monomials, one whose first layer is
            Linear.
        monomials: one monomial (a mapping index -> exponent), or a list of them, to select the
            entries of the indices that appear in them, ascending, each once.

    Returns:
        (d_in,), or (number of indices,).

    Raises:
        SpecError: for an invalid monomial or index, and for monomials if the first layer of the
            model is not Linear.

    Example:
        >>> readin_gram_diagonal(nn.Linear(3, 5), monomials={0: 1, 2: 2}).shape
        torch.Size([2])
    """
    return gram_diagonal(model, layer=0, monomials=monomials)


@labelled("layer", long_name="Frobenius norm of the weight")
def weight_norms(model: nn.Module, effective: bool = False) -> Tensor:
    """Return the Frobenius norm of each layer's weight, (layers,).

    Args:
        model: any model with a Linear or Conv2d layer.
        effective: whether the weights are multiplied by their layers' forward multipliers.

    Raises:
        SpecError: if the model has no Linear or Conv2d layer.

    Example:
        >>> weight_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([W.norm() for W in _matrices(model, effective)])


@labelled("layer", long_name="largest singular value of the weight")
def spectral_norms(model: nn.Module, effective: bool = False) -> Tensor:
    """Return the largest singular value of each layer's weight, (layers,).

    Each takes an eigendecomposition of the smaller of W^T W and W W^T, O(min(outputs, inputs)^3)
    operations, more than many training steps for wide layers: choose GRAB_EVERY accordingly. The
    norm of a weight that is not finite is nan.

    Args:
        model: any model with a Linear or Conv2d layer.
        effective: whether the weights are multiplied by their layers' forward multipliers.

    Raises:
        SpecError: if the model has no Linear or Conv2d layer.

    Example:
        >>> spectral_norms(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))).shape
        torch.Size([2])
    """
    return torch.stack([_spectral_norm(W) for W in _matrices(model, effective)])


@labelled("layer", long_name="distance of the weight from initialisation, relative")
def distance_from_init(model: nn.Module, model0: nn.Module) -> Tensor:
    """Return |W - W0| / |W0| for each layer, Frobenius norms, (layers,): 0 at initialisation.

    For a layer that was initialised to zero it is nan, or inf once its weight is not zero.

    Args:
        model: the network.
        model0: the same network at initialisation.

    Raises:
        SpecError: if the two have different layers, or none.

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
    """Return each layer's weight as a detached matrix, which may share the parameter's memory."""
    return [weight_matrix(layer, effective) for layer in layers_of(model)]


def _check_side(grab: str, side: str) -> None:
    valid = "'input' for W^T W and 'output' for W W^T"
    check_choice(grab, "side", side, ("input", "output"), valid)


def _spectral_norm(W: Tensor) -> Tensor:
    gram = W.T @ W if W.shape[0] > W.shape[1] else W @ W.T
    return nan_unless_finite(lambda G: torch.linalg.eigvalsh(G)[-1].clamp_min(0).sqrt(), gram)
