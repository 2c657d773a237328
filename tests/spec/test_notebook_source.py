"""Specs in notebooks: which cells are run, and the errors of those that cannot be."""

from __future__ import annotations

import json
import sys

import pytest

from mlpsubmit import SpecError, Sweep
from mlpsubmit.spec.load import load_spec, pickle_sweep, unpickle_sweep

IMPORTS = "import mlpsubmit\nfrom mlpsubmit import Sweep\n"
BATCHES = "def batches(bsz, gen): return lambda step: step\n"
SWEEP = "sweep = Sweep('a', {'WIDTH': [4, 8]}, batchfn=batches)\n"


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Write a notebook of these code cells, with text between them."""
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(*cells):
        path = tmp_path / "study.ipynb"
        content = []
        for source in cells:
            content.append({"cell_type": "markdown", "source": ["# Words\n", "sweep = None"]})
            content.append({"cell_type": "code", "source": source.splitlines(keepends=True)})
        path.write_text(json.dumps({"nbformat": 4, "cells": content}))
        return path

    yield write
    sys.modules.pop("mlpsubmit_spec_study", None)


def message(path):
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    return str(caught.value)


def test_a_notebook_yields_its_sweep(notebook):
    sweep = load_spec(notebook(IMPORTS, BATCHES, SWEEP))
    assert isinstance(sweep, Sweep)
    assert [config.width for config in sweep] == [4, 8]


def test_functions_of_cells_travel_by_value(notebook):
    path = notebook(IMPORTS, "def batches(bsz, gen, by=3): return lambda step: by * step\n", SWEEP)
    content = pickle_sweep(load_spec(path))
    path.unlink()
    del sys.modules["mlpsubmit_spec_study"]
    assert unpickle_sweep(content).batchfn(1, 2)(5) == 15


LAUNCHES = {
    "a function of the package": "run = mlpsubmit.launch(sweep)",
    "a name of its own": "from mlpsubmit import launch as go\nrun = go(sweep, executor='local')",
    "inside an expression": "dataset = mlpsubmit.launch(sweep).collect()",
    "inside a statement": "for lr in (0.1, 0.2):\n    run = mlpsubmit.launch(sweep)",
    "inside a function": "def study():\n    return mlpsubmit.launch(sweep)\nds = study()",
    "a run of before": "run = mlpsubmit.open_run('a')",
}


@pytest.mark.parametrize("what", LAUNCHES)
def test_nothing_is_run_from_the_first_launch_or_collect_on(notebook, what):
    path = notebook(IMPORTS + BATCHES + SWEEP + LAUNCHES[what] + "\n1 / 0\n", "1 / 0", "3 = = 4")
    assert len(load_spec(path)) == 2


GOES_ON = {
    "the garbage collector": "import gc\ngc.collect()",
    "a function of that name": "def launch(rocket): return rocket\nlaunch(3)",
    "a definition that would launch": "def go():\n    return mlpsubmit.launch(sweep)",
    "a lambda that would launch": "go = lambda: mlpsubmit.launch(sweep)",
    "a method that would": "class Study:\n    def run(self):\n        return launch(sweep)",
}


@pytest.mark.parametrize("what", GOES_ON)
def test_what_is_no_launch_ends_nothing(notebook, what):
    assert len(load_spec(notebook(IMPORTS + BATCHES + GOES_ON[what], SWEEP))) == 2


def test_a_launch_before_the_sweep(notebook):
    path = notebook(IMPORTS, BATCHES, "run = mlpsubmit.open_run('a')", SWEEP)
    assert message(path) == (
        f"{path}: holds no Sweep; write sweep = Sweep(...) at its top level, before it opens any "
        "run"
    )


MAGICS = {
    "a line magic": "%matplotlib inline",
    "a shell command": "!no-such-command --of=mine | tail",
    "an assigned command": "files = !ls",
    "an assigned magic": "here, there = %pwd",
    "a question": "Sweep?",
    "another": "?mlpsubmit.launch",
    "in a block": "if True:\n    %load_ext autoreload\n    !ls",
    "by its function": "get_ipython().run_line_magic('matplotlib', 'inline')",
    "several": "%load_ext autoreload\n%autoreload 2\n\n!ls\nz = 3",
    "a command of several lines": "!no-such-command \\\n  --of=mine \\\n  | tail\nz = 3",
    "an assigned command of several lines": "files = !ls \\\n  *.npz\nz = 3",
    "a magic of several lines": "if True:\n    %load_ext \\\n  autoreload\n    z = 3",
    "a command that never ends": "!ls \\",
    "capture with an argument": "%capture out",
    "a timer without a statement": "%timeit",
    "a cell of another language": "%%bash\nfor x in y; do\ndone",
    "a file": "%%writefile x.py\nx = = 3",
}


@pytest.mark.parametrize("what", MAGICS)
def test_magics_are_ignored(notebook, what):
    assert len(load_spec(notebook(MAGICS[what] + "\n", IMPORTS + BATCHES + SWEEP))) == 2


@pytest.mark.parametrize(
    "magic",
    [
        *("%time ", "%timeit ", "%timeit -n 1 ", "%timeit -n1 -r 2 -qo ", "%prun -s cumtime -q "),
        *("%%time\n", "%%timeit\n", "%%timeit -n 1 -r 1\n", "%%prun -l 10\n"),
        *("%%capture\n", "%%capture out\n", "%%capture --no-stderr out\n"),
    ],
)
def test_what_is_timed_is_run(notebook, magic):
    assert len(load_spec(notebook(IMPORTS + BATCHES, magic + SWEEP))) == 2


def test_a_timed_statement_may_begin_with_a_minus_or_go_on_in_further_lines(notebook):
    code = "x = 3\n%timeit -x\n%timeit -n 1 y = [x, \\\n  4]\n"
    sweep = "sweep = Sweep('a', {'WIDTH': y}, batchfn=batches)"
    assert [c.width for c in load_spec(notebook(IMPORTS + BATCHES, code, sweep))] == [3, 4]


def test_the_setup_of_a_timed_cell_is_run(notebook):
    sweep = "%%timeit -n 1 wide = 7\nsweep = Sweep('a', {'WIDTH': [wide]}, batchfn=batches)"
    assert [c.width for c in load_spec(notebook(IMPORTS + BATCHES, sweep))] == [7]


@pytest.mark.parametrize(("future", "annotation"), [("", int), ("annotations", "int")])
def test_future_statements_hold_for_the_cells_that_follow(notebook, future, annotation):
    first = f"from __future__ import {future}" if future else ""
    batches = "def batches(bsz: int, gen): return lambda step: step"
    sweep = load_spec(notebook(first, IMPORTS, batches, SWEEP))
    assert sweep.batchfn.__annotations__ == {"bsz": annotation}


def test_text_that_looks_like_a_magic_stays(notebook):
    code = 'TEXT = """\n%matplotlib inline\n!ls\n"""\nN = (7\n  % 4)\n'
    sweep = "sweep = Sweep('a', {'WIDTH': [len(TEXT), N]}, batchfn=batches)"
    assert [c.width for c in load_spec(notebook(IMPORTS + BATCHES, code, sweep))] == [24, 3]


def test_a_cell_that_does_not_parse(notebook):
    path = notebook(IMPORTS, "%matplotlib inline\nx = = 3")
    assert message(path) == f"{path}: cell 2, line 2: invalid syntax: x = = 3"


def test_a_cell_that_parses_and_does_not_compile(notebook):
    path = notebook(IMPORTS, "x = 3\nreturn x\n")
    assert message(path) == f"{path}, cell 2: line 2: 'return' outside function: return x"


def test_a_cell_that_raises(notebook):
    path = notebook(
        IMPORTS, "!ls\n\ndef fail():\n    raise ValueError('too bad')\n", "x = 1\nfail()"
    )
    assert message(path) == (
        f"{path}: cell 2, line 4: raise ValueError('too bad'): raised ValueError: too bad"
    )


def test_errors_of_a_sweep_carry_the_path(notebook):
    path = notebook(IMPORTS + BATCHES, "Sweep(batchfn=batches, WIDTH=0)")
    assert message(path).startswith(f"{path}: WIDTH: got 0; should be an integer >= 1")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": 3}', '{"worksheets": []}', "\xff"])
def test_a_file_that_is_no_notebook(tmp_path, content):
    path = tmp_path / "study.ipynb"
    path.write_bytes(content.encode("latin-1"))
    assert message(path) == (
        f"{path}: is not a notebook of format 4 or newer (JSON with a list of cells); save it "
        "again in Jupyter, or give a .py file"
    )
