"""Files of an experiment."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mlpsubmit.compat import FileManager
from mlpsubmit.errors import UserError


def test_what_is_saved_is_loaded(tmp_path):
    manager = FileManager(tmp_path / "a" / "b")
    manager.save({"x": np.arange(3)}, "result.pickle")
    manager.save(np.eye(2), "eye.npy", "deeper/still")
    assert manager.load("result.pickle")["x"].tolist() == [0, 1, 2]
    assert np.array_equal(manager.load("eye.npy", "deeper/still"), np.eye(2))
    assert manager.get_filename("x", "y") == str(tmp_path / "a" / "b" / "y" / "x")
    assert manager.filepath == str(tmp_path / "a" / "b" / "y")
    assert manager.load("absent.pickle") is None
    # expt-core's own reads the same files.
    with open(tmp_path / "a" / "b" / "result.pickle", "rb") as file:
        assert pickle.load(file)["x"].tolist() == [0, 1, 2]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    manager = FileManager(tmp_path)
    manager.save(1, "kept.pickle")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        manager.save(lambda: 0, "kept.pickle")
    assert manager.load("kept.pickle") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pickle"]


def test_npy_is_for_arrays(tmp_path):
    with pytest.raises(UserError, match=r"x\.npy: got list; \.npy holds a numpy array; give it"):
        FileManager(tmp_path).save([1], "x.npy")
