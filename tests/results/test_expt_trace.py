from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpsubmit.results.expt_trace import ExptTrace

GENERATIONS = [
    ("vals", "valshape"),
    ("config2outcome", "outcome_shape"),
    ("measurements", "val_shape"),
]


@pytest.fixture
def trace():
    """Widths out of order, trial 1 of width 64 missing."""
    trace = ExptTrace(["width", "trial"])
    trace[256, 0] = 1.0
    trace[64, 0] = 2.0
    trace[256, 1] = 3.0
    return trace


def test_slices_are_sorted_and_masked(trace):
    full = trace[256, :]
    assert full.tolist() == [[1.0, 3.0]]
    assert not isinstance(full, np.ma.MaskedArray)
    both = trace[:, :]
    assert isinstance(both, np.ma.MaskedArray)
    assert both.tolist() == [[2.0, None], [1.0, 3.0]]


def test_one_measurement_is_squeezed():
    trace = ExptTrace(["width"])
    trace[64] = [[1.0, 2.0]]
    assert trace[64].tolist() == [1.0, 2.0]
    assert trace[:].tolist() == [1.0, 2.0]
    trace[(128,)] = [[3.0, 4.0]]
    assert trace[:].tolist() == [[[1.0, 2.0]], [[3.0, 4.0]]]


def test_complex_measurements_stay_complex():
    trace = ExptTrace(["a"])
    trace[0], trace[1] = 1j, 2
    assert trace[:].tolist() == [1j, 2]
    assert trace[0] == 1j


def test_what_is_missing_is_a_key_error(trace):
    with pytest.raises(KeyError, match="no measurement recorded for width=64, trial=1"):
        trace[64, 1]
    with pytest.raises(KeyError, match="no measurement recorded for width=7, trial=:"):
        trace[7, :]
    with pytest.raises(RuntimeError, match="must add items before getting"):
        ExptTrace(["a"])[:]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (64, 1.0, r"key \(64,\) has 1 elements, expected 2: \['width', 'trial'\]"),
        ((64, 1, 2), 1.0, "has 3 elements, expected 2"),
        ((64, 0), 1.0, r"key \(64, 0\) already exists: overwriting not supported"),
        ((64, None), 1.0, "elements must be int, float, str or tuple"),
        ((64, 1), [1.0, 2.0], r"measurement shape \(2,\) != expected \(\)"),
    ],
)
def test_wrong_measurements_are_refused(trace, key, value, message):
    with pytest.raises(ValueError, match=message):
        trace[key] = value


def test_the_first_measurement_must_be_numeric():
    trace = ExptTrace(["a"])
    with pytest.raises(ValueError, match="measurement must be numeric, got 'x'"):
        trace[0] = "x"
    trace[0] = 1.0
    assert trace[0] == 1.0


def test_keys_may_be_of_any_kind_that_expt_core_takes():
    trace = ExptTrace(["k", "n"])
    for key in [("x0", 1), ((1, 2), 2), (np.float64(0.5), 3), (np.int64(4), True)]:
        trace[key] = 1.0
        assert trace[key] == 1.0
    assert trace.get_axis("k") == [0.5, 4, (1, 2), "x0"]


def test_only_full_slices(trace):
    with pytest.raises(ValueError, match=r"slice start, stop .* not supported \(variable 'trial'"):
        trace[64, 1:]


def test_get_and_axes_go_by_name(trace):
    assert trace.get(width=256).tolist() == trace.get(width=256, trial=None).tolist() == [[1, 3]]
    assert trace.get(trial=1, width=256) == 3.0
    assert trace.get_axis("width") == [64, 256]
    assert trace.is_written(width=64, trial=0)
    assert not trace.is_written(width=64, trial=1)
    with pytest.raises(ValueError, match=r"variable 'depth' not found; valid are \['width'"):
        trace.get_axis("depth")
    with pytest.raises(ValueError, match=r"unknown variables \['depth'\]; valid are \['width'"):
        trace.get(depth=3)
    with pytest.raises(ValueError, match=r"must specify the variables \['trial'\]"):
        trace.is_written(width=64)


def test_set_takes_every_generation_of_its_argument(trace):
    trace.set(5.0, width=1, trial=0)
    trace.set(val=6.0, width=2, trial=0)
    trace.set(outcome=7.0, width=3, trial=0)
    assert [trace[width, 0].item() for width in (1, 2, 3)] == [5, 6, 7]
    with pytest.raises(ValueError, match="set takes one measurement, got 0"):
        trace.set(width=4, trial=0)
    with pytest.raises(ValueError, match="set takes one measurement, got 2"):
        trace.set(1.0, val=2.0, width=4, trial=0)


@pytest.mark.parametrize("name", ["val", "outcome"])
def test_the_names_of_the_measurement_are_refused(name):
    with pytest.raises(ValueError, match=rf"name '{name}' disallowed: set\({name}=...\) gives"):
        ExptTrace(["a", name])


def test_names_come_as_a_list_and_are_copied():
    with pytest.raises(ValueError, match="var_names must be a list, got tuple"):
        ExptTrace(("a",))
    names = ["a"]
    first, second = ExptTrace.multi_init(2, names)
    names.append("b")
    first[0] = 1.0
    assert first.var_names == ["a"]
    assert not second.is_written(a=0)
    assert repr(first) == "ExptTrace(['a'], measurements=1, shape=())"


@pytest.mark.parametrize(("name", "shape"), GENERATIONS)
def test_every_generation_reads_and_is_read(trace, name, shape):
    """Each looks up its own two names in what `serialize` gives, and nothing else."""
    written = trace.serialize()
    assert written["var_names"] == ["width", "trial"]
    assert written[name] == {(256, 0): 1.0, (64, 0): 2.0, (256, 1): 3.0}
    assert written[shape] == ()
    only = {"var_names": ["width", "trial"], name: written[name], shape: list(written[shape])}
    assert ExptTrace.deserialize(only)[256, :].tolist() == [[1.0, 3.0]]


def test_the_measurements_are_pickled_once(trace):
    data = pickle.loads(pickle.dumps(trace.serialize()))
    assert data["vals"] is data["measurements"] is data["config2outcome"]


def test_a_deserialised_trace_is_independent_and_goes_on(trace):
    data = trace.serialize()
    copy = ExptTrace.deserialize(data)
    copy[64, 1] = 4.0
    assert not trace.is_written(width=64, trial=1)
    assert (64, 1) not in data["vals"]
    with pytest.raises(ValueError, match="measurement shape"):
        copy[64, 2] = [1.0]
    assert ExptTrace.deserialize(ExptTrace(["a"]).serialize()).get_axis("a") == []


def test_what_is_missing_in_serialised_data_is_named():
    with pytest.raises(ValueError, match="missing key in serialized data: 'var_names'"):
        ExptTrace.deserialize({"vals": {}, "valshape": None})
    with pytest.raises(ValueError, match=r"got \['vals', 'var_names'\]; .* 'vals' with 'valshape'"):
        ExptTrace.deserialize({"var_names": [], "vals": {}})


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 4), st.sampled_from("abc")), st.floats(-9, 9), min_size=1
    )
)
def test_a_full_slice_is_the_sorted_grid(cells):
    trace = ExptTrace(["n", "c"])
    for key, value in cells.items():
        trace[key] = value
    rows, columns = (sorted({key[i] for key in cells}) for i in (0, 1))
    grid = np.ma.asarray(trace[:, :]).reshape(len(rows), len(columns))
    assert grid.tolist() == [[cells.get((row, column)) for column in columns] for row in rows]
