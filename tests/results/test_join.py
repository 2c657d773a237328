"""Runs joined along their axes: as one run of the union, whatever they have in common."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlpsubmit.errors import UserError
from mlpsubmit.results import Dimension, Layout, to_dataset, write
from mlpsubmit.results.join import Part, join, joined
from mlpsubmit.results.labels import Labels
from mlpsubmit.results.source import FixedSetting
from mlpsubmit.results.values import scalar_hash
from tests.results.conftest import Failure as FakeFailure
from tests.results.conftest import FakePack, FakeSource, make_layout, make_pack

# ---- parts of one run ----------------------------------------------------------------------------


def is_distinct(layout: Layout) -> bool:
    """Whether the points along every axis differ, also as text."""
    return all(
        len({tuple(map(str, point)) for point in points(dimension)}) == dimension.size
        for dimension in layout.dimensions
    )


def points(dimension: Dimension) -> list[tuple]:
    return list(zip(*dimension.coordinates.values(), strict=True))


def cut(layout: Layout, source: FakeSource, kept: list[list[int]], fixes: bool):
    """The run that has only some positions of each axis; axes of one value become settings."""
    dims, fixed = [], {}
    for dimension, own in zip(layout.dimensions, kept, strict=True):
        values = {k: tuple(v[i] for i in own) for k, v in dimension.coordinates.items()}
        if fixes and len(own) == 1:
            fixed |= {name: FixedSetting(one) for name, (one,) in values.items()}
        else:
            dims.append(Dimension(dimension.name, values))
    places = {
        int(np.ravel_multi_index(at, layout.shape) if at else 0): n
        for n, at in enumerate(itertools.product(*kept))
    }
    return (
        replace(
            layout,
            dimensions=tuple(dims),
            included=layout.included_points()[list(places)],
            settings={**layout.settings, **fixed},
        ),
        moved(source, places),
    )


def moved(source: FakeSource, places: dict[int, int]) -> FakeSource:
    """The results of some configs at other places."""
    packs = []
    for pack in source.held:
        rows = [n for n, i in enumerate(pack["index"].tolist()) if i in places]
        if rows:
            arrays = {
                name: pack[name] if name in ("step", "eval_step", "grab_step") else pack[name][rows]
                for name in pack.arrays()
            }
            arrays["index"] = np.array([places[i] for i in pack["index"][rows].tolist()])
            packs.append(FakePack(pack.name, arrays))
    failed = [
        replace(failure, indices=np.array([places[int(i)] for i in own]))
        for failure in source.failed
        if (own := [i for i in failure.indices if int(i) in places])
    ]
    return FakeSource(packs, failed)


def in_order_of(dataset: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """The dataset with the dimensions and the values of axes in the order of another one."""
    for dim in other["status"].dims:
        names = [str(name) for name, c in other.coords.items() if c.dims == (dim,)]
        own, wanted = (
            list(zip(*(map(str, one[name].values) for name in names), strict=True))
            for one in (dataset, other)
        )
        assert sorted(own) == sorted(wanted)
        dataset = dataset.isel({dim: [own.index(point) for point in wanted]})
    return dataset.transpose(*other["status"].dims, ...)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_parts_of_a_run_are_joined_to_what_they_are_parts_of(fakes, data):
    layout = data.draw(fakes.layouts().filter(is_distinct))
    source = data.draw(fakes.sources(layout))
    mixed = len({"step" in pack.held for pack in source.held}) > 1
    indices = [i for pack in source.held for i in pack["index"].tolist()]
    assume(not mixed or len(set(indices)) == len(indices))  # final values are at the last step
    boxes = [
        [
            sorted(data.draw(st.sets(st.integers(0, dimension.size - 1), min_size=1)))
            for dimension in layout.dimensions
        ]
        for _ in range(data.draw(st.integers(2, 3)))
    ]
    fixes = data.draw(st.booleans())
    parts = [cut(layout, source, box, fixes and n > 0) for n, box in enumerate(boxes)]

    # The independent route: the whole run, without what is in no part.
    union = [sorted({i for box in boxes for i in box[d]}) for d in range(len(layout.shape))]
    inside = np.zeros(layout.shape, dtype=bool)
    for box in boxes:
        inside[np.ix_(*box)] = True
    inside = inside.ravel() & layout.included_points()
    whole, results = cut(replace(layout, included=inside), source, union, False)
    done = {int(i): int(i) for i in np.flatnonzero(whole.included)}
    kept = {i for box in parts_places(layout, boxes, union) for i in box}
    expected = to_dataset(whole, moved(results, {i: i for i in kept | set(done)}))

    named = [Part(f"r{n}", own, found) for n, (own, found) in enumerate(parts)]
    found = to_dataset(*joined(named))
    expected = in_order_of(expected.drop_attrs(deep=False), found)
    found = found.drop_attrs(deep=False)
    for name in found.data_vars:  # whose texts say which axis was new
        xr.testing.assert_identical(found[name].drop_attrs(), expected[name].drop_attrs())
        assert found[name].attrs == expected[name].attrs
    assert set(found.variables) == set(expected.variables)

    again = in_order_of(join([to_dataset(own, results) for own, results in parts]), found)
    assert set(again.data_vars) == set(found.data_vars)
    if mixed:
        return  # final values among traces may be at other steps
    for name in found.data_vars:  # whose dimension may be step where it was eval_step
        np.testing.assert_array_equal(again[name].values, found[name].values)


def parts_places(layout, boxes, union):
    """Yield the places in the union of all points of each box."""
    shape = [len(own) for own in union]
    for box in boxes:
        at = [[own.index(i) for i in kept] for own, kept in zip(union, box, strict=True)]
        yield [
            int(np.ravel_multi_index(one, shape)) if one else 0 for one in itertools.product(*at)
        ]


# ---- single cases --------------------------------------------------------------------------------


def part(run, *, settings=None, packs=None, thresholds=(), attributes=None, **axes):
    layout = make_layout(thresholds, attributes={"run": run, **(attributes or {})}, **axes)
    fixed = {name: FixedSetting(value) for name, value in (settings or {}).items()}
    size = math.prod(layout.shape)
    held = [make_pack(range(size), thresholds=len(thresholds))] if packs is None else packs
    return Part(run, replace(layout, settings=fixed), FakeSource(held))


def test_values_are_sorted_where_those_of_every_run_are():
    up = to_dataset(*joined([part("a", w=[4, 16]), part("b", w=[8])]))
    assert up.w.values.tolist() == [4, 8, 16]
    assert up.steps.values.tolist() == [10, 10, 11]
    down = to_dataset(*joined([part("a", w=[4, 2]), part("b", w=[3])]))
    assert down.w.values.tolist() == [4, 3, 2]
    neither = to_dataset(*joined([part("a", w=[4, 2, 3]), part("b", w=[1])]))
    assert neither.w.values.tolist() == [4, 2, 3, 1]
    texts = to_dataset(*joined([part("a", act=["relu", "abs"]), part("b", act=["cos"])]))
    assert texts.act.values.tolist() == ["relu", "abs", "cos"]


def test_settings_that_differ_become_an_axis():
    runs = [
        part("a", settings={"lr": 0.1, "seed": 1}, w=[4]),
        part("b", settings={"lr": 0.2}, w=[8]),
    ]
    runs[1].layout.settings["seed"] = FixedSetting(1)
    ds = to_dataset(*joined(runs))
    assert ds.status.dims == ("lr", "w")
    assert ds.lr.values.tolist() == [0.1, 0.2]
    assert ds.status.values.tolist() == [["done", "excluded"], ["excluded", "done"]]
    assert (ds.attrs["n_configs"], ds.attrs["seed"]) == (2, 1)
    assert "lr" not in ds.attrs["settings"].split()


def test_several_settings_that_differ_are_zipped_unless_there_are_all_combinations():
    pairs = [("sgd", 0.1), ("adam", 0.2)]
    runs = [part(f"{n}", settings={"opt": o, "lr": v}) for n, (o, v) in enumerate(pairs)]
    ds = to_dataset(*joined(runs))
    assert ds.status.dims == ("opt_lr",)
    assert (ds.opt.values.tolist(), ds.lr.values.tolist()) == (["sgd", "adam"], [0.1, 0.2])
    assert ds.attrs["n_excluded"] == 0
    every = itertools.product(["sgd", "adam"], [0.1, 0.2])
    runs = [part(f"{n}", settings={"opt": o, "lr": v}) for n, (o, v) in enumerate(every)]
    assert to_dataset(*joined(runs)).status.dims == ("opt", "lr")


def test_functions_of_one_name_are_told_apart_by_their_hashes():
    codes = ["aaaa", "", "aaaa"]
    runs = []
    for n, code in enumerate(codes):
        one = part(f"r{n}", trial=[n])
        one.layout.settings["batchfn"] = FixedSetting("mine", hash=code)
        runs.append(one)
    ds = to_dataset(*joined(runs))
    assert ds.batchfn.values.tolist() == ["mine (aaaa)", f"mine ({scalar_hash('mine')[:8]})"]
    assert ds.status.sel(batchfn="mine (aaaa)").values.tolist() == ["done", "excluded", "done"]


def test_functions_on_axes_are_told_apart_by_their_hashes():
    def on_axis(name, codes, **axes):
        one = part(name, f=["fa", "fb"], **axes)
        first, *others = one.layout.dimensions
        first = replace(first, hashes={"f": codes})
        layout = replace(one.layout, dimensions=(first, *others))
        return replace(one, layout=layout)

    runs = [on_axis("a", ("1111", "2222"), w=[4]), on_axis("b", ("3333", "2222"), w=[8])]
    runs.append(part("c", settings={"f": "fb"}, w=[16]))
    runs[2].layout.settings["f"] = FixedSetting("fb", hash="4444")
    ds = to_dataset(*joined(runs))
    assert ds.f.values.tolist() == ["fa (1111)", "fb (2222)", "fa (3333)", "fb (4444)"]
    there = (ds.status == "done").sel(w=[4, 8, 16]).transpose("f", "w").values
    assert there.astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    datasets = [to_dataset(one.layout, one.source) for one in runs]
    assert json.loads(datasets[0].f.attrs["value_hashes"]) == {"fa": "1111", "fb": "2222"}
    xr.testing.assert_identical(join(datasets), ds)
    selected = join([datasets[0].sel(f=["fb"]), datasets[1]])
    assert selected.f.values.tolist() == ["fb", "fa"]
    assert join([selected, datasets[2]]).f.values.tolist() == ["fb (2222)", "fa", "fb (4444)"]


def functions(run, labels, hashes, **settings):
    """A part with an axis of functions."""
    one = part(run, settings=settings, f=labels)
    layout = replace(one.layout, dimensions=(Dimension("f", {"f": labels}, {"f": hashes}),))
    return replace(one, layout=layout)


def test_positions_of_functions_on_the_axes_of_runs_tell_nothing_apart():
    """`f #0` of one run is `f #1` of another."""
    runs = [
        functions("a", ("f #0", "f #1"), ("1111", "2222")),
        functions("b", ("f #0", "g #1", "f #2"), ("2222", "4444", "3333")),
        functions("c", ("f",), ("2222",)),
    ]
    runs[1].source.held[0].held |= {"steps": np.array([11, 12, 13])}
    runs[1].source.held[0].held |= {"train_loss": np.array([2.0, 3.0, 4.0])}
    runs[1].source.held[0].held |= {"test_loss": runs[0].source.held[0]["test_loss"][[1, 1, 1]]}
    runs[2].source.held[0].held |= {
        name: runs[0].source.held[0][name][1:] for name in ("steps", "train_loss", "test_loss")
    }
    ds = to_dataset(*joined(runs))
    assert ds.f.values.tolist() == ["f (1111)", "f (2222)", "g", "f (3333)"]
    assert ds.steps.values.tolist() == [10, 11, 12, 13]
    datasets = [to_dataset(one.layout, one.source) for one in runs]
    xr.testing.assert_identical(join(datasets), ds)
    # Those that are joined already are joined again, in any order.
    for again in (join([ds, *datasets]), join([join(datasets[:2]), datasets[2]])):
        xr.testing.assert_equal(again, ds)
    turned = join([datasets[2], ds])
    assert turned.f.values.tolist() == ["f (2222)", "f (1111)", "g", "f (3333)"]
    assert turned.attrs["n_configs"] == 4


@pytest.mark.parametrize(
    ("one", "two", "values"),
    [
        (2**53, 2**53 + 1, [2**53, 2**53 + 1]),
        (2.0**53, 2**53, None),
        (1, True, ["1", "True"]),
        (True, False, [True, False]),
        (1, "1", [f"1 ({scalar_hash(1)[:8]})", f"1 ({scalar_hash('1')[:8]})"]),
        (0.5, 2**53 + 1, ["0.5", str(2**53 + 1)]),
        ("a\0", r"a\0", [rf"a\0 ({scalar_hash(one)[:8]})" for one in ("a\0", r"a\0")]),
        (math.nan, math.nan, None),
        (math.nan, 1.0, [math.nan, 1.0]),
    ],
)
def test_settings_are_equal_as_values_are_and_not_as_texts(one, two, values):
    runs = [part("a", settings={"v": one}, t=[0]), part("b", settings={"v": two}, t=[1])]
    ds = to_dataset(*joined(runs))
    assert ds.status.dims == (("t",) if values is None else ("v", "t"))
    if values is None:
        assert (ds.attrs["n_configs"], ds.attrs["v"]) == (2, one) or math.isnan(ds.attrs["v"])
    else:
        np.testing.assert_array_equal(ds.v.values, values)
    datasets = [to_dataset(run.layout, run.source) for run in runs]
    again = join(datasets)
    xr.testing.assert_equal(again, ds)
    on_axis = part("a", v=[one], t=[0])
    along = to_dataset(*joined([on_axis, runs[1]]))
    assert along.sizes["v"] == len(values or [one])
    assert along.attrs["n_configs"] == ds.attrs["n_configs"]
    xr.testing.assert_equal(join([again, datasets[0]]), ds)


_KINDS = ("loss_checkpoints", "percent_thresholds")


def thresholds_of(run, trial, **axes):
    """A part with thresholds of one kind, along an axis if they are several lists."""
    ((kind, lists),) = axes.items()
    settings = dict.fromkeys({*_KINDS} - {kind}, "None")
    if len(lists) == 1:
        settings[kind] = str(lists[0])
        return part(run, settings=settings, thresholds=lists[0], trial=[trial])
    one = part(run, settings=settings, **{kind: list(map(str, lists))}, trial=[trial])
    one.source.held[0].held["timekeys"] = np.zeros((len(lists), 1), dtype=np.int64)
    layout = replace(one.layout, thresholds=(0.0,), threshold_axis=(kind, lists))
    return replace(one, layout=layout)


def test_thresholds_of_both_kinds_are_on_one_axis():
    """A config has one of the two: their product would have points that no launch can have."""
    losses = thresholds_of("a", 0, loss_checkpoints=[(0.4,)])
    percents = thresholds_of("b", 0, percent_thresholds=[(0.5,), (0.3,)])
    several = thresholds_of("c", 1, loss_checkpoints=[(0.4,), (0.2,)])
    for runs in ([losses, percents], [percents, losses], [percents, several], [several, percents]):
        ds = to_dataset(*joined(runs))
        assert ds.status.dims[0] in ("_".join(_KINDS), "_".join(reversed(_KINDS)))
        pairs = zip(ds.loss_checkpoints.values, ds.percent_thresholds.values, strict=True)
        set_ = [pair for pair in pairs if "None" in pair and pair != ("None", "None")]
        assert len(set_) == ds.sizes[ds.status.dims[0]]
        for (loss, percent), (value,) in zip(set_, ds.threshold_value.values, strict=True):
            assert (percent if loss == "None" else loss) == f"({value},)"
        xr.testing.assert_equal(join([to_dataset(one.layout, one.source) for one in runs]), ds)


def test_a_third_setting_keeps_its_own_axis():
    runs = []
    for n, (lr, kind) in enumerate(itertools.product([0.1, 0.2], _KINDS)):
        one = thresholds_of(f"r{n}", 0, **{kind: [(0.4,)]})
        one.layout.settings["lr"] = FixedSetting(lr)
        runs.append(one)
    ds = to_dataset(*joined(runs))
    assert set(ds.status.dims) == {"lr", "_".join(reversed(_KINDS)), "trial"}
    assert ds.attrs["n_excluded"] == 0


def test_thresholds_along_no_setting_are_refused():
    one = thresholds_of("a", 0, loss_checkpoints=[(0.4,), (0.2,)])
    other = thresholds_of("b", 1, loss_checkpoints=[(0.3,)])
    renamed = replace(one, layout=replace(one.layout, threshold_axis=("mine", [(0.4,), (0.2,)])))
    wanted = "different thresholds on train_loss, and no setting that differs; collect them again"
    with pytest.raises(UserError, match=wanted):
        joined([renamed, other])


def test_equal_configs_with_timekeys_of_fewer_thresholds_are_equal():
    """In a dataset timekeys are padded to the most thresholds of any of its configs."""
    two = thresholds_of("a", 0, loss_checkpoints=[(0.4,)])
    more = part("b", thresholds=(0.2, 0.1), settings={"loss_checkpoints": "(0.2, 0.1)"}, trial=[0])
    both = join([to_dataset(one.layout, one.source) for one in (two, more)])
    again = join([both, to_dataset(two.layout, two.source)])
    xr.testing.assert_equal(again, both)


def test_grabs_at_steps_of_their_own_have_their_own_dimension():
    """Also if the union of the steps of the losses is that of the grabs."""

    def traced(run, w, steps):
        arrays = {"step": steps, "train_loss": [[1.0] * len(steps)]}
        arrays |= {"test_loss": [[1.0] * len(steps)], "grab_step": [0, 1, 2]}
        return part(run, packs=[make_pack([0], **arrays, grab__g=np.ones((1, 3)))], w=[w])

    runs = [traced("a", 4, [0, 1, 2]), traced("b", 8, [0, 2])]
    ds = to_dataset(*joined(runs))
    assert ds.g.dims == ("w", "grab_step")
    again = join([to_dataset(one.layout, one.source) for one in runs])
    xr.testing.assert_identical(again, ds)
    assert again.results_hash == ds.results_hash


def test_an_axis_of_one_run_is_a_setting_of_another():
    zipped = Dimension("w_lr", {"w": (4, 8), "lr": (0.1, 0.2)})
    first = Part("a", Layout((zipped,), (), {}), FakeSource([make_pack([0, 1])]))
    second = part("b", settings={"lr": 0.2, "trial": 0}, w=[8, 16])
    second.source.held[0].held |= {
        name: np.array([first.source.held[0][name][1], first.source.held[0][name][1] + 1])
        for name in ("steps", "train_loss", "test_loss")
    }
    first.layout.settings["trial"] = FixedSetting(0)
    ds = to_dataset(*joined([first, second]))
    assert ds.status.dims == ("w_lr",)
    assert list(zip(ds.w.values, ds.lr.values, strict=True)) == [(4, 0.1), (8, 0.2), (16, 0.2)]
    assert (ds.status == "done").all()


def test_different_thresholds_are_numbered_as_along_an_axis():
    runs = [
        part("a", settings={"loss_checkpoints": "(0.5, 0.1)"}, thresholds=[0.5, 0.1], t=[0]),
        part("b", settings={"loss_checkpoints": "(0.3,)"}, thresholds=[0.3], t=[0, 1]),
    ]
    ds = to_dataset(*joined(runs))
    assert ds.timekeys.dims == ("loss_checkpoints", "t", "threshold")
    assert ds.threshold.values.tolist() == [0, 1]
    np.testing.assert_array_equal(ds.threshold_value, [[0.5, 0.1], [0.3, np.nan]])
    np.testing.assert_array_equal(ds.timekeys.isel(t=0), [[0, 1], [0, np.nan]])
    again = join([to_dataset(one.layout, one.source) for one in runs])
    xr.testing.assert_equal(again, ds)
    third = part("c", settings={"loss_checkpoints": "(0.3,)"}, thresholds=[0.3], t=[2])
    more = join([ds, to_dataset(third.layout, third.source)])
    assert more.status.sel(loss_checkpoints="(0.3,)").values.tolist() == ["done"] * 3
    np.testing.assert_array_equal(more.threshold_value, ds.threshold_value)


def test_grabs_of_only_some_runs_are_missing_elsewhere_and_said():
    def run(name, trial, **grabs):
        index = list(range(len(trial)))
        one = part(name, packs=[make_pack(index, **grabs)], trial=trial)
        functions = {grab.removeprefix("grab__"): FixedSetting("f") for grab in grabs}
        return replace(one, layout=replace(one.layout, functions=functions))

    first = run("a", [0, 1], grab__n=[1, 2], grab__both=[5, 6])
    second = run("b", [1, 2], grab__m=[3.0, 4.0], grab__k=[1, 1], grab__both=[6, 7])
    second.source.held[0].held |= {
        name: first.source.held[0][name][[1, 0]] for name in ("steps", "train_loss", "test_loss")
    }
    with pytest.warns(UserWarning, match="has no grab") as said:
        ds = to_dataset(*joined([first, second]))
    assert [str(one.message) for one in said] == [
        "run b has no grab 'n': its values are missing there",
        "run a has no grab 'm', 'k': their values are missing there",
    ]
    np.testing.assert_array_equal(ds.n, [1, 2, np.nan])  # of trial 1, too, which both have
    np.testing.assert_array_equal(ds.m, [np.nan, 3, 4])
    assert (ds.both.values.tolist(), ds.both.dtype) == ([5, 6, 7], np.int64)

    changed = {"both": FixedSetting("f", "cccc"), "n": FixedSetting("f")}
    other = replace(run("c", [3]), layout=replace(run("c", [3]).layout, functions=changed))
    with pytest.warns(UserWarning, match=r"grab 'both' is another function in run c than in run a"):
        joined([first, other])


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("aa", "aa", False),
        ("aa", "bb", True),
        ('{"d=1": "aa", "d=2": "bb"}', '{"d=2": "bb", "d=3": "cc"}', False),
        ('{"d=1": "aa", "d=2": "bb"}', '{"d=2": "cc"}', True),
        ('{"d=1": "aa"}', "cc", False),
    ],
)
def test_other_data_by_equal_settings_is_said(recwarn, one, two, said):
    runs = [
        part("a", attributes={"data_hash": one}, w=[4]),
        part("b", attributes={"data_hash": two}, w=[8]),
    ]
    joined(runs)
    texts = [str(warning.message) for warning in recwarn]
    assert texts == said * [
        "run b was trained on other data than run a, by equal settings (data_hash); they are "
        "joined all the same"
    ]
    for run, d in zip(runs, (1, 2), strict=True):
        run.layout.settings["d"] = FixedSetting(d)
    joined(runs)  # d tells why
    assert len(recwarn) == said


def test_results_that_differ_are_an_error_that_names_them():
    first = part("a", packs=[make_pack([0, 1, 2])], attributes={"torch": "2.8"}, w=[4, 8, 16])
    packs = [make_pack([0], grab__g=[[1.0]]), make_pack([1, 2])]
    second = part("b", packs=packs, attributes={"torch": "2.9"}, w=[4, 8, 16])
    second.source.held[1].held["train_loss"] = np.array([2.0, 3.5])
    second.source.held[1].held["steps"] = np.array([11, 13])
    second.source.held[0].held["test_loss"] = np.array([np.nan])
    with pytest.raises(UserError) as error:
        joined([first, second])
    assert str(error.value) == (
        "cannot join:\n"
        "run a and run b have different results for 2 configs:\n"
        "  w=4: test_loss 2.0 and nan\n"
        "  w=16: steps 12 and 13, train_loss 3.0 and 3.5\n"
        "  they were made with torch 2.8 and 2.9\n"
        "a joined dataset has one result per config; collect these runs separately, or, in Python, "
        "drop such configs from one of their datasets and join these: "
        "mlpsubmit.results.join.join([first, second.drop_sel(...)])"
    )
    datasets = [to_dataset(one.layout, one.source) for one in (first, second)]
    ok = join([datasets[0], datasets[1].drop_sel(w=[4, 16])])
    assert (ok.status == "done").all()


def test_what_was_selected_of_an_axis_tells_datasets_apart():
    whole = to_dataset(*joined([part("a", w=[4, 8], lr=[0.1, 0.3])]))
    for apart in ("w", "lr"):
        selected = [whole.isel({apart: 1}), whole.isel({apart: 0})]
        again = join(selected)
        assert again.status.dims == (apart, "w" if apart == "lr" else "lr")
        xr.testing.assert_equal(again.transpose("w", "lr", ...).sortby(apart), whole)
    named = whole.rename(w="threshold_of_mine")  # no variable of the thresholds
    again = join([named.isel(threshold_of_mine=0), named.isel(threshold_of_mine=1)])
    assert again.threshold_of_mine.values.tolist() == [4, 8]
    codes = {"value_hashes": json.dumps({"fa": "1111", "fb": "2222"})}
    functions = whole.assign_coords(w=("w", ["fa", "fb"], codes))
    again = join([functions.sel(w="fb"), functions.sel(w="fa")])
    assert again.w.values.tolist() == ["fb", "fa"]
    assert json.loads(again.w.attrs["value_hashes"]) == {"fa": "1111", "fb": "2222"}


def test_final_values_among_traces_are_equal_wherever_those_end():
    """A run with an axis ONLYTHRESHOLDS has both; its last step is that of all its configs."""

    def mixed(run, last, w):
        final = make_pack([0], grab__g=np.ones((1, 2, 2)))
        steps = np.array([0, last])
        traces = {"step": steps, "grab_step": steps, "grab__g": np.ones((1, 2, 2, 2))}
        traced = make_pack([1], **traces, train_loss=[[3.0, 1.0]], test_loss=[[3.0, 2.0]])
        return part(run, packs=[final, traced], w=[1, w])

    alone = part("c", packs=[make_pack([0], grab__g=np.ones((1, 2, 2)))], w=[1])
    runs = [alone, mixed("a", 4, 2), mixed("b", 12, 4)]
    ds = join([to_dataset(one.layout, one.source) for one in runs])
    assert (ds.w.values.tolist(), ds.step.values.tolist()) == ([1, 2, 4], [0, 4, 9, 12])
    assert ds.train_loss.max("step").values.tolist() == [1, 3, 3]
    assert ds.g.dims == ("w", "step", "g_dim0", "g_dim1")
    runs[2].source.held[0].held["train_loss"] = np.array([1.5])
    with pytest.raises(UserError, match=r"run a and run b .*\n  w=1: train_loss\n"):
        join([to_dataset(one.layout, one.source) for one in runs[1:]])


def test_what_one_run_has_not_finished_is_that_of_the_other():
    first = part("a", packs=[make_pack([0])], t=[0, 1, 2])
    first.source.failed.append(FakeFailure(np.array([1, 2]), "ValueError: boom"))
    second = part("b", packs=[make_pack([1])], t=[0, 1, 2])
    for one in (joined([first, second]), joined([second, first])):
        ds = to_dataset(*one)
        assert ds.status.values.tolist() == ["done", "done", "failed"]
        assert ds.error.values.tolist() == ["", "", "ValueError: boom"]
    datasets = [to_dataset(one.layout, one.source) for one in (first, second)]
    assert join(datasets).error.values.tolist() == ["", "", "ValueError: boom"]


def test_all_lacking_axes_are_listed():
    runs = [part("a", w=[4], d=[1, 2]), part("b", w=[4, 8])]
    runs.append(part("c", settings={"d": 1}, lr=[0.1]))
    with pytest.raises(UserError) as error:
        joined(runs)
    lines = str(error.value).removeprefix("cannot join: ").split("\n")
    assert (
        "run a has the axis d, and run b neither that axis nor a setting d; launch it with "
        "d=VALUE, or join other runs"
    ) in lines
    assert [line.partition(";")[0] for line in lines] == [
        "run c has the axis lr, and run a neither that axis nor a setting lr",
        "run c has the axis lr, and run b neither that axis nor a setting lr",
        "run a has the axis w, and run c neither that axis nor a setting w",
        "run a has the axis d, and run b neither that axis nor a setting d",
    ]


def test_a_union_that_is_too_large_is_refused():
    def long(name, other):
        axes = {axis: range(30) if axis == name else [0] for axis in "abcdefghij"}
        return part(other, packs=[], **axes)

    with pytest.raises(UserError, match=r"the product of the axes \(a 30, .* can be collected"):
        joined([long(name, name) for name in "abcdefghij"])


def test_what_is_no_dataset_of_collect_is_refused():
    whole = to_dataset(make_layout(w=[1, 2]), FakeSource([make_pack([0, 1])]))
    with pytest.raises(UserError, match=r"join: got no datasets; give at least one"):
        join([])
    assert join([whole]) is whole
    with pytest.raises(UserError, match=r"dataset number 1 has no status, steps; give whole"):
        join([whole, whole[["train_loss"]]])
    with pytest.raises(UserError, match=r"dataset number 0 has no values along w; keep the coord"):
        join([whole.drop_vars("w"), whole])


def test_attributes_say_of_every_run_what_differs(tmp_path):
    common = {"torch": "2.9", "sweep": "s"}
    runs = [
        part("b", attributes={**common, "command": "x", "device": "cpu"}, w=[4]),
        part("a", attributes={**common, "command": "y", "device": "H100"}, w=[8]),
    ]
    ds = to_dataset(*joined(runs))
    assert (ds.attrs["run"], ds.attrs["sweep"], ds.attrs["torch"]) == ("a+b", "s", "2.9")
    assert "command" not in ds.attrs
    assert ds.attrs["bit_identity"].startswith("joined of runs with different device: ")
    assert json.loads(ds.attrs["joined"]) == [
        {"run": "b", "sweep": "s", "command": "x", "device": "cpu"},
        {"run": "a", "sweep": "s", "command": "y", "device": "H100"},
    ]
    many = [part(f"r{n}", attributes={"command": "x" * 9000 + str(n)}, w=[n]) for n in range(9)]
    assert json.loads(to_dataset(*joined(many)).attrs["joined"])[8] == {"run": "r8"}


def labelled(run, w, values, **labels):
    one = part(run, packs=[make_pack([0], grab__g=[np.ones(len(values))])], w=[w])
    own = {"g": Labels(("lag",), {"lag": values}, **labels)}
    return replace(one, layout=replace(one.layout, labels=own))


def test_coordinates_of_grabs_that_differ_are_left_out_and_longer_ones_kept():
    runs = [labelled("a", 4, (1, 2)), labelled("b", 8, (1, 2, 5)), labelled("c", 16, (3, 4))]
    assert to_dataset(*joined(runs[:2])).lag.values.tolist() == [1, 2, 5]
    assert "lag" not in to_dataset(*joined(runs)).coords
    assert "lag" not in join([to_dataset(one.layout, one.source) for one in runs]).coords


def test_grabs_of_other_units_are_refused():
    runs = [labelled("a", 4, (1, 2), units="s"), labelled("b", 8, (1, 2), units="ms")]
    wanted = r"cannot join: the units of grab 'g' are 's' in run a, and 'ms' in run b; collect"
    with pytest.raises(UserError, match=wanted):
        joined(runs)


@pytest.mark.parametrize("ending", [".nc", ".zarr", ".parquet", ".csv", ".pkl"])
def test_every_format_has_the_joined_results(tmp_path, ending):
    def traced(run, w, steps):
        arrays = {"step": steps, "train_loss": [[1.0 * w] * len(steps)]}
        one = part(run, packs=[make_pack([0], **arrays, grab__g=[np.ones(w)])], w=[w])
        one.layout.settings["lr"] = FixedSetting(0.1)
        return replace(one, layout=replace(one.layout, labels={"g": Labels(("unit",))}))

    layout, source = joined([traced("a", 4, [0, 2]), traced("b", 2, [0, 1])])
    path = write(layout, source, tmp_path / f"all{ending}")
    assert write(layout, source, path) == path  # which is of the same runs
    if ending in (".nc", ".zarr"):
        opener = xr.open_dataset if ending == ".nc" else xr.open_zarr
        with opener(path) as opened:
            xr.testing.assert_identical(opened.load(), to_dataset(layout, source))
            assert opened.train_loss.sel(w=2).values.tolist()[:2] == [2, 2]
            assert opened.g.sizes["unit"] == 4
    with pytest.raises(UserError, match=r"results of run a\+b, not of run a; choose another name"):
        write(make_layout(w=[4], attributes={"run": "a"}), FakeSource(), path)
