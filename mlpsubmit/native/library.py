"""The functions in C, as a library for each type of entries.

They do on a CPU in one call, with what they need in its caches, what PyTorch does in many. Where
they cannot be compiled, PyTorch is used instead, and one line of output names the reason.
"""

from __future__ import annotations

import ctypes
import functools

import torch

from mlpsubmit.display.output import echo
from mlpsubmit.native.compiler import CompilerError, compiled, unused

__all__ = ["REAL", "library"]

#: The types of entries that functions are compiled for, in C and in ctypes.
REAL = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}

_SIZE, _POINTER, _DOUBLE = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_double
#: The types of what each function takes and returns. Addresses are those of first entries.
_SIGNATURES = {
    "signals_size": ([_POINTER], _SIZE),
    "scratch_size": ([_POINTER], _SIZE),
    "outputs": ([_POINTER, _SIZE, *[_POINTER] * 3], None),
    "gradients": ([_POINTER, _SIZE, *[_POINTER] * 3], None),
    "mse_gradients": ([_POINTER, _SIZE, *[_POINTER] * 5], None),
    "loss_step": ([*[_SIZE] * 2, *[_POINTER] * 9, *[_SIZE] * 2], None),
    "adam": (
        [*[_SIZE] * 3, *[_POINTER] * 4, *[_POINTER, _SIZE] * 3, *[_DOUBLE] * 2, *[_POINTER] * 2],
        None,
    ),
    "sgd": ([*[_SIZE] * 3, *[_POINTER] * 3, *[_POINTER, _SIZE, _SIZE] * 2], None),
    "normals": ([_POINTER, _SIZE, _POINTER], None),
}

#: Those whose types do not depend on that of the entries: compiled once, with those for floats.
_SINGLE = ("loss_step", "normals")


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the functions for entries of this type, or None, and print why, if there are none.

    They take integers for sizes, and for addresses those of tensors, or None.
    """
    if dtype not in REAL:
        return None
    try:
        functions = compiled(REAL[dtype][0])
        for name, (arguments, returned) in _SIGNATURES.items():
            if dtype == torch.float32 or name not in _SINGLE:
                getattr(functions, name).argtypes = arguments
                getattr(functions, name).restype = returned
    except (CompilerError, AttributeError) as error:
        echo(f"the functions in C are {unused(error)}")
        return None
    return functions
