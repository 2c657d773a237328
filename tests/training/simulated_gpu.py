"""A GPU simulated on the CPU: its tensors have real values, and a device of their own.

torch's FakeTensorMode mixes no devices either, but has no values, and a CPU build of torch cannot
run a backward pass on tensors that claim to be on CUDA. So the device is torch's PrivateUse1, which
has a Python backend for tests, and a tensor on it wraps one on the CPU. Errors are what they are on
a GPU: operations on tensors of two devices. What would make the CPU wait for the GPU is listed.

Replaced, because a CPU build has no such thing: ``torch.Generator(device)``, which draws on the CPU
the same numbers as a CPU generator with the same seed; and what torch does below the dispatcher:
assignments of ``.data``, ``tolist``, lists as indices, ``torch.tensor(..., device=...)``.

Registering a backend changes the whole process for good: import this module in a process for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "Wait", "simulated_gpu"]

_setup_privateuseone_for_python_backend("gpu")
DEVICE = torch.device("gpu", 0)

_ATEN = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.copy_.default)
#: Operations whose result, or its shape, the CPU has to know.
_READS = (
    _ATEN._local_scalar_dense.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN._unique2.default,
)


class Wait:
    """An operation for which the CPU waits for the GPU.

    Attributes:
        frames: names of the functions it was called from, innermost first, with their locals.
    """

    def __init__(self, operation: Any) -> None:
        self.operation, self.frames = str(operation), list[tuple[str, dict[str, Any]]]()
        self.places = list[str]()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_filename != __file__ and "/torch/" not in code.co_filename:
                self.frames.append((code.co_name, frame.f_locals))
                self.places.append(f"{code.co_filename}:{frame.f_lineno}")
            frame = frame.f_back


class _OnGpu(Tensor):
    """A tensor on the simulated GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _OnGpu:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: Mapping[str, Tensor], *_: Any) -> _OnGpu:
        return _OnGpu(tensors["inner"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"on the simulated GPU: {self.inner!r}"

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{operation} on a tensor of the simulated GPU, outside of it")


class _Generator(torch.Generator):
    """A generator of the simulated GPU if that is its device; else as it is."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.of = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.of


class _Construction(TorchFunctionMode):
    """What does not reach the dispatcher."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return function(*args, **kwargs).to(device)
        if function is Tensor.tolist:
            return args[0].cpu().tolist()
        if function is Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1]).to(args[0].device)]
        if getattr(function, "__self__", None) is Tensor.data and len(args) == 2:
            tensor, value = args
            if isinstance(tensor, _OnGpu) and isinstance(value, _OnGpu):
                tensor.inner = value.inner
            elif isinstance(tensor, _OnGpu) or isinstance(value, _OnGpu):
                new = value.detach().requires_grad_(tensor.requires_grad)
                new._is_param = isinstance(tensor, torch.nn.Parameter)
                return torch.utils.swap_tensors(tensor, new)
        return function(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    """Runs every operation on the wrapped tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = kwargs.get("device")
        on_gpu = any(isinstance(x, _OnGpu) for x in tensors)
        makes_gpu = on_gpu if target is None else torch.device(target) == DEVICE
        self._check(operation, tensors, on_gpu, makes_gpu)
        inner_args, inner_kwargs = pytree.tree_map(
            lambda x: x.inner if isinstance(x, _OnGpu) else x, (args, kwargs)
        )
        if target is not None:
            inner_kwargs["device"] = torch.device("cpu")
        result = operation(*inner_args, **inner_kwargs)
        if operation is _ATEN.copy_.default:
            return args[0]
        if not makes_gpu:
            return result
        wrapped = pytree.tree_map_only(Tensor, _OnGpu, result)
        if operation is _ATEN._to_copy.default:
            return wrapped
        return return_and_correct_aliasing(operation, args, kwargs, wrapped)

    def _check(
        self, operation: Any, tensors: Sequence[Tensor], on_gpu: bool, makes_gpu: bool
    ) -> None:
        others = [x for x in tensors if not isinstance(x, _OnGpu)]
        if operation in _COPIES:
            if (on_gpu and others) or on_gpu != makes_gpu:
                self.waits.append(Wait(operation))
        elif on_gpu:
            # As on a GPU, a number on the CPU may meet any tensor.
            if any(x.dim() > 0 for x in others):
                raise RuntimeError(f"{operation}: tensors on two devices, gpu and cpu")
            is_mask = operation is _ATEN.index.Tensor and any(
                x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]
            )
            if operation in _READS or is_mask:
                self.waits.append(Wait(operation))


@contextlib.contextmanager
def simulated_gpu() -> Iterator[list[Wait]]:
    """Have the simulated GPU within the context; list what waits for it."""
    generator, torch.Generator = torch.Generator, _Generator  # type: ignore[misc]
    dispatch = _Dispatch()
    try:
        with _Construction(), dispatch:
            yield dispatch.waits
    finally:
        torch.Generator = generator  # type: ignore[misc]
