"""Grabs that settings name: functions with arguments of their own, of a model or of a matrix."""

import inspect
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import Monomial, Sweep, grabs
from mlpsubmit.arguments import call, declared, function_name
from mlpsubmit.assembly.assemble import named_grabs
from mlpsubmit.assembly.probe import probe
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.named_grabs import NamedGrab, matrix_choice, named_grab, on_test_set
from mlpsubmit.spec.fingerprint import digest


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 7), nn.Linear(7, 2))


def itself(W):
    return W


def scaled_corner(G, i, scale=1.0, *, X_tr=None):
    return G[i, i] * scale


def open_ended(W, **kwargs):
    return kwargs


def close(tensor, expected):
    np.testing.assert_allclose(tensor.detach(), expected.detach(), rtol=1e-5)


# ---- the matrix ------------------------------------------------------------------------------


def test_the_matrix_is_w_or_a_gram_matrix_of_the_first_or_last_layer(model):
    first, last = model[0].weight.detach(), model[3].weight.detach()
    for source, W in {"in": first, "out": last}.items():
        for outside, gram in {True: W.T @ W, False: W @ W.T}.items():
            choice = {"source": source, "concat_outside": outside}
            close(named_grab(itself, matrix="gram", **choice)(model=model), gram)
            close(named_grab(itself, matrix="raw", **choice)(model=model), W)
    raw = named_grab(itself, matrix="raw")(model=model)
    raw.zero_()  # a copy
    assert model[0].weight.any()


def test_mlpscapes_choices_select_the_same(model):
    first, last = model[0].weight.detach(), model[3].weight.detach()
    expected = [
        (True, first.T @ first),
        ("true", first.T @ first),
        ({}, first.T @ first),
        ({"source": "out"}, last.T @ last),
        ({"source": "out", "concat_outside": "False"}, last @ last.T),
        ({"concat_outside": 0}, first @ first.T),
        ({"use_raw": "yes", "source": "out"}, last),
        ({"use_raw": "false", "call_with_model": False}, first.T @ first),
    ]
    for value, matrix in expected:
        close(named_grab(itself, **matrix_choice(value))(model=model), matrix)
    for value in (False, "False", 0, {"call_with_model": "True"}, {"call_with_model": 1}):
        assert named_grab(grabs.readin_gram, **matrix_choice(value)) is grabs.readin_gram


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ("maybe", ["got 'maybe'; valid are True, False, or a mapping of source ('in' (the first"]),
        (None, ["got None; valid are True, False, or a mapping"]),
        (2, ["got 2; valid are True, False"]),
        ({"sorce": "in"}, ["got 'sorce' (did you mean 'source'?); valid keys are source, concat"]),
        (
            {"source": "inn", "use_raw": "maybe", "raw": True, "concat_outside": 3},
            [
                "4 errors",
                "got 'raw'",
                "got source='inn'; valid is 'in' (the first layer) or 'out' (the last)",
                "got use_raw='maybe'; valid is True (W itself) or False (its Gram matrix)",
                "got concat_outside=3; valid is True (W^T W) or False (W W^T)",
            ],
        ),
    ],
)
def test_choices_that_are_none_are_listed(value, messages):
    with pytest.raises(SpecError) as caught:
        matrix_choice(value)
    assert all(message in str(caught.value) for message in messages)


# ---- the grab --------------------------------------------------------------------------------


def test_it_declares_what_the_function_still_needs(model):
    assert declared(named_grab("trace", matrix="gram")) == {"model"}
    corner = named_grab(scaled_corner, matrix="raw", arguments={"i": 1})
    assert declared(corner) == {"model", "scale", "X_tr"}
    assert call(corner, {"model": model, "i": 0, "scale": 2.0, "X_tr": None, "width": 3}) == (
        model[0].weight[1, 1] * 2
    )
    bound = named_grab("readin_gram_diagonal", arguments={"monomials": {0: 1}})
    assert declared(bound) == {"model"}
    # What is fixed wins over an axis of the same name.
    own = call(bound, {"model": model, "monomials": Monomial({1: 1, 2: 1})})
    close(own, model[0].weight[:, 0].square().sum()[None])
    assert function_name(bound) == "readin_gram_diagonal"


def test_a_function_that_takes_everything_gets_everything_but_the_matrix_twice(model):
    grab = named_grab(open_ended, matrix="gram", arguments={"i": 5})
    kinds = {p.kind for p in inspect.signature(grab).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD in kinds
    got = call(grab, {"model": model, "y_tr": 1, "i": 0, "W": "another"})
    assert got == {"model": model, "y_tr": 1, "i": 5}


def test_partials_and_functions_of_a_model_and_a_matrix(model):
    def both(model, W, gamma):
        return W.sum() * gamma + model[0].bias.sum()

    grab = named_grab(both, matrix="raw")
    assert declared(grab) == {"model", "gamma"}
    value = call(grab, {"model": model, "gamma": 2.0})
    close(value, model[0].weight.sum() * 2 + model[0].bias.sum())
    corner = named_grab(partial(scaled_corner, i=2), matrix="raw")
    close(call(corner, {"model": model}), model[0].weight[2, 2])


def test_it_is_pickled_and_hashed_by_content(model):
    def made(**changed):
        choice = {"matrix": "gram", "source": "out", "arguments": {"i": 1}, **changed}
        return named_grab("entry", **choice)

    again = pickle.loads(pickle.dumps(made()))
    assert isinstance(again, NamedGrab)
    close(again(model=model), made()(model=model))
    assert digest(again) == digest(made())
    changes = [{"source": "in"}, {"matrix": "raw"}, {"arguments": {"i": 0}}]
    changes += [{"concat_outside": False}]
    assert len({digest(made(**change)) for change in [{}, *changes]}) == 5


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        (lambda: named_grab("trase"), ["no grab named 'trase' (did you mean 'trace'?)"]),
        (lambda: named_grab(3), ["got 3; should be a function, or the name of a grab"]),
        (
            lambda: named_grab("readin_gram", arguments={"sides": 1, "lair": 2}, matrix="gram"),
            [
                "3 errors",
                "readin_gram: takes no weight matrix; give it an argument W, or let it have the "
                "model (leave it out of OTHER_MODEL_GRAM)",
                "readin_gram: takes no argument 'sides' (did you mean 'side'?); it takes model, s",
                "takes no argument 'lair'",
            ],
        ),
        (
            lambda: named_grab("trace", matrix="gram", arguments={"W": 1}),
            ["trace: takes no argument 'W'; it takes none"],
        ),
        (
            lambda: named_grab("readin_gram_diagonal", matrix="gram"),
            ["readin_gram_diagonal: takes no weight matrix"],
        ),
        (lambda: named_grab(lambda: 0, matrix="gram"), ["<lambda>: takes no weight matrix"]),
        (lambda: named_grab("trace", arguments=[1]), ["got arguments [1]; should be a mapping"]),
        (lambda: named_grab("trace", arguments={1: 1}), ["got arguments {1: 1}; should be a map"]),
        (lambda: named_grab(dict.get, arguments={"a": 1}), ["get: takes no argument 'a'"]),
        (lambda: named_grab(torch.trace, matrix="gram"), ["trace: its signature cannot be read"]),
    ],
)
def test_what_does_not_fit_is_listed(make, messages):
    with pytest.raises(SpecError) as caught:
        make()
    for message in messages:
        assert message in str(caught.value)


# ---- on the test set --------------------------------------------------------------------------


def both_sets(model, X_tr, y_tr=None, X_te=None):
    return X_tr, y_tr, X_te


def everything(model, **kwargs):
    return kwargs


SETS = {"X_tr": "X", "y_tr": "y", "X_te": torch.ones(2, 4), "y_te": torch.ones(2)}


def test_on_the_test_set_a_grab_is_given_it_for_the_batch(model):
    offered = {"model": model, "width": 3, **SETS}
    X, y = SETS["X_te"], SETS["y_te"]
    kernel = on_test_set(grabs.empirical_ntk, rows=1)
    assert declared(kernel) == {"model", "X_te", "outputs", "chunk_bytes"}
    close(call(kernel, offered), grabs.empirical_ntk(model, X[:1]))
    norm = on_test_set("gradient_norm", centered=False)
    assert declared(norm) == {"model", "X_te", "y_te", "model0", "loss"}
    expected = grabs.gradient_norm(model, X, y[:, None].expand(2, 2), model, centered=False)
    whole = {**offered, "model0": model, "y_te": y[:, None].expand(2, 2)}
    close(call(norm, whole), expected)
    # What is fixed wins over an axis of the same name.
    close(call(kernel, {**offered, "rows": 2}), grabs.empirical_ntk(model, X[:1]))


def test_what_declares_both_sets_needs_the_test_set(model):
    parameters = inspect.signature(on_test_set(both_sets)).parameters
    assert list(parameters) == ["model", "X_te", "y_te"]
    assert parameters["X_te"].default is parameters["X_te"].empty
    assert parameters["y_te"].default is None
    X, y = SETS["X_te"], SETS["y_te"]
    assert call(on_test_set(both_sets), {"model": model, **SETS}) == (X, y, X)
    assert call(on_test_set(both_sets), {"model": model, "X_te": X}) == (X, None, X)


def test_of_functions_that_take_everything_partials_and_named_grabs(model):
    X, y = SETS["X_te"], SETS["y_te"]
    taken = call(on_test_set(everything, scale=2), {"model": model, "gamma": 1.0, **SETS})
    swapped = {"X_tr": X, "y_tr": y, "X_te": X, "y_te": y}
    assert taken == {"gamma": 1.0, "scale": 2, **swapped}
    for grab in (
        on_test_set(partial(grabs.activations, hidden=0), rows=1),
        on_test_set(named_grab("activations", arguments={"hidden": 0}), rows=1),
        named_grab(on_test_set("activations", hidden=0), arguments={"rows": 1}),
    ):
        close(call(grab, {"model": model, **SETS}), grabs.activations(model, X, 0, 1))
        assert "X_te" in declared(grab)
        assert "X_tr" not in declared(grab)
    of_matrix = on_test_set(named_grab(scaled_corner, matrix="raw", arguments={"i": 1}))
    assert declared(of_matrix) == {"model", "scale", "X_te"}
    assert call(of_matrix, {"model": model, **SETS}) == model[0].weight[1, 1]


def test_on_the_test_set_it_is_pickled_hashed_by_content_and_called_as_the_function():
    def made(rows=2, function=grabs.activations):
        return on_test_set(function, rows=rows)

    again = pickle.loads(pickle.dumps(made()))
    assert isinstance(again, NamedGrab)
    assert declared(again) == declared(made())
    others = [made(3), made(function=grabs.activation_kernel), on_test_set(grabs.activations)]
    bare = named_grab(grabs.activations, arguments={"rows": 2})
    assert digest(again) == digest(made())
    assert len({digest(grab) for grab in [made(), *others, bare]}) == 5
    whole = on_test_set(grabs.activations)
    for grab in (made(), whole, named_grab(whole, arguments={"rows": 3})):
        assert function_name(grab) == "activations"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: on_test_set(grabs.readin_gram),
            "on_test_set: readin_gram takes no X_tr, so it is not measured on samples that could "
            "be replaced; use it as it is",
        ),
        (lambda: on_test_set(grabs.held_out_loss), "held_out_loss takes no X_tr"),
        (lambda: on_test_set(on_test_set(grabs.activations)), "activations takes no X_tr"),
        (
            lambda: on_test_set(grabs.activations, row=4),
            "activations: takes no argument 'row' (did you mean 'rows'?); it takes X_tr, hid",
        ),
        (
            lambda: on_test_set("activation"),
            "no grab named 'activation' (did you mean 'activations",
        ),
        (
            lambda: on_test_set(grabs.activations, X_tr=1),
            "on_test_set: got X_tr=1; it gives activations the test set's; to measure on other "
            "samples, write a function that calls activations",
        ),
        (lambda: on_test_set(everything, X_tr=1, y_tr=2), "2 errors:"),
        (lambda: on_test_set(dict.update), "update: its signature cannot be read"),
        (
            lambda: on_test_set(grabs.activations)(model=None, X_te=None),
            "activations: there is no test set; if train is called directly, give it test_fns",
        ),
        (lambda: on_test_set(everything)(model=None, X_tr=1), "everything: there is no test set"),
    ],
)
def test_what_cannot_be_measured_on_the_test_set(make, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        make()


# ---- measurements of a matrix ----------------------------------------------------------------


def test_trace_diagonal_and_entries():
    W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    close(grabs.trace(W), torch.trace(W))
    close(grabs.diagonal(W), torch.diag(W))
    close(grabs.diagonal(W, monomials=[{3: 1}, {1: 2}]), W[[1, 3], [1, 3]])
    close(grabs.diagonal(W, monomials=Monomial({2: 1})), W[2:3, 2])
    assert grabs.diagonal(W, monomials=Monomial()).shape == (0,)
    assert grabs.entry(W, 2) == W[2, 2]
    assert grabs.entry(W, np.int64(2), j=0) == W[2, 0]
    assert grabs.entry(W[:2], i=1, j=3) == W[1, 3]
    for result in (grabs.trace(W), grabs.diagonal(W), grabs.entry(W, 0)):
        assert result.untyped_storage().data_ptr() != W.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda W: grabs.trace(W),
            "trace: got W of shape (2, 3); valid is a square matrix; try the Gram matrix, OTHER_",
        ),
        (lambda W: grabs.diagonal(W), "diagonal: got W of shape (2, 3); valid is a square matrix"),
        (lambda W: grabs.trace(W[0]), "trace: got W of shape (3,); valid is a square matrix"),
        (
            lambda W: grabs.diagonal(W.T @ W, monomials={3: 1}),
            "diagonal: the monomial $x_{3}$ has the index 3, but d=3; valid are",
        ),
        (lambda W: grabs.diagonal(W.T @ W, monomials=[2]), "diagonal: bad monomial 2: a monomial"),
        (
            lambda W: grabs.entry(W, i=2),
            "entry: got i=2, but W has the shape (2, 3); valid are 0 to 1",
        ),
        (lambda W: grabs.entry(W, 0, j="b"), "entry: got j='b', but W has the shape (2, 3)"),
        (lambda W: grabs.entry(W, -1, j=3), "2 errors"),
    ],
)
def test_errors_about_a_matrix(measure, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        measure(torch.ones(2, 3))


# ---- in a sweep ------------------------------------------------------------------------------


def draws(bsz, gen):
    return lambda step: (torch.randn(bsz, 3, generator=gen), torch.ones(bsz))


def small(**settings):
    settings = {"MAX_ITER": 1, "N_SAMPLES": 4, "WIDTH": 5, "LOSS_CHECKPOINTS": []} | settings
    return Sweep("s", {}, batchfn=draws, **settings)


def test_settings_choose_function_arguments_and_matrix(model):
    named = named_grabs(
        small(
            grabs={"own": scaled_corner},
            OTHER_MODEL_GRABS={
                "trace": "readin_gram_trace",
                "out": "trace",
                "last": "gram_trace",
                "corner": "entry",
                "mine": itself,
            },
            OTHER_MODEL_KWARGS={"last": {"layer": -1}, "corner": {"i": 0, "j": 1}, "own": {"i": 2}},
            OTHER_MODEL_GRAM={
                "trace": False,
                "out": {"source": "out", "concat_outside": "False"},
                "corner": {"use_raw": True},
                "own": True,
                "mine": "true",
            },
        )
    )
    first, last = model[0].weight.detach(), model[3].weight.detach()
    values = {alias: call(grab, {"model": model}) for alias, grab in named.items()}
    assert named["trace"] is grabs.readin_gram_trace
    close(values["trace"], first.square().sum())
    close(values["out"], last.square().sum())
    close(values["last"], last.square().sum())
    close(values["corner"], first[0, 1])
    close(values["own"], first[:, 2].square().sum())
    close(values["mine"], first.T @ first)


def test_all_errors_show_in_the_probe_at_once():
    sweep = small(
        OTHER_MODEL_GRABS={"b": "trace", "c": "weight", "d": "weight"},
        OTHER_MODEL_KWARGS={"c": {"lair": 1}, "bb": {}},
        OTHER_MODEL_GRAM={"b": {"source": "up"}, "d": True, "dd": True},
    )
    with pytest.raises(SpecError) as caught:
        probe(sweep)
    for message in (
        "5 errors",
        "OTHER_MODEL_KWARGS: no grab is called 'bb' (did you mean 'b'?)",
        "OTHER_MODEL_GRAM: no grab is called 'dd'",
        "grab 'b': got source='up'; valid is 'in'",
        "grab 'c': weight: takes no argument 'lair' (did you mean 'layer'?); it takes effective, l",
        "grab 'd': weight: takes no weight matrix",
    ):
        assert message in str(caught.value)


def test_a_grab_of_a_matrix_without_one_says_what_it_needs():
    with pytest.raises(SpecError, match="trace needs 'W'"):
        probe(small(OTHER_MODEL_GRABS={"t": "trace"}))
