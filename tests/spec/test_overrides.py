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
        parse_overrides(["LR", "=3", "WIDTH=3", "WIDTH=4", "GAMMA=[0.1,", "1]", "B=(0.9", "T="])
    assert caught.value.errors == [
        "'LR': an override should be KEY=VALUE, as in LR=0.1",
        "'=3': an override should be KEY=VALUE, as in LR=0.1",
        "WIDTH: is given twice; keep one",
        "GAMMA: got '[0.1,', where a bracket is not closed; write a list without spaces, or in "
        "quotes, as in 'GAMMA=[0.1, 1]'",
        "'1]': an override should be KEY=VALUE, as in LR=0.1",
        "B: got '(0.9', where a bracket is not closed; write a list without spaces, or in quotes, "
        "as in 'B=[0.1, 1]'",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a[b"]', ["a[b"]),
        ("[a[b]", ["a[b"]),
        ("a[b", "a[b"),
        ("[ab]*.npz", "[ab]*.npz"),
        ("{d}.npz", "{d}.npz"),
    ],
)
def test_brackets_in_texts_are_theirs(text, value):
    assert parse_overrides([f"files={text}"]) == {"files": value}


def test_overrides_reach_the_sweep():
    def batches(bsz, gen, noise=0.0):
        raise NotImplementedError

    sweep = Sweep(batchfn=batches, axes={"WIDTH": [4, 8]})
    overrides = ["width=[16,32,64]", "ONLINE=false", "MAX_ITER=1e3", "noise=[0.1,0.2]", "LR=.5"]
    other = sweep.overridden(parse_overrides(overrides))
    assert other.product.shape == (3, 2)
    assert (other.base.online, other.base.max_iter, other.base.lr) == (False, 1000, 0.5)


# ---- appending -----------------------------------------------------------------------------------


def extended(axes, override, **settings):
    def batches(bsz, gen, noise=0.0, monomials=None, classes=None):
        raise NotImplementedError

    sweep = Sweep(batchfn=batches, axes=axes, **settings).overridden(parse_overrides([override]))
    return {name: axis.values(name) for axis in sweep.product.axes for name in axis.names}


@pytest.mark.parametrize(
    ("axes", "override", "name", "expected"),
    [
        ({"noise": [0.2, 0.4]}, "noise+=0.6", "noise", (0.2, 0.4, 0.6)),
        ({"noise": (0.2, 0.4)}, "noise+=[0.6, 1]", "noise", (0.2, 0.4, 0.6, 1.0)),
        ({"WIDTH": [4]}, "width+=8", "width", (4, 8)),
        ({"LR": [0.1], "WIDTH": [4]}, "LR+=1e-3", "lr", (0.1, 1e-3)),
        ({"trial": range(2)}, "trial+=4", "trial", (0, 1, 4)),
        ({"trial": range(2)}, "trial+=[2,3]", "trial", (0, 1, 2, 3)),
        ({"NUM_TRIALS": 2}, "trial+=[2]", "trial", (0, 1, 2)),
        ({"N_SAMPLES": [8, 16]}, "N_SAMPLES+=32", "n_samples", (8, 16, 32)),
        ({"classes": [(0, 1)]}, "classes+=2,3", "classes", ((0, 1), (2, 3))),
        ({"classes": [[[0], [1]]]}, "classes+=[[[0],[2]]]", "classes", ([[0], [1]], [[0], [2]])),
        ({"LOSS_CHECKPOINTS": [[0.5]]}, "LOSS_CHECKPOINTS+=[0.1]", "loss_checkpoints", None),
        (
            {"LOSS_CHECKPOINTS": [[0.5]]},
            "LOSS_CHECKPOINTS+=[[0.1],[0.2]]",
            "loss_checkpoints",
            None,
        ),
        ({"TARGET_MONOMIALS": {0: 1}}, "monomials+={1: 2}", "monomials", None),
        ({"TARGET_MONOMIALS": [{0: 1}]}, "TARGET_MONOMIALS+=[{1: 2}, {0: 3}]", "monomials", None),
    ],
)
def test_an_axis_gets_further_values_at_its_end(axes, override, name, expected):
    settings = {key: axes.pop(key) for key in ("NUM_TRIALS", "TARGET_MONOMIALS") if key in axes}
    settings |= {"N_SAMPLES": axes.pop("N_SAMPLES")} if "N_SAMPLES" in axes else {}
    before = [*axes]
    found = extended(dict(axes), override, **settings)
    assert [n.lower() for n in before] == [*found][: len(before)]  # in its place
    if expected is not None:
        assert found[name] == expected
    else:
        assert len(found[name]) == 2 + override.count("],[") + override.count("}, {")


@pytest.mark.parametrize(
    ("axes", "overrides", "message"),
    [
        ({}, ["LR+=0.3"], r"LR\+=: LR is not an axis of the spec; write LR=\[0.01,0.3\] to make"),
        ({}, ["noise+=0.3"], r"noise\+=: noise is not an axis .* write noise=\[0.3\]"),
        ({}, ["N_SAMPLES+=[2,3]"], r"N_SAMPLES is not an axis .* N_SAMPLES=\[1024,2,3\]"),
        ({}, ["NUM_TRIALS+=2"], r"NUM_TRIALS\+=: is a number of trials, not an axis; .* trial\+="),
        (
            {"WIDTH": [2]},
            ["width+=64,256"],
            r"width\+=: got \(64, 256\); write width\+=\[64,256\]$",
        ),
        ({"noise": [0.2]}, ["noise+=1,2"], r"noise\+=: got \(1, 2\); write noise\+=\[1,2\]$"),
        ({}, ["noise+=1,2"], r"noise is not an axis .* write noise=\[1,2\] to make"),
        ({}, ["LR=0.1,0.2"], r"LR: got \(0.1, 0.2\); .*; to sweep over it, write LR=\[0.1,0.2\]$"),
        ({"noise": [0.2]}, ["noise+=0.2"], "axis noise: the value 0.2 appears more than once"),
        ({"noise": [0.2]}, ["noise+=0.3", "noise=[1]"], "noise: is given twice; keep one"),
        ({"WIDTH": [2]}, ["WIDTH+=x"], "axis WIDTH: .*'x'"),
        ({("WIDTH", "LR"): [(4, 1)]}, ["LR+=2"], r"part of the zipped axis \(WIDTH, LR\), whose"),
        ({}, ["nois+=0.3"], "nois: neither a hyperparameter .*did you mean 'noise'"),
    ],
)
def test_what_cannot_be_appended_is_named(axes, overrides, message):
    def batches(bsz, gen, noise=0.0):
        raise NotImplementedError

    with pytest.raises(SpecError, match=message):
        Sweep(batchfn=batches, axes=axes).overridden(parse_overrides(overrides))


def test_a_plus_alone_is_no_name():
    with pytest.raises(SpecError, match=r"'\+=3': an override should be KEY=VALUE"):
        parse_overrides(["+=3"])
