"""Figures: what the artists of matplotlib hold, against numpy."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure
from scipy import stats

from mlpsubmit.batchfns import Monomial
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.results import Dimension, Layout, Thresholds, plot, to_dataset
from mlpsubmit.results._plot import drawn_into, plot_to_file, requested
from mlpsubmit.results.figures.estimates import ERRORBARS, estimate, t_quantile
from mlpsubmit.results.figures.page import CONTEXTS
from mlpsubmit.results.figures.request import KINDS, SCALES, Request
from mlpsubmit.results.figures.scales import fitting
from mlpsubmit.results.figures.text import length, wrapped

ROLES = ("x", "hue", "col", "row")


@pytest.fixture
def draw():
    """Draw a dataset, and return the panels; files are tested below."""

    def drawing(dataset, y=None, mean=(), **options):
        roles = {role: options.pop(role, None) for role in ROLES}
        asked = dataclasses.replace(requested(y, roles, mean), **options)
        return drawn_into(dataset, asked, Figure()).axes

    return drawing


def traced(fakes, layout, steps=50, test=0.0, stops=None, status=1):
    """All points finished; the loss of point i at step s is exp(-s / 9) + i (+ test).

    Point i stops after ``stops[i]`` steps; from there on it keeps its last value, as traces do.
    """
    at = np.arange(steps)
    taken = np.full(layout.size, steps) if stops is None else np.array(stops)
    shown = np.minimum(at, taken[:, None] - 1)
    losses = np.exp(-shown / 9) + np.arange(layout.size)[:, None]
    held = {"step": at, "train_loss": losses, "test_loss": losses + test, "steps": taken}
    held["status"] = np.broadcast_to(np.uint8(status), layout.size)
    return to_dataset(layout, fakes.Source([fakes.pack(range(layout.size), **held)]))


def final(fakes, thresholds, timekeys, points=None, **axes):
    layout = fakes.layout(thresholds=thresholds, **axes)
    points = range(layout.size) if points is None else points
    keys = np.array(timekeys).reshape(len(points), len(thresholds))
    pack = fakes.pack(points, thresholds=len(thresholds), timekeys=keys)
    return to_dataset(layout, fakes.Source([pack]))


def visible(axes):
    return [one for one in axes.ravel() if one.get_visible()]


def figure_of(axes):
    return axes[0, 0].figure


def legend_texts(axes):
    legends = figure_of(axes).legends[::-1]  # that of the colours, which is above, first
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def legend_titles(axes):
    return [t for legend in figure_of(axes).legends if (t := legend.get_title().get_text())]


def up(axes):
    return figure_of(axes).get_supylabel()


def across(axes):
    return axes[-1, 0].get_xlabel()


def bands(panel):
    """The lower and the upper end of each band, by x."""
    found = []
    for band in panel.collections:
        if isinstance(band, PolyCollection):
            points = np.concatenate([path.vertices for path in band.get_paths()])
            ends = {x: points[points[:, 0] == x, 1] for x in np.unique(points[:, 0])}
            found.append({x: (float(y.min()), float(y.max())) for x, y in ends.items()})
    return found


# Which axis goes where


def test_curves_have_a_panel_a_colour_and_a_line_for_each_value(fakes, draw):
    layout = fakes.layout(width=[64, 256], act=["relu", "$tanh"], seed=[1])
    axes = draw(traced(fakes, layout))
    assert axes.shape == (1, 2)
    assert [panel.get_title() for panel in visible(axes)] == ["act = relu", r"act = \$tanh"]
    assert legend_titles(axes) == ["width"]
    assert legend_texts(axes) == ["64", "256"]
    first = axes[0, 0]
    assert (first.get_xscale(), first.get_yscale()) == ("log", "log")
    assert [line.get_ydata()[0] for line in first.lines] == [1, 3]
    assert all(line.get_xdata()[0] == 1 for line in first.lines)  # step + 1
    assert first.lines[0].get_color() != first.lines[1].get_color()
    assert across(axes) == "step + 1"


def test_the_axes_asked_for_have_their_roles_and_others_the_free_ones(fakes, draw):
    dataset = final(fakes, [], [], a=[1, 2], b=[1, 2, 3], c=["x", "y"], d=[1, 2])
    axes = draw(dataset, x="a", col="b")
    assert axes.shape == (2, 3)
    assert legend_titles(axes) == ["c"]
    assert [text.get_text() for panel in axes[:, -1] for text in panel.texts] == ["d = 1", "d = 2"]
    np.testing.assert_array_equal(axes[1, 2].lines[1].get_ydata(), [2 + 11, 2 + 23])


def test_what_has_no_role_is_averaged_and_named(fakes, draw):
    dataset = final(fakes, [], [], a=[1, 2], b=[1, 2], c=[1, 2], d=[1, 2], e=[1, 2], trial=[0, 1])
    axes = draw(dataset)
    assert legend_texts(axes)[-1] == "mean and standard error over e, trial (4)"
    axes = draw(dataset, mean=["b", "c"])
    assert legend_texts(axes)[-1] == "mean and standard error over b, c, trial (8)"
    values = dataset.test_loss.mean(["b", "c", "trial"]).values
    np.testing.assert_allclose(axes[0, 0].lines[0].get_ydata(), values[:, 0, 0])


def test_trials_may_have_a_role(fakes, draw):
    axes = draw(final(fakes, [], [], lr=[0.1, 0.2], trial=range(3)), hue="trial")
    assert (legend_titles(axes), legend_texts(axes)) == (["trial"], ["0", "1", "2"])
    assert bands(axes[0, 0]) == []


def test_the_axis_with_most_numbers_goes_across(fakes, draw):
    dataset = final(fakes, [], [], act=["relu", "tanh"], lr=[0.1, 0.2], depth=[1, 2, 3])
    axes = draw(dataset)
    assert across(axes) == "depth"
    assert legend_texts(axes) == ["relu", "tanh"]
    axes = draw(final(fakes, [], [], act=["relu", "tanh"]))
    axes[0, 0].figure.draw_without_rendering()
    assert [label.get_text() for label in axes[0, 0].get_xticklabels()] == ["relu", "tanh"]
    assert axes[0, 0].lines[0].get_linestyle() == "None"  # no order, so no line


def test_numbers_that_are_too_many_for_a_legend_have_a_scale(fakes, draw):
    axes = draw(traced(fakes, fakes.layout(lr=np.geomspace(0.01, 1, 12).tolist())))
    bar = figure_of(axes).axes[-1]
    assert bar.get_ylabel() == "lr"
    assert legend_texts(axes) == []
    assert len({line.get_color() for line in axes[0, 0].lines}) == 12


@pytest.mark.slow
def test_words_that_are_too_many_are_thinned_and_it_is_said(fakes, tmp_path):
    dataset = traced(fakes, fakes.layout(a=range(3), b=[f"b{i}" for i in range(14)]))
    drawn = plot_to_file(dataset, Request(roles={"hue": "a"}), tmp_path / "figure.png")
    assert len(visible(drawn.axes)) == 9
    assert drawn.notes == ["9 of 14 values of b are shown; choose them with sel"]


def test_a_zipped_axis_is_labelled_with_all_of_its_members(fakes, draw):
    zipped = Dimension("width_lr_act", {"width": (64, 256), "lr": (1.0, 0.25), "act": ("a", "a")})
    layout = Layout((zipped, Dimension("b", {"b": (1, 2)})), (), {})
    dataset = to_dataset(layout, fakes.Source([fakes.pack(range(4))]))
    axes = draw(dataset)
    axes[0, 0].figure.draw_without_rendering()
    assert across(axes) == "width, lr"
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["64\n1", "256\n0.25"]
    axes = draw(dataset, x="b")
    assert (legend_titles(axes), legend_texts(axes)) == (["width, lr"], ["64, 1", "256, 0.25"])


def test_members_that_a_role_does_not_tell_apart_get_one_of_their_own(fakes, draw):
    zipped = Dimension("width_lr", {"width": (64, 64, 256), "lr": (0.1, 0.2, 0.1)})
    dataset = to_dataset(Layout((zipped,), (), {}), fakes.Source([fakes.pack(range(3))]))
    axes = draw(dataset, x="width")
    assert (legend_titles(axes), legend_texts(axes)) == (["lr"], ["0.1", "0.2"])
    axes = draw(dataset, x="width", mean="lr")
    assert legend_texts(axes) == ["mean and standard error over lr (1–2)"]


def search(fakes):
    rng = np.random.default_rng(0)
    lr, gamma = np.exp(rng.normal(size=(2, 30)))
    members = {"lr": tuple(lr), "gamma": tuple(gamma), "width": (16, 64) * 15}
    layout = Layout((Dimension("sample", members), Dimension("trial", {"trial": (0, 1)})), (), {})
    return to_dataset(layout, fakes.Source([fakes.pack(range(60))]))


def test_a_random_search_is_a_scatter_of_its_configs(fakes, draw):
    dataset = search(fakes)
    axes = draw(dataset)
    (points,) = axes[0, 0].collections
    expected = np.stack([np.repeat(dataset.lr.values, 2), dataset.test_loss.values.ravel()], 1)
    np.testing.assert_allclose(points.get_offsets(), expected)
    assert across(axes) == "lr (with width)"
    assert figure_of(axes).axes[-1].get_ylabel() == "gamma (with width)"
    assert legend_texts(axes) == ["a point per trial"]


# Means, bands and ends


@pytest.mark.parametrize("errorbar", ERRORBARS)
def test_bands_are_those_of_numpy(fakes, draw, errorbar):
    keys = np.array([[10, 30, 35], [400, 500, 900]])
    axes = draw(final(fakes, [0.1], keys, width=[64, 256], trial=range(3)), errorbar=errorbar)
    panel = axes[0, 0]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), keys.mean(1))
    if errorbar == "range":
        low, high = keys.min(1), keys.max(1)
    else:
        scale = {"sd": 1, "se": 3**-0.5, "ci": 3**-0.5 * stats.t.ppf(0.975, 2)}[errorbar]
        low, high = (keys.mean(1) + sign * scale * keys.std(1, ddof=1) for sign in (-1, 1))
    (band,) = bands(panel)
    np.testing.assert_allclose([band[64.0], band[256.0]], np.stack([low, high], 1), rtol=1e-4)
    assert legend_texts(axes) == [f"mean and {ERRORBARS[errorbar]} over trial (3)"]


@pytest.mark.parametrize("freedom", [1, 2, 10, 11, 20, 100])
def test_the_quantiles_of_students_distribution(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_an_estimate_of_one_value_has_no_band():
    one = estimate(np.array([3.0]), "sd")
    assert (one.mean, one.low, one.high, one.count) == (3, 3, 3, 1)


def test_means_are_over_what_crossed_and_say_so(fakes, draw):
    keys = [[1, 10], [1, 30], [1, -1], [1, 400], [-1, -1], [-1, -1]]
    dataset = final(fakes, [0.2, 0.1], keys, width=[64, 1024, 256], trial=range(2))
    axes = draw(dataset)
    panel = axes[0, 0]
    means, hollow, none = panel.lines
    assert means.get_xdata().tolist() == [64, 256, 1024]
    np.testing.assert_array_equal(means.get_ydata(), [20, np.nan, 400])
    assert (hollow.get_xdata().tolist(), hollow.get_ydata().tolist()) == ([1024], [400])
    assert hollow.get_markerfacecolor() == "white"
    assert (none.get_xdata().tolist(), none.get_marker()) == ([256], "x")
    assert legend_texts(axes) == [
        "mean and standard error over trial (1–2)",
        "mean over those that crossed",
        "none crossed",
    ]
    assert (across(axes), up(axes)) == ("width", "steps to threshold 0.1")
    assert figure_of(axes).get_suptitle() == ""


def test_a_missing_trial_is_not_one_that_did_not_cross(fakes, tmp_path):
    dataset = final(fakes, [0.1], [[10], [-1], [20]], range(3), width=[64, 256], trial=range(2))
    drawn = plot_to_file(dataset, Request(), tmp_path / "figure.png")
    means, hollow = drawn.axes[0, 0].lines
    assert means.get_ydata().tolist() == [10, 20]
    assert hollow.get_xdata().tolist() == [64]
    assert drawn.status == "of 4 configs 1 has no result yet"


def test_the_threshold_is_the_last_that_half_of_the_configs_crossed(fakes, draw):
    keys = [[1, 5, -1], [2, 6, -1], [3, -1, 9], [4, -1, -1]]
    dataset = final(fakes, [0.4, 0.2, 0.1], keys, lr=[0.1, 0.2, 0.3, 0.4])
    assert up(draw(dataset)) == "steps to threshold 0.2"
    axes = draw(dataset, sel={"threshold": 0.1})
    assert up(axes) == "steps to threshold 0.1"
    np.testing.assert_array_equal(axes[0, 0].lines[0].get_ydata(), [np.nan, np.nan, 9, np.nan])
    axes = draw(dataset, hue="threshold")
    assert (up(axes), legend_texts(axes)[:3]) == ("steps to threshold", ["0.1", "0.2", "0.4"])


def test_without_a_crossed_threshold_it_is_the_final_loss(fakes, draw):
    axes = draw(final(fakes, [0.2], [[-1], [-1]], lr=[0.1, 0.2]))
    assert up(axes) == "final test loss"
    packs = [fakes.pack([0, 1])]
    del packs[0].held["test_loss"]
    layout = dataclasses.replace(fakes.layout(lr=[0.1, 0.2]), tested=False, online=True)
    assert up(draw(to_dataset(layout, fakes.Source(packs)))).startswith("final train loss")


def test_thresholds_of_metrics_and_thresholds_that_are_an_axis(fakes, draw):
    layout = Layout(
        (Dimension("loss_checkpoints", {"loss_checkpoints": ("[1]", "[1, 0.5]")}),),
        (0, 1),
        {},
        threshold_axis=("loss_checkpoints", [[1.0], [1.0, 0.5]]),
        metrics=("accuracy",),
        metric_thresholds=(Thresholds("test_accuracy", (0.8, 0.9)),),
    )
    keys = {"timekeys": [[3, -1], [4, 8]], "timekeys.test_accuracy": [[5, 7], [6, -1]]}
    keys |= {f"metric.{which}_accuracy": [0.5, 0.9] for which in ("train", "test")}
    dataset = to_dataset(layout, fakes.Source([fakes.pack([0, 1], thresholds=2, **keys)]))
    axes = draw(dataset, sel={"threshold": 1})
    assert up(axes) == "steps to threshold 0.5"
    assert axes[0, 0].lines[0].get_ydata().tolist() == [8]  # the other has no such threshold
    axes = draw(dataset, y="timekeys_test_accuracy")
    assert up(axes) == "steps to test accuracy 0.9"
    assert draw(dataset, y="test_accuracy")[0, 0].get_yscale() == "linear"
    axes = draw(dataset, y="crossed_test_accuracy", sel={"threshold_test_accuracy": 0.9})
    assert up(axes) == "share that crossed test accuracy\n0.9"
    assert axes[0, 0].lines[0].get_ydata().tolist() == [1, 0]


def test_curves_end_where_configs_stopped(fakes, draw):
    axes = draw(traced(fakes, fakes.layout(lr=[0.1, 0.2]), stops=[20, 37]))
    assert [line.get_xdata()[-1] for line in axes[0, 0].lines] == [20, 37]
    sparse = traced(fakes, fakes.layout(lr=[0.1, 0.2]), stops=[20, 37]).isel(
        step=slice(None, None, 8)
    )
    axes = draw(sparse, xscale="linear")
    line = axes[0, 0].lines[0]
    assert line.get_xdata().tolist() == [
        0,
        8,
        16,
        19,
    ]  # the last step lies between two of the trace
    assert line.get_ydata()[-1] == np.exp(-19 / 9)
    assert across(axes) == "step"


def test_the_mean_of_curves_ends_with_the_first_and_others_go_on(fakes, draw):
    axes = draw(traced(fakes, fakes.layout(trial=range(3)), stops=[20, 50, 37]), errorbar="sd")
    mean, *tails = axes[0, 0].lines
    steps = np.arange(20)
    np.testing.assert_array_equal(mean.get_xdata(), steps + 1)
    np.testing.assert_allclose(mean.get_ydata(), np.exp(-steps / 9) + 1)
    assert [(line.get_xdata()[0], line.get_xdata()[-1]) for line in tails] == [(20, 50), (20, 37)]
    (band,) = bands(axes[0, 0])
    np.testing.assert_allclose(band[20.0], mean.get_ydata()[-1] + np.array([-1, 1]))
    assert legend_texts(axes)[-1] == "each trial, once the first has stopped"


def test_a_config_that_diverged_is_a_curve_of_its_own_and_does_not_set_the_scale(fakes, draw):
    at = np.arange(10)
    losses = np.array([np.exp(-at / 9.0), np.exp(-at / 9.0) + 1, 10.0 ** (4 * at)])
    losses[2, 5:] = np.nan
    held = {"step": at, "train_loss": losses, "test_loss": losses, "steps": [10, 10, 6]}
    pack = fakes.pack(range(3), status=np.array([1, 1, 2], np.uint8), **held)
    axes = draw(to_dataset(fakes.layout(trial=range(3)), fakes.Source([pack])))
    mean, diverged = axes[0, 0].lines
    np.testing.assert_allclose(mean.get_ydata(), np.exp(-at / 9) + 0.5)
    np.testing.assert_array_equal(diverged.get_ydata(), losses[2, :5])
    assert axes[0, 0].get_ylim()[1] < 10


def diverged_trials(fakes, **more):
    """Of each width the last trial diverged, where its loss was 1e20; of width 2 both did."""
    status = np.array([[1, 2], [2, 2]], np.uint8).ravel()
    losses = np.array([[0.5, 1e20], [1e20, 1e20]]).ravel()
    held = {"status": status, "train_loss": losses, "grab__gain": losses, "steps": [10, 5, 3, 2]}
    layout = fakes.layout(width=[1, 2], trial=[0, 1])
    return to_dataset(layout, fakes.Source([fakes.pack(range(4), **held, **more)]))


@pytest.mark.parametrize("y", ["train_loss", "gain"])
def test_final_values_of_configs_that_diverged_are_in_no_mean(fakes, draw, y):
    dataset = diverged_trials(fakes)
    axes = draw(dataset, y, x="width")
    np.testing.assert_array_equal(axes[0, 0].lines[0].get_ydata(), [0.5, np.nan])
    assert axes[0, 0].get_ylim()[1] < 1
    assert legend_texts(axes) == ["mean over those that are finite", "none finite"]
    np.testing.assert_array_equal(
        draw(dataset, "steps", x="width")[0, 0].lines[0].get_ydata(), [7.5, 2.5]
    )


def test_configs_without_the_value_that_goes_across_are_told(fakes, tmp_path):
    request = requested("steps", {"x": "train_loss", "hue": "width"}, (), {}, "scatter")
    drawn = plot_to_file(diverged_trials(fakes), request, tmp_path / "a.png")
    assert drawn.notes == ["3 configs have no final train loss, and no point"]


def test_crosses_of_several_colours_at_one_place_are_below_each_other(fakes, draw):
    dataset = final(fakes, [0.1], [5, -1, 7, -1, 9, -1], a=["x", "y", "z"], lr=[0.1, 0.2])
    for kind in ("line", "scatter"):
        panel = draw(dataset, x="lr", hue="a", kind=kind)[0, 0]
        crosses = [line for line in panel.lines if line.get_marker() == "x"]
        assert [line.get_xydata().tolist() for line in crosses] == [
            [[0.2, height]] for height in (1, 0.95, 0.9)
        ]
        highest = panel.transAxes.inverted().transform(panel.transData.transform([[0.1, 9]]))
        assert 0.8 < highest[0, 1] <= 0.85 + 1e-9  # the values begin below them


@pytest.mark.parametrize(
    ("decays", "scale"),
    [
        ([0, 1e-4, 1e-3, 0.1], "symlog"),
        ([0, *np.logspace(-5, 0, 12)], "symlog"),
        ([0, 0.1, 0.2, 0.5], "linear"),
        ([-1, 0, 100], "linear"),
        ([1e-4, 1e-3, 0.1], "log"),
    ],
)
def test_zero_has_a_place_below_the_values_of_a_logarithmic_axis(fakes, draw, decays, scale):
    dataset = final(fakes, [0.1], [[5 + n] for n in range(len(decays))], decay=decays)
    panel = draw(dataset)[0, 0]
    assert panel.get_xscale() == scale
    places = panel.transData.transform([(value, 5) for value in decays])[:, 0]
    assert (np.diff(places) > 10).all() or scale == "linear"
    steep = final(fakes, [0.1], [[5 * 10**n] for n in range(len(decays))], decay=decays)
    steep = draw(steep)[0, 0]
    assert (steep.get_yscale(), steep.get_xlim()) == ("log", panel.get_xlim())
    if scale == "symlog":
        figure_of(draw(dataset)).canvas.draw()
        texts = [tick.get_text() for tick in panel.get_xticklabels()]
        assert sum(map(bool, texts)) >= 4
    assert draw(dataset, xscale="linear")[0, 0].get_xscale() == "linear"


def test_a_logarithmic_axis_of_values_has_minor_ticks(fakes, draw):
    """With two labels at equal distances it would look linear."""
    panel = draw(final(fakes, [0.1], [60, 330], lr=[0.1, 0.2]), x="lr")[0, 0]
    assert panel.get_yscale() == "log"
    low, high = panel.get_ylim()
    assert sum(low < tick < high for tick in panel.get_yticks(minor=True)) > 3
    assert not len(panel.get_xticks(minor=True))


def test_another_test_loss_is_dashed(fakes, draw):
    axes = draw(traced(fakes, fakes.layout(width=[1, 2]), test=3.0))
    styles = [line.get_linestyle() for line in axes[0, 0].lines]
    assert styles == ["-", "-", "--", "--"]
    assert legend_texts(axes)[:2] == ["1", "2"]
    train, test = legend_texts(axes)[2:]
    assert (train[:10], test[:9]) == ("train loss", "test loss")


@pytest.mark.slow
def test_long_curves_are_thinned_and_many_too(fakes, tmp_path, draw):
    axes = draw(traced(fakes, fakes.layout(a=range(2)), steps=30_000))
    line = axes[0, 0].lines[0]
    assert 600 <= len(line.get_xdata()) <= 1200
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 30_000)
    dataset = traced(fakes, fakes.layout(a=range(1000)), steps=3)
    drawn = plot_to_file(dataset, Request(), tmp_path / "many.png")
    assert drawn.notes == [
        "400 of 1,000 curves are drawn; choose them with sel, or average an axis with mean"
    ]
    assert len(drawn.axes[0, 0].lines) == 400


# Kinds, labels and scales


@pytest.mark.parametrize("words", [{"y": "timekeys", "hue": "b"}, {"y": "b", "hue": "timekeys"}])
def test_a_heatmap_has_the_means_of_its_cells(fakes, draw, words):
    keys = np.array([[[10, 20], [30, -1], [-1, -1]], [[40, 50], [60, 70], [80, 90]]])
    dataset = final(fakes, [0.1], keys, b=[0.5, 1], a=[1, 2, 4], trial=[0, 1])
    axes = draw(dataset, kind="heatmap", x="a", **words)
    (mesh,) = (own for own in axes[0, 0].collections if isinstance(own, QuadMesh))
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan), [[15, 30, np.nan], [45, 65, 85]])
    assert [text.get_text() for text in axes[0, 0].texts] == ["1/2", "×"]
    assert (across(axes), up(axes)) == ("a", "b")
    assert figure_of(axes).axes[-1].get_ylabel() == "steps to threshold 0.1"
    assert legend_texts(axes) == [
        "mean over trial (1–2)",
        "1/2: one of two crossed",
        "none crossed",
    ]
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()] == ["1", "2", "4"]


def test_a_heatmap_of_small_cells_marks_them_with_circles(fakes, draw):
    keys = np.full((20, 20, 2), 5)
    keys[3, 4] = [5, -1]
    dataset = final(fakes, [0.1], keys, a=range(20), b=range(20), trial=[0, 1])
    axes = draw(dataset, kind="heatmap", x="a", y="b")
    (mark,) = axes[0, 0].texts
    assert (mark.get_text(), mark.xy) == ("○", (3, 4))
    assert "○: not all crossed" in legend_texts(axes)
    assert len(axes[0, 0].get_xticks()) == 8  # turned, with room for each


def test_a_band_that_is_asked_for_in_vain_is_told(fakes, tmp_path):
    dataset = final(fakes, [], [], lr=[0.1, 0.2])
    drawn = plot_to_file(dataset, Request(errorbar="sd"), tmp_path / "a.png")
    assert drawn.notes == ["no band of sd: no value is a mean of several configs"]


def test_means_of_many_curves_end_without_tails_and_it_is_told(fakes, tmp_path):
    dataset = traced(fakes, fakes.layout(trial=range(25)), stops=[20] + [40] * 24)
    drawn = plot_to_file(dataset, Request(), tmp_path / "a.png")
    assert len(drawn.axes[0, 0].lines) == 1
    assert drawn.notes == [
        "of more than 20 configs, only the mean is drawn until the first of them stopped, and at "
        "most 20 that diverged"
    ]


def test_a_scatter_may_have_a_measured_variable_across(fakes, draw):
    pack = fakes.pack(range(4), grab__moved=[1.0, 2, 3, 4])
    dataset = to_dataset(fakes.layout(lr=[0.1, 0.2], trial=[0, 1]), fakes.Source([pack]))
    axes = draw(dataset, x="moved", y="test_loss")
    (points,) = axes[0, 0].collections
    assert points.get_offsets().tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert legend_texts(axes) == ["0.1", "0.2", "a point per trial"]


def test_selected_values_are_in_the_title_and_nothing_else_is(fakes, draw):
    dataset = final(fakes, [], [], noise=[0.1, 0.3], act=["a,b", "c"], lr=[0.1, 0.2, 0.4])
    axes = draw(dataset, sel={"noise": "0.3", "act": "a,b"})
    assert figure_of(axes).get_suptitle() == "noise = 0.3, act = a,b"
    np.testing.assert_array_equal(axes[0, 0].lines[0].get_ydata(), [8, 9, 10])
    assert figure_of(draw(dataset, sel={"noise": 0.3}, title="")).get_suptitle() == ""
    assert figure_of(draw(dataset, title="mine")).get_suptitle() == "mine"


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("0.1,0.4", [0.1, 0.4]),
        ("0.15:0.4", [0.2, 0.4]),
        (":0.2", [0.1, 0.2]),
        ([0.2, 0.4], [0.2, 0.4]),
        (slice(0.2, None), [0.2, 0.4]),
        (np.float64(0.2), [0.2]),
        ("0.20", [0.2]),
    ],
)
def test_values_are_selected_one_by_one_or_as_a_range(fakes, draw, wanted, kept):
    dataset = final(fakes, [], [], lr=[0.1, 0.2, 0.4], b=[1, 2])
    axes = draw(dataset, hue="lr" if len(kept) > 1 else None, sel={"lr": wanted})
    assert legend_texts(axes) == ([f"{value:g}" for value in kept] if len(kept) > 1 else [])


def test_functions_and_monomials_are_selected_by_their_labels_and_axes_in_any_case(fakes, draw):
    monomial = Monomial({0: 1, 1: 2})
    dataset = final(fakes, [], [], act=["tanh", "relu"], target=[str(monomial), "b"], lr=[1, 2])
    axes = draw(dataset, x="LR", sel={"ACT": np.tanh, "target": monomial})
    assert figure_of(axes).get_suptitle() == f"act = tanh, target = {monomial}"
    assert axes[0, 0].lines[0].get_ydata().tolist() == [2, 3]


def test_numbers_are_selected_as_they_are_shown(fakes, draw):
    dataset = final(fakes, [], [], lr=np.geomspace(0.01, 1, 7).tolist(), b=[1, 2])
    assert figure_of(draw(dataset, sel={"lr": "0.0215"})).get_suptitle() == "lr = 0.0215443"


def test_mathematics_is_rendered_and_what_is_none_is_not(fakes, draw):
    texts = ["$x_{0}x_{1}$", r"$\frac{1$", "a $ b", "5$ or 6$", "tab\there", "日本" * 30]
    dataset = final(fakes, [], [], lr=[0.1, 0.2], target=texts[:5])
    axes = draw(dataset)
    assert legend_texts(axes) == [
        "$x_{0}x_{1}$",
        r"\$\frac{1\$",
        r"a \$ b",
        "5$ or 6$",
        r"tab\there",
    ]
    parsed = [
        text._preprocess_math(text.get_text())[1] for text in figure_of(axes).legends[0].get_texts()
    ]
    assert parsed == [True, False, False, True, False]


def test_whatever_a_name_is_the_figure_can_be_drawn(fakes, draw):
    names = [
        r"$\frac{1$",
        "a\x1b[31mb\n",
        "$" * 3,
        "{}" * 50,
        "x" * 300,
        "<b>&amp;</b>",
        "%s %(a)s",
    ]
    axes = {name: [1, 2] for name in names[:5]}
    dataset = final(fakes, [0.1], [[i + 1] for i in range(64)], **axes, trial=[0, 1])
    dataset.timekeys.attrs["long_name"] = r"$\sqrt{$"
    dataset = dataset.rename({"trial": names[5]}).assign_attrs(run=None)
    figure_of(draw(dataset, mean=[str(dataset.status.dims[0]), names[5]])).draw_without_rendering()
    pack = fakes.pack([0], **{f"grab__{names[6]}": [1.0], "grab__a": [2.0]})
    dataset = to_dataset(fakes.layout(), fakes.Source([pack]))
    figure_of(draw(dataset, y=[names[6], "a"])).draw_without_rendering()


def test_lines_of_a_label_are_broken_outside_mathematics():
    assert wrapped("one two three four", 9) == "one two\nthree\nfour"
    assert wrapped(r"the norm of $W x$ here", 9) == "the norm\nof $W x$\nhere"
    assert wrapped("x" * 20 + " y", 9) == f"{'x' * 8}…\ny"
    assert length(r"$\gamma_{0}x^2$") == 4


def test_attributes_name_axes_and_values(fakes, draw):
    dataset = final(fakes, [], [], lr=[0.1, 0.2], width=[1, 2, 3])
    dataset.lr.attrs["long_name"] = r"learning rate $\eta$"
    dataset.test_loss.attrs.update(long_name="risk", units="nats")
    axes = draw(dataset)
    assert legend_titles(axes) == [r"learning rate $\eta$"]
    assert up(axes) == "risk (nats)"


def ticks(panel, which):
    panel.figure.draw_without_rendering()
    axis = getattr(panel, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    placed = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [text.get_text() for at, text in placed if low <= at <= high]


def test_a_logarithmic_axis_has_several_ticks_where_it_spans_few_powers(fakes, draw):
    panel = draw(final(fakes, [0.1], [12, 300], lr=[1, 2]))[0, 0]
    assert ticks(panel, "y") == ["20", "50", "100", "200"]


def test_ticks_of_values_at_uneven_distances_leave_out_what_would_overlap(fakes, draw):
    rates = [0.01, 0.0102, 0.011, 0.1]
    panel = draw(final(fakes, [0.1], [1, 2, 3, 4], lr=rates))[0, 0]
    assert ticks(panel, "x") == ["0.01", "0.1"]
    assert fitting(np.array([0, 0.3, 1]), ["ab", "cd", "e"], 10, may_turn=True) == (
        [0, 1, 2],
        False,
    )
    long = ["a" * 9, "b" * 9, "c" * 9]
    assert fitting(np.array([0, 0.3, 1]), long, 10, may_turn=True) == ([0, 1, 2], True)
    assert fitting(np.array([0, 0.3, 1]), long, 10, may_turn=False) == ([0, 2], False)
    lines = [f"{text}\n1\n2" for text in long]
    assert fitting(np.array([0, 0.3, 1]), lines, 12, may_turn=True) == ([0, 2], True)


def test_underscores_of_mathematics_in_names_stay(fakes, draw):
    source = fakes.Source(
        [fakes.pack([0, 1], **{"grab__norm of $w_1$": [1.0, 2.0], "grab__a_b": [1, 2]})]
    )
    dataset = to_dataset(fakes.layout(lr=[0.1, 0.2]), source)
    assert up(draw(dataset, "norm of $w_1$")) == "norm of $w_1$"
    assert up(draw(dataset, "a_b")) == "a b"


def test_values_with_commas_and_control_characters_are_selected(fakes, draw):
    values = ["None", "(1, 2)", "(1, 2, 3)", "a\nb"]
    dataset = final(fakes, [0.1], range(8), opt=values, b=[1, 2])
    axes = draw(dataset, hue="opt", sel={"opt": "(1, 2, 3), None, (1, 2)"})
    assert legend_texts(axes) == ["None", "(1, 2)", "(1, 2, 3)"]
    assert draw(dataset, sel={"opt": r"a\nb"})[0, 0].figure.get_suptitle() == r"opt = a\nb"
    with pytest.raises(
        UserError, match=r"no value \(1; valid are None, \(1, 2\), \(1, 2, 3\), a\\nb"
    ):
        draw(dataset, sel={"opt": "None,(1, 4)"})


@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_an_axis_with_a_value_that_is_not_finite_has_all_its_values(fakes, draw, odd):
    panel = draw(final(fakes, [0.1], [3, 4, 5], noise=[1.0, odd, 10.0]))[0, 0]
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), [[0, 3], [1, 5], [2, 4]])
    assert ticks(panel, "x") == ["1", "10", str(odd)]


def test_numbers_in_labels_are_not_shortened_to_powers(fakes, draw):
    axes = draw(traced(fakes, fakes.layout(samples=[1000.0, 2048.0, 1e6])))
    assert legend_texts(axes) == ["1000", "2048", "1e+06"]


@pytest.mark.parametrize("kind", ["line", "heatmap"])
def test_a_tuple_is_one_line_below_an_axis_and_a_zipped_value_two(fakes, draw, kind):
    axes = {"betas": ["(0.9, 0.99)", "(0.5, 0.9)"], "b": [1, 2]}
    panel = draw(final(fakes, [0.1], [1, 2, 3, 4], **axes), x="betas", kind=kind)[0, 0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["(0.9, 0.99)", "(0.5, 0.9)"]
    zipped = Dimension("opt", {"betas": tuple(axes["betas"]), "lr": (0.1, 0.2)})
    layout = Layout((zipped, Dimension("b", {"b": (1, 2)})), (0.1,), {})
    pack = fakes.pack(range(4), thresholds=1, timekeys=np.arange(4).reshape(4, 1))
    dataset = to_dataset(layout, fakes.Source([pack]))
    panel = draw(dataset, x="betas", kind=kind)[0, 0]
    assert panel.get_xticklabels()[0].get_text() == "(0.9, 0.99)\n0.1"


def test_ticks_are_powers_of_ten(fakes, draw):
    dataset = final(fakes, [0.1], [[10], [30], [40_000]], lr=[0.01, 0.1, 1])
    panel = draw(dataset)[0, 0]
    assert ticks(panel, "x") == ["$10^{-2}$", "$10^{-1}$", "$10^{0}$"]
    assert ticks(panel, "y") == ["$10^{1}$", "$10^{2}$", "$10^{3}$", "$10^{4}$"]
    dataset = final(fakes, [0.1], [[100], [300], [400]], width=[16, 64, 300])
    panel = draw(dataset)[0, 0]
    assert (ticks(panel, "x"), ticks(panel, "y")) == (["16", "64", "300"], ["100", "200"])


def test_losses_that_reach_0_or_are_negative(fakes, draw):
    def drawn(losses):
        pack = fakes.pack([0], step=[0, 1, 2], train_loss=[losses], test_loss=[losses], steps=[3])
        return draw(to_dataset(fakes.layout(), fakes.Source([pack])))[0, 0]

    assert drawn([np.inf, 2.0, 0.0]).lines[0].get_ydata().tolist() == [2, 0]
    assert drawn([4.0, np.nan, 1.0]).lines[0].get_ydata().tolist() == [4, 1]
    assert drawn([4.0, np.nan, 1.0]).get_yscale() == "log"
    assert drawn([0.5, -1.0, -2.0]).get_yscale() == "linear"
    with pytest.raises(UserError, match="nothing to draw: train_loss has no finite value"):
        drawn([np.nan] * 3)


def test_bands_that_reach_0_do_not_stretch_a_logarithmic_scale(fakes, draw):
    keys = [[10], [12], [100], [5000]]
    panel = draw(final(fakes, [0.1], keys, lr=[0.1, 0.2], trial=[0, 1]), errorbar="ci")[0, 0]
    assert panel.get_yscale() == "log"
    assert panel.get_ylim()[0] > 1


def test_own_dimensions_of_a_grab_are_axes(fakes, draw):
    pack = fakes.pack(range(2), grab__norm=np.arange(6.0).reshape(2, 3))
    dataset = to_dataset(fakes.layout(lr=[0.1, 0.2]), fakes.Source([pack]))
    axes = draw(dataset, y="norm")
    assert across(axes) == "norm dim0"
    assert [line.get_ydata().tolist() for line in axes[0, 0].lines] == [[0, 1, 2], [3, 4, 5]]


def test_words_and_single_places_have_bars(fakes, draw):
    for axes in ({"act": ["relu", "tanh"]}, {}):
        keys = np.array([[10, 30], [40, 60]])[: 2 if axes else 1]
        panel = draw(final(fakes, [0.1], keys, **axes, trial=[0, 1]), errorbar="range")[0, 0]
        (bars,) = panel.collections
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == keys.tolist()
        assert panel.lines[0].get_ydata().tolist() == keys.mean(1).tolist()


def test_one_config_has_a_figure(fakes, draw):
    axes = draw(to_dataset(fakes.layout(), fakes.Source([fakes.pack([0])])))
    assert axes[0, 0].lines[0].get_ydata().tolist() == [2]
    assert len(draw(traced(fakes, fakes.layout(lr=[0.1])))[0, 0].lines) == 1


# Files


def test_a_pdf_has_fonts_that_journals_take_and_the_size_of_a_column(fakes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its figures are global state
    path = tmp_path / "figure.pdf"
    path.write_text("old")
    axes = plot(traced(fakes, fakes.layout(width=[1, 2])), out=path)
    content = path.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Type0" in content  # which embeds Type 42
    assert b"/Type3" not in content
    assert list(tmp_path.iterdir()) == [path]
    assert figure_of(axes).get_size_inches()[0] == 3.35
    axes = plot(traced(fakes, fakes.layout(width=[1, 2])), out=path, context="talk")
    assert figure_of(axes).get_size_inches().tolist() == [10, 5.6]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_results_give_the_same_bytes(fakes, tmp_path, ending):
    for name in ("a", "b"):
        plot(traced(fakes, fakes.layout(width=[1, 2])), out=tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_without_a_file_the_figure_is_one_of_pyplot(fakes):
    import matplotlib.pyplot as plt

    axes = plot(traced(fakes, fakes.layout(width=[1, 2])))
    assert plt.get_fignums() == [figure_of(axes).number]
    plt.close("all")
    with pytest.raises(UserError):
        plot(traced(fakes, fakes.layout(width=[1, 2])), hue="wdth")
    assert plt.get_fignums() == []


@pytest.mark.slow
def test_settings_of_the_user_are_left_as_they_are(fakes, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot(traced(fakes, fakes.layout(width=[1, 2])), out=tmp_path / "a.pdf")
    assert dict(mpl.rcParams) == before


def test_of_a_file_only_what_is_drawn_is_read(fakes, draw, tmp_path):
    traced(fakes, fakes.layout(lr=[0.1, 0.2], trial=[0, 1])).to_netcdf(
        tmp_path / "a.nc", engine="h5netcdf"
    )
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as dataset:
        assert len(draw(dataset, y="train_loss")[0, 0].lines) == 2
        assert dataset.test_loss.variable._in_memory is False


# Errors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # letters without a glyph, axes of 1e308
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_results_have_a_figure_or_an_error(fakes, data):
    layout = data.draw(fakes.layouts())
    dataset = to_dataset(layout, data.draw(fakes.sources(layout)))
    axes = [*map(str, dataset.status.dims), *map(str, dataset.status.coords), "step", "threshold"]
    y = data.draw(st.none() | st.sampled_from([str(name) for name in dataset.data_vars]))
    names = data.draw(st.lists(st.sampled_from(axes), max_size=2, unique=True))
    roles = dict(zip(data.draw(st.permutations(ROLES)), names, strict=False))
    request = dataclasses.replace(
        requested(y, roles, ()),
        kind=data.draw(st.sampled_from([None, *KINDS])),
        context=data.draw(st.sampled_from([*CONTEXTS])),
        xscale=data.draw(st.sampled_from([None, *SCALES])),
        yscale=data.draw(st.sampled_from([None, *SCALES])),
    )
    figure = Figure()
    with contextlib.suppress(UserError):
        drawn_into(dataset, request, figure)
        figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"x": "wdth"},
            "x: 'wdth' is not an axis of what is drawn (did you mean 'width'?); valid are",
        ),
        ({"x": "width", "hue": "width"}, "x, hue: width is given twice; keep one of them"),
        ({"col": "act", "mean": "act"}, "col, mean: act is given twice; keep one of them"),
        ({"y": "test_lss"}, "y: 'test_lss' is no variable (did you mean 'test_loss'?); valid are"),
        ({"y": "width"}, "y: 'width' is an axis; give it to x, hue, col or row; valid are"),
        ({"y": "status"}, "y: 'status' is text; valid are train_loss, test_loss, timekeys"),
        ({"y": "wave"}, "y: 'wave' has complex values, which have no order; valid are"),
        (
            {"y": ["steps", "steps"]},
            "y: got steps, steps; should be at most 4 variables, each once",
        ),
        ({"kind": "bar"}, "kind: got 'bar'; valid are line, heatmap, scatter"),
        (
            {"errorbar": "std"},
            "errorbar: got 'std'; valid are se, sd, range, ci, none (did you mean 'sd'?)",
        ),
        ({"context": "poster"}, "context: got 'poster'; valid are paper, talk"),
        ({"yscale": "symlog"}, "yscale: got 'symlog'; valid are linear, log"),
        (
            {"kind": "heatmap", "errorbar": "sd"},
            "errorbar: a heatmap shows means only; use",
        ),
        ({"kind": "scatter", "y": ["steps", "seconds"]}, "y: a scatter shows one variable; choose"),
        ({"kind": "scatter", "mean": "act"}, "mean: a scatter shows single configs; use kind line"),
        (
            {"sel": {"noise": 1}},
            "sel: 'noise' is not an axis; valid are width, act, lr, long, thres",
        ),
        ({"sel": {"width": 7}}, "sel: width has no value 7; valid are 4, 8"),
        ({"sel": {"width": "4,7"}}, "sel: width has no value 7; valid are 4, 8"),
        ({"sel": {"width": "5:7"}}, "sel: width has no value in 5:7; valid are 4, 8"),
        ({"sel": {"lr": 0.31}}, "sel: lr has no value 0.31; the nearest are 0.2, 0.3, 0.4, 0.5; a"),
        ({"sel": {"width": 4}, "x": "width"}, "x: sel chose one value of width; give it several"),
        (
            {"hue": "long"},
            "hue: long has 13 values that are not numbers; at most 10 colours can be",
        ),
        ({"hue": "long"}, "select some with sel (long=v0,v1), or give long to x"),
        ({"col": "long"}, "col: long has 13 values; at most 12 panels fit; select some with sel"),
        ({"row": "lr"}, "row: lr has 10 values; at most 6 panels fit; select some with sel"),
        ({"row": "act", "col": "lr"}, "col: lr has 10 values; at most 8 panels fit; select some"),
        (
            {"row": "act", "col": "lr", "context": "talk"},
            "col: lr has 10 values; at most 5 panels fit; select some with sel (lr=0.1,0.2), or "
            "give lr to x or hue",
        ),
        (
            {"x": "step"},
            "x: timekeys has one value per config, and no steps; with ONLYT",
        ),
        (
            {"x": "seconds", "kind": "line"},
            "x: seconds is measured and no axis; only a scatter",
        ),
        (
            {"x": "steps", "hue": "seconds"},
            "hue: 'seconds' is not an axis of what is drawn; valid are",
        ),
        (
            {"x": "wide", "y": "steps"},
            "x: wide varies along wide_dim0, and steps does not; sel",
        ),
        (
            {"kind": "heatmap", "sel": {"lr": 0.1, "act": "a", "long": "v0"}},
            "kind: a heatmap needs two axes with several values, and there is width; use kind line",
        ),
        (
            {"x": "act", "xscale": "log"},
            "xscale: act has values that are not numbers; leave it out",
        ),
        ({"y": "zero", "yscale": "log"}, "yscale: log needs values above 0, and there are none"),
        (
            {"x": "threshold", "y": "steps"},
            "x: 'threshold' is not an axis of what is drawn; valid are",
        ),
        (
            {"sel": {"threshold": 0.1}},
            "nothing to draw: none of the finished configs that are selected crossed the "
            "threshold 0.1; choose an easier one with sel (threshold=0.2), or another y",
        ),
    ],
)
def test_errors_say_what_to_do_and_make_no_file(fakes, tmp_path, options, message):
    axes = {"width": [4, 8], "act": ["a", "b"], "lr": [i / 10 for i in range(1, 11)]}
    layout = fakes.layout(thresholds=[0.2, 0.1], **axes, long=[f"v{i}" for i in range(13)])
    keys = np.tile([5, -1], (layout.size, 1))
    grabs = {"wave": np.ones(520) * 1j, "zero": np.zeros(520), "wide": np.ones((520, 2))}
    held = {f"grab__{name}": values for name, values in grabs.items()}
    pack = fakes.pack(range(layout.size), thresholds=2, timekeys=keys, **held)
    dataset = to_dataset(layout, fakes.Source([pack]))
    with pytest.raises(UserError) as error:
        plot(dataset, out=tmp_path / "figure.png", **options)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_thresholds_there_are_no_steps_to_them(fakes, tmp_path):
    dataset = final(fakes, [], [], width=[4, 8])
    with pytest.raises(UserError, match="y: 'timekeys' has no values, as there is no threshold; "):
        plot(dataset, "timekeys", out=tmp_path / "a.png")


def test_all_errors_are_listed_at_once(fakes, tmp_path):
    dataset = final(fakes, [], [], width=[4, 8])
    with pytest.raises(UserError) as error:
        plot(dataset, "los", "wdth", kind="bar", sel={"lr": 1}, out=tmp_path / "a.png")
    lines = str(error.value).split("\n")
    assert lines[0] == "4 errors:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  - kind", "  - sel", "  - x", "  - y"]


def test_many_columns_leave_no_room_for_rows(fakes, draw):
    axes = draw(final(fakes, [], [], a=range(3), b=range(2), c=range(12), d=range(2)), col="c")
    assert axes.shape == (4, 3)
    assert legend_texts(axes)[-1] == "mean and standard error over d (2)"


def test_traces_and_single_values_are_not_in_one_figure(fakes, tmp_path):
    dataset = traced(fakes, fakes.layout(width=[1, 2]))
    with pytest.raises(UserError, match="train_loss has values along the training, and seconds"):
        plot(dataset, ["train_loss", "seconds"], out=tmp_path / "a.png")
    with pytest.raises(UserError, match=r"x: seconds has one value .* those along the training"):
        plot(dataset, "seconds", "step", out=tmp_path / "a.png")


def test_nothing_to_draw_yet(fakes, tmp_path):
    layout = fakes.layout(width=[1, 2, 3])
    failed = fakes.Source([], [fakes.Failure(np.array([1]), "ValueError: boom")])
    with pytest.raises(UserError) as error:
        plot(to_dataset(layout, failed), out=tmp_path / "a.png")
    assert str(error.value) == (
        "nothing to draw yet: of the 3 configs 1 failed and 2 have no result yet; see "
        "mlpsubmit status"
    )
    layout = fakes.layout(included=np.array([True, False]), width=[1, 2])
    dataset = to_dataset(layout, fakes.Source([fakes.pack([0])]))
    with pytest.raises(UserError, match="the selected values are of no config of the sweep"):
        plot(dataset, sel={"width": 2}, out=tmp_path / "a.png")
    with pytest.raises(UserError, match="plot: the dataset has no variable 'status'; give one"):
        plot(dataset.drop_vars("status"), out=tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_ending_is_refused(fakes, tmp_path):
    with pytest.raises(
        UserError, match=r"cannot draw a.gif: .* '.gif'; valid are .png, .pdf, .svg"
    ):
        plot(to_dataset(fakes.layout(), fakes.Source()), out=tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "losses",
    [
        [1e308, -1e308, 1.0],
        [1e308, 1e-308, 1.0],
        [5e-324, 5e-324, 5e-324],
        [1.7e308, 1.7e308, 1.6e308],
        [np.inf, 1e308, 1.0],
        [1.0, 1 + 2e-16, 1.0],
    ],
)
@pytest.mark.parametrize("curves", [True, False])
def test_values_of_any_size_are_drawn(fakes, tmp_path, curves, losses):
    dataset = traced(fakes, fakes.layout(width=[4, 8, 16], trial=[0, 1]), steps=3)
    dataset["train_loss"][:] = np.array(losses)[:, None, None]
    dataset = dataset.drop_vars("test_loss")
    roles = {} if curves else {"x": "width"}
    drawn = plot_to_file(dataset, requested("train_loss", roles, ()), tmp_path / "a.png")
    assert drawn.axes[0, 0].lines


def test_values_are_selected_as_they_are_shown(fakes, draw):
    lrs = [0.27384196342643613, 0.1, 0.49999999]
    dataset = final(fakes, [0.1], [[5]] * 3, lr=lrs)
    for shown in ("0.273842", "0.274", 0.274):
        chosen = draw(dataset, sel={"lr": [shown, 0.1]})
        np.testing.assert_allclose(chosen[0, 0].lines[0].get_xdata(), lrs[1::-1])
    for range_ in ("0.274:0.5", slice(0.274, 0.5)):  # both ends, as they are shown
        np.testing.assert_allclose(
            draw(dataset, sel={"lr": range_})[0, 0].lines[0].get_xdata(), lrs[::2]
        )
    with pytest.raises(SpecError, match=r"sel: lr has no value in a:b; valid are 0\.273842, 0\.1"):
        draw(dataset, sel={"lr": slice("a", "b")})


@pytest.mark.parametrize("errorbar", [None, "none"])
def test_there_may_be_no_band(fakes, draw, errorbar):
    dataset = final(fakes, [0.1], [[5], [9], [6], [8]], width=[4, 8], trial=[0, 1])
    axes = draw(dataset, errorbar=errorbar)
    assert [line.get_ydata().tolist() for line in axes[0, 0].lines] == [[7, 7]]
    assert not axes[0, 0].collections
    assert legend_texts(axes) == ["mean over trial (2)"]
    traces = traced(fakes, fakes.layout(trial=range(3)), stops=[20, 50, 37])
    axes = draw(traces, errorbar=errorbar)
    assert not axes[0, 0].collections
    assert legend_texts(axes)[0] == "mean over trial (3)"


def test_the_default_band_is_the_standard_error(fakes, draw):
    dataset = final(fakes, [0.1], [[5], [9]], trial=[0, 1])
    assert legend_texts(draw(dataset)) == ["mean and standard error over trial (2)"]


@pytest.mark.parametrize(
    ("thresholds", "sel", "hint"),
    [
        (
            [0.5, 0.7, 0.9],
            {"threshold_test_accuracy": 0.9},
            "choose an easier one with sel (threshold_test_accuracy=0.5 or 0.7), or another y",
        ),
        (
            [0.5, 0.7, 0.9],
            {"threshold_test_accuracy": [0.7, 0.9]},
            "choose an easier one with sel (threshold_test_accuracy=0.5), or another y",
        ),
        ([0.5, 0.7, 0.9], {}, "crossed the threshold 0.5; choose another y"),
        ([0.5], {}, "crossed the threshold 0.5; choose another y"),
    ],
)
def test_an_easier_threshold_is_one_that_comes_before(fakes, draw, thresholds, sel, hint):
    layout = dataclasses.replace(
        fakes.layout(width=[4, 8]),
        metrics=("accuracy",),
        metric_thresholds=(Thresholds("test_accuracy", tuple(thresholds)),),
    )
    keys = np.full((2, len(thresholds)), -1)
    pack = fakes.pack(range(2), **{"timekeys.test_accuracy": keys})
    dataset = to_dataset(layout, fakes.Source([pack]))
    with pytest.raises(UserError) as error:
        draw(dataset, y="timekeys_test_accuracy", sel=sel)
    assert str(error.value).endswith(hint)


@pytest.mark.parametrize(
    ("decays", "end"),
    [
        ([0.0, 0.3, 1.0, 3.0], "; use linear, or select the others with sel (decay=0.3:3)"),
        ([0.0, 3.0], "; use linear, or select the others with sel (decay=3)"),
        ([-1.0, 0.0], "; use linear"),
    ],
)
def test_a_logarithmic_axis_of_values_with_a_zero(fakes, draw, decays, end):
    dataset = final(fakes, [0.1], [[5]] * len(decays), decay=decays)
    with pytest.raises(SpecError) as error:
        draw(dataset, xscale="log")
    least = f"{min(decays):g}"
    assert str(error.value) == f"xscale: log needs values above 0, and decay has {least}{end}"


def test_what_is_no_name_and_no_dictionary_is_an_error(fakes, tmp_path):
    dataset = final(fakes, [0.1], [[5], [5]], width=[4, 8])
    with pytest.raises(SpecError) as error:
        plot(dataset, 3, ["width"], mean=[4], hue=5, sel="gamma=1")
    assert str(error.value).splitlines()[1:] == [
        "  - hue: got 5; should be a name",
        "  - y: got 3; should be a name",
        "  - mean: got 4; should be a name",
        "  - sel: got 'gamma=1'; should be a dictionary, as in {'width': 64} or {'lr': '0.01:0.1'}",
    ]
    with pytest.raises(SpecError, match="sel: got the name 4; should be a string"):
        plot(dataset, sel={4: 5})


def test_errors_of_names_are_listed_with_that_of_the_file(fakes, tmp_path):
    dataset = final(fakes, [0.1], [[5], [5]], width=[4, 8]).assign_attrs(run="a")
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(UserError) as error:
        plot(dataset, "typo", sel={"with": 4}, out=tmp_path / "a.png")
    lines = str(error.value).splitlines()
    assert lines[0] == "3 errors:"
    assert [line.split(":")[0] for line in lines[1:3]] == ["  - sel", "  - y"]
    assert lines[3].startswith(f"  - cannot write {tmp_path / 'a.png'}: it exists and")
