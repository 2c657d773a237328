"""The examples in the docstrings of the package run."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from torch import nn

import mlpsubmit.compat
from mlpsubmit.compat import grabs

NAMES = {name: getattr(mlpsubmit.compat, name) for name in mlpsubmit.compat.__all__}
OWN = {name: v for name, v in NAMES.items() if v.__module__.startswith("mlpsubmit.compat")}
OWN |= {"get_W_ii": grabs.get_W_ii, "get_W_gram": grabs.get_W_gram}


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_public_name_has_an_example_that_runs(name):
    scope = {**NAMES, **OWN, "torch": torch, "np": np, "nn": nn}
    (found,) = doctest.DocTestFinder(recurse=False).find(OWN[name], name, globs=scope)
    assert found.examples
    output = []
    doctest.DocTestRunner().run(found, out=output.append)
    assert not output, "".join(output)
