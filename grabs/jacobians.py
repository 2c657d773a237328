"""Per-row Jacobians of a network's outputs, factorised so that their inner products are cheap.

The gradient of one output at one row with respect to the weight of a Linear layer is the outer
product of the gradient with respect to the layer's result (before any hook) and the layer's input.
The inner product of two such gradients is a product of two inner products of vectors, and the
matrices are never formed: the "structured derivatives" of Novak, Sohl-Dickstein and Schoenholz,
"Fast finite width neural tangent kernel", arXiv:2206.08720. For a Conv2d, and wherever a weight is
used at several positions of one row, outer products are summed over the positions. All other
parameters are differentiated directly.

Each row is evaluated alone, under ``vmap``. A layer is recognised by the calls of ``linear`` and
``conv2d`` in the forward pass, not by its module, and only if the autograd graph shows no other use
of its parameters.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.overrides import TorchFunctionMode

from mlpsubmit.errors import SpecError

__all__ = ["Block", "Factor", "RowJacobian"]

#: The functions by which layers are recognised, and the names of their arguments.
_ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight", "bias"),
    nn.functional.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}

#: The ids of a layer's weight and bias.
_Key: TypeAlias = tuple[int, int]


class Block(NamedTuple):
    """A set of rows and outputs whose gradients are computed together."""

    rows: slice
    outputs: slice


class Factor(NamedTuple):
    """Gradients of c outputs at m rows with respect to some of the parameters.

    The gradient of output a at row i is the outer product of D[i, a] and A[i], or D[i, a] itself.

    Attributes:
        D: (m, c, q).
        A: (m, p), or None.
    """

    D: Tensor
    A: Tensor | None = None

    def products(self, other: Factor) -> Tensor:
        """Return the inner products with the gradients at m' other rows, (m, c, m', c')."""
        products: Tensor = torch.tensordot(self.D, other.D, dims=([2], [2]))
        if self.A is None or other.A is None:
            return products
        return products.mul_((self.A @ other.A.T)[:, None, :, None])

    def squares(self) -> Tensor:
        """Return the squared norms, summed over the outputs, (m,)."""
        squares = self.D.square().sum(dim=(1, 2))
        return squares if self.A is None else squares * self.A.square().sum(dim=1)


class RowJacobian:
    """The gradients of all outputs of a network at all rows, with respect to trained parameters.

    The model is not modified: parameters, their .grad, buffers, hooks and mode stay the same.

    Args:
        model: a network whose outputs at a row depend on that row alone, and are not random.
        X: (n, ...).
        chunk_bytes: memory for the gradients of two blocks. A block has at least one row and one
            output, whatever they need.

    Attributes:
        n_rows: n.
        n_outputs: number of outputs for one row.
        blocks: a partition of the rows and outputs.

    Raises:
        SpecError: if no parameter requires a gradient, and if rows depend on each other.
    """

    def __init__(self, model: nn.Module, X: Tensor, chunk_bytes: int) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise SpecError(
                f"the tangent kernel of {type(model).__name__} cannot be taken: it is a sum over "
                "the parameters that require gradients, and none does; try model.requires_grad_()"
            )
        _check_rows_are_independent(model, X)
        self._model, self._X = model, X
        self._layers, output = _layers(model, X[:1], {id(p) for p in trained.values()})
        among_layers = {id(p) for layer in self._layers for p in layer.trained}
        self._others = {name: p for name, p in trained.items() if id(p) not in among_layers}
        self._basis = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
        self.n_rows, self.n_outputs = len(X), output.numel()
        self.blocks = self._blocks(chunk_bytes // (2 * output.element_size()))

    def _blocks(self, entries: int) -> list[Block]:
        """Return blocks whose gradients have at most ``entries`` entries each."""
        per_row = sum(layer.entries_per_row for layer in self._layers)
        per_output = sum(layer.entries_per_output for layer in self._layers)
        per_output += sum(p.numel() for p in self._others.values())
        outputs = min(self.n_outputs, max(1, (entries - per_row) // per_output))
        rows = max(1, entries // (per_row + outputs * per_output))
        parts = itertools.product(_cut(self.n_rows, rows), _cut(self.n_outputs, outputs))
        return [Block(*part) for part in parts]

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the type, and on the device, of the gradients."""
        return self._basis.new_zeros(shape)

    @torch.no_grad()
    def at(self, block: Block, pooled: bool = False) -> list[Factor]:
        """Return the gradients of a block, one factor per layer or other parameter.

        Pooled, those of its outputs are concatenated, as if they were those of one output.
        """
        basis = self._basis[block.outputs]
        # D is the gradient with respect to a zero that is added to the result of a layer.
        zeros = {
            layer.key: [basis.new_zeros(call.shape) for call in layer.calls]
            for layer in self._layers
        }

        def at_row(x: Tensor) -> Any:
            outputs = functools.partial(self._outputs, x)
            # Its type does not account for has_aux, with which it returns three values.
            value_and_pullback: Any = vjp(outputs, zeros, self._others, has_aux=True)
            _, pullback, inputs = value_and_pullback
            return inputs, *torch.vmap(pullback)(basis)

        inputs, by_layer, by_name = torch.vmap(at_row)(self._X[block.rows])
        factors = [layer.factor(inputs[layer.key], by_layer[layer.key]) for layer in self._layers]
        # Not flatten(2): a parameter may be a scalar.
        factors += [Factor(G.reshape(*G.shape[:2], -1)) for G in by_name.values()]
        return [Factor(D.flatten(1).unsqueeze(1), A) for D, A in factors] if pooled else factors

    def _outputs(
        self, x: Tensor, shifts: dict[_Key, list[Tensor]], others: dict[str, Tensor]
    ) -> tuple[Tensor, dict[_Key, list[Tensor]]]:
        """Return the outputs at one row x, with shifts added to the results of layers.

        Returns:
            The outputs (n_outputs,), and the inputs of each layer, call by call.
        """
        inputs: dict[_Key, list[Tensor]] = {key: [] for key in shifts}

        def shifted(call: _Call, output: Tensor) -> Tensor:
            if call.key not in shifts:
                return output
            inputs[call.key].append(call.input)
            return output + shifts[call.key][len(inputs[call.key]) - 1]

        with _Intercept(shifted):
            output = functional_call(self._model, others, (x[None],))
        return output.flatten(), inputs


class _Call(NamedTuple):
    """A call of linear or conv2d: its arguments, and shape and graph node of its result."""

    function: Callable[..., Any]
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    options: dict[str, Any]
    shape: torch.Size
    node: Any

    @property
    def key(self) -> _Key:
        return id(self.weight), id(self.bias)


class _Layer:
    """A weight and a bias, with all calls that use them.

    Attributes:
        trained: the weight, and the bias if it is trained, too.
        entries_per_row: number of entries of all inputs at one row, with images as patches.
        entries_per_output: number of entries of the gradients of one output at one row.
    """

    def __init__(self, calls: list[_Call]) -> None:
        weight, bias = calls[0].weight, calls[0].bias
        self.calls, self.key = calls, calls[0].key
        self.trained = [p for p in (weight, bias) if p is not None and p.requires_grad]
        self._groups = int(calls[0].options.get("groups", 1))
        results = sum(call.shape.numel() for call in calls)
        positions = results // len(weight)  # uses of the weight for one row
        self._factorises = positions == 1 and self._groups == 1
        self.entries_per_row = positions * self._groups * (weight[0].numel() + 1)
        self.entries_per_output = results
        if not self._factorises:
            self.entries_per_output += sum(p.numel() for p in self.trained)

    def factor(self, inputs: list[Tensor], gradients: list[Tensor]) -> Factor:
        """Return the gradients, given those with respect to the result of each call."""
        pairs = map(self._by_position, self.calls, inputs, gradients)
        if self._factorises:
            ((A, D),) = pairs
            return Factor(D.flatten(2), A.flatten(1))
        products = [torch.einsum("mbgpl,mcbgql->mcgqp", A, D) for A, D in pairs]
        return Factor(torch.stack(products).sum(dim=0).flatten(2))

    def _by_position(self, call: _Call, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Reshape inputs (m, ...) and gradients (m, c, ...) for a matrix product.

        Per row, a call processes B images of L positions, or B vectors (L = 1), in g groups of p
        inputs and q outputs. A trained bias is the weight of an additional input of 1.

        Returns:
            (m, B, g, p, L), (m, c, B, g, q, L).
        """
        g, p, q, L = self._groups, call.weight[0].numel(), len(call.weight) // self._groups, 1
        if call.function is nn.functional.conv2d:
            inputs = _patches(inputs.flatten(0, 1), call.weight, **call.options)
            L = inputs.shape[-1]
        m, c = gradients.shape[:2]
        A = inputs.reshape(m, -1, g, p, L)
        if len(self.trained) == 2:
            A = nn.functional.pad(A, (0, 0, 0, 1), value=1.0)
        return A, gradients.reshape(m, c, -1, g, q, L)


class _Intercept(TorchFunctionMode):
    """Passes each call of linear or conv2d, and its result, to a function that may replace it."""

    def __init__(self, replaced: Callable[[_Call, Tensor], Tensor]) -> None:
        super().__init__()
        self._replaced = replaced

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func not in _ARGUMENTS:
            return output
        options = dict(zip(_ARGUMENTS[func], args, strict=False)) | dict(kwargs or {})
        tensors = (options.pop("input"), options.pop("weight"), options.pop("bias", None))
        return self._replaced(_Call(func, *tensors, options, output.shape, output.grad_fn), output)


@torch.enable_grad()
def _evaluate(model: nn.Module, X: Tensor) -> Tensor:
    """Return the outputs with their graph; buffers of the model are not updated."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    output: Tensor = functional_call(model, buffers, (X,))
    return output


def _check_rows_are_independent(model: nn.Module, X: Tensor) -> None:
    """Raise a SpecError if the output at the first row depends on the last row.

    A GPU-CPU sync point. For independent rows the gradient is a sum of products with zero, thus
    exactly 0.
    """
    if not X.is_floating_point():
        return
    pair = torch.cat([X[:1], X[-1:]]).detach().requires_grad_()
    output = _evaluate(model, pair)
    if not output.requires_grad:
        return
    (gradient,) = torch.autograd.grad(output[0].sum(), pair, allow_unused=True)
    if gradient is not None and bool((gradient[1].abs() > 0).any()):
        raise SpecError(
            f"the tangent kernel of {type(model).__name__} cannot be taken: it is that of outputs "
            "f(x) at single rows x of a batch, but here the output at one row depends on other "
            "rows; try a model without batch normalisation, or one whose batch normalisation is "
            "in eval mode"
        )


def _layers(model: nn.Module, x: Tensor, trained: set[int]) -> tuple[list[_Layer], Tensor]:
    """Return the layers on whose parameters the output for one row depends through calls alone.

    Args:
        model: the network.
        x: (1, ...), one row.
        trained: the ids of the trained parameters.

    Returns:
        The layers, and the output for the row.
    """
    by_key: dict[_Key, list[_Call]] = defaultdict(list)

    def record(call: _Call, output: Tensor) -> Tensor:
        # A bias that is computed would have another id in the next forward pass.
        if id(call.weight) in trained and isinstance(call.bias, (nn.Parameter, type(None))):
            by_key[call.key].append(call)
        return output

    with _Intercept(record):
        output = _evaluate(model, x)
    nodes, uses = _graph(output)
    layers = [
        layer
        for layer in map(_Layer, by_key.values())
        if all(call.node in nodes for call in layer.calls)
        and all(uses[id(p)] == len(layer.calls) for p in layer.trained)
    ]
    return layers, output


def _graph(output: Tensor) -> tuple[set[Any], Counter[int]]:
    """Return the nodes of the autograd graph, and for each parameter's id the edges to it."""
    uses: Counter[int] = Counter()
    nodes: set[Any] = {output.grad_fn} - {None}
    pending = list(nodes)
    while pending:
        for node, _ in pending.pop().next_functions:
            variable = getattr(node, "variable", None)
            if variable is not None:
                uses[id(variable)] += 1
            elif node is not None and node not in nodes:
                nodes.add(node)
                pending.append(node)
    return nodes, uses


def _patches(
    images: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return the patches that a convolution multiplies by its weight, (images, p, positions)."""
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        across = dilation if isinstance(dilation, (tuple, list)) else (dilation, dilation)
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(across, kernel, strict=True)
        ]
        sides = [(t // 2, t - t // 2) for t in total]
        images, padding = nn.functional.pad(images, (*sides[1], *sides[0])), 0
    return nn.functional.unfold(images, kernel, dilation, padding, stride)


def _cut(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]
