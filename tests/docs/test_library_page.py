"""docs/library.md is generated from the docstrings, whose examples run."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mlpsubmit
import mlpsubmit.batchfns
import mlpsubmit.grabs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library():
    spec = importlib.util.spec_from_file_location("library_page", ROOT / "docs" / "library.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated_from_the_docstrings(library):
    assert library.PAGE.read_text() == library.page(), "run: .venv/bin/python docs/library.py"


def test_the_page_shows_every_function_once(library):
    shown = [(package, name) for (package, _), names in library.SECTIONS.items() for name in names]
    public = [(p, name) for p in library.TITLES for name in library.public(p)]
    assert sorted(shown, key=str) == sorted(public, key=str)
    assert sum(line.startswith("| `") for line in library.page().splitlines()) == len(public)


FUNCTIONS = [
    (package, name)
    for package in (mlpsubmit.batchfns, mlpsubmit.grabs)
    for name in package.__all__
    if name != "BatchFn"  # a type
]


@pytest.mark.parametrize(("package", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_the_examples_do_what_they_show(package, name):
    value = getattr(package, name)
    names = {"np": np, "torch": torch, "nn": nn, "Sweep": mlpsubmit.Sweep, "MLP": mlpsubmit.MLP}
    for library_package in (mlpsubmit.batchfns, mlpsubmit.grabs):
        names |= {n: getattr(library_package, n) for n in library_package.__all__}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.DocTestFinder(recurse=False).find(value, name, globs=names)
    (test,) = [test for test in found if test.name == name]
    assert test.examples
    assert not any(doctest.SKIP in example.options for example in test.examples)
    torch.manual_seed(0)
    failed = []
    doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=failed.append)
    assert not failed, "".join(failed)
