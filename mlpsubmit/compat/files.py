"""Files of a script: what it saves, its JSON files, and the Python files that it names."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit import files
from mlpsubmit.errors import SpecError, UserError, did_you_mean

__all__ = ["FileManager", "load_from_file", "load_json"]


class FileManager:
    """Saves and loads objects in the folder of an experiment, as expt-core's FileManager does.

    A name that ends in ``.npy`` is an array in numpy's format, any other a pickle. A file is
    replaced as a whole: whoever reads it finds the old one or the new one.

    Args:
        root: the folder; made if it is not there.

    Example:
        >>> FileManager("results").save({"loss": 0.1}, "result.pickle")  # doctest: +SKIP
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.set_filepath("")

    def set_filepath(self, filepath: str) -> None:
        """Make a folder under the root and keep its path in ``filepath``."""
        self.filepath = os.path.join(self.root, filepath)
        os.makedirs(self.filepath, exist_ok=True)

    def get_filename(self, fn: str, filepath: str = "") -> str:
        """Make a folder under the root and return the path of a file in it."""
        self.set_filepath(filepath)
        return os.path.join(self.filepath, fn)

    def save(self, obj: Any, fn: str, filepath: str = "") -> None:
        """Write an object to a file.

        Raises:
            UserError: if the name ends in ``.npy`` and the object is not an array.
        """
        path = Path(self.get_filename(fn, filepath))
        if path.suffix == ".npy":
            if not isinstance(obj, np.ndarray):
                raise UserError(
                    f"{path}: got {type(obj).__name__}; .npy holds a numpy array; give it another "
                    "ending, such as .pickle"
                )
            write: partial[None] = partial(np.save, arr=obj)
        else:
            write = partial(pickle.dump, obj, protocol=pickle.HIGHEST_PROTOCOL)
        with files.without_leftovers(path):
            files.publish(path, write)

    def load(self, fn: str, filepath: str = "") -> Any:
        """Return a saved object, or None if there is no such file.

        Unpickling runs code: load only files that you saved.
        """
        path = Path(self.get_filename(fn, filepath))
        if not path.is_file():
            return None
        if path.suffix == ".npy":
            return np.load(path)
        with path.open("rb") as stream:
            return pickle.load(stream)


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it does not hold JSON.

    Example:
        >>> datasethps = load_json("datasethps.json")  # doctest: +SKIP
    """
    file = Path(path).expanduser()
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON: {error}") from error


def load_from_file(place: str, path: str | os.PathLike[str], name: str) -> Any:
    """Run a Python file and return the object of that name in it.

    The module is not importable, so that its functions and classes travel to workers by value.

    Args:
        place: the setting that holds the path, for messages.

    Raises:
        SpecError: if there is no such file, it raises, or it has no such name.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py" or not file.is_file():
        raise SpecError(f"{place}: got {str(file)!r}; should be the path of a Python file")
    module = {"__name__": f"mlpsubmit_file_{file.stem}", "__file__": str(file)}
    try:
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), module)
    except Exception as error:
        raise SpecError(f"{place}: {file} raised {type(error).__name__}: {error}") from error
    if name not in module:
        raise SpecError(f"{place}: {file} has no {name!r}{did_you_mean(name, module)}")
    return module[name]
