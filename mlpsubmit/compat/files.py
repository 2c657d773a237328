"""Files in the folder of an experiment, with the interface of expt-core's FileManager."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit import files
from mlpsubmit.errors import UserError

__all__ = ["FileManager", "load_json"]


class FileManager:
    """Saves and loads what an experiment leaves, under one folder.

    A name that ends in ``.npy`` is an array in numpy's format, any other a pickle. A file that is
    saved appears whole or not at all, also in the place of an older one.

    Args:
        root: the folder; made if it is not there.

    Example:
        >>> FileManager("results").save({"loss": 0.1}, "result.pickle")  # doctest: +SKIP
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.set_filepath("")

    def set_filepath(self, filepath: str) -> None:
        """Make a folder under the root, and keep its path as ``filepath``."""
        self.filepath = os.path.join(self.root, filepath)
        os.makedirs(self.filepath, exist_ok=True)

    def get_filename(self, fn: str, filepath: str = "") -> str:
        """Return the path of a file in a folder under the root, which is made."""
        self.set_filepath(filepath)
        return os.path.join(self.filepath, fn)

    def save(self, obj: Any, fn: str, filepath: str = "") -> None:
        """Write an object to a file.

        Raises:
            UserError: where the name ends in ``.npy`` and the object is no array.
        """
        path = Path(self.get_filename(fn, filepath))
        if path.suffix == ".npy":
            if not isinstance(obj, np.ndarray):
                raise UserError(
                    f"{path}: got {type(obj).__name__}; .npy holds a numpy array; give it another "
                    "ending, such as .pickle"
                )
            array = obj
            files.publish(path, lambda stream: np.save(stream, array))
        else:
            files.publish(path, lambda stream: pickle.dump(obj, stream, pickle.HIGHEST_PROTOCOL))

    def load(self, fn: str, filepath: str = "") -> Any:
        """Return what was saved, or None where there is no such file.

        A pickle runs code: load only what you saved.
        """
        path = Path(self.get_filename(fn, filepath))
        if not path.is_file():
            return None
        if path.suffix == ".npy":
            return np.load(path)
        with path.open("rb") as stream:
            return pickle.load(stream)


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: where there is none.
        UserError: where it is no JSON.

    Example:
        >>> datasethps = load_json("datasethps.json")  # doctest: +SKIP
    """
    file = Path(path).expanduser()
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such JSON file") from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON: {error}") from error
