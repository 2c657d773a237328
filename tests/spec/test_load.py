"""Specs: from a file to a sweep or one clear message, and from a sweep to bytes for workers."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import cloudpickle
import lazy_loader
import numpy as np
import pytest

import mlpsubmit
from mlpsubmit import SpecError, Sweep
from mlpsubmit.errors import RunError
from mlpsubmit.spec.libraries import module_places
from mlpsubmit.spec.load import THIS_RELEASE, load_spec, pickle_sweep, unpickle_sweep

HEAD = """
from mlpsubmit import Sweep
def batches(bsz, gen): return lambda step: None
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file beside the spec, and forget afterwards what was imported from there."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = dict(sys.modules)

    def write(text, name="spec.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name, module in list(sys.modules.items()):
        new = before.get(name) is not module
        if new and any(tmp_path in place.parents for place in module_places(module)):
            del sys.modules[name]


def message(path, pick=None):
    with pytest.raises(SpecError) as caught:
        load_spec(path, pick)
    return str(caught.value)


# ---- files ---------------------------------------------------------------------------------------


def test_a_spec_yields_its_sweep(write):
    sweep = load_spec(write(HEAD + "sweep = Sweep('a', {'WIDTH': [4, 8]}, batchfn=batches)"))
    assert [config.point for config in sweep] == [{"width": 4}, {"width": 8}]


def test_a_spec_may_lie_in_the_home_folder(write, tmp_path, monkeypatch):
    write(HEAD + "sweep = Sweep(batchfn=batches)")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_spec(type(tmp_path)("~/spec.py"))) == 1


def test_a_missing_spec(tmp_path):
    path = tmp_path / "spec.py"
    assert message(path) == (
        f"{path}: no such file; give the path of a spec, or make one: mlpsubmit init"
    )
    assert "is a folder; give the path of a spec, a .py file" in message(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("spec.txt", ".txt"), ("spec", "nameless")])
def test_a_file_of_another_kind(write, name, kind):
    path = write("", name)
    assert message(path) == (
        f"{path}: got a {kind} file; a spec is a .py file or a notebook (.ipynb)"
    )


def test_a_spec_that_does_not_parse(write):
    path = write("x = 1\n    y = (2\n")
    assert message(path) == f"{path}: line 2: unexpected indent: y = (2"


def test_a_module_that_does_not_parse_is_the_one_that_is_named(write):
    helper = write("x = = 2\n", "broken_helper.py")
    spec = write("\n\n\nimport broken_helper\n")
    assert message(spec) == f"{helper}: line 1: invalid syntax: x = = 2"


def test_a_spec_that_raises(write):
    path = write("def fail():\n    raise ValueError('too bad')\n\nfail()\n")
    assert message(path) == (
        f"{path}: line 2: raise ValueError('too bad'): raised ValueError: too bad"
    )


def test_the_line_is_that_of_the_spec_where_a_library_raises(write):
    path = write("import json\n\nsettings = json.loads('{')\n")
    assert message(path).startswith(f"{path}: line 3: settings = json.loads('{{'): raised JSONDec")


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (
            "mlpsubmit.grabs.sharpness(rows=10)",
            "; a grab is given without parentheses, sharpness, and with arguments as "
            "functools.partial(sharpness, ...)",
        ),
        (
            "mlpsubmit.batchfns.sample()",
            "; a batch function is given without parentheses, batchfn=sample, and its arguments "
            "to the Sweep",
        ),
        ("batches()", "'bsz' and 'gen'"),
    ],
)
def test_a_function_of_the_library_that_is_called_by_mistake(write, call, hint):
    path = write(HEAD + f"import mlpsubmit\nSweep(batchfn=batches, grabs={{'s': {call}}})")
    assert message(path).endswith(hint)


def test_a_file_that_is_not_found_is_named_with_the_places_where_it_may_be(write, monkeypatch):
    path = write("import numpy as np\nx = np.load('x.npy')")
    monkeypatch.chdir("/")
    text = "No such file or directory: 'x.npy'; it was looked for in /, and is "
    assert message(path).endswith(f"{text}not beside spec.py in {path.parent} either")
    (path.parent / "x.npy").touch()
    assert message(path).endswith(f"{text}beside spec.py: write Path(__file__).parent / 'x.npy'")
    (path.parent / "x.npy").unlink()
    monkeypatch.chdir(path.parent)
    assert message(path).endswith(f"'x.npy'; it was looked for in {path.parent}")
    absolute = write("open('/no/such/file')")
    assert message(absolute).endswith("No such file or directory: '/no/such/file'")


def test_a_spec_that_imports_what_is_not_there(write):
    path = write("import no_such_module_of_mine\n")
    assert "raised ModuleNotFoundError: No module named 'no_such_module_of_mine'" in message(path)


def test_a_spec_that_exits(write):
    path = write("import sys\nsys.exit(3)\n")
    assert message(path) == f"{path}: line 2: sys.exit(3): raised SystemExit: 3"


def test_errors_of_a_sweep_carry_the_path(write):
    path = write(HEAD + "Sweep(batchfn=batches, WIDTH=0, WIDHT=3)")
    assert message(path) == (
        f"{path}: 2 errors:\n"
        "  - WIDHT: neither a hyperparameter nor an argument that a function of the spec declares "
        "(did you mean 'width'?)\n"
        "  - WIDTH: got 0; should be an integer >= 1 (units of each hidden layer)"
    )


def test_other_errors_of_the_user_keep_their_text(write):
    path = write("from mlpsubmit import UserError\nraise UserError('no such data set')\n")
    assert message(path) == f"{path}: no such data set"


def test_an_interruption_is_no_error(write):
    with pytest.raises(KeyboardInterrupt):
        load_spec(write("raise KeyboardInterrupt"))


def test_code_for_the_file_as_a_script_is_not_run(write):
    path = write(HEAD + "sweep = Sweep(batchfn=batches)\nif __name__ == '__main__': 1 / 0")
    assert len(load_spec(path)) == 1


@pytest.mark.parametrize(
    "launching",
    [
        "mlpsubmit.launch(sweep)",
        "def go(): mlpsubmit.launch(sweep)\ngo()",
        "try:\n    mlpsubmit.launch(sweep)\nexcept Exception:\n    sweep = None",
        "mlpsubmit.open_run('earlier')",
        "for lr in (0.1, 0.2): mlpsubmit.launch(sweep)",
    ],
)
def test_a_spec_ends_where_it_launches_by_itself(write, tmp_path, monkeypatch, launching):
    monkeypatch.chdir(tmp_path)
    code = "import mlpsubmit\nsweep = Sweep('a', batchfn=batches)\n"
    path = write(HEAD + code + launching + "\n1 / 0\n")
    assert load_spec(path).name == "a"
    assert not (tmp_path / "mlpruns").exists()


def test_a_sweep_that_no_variable_holds_is_the_one_it_was_about_to_launch(write):
    code = "import mlpsubmit\nmlpsubmit.launch(Sweep('a', batchfn=batches))\n"
    assert load_spec(write(HEAD + code)).name == "a"


def test_a_spec_inherits_no_future_statements_of_ours(write):
    path = write(
        "from mlpsubmit import Sweep\ndef batches(bsz: int): ...\nsweep = Sweep(batchfn=batches)"
    )
    assert load_spec(path).batchfn.__annotations__ == {"bsz": int}


# ---- one sweep of several ------------------------------------------------------------------------


def test_a_spec_without_a_sweep(write):
    path = write(HEAD)
    text = (
        f"{path}: holds no Sweep; write sweep = Sweep(...) at its top level, before it opens any "
        "run"
    )
    assert message(path) == message(path, "sweep") == text


def test_a_sweep_of_the_file_as_a_script_is_not_found(write):
    path = write(HEAD + "if __name__ == '__main__': sweep = Sweep(batchfn=batches)")
    assert message(path).endswith(
        "at its top level, before it opens any run, and not under if __name__ == '__main__', which "
        "is not run"
    )


TWO = HEAD + "small = Sweep('a', WIDTH=4, batchfn=batches)\nlarge = Sweep('b', batchfn=batches)\n"


def test_several_sweeps_need_a_pick(write):
    path = write(TWO)
    assert message(path) == f"{path}: holds several sweeps (large, small); pick one: --sweep NAME"


@pytest.mark.parametrize(("pick", "name"), [("small", "a"), ("large", "b"), ("a", "a"), ("b", "b")])
def test_a_sweep_is_picked_by_its_variable_or_its_name(write, pick, name):
    assert load_spec(write(TWO), pick).name == name


def test_a_variable_wins_over_the_name_of_another_sweep(write):
    path = write(TWO.replace("'a'", "'large'"))
    assert load_spec(path, "large").name == "b"


def test_a_pick_that_is_not_there(write):
    path = write(TWO)
    assert message(path, "smal") == (
        f"{path}: --sweep smal: no such sweep (did you mean 'small'?); it holds a, b, large, small"
    )


def test_one_sweep_under_two_names_is_one(write):
    path = write(HEAD + "sweep = same = Sweep('a', batchfn=batches)")
    assert load_spec(path).name == load_spec(path, "same").name == "a"


# ---- pickled sweeps ------------------------------------------------------------------------------

CALLS = """
import sys
from pathlib import Path
from mlpsubmit.spec.load import unpickle_sweep
sweep = unpickle_sweep(Path(sys.argv[1]).read_bytes())
print(sweep.config(0).key, sweep.batchfn(1, 2)(3), *(g(1) for g in sweep.grabs.values()))
"""


def called_elsewhere(content, folder):
    """Unpickle a sweep in another process and folder, and return what its functions return."""
    folder.mkdir()
    (folder / "sweep.pkl").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALLS, "sweep.pkl"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(mlpsubmit.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


BY_VALUE = """
import functools
import helpers
import package
import namespace.inside
import numpy as np
from helpers import Scale, twice
from mlpsubmit import Sweep

OFFSET = 1000
TABLE = np.arange(3)

@functools.lru_cache(maxsize=None)
def cached(x): return x + OFFSET

def batches(bsz, gen):
    return lambda step: twice(step) + OFFSET + int(TABLE.sum())

grabs = {
    "module": lambda model: helpers.thrice(model),
    "class": Scale(5),
    "cached": lambda model: cached(model),
    "package": lambda model: package.deep.square(model + 6),
    "namespace": lambda model: namespace.inside.negated(model),
}
sweep = Sweep(batchfn=batches, grabs=grabs)
"""

HELPERS = """
from second import FACTOR
def twice(x): return FACTOR * x
def thrice(x): return twice(x) + x
class Scale:
    def __init__(self, by): self.by = by
    def __call__(self, model): return self.by * model
"""


def test_functions_and_modules_beside_the_spec_travel_by_value(write, tmp_path):
    write(HELPERS, "helpers.py")
    write("FACTOR = 2\n", "second.py")
    write("from package import deep\n", "package/__init__.py")
    write("def square(x): return x**2\n", "package/deep.py")
    write("def negated(x): return -x\n", "namespace/inside.py")
    spec = write(BY_VALUE)
    sweep = load_spec(spec)
    content = pickle_sweep(sweep)
    key = sweep.config(0).key

    write("FACTOR = 7\n", "second.py")
    (tmp_path / "helpers.py").unlink()
    shutil.rmtree(tmp_path / "package")
    shutil.rmtree(tmp_path / "namespace")
    spec.unlink()
    assert called_elsewhere(content, tmp_path / "worker") == [
        key,
        str(2 * 3 + 1000 + 3),
        "3",
        "5",
        "1001",
        "49",
        "-1",
    ]


def test_code_keeps_its_file_and_line(write):
    """Of which cloudpickle since 3.1.3 drops the file: errors are shown with both."""
    spec = write(
        HEAD
        + """
def outer(bsz):
    def inner(step):
        raise ValueError
    return inner
sweep = Sweep(batchfn=outer)
"""
    )
    content = pickle_sweep(load_spec(spec))
    outer = unpickle_sweep(content).batchfn
    inner = outer(3)
    assert {outer.__code__.co_filename, inner.__code__.co_filename} == {str(spec)}
    (line,) = spec.read_text().splitlines()[inner.__code__.co_firstlineno - 1 :][:1]
    assert line.strip() == "def inner(step):"


def test_pickling_leaves_other_pickles_as_they_are(write):
    write("def twice(x): return 2 * x\n", "lasting.py")
    spec = write(HEAD + "import lasting\nsweep = Sweep(batchfn=batches)\n")
    sweep = load_spec(spec)
    pickle_sweep(sweep)
    twice = sys.modules["lasting"].twice
    assert pickle.loads(cloudpickle.dumps(twice)) is twice
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_libraries_travel_by_name(write):
    spec = write("import numpy as np\n" + HEAD + "sweep = Sweep(batchfn=lambda bsz: np.zeros)\n")
    assert len(pickle_sweep(load_spec(spec))) < 5000


def test_a_pickled_sweep_is_the_same_sweep():
    def batches(bsz, gen, noise=0):
        return lambda step: step + noise

    sweep = Sweep(
        "a",
        {("WIDTH", "LR"): [(4, 0.1), (8, 0.2)], "noise": [1, {"b": np.ones(2)}]},
        batchfn=batches,
        where=lambda c: c.width == 4 or c.noise == 1,
        SEED=3,
    )
    again = unpickle_sweep(pickle_sweep(sweep))
    assert again.fingerprint == sweep.fingerprint
    assert [config.key for config in again] == [config.key for config in sweep]
    assert [config.index for config in again] == [config.index for config in sweep]
    assert again.base == sweep.base
    assert again.batchfn(1, 2, 3)(4) == 7
    assert repr(again) == repr(sweep)
    assert len(again.overridden({"noise": 2})) == 1


UNPICKLABLE = {
    "a generator": (lambda: (n for n in range(3)), "generator"),
    "a lock": (threading.Lock, "_thread.lock"),
    "an open file": (lambda: open(os.devnull), "TextIOWrapper"),  # noqa: SIM115
}


@pytest.mark.parametrize("what", UNPICKLABLE)
def test_what_cannot_be_sent_is_refused(what):
    build, kind = UNPICKLABLE[what]
    held = build()

    def batches(bsz, gen):
        return lambda step: held

    with pytest.raises(SpecError) as caught:
        pickle_sweep(Sweep(batchfn=batches))
    text = str(caught.value)
    assert text.startswith("batchfn: cannot be hashed by its content (cannot pickle")
    assert kind in text
    assert text.endswith(
        "functions, but no open files, locks or generators: make those inside a function"
    )
    if hasattr(held, "close"):
        held.close()


def test_where_that_cannot_be_sent_is_refused():
    lock = threading.Lock()
    sweep = Sweep(batchfn=lambda bsz: None, where=lambda config: lock is not None)
    with pytest.raises(SpecError) as caught:
        pickle_sweep(sweep)
    assert str(caught.value) == (
        "the sweep cannot be sent to workers: cannot pickle '_thread.lock' object; functions may "
        "hold arrays, numbers and functions, but no open files, locks or generators: make those "
        "inside the function"
    )


class Refuses:
    def __reduce__(self):
        raise ValueError("not this one")


LOCK = threading.Lock()


def locked():
    return LOCK.acquire()


def test_what_cannot_be_hashed_has_the_name_by_which_a_function_uses_it():
    here, held = threading.Lock(), [locked]
    named = {
        "here, which <lambda> uses": lambda bsz: here,
        "LOCK, which <lambda> uses": lambda bsz: LOCK,
        "LOCK.acquire, which locked uses": lambda bsz: held[0](),
    }
    for text, function in named.items():
        function.__qualname__ = "<lambda>"
        with pytest.raises(SpecError) as caught:
            pickle_sweep(Sweep(batchfn=function))
        assert f"cannot pickle '_thread.lock' object: {text}); settings" in str(caught.value)


def test_an_object_that_refuses_to_be_pickled_is_refused_too():
    """Whatever it raises, as parametrized modules of torch raise a RuntimeError."""
    held = Refuses()
    text = r"batchfn: cannot be hashed .* \(not this one: held, which .*<lambda> uses\)"
    with pytest.raises(SpecError, match=text):
        pickle_sweep(Sweep(batchfn=lambda bsz: held))
    with pytest.raises(SpecError, match="cannot be sent to workers: not this one"):
        pickle_sweep(Sweep(batchfn=lambda bsz: None, where=lambda config: held is not None))
    with pytest.raises(SpecError, match=r"a value cannot be hashed .* \(not this one\)"):
        Sweep(axes={"held": [held, 1]}, batchfn=lambda bsz, held: None)


def test_only_sweeps_are_unpickled():
    with pytest.raises(SpecError, match=r"sweep\.pkl holds a dict, not a Sweep"):
        unpickle_sweep(pickle.dumps((None, pickle.dumps({}), THIS_RELEASE)))


def test_a_sweep_of_another_python_is_not_loaded() -> None:
    """Its functions are bytecode, which another release misreads."""
    with pytest.raises(RunError) as caught:
        unpickle_sweep(pickle.dumps((None, b"not looked at", "3.1")))
    assert str(caught.value) == (
        f"the sweep was launched with Python 3.1, and this is Python {THIS_RELEASE} "
        f"({sys.executable}), which cannot load its functions: use Python 3.1 here (on a cluster: "
        f"--python or --container), or launch with {THIS_RELEASE}"
    )


@pytest.mark.parametrize("place", ["closure", "global", "default", "partial", "attribute"])
@pytest.mark.parametrize("kind", ["package", "guarded", "lazy"])
def test_modules_travel_by_name_wherever_a_function_holds_them(kind, place, monkeypatch):
    """Also of a subclass of the module type, as lazy_loader makes them."""
    from mlpsubmit import batchfns as bf

    if kind == "guarded":
        monkeypatch.setattr(bf, "__class__", type("Guarded", (types.ModuleType,), {}))
    elif kind == "lazy":
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        bf = lazy_loader.load("colorsys")

    def batches(bsz, gen, module=None):
        return lambda step: (module, bf.__name__)

    if place != "closure":
        cells = {"bf": bf, "__name__": "cells"}
        exec("def batches(bsz, gen, module=None): return lambda step: (module, bf)", cells)
        batches = cells["batches"]
    if place == "default":
        batches.__defaults__ = (bf,)
    elif place == "partial":
        batches = functools.partial(batches, module=bf)
    elif place == "attribute":
        batches.module = bf
    again = unpickle_sweep(pickle_sweep(Sweep(batchfn=batches))).batchfn
    module, found = again(bsz=1, gen=None)(0)
    assert found in (bf.__name__, sys.modules[bf.__name__])
    assert module is (sys.modules[bf.__name__] if place in ("default", "partial") else None)
