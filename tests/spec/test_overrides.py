"""KEY=VALUE arguments of the command line, from text to values."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlpsubmit import SpecError, Sweep
from mlpsubmit.cli.options import parse_overrides

unhurried = settings(deadline=None)  # cores may be shared


def value(text):
    return parse_overrides([f"X={text}"])["X"]


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
literals = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@unhurried
@given(literals)
@example([["a,b", "]"], "="])
def test_literals_mean_themselves(literal):
    assert value(repr(literal)) == literal
    assert value(f" {literal!r}  ") == literal
    assert type(value(repr(literal))) is type(literal)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("none", None),
        ("Null", None),
        ("1e-3", 1e-3),
        ("1e4", 1e4),
        ("20_000", 20_000),
        ("-inf", -math.inf),
        ("mup", "mup"),
        ("mup-lr", "mup-lr"),
        ("log:20", "log:20"),
        ("'64'", "64"),
        ("", ""),
        ("a=b", "a=b"),
        ("data/x.npz", "data/x.npz"),
        ("$x_{0}^2$", "$x_{0}^2$"),
        ("(1, 2)", (1, 2)),
        ("{'d': 3}", {"d": 3}),
        ("[]", []),
        ("[1, 2.5]", [1, 2.5]),
        ("[0.1,1,10]", [0.1, 1, 10]),
        ("[mup]", ["mup"]),
        ("[mup, mup-lr ,sp]", ["mup", "mup-lr", "sp"]),
        ("[true, False, none, 3, 1e-3]", [True, False, None, 3, 1e-3]),
        ("[[0.1, 0.2], [0.3]]", [[0.1, 0.2], [0.3]]),
        ("[[a, 1], b, (2, 3)]", [["a", 1], "b", (2, 3)]),
        ("[log:20, 'x', a,]", ["log:20", "x", "a"]),
    ],
)
def test_values_read_as_one_would_write_them(text, expected):
    read = value(text)
    assert read == expected
    assert type(read) is type(expected)


def test_not_a_number_is_a_number():
    assert math.isnan(value("nan"))


words = st.from_regex(r"[a-zA-Z][a-zA-Z0-9._:/-]*", fullmatch=True).filter(
    lambda word: word.lower() not in ("true", "false", "none", "null", "nan", "inf", "infinity")
)


@unhurried
@given(st.lists(words, min_size=1), st.sampled_from([",", ", ", " , "]))
def test_bare_words_need_no_quotes(texts, comma):
    assert value(texts[0]) == texts[0]
    assert value(f"[{comma.join(texts)}]") == texts


def test_several_overrides_are_one_dictionary():
    assert parse_overrides(["LR=0.1", "GAMMA=[0.1,1]", "data=a=b"]) == {
        "LR": 0.1,
        "GAMMA": [0.1, 1],
        "data": "a=b",
    }
    assert parse_overrides([]) == {}


def test_errors_are_listed_at_once():
    with pytest.raises(SpecError) as caught:
        parse_overrides(["LR", "=3", "WIDTH=3", "WIDTH=4"])
    assert caught.value.errors == [
        "'LR': an override should be KEY=VALUE, as in LR=0.1",
        "'=3': an override should be KEY=VALUE, as in LR=0.1",
        "WIDTH: is given twice; keep one",
    ]


def test_overrides_reach_the_sweep():
    def batches(bsz, gen, noise=0.0):
        raise NotImplementedError

    sweep = Sweep(batchfn=batches, axes={"WIDTH": [4, 8]})
    overrides = ["width=[16,32,64]", "ONLINE=false", "MAX_ITER=1e3", "noise=[0.1,0.2]", "LR=.5"]
    other = sweep.overridden(parse_overrides(overrides))
    assert other.product.shape == (3, 2)
    assert (other.base.online, other.base.max_iter, other.base.lr) == (False, 1000, 0.5)
