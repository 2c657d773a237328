"""Compiles the functions in C for this CPU, and loads them.

They do on a CPU in one call, with what they need in its caches, what PyTorch does in many. The
compiler is ``$CC``, or the first of cc, gcc and clang. What it has made is kept in the user's cache
folder, per model of CPU. Where there is no compiler, PyTorch is used instead, and one line of
output names the reason.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from hashlib import blake2b
from pathlib import Path

import torch

from mlpsubmit.display.output import echo
from mlpsubmit.native.cpu import machine_digest

__all__ = ["REAL", "library"]

#: The types of entries that functions are compiled for, in C and in ctypes.
REAL = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}

_SOURCES = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
#: Rounding as the code says; no errno, no traps.
_FLAGS = (
    *("-std=gnu11", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-shared", "-fPIC"),
)
#: Ways to ask for all instructions of this CPU; which one is known depends on the compiler.
_THIS_CPU = ("-march=native", "-mcpu=native")
_DIGEST = 32


_SIZE, _POINTER, _DOUBLE = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_double
#: The types of what each function takes and returns. Addresses are those of first entries.
_SIGNATURES = {
    "signals_size": ([_POINTER], _SIZE),
    "scratch_size": ([_POINTER], _SIZE),
    "outputs": ([_POINTER, _SIZE, _SIZE, *[_POINTER] * 3], None),
    "gradients": ([_POINTER, _SIZE, _SIZE, *[_POINTER] * 3], None),
    "mse_gradients": ([_POINTER, *[_SIZE] * 2, *[_POINTER] * 2, _SIZE, *[_POINTER] * 3], None),
    "loss_step": ([*[_SIZE] * 2, *[_POINTER] * 9, *[_SIZE] * 2], None),
    "adam": (
        [*[_SIZE] * 2, *[_POINTER] * 4, *[_POINTER, _SIZE] * 3, *[_DOUBLE] * 2, *[_POINTER] * 2],
        None,
    ),
    "sgd": ([*[_SIZE] * 2, *[_POINTER] * 3, *[_POINTER, _SIZE, _SIZE] * 2], None),
    "normals": ([_POINTER, _SIZE, _POINTER], None),
}

#: Those whose types do not depend on that of the entries: compiled once, with those for floats.
_SINGLE = ("loss_step", "normals")


class _CompilerError(Exception):
    """Why nothing could be compiled."""


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the functions for entries of this type, or None, and print why, if there are none.

    They take integers for sizes, and for addresses those of tensors, or None.
    """
    if dtype not in REAL:
        return None
    try:
        functions = _library(REAL[dtype][0])
    except (_CompilerError, OSError) as error:
        echo(f"the functions in C are not used: {error}; PyTorch's are, which may be slower")
        return None
    for name, (arguments, returned) in _SIGNATURES.items():
        if dtype == torch.float32 or name not in _SINGLE:
            getattr(functions, name).argtypes = arguments
            getattr(functions, name).restype = returned
    return functions


def _library(real: str) -> ctypes.CDLL:
    """Return the functions from the cache folder, where they are compiled first if need be."""
    sources = sorted(_SOURCES.glob("*.[ch]"))
    key = blake2b(digest_size=12)
    for part in (machine_digest().encode(), *map(Path.read_bytes, sources)):
        key.update(part)
    name = f"{real}-{key.hexdigest()}.so"
    try:
        folder = _cache_folder()
        kept = folder / name
        if not _is_whole(kept):
            _compile(sources, real, kept)
        return ctypes.CDLL(str(kept))
    except OSError:  # a home that is full, or that nobody can write to
        with tempfile.TemporaryDirectory(prefix="mlpsubmit-") as temporary:
            _compile(sources, real, Path(temporary, name))
            return ctypes.CDLL(str(Path(temporary, name)))


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpsubmit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _is_whole(library: Path) -> bool:
    """Return whether a file ends in the digest of what is before it."""
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return blake2b(content[:-_DIGEST], digest_size=_DIGEST).digest() == content[-_DIGEST:]


def _compile(sources: list[Path], real: str, library: Path) -> None:
    """Compile sources into a library that ends in its digest, published by rename."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".compiling-") as folder:
        made = Path(folder, library.name)
        units = [str(source) for source in sources if source.suffix == ".c"]
        single = ["-DSINGLE"] if real == "float" else []
        _run_compiler([*_FLAGS, f"-Dreal={real}", *single, *units, "-o", str(made)])
        content = made.read_bytes()
        with made.open("ab") as file:  # behind what the loader reads
            file.write(blake2b(content, digest_size=_DIGEST).digest())
            file.flush()
            os.fsync(file.fileno())
        made.replace(library)


def _run_compiler(arguments: list[str]) -> None:
    """Run the compiler, for this CPU.

    Raises:
        _CompilerError: if there is none, or with its first error.
    """
    given = os.environ.get("CC", "")
    found = [shlex.split(given)] if given else [[name] for name in _COMPILERS if shutil.which(name)]
    if not found:
        raise _CompilerError(f"no C compiler found ({', '.join(_COMPILERS)}; set CC to name one)")
    reason = ""
    for this_cpu in _THIS_CPU:
        command = [*found[0], this_cpu, *arguments]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            return
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
            reason = reason or next((line for line in lines if "error" in line), lines[0])
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _CompilerError(f"{found[0][0]}: {error}") from error
    raise _CompilerError(f"{found[0][0]}: {reason}")
