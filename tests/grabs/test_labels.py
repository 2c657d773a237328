"""The decorator that names what a grab measures: labels, errors, and what stays as it was."""

import functools
import inspect
import re

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

import mlpsubmit
from mlpsubmit import Monomial, Sweep, grab, grabs
from mlpsubmit.arguments import declared, function_name
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.named_grabs import named_grab, on_test_set
from mlpsubmit.results.labels import LabelledGrab, Labels, labels_of, mismatch
from mlpsubmit.spec.fingerprint import setting_digest


def norms(model, scale=1.0):
    """Return the norm of each layer.

    More of it.
    """
    return torch.stack([scale * p.norm() for p in model.parameters()])


def batches(bsz, gen):
    return lambda step: (torch.zeros(bsz, 2), torch.zeros(bsz))


def sweep(axes=None, **grabs):
    return Sweep("s", axes=axes or {}, batchfn=batches, grabs=grabs)


def test_the_function_stays_as_it_is():
    marked = grab(dims=("layer",), units="nats")(norms)
    model = nn.Linear(2, 1)
    torch.testing.assert_close(marked(model), norms(model))
    torch.testing.assert_close(marked(model=model, scale=2.0), 2 * norms(model))
    assert declared(marked) == {"model", "scale"}
    assert inspect.signature(marked) == inspect.signature(norms)
    assert marked.__name__ == function_name(marked) == "norms"
    assert marked.__doc__ == norms.__doc__
    assert labels_of(norms) == Labels()


def test_labels_are_kept_through_partials_decorators_pickles_and_methods():
    marked = grab(dims="layer", coords=[1, 2], units="nats")(norms)
    expected = Labels(("layer",), {"layer": (1, 2)}, "nats", "norm of each layer")
    assert labels_of(marked) == expected
    assert labels_of(functools.partial(marked, scale=3)) == expected
    assert labels_of(named_grab(marked, arguments={"scale": 3})) == expected
    assert labels_of(cloudpickle.loads(cloudpickle.dumps(marked))) == expected

    @functools.wraps(marked)
    def timed(*args, **kwargs):
        return marked(*args, **kwargs)

    assert labels_of(timed) == expected
    # What is given again replaces the part.
    assert labels_of(grab(units="bits")(marked)).units == "bits"
    assert labels_of(grab(units="bits")(marked)).coords == {"layer": (1, 2)}
    assert labels_of(grab(dims="depth")(marked)) == Labels(
        ("depth",), {}, "nats", "norm of each layer"
    )

    class Holder:
        factor = 3

        @grab(dims="layer")
        def measure(self, model):
            return [self.factor]

    assert labels_of(Holder().measure).dims == ("layer",)
    assert declared(Holder().measure) == {"model"}
    assert Holder().measure(None) == [3]


def test_it_decorates_lambdas_partials_and_without_arguments():
    assert labels_of(grab(norms)).long_name == "norm of each layer"
    assert grab(dims="x")(lambda model: [1])(None) == [1]
    partial = grab(dims="layer")(functools.partial(norms, scale=2.0))
    assert declared(partial) == {"model", "scale"}
    assert function_name(partial) == "norms"
    assert labels_of(partial).long_name == ""  # the docstring of functools.partial says nothing
    assert partial.keywords == {"scale": 2.0}


def test_keys_do_not_depend_on_labels_but_the_fingerprint_of_a_sweep_does():
    assert setting_digest(grab(dims="layer")(norms)) == setting_digest(norms)
    plain, one, two = sweep(n=norms), sweep(n=grab(dims="a")(norms)), sweep(n=grab(dims="b")(norms))
    every = np.arange(1)
    assert plain.keys(every).tolist() == one.keys(every).tolist() == two.keys(every).tolist()
    assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3

    @grab(dims="a")
    def recursive(n=2):
        return 1 if n == 0 else recursive(n - 1)

    marked = setting_digest(recursive)

    def recursive(n=2):
        return 1 if n == 0 else recursive(n - 1)

    assert setting_digest(recursive) == marked


def test_units_and_names_per_key():
    labels = labels_of(
        grab(dims={"w": "layer"}, units={"w": "nats"}, long_name={"w": "weights"})(norms)
    )
    assert labels.dims_of("w", 1) == ("layer",)
    assert labels.dims_of("other", 1) is None
    assert labels.attributes_of("w") == {"long_name": "weights", "units": "nats"}
    assert labels.attributes_of("other") == {}
    assert Labels.of_json(labels.as_json()) == labels


def test_coordinates_are_numbers_or_texts():
    given = {"a": np.arange(3.0), "b": [Monomial({0: 1}), None], "c": range(2), "d": [True, 2]}
    labels = labels_of(grab(dims=("a", "b", "c", "d"), coords=given)(lambda: 0))
    assert labels.coords == {
        "a": (0.0, 1.0, 2.0),
        "b": ("$x_{0}$", "None"),
        "c": (0, 1),
        "d": (True, 2),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dims": 3}, r"dims: got 3; should be names such as dims=\('layer',\)"),
        ({"dims": ("a b",)}, r"dims: got \('a b',\)"),
        ({"dims": ("a", "a")}, r"dims: got 'a' twice"),
        ({"dims": ("step",)}, r"dims: got 'step', which the results have already"),
        ({"dims": {"k": ("step",)}}, r"dims: got 'step'"),
        ({"dims": "a", "coords": {"b": [1]}}, r"coords: got 'b', which is none of the dims \(a\)"),
        ({"coords": [1]}, r"coords: got \[1\] for 0 dims"),
        ({"dims": ("a", "b"), "coords": [1]}, r"coords: got \[1\] for 2 dims; should be a mapping"),
        ({"dims": "a", "coords": {"a": 3}}, r"coords: got 3 along 'a'; should be a list"),
        ({"dims": "a", "coords": {"a": []}}, r"coords: got 0 values along 'a'; should be 1 to"),
        ({"dims": "a", "coords": [[1, 2]]}, r"got \[\[1, 2\]\] along 'a'; should be a list"),
        ({"dims": "a", "coords": [1.0, float("nan")]}, r"along 'a'; should be finite"),
        ({"units": 3}, r"units: got 3; should be a text, as in units='nats'"),
        ({"long_name": " "}, r"long_name: got ' '; should be a text"),
        ({"units": "seconds"}, r"units: got 'seconds', which xarray reads back .*; try 's'"),
        ({"units": {"k": "days since 1970"}}, r"units: got 'days since 1970'"),
    ],
)
def test_bad_labels_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        grab(**given)(norms)


def test_all_errors_at_once_and_what_is_no_function():
    with pytest.raises(SpecError, match=r"3 errors") as caught:
        grab(dims=("step",), coords={"b": [1]}, units="hours")(norms)
    assert all(text.startswith("grab: ") for text in caught.value.errors)
    with pytest.raises(SpecError, match=r"grab: got 'trace'; should decorate a function"):
        grab(units="nats")("trace")


def test_a_dimension_has_no_name_of_an_axis_or_a_grab():
    marked = grab(dims=("noise",))(norms)
    with pytest.raises(SpecError, match=r"grab 'n': its dimension 'noise' and the axis 'noise'"):
        Sweep("s", axes={"noise": [1]}, batchfn=lambda noise: batches, grabs={"n": marked})
    with pytest.raises(SpecError, match=r"dimension 'WIDTH' and the axis 'width' have one name"):
        sweep({"WIDTH": [1, 2]}, n=grab(dims="WIDTH")(norms))
    with pytest.raises(SpecError, match=r"dimension 'width_lr' and the axis 'width_lr'"):
        sweep({("WIDTH", "LR"): [(1, 0.1)]}, n=grab(dims="width_lr")(norms))
    with pytest.raises(SpecError, match=r"its dimension 'm' has the name of the grab 'm'"):
        sweep(n=grab(dims="m")(norms), m=norms)
    with pytest.raises(SpecError, match=r"grabs 'a' and 'b': their coords along 'x' differ"):
        sweep(a=grab(dims="x", coords=[1])(norms), b=grab(dims="x", coords=[2])(norms))
    named = {"OTHER_MODEL_GRABS": {"n": "weight_norms"}}
    with pytest.raises(SpecError, match=r"grab 'n': its dimension 'layer' and the axis 'layer'"):
        Sweep("s", {"layer": [0]}, batchfn=batches, grabs={"t": grabs.gram_trace}, **named)
    sweep({"LR": [0.1]}, n=grab(dims="width")(norms))  # WIDTH is no axis


def test_what_does_not_fit_the_labels():
    labels = labels_of(grab(dims=("a", "b"), coords={"a": [1, 2]})(norms))
    assert mismatch(labels, {None: (2, 3)}) == ""
    assert mismatch(labels, {None: (1, 3)}) == ""  # of another config it may be larger
    assert "has 1 dimensions, but its dims ('a', 'b') name 2" in mismatch(labels, {None: (2,)})
    assert "3 values along 'a', but its coords name 2" in mismatch(labels, {None: (3, 3)})
    both = {"x": (2, 3), "y": (2, 4)}
    assert "4 values along 'b' under 'y', and 3 elsewhere" in mismatch(labels, both)
    by_key = labels_of(grab(dims={"weights": "layer"})(norms))
    assert "no dictionary, but its labels are given for the keys 'weights'" in mismatch(
        by_key, {None: (2,)}
    )
    assert "name 'weights' (did you mean 'weight'?)" in mismatch(by_key, {"weight": (2,)})
    assert mismatch(by_key, {"other": (2,)}) == ""  # another config may have it


def test_grabs_of_the_library_name_their_layers():
    for name in ("weight_norms", "spectral_norms", "distance_from_init", "gradient_norms"):
        assert labels_of(getattr(grabs, name)).dims == ("layer",)
        assert labels_of(named_grab(name)).long_name
        assert not isinstance(getattr(grabs, name), LabelledGrab)
    stats = labels_of(on_test_set("preactivation_stats"))
    assert stats.dims == ("layer", "statistic")
    assert len(stats.coords["statistic"]) == 4
    assert mlpsubmit.grab is grabs.grab
    assert re.search("grab", repr(grabs.grab))


def test_dimensions_that_an_array_may_lack():
    labels = labels_of(grabs.empirical_ntk).of_grab("k")
    assert labels.dims_of(None, 2) == ("k_sample", "k_other_sample")
    assert labels.dims_of(None, 4)[2:] == ("k_output", "k_other_output")
    assert Labels.of_json(labels.as_json()) == labels
    assert not mismatch(labels, {None: (3, 3)})
    assert not mismatch(labels, {None: (3, 3, 2, 2)})
    assert "which has 1 dimensions" in mismatch(labels, {None: (3,)})
    # Other dims are those of an array that has all of them.
    other = labels_of(grab(dims=("a", "b"))(grabs.empirical_ntk))
    assert "name 2" in mismatch(other, {None: (3, 3, 2, 2)})


def test_dimensions_of_a_grab_with_any_name_are_its_own():
    labels = labels_of(grabs.bias)
    assert labels.of_grab("first layer's").dims == ("first_layer_s_output",)
    assert labels.of_grab("1st").dims == ("grab_1st_output",)


X0, X3, PAIR = Monomial({0: 1}), Monomial({3: 2}), Monomial({0: 1, 3: 1})


@pytest.mark.parametrize(
    ("function", "settings", "expected"),
    [
        (grabs.monomial_coefficients, {"monomials": X0}, ("$x_{0}$",)),
        (grabs.monomial_coefficients, {"basis": [X3, PAIR]}, ("$x_{3}^2$", "$x_{0}x_{3}$")),
        (
            functools.partial(grabs.monomial_coefficients, basis=[X3]),
            {"axes": {"monomials": [X0, PAIR]}},
            ("$x_{3}^2$",),
        ),
        (grabs.monomial_coefficients, {"axes": {"monomials": [X0, PAIR]}}, None),
        (grabs.monomial_coefficients, {"monomials": X0, "axes": {"basis": [X3, PAIR]}}, None),
        (grabs.monomial_coefficients, {"basis": [{0: -1}]}, None),  # refused when it is measured
        (grabs.gram_diagonal, {"monomials": PAIR}, (0, 3)),
        (grabs.readin_gram_diagonal, {"monomials": [X3]}, (3,)),
        (grabs.readin_gram_diagonal, {}, None),
        (named_grab("diagonal", matrix="gram", arguments={"monomials": PAIR}), {}, (0, 3)),
        (on_test_set("monomial_coefficients", basis=[X0]), {}, ("$x_{0}$",)),
        (grab(units="nats")(functools.partial(grabs.gram_diagonal, monomials=X3)), {}, (3,)),
    ],
)
def test_coordinates_that_follow_from_arguments(function, settings, expected):
    labels = Sweep("s", batchfn=batches, grabs={"c": function}, **settings).labels["c"]
    assert labels.coords == ({} if expected is None else {labels.dims[0]: expected})
