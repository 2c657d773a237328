"""Functions and classes out of files that a script names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from mlpsubmit.errors import SpecError, did_you_mean

__all__ = ["load_from_file"]


def load_from_file(place: str, path: str | os.PathLike[str], name: str) -> Any:
    """Run a Python file and return what it calls by a name.

    It is no module that could be imported, so that what comes out of it travels to workers by
    value.

    Args:
        place: what messages call the pair of path and name.

    Raises:
        SpecError: where there is no such file, it raises, or has nothing of that name.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py" or not file.is_file():
        raise SpecError(f"{place}: got {str(file)!r}; should be the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"mlpsubmit_file_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SpecError(f"{place}: {file} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise SpecError(f"{place}: {file} has no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)
