"""Whatever hides an edit that changes what a function does, its digest changes; no other edit."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.spec.fingerprint import digest, setting_digest

few = settings(deadline=None, max_examples=20, derandomize=True)  # cores may be shared
many = settings(deadline=None, max_examples=300, derandomize=True)

#: What the innermost function does, with a place for the edited value.
CORES = {
    "a constant": "def g(x): return x + {0}",
    "an operator": "def g(x): return (x + 1, x - 1)[{0} - 1]",
    "a nested function": "def g(x):\n    def inner(): return {0} * x\n    return inner()",
    "a comprehension": "def g(x): return [v * {0} for v in (x, 1)]",
    "a lambda": "g = lambda x: x * {0}",
    "a default": "def g(x, y={0}): return x + y",
    "a keyword default": "def g(x, *, y={0}): return x + y",
    "a global": "C = {0}\ndef g(x): return x + C",
    "a global of a nested class": (
        "C = {0}\ndef g(x):\n    class K:\n        c = C\n    return x + K.c"
    ),
    "an array": "A = np.array([{0}.0, 1])\ndef g(x): return A * x",
    "an array of another type": "A = np.array([1], dtype=f'f{{4 * {0}}}')\ndef g(x): return A * x",
    "a masked array": "A = np.ma.array([1, 2], mask=[0, {0} - 1])\ndef g(x): return A.sum()",
    "a set": "S = {{'a', 'b', {0}}}\ndef g(x): return x in S",
    "a dictionary": "D = {{'a': {0}}}\ndef g(x): return D['a']",
    "the order of a dictionary": (
        "D = {{'a': 1, 'b': 2}} if {0} == 1 else {{'b': 2, 'a': 1}}\n"
        "def g(x): return [x * v for v in D.values()]"
    ),
    "a sentinel": (
        "ONE, TWO = object(), object()\nMODE = (ONE, TWO)[{0} - 1]\n"
        "def g(x): return x if MODE is ONE else -x"
    ),
    "an attribute": "def g(x): return x + g.c\ng.c = {0}",
    "a method": "class K:\n    def h(self, x): return x + {0}\ng = K().h",
    "the state of an object": (
        "class K:\n    def __init__(self, c): self.c = c\n"
        "    def __call__(self, x): return x + self.c\ng = K({0})"
    ),
    "slots": (
        "class K:\n    __slots__ = ('c',)\n    def __call__(self, x): return x + self.c\n"
        "g = K()\ng.c = {0}"
    ),
    "__reduce__": (
        "class K:\n    def __init__(self, c): self.c = c\n"
        "    def __call__(self, x): return x + self.c\n"
        "    def __reduce__(self): return K, (self.c,)\ng = K({0})"
    ),
    "a base class": (
        "class B:\n    def h(self, x): return x + {0}\nclass K(B): pass\ndef g(x): return K().h(x)"
    ),
    "the base class": (
        "class A:\n    def h(self, x): return x\nclass B:\n    def h(self, x): return -x\n"
        "class K((A, B)[{0} - 1]): pass\ndef g(x): return K().h(x)"
    ),
    "a metaclass": (
        "class M(type):\n    def __call__(cls, x): return x + {0}\n"
        "class K(metaclass=M): pass\ndef g(x): return K(x)"
    ),
    "a property": (
        "class K:\n    @property\n    def c(self): return {0}\ndef g(x): return x + K().c"
    ),
    "a subclass of property": (
        "class P(property):\n    def __get__(self, one, kind=None): return {0}\n"
        "class K:\n    c = P(lambda self: 1)\ndef g(x): return x + K().c"
    ),
    "a subclass of partial": (
        "class P(functools.partial):\n    def __call__(self, x): return x + {0}\ng = P(lambda x: x)"
    ),
    "a subclass of a set": (
        "class S(set):\n    def __contains__(self, x): return {0}\n"
        "A = S([1])\ndef g(x): return x in A"
    ),
    "a class method": ("class K:\n    @classmethod\n    def h(cls, x): return x + {0}\ng = K.h"),
    "a descriptor": (
        "class P:\n    def __get__(self, one, kind=None): return {0}\n"
        "class K: c = P()\ndef g(x): return x + K().c"
    ),
    "a dataclass": (
        "@dataclasses.dataclass\nclass K:\n    c: int = {0}\ndef g(x): return x + K().c"
    ),
    "a dataclass with a factory": (
        "@dataclasses.dataclass(slots=True)\nclass K:\n"
        "    c: list = dataclasses.field(default_factory=lambda: [{0}])\n"
        "def g(x): return x + K().c[0]"
    ),
    "an enum": "class K(enum.Enum):\n    A = {0}\ndef g(x): return x + K.A.value",
    "an alias of an enum": (
        "class K(enum.Enum):\n    A, B = 1, 2\nMODE = K({0})\ndef g(x): return x is MODE"
    ),
    "a named tuple": (
        "K = collections.namedtuple('K', 'a b', defaults=({0},))\ndef g(x): return K(x).b"
    ),
    "a typed named tuple": (
        "class K(typing.NamedTuple):\n    a: int = {0}\ndef g(x): return x + K().a"
    ),
    "annotations of a class": (
        "class K:\n    a: ('int', 'float')[{0} - 1]\n"
        "def g(x): return typing.get_type_hints(K)['a'](x)"
    ),
    "a generated function": "exec('def g(x): return x + {0}')",
    "a generated class": (
        "K = type('K', (), {{'h': staticmethod(lambda x: x + {0})}})\ndef g(x): return K.h(x)"
    ),
    "functools.cache": "@functools.cache\ndef g(x): return x + {0}",
    "functools.singledispatch": (
        "@functools.singledispatch\ndef g(x): return x\n@g.register\ndef _(x: int): return x + {0}"
    ),
    "functools.singledispatchmethod": (
        "class K:\n    @functools.singledispatchmethod\n    def h(self, x): return x + {0}\n"
        "def g(x): return K().h(x)"
    ),
    "functools.partial": "g = functools.partial(lambda x, y: x + y, y={0})",
    "functools.partialmethod": (
        "class K:\n    def h(self, x, y): return x + y\n"
        "    i = functools.partialmethod(h, y={0})\ndef g(x): return K().i(x)"
    ),
    "functools.cached_property": (
        "class K:\n    @functools.cached_property\n    def c(self): return {0}\n"
        "def g(x): return x + K().c"
    ),
    "a wrapped library function": ("C = {0}\n@functools.wraps(capwords)\ndef g(x): return x + C"),
    "a library under another name": (
        "if {0} == 1: import math as m\nelse: import cmath as m\ndef g(x): return m.sqrt(x)"
    ),
    "a library function under another name": ("from math import {1} as m\ndef g(x): return m(x)"),
    "an environment variable": (
        "os.environ['MLPSUBMIT_TEST'] = '{0}'\n"
        "def g(x): return x + int(os.environ['MLPSUBMIT_TEST'])"
    ),
    "the name of a function": (
        "def sin(x): return x\ndef cos(x): return x\n"
        "def g(x, h=(sin, cos)[{0} - 1]): return len(h.__name__)"
    ),
    "the names of local variables": ("def g(x):\n    {1} = x\n    return locals()"),
    "the names of keyword arguments": (
        "def h(a, b): return a - b\ndef g(x): return h(a=x, b=x.y)\n"
        "if {0} == 2:\n    def g(x): return h(b=x, a=x.y)"
    ),
    "keyword-only": "def g(x, y=1): return x\nif {0} == 2:\n    def g(x, *, y=1): return x",
    "positional-only": "def g(x, y=1): return x\nif {0} == 2:\n    def g(x, /, y=1): return x",
    "what is guarded": (
        "def g(x):\n    try:\n        y = x()\n    except ValueError: y = {0}\n    return y"
    ),
}

#: A function f that hides a function g.
LAYERS = {
    "a call": "def f(x): return g(x)",
    "a method call": "def f(x): return [x].append(g(x))",
    "functools.wraps": (
        "def around(h):\n    @functools.wraps(h)\n    def inner(*args): return h(*args)\n"
        "    return inner\nf = around(g)"
    ),
    "functools.wraps of the library": "@functools.wraps(capwords)\ndef f(x): return g(x)",
    "a wrapper without wraps": "def around(h): return lambda *args: h(*args)\nf = around(g)",
    "a class as decorator": (
        "class Around:\n    def __init__(self, h): functools.update_wrapper(self, h)\n"
        "    def __call__(self, x): return self.__wrapped__(x)\nf = Around(g)"
    ),
    "partial": "f = functools.partial(g)",
    "partial of a method": "f = functools.partial([].append, g)",
    "an argument of a partial": "f = functools.partial(lambda x, h: h(x), h=g)",
    "a default": "def f(x, h=g): return h(x)",
    "a keyword default": "def f(x, *, h=g): return h(x)",
    "an attribute": "def f(x): return f.h(x)\nf.h = g",
    "a bound method": "class K:\n    def h(self, x): return g(x)\nf = K().h",
    "an object's state": (
        "class K:\n    def __init__(self): self.h = g\n"
        "    def __call__(self, x): return self.h(x)\nf = K()"
    ),
    "a class attribute": "class K:\n    h = staticmethod(g)\ndef f(x): return K.h(x)",
    "a property": "class K:\n    h = property(lambda self: g)\ndef f(x): return K().h(x)",
    "__getattr__": (
        "class K:\n    def __getattr__(self, name): return g\ndef f(x): return K().any(x)"
    ),
    "super": (
        "class B:\n    def h(self, x): return g(x)\n"
        "class K(B):\n    def h(self, x): return super().h(x)\ndef f(x): return K().h(x)"
    ),
    "__init_subclass__": (
        "class B:\n    def __init_subclass__(cls): cls.h = staticmethod(g)\n"
        "class K(B): pass\ndef f(x): return K.h(x)"
    ),
    "a class in a function": (
        "def f(x):\n    class K:\n        h = staticmethod(g)\n    return K.h(x)"
    ),
    "a list": "HS = [g]\ndef f(x): return HS[0](x)",
    "a registry": (
        "HS = {}\ndef register(h): HS['h'] = h; return h\nregister(g)\ndef f(x): return HS['h'](x)"
    ),
    "a set": "HS = {g}\ndef f(x): return [h(x) for h in HS]",
    "an array of objects": "HS = np.array([g, None])\ndef f(x): return HS[0](x)",
    "a named tuple": ("K = collections.namedtuple('K', 'h')\nHS = K(g)\ndef f(x): return HS.h(x)"),
    "a dataclass": (
        "@dataclasses.dataclass\nclass K:\n    h: object = g\ndef f(x): return K().h(x)"
    ),
    "a comprehension": "f = lambda x: [g(v) for v in [x]]",
    "a generator": "def f(x): yield from (g(v) for v in [x])",
    "functools.cache": "f = functools.cache(g)",
    "functools.singledispatch": "f = functools.singledispatch(g)",
    "a generated function": "exec('def f(x): return g(x)', globals())",
    "mutual recursion": ("def f(x): return h(x) if x else g(x)\ndef h(x): return f(x - 1)"),
    "getattr of the own module": (
        "import sys\nHERE = sys.modules[__name__]\ndef f(x): return getattr(HERE, 'g')(x)"
    ),
}

#: How g is got from the module below; the last four are imported when f is called.
IMPORTS = {
    "from": "from {module} import f as g",
    "star": "from {module} import *\ng = f",
    "module": "import {module}\ndef g(x): return {module}.f(x)",
    "alias": "import {module} as m\ndef g(x): return m.f(x)",
    "constant attribute": "import {module} as m\ng = getattr(m, 'f')",
    "getattr": "import {module} as m\nNAME = 'f'\ndef g(x): return getattr(m, NAME)(x)",
    "module in a closure": (
        "import {module} as m\ndef outer(m): return lambda x: m.f(x)\ng = outer(m)"
    ),
    "late from": "def g(x):\n    from {module} import f\n    return f(x)",
    "late module": "def g(x):\n    import {module} as m\n    return m.f(x)",
    "late in a class": (
        "class L:\n    def h(self, x):\n        import {module}\n        return {module}.f(x)\n"
        "def g(x): return L().h(x)"
    ),
}

HEAD = """
import collections, dataclasses, enum, functools, os, textwrap, typing
import numpy as np
from string import capwords
"""

#: Edits that change nothing, of any module.
NEUTRAL = {
    "nothing": lambda text: text,
    "comments": lambda text: text.replace("\n", "  # a comment\n"),
    "blank lines": lambda text: "\n\n\n" + text.replace("\ndef ", "\n\n\n\ndef "),
    "a docstring": lambda text: '"""What this is."""\n' + text,
    "docstrings": lambda text: text.replace("(x):\n", "(x):\n    '''About it.'''\n"),
}


def built(folder: Path, core: str, layers, value: int, neutral: str = "nothing"):
    """Write a module per layer and return the function of the last one, freshly imported."""
    folder.mkdir(parents=True)
    name = ("floor", "ceil")[value - 1]
    texts = [HEAD + CORES[core].format(value, name) + "\nf = g\n"]
    for number, (style, layer) in enumerate(layers):
        got = IMPORTS[style].format(module=f"layer{number}")
        texts.append(f"{HEAD}{got}\n{LAYERS[layer]}\n")
    for number, text in enumerate(texts):
        (folder / f"layer{number}.py").write_text(NEUTRAL[neutral](text))
    return imported(folder, f"layer{len(layers)}").f


def imported(folder: Path, name: str):
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("layer")]:
        del sys.modules[loaded]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def digest_of(folder: Path, *arguments) -> bytes:
    unseen: list[str] = []
    function = built(folder, *arguments)
    sys.path.insert(0, str(folder))
    try:
        content = setting_digest(function, unseen=unseen)
    finally:
        sys.path.remove(str(folder))
        os.environ.pop("MLPSUBMIT_TEST", None)
    return b"" if unseen else content


@pytest.fixture
def folders(tmp_path):
    """New folders, without end."""
    yield map(tmp_path.joinpath, map(str, itertools.count()))
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("layer")]:
        del sys.modules[loaded]


@pytest.mark.parametrize("core", CORES)
def test_an_edit_that_changes_what_a_function_does_counts(core, folders):
    one, same, other = (digest_of(next(folders), core, [], value) for value in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("layer", LAYERS)
def test_whatever_hides_a_function_its_edits_count(layer, folders):
    layers = [("from", layer)]
    one, same, other = (
        digest_of(next(folders), "a constant", layers, value) for value in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize("style", IMPORTS)
def test_however_a_function_is_imported_its_edits_count(style, folders):
    layers = [("from", "a call"), (style, "a call")]
    one, same, other = (
        digest_of(next(folders), "a constant", layers, value) for value in (1, 1, 2)
    )
    assert one == same != other


stacked = st.lists(st.tuples(st.sampled_from([*IMPORTS]), st.sampled_from([*LAYERS])), max_size=4)


@few
@given(st.sampled_from([*CORES]), stacked, st.sampled_from([*NEUTRAL]))
def test_edits_count_through_any_layers_and_neutral_ones_do_not(
    tmp_path_factory, core, layers, neutral
):
    check_edits(tmp_path_factory.mktemp("layers"), core, layers, neutral)


@pytest.mark.slow
@many
@given(st.sampled_from([*CORES]), stacked, st.sampled_from([*NEUTRAL]))
def test_edits_count_through_many_more_layers(tmp_path_factory, core, layers, neutral):
    check_edits(tmp_path_factory.mktemp("layers"), core, layers, neutral)


def check_edits(folder: Path, core: str, layers, neutral: str) -> None:
    one, same, other = (
        digest_of(folder / str(number), core, layers, *edit)
        for number, edit in enumerate(((1,), (1, neutral), (2, neutral)))
    )
    if one:  # else it counts as another one in every launch
        assert one == same != other


#: Modules of which one has the edited value; layer1 has the function.
MODULES = {
    "a relative import in a call": {
        "layer1": "from layerp.a import f",
        "layerp/__init__": "",
        "layerp/a": "def f(x):\n    from .b import g\n    return g(x)",
        "layerp/b": "def g(x): return {0}",
    },
    "a module of the parent": {
        "layer1": "from layerp.s.a import f",
        "layerp/__init__": "",
        "layerp/s/__init__": "",
        "layerp/s/a": "def f(x):\n    from .. import b\n    return b.g(x)",
        "layerp/b": "def g(x): return {0}",
    },
    "a namespace package": {
        "layer1": "def f(x):\n    from layerp.s import b\n    return b.g(x)",
        "layerp/s/b": "def g(x): return {0}",
    },
    "a name that a package exports": {
        "layer1": "from layerp import g\ndef f(x): return g(x)",
        "layerp/__init__": "from .b import *",
        "layerp/b": "def g(x): return {0}",
    },
    "a name that a package exports, imported in a call": {
        "layer1": "def f(x):\n    from layerp import g\n    return g(x)",
        "layerp/__init__": "from .b import *",
        "layerp/b": "def g(x): return {0}",
    },
    "__all__ of a package": {
        "layer1": "def f(x):\n    import layerp.c\n    return layerp.c.g(x)",
        "layerp/__init__": "__all__ = ['b']",
        "layerp/c": "from layerp import *\ndef g(x): return b.g(x)",
        "layerp/b": "def g(x): return {0}",
    },
    "a value of a package": {
        "layer1": "def f(x):\n    import layerp.b\n    return layerp.b.g(x)",
        "layerp/__init__": "SCALE = {0}",
        "layerp/b": "import layerp\ndef g(x): return layerp.SCALE",
    },
    "__getattr__ of a package": {
        "layer1": "import layerp\ndef f(x): return layerp.g(x)",
        "layerp/__init__": "def __getattr__(name):\n    from . import b\n    return b.g",
        "layerp/b": "def g(x): return {0}",
    },
    "a submodule": {
        "layer1": "import layerp.s.b\ndef f(x): return layerp.s.b.g(x)",
        "layerp/__init__": "",
        "layerp/s/__init__": "",
        "layerp/s/b": "def g(x): return {0}",
    },
    "an environment variable that a module reads": {
        "layer1": (
            "import os\nos.environ['MLPSUBMIT_TEST'] = '{0}'\n"
            "def f(x):\n    from layer2 import g\n    return g(x)"
        ),
        "layer2": "from os import environ\ndef g(x): return environ['MLPSUBMIT_TEST']",
    },
    "an import in a module that a call imports": {
        "layer1": "def f(x):\n    import layer2\n    return layer2.g(x)",
        "layer2": "def g(x):\n    import layer3\n    return layer3.h(x)",
        "layer3": "def h(x): return {0}",
    },
    "a value that is set in a module": {
        "layer1": "import layer2\nlayer2.SCALE = {0}\ndef f(x): return layer2.g(x)",
        "layer2": "SCALE = 0\ndef g(x): return SCALE",
    },
    "a value that is set in a module, imported again in a call": {
        "layer1": (
            "import layer2\nlayer2.SCALE = {0}\n"
            "def f(x):\n    from layer2 import g\n    return g(x)"
        ),
        "layer2": "SCALE = 0\ndef g(x): return SCALE",
    },
}


@pytest.mark.parametrize("modules", MODULES)
def test_edits_of_modules_count_wherever_they_are_imported(modules, folders):
    one, same, other = (
        digest_of_modules(next(folders), MODULES[modules], *edit)
        for edit in ((1, "nothing"), (1, "comments"), (2, "comments"))
    )
    assert one == same != other


def digest_of_modules(folder: Path, modules, value: int, neutral: str) -> bytes:
    for name, text in modules.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(NEUTRAL[neutral](text.format(value) + "\n"))
    function = imported(folder, "layer1").f
    sys.path.insert(0, str(folder))
    try:
        return digest(function)
    finally:
        sys.path.remove(str(folder))
        os.environ.pop("MLPSUBMIT_TEST", None)


UNSEEN = {
    "eval": "def f(x): return eval('x + 1')",
    "exec": "run = exec\ndef f(x): run('x + 1')",
    "globals": "def f(x): return globals()['g'](x)",
    "__import__": "def f(x): return __import__('layer0').f(x)",
    "importlib.import_module": "import importlib\ndef f(x): importlib.import_module('layer0')",
    "import_module": "from importlib import import_module\nf = lambda x: import_module('layer0')",
    "sys.modules": "import sys\ndef f(x): return sys.modules['layer0'].f(x)",
    "subprocess": "import subprocess\ndef f(x): return subprocess.run(['./simulate'])",
    "os.system": "def f(x): return os.system('./simulate')",
    "modules": "from sys import modules\ndef f(x): return modules['layer0'].f(x)",
    "os.environ as a default": "def f(x, environment=os.environ): return environment[x]",
    "a module that a call imports": "def f(x): from layer2 import h; return h(x)",
    "another module that a call imports": "def f(x): from layer3 import h; return h(x)",
    "__doc__": "def f(x): return len(f.__doc__)",
    "__subclasses__": "class B: pass\ndef f(x): return B.__subclasses__()[0](x)",
    "os.environ": "def f(x): return os.environ",
    "a lock in a module": (
        "import layer0, threading\nlayer0.LOCK = threading.Lock()\nf = lambda x: getattr(layer0, x)"
    ),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_seen_is_named(what, folders, monkeypatch):
    folder = next(folders)
    built(folder, "a constant", [], 1)
    (folder / "layer1.py").write_text(f"{HEAD}from layer0 import f as g\n{UNSEEN[what]}\n")
    (folder / "layer2.py").write_text("import importlib as i\nh = i.import_module('layer0').f\n")
    (folder / "layer3.py").write_text("import subprocess as s\ndef h(x): return s.run(x)\n")
    unseen: list[str] = []
    function = imported(folder, "layer1").f
    monkeypatch.syspath_prepend(folder)
    setting_digest(function, unseen=unseen)
    assert len(unseen) == 1
    assert re.match(r"(f|<lambda>|layer.) (uses|holds) [\w.]+( \(.*\))?$", unseen[0])


def test_a_method_of_that_name_can_be_seen(folders):
    folder = next(folders)
    built(folder, "a constant", [], 1)
    text = "import layer0\ndef f(model): return model.eval(), layer0.f(1), vars(model), locals()\n"
    (folder / "layer1.py").write_text(text)
    unseen: list[str] = []
    setting_digest(imported(folder, "layer1").f, unseen=unseen)
    assert unseen == []


DIGESTS = """
import random, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_fingerprint as tests
cores, styles, folder = [*tests.CORES], [*tests.IMPORTS], Path(sys.argv[1])
cases = [(core, [(styles[n % len(styles)], "a call")]) for n, core in enumerate(cores)]
cases += [("a set", [("from", layer)]) for layer in tests.LAYERS]
random.Random(sys.argv[2]).shuffle(cases)
found = {{}}
for number, (core, layers) in enumerate(cases):
    found[(core, *layers)] = tests.digest_of(folder / str(number), core, layers, 1).hex()
print(*(found[case] for case in sorted(found)))
"""


@pytest.mark.slow
def test_digests_do_not_depend_on_the_process_the_order_or_the_place(tmp_path):
    code = DIGESTS.format(tests=str(Path(__file__).parent))
    found = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed, seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout.split()
        for seed in "12"
    ]
    assert found[0] == found[1]
    assert len(found[0]) > len(CORES)
