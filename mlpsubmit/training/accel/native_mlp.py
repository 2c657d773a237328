"""MLPs on a CPU: outputs, losses and gradients by the functions of ``mlpsubmit/native/mlp.c``."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mlpsubmit.native.library import REAL, library
from mlpsubmit.training.accel.chains import Chain, sample_shape
from mlpsubmit.training.accel.kernels import passes
from mlpsubmit.training.accel.mlp_trial import MSEGradients, difference_from_formulas, trial_shapes
from mlpsubmit.training.batches import Batch

__all__ = ["NativeMLP"]

#: The functions phi, as mlp.c numbers them, and those that it has for doubles.
_PHIS = ("identity", "relu", "tanh", "sigmoid")
_OF_DOUBLES = {"identity", "relu"}

#: Largest difference from the formulas, over the norm of what is compared, in a trial.
_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


class NativeMLP:
    """K MLPs of equal shapes, one network after another on each thread, or on all threads.

    Get one from :meth:`of`.

    Args:
        functions: those of ``mlpsubmit/native/mlp.c``, for entries of this type.
        dtype: of all tensors.
        chain: what the networks have in common.
    """

    #: How gradients are computed, which decides how they round.
    method = "the closed form in C"

    def __init__(self, functions: ctypes.CDLL, dtype: torch.dtype, chain: Chain) -> None:
        self._functions, self._chain = functions, chain
        phis = map(_PHIS.index, (*chain.phis, "identity"))
        #: Of each layer: the names of its weights and biases, and phi.
        self._layers = [
            (f"{layer}.weight", f"{layer}.bias", phi)
            for layer, phi in zip(chain.layers, phis, strict=True)
        ]
        real = REAL[dtype][1] * len(chain.scales)
        self._scales, self._bias_scales = real(*chain.scales), real(*chain.bias_scales)

    @classmethod
    def of(
        cls, chain: Chain, tensors: Mapping[str, Tensor], formulas: MSEGradients
    ) -> NativeMLP | None:
        """Return it, or None where there is no compiler or it fails its trial.

        Args:
            chain: as that of the class.
            tensors: parameters and buffers by name, those of one network.
            formulas: what it computes, in PyTorch.
        """
        dtype = tensors[f"{chain.layers[0]}.weight"].dtype
        suits = dtype == torch.float32 or set(chain.phis) <= _OF_DOUBLES
        suits &= all(tensor.dtype == dtype for tensor in tensors.values())
        functions = _functions_for(dtype) if suits else None
        if functions is None:
            return None
        native = cls(functions, dtype, chain)
        key = (dtype, chain, tuple(trial_shapes(tensors).items()))
        if key not in _PASSED:
            difference = functools.partial(
                difference_from_formulas,
                *(native.mse_gradients, formulas, tensors, torch.device("cpu")),
            )
            _PASSED[key] = passes("MLPs in C", difference, _TOLERANCES[dtype])
        return native if _PASSED[key] else None

    def outputs(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the outputs (K, n, d_out)."""
        call = _Call(self, tensors, batch)
        outputs = call.outputs()
        call.run("outputs", None, outputs)
        return outputs

    def forward(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the signals, for :meth:`backward`, and the outputs (K, n, d_out)."""
        call = _Call(self, tensors, batch)
        signals, outputs = call.signals(), call.outputs()
        call.run("outputs", signals, outputs)
        return signals, outputs

    def backward(
        self, tensors: Mapping[str, Tensor], batch: Batch, signals: Tensor, d_output: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients (K, ...) by name, from those with respect to the outputs."""
        gradients = self._empty_gradients(tensors)
        call = _Call(self, tensors, batch, gradients)
        call.run("gradients", signals, call.hold(d_output, call.entries * call.networks))
        return gradients

    def mse_gradients(
        self,
        tensors: Mapping[str, Tensor],
        batch: Batch,
        initial_output: Tensor | float,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return losses (K,) under mse, and gradients (K, ...) by name.

        Args:
            initial_output: f0 (K, n, d_out), or a number.
            kept: takes the outputs minus ``initial_output``.
        """
        gradients = self._empty_gradients(tensors)
        call = _Call(self, tensors, batch, gradients)
        f0 = None
        if isinstance(initial_output, Tensor):
            f0 = call.hold(initial_output, call.entries * call.networks)
        elif initial_output:
            f0 = torch.full_like(call.outputs(), initial_output)
        y = call.addresses(batch, 1, call.entries)
        centred, losses = None if kept is None else call.outputs(), call.empty(call.networks)
        call.run("mse_gradients", f0, y, centred, losses)
        if kept is not None and centred is not None:
            kept.append(centred)
        return losses, gradients

    def _empty_gradients(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.empty_like(tensors[name], memory_format=torch.contiguous_format)
            for weight, bias, _ in self._layers
            for name in (weight, bias)
            if name in tensors
        }


def product_in_c(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the product of MLPs in C, of X (n, d) and W (m, d) to X W^T (n, m); None without it.

    The product is that of a hidden layer, without its nonlinearity.
    """
    functions = _functions_for(dtype)
    if functions is None:
        return None
    native = NativeMLP(functions, dtype, Chain(("",), (), (1.0,), (1.0,), True))
    return lambda X, W: native.outputs({".weight": W.unsqueeze(0)}, Batch(X, X, True))[0]


class _Call:
    """The arguments of a function in C; it holds copies that they point to, if there are any.

    Attributes:
        networks: how many there are.
        entries: of the outputs of one network.
    """

    def __init__(
        self,
        mlp: NativeMLP,
        tensors: Mapping[str, Tensor],
        batch: Batch,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        chain = mlp._chain
        self._functions, self._held = mlp._functions, list[Tensor]()
        self._like = tensors[mlp._layers[0][0]]
        self._inputs, self._outputs = self._like.shape[-1], tensors[mlp._layers[-1][0]].shape[1]
        sample, shared = (batch.separate[0][0], True) if batch.separate else (batch.X, batch.shared)
        self._shape = sample_shape(chain, sample, shared)
        # The structures of mlp.c, as numbers: sizes, addresses, and 0 for NULL.
        layers: list[int] = []
        for weight, bias, phi in mlp._layers:
            self.networks, out, d = tensors[weight].shape
            layers += (d, out, phi)
            for held in (tensors, gradients or {}):
                layers += (self._address(held.get(weight)), self._address(held.get(bias)))
        self._layers = _numbers(layers)
        samples = math.prod(self._shape)
        self.entries = samples * self._outputs
        self._X = self.addresses(batch, 0, samples * self._inputs)
        self._arguments = _numbers(
            [
                *(self.networks, samples, len(chain.layers), ctypes.addressof(self._layers)),
                *(ctypes.addressof(mlp._scales), ctypes.addressof(mlp._bias_scales)),
                *(ctypes.addressof(self._X), self._address(tensors.get(chain.multiplier))),
            ]
        )

    def _address(self, tensor: Tensor | None) -> int:
        """Return where the entries of a tensor are, or those of a contiguous copy; 0 for none."""
        if tensor is None:
            return 0
        usual = tensor.dtype == self._like.dtype and tensor.is_contiguous() and not tensor.is_neg()
        return (tensor if usual else self.hold(tensor)).data_ptr()

    def hold(self, tensor: Tensor, size: int | None = None) -> Tensor:
        """Return a tensor, or a contiguous copy, that lives as long as this call.

        Args:
            size: how many entries it has to have.
        """
        if tensor.dtype != self._like.dtype or tensor.numel() != (size or tensor.numel()):
            self._refuse(f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}")
        self._held.append(tensor.resolve_neg().contiguous())
        return self._held[-1]

    def _refuse(self, got: str) -> NoReturn:
        raise ValueError(
            f"{got}, for {self.networks} networks of {self._inputs} inputs and {self._outputs} "
            f"outputs in {self._like.dtype}, on samples {self._shape}"
        )

    def addresses(self, batch: Batch, part: int, size: int) -> Any:
        """Return where the inputs or the targets of each network are, as an array in C.

        Args:
            part: 0 for inputs, 1 for targets.
            size: how many entries there are per network.
        """
        if batch.separate is not None:
            own = batch.separate[0][part]
            if len(batch.separate) != self.networks or own.numel() != size:
                self._refuse(f"{len(batch.separate)} batches of shape {tuple(own.shape)}")
            return batch.addresses[part]
        K = 1 if batch.shared else self.networks
        whole = self.hold((batch.X, batch.y)[part], size * K)
        step = 0 if batch.shared else size * whole.element_size()
        return _numbers([whole.data_ptr() + k * step for k in range(self.networks)])

    def empty(self, *shape: int) -> Tensor:
        """Return an empty tensor."""
        return self._like.new_empty(shape)

    def outputs(self) -> Tensor:
        """Return an empty tensor for outputs, (K, n, ..., d_out)."""
        return self.empty(self.networks, *self._shape, self._outputs)

    def signals(self) -> Tensor:
        """Return an empty tensor for signals."""
        size = self._functions.signals_size(ctypes.addressof(self._arguments))
        return self.empty(self.networks, size)

    def run(self, function: str, *arguments: Any) -> None:
        """Call a function, on as many threads as PyTorch uses."""
        networks, threads = ctypes.addressof(self._arguments), torch.get_num_threads()
        memory = self.empty(threads * self._functions.scratch_size(networks))
        given = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
        getattr(self._functions, function)(networks, threads, memory.data_ptr(), *given)


def _numbers(values: Sequence[int]) -> Any:
    return (ctypes.c_size_t * len(values))(*values)


def _functions_for(dtype: torch.dtype) -> ctypes.CDLL | None:
    # On macOS, PyTorch's products run on a unit of the chip that C does not reach.
    return library(dtype) if sys.platform == "linux" else None


#: Which have passed their trial in this process, and which have not.
_PASSED: dict[Any, bool] = {}
