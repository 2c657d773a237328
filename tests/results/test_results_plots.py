from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from mlpsubmit.errors import UserError
from mlpsubmit.results import Dimension, Layout, plot, to_dataset


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a dataset, and return the figure that was saved."""
    saved = []
    save = Figure.savefig

    def keeping(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keeping)

    def drawing(dataset):
        path = plot(dataset, tmp_path / "figure.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        return saved[-1]

    return drawing


def traced(fakes, layout, steps=50, test=0.0):
    """All points finished; the loss of point i at step s is exp(-s) + i (+ test)."""
    at = np.arange(steps)
    losses = np.exp(-at) + np.arange(layout.size)[:, None]
    pack = fakes.pack(range(layout.size), step=at, train_loss=losses, test_loss=losses + test)
    return to_dataset(layout, fakes.Source([pack]))


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_curves_have_a_panel_a_colour_and_a_line_for_each_value(fakes, draw):
    layout = fakes.layout(width=[64, 256], trial=range(2), act=["relu", "$tanh"], seed=[1])
    figure = draw(traced(fakes, layout))
    assert [axes.get_title() for axes in visible(figure)] == ["act = relu", r"act = \$tanh"]
    assert legend_texts(figure) == ["64", "256"]
    first = visible(figure)[0]
    assert (first.get_xscale(), first.get_yscale()) == ("log", "log")
    starts = sorted(line.get_ydata()[0] for line in first.lines)
    assert starts == [1, 3, 5, 7]
    assert all(line.get_xdata()[0] == 1 for line in first.lines)
    colours = {line.get_ydata()[0]: line.get_color() for line in first.lines}
    np.testing.assert_array_equal(colours[1], colours[3])
    assert not np.array_equal(colours[1], colours[5])


def test_another_test_loss_is_dashed(fakes, draw):
    figure = draw(traced(fakes, fakes.layout(width=[1, 2]), test=3.0))
    (axes,) = visible(figure)
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-", "--"]
    assert legend_texts(figure) == ["1", "2", "train", "test"]


def test_long_axes_are_thinned_and_long_traces_too(fakes, draw):
    figure = draw(traced(fakes, fakes.layout(a=range(20), b=range(9)), steps=3000))
    assert len(visible(figure)) == 6
    assert len(legend_texts(figure)) == 8
    assert "(12 more)" in figure.legends[0].get_title().get_text()
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) <= 600


def final(fakes, thresholds, timekeys, **axes):
    layout = fakes.layout(thresholds=thresholds, **axes)
    keys = np.array(timekeys).reshape(layout.size, len(thresholds))
    pack = fakes.pack(range(layout.size), thresholds=len(thresholds), timekeys=keys)
    return to_dataset(layout, fakes.Source([pack]))


def test_without_traces_it_is_the_time_to_the_last_threshold(fakes, draw):
    keys = [[1, 10], [1, 30], [1, -1], [1, 400], [1, 500], [1, 600]]
    dataset = final(fakes, [0.2, 0.1], keys, act=["relu"], width=[64, 1024, 256], trial=range(2))
    figure = draw(dataset)
    (axes,) = visible(figure)
    means = axes.lines[0]
    assert means.get_xdata().tolist() == [64, 256, 1024]
    assert means.get_ydata().tolist() == [20, 550, 400]
    assert sorted(axes.lines[1].get_ydata()) == [10, 30, 400, 500, 600]
    (hollow,) = axes.collections  # of two trials, one crossed
    assert hollow.get_offsets().tolist() == [[1024, 400]]
    assert legend_texts(figure) == ["not all crossed"]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("width", "steps to threshold 0.1")
    assert figure.get_suptitle() == "6 of 6 configs finished, 1 never crossed 0.1"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_a_missing_trial_is_not_one_that_did_not_cross(fakes, draw):
    layout = fakes.layout(thresholds=[0.1], width=[64, 256], trial=range(2))
    pack = fakes.pack([0, 1, 2], thresholds=1, timekeys=[[10], [-1], [20]])
    figure = draw(to_dataset(layout, fakes.Source([pack])))
    (hollow,) = figure.axes[0].collections
    assert hollow.get_offsets().tolist() == [[64, 10]]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [10, 20]
    assert figure.get_suptitle() == "3 of 4 configs finished, 1 never crossed 0.1"


def test_a_threshold_that_nothing_crossed_is_not_drawn(fakes, draw):
    figure = draw(final(fakes, [0.2, 0.1], [[1, -1], [2, -1]], lr=[0.1, 0.2]))
    assert figure.get_supylabel() == "steps to threshold 0.2"
    figure = draw(final(fakes, [0.2], [[-1], [-1]], lr=[0.1, 0.2]))
    assert figure.get_supylabel() == "final test loss"
    assert "no threshold was crossed" in figure.get_suptitle()


@pytest.mark.parametrize("traces", [False, True])
def test_without_test_losses_it_is_the_train_loss(fakes, draw, traces):
    packs = [fakes.pack([0, 1])]
    if traces:
        packs[0].held |= {"step": np.array([0, 5]), "train_loss": np.array([[3.0, 1.0]] * 2)}
    del packs[0].held["test_loss"]
    layout = dataclasses.replace(fakes.layout(lr=[0.1, 0.2]), tested=False, online=True)
    figure = draw(to_dataset(layout, fakes.Source(packs)))
    assert figure.get_supylabel() == ("loss" if traces else "final train loss")
    assert len(figure.axes[0].lines) == (2 if traces else 1)


def test_the_first_numeric_axis_goes_across_and_the_next_gives_colours(fakes, draw):
    figure = draw(final(fakes, [], [], act=["relu", "tanh"], lr=[0.1, 0.2], depth=[1, 2, 3]))
    assert figure.get_supxlabel() == "lr"
    assert legend_texts(figure) == ["relu", "tanh"]
    assert len(visible(figure)) == 3
    assert visible(figure)[0].lines[0].get_ydata().tolist() == [2, 5]

    figure = draw(final(fakes, [], [], act=["relu", "tanh"]))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["relu", "tanh"]


def test_a_zipped_axis_goes_by_its_first_number(fakes, draw):
    zipped = Dimension("act_lr", {"act": ("relu", "tanh"), "lr": (0.1, 0.2)})
    dataset = to_dataset(Layout((zipped,), (), {}), fakes.Source([fakes.pack([0, 1])]))
    assert draw(dataset).get_supxlabel() == "lr"


@pytest.mark.parametrize("axes", [{}, {"trial": range(3)}, {"a": [1], "b": ["x", "y"]}])
def test_nothing_finished_still_gives_a_figure(fakes, draw, axes):
    figure = draw(to_dataset(fakes.layout(**axes), fakes.Source()))
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing to draw"]


@pytest.mark.parametrize(
    ("losses", "steps", "drawn"),
    [
        ([np.nan, np.nan, np.nan], [], []),
        ([0.0, -1.0, -np.inf], [], []),
        ([np.inf, 2.0, 0.0], [2], [2.0]),
        ([4.0, np.nan, 1.0], [1, 3], [4.0, 1.0]),
    ],
)
def test_what_a_logarithm_cannot_show_is_left_out_of_a_trace(fakes, draw, losses, steps, drawn):
    pack = fakes.pack([0], step=[0, 1, 2], train_loss=[losses], test_loss=[losses])
    (axes,) = visible(draw(to_dataset(fakes.layout(), fakes.Source([pack]))))
    assert [text.get_text() for text in axes.texts] == ([] if drawn else ["nothing to draw"])
    assert [x for line in axes.lines for x in line.get_xdata()] == steps
    assert [y for line in axes.lines for y in line.get_ydata()] == drawn
    assert [line.get_marker() for line in axes.lines] == ["." if len(drawn) == 1 else ""][
        : len(drawn)
    ]


def test_a_pdf_is_written_without_pyplot_and_replaces_the_old_one(fakes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    path = tmp_path / "figure.pdf"
    path.write_text("old")
    plot(traced(fakes, fakes.layout(width=[1, 2])), path)
    assert path.read_bytes().startswith(b"%PDF")
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_ending_is_refused(fakes, tmp_path):
    with pytest.raises(
        UserError, match=r"cannot draw a.gif: .* '.gif'; valid are .png, .pdf, .svg"
    ):
        plot(to_dataset(fakes.layout(), fakes.Source()), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
