"""Reports as a reader sees them: in a browser, without a network."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from mlpsubmit.report.write import write_report
from mlpsubmit.runs.run import Run
from tests.report.conftest import ONE, SPEC, fill, launched

#: Values of an axis, and a name, that are no plain text.
NAMES = """
import torch
from mlpsubmit import Sweep

def batches(name, scale, bsz, gen, X=None, y=None):
    def batch_fn(step):
        if step == 9 and name.startswith("<img"):
            raise ValueError(name + chr(0x202e) + chr(0x2028) + "x" * 3000)
        return torch.randn(bsz, 3, generator=gen), torch.randn(bsz, generator=gen)
    return batch_fn

def infinite(model):
    return float("inf")

def negative(model):
    return -1.5e7

sweep = Sweep(
    "names",
    axes={"name": [
        "</script><script>window.injected = true</script>",
        "<img src=x onerror='window.injected = true'>",
        "\\x1b[31mred",
        'a "quoted" name & more',
        r"$\\gamma_{0}^2 + x_{width}$",
        "$x$",
        "x",
        "",
        "l" * 400,
        "\\u2028\\u202e reversed",
        "__proto__",
    ], "scale": [0.1, 0.1000001, 1e-5, 1234567.5]},
    batchfn=batches,
    WIDTH=4,
    N_SAMPLES=8,
    MAX_ITER=20,
    grabs={"constructor": infinite, "config": negative, "none": negative},
)
"""


@pytest.fixture(scope="module")
def report(curves_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(curves_run, out=tmp_path_factory.mktemp("report") / "curves.html")


@pytest.fixture
def page(report: Path, open_page: Callable[..., Any]) -> Iterator[Any]:
    """The report; the test fails if anything was fetched, refused by the policy, or an error."""
    opened = open_page(report)
    yield opened
    assert opened.requests == []
    assert opened.messages == []


pytestmark = pytest.mark.slow


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.tab.locator(selector).all_inner_texts()]


def test_a_report_draws_a_curve_for_each_config(page: Any, curves_run: Run) -> None:
    dataset = curves_run.collect()
    curves = page.curves()
    assert len(curves) == 24 - int((dataset.steps <= 1).sum())
    ends = sorted(curve[-1][0] for curve in curves if curve[-1][0] > 2)
    steps = dataset.steps.values.ravel()
    done = dataset.status.values.ravel() == "done"
    assert ends[-1] == steps[done].max()  # step + 1, on a logarithmic axis
    assert page.figure()["y"][0]["type"] == "log"


def test_the_figure_has_the_values_of_the_dataset(page: Any, curves_run: Run) -> None:
    dataset = curves_run.collect()
    page.choose("c", "(none)")
    page.choose("f", "(none)")
    page.tab.uncheck("#choose-lx")
    one = {"width": 16, "lr": 0.1, "trial": 1}
    trace = dataset.train_loss.sel(one).isel(monomials=0)
    stop = int(dataset.steps.sel(one).isel(monomials=0))
    wanted = [[step, float(np.float32(trace.sel(step=step)))] for step in range(stop)]
    assert wanted in page.curves()


def test_choices_change_what_is_drawn_and_are_kept_in_the_address(page: Any) -> None:
    assert len(page.figure()["titles"]) == 3  # a panel per learning rate
    page.choose("f", "monomials")
    assert page.figure()["titles"] == ["monomials = x₀", "monomials = x₀x₁²"]
    page.choose("c", "lr")
    assert {one["name"] for one in page.figure()["series"]} >= {"0.01", "0.1"}
    page.choose("y", "size")
    assert page.figure()["y"][0]["name"] == "size"
    page.tab.uncheck("#choose-ly") if page.tab.is_checked("#choose-ly") else None
    assert page.figure()["y"][0]["type"] == "value"
    page.tab.check("#choose-ly")
    assert page.figure()["y"][0]["type"] == "log"
    page.tab.uncheck("#choose-lx")
    assert page.figure()["x"][0]["type"] == "value"
    before = page.figure()
    page.tab.reload()
    assert page.figure() == before
    assert page.tab.input_value("#choose-y") == "size"


def test_smoothing_averages_neighbouring_points(page: Any) -> None:
    page.tab.uncheck("#choose-ly")
    before = page.curves()
    page.tab.locator("#choose-s").fill("2")
    after = page.curves()
    rough = max(range(len(before)), key=lambda i: len(before[i]))
    old, new = (np.array(curves[rough])[:, 1] for curves in (before, after))
    assert new[5] == pytest.approx(old[3:8].mean())
    assert new[0] == old[0]
    assert new[-1] == old[-1]
    assert "Smoothed" in page.tab.inner_text("#figure-note")


def test_means_over_trials_have_a_band(page: Any) -> None:
    page.choose("f", "(none)")
    configs = len(page.curves())
    page.tab.check("#choose-m")
    figure = page.figure()
    assert (configs, len(page.curves())) == (24, 16), "8 means of two trials, 8 that diverged"
    assert any(one["type"] == "custom" for one in figure["series"])
    assert "the mean over the trials" in page.tab.inner_text("#figure-note")


def test_a_parameter_as_x_draws_points_and_means(page: Any) -> None:
    page.choose("y", "timekeys [0.9]")
    page.choose("x", "width")
    page.choose("c", "monomials")
    page.choose("f", "(none)")
    figure = page.figure()
    assert {one["type"] for one in figure["series"]} == {"scatter", "line"}
    assert figure["x"][0]["type"] == "value"
    assert "the lines are means over lr, trial" in page.tab.inner_text("#figure-note")
    assert "in no mean; means that lack them are hollow." in page.tab.inner_text("#figure-note")
    assert _hollow(figure) == [[True, True]], "the others have no mean at all"
    page.choose("y", "steps")
    assert _hollow(page.figure()) == [[False, False]] * 2
    assert "hollow" not in page.tab.inner_text("#figure-note")


def _hollow(figure: Any) -> list[list[bool]]:
    """Return which means along each line have hollow markers."""
    lines = (one for one in figure["series"] if one["type"] == "line")
    return [[mean.get("symbol") == "emptyCircle" for mean in line["data"]] for line in lines]


def test_hovering_names_the_config(page: Any) -> None:
    page.choose("f", "(none)")
    box = page.tab.locator("#figure-chart").bounding_box()
    rect, point = page.tab.evaluate(
        """() => {
            const chart = echarts.getInstanceByDom(document.getElementById("figure-chart"));
            const series = chart.getOption().series.find((one) => one.type === "lines");
            const point = series.data[0].coords[20];
            return [chart.convertToPixel({gridIndex: 0}, point), point];
        }"""
    )
    assert page.tab.is_hidden("#hover")
    page.tab.mouse.move(box["x"] + rect[0], box["y"] + rect[1])
    shown = page.tab.inner_text("#hover")
    assert "config " in shown
    for name in ("width = ", "lr = ", "monomials = x₀", "trial = ", "train loss = "):
        assert name in shown
    assert "run " not in shown
    assert f"step {point[0] - 1:.0f}" in shown
    page.tab.mouse.move(box["x"] + 2, box["y"] - 60)
    assert page.tab.is_hidden("#hover")


def test_the_legend_hides_a_colour(page: Any) -> None:
    before = len(page.curves())
    page.tab.locator("#figure-legend button").first.press("Enter")
    assert len(page.curves()) < before
    assert page.tab.get_attribute("#figure-legend button", "aria-pressed") == "false"


def test_the_table_sorts_and_filters(page: Any) -> None:
    assert texts(page, "#matches") == ["24 configs"]
    header = page.tab.locator("#configs-table th button", has_text="steps to 0.9")
    header.press("Enter")  # by keyboard
    names = page.tab.locator("#configs-table th button").evaluate_all(
        "all => all.map((one) => one.dataset.column)"
    )
    column = names.index("timekeys [0.9]")
    cells = texts(page, f"#configs-table tbody td:nth-child({column + 1})")
    numbers = [int(cell) for cell in cells if cell != "–"]
    assert numbers == sorted(numbers)
    assert cells == [str(n) for n in numbers] + ["–"] * (len(cells) - len(numbers))
    page.tab.locator("#configs-table th button", has_text="steps to 0.9").press("Enter")
    cells = texts(page, f"#configs-table tbody td:nth-child({column + 1})")
    assert [int(cell) for cell in cells if cell != "–"] == sorted(numbers, reverse=True)
    sorted_by = page.tab.locator("#configs-table th[aria-sort]")
    assert sorted_by.get_attribute("aria-sort") == "descending"

    curves = len(page.curves())
    page.tab.fill("#filter", "width=16 lr<1 done")
    assert texts(page, "#matches") == ["8 of 24 configs"]
    assert len(page.curves()) < curves
    page.tab.fill("#filter", "widht=16")
    assert texts(page, "#matches") == ["no column widht"]
    page.tab.click("#clear") if page.tab.is_visible("#clear") else page.tab.fill("#filter", "")
    assert texts(page, "#matches") == ["24 configs"]


def test_a_range_on_a_parallel_axis_selects_configs(page: Any) -> None:
    page.tab.evaluate(
        """() => echarts.getInstanceByDom(document.getElementById("parallel-chart"))
            .dispatchAction({type: "axisAreaSelect", parallelAxisId: "axis-0",
                             intervals: [[10, 20]]})"""
    )
    page.tab.locator("#matches", has_text=" of ").wait_for()
    assert texts(page, "#matches") == ["12 of 24 configs"]
    page.tab.reload()
    assert texts(page, "#matches") == ["12 of 24 configs"]
    page.tab.click("#clear")
    assert texts(page, "#matches") == ["24 configs"]


def test_without_scripts_the_tables_are_there(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.tab.locator("#configs-table tbody tr").count() == 24
    assert page.tab.locator("#steps-table tbody tr").count() == 12
    assert page.tab.is_visible("text=diverged")
    assert page.tab.is_visible("text=mlpsubmit.collect(")
    assert page.tab.is_hidden("#figure-controls")
    assert page.tab.is_hidden("#parallel")
    assert page.tab.is_visible("text=of 24 configs 8 diverged")
    box = page.tab.locator("#picture svg").bounding_box()
    assert 740 < box["width"] < 770
    assert 300 < box["height"] < 600
    # What the policy refuses would be drawn in black, and filled.
    stroke = page.tab.locator("#picture path[stroke-width='1.2']").first
    assert stroke.evaluate("(one) => getComputedStyle(one).fill") == "none"
    assert page.requests == []
    assert page.messages == []


def test_where_the_script_fails_what_needs_none_is_there(
    report: Path, open_page: Callable[..., Any]
) -> None:
    page = open_page(report, before="Object.defineProperty(window, 'echarts', {set() {}})")
    assert page.messages == ["Cannot read properties of undefined (reading 'init')"]
    assert page.tab.is_visible("#picture svg")
    assert page.tab.is_hidden("#figure-controls")
    assert page.tab.locator("#configs-table tbody tr").count() == 24


def test_joined_runs_are_told_apart(
    curves_run: Run, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    other = launched(tmp_path, SPEC.replace("[0.01, 0.1, 1e5]", "[0.3]"))
    page = open_page(write_report(curves_run, other, out=tmp_path / "two.html"))
    page.choose("c", "(run)")
    page.choose("f", "(none)")
    legend = texts(page, "#figure-legend button")
    assert legend == [curves_run.id, other.id]
    page.choose("f", "(run)")
    assert page.figure()["titles"] == [f"run = {one}" for one in legend]
    page.tab.fill("#filter", f"run={other.id}")
    assert texts(page, "#matches") == ["8 of 32 configs"]
    assert set(texts(page, "#configs-table tbody td:nth-child(6)")) == {other.id}
    page.tab.locator("#configs-table th button", has_text="run").first.press("Enter")
    assert page.tab.locator("#configs-table th[aria-sort]").inner_text().startswith("run")
    assert page.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_or_dark_window_shows_all(
    report: Path, open_page: Callable[..., Any], scheme: str
) -> None:
    page = open_page(report, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    width = page.tab.evaluate("document.documentElement.scrollWidth")
    assert width == 400  # nothing beyond its right edge
    assert page.tab.is_hidden("#picture")
    assert len(page.curves()) > 10
    assert page.messages == []


def test_a_watched_report_reloads_itself_and_keeps_the_choices(
    curves_run: Run, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_report(curves_run, out=tmp_path / "watched.html", reload_seconds=1)
    page = open_page(path)
    page.choose("f", "monomials")
    page.tab.wait_for_event("load")
    assert page.figure()["titles"] == ["monomials = x₀", "monomials = x₀x₁²"]
    page.tab.uncheck("#choose-r")
    assert "r=0" in page.tab.url
    assert page.messages == []
    # A page whose writer was killed says so.
    text = path.read_text()
    path.write_text(re.sub(r'data-written="\d+"', 'data-written="1000000000"', text))
    page.tab.reload()
    assert page.tab.is_visible("text=has not been written again for a while")
    assert page.tab.locator("#choose-r").count() == 0


def test_the_policy_stops_what_is_not_in_the_file(page: Any) -> None:
    policy = page.tab.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    injected = page.tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.injected = true";
            document.body.append(script);
            return Boolean(window.injected);
        }"""
    )
    assert not injected
    fetched = "fetch('https://example.org').then(() => 'fetched', () => 'refused')"
    assert page.tab.evaluate(fetched) == "refused"
    assert len(page.messages) >= 2
    page.messages.clear()


def test_names_are_text(open_page: Callable[..., Any], tmp_path: Path) -> None:
    run = launched(tmp_path, NAMES, keep_going=True)
    path = write_report(run, out=tmp_path / "names.html")
    page = open_page(path)
    table = page.tab.inner_text("#configs-table")
    for name in (
        "</script><script>window.injected = true</script>",
        "<img src=x onerror='window.injected = true'>",
        "\\u001b[31mred",
        'a "quoted" name & more',
        "γ₀² + x_width",
        "$x$",
        '""',
        f"{'l' * 59}…",
        "\\u2028\\u202e reversed",
        "0.1000001",
        "1·10⁻⁵",
        "1.234568·10⁶",
        "inf",
        "-1.5·10⁷",
    ):
        assert name in table
    failure = page.tab.inner_text(".failure p")
    assert "\\u202e\\u2028xxx" in failure
    assert len(failure) < 1000
    assert len(page.tab.inner_text("#steps-table td:has-text('lll')")) == 60
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 1280
    assert page.tab.evaluate("Boolean(window.injected)") is False
    assert page.requests == []
    assert page.messages == []
    # The script writes names and numbers as the table without it does.
    static = open_page(path, java_script_enabled=False)
    assert texts(static, "#configs-table td") == texts(page, "#configs-table td")


def test_a_run_without_results_gives_a_page(
    records: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = Run(records.create(tmp_path / "runs" / "a" / "one"))
    page = open_page(write_report(run, out=tmp_path / "none.html"))
    assert "No config has a result yet." in page.tab.inner_text("#figure-note")
    assert "0 of 20" in page.tab.inner_text("header")
    assert page.tab.is_hidden("#parallel")
    assert texts(page, "#matches") == ["20 configs"]
    assert page.messages == []


def test_a_thousand_configs_fit_into_six_megabytes(
    records: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    directory = records.create(tmp_path / "runs" / "a" / "one", packs=500)
    draws = np.random.default_rng(0)

    def noise(clock: np.ndarray) -> np.ndarray:
        return draws.uniform(0.5, 1, (2, len(clock))) / (1 + clock)

    traces = dict.fromkeys(("train_loss", "test_loss"), noise)
    fill(directory, range(500), 1000, **traces)
    path = write_report(Run(directory), out=tmp_path / "many.html")
    assert 3e6 < path.stat().st_size < 6e6
    page = open_page(path)
    drawn = """() => echarts.getInstanceByDom(document.getElementById("figure-chart"))
        .getOption().series.reduce((sum, one) => sum + one.data.length, 0)"""
    assert page.tab.evaluate(drawn) == 1000
    assert "at most 187 are here" in page.tab.inner_text("#about")
    assert page.tab.locator("#configs-table tbody tr").count() == 100
    page.tab.click("text=next →")
    assert page.tab.inner_text("#configs-table tbody tr td") == "100"
    assert page.messages == []


def test_values_of_any_size_are_drawn(
    records: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    directory = records.create(tmp_path / "runs" / "a" / "one", packs=6)
    columns = {
        "huge": [1.7e308, -1.7e308, 5e-324, 0.0, np.nan, np.inf, 1e30],
        "wide": [1e-300, 1e300, 1e-5],
        "close": [1.0, 1 + 2e-16, 1 + 1e-7],
        "tiny": [5e-324, 1e-310],
        "negative": [-1.0, -2.0],
        "zero": [0.0],
    }
    losses = 10.0 ** np.linspace(-308, 308, 20)

    def pairs(values: list[float]) -> Callable[..., Any]:
        endless = itertools.cycle(values)
        return lambda _: np.array([next(endless), next(endless)])

    grabs = {f"grab.{name}": pairs(values) for name, values in columns.items()}
    both = np.stack([losses, losses[::-1]])
    fill(directory, range(6), 20, train_loss=lambda _: both, **grabs)
    page = open_page(write_report(Run(directory), out=tmp_path / "any.html"))
    assert page.figure()["y"][0]["type"] == "log"
    for name in (*columns, "train_loss"):
        page.choose("y", name)
        for log in (True, False):
            page.tab.set_checked("#choose-ly", log)
            if page.tab.is_visible("#figure-chart"):
                y = page.figure()["y"][0]
                assert y["type"] == ("log" if log else "value")
                assert y["min"] < y["max"]
            else:
                assert log
                assert "≤ 0, which cannot be" in page.tab.inner_text("#figure-note")
    assert page.messages == []


@pytest.mark.parametrize(
    "ranges", ['{"width', "null", '{"width":[1]}', '{"width":[["a","b"]]}', '{"lr":[[null,1]]}']
)
def test_an_address_that_was_cut_or_edited_is_ignored(
    report: Path, open_page: Callable[..., Any], ranges: str
) -> None:
    page = open_page(
        report, f"#y=nothing&x=%3Cb%3E&c=foo&s=-2.5&b={quote(ranges)}&sort=no:up&q=%22"
    )
    assert page.figure()["y"][0]["name"] == "train loss"
    assert texts(page, "#matches") == ["24 configs"]
    assert page.messages == []


def test_diverged_curves_do_not_set_the_range(page: Any) -> None:
    page.tab.check("#choose-ly") if not page.tab.is_checked("#choose-ly") else None
    assert page.figure()["y"][0]["max"] < 100
    assert max(y for curve in page.curves() for _, y in curve) > 1000
    assert "8 configs diverged: their curves may leave" in page.tab.inner_text("#figure-note")


@pytest.mark.parametrize(
    ("axes", "kinds"),
    [
        ("{}, WIDTH=4", {"scatter"}),
        ("{('WIDTH', 'LR'): [(4, .1), (8, .2)], 'GAMMA': [0.1, 1, 10]}", {"scatter", "line"}),
        ("random_search(20, LR=loguniform(1e-3, 1), WIDTH=choice(4, 8))", {"scatter", "line"}),
        ("{'LOSS_CHECKPOINTS': [[0.5], [0.9, 0.1]]}, WIDTH=4", {"scatter"}),
        ("{'WIDTH': [4], 'CENTERED': [True, False], 'trial': range(3)}", {"scatter"}),
        ("{'LR': [1e20, 1e30], 'WIDTH': [4]}", set()),  # all diverge
    ],
)
def test_final_values_are_drawn_along_all_kinds_of_axes(
    open_page: Callable[..., Any], tmp_path: Path, axes: str, kinds: set[str]
) -> None:
    run = launched(tmp_path, ONE.replace("AXES", axes))
    page = open_page(write_report(run, out=tmp_path / "r.html"))
    page.choose("y", "train_loss" if kinds else "steps")
    if kinds:
        assert {one["type"] for one in page.figure()["series"]} == kinds
    assert page.tab.inner_text("#figure-note")
    assert page.messages == []
