from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from mlpsubmit.cli.collect import _print_table
from mlpsubmit.results import Dimension, Layout, summary_table, to_dataset


def lines(table, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()


def cells(table):
    """The rows' cells, and the columns' names first."""
    rows = [line for line in lines(table) if line and line[0] in "│┃"]
    return [[cell.strip() for cell in row.replace("┃", "│").strip("│").split("│")] for row in rows]


def test_trials_are_taken_together(fakes):
    layout = fakes.layout(
        thresholds=[0.15, 0.1], width=[64, 256], trial=range(3), included=np.arange(6) != 5
    )
    packs = [
        fakes.pack(
            [0, 1, 2],
            thresholds=2,
            train_loss=[1.0, 2.0, 3.0],
            test_loss=[np.inf, 2.0, 4.0],
            timekeys=[[10, -1], [20, -1], [-1, -1]],
            status=np.uint8([2, 1, 1]),
        ),
        fakes.pack([3], thresholds=2, timekeys=[[1000, 2000]]),
    ]
    failure = fakes.Failure(np.array([4]), "ValueError: boom")
    table = summary_table(to_dataset(layout, fakes.Source(packs, [failure])))
    assert cells(table) == [
        ["width", "done", "train loss", "test loss", "steps to 0.15", "steps to 0.1"],
        ["64", "3/3, 1 diverged", "2.5 ± 0.71", "3 ± 1.4", "15 ± 7 (2/3)", "never"],
        ["256", "1/2, 1 failed", "4", "5", "1,000", "2,000"],
    ]
    assert table.caption == "±: standard deviation over trials (n - 1)"
    one = summary_table(to_dataset(layout, fakes.Source(packs, [failure])).isel(trial=[0]))
    assert one.caption is None


def test_what_only_some_trials_crossed_is_counted(fakes):
    layout = fakes.layout(thresholds=[0.5], trial=range(2))
    pack = fakes.pack([0, 1], thresholds=1, timekeys=[[297], [-1]])
    assert cells(summary_table(to_dataset(layout, fakes.Source([pack]))))[1][-1] == "297 (1/2)"


def test_without_test_losses_there_is_no_column_and_between_others_a_dash(fakes):
    packs = [fakes.pack([0]), fakes.pack([1]), fakes.pack([2], status=np.uint8([2]))]
    del packs[0].held["test_loss"]
    packs[2].held["test_loss"] = np.array([np.nan])
    layout = fakes.layout(online=[True, False, "no"])
    rows = cells(summary_table(to_dataset(layout, fakes.Source(packs))))
    assert [row[3] for row in rows] == ["test loss", "–", "3", "nan"]
    layout = dataclasses.replace(fakes.layout(), tested=False)
    rows = cells(summary_table(to_dataset(layout, fakes.Source(packs[:1]))))
    assert rows[0] == ["done", "train loss"]


def test_the_final_value_of_a_trace_is_the_last_recorded(fakes):
    layout = fakes.layout(max_iter=[3, 6], act=["relu", "[red]x"])
    packs = [
        fakes.pack([0], step=[0, 2], train_loss=[[3.0, 0.25]], test_loss=[[5.0, 0.5]]),
        fakes.pack([3], step=[0, 5], train_loss=[[3.0, 0.125]], test_loss=[[5.0, np.nan]]),
    ]
    rows = cells(summary_table(to_dataset(layout, fakes.Source(packs))))
    assert rows[1:] == [
        ["3", "relu", "1/1", "0.25", "0.5"],
        ["3", "[red]x", "0/1", "–", "–"],
        ["6", "relu", "0/1", "–", "–"],
        ["6", "[red]x", "1/1", "0.125", "5"],
    ]


def test_long_tables_are_cut_and_say_so(fakes):
    dataset = to_dataset(fakes.layout(lr=np.linspace(0, 1, 3000).tolist()), fakes.Source())
    table = summary_table(dataset)
    assert table.row_count == 24
    assert "and 2,976 more rows" in lines(table)[-1]
    assert summary_table(dataset.isel(lr=slice(24))).caption is None
    assert summary_table(dataset, max_rows=2).row_count == 2


def test_a_pipe_gets_more_rows_than_a_terminal(fakes, capsys):
    dataset = to_dataset(fakes.layout(lr=np.linspace(0, 1, 3000).tolist()), fakes.Source())
    _print_table(dataset.isel(lr=slice(700)))
    shown = capsys.readouterr().out
    assert shown.count("0/1") == 700
    assert "more rows" not in shown
    _print_table(dataset)
    assert "and 2,000 more rows" in capsys.readouterr().out


def test_a_zipped_axis_has_a_column_per_name(fakes):
    zipped = Dimension("width_lr", {"width": (64, 256), "lr": (0.1, 0.03)})
    dataset = to_dataset(Layout((zipped,), (), {}), fakes.Source())
    assert [row[:2] for row in cells(summary_table(dataset))] == [
        ["width", "lr"],
        ["64", "0.1"],
        ["256", "0.03"],
    ]


@pytest.mark.parametrize("axes", [{}, {"trial": range(2)}])
def test_a_sweep_without_axes_is_one_row(fakes, axes):
    dataset = to_dataset(fakes.layout(**axes), fakes.Source([fakes.pack([0])]))
    assert cells(summary_table(dataset))[1][1:] == ["1", "2"]


def test_points_left_out_have_no_row(fakes):
    dataset = to_dataset(fakes.layout(a=[0, 1], included=np.array([False, True])), fakes.Source())
    assert cells(summary_table(dataset))[1:] == [["1", "0/1", "–", "–"]]


def test_thresholds_that_an_axis_sets_are_numbered(fakes):
    layout = fakes.layout(thresholds=[0, 1], loss_checkpoints=["(0.5, 0.1)", "(0.3,)"])
    layout = dataclasses.replace(layout, threshold_axis=("loss_checkpoints", [[0.5, 0.1], [0.3]]))
    pack = fakes.pack([0, 1], thresholds=2, timekeys=[[3, 9], [5, -1]])
    rows = cells(summary_table(to_dataset(layout, fakes.Source([pack]))))
    assert [row[-2:] for row in rows] == [
        ["steps to number 0", "steps to number 1"],
        ["3", "9"],
        ["5", "–"],
    ]
