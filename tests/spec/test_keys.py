"""Keys: equal for what gives the same result, different for all else, the same on any machine."""

from __future__ import annotations

import copy
import enum
import functools
import itertools
import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlpsubmit.batchfns
from mlpsubmit import Monomial, Sweep
from mlpsubmit.spec.fingerprint import digest, setting_digest
from mlpsubmit.spec.hyperparameters import OUTSIDE_RESULTS, Hyperparameters
from mlpsubmit.spec.initial_weights import from_run
from mlpsubmit.spec.keys import key_tables
from mlpsubmit.spec.load import load_spec, pickle_sweep, unpickle_sweep

unhurried = settings(deadline=None)  # cores may be shared


def batches(bsz, gen, noise=0.0, table=None, trial=0):
    return lambda step: (bsz, gen, noise, table)


def make(axes=None, **further):
    return Sweep(axes=axes, **{"batchfn": batches, **further})


def key(axes=None, **further):
    return make(axes, **further).config(0).key


def keys(sweep):
    return [config.key for config in sweep]


# ---- the same config has the same key ------------------------------------------------------------


def test_a_key_is_the_hex_of_16_bytes():
    assert re.fullmatch("[0-9a-f]{32}", key())
    assert make().keys(np.zeros(3, dtype=int)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WIDTH", 64),
        ("LR", np.float64(0.5)),
        ("ONLINE", "False"),
        ("LOSS_CHECKPOINTS", [0.3]),
        ("datasethps", {"d": 3, "alpha": [1, 2]}),
        ("noise", 3),
        ("noise", np.float64(0.5)),
        ("noise", np.int64(3)),
        ("noise", torch.tensor(0.5)),
        ("noise", {"a": [1, 2], "b": None}),
        ("table", np.arange(6.0).reshape(2, 3)),
        ("table", torch.arange(6.0)),
        ("trial", 3),
        ("monomials", [{0: 1}, "$x_{1}$"]),
    ],
)
def test_a_value_counts_the_same_fixed_or_on_an_axis(name, value):
    def with_monomials(bsz, gen, noise, table, monomials):
        raise NotImplementedError

    fixed, swept = ({name: value}, None), ({}, {name: [value]})
    first, second = (key(axes, batchfn=with_monomials, **s) for s, axes in (fixed, swept))
    assert first == second
    assert first != key(batchfn=with_monomials)


def test_values_at_their_default_count_the_same_left_out():
    defaults = {"WIDTH": 8192, "LR": 1e-2, "LOSS_CHECKPOINTS": [0.1, 0.15], "trial": 0}
    assert key(**defaults) == key({name: [value] for name, value in defaults.items()}) == key()


def test_a_release_may_add_a_setting_without_changing_keys():
    at_default, other = key_tables(make({"WIDTH": [8192, 64]})).axes[0]
    assert not at_default.any()
    assert other.all()


def test_spellings_of_a_name_and_of_a_value_count_the_same():
    assert key(WIDTH=64, ONLINE=False) == key(width=64.0, online="false")
    assert key(LOSS_CHECKPOINTS=[0.1, 0.5]) == key(losscheckpoints=(0.5, 0.1, 0.1))


AXES = {"WIDTH": [4, 8], "LR": [0.1, 1e-2], "noise": [1, 2], "trial": [0, 1]}


@pytest.mark.parametrize("order", list(itertools.permutations(AXES)))
def test_the_order_of_axes_does_not_matter(order):
    sweep = make({name: AXES[name] for name in order})
    found = {frozenset(config.point.items()): config.key for config in sweep}
    reference = make(AXES)
    assert found == {frozenset(config.point.items()): config.key for config in reference}


def test_zipped_axes_settings_and_overrides_count_the_same():
    zipped = key({("WIDTH", "LR"): [(64, 0.1)], "noise": [2]})
    assert zipped == key(WIDTH=64, LR=0.1, noise=2)
    assert (
        zipped
        == make({"WIDTH": [1, 2]}, LR=0.1).overridden({"WIDTH": 64, "noise": 2}).config(0).key
    )


def test_where_and_the_name_do_not_matter():
    sweep = make({"trial": range(4)}, name="other", where=lambda c: c.trial == 2)
    assert keys(sweep) == [key(trial=2)]


@pytest.mark.parametrize(
    "setting",
    [
        *({"VERBOSE": True}, {"DEVICES": [0]}, {"PACK_SIZE": 3}),
        *({"CHECKPOINT_MINUTES": 1}, {"COMPILE": True}),
    ],
)
def test_settings_that_no_result_depends_on_do_not_matter(setting):
    assert key(**setting) == key()


def test_the_number_of_trials_and_of_targets_does_not_matter():
    sweep = make(NUM_TRIALS=4, N_SAMPLES=[8, 16])
    assert keys(sweep)[:2] == [key(N_SAMPLES=8), key(N_SAMPLES=8, trial=1)]


# ---- other configs have other keys ---------------------------------------------------------------

#: A valid value of each hyperparameter that is not its default.
OTHERS = {
    "online": False,
    "loss_checkpoints": [0.3],
    "percent_thresholds": [0.3],
    "ema_smoother": 0.5,
    "onlythresholds": False,
    "deterministic": False,
    "datasethps": {"d": 3},
    "other_model_grabs": {"a": "trace"},
    "other_model_kwargs": {"a": {"b": 1}},
    "other_model_gram": {"a": True},
    "optimizer": "adam",
    "momentum": 0.5,
    "weight_decay": 0.5,
    "betas": (0.5, 0.6),
    "optimizer_kwargs": {"rho": 0.9},
    "lr_schedule": "cosine",
    "lr_factors": {"*": 0.5},
    "loss": "cross_entropy",
    "parametrization": "sp",
    "centered": False,
    "model": torch.nn.Linear,
    "precision": "bf16",
    "init_weights": from_run("before"),
    "metrics": ["accuracy"],
    "metric_thresholds": {"test_loss": [0.5]},
    "stop_on": None,
}


def test_every_setting_that_results_depend_on_counts():
    names = [n for n in Hyperparameters.model_fields if n not in OUTSIDE_RESULTS | {"nesterov"}]
    fitting = {"optimizer_kwargs": {"optimizer": "Adadelta"}}
    fitting |= {name: {"optimizer": "adam"} for name in ("betas", "eps")}
    fitting |= {"lr_final_factor": {"lr_schedule": "linear"}}
    fitting |= {name: {"onlythresholds": False} for name in ("record_every", "grab_every")}
    found = {key(**{name: OTHERS.get(name, 3)}, **fitting.get(name, {})) for name in names}
    found |= {key(), key(MOMENTUM=0.5, NESTEROV=True)}
    assert len(found) == len(names) + 2


def test_every_function_counts():
    def spectrum(d=3):
        return d

    def grab(model):
        return model

    sweeps = [
        {},
        {"batchfn": spectrum},
        {"data": spectrum},
        {"grabs": {"a": grab}},
        {"grabs": {"b": grab}},
        {"grabs": {"a": spectrum}},
        {"grabs": {"a": spectrum, "b": grab}},
        {"grabs": {"b": spectrum, "a": grab}},
    ]
    assert len({key(**sweep) for sweep in sweeps}) == len(sweeps)


DIFFERENT = [
    1,
    1.0,
    True,
    "1",
    b"1",
    None,
    [1],
    [[1]],
    [1, 2],
    [2, 1],
    {1},
    {1: 2},
    {2: 1},
    {"1": 2},
    {1: {2: 3}},
    {1: 2, 3: 4},
    Monomial({1: 2}),
    0.0,
    -0.0,
    float("nan"),
    1j,
    2**80,
    "",
    [],
    {},
    [None],
    ["a", "bc"],
    ["ab", "c"],
    np.ones(2),
    np.ones(2, dtype=np.float32),
    np.ones((2, 1)),
    np.array([1, "a"], dtype=object),
    np.array([1, "b"], dtype=object),
    torch.zeros(2),
    functools.partial(batches, noise=1),
    functools.partial(batches, noise=2),
    functools.partial(batches, 1),
    {1: 2}.get,
    {1: 3}.get,
    torch.relu,
    torch.tanh,
    torch.float32,
    torch.float64,
    torch.nn.functional.relu,
    torch.nn.ReLU,
    torch.nn.ReLU(),
    np.add,
    np.exp,
    re.compile("a"),
    re.compile("b"),
    np.random.default_rng(0),
    np.random.default_rng(1),
    slice(1, 2),
    Path("a"),
    Path("b"),
    ...,
]


def test_different_values_have_different_digests():
    digests = [digest(value) for value in DIFFERENT]
    same = {
        (repr(a), repr(b))
        for (a, x), (b, y) in itertools.combinations(zip(DIFFERENT, digests, strict=True), 2)
        if x == y
    }
    assert not same


def test_what_a_function_may_change_in_place_counts_as_which_of_its_equals_it_is():
    row, other = [1, 2], [1, 2]
    shared, apart = digest([row, row]), digest([row, other])
    assert shared == digest([other, other]) != apart == digest([[1, 2], [1, 2]])
    assert digest([row, other, row]) != digest([row, other, other])
    assert digest([other, row, other]) == digest([row, other, row])
    weight = torch.zeros(2)
    assert digest({"a": weight, "b": weight}) != digest({"a": weight, "b": torch.zeros(2)})
    assert digest([(1, 2)] * 2) == digest([(1, 2), (1, int("2"))])
    assert setting_digest([row, row]) == setting_digest([row, other])  # a value is a value
    nested: list[object] = [0]
    for _ in range(60):
        nested = [nested, nested]
    assert digest(nested)  # in linear time


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})  # functions can tell
    assert digest({3, 1, 2}) == digest({2, 3, 1})
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.arange(6).reshape(2, 3).T.copy())
    assert digest(range(3)) == digest([0, 1, 2]) != digest((0, 1, 2))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@unhurried
@given(values, values)
def test_digests_agree_just_where_values_do(a, b):
    assert digest(a) == digest(a)
    assert (digest(a) == digest(b)) == (repr_of(a) == repr_of(b))


def repr_of(value):
    """A text that says all of a value, with dictionaries in order."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{repr_of(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)


@unhurried
@given(st.data())
def test_configs_of_a_product_have_different_keys(data):
    axes = {
        "WIDTH": st.integers(1, 100),
        "LR": st.floats(0.01, 10),
        "trial": st.integers(0, 100),
        "noise": values,
        "datasethps": st.dictionaries(st.text("ab"), values, max_size=2),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(axes)), unique=True))
    sweep = make(
        {
            name: data.draw(st.lists(axes[name], min_size=1, max_size=3, unique_by=setting_digest))
            for name in chosen
        }
    )
    assert len(set(keys(sweep))) == len(sweep)


def test_a_hundred_thousand_configs_have_different_keys():
    sweep = make({"LR": [1 / n for n in range(1, 101)], "GAMMA": range(1, 101), "trial": range(10)})
    found = sweep.keys(np.arange(100_000))
    assert len(np.unique(found, axis=0)) == len(np.unique(found[:, 0])) == 100_000


# ---- functions count by what they do -------------------------------------------------------------


def defined(source, **names):
    """Run some source as the module of a user, and return its last function."""
    space = {"__name__": "users_module", **names}
    exec(compile(source, "users_module.py", "exec"), space)
    return space["f"]


PLAIN = """
def f(bsz, gen, noise=1):
    X = gen + 1
    return lambda step: (X * noise, bsz)
"""

SAME = {
    "a comment": """
def f(bsz, gen, noise=1):
    # one more than before
    X = gen + 1  # here
    return lambda step: (X * noise, bsz)
""",
    "line numbers": "\n\n\n\n" + PLAIN.replace("    X", "\n\n\n    X"),
    "a docstring": '''
def f(bsz, gen, noise=1):
    """Return a function that yields batches."""
    X = gen + 1
    return lambda step: (X * noise, bsz)
''',
    "blanks": """
def f(
    bsz,
    gen,
    noise=1,
):
    X = (gen+1)
    return lambda step: (X*noise,bsz)
""",
    "annotations": PLAIN.replace("bsz, gen,", "bsz: int, gen: int,"),
    "unrelated neighbours": PLAIN + "\ng = 3\nX = 4\n\ndef h(): return f\n",
}

OTHER = {
    "a constant": PLAIN.replace("+ 1", "+ 2"),
    "the kind of a constant": PLAIN.replace("+ 1", "+ 1.0"),
    "an operator": PLAIN.replace("+ 1", "- 1"),
    "a default": PLAIN.replace("noise=1", "noise=2"),
    "the name of an argument": PLAIN.replace("noise", "sigma"),
    "an inner function": PLAIN.replace("X * noise", "X / noise"),
    "an inner constant": PLAIN.replace("X * noise", "X * noise + 0"),
    "a global": PLAIN.replace("gen + 1", "bsz + 1"),
    "a generator": PLAIN.replace("return", "yield"),
    "what is guarded": PLAIN.replace("X = gen + 1", "try: X = gen + 1\n    except: X = 0"),
}

GUARDED = """
def f(x):
    y = 0
    y = x(1)
    try:
        y = x(2)
    except ValueError:
        return y
"""


@pytest.mark.parametrize("what", SAME)
def test_how_a_function_is_written_does_not_matter(what):
    assert digest(defined(SAME[what])) == digest(defined(PLAIN))


def test_what_a_function_does_matters():
    digests = {what: digest(defined(source)) for what, source in OTHER.items()}
    assert len({digest(defined(PLAIN)), *digests.values()}) == len(OTHER) + 1


def test_where_a_try_begins_matters():
    earlier = GUARDED.replace("    y = x(1)\n    try:\n", "    try:\n        y = x(1)\n")
    assert digest(defined(GUARDED)) != digest(defined(earlier))


def test_docstrings_of_inner_functions_and_classes_do_not_matter():
    source = """
def f(x):
    def inner(y):
        '''one'''
        return y + x
    class Inner:
        '''one'''
        def method(self):
            '''one'''
            return x
    return inner, Inner
"""
    assert digest(defined(source)) == digest(defined(source.replace("'''one'''", "'''two'''")))
    assert digest(defined(source)) != digest(defined(source.replace("y + x", "y - x")))


def test_a_function_that_ran_counts_as_before():
    function = defined(PLAIN)
    before = digest(function)
    for _ in range(100):  # the interpreter specialises instructions that run often
        function(1, 2)(3)
    assert digest(function) == before


GLOBALS = """
OFFSET = 1
def helper(x): return deeper(x) + OFFSET
def deeper(x): return {deeper}
def f(x): return helper(x)
"""


def test_globals_and_helpers_of_helpers_count():
    one, other = (GLOBALS.format(deeper=body) for body in ("x * 2", "x * 3"))
    assert digest(defined(one)) == digest(defined(one))
    found = {digest(defined(source)) for source in (one, other, one.replace("= 1", "= 2"))}
    assert len(found) == 3


def test_attributes_that_share_the_name_of_a_global_do_not_count():
    source = "def f(x): return x.mean()\ndef mean(): return {}\n"
    assert digest(defined(source.format(1))) == digest(defined(source.format(2)))


def test_closures_count():
    def scaled(factor):
        def f(x):
            return factor * x

        return f

    assert digest(scaled(2)) == digest(scaled(2))
    assert digest(scaled(2)) != digest(scaled(3))
    assert digest(scaled(np.ones(3))) != digest(scaled(np.zeros(3)))
    assert digest(scaled(scaled(2))) != digest(scaled(scaled(3)))


CYCLES = {
    "recursion": "def f(x): return f(x - {0}) if x else 0",
    "mutual recursion": "def g(x): return f(x - {0})\ndef f(x): return g(x) if x else 0",
    "recursion in a closure": """
def outer():
    def inner(x): return inner(x - {0}) if x else 0
    return inner
f = outer()
""",
    "a registry": """
REGISTRY = {{}}
def f(x): return REGISTRY['f'](x - {0}) if x else 0
REGISTRY['f'] = f
""",
    "a class": """
class Model:
    def copy(self): return Model()
    def value(self): return {0}
def f(x): return Model().copy()
""",
}


@pytest.mark.parametrize("what", CYCLES)
def test_functions_that_lead_back_to_themselves_count(what):
    one, same, other = (digest(defined(CYCLES[what].format(n))) for n in (1, 1, 2))
    assert one == same != other


DECORATED = {
    "functools.cache": "@functools.cache\ndef f(x): return x + {0}",
    "torch.no_grad": "@torch.no_grad()\ndef f(x): return x + {0}",
    "torch.inference_mode": "@torch.inference_mode()\ndef f(x): return x + {0}",
    "functools.partial": "f = functools.partial(lambda x, y: x + y, {0})",
    "torch.autograd.Function": """
class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context, x): return x * {0}
def f(x): return Scaled.apply(x)
""",
    "a module of torch": """
layer = torch.nn.ReLU()
layer.scale = {0}
def f(x): return layer(x) * layer.scale
""",
    "an alias of torch": """
g = (torch.nn.functional.relu, torch.nn.functional.gelu)[{0} - 1]
def f(x): return g(x)
""",
    "a replaced method of torch": """
if {0} == 2: torch.nn.Flatten.more = lambda self: 1
def f(x): return torch.nn.Flatten()(x)
""",
    "whether a tensor is trained": """
weight = torch.ones(2, requires_grad={0} == 1)
def f(x): return x @ weight
""",
    "a bound method": """
class Grab:
    def __init__(self, shift): self.shift = shift
    def grab(self, model): return model + self.shift
f = Grab({0}).grab
""",
    "a callable object": """
class Grab:
    def __init__(self, shift): self.shift = shift
    def __call__(self, model): return model + self.shift
f = Grab({0})
""",
    "a decorator of the user": """
def doubled(function):
    @functools.wraps(function)
    def twice(x): return function(function(x))
    return twice
@doubled
def f(x): return x + {0}
""",
}


@pytest.mark.parametrize("what", DECORATED)
def test_what_is_decorated_or_bound_counts(what):
    names = {"functools": functools, "torch": torch}
    try:
        one, same, other = (digest(defined(DECORATED[what].format(n), **names)) for n in (1, 1, 2))
    finally:
        vars(torch.nn.Flatten).get("more") and delattr(torch.nn.Flatten, "more")
    assert one == same != other


def test_what_a_library_has_loaded_does_not_count():
    def f(x):
        return mlpsubmit.batchfns.polynomial(x)

    vars(mlpsubmit.batchfns).pop("polynomial", None)
    before = digest(f)
    assert callable(mlpsubmit.batchfns.polynomial)
    assert digest(f) == before


def test_closures_that_a_library_makes_count_by_what_they_hold():
    from mlpsubmit.batchfns.fixed_batch import fixed  # imports torch

    X, y = torch.ones(3, 2), torch.ones(3)
    assert digest(fixed(X, y)) == digest(fixed(X.clone(), y))
    assert digest(fixed(X, y)) != digest(fixed(2 * X, y))
    one, other = (torch.func.vmap(defined(PLAIN.replace("1", n))) for n in "12")
    assert digest(one) != digest(other)


class Activation(enum.Enum):
    RELU = "relu"
    TANH = "tanh"


class Shape(ABC):
    @abstractmethod
    def area(self): ...


@dataclass
class Square(Shape):
    side: float = 1.0

    def area(self):
        return self.side**2


class Network(torch.nn.Module):
    depth = 2

    def forward(self, x):
        return x

    @property
    def width(self):
        return 3

    @staticmethod
    def size():
        return 4


def test_classes_and_their_instances_count():
    assert digest(Square(1)) == digest(Square(1)) != digest(Square(2))
    assert digest(Activation.RELU) == digest(Activation.RELU) != digest(Activation.TANH)
    source = "class f:\n    def method(self): return {0}\n    attribute = {1}"
    classes = [digest(defined(source.format(*values))) for values in ((1, 1), (1, 2), (2, 1))]
    assert len(set(classes)) == 3


def test_a_class_that_was_used_counts_as_before():
    class Plain:
        side = 1

    before = digest(Plain)
    copy.deepcopy(Plain())  # leaves __slotnames__ in the class
    assert Plain.__annotations__ == {}  # leaves this in it
    assert len({"__slotnames__", "__annotations__"} & set(vars(Plain))) >= 1
    assert digest(Plain) == before
    assert digest(Network) == digest(Network)


def evaluates(bsz, gen, noise=0.0):
    return eval("noise")


def test_a_function_that_cannot_be_seen_counts_as_another_one_every_time():
    text = (
        "batchfn: evaluates uses eval: what this does is not part of the keys of configs, so every "
        "launch trains them again and no result is reused; use functions and modules by their "
        "names instead"
    )
    one = make({"noise": [1, 2]}, batchfn=evaluates, grabs={"a": batches})
    with pytest.warns(UserWarning, match=re.escape(text)) as caught:
        one = one.refreshed()  # as a launch does
    assert len(caught) == 1
    first = keys(one)
    assert keys(one) == keys(unpickle_sweep(pickle_sweep(one))) == first  # within a launch
    with pytest.warns(UserWarning, match="grab"):
        assert not {*first} & {*keys(make({"noise": [1, 2]}, grabs={"a": evaluates}))}
    with pytest.warns(UserWarning, match="batchfn"):
        assert not {*first} & {*keys(one.refreshed())}
    with pytest.warns(UserWarning, match="noise: evaluates uses eval"):
        seen, _ = keys(make({"noise": [1, evaluates]}))  # configs without it are reused
    assert seen == key(noise=1)


# ---- the same on any machine ---------------------------------------------------------------------


SPEC = '''
import enum, functools
import numpy as np
import shapes
from mlpsubmit import Monomial, Sweep
from shapes import area

NAMES = {"alpha", "beta", "gamma", "delta"}
TABLE = {name: len(name) for name in sorted(NAMES)}
OBJECTS = np.array([{"a": 1}, "text"], dtype=object)

class Workload(enum.Enum):
    ONE, TWO = 1, 2

@functools.cache
def cached(n):
    return n + len(NAMES)

def batches(bsz, gen, noise=0.0, kind=Workload.ONE):
    """Comments and docstrings do not count."""
    def batch_fn(step):
        return cached(step), TABLE, OBJECTS, kind, shapes.circle(1)
    return batch_fn

def grab(model):
    return area(model, "alpha" in {"alpha", "beta", "gamma"})

sweep = Sweep(
    axes={
        "kind": list(Workload),
        "noise": [0.5, {"a", "b", "c"}, cached],
        "monomials": [Monomial({0: 1, 3: 2})],
    },
    WIDTH=8,
    batchfn=batches,
    grabs={"g": grab},
    data=functools.partial(lambda d: {"d": d}, d=np.arange(3)),
)
'''

SHAPES = """
import circles
from circles import circle
LOADED = object()
def area(x, flag): return x * 2 if flag else circle(x)
"""

CIRCLES = "def circle(x): return 3 * x * x\n"


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A spec with modules of its own, in a folder of its own."""
    for name, text in {"spec.py": SPEC, "shapes.py": SHAPES, "circles.py": CIRCLES}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path / "spec.py"
    for name in ("shapes", "circles", "mlpsubmit_spec_spec"):
        sys.modules.pop(name, None)


def in_a_process(code, *arguments, seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    return done.stdout.split()


KEYS_OF_SPEC = """
import sys
from pathlib import Path
from mlpsubmit.spec.keys import key_tables
from mlpsubmit.spec.load import load_spec
sweep = load_spec(Path(sys.argv[1]))
print(sweep.fingerprint, *(config.key for config in sweep))
"""

KEYS_OF_PICKLE = """
import sys
from pathlib import Path
from mlpsubmit.spec.keys import key_tables
from mlpsubmit.spec.load import unpickle_sweep
sweep = unpickle_sweep(Path(sys.argv[1]).read_bytes())
print(*(config.key for config in sweep))
"""


@pytest.mark.slow
def test_another_process_finds_the_same_keys(spec):
    here = load_spec(spec)
    assert in_a_process(KEYS_OF_SPEC, spec, seed=1) == [here.fingerprint, *keys(here)]


def test_a_pickled_sweep_keeps_its_keys_whatever_becomes_of_its_modules(spec, tmp_path):
    sweep = load_spec(spec)
    expected = keys(sweep)
    (tmp_path / "sweep.pkl").write_bytes(pickle_sweep(sweep))
    (tmp_path / "circles.py").write_text(CIRCLES.replace("3", "4"))
    (tmp_path / "shapes.py").unlink()
    assert in_a_process(KEYS_OF_PICKLE, tmp_path / "sweep.pkl", seed=3) == expected


def test_a_sweep_keeps_its_keys_through_pickling():
    values = [0.5, Activation.RELU, Square(2.0), Network, torch.ones(2)]
    sweep = make({"WIDTH": [4, 8], "noise": values}, table=np.arange(3))
    first = (sweep.fingerprint, keys(sweep))
    again = unpickle_sweep(pickle_sweep(sweep))
    assert (again.fingerprint, keys(again)) == first


def test_a_sweep_pickles_to_the_same_bytes_before_and_after_use():
    sweep = make({"WIDTH": [4, 8]}, where=lambda c: c.width < 8, table=np.arange(3))
    before = pickle_sweep(sweep)
    assert len(keys(sweep)) == 1
    assert sweep.fingerprint
    assert pickle_sweep(sweep) == before


def changed(spec, file, old, new):
    """Return the keys of a spec in which some text of one file is another."""
    path = spec.parent / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for name in ("shapes", "circles"):
        sys.modules.pop(name, None)
    return keys(load_spec(spec))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("spec.py", "n + len(NAMES)", "n - len(NAMES)"),
        ("spec.py", '"delta"', '"epsilon"'),
        ("spec.py", "shapes.circle(1)", "shapes.circle(2)"),
        ("spec.py", '"text"', '"other"'),
        ("shapes.py", "x * 2", "x * 3"),
        ("circles.py", "3 * x", "4 * x"),
    ],
)
def test_changes_in_the_spec_and_in_what_it_imports_count(spec, file, old, new):
    before = keys(load_spec(spec))
    assert not set(before) & set(changed(spec, file, old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("spec.py", "do not count.", "really do not."),
        ("spec.py", "def grab", "# a comment\n\n\ndef unused(): return 3\n\ndef grab"),
        ("shapes.py", "LOADED", "\n# what was loaded\nLOADED"),
        ("circles.py", "def circle", "'''Circles.'''\n\ndef circle"),
    ],
)
def test_comments_and_docstrings_of_them_do_not_count(spec, file, old, new):
    before = keys(load_spec(spec))
    assert changed(spec, file, old, new) == before


@pytest.mark.parametrize(
    "variable",
    [
        "_RJEM_MALLOC_CONF",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
        "WANDB_SERVICE",
        "WANDB_API_KEY",
    ],
)
def test_a_variable_that_a_library_sets_changes_no_key(monkeypatch, variable):
    """As import polars does, or a run of wandb."""
    sweep = make()
    monkeypatch.delenv(variable, raising=False)
    before = sweep.refreshed().fingerprint
    monkeypatch.setenv(variable, "dirty_decay_ms:500")
    assert sweep.refreshed().fingerprint == before
    monkeypatch.setenv("SCALE_OF_A_USER", "2")
    assert sweep.refreshed().fingerprint != before


# ---- other names of axes -------------------------------------------------------------------------


def folds(trial, num_trials):
    return lambda step: (trial, num_trials)


def test_how_many_trials_there_are_counts_where_a_function_declares_it():
    assert key(NUM_TRIALS=3) == key(NUM_TRIALS=6)
    assert key(NUM_TRIALS=3, batchfn=folds) != key(NUM_TRIALS=6, batchfn=folds)
    grabs = {"g": lambda model, NUM_TRIALS: NUM_TRIALS}
    assert key(NUM_TRIALS=3, grabs=grabs) != key(NUM_TRIALS=6, grabs=grabs)
    assert key(NUM_TRIALS=3, batchfn=lambda **rest: rest) == key(
        NUM_TRIALS=6, batchfn=lambda **rest: rest
    )


def test_defaults_of_the_optimizer_are_as_if_unset_but_not_of_a_class_with_its_own():
    for asked in ({"WEIGHT_DECAY": 0}, {"OPTIMIZER": "adam", "EPS": 1e-8}):
        optimizer = {name: value for name, value in asked.items() if name == "OPTIMIZER"}
        assert key(**asked) == key(**optimizer)
        own = {**asked, "OPTIMIZER": torch.optim.AdamW}
        assert key(**own) != key(OPTIMIZER=torch.optim.AdamW)
    grown = make({"WEIGHT_DECAY": [0.0, 0.1]})
    assert [one == key() for one in keys(grown)] == [True, False]
    mixed = make({"OPTIMIZER": ["sgd", torch.optim.AdamW], "WEIGHT_DECAY": [0.0, 0.1]})
    assert key() not in keys(mixed)
