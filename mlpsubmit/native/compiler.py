"""Compiles the functions in C for this CPU, and keeps what was compiled.

The compiler is ``$CC``, or the first of cc, gcc and clang. What it has made is kept in the user's
cache folder, per model of CPU, where nobody else can write. Nothing here imports torch, so a small
job can try it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mlpsubmit.native.cpu import cpu_name, machine_digest

__all__ = ["CompilerError", "cache_folder", "compiled", "report", "unused"]

_SOURCES = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")
#: Rounding as the code says; no errno, no traps.
_FLAGS = (
    *("-std=gnu11", "-O3", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=off", "-shared", "-fPIC", "-pthread"),
)
#: Ways to ask for all instructions of this CPU; which one is known depends on the compiler.
_THIS_CPU = ("-march=native", "-mcpu=native")
_DIGEST = 32


class CompilerError(Exception):
    """Why nothing could be compiled."""


def compiled(real: str) -> ctypes.CDLL:
    """Return the functions from the cache folder, where they are compiled first if need be.

    Args:
        real: the type of entries, ``float`` or ``double``.

    Raises:
        CompilerError: if they cannot be compiled, or not be loaded.
    """
    sources = sorted(_SOURCES.glob("*.[ch]"))
    key = blake2b(repr((machine_digest(), _compilers(), _FLAGS)).encode(), digest_size=12)
    for source in sources:
        key.update(source.read_bytes())
    name = f"{real}-{key.hexdigest()}.so"
    try:
        try:
            kept = cache_folder() / name
            if not _is_whole(kept):
                _compile(sources, real, kept)
            return ctypes.CDLL(str(kept))
        except (OSError, RuntimeError):  # a home that is full or read-only; or there is none
            with tempfile.TemporaryDirectory(prefix="mlpsubmit-") as temporary:
                _compile(sources, real, Path(temporary, name))
                return ctypes.CDLL(str(Path(temporary, name)))
    except OSError as error:
        raise CompilerError(str(error)) from error


def unused(error: Exception) -> str:
    """Return what to say of functions that could not be compiled."""
    return f"not used: {error}; PyTorch's are, which may be slower"


def report() -> tuple[bool, str]:
    """Return whether the functions in C work here, and a line that says how, or why not."""
    try:
        library = Path(compiled("float")._name)
    except CompilerError as error:
        return False, unused(error)
    if library.exists():
        return True, f"compiled for {cpu_name()}, in {library.parent}"
    try:
        reason = f"{cache_folder()} takes no file"
    except (OSError, RuntimeError) as error:
        reason = str(error)
    return True, (
        f"compiled anew by each process, as nothing can be kept: {reason}; XDG_CACHE_HOME may name "
        "another folder in place of ~/.cache"
    )


def cache_folder() -> Path:
    """Return the folder for what was compiled, which is made if need be.

    Raises:
        PermissionError: where others can write to it: what they put there would be run.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpsubmit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder}: others can write to it")
    return folder


def _is_whole(library: Path) -> bool:
    """Return whether a file ends in the digest of what is before it."""
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return blake2b(content[:-_DIGEST], digest_size=_DIGEST).digest() == content[-_DIGEST:]


def _compile(sources: list[Path], real: str, library: Path) -> None:
    """Compile sources into a library that ends in its digest, published by a link.

    If another process was faster, its file stays, which may be mapped by now.
    """
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
        if library.exists() and not _is_whole(library):
            library.unlink()
        try:
            library.hardlink_to(made)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            made.replace(library)


def _compilers() -> list[list[str]]:
    """Return the commands that may compile, the first of which is used.

    Raises:
        CompilerError: for a CC that a shell would not take either.
    """
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise CompilerError(f"CC: {error}") from error
    return [given] if given else [[name] for name in _COMPILERS if shutil.which(name)]


def _run_compiler(arguments: list[str]) -> None:
    """Run the compiler, for this CPU.

    Raises:
        CompilerError: if there is none, or with its first error.
    """
    found = _compilers()
    if not found:
        raise CompilerError(
            f"no C compiler found ({', '.join(_COMPILERS)}); install GCC or Clang, or name one "
            "in CC"
        )
    reason, hint = "", "; CC should name a GCC or a Clang" if os.environ.get("CC") else ""
    # Its messages in English, of which the first error is shown.
    options: dict[str, Any] = {"errors": "replace", "env": {**os.environ, "LC_ALL": "C"}}
    for this_cpu in _THIS_CPU:
        command = [*found[0], this_cpu, *arguments]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300, **options)
            return
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
            reason = reason or next((line for line in lines if "error" in line), lines[0])
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"{found[0][0]}: {error}{hint}") from error
    raise CompilerError(f"{found[0][0]}: {reason}{hint}")
