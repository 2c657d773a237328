"""What reports are made of, and the command that writes them."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import UserError, write_report
from mlpsubmit.cli import report as report_command
from mlpsubmit.display.notation import plain
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.heartbeat import pid_namespace, process_start
from mlpsubmit.report import curves as curves_module
from mlpsubmit.report import picture as picture_module
from mlpsubmit.report.contents import read
from mlpsubmit.report.curves import thinned
from mlpsubmit.report.picture import MOST_BYTES
from mlpsubmit.runs.run import Run
from tests.cli.test_full_disk import fill_disk
from tests.conftest import SPEC as SMALL
from tests.report.conftest import ONE, fill, launched

Command = Callable[..., Any]

#: Traces of configs that stop early, with an axis that is to be replaced.
STOPS = """
import torch
from mlpsubmit import Sweep
def batches(bsz, gen):
    def batch_fn(step):
        X = torch.randn(bsz, 4, generator=gen)
        return X, X[:, 0]
    return batch_fn
sweep = Sweep("stops", {AXIS_HERE, "trial": range(2)}, batchfn=batches, WIDTH=8, N_SAMPLES=32,
    LR=0.3, MAX_ITER=200, LOSS_CHECKPOINTS=[0.5, 0.2], FIXED_HERE)
"""

FILES = importlib.resources.files("mlpsubmit.report")


def test_echarts_is_the_file_of_its_package() -> None:
    recorded = json.loads(FILES.joinpath("echarts/VERSION.json").read_text())
    library = FILES.joinpath("echarts/echarts.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() == recorded["sha256"]
    assert f'version="{recorded["version"]}"'.encode() in library.replace(b" ", b"")
    for name in ("LICENSE", "NOTICE", "LICENSE-d3"):
        assert FILES.joinpath(f"echarts/{name}").is_file()
    assert "Apache License" in FILES.joinpath("echarts/LICENSE").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x_{0}x_{1}^2$", "x₀x₁²"),
        (r"$\gamma_0$", "γ₀"),
        (r"$\lambda$ of $\Omega$", "λ of Ω"),
        (r"$\mathrm{width}^{-1}$", "width⁻¹"),
        (r"$x_{width} \unknown$", r"x_width \unknown"),
        ("costs 5 $", "costs 5 $"),
        ("\x1b[31mred\n", "\\u001b[31mred\\n"),
        ("<b>", "<b>"),
    ],
)
def test_formulas_become_plain_text(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_thinned_curve_keeps_its_ends_and_extremes() -> None:
    steps = np.arange(10_000.0)
    values = np.sin(steps / 50)
    values[4321], values[77] = 9.0, -9.0
    own, kept = thinned(steps, values, 100)
    assert 50 < len(own) <= 100
    assert own[0] == 0
    assert own[-1] == 9999
    assert kept.max() == 9.0
    assert kept.min() == -9.0
    assert (values[own.astype(int)] == kept).all()
    assert (np.diff(own) > 0).all()
    short = thinned(steps[:100], values[:100], 100)
    assert (short[0] == steps[:100]).all()


def test_a_page_has_some_of_very_many_configs(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = records.create(tmp_path / "a" / "one", packs=10)
    fill(directory, range(8), 20)
    monkeypatch.setattr("mlpsubmit.report.contents.MOST_CONFIGS", 7)
    contents = read([Run(directory)])
    assert contents.column("n").values == [0, 3, 6, 9, 12, 15, 18]
    assert contents.curves[0].configs == [0, 1, 2, 3, 4, 5]
    page = write_report(Run(directory), out=tmp_path / "some.html").read_text()
    assert "16 of 20" in page
    assert "7 of 20 configs are on this page, evenly chosen" in page


def test_zipped_axes_are_one_column_more(tmp_path: Path) -> None:
    run = launched(tmp_path, ONE.replace("AXES", "{('WIDTH', 'LR'): [(4, .1), (8, .2)]}"))
    zipped = read([run]).column("width_lr")
    assert zipped.members == ["width", "lr"]
    assert zipped.values == ["4, 0.1", "8, 0.2"]
    assert zipped.label == "width, lr"


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_curves_are_those_of_the_dataset_until_each_config_stopped(curves_run: Run) -> None:
    dataset, contents = curves_run.collect(), read([curves_run])
    loss = next(one for one in contents.curves if one.name == "train_loss").to_json()
    steps = dataset.steps.values.ravel().astype(int)
    status = dataset.status.values.ravel()
    sizes = dict(zip(loss["configs"], loss["sizes"], strict=True))
    assert all(sizes[row] == steps[row] for row in range(24) if status[row] == "done")
    assert loss["shared"]
    assert decoded(loss["x"]).tolist() == list(range(max(loss["sizes"])))
    traces = dataset.train_loss.values.reshape(24, -1).astype(np.float32)
    starts = np.cumsum([0, *loss["sizes"]])
    for row, start in zip(loss["configs"], starts, strict=False):
        own = decoded(loss["y"])[start : start + sizes[row]]
        assert (own == traces[row, : sizes[row]]).all()


def test_the_last_step_is_on_the_curve_where_it_was_not_recorded(
    curves_run: Run, tmp_path: Path
) -> None:
    dataset, contents = curves_run.collect(), read([curves_run])
    grab = next(one for one in contents.curves if one.name == "size")
    steps = dataset.steps.values.ravel()
    for row, (own, _) in zip(grab.configs, grab.points, strict=True):
        if dataset.status.values.ravel()[row] == "done":
            assert own[-1] == steps[row] - 1
            assert (own[:-1] % 10 == 0).all() or steps[row] == 60


def test_columns_are_the_axes_and_results_of_the_dataset(curves_run: Run) -> None:
    dataset, contents = curves_run.collect(), read([curves_run])
    names = [column.name for column in contents.columns]
    assert names[:5] == ["width", "lr", "monomials", "trial", "status"]
    assert contents.column("monomials").categories == ["x₀", "x₀x₁²"]
    assert contents.column("monomials").values[:4] == ["x₀", "x₀", "x₀x₁²", "x₀x₁²"]
    crossed = dataset.timekeys.sel(threshold=0.9).values.ravel()
    shown = [np.nan if v is None else v for v in contents.column("timekeys [0.9]").values]
    assert np.array_equal(crossed, shown, equal_nan=True)
    final = contents.column("train_loss").values
    last = dataset.train_loss.isel(step=-1).values.ravel()
    done = dataset.status.values.ravel() == "done"
    assert np.array_equal(np.array(final)[done], last[done])


@pytest.mark.slow
def test_curves_share_the_room(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = records.create(tmp_path / "a" / "one", packs=10)
    noise = np.random.default_rng(0)
    more = {f"grab.g{i}": lambda clock: noise.random((2, len(clock))) for i in range(3)}
    fill(directory, range(10), 500, grab_step=np.copy, **more)
    monkeypatch.setattr(curves_module, "CURVE_BYTES", 20 * 24 * 11 * 2)
    contents = read([Run(directory)])
    assert [one.name for one in contents.curves] == ["train_loss", "g0"]
    assert contents.dropped == ["g1", "g2"]
    assert {len(own) for one in contents.curves for own, _ in one.points} <= set(range(10, 25))
    monkeypatch.setattr(curves_module, "CURVE_BYTES", 10 * 24 * 11)
    contents = read([Run(directory)])
    assert contents.every == 2
    assert contents.curves[0].configs == list(range(0, 20, 2))
    page = write_report(Run(directory), out=tmp_path / "few.html").read_text()
    assert "One of 2 configs has its curves here" in page
    assert "No room for the curves of g0, g1, g2" in page


@pytest.mark.slow
def test_a_report_of_several_runs_joins_them(tmp_path: Path, mlpsubmit: Command) -> None:
    runs = [
        launched(folder(tmp_path / name), SMALL.replace("LR=0.1", f"LR={rate}"))
        for name, rate in (("slow", 0.1), ("fast", 0.3))
    ]
    contents = read(runs)
    assert contents.size == 16
    assert set(contents.column("lr").values) == {0.1, 0.3}
    assert contents.count("done") == 16
    slow, fast = (run.id for run in runs)
    of_rate = dict(zip(contents.column("lr").values, contents.column("(run)").values, strict=True))
    assert of_rate == {0.1: slow, 0.3: fast}
    page = write_report(*runs, out=tmp_path / "two.html").read_text()
    assert write_report(runs[0].path, str(runs[1].path), out=tmp_path / "paths.html").exists()
    for run in runs:
        assert f"What was asked: {run.id}" in page
        assert f"<tr><td>{run.id}</td><td>000-0000</td>" in page  # tasks have equal names
    ids = [str(run.path) for run in runs]
    assert mlpsubmit("report", *ids, "--out", tmp_path / "two.html").code == 0
    refused = mlpsubmit("report", ids[0], "--out", tmp_path / "two.html")
    assert refused.code == 2
    assert "has results of run " in refused.err


def test_a_config_of_several_runs_names_them_all(records: Any, tmp_path: Path) -> None:
    one, two = (records.create(tmp_path / name / "run", packs=4) for name in "ab")
    fill(one, range(3), 20)
    fill(two, range(1, 2), 20)
    contents = read([Run(one), Run(two)])
    # Both have pack 1; one alone has packs 0 and 2; both are to train pack 3.
    assert contents.column("(run)").values == [
        *["run"] * 2,
        *["run, run"] * 2,
        *["run"] * 2,
        *["run, run"] * 2,
    ]


def test_what_joining_warns_of_is_on_the_page(tmp_path: Path) -> None:
    other = SMALL.replace("LR=0.1", "LR=0.3").replace("grabs={", "grabs={'one': one, ")
    other = other.replace("sweep =", "def one(model):\n    return 1.0\n\nsweep =", 1)
    runs = [launched(folder(tmp_path / name), text) for name, text in (("a", SMALL), ("b", other))]
    with pytest.warns(UserWarning, match="has no grab 'one'"):
        page = write_report(*runs, out=tmp_path / "two.html").read_text()
    assert f"run {runs[0].id} has no grab &#x27;one&#x27;: its values are missing there" in page


def test_a_page_has_what_was_asked(curves_run: Run, tmp_path: Path) -> None:
    page = write_report(curves_run, out=tmp_path / "r.html").read_text()
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    for part in (
        "<dt>max_iter</dt><dd>60</dd>",
        "<dt>batchfn</dt><dd>target</dd>",
        "<dt>grab size</dt><dd>size</dd>",
        "inputs = torch.randn(bsz, 3, generator=gen)",
        "<dt>torch</dt>",
        "core-hours: the training time of all configs with a result",
        "mlpsubmit.collect(",
        "24 of 24",
        "8 diverged",
    ):
        assert part in text, part


@pytest.mark.slow
def test_the_command_writes_a_report_without_torch(records: Any, tmp_path: Path) -> None:
    fill(records.create(tmp_path / "mlpruns" / "a" / "one"), range(10), 20)
    code = (
        "import sys; sys.argv = ['mlpsubmit', 'report', 'a'];\n"
        "from mlpsubmit.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "report: a.html (20 of 20 configs)\nFalse\n"
    assert (tmp_path / "a.html").read_text().endswith("</html>\n")


def test_only_reports_of_the_run_are_replaced(mlpsubmit: Command, records: Any) -> None:
    path = Path("mlpruns/a/one")
    fill(records.create(path.resolve()), range(10), 20)
    other = Path("a.html")
    other.write_text("mlpsubmit run one. <p>my notes</p>")
    refused = mlpsubmit("report")
    assert refused.code == 2
    assert "cannot write a.html: it exists and is not of run one" in refused.err
    assert other.read_text().endswith("my notes</p>")
    assert mlpsubmit("report", "--force").code == 0
    assert mlpsubmit("report").code == 0  # its own
    fill(records.create(Path("mlpruns/b/two").resolve()), range(10), 20)
    refused = mlpsubmit("report", "b", "--out", "a.html")
    assert refused.code == 2
    assert "has results of run one, not of run two" in refused.err


def test_errors_of_the_command(mlpsubmit: Command, records: Any) -> None:
    records.create(Path("mlpruns/a/one").resolve())
    wrong = mlpsubmit("report", "--out", "a.pdf")
    assert wrong.code == 2
    assert "cannot write a.pdf: unknown ending '.pdf'; a report is an .html file" in wrong.err
    nowhere = mlpsubmit("report", "--out", "nowhere/a.html")
    assert nowhere.code == 2
    assert "the folder nowhere does not exist" in nowhere.err
    unknown = mlpsubmit("report", "a", "b")
    assert unknown.code == 2
    assert not list(Path().glob("*.html"))
    with pytest.raises(UserError, match=r"a report is an \.html file"):
        write_report("a", out="a.txt")
    with pytest.raises(UserError, match=r"got 3; should be a run, its name or id, or its folder"):
        write_report(3)  # type: ignore[arg-type]


def test_a_run_with_missing_points_is_reported_with_exit_code_1(
    mlpsubmit: Command, records: Any
) -> None:
    fill(records.create(Path("mlpruns/a/one").resolve()), range(4), 20)
    done = mlpsubmit("report", "--out", "part")
    assert (done.code, done.out) == (1, "report: part.html (8 of 20 configs)\n")
    page = Path("part.html").read_text()
    assert "8 of 20" in page
    assert "12 missing" in page


def test_failures_are_grouped_with_their_place(tmp_path: Path) -> None:
    raising = "batch_fn(step):\n        assert step < 9 or not noise, 'no <noise> please'"
    spec = SMALL.replace("batch_fn(step):", raising)
    run = launched(tmp_path, spec, keep_going=True)
    page = write_report(run, out=tmp_path / "r.html").read_text()
    assert "no &lt;noise&gt; please (4 configs: noise=0.5)" in page
    assert "assert step &lt; 9 or not noise" in page
    assert "4 failed" in page


@pytest.mark.slow
def test_watch_writes_until_the_run_ends(workplace: Path) -> None:
    command = [sys.executable, "-m", "mlpsubmit"]
    launched = [*command, "launch", "small.py", "MAX_ITER=30000", "LOSS_CHECKPOINTS=[0.001]"]
    subprocess.run([*launched, "--executor", "local", "--detach"], check=True, timeout=120)
    watching = [*command, "report", "--watch"]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert "s until the run ends (Ctrl-C)" in watch.stdout.readline()
        assert "<body data-reload=" in Path("small.html").read_text()
        watch.send_signal(signal.SIGINT)
        assert watch.stdout.readline().startswith("report: small.html (")
        assert watch.wait(60) == 0
    assert "<body data-reload=" not in Path("small.html").read_text()
    done = subprocess.run(watching, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.endswith("report: small.html (8 of 8 configs)\n")
    assert "<body data-reload=" not in Path("small.html").read_text()


@pytest.mark.parametrize(
    ("axes", "names", "rows"),
    [
        ("{}, WIDTH=4", ["status"], 1),
        ("{('WIDTH', 'LR'): [(4, .1), (8, .2)]}", ["width", "lr", "width_lr", "status"], 2),
        (
            "random_search(3, LR=loguniform(1e-3, 1), WIDTH=choice(4, 8))",
            ["lr", "width", "sample", "status"],
            3,
        ),
        ("{'LOSS_CHECKPOINTS': [[0.5], [0.9, 0.1]]}, WIDTH=4", ["loss_checkpoints", "status"], 2),
        ("{'WIDTH': [4], 'CENTERED': [True, False]}", ["width", "centered", "status"], 2),
    ],
)
def test_reports_of_all_kinds_of_axes(
    tmp_path: Path, axes: str, names: list[str], rows: int
) -> None:
    run = launched(tmp_path, ONE.replace("AXES", axes))
    contents = read([run])
    assert [column.name for column in contents.columns][: len(names)] == names
    assert contents.size == rows
    page = write_report(run, out=tmp_path / "r.html").read_text()
    data = re.search(r'id="report-data">(.*?)</script>', page)
    assert data is not None
    assert json.loads(data[1])["size"] == rows


def test_damaged_files_of_a_run_cost_no_more_than_their_content(
    records: Any, tmp_path: Path
) -> None:
    directory = records.create(tmp_path / "a" / "one")
    fill(directory, range(10), 20)
    (directory.path / "ingredients.json").write_text("damaged")
    publish_json(directory.path / "heartbeats" / "000-0000.json", {"state": 3})
    page = write_report(Run(directory), out=tmp_path / "r.html").read_text()
    assert "20 of 20" in page


@pytest.mark.slow
def test_a_picture_has_no_styles_and_is_small(curves_run: Run) -> None:
    drawn = read([curves_run]).picture
    assert drawn.svg.startswith("<svg ")
    assert "style" not in drawn.svg
    assert "script" not in drawn.svg
    assert 10_000 < len(drawn.svg) < MOST_BYTES
    assert drawn.notes == ("of 24 configs 8 diverged",)
    names = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawn.svg))
    assert {a or b for a, b in names} <= set(re.findall(r' id="([^"]+)"', drawn.svg))


@pytest.mark.slow
def test_a_picture_of_many_curves_has_fewer_steps(
    curves_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read([curves_run]).picture
    monkeypatch.setattr(picture_module, "MOST_BYTES", len(whole.svg) - 1)
    assert 0 < len(read([curves_run]).picture.svg) < len(whole.svg)
    monkeypatch.setattr(picture_module, "MOST_BYTES", 10)
    none = read([curves_run]).picture
    assert none.svg == ""
    assert "it would take 0.1 MB" in none.notes[0] or "it would take 0.0 MB" in none.notes[0]


def test_a_figure_that_cannot_be_drawn_costs_no_more_than_itself(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(records.create(tmp_path / "a" / "one"))
    page = write_report(run, out=tmp_path / "none.html").read_text()
    assert "nothing to draw yet: of the 20 configs 20 have no result yet" in page
    fill(run.directory, range(10), 20)

    def failing(*_: Any) -> None:
        raise ValueError("a font is <missing>")

    monkeypatch.setattr(picture_module, "drawn_into", failing)
    page = write_report(run, out=tmp_path / "none.html").read_text()
    assert "it could not be drawn: ValueError: a font is &lt;missing&gt;" in page
    assert "20 of 20" in page


@pytest.mark.parametrize("out", ["", ".", "..", "/", "folder"])
@pytest.mark.parametrize("command", ["report", "collect"])
def test_a_folder_is_no_file_to_write(
    command: str,
    out: str,
    curves_run: Run,
    tmp_path: Path,
    mlpsubmit: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    refused = mlpsubmit(command, curves_run.path, "--out", out)
    assert refused.code == 2
    ending = ".html" if command == "report" else ".nc"
    assert f"it is a folder; give a file, such as {Path(out) / f'results{ending}'}" in refused.err
    beside = mlpsubmit(command, curves_run.path, "--out", f"file/a{ending}")
    assert f"cannot write file/a{ending}: the folder file is a file" in beside.err
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file", "small.py"}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.1, float("inf"), float("-inf")], ["0.1", "inf", "-inf"]),
        ([0.25, 0.2500001], [0.25, 0.2500001]),
        ([1_000_001, 1_000_002], [1_000_001, 1_000_002]),
        (["$x$", "x", "", "_"], ["$x$", "x", '""', "_"]),
    ],
)
def test_no_two_values_of_an_axis_are_one_in_the_report(
    values: list[Any], labels: list[Any], tmp_path: Path
) -> None:
    spec = ONE.replace("(bsz, gen,", "(mark, bsz, gen,")
    axis = repr(values).replace("-inf", "float('-inf')").replace(" inf", " float('inf')")
    run = launched(tmp_path, spec.replace("AXES", f"{{'mark': {axis}}}, WIDTH=4"))
    column = read([run]).column("mark")
    assert column.values == labels
    content = column.to_json()
    shown = content["values"]
    if column.is_text:
        shown = [content["categories"][code] for code in shown]
    assert shown == labels
    assert len({column.text(row) for row in range(len(labels))}) == len(labels)


#: How red, green and blue light are seen without one kind of cones (Machado et al. 2009).
SEEN = {
    "all": np.eye(3),
    "without L": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "without M": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "without S": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lightness_and_hue(colour: str, seen: Any) -> np.ndarray:
    """Return a colour in CIE L*a*b*."""
    share = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]]
    xyz = np.array(to_xyz) @ np.clip(np.array(seen) @ linear, 0, 1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colour_blind_readers_tell_the_colours_apart(theme: str, seen: Any) -> None:
    script = FILES.joinpath("report.js").read_text()
    found = re.search(rf"^    {theme}: (\[.*\]),$", script, re.MULTILINE)
    assert found is not None
    colours = [lightness_and_hue(colour, seen) for colour in json.loads(found[1])]
    assert len(colours) == 8
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)]
    assert min(distances) > 12


def test_very_long_texts_are_cut(tmp_path: Path) -> None:
    """A value may be the text of a whole array, and so may the message of an error."""
    spec = ONE.replace("(bsz, gen,", "(mark, bsz, gen,").replace("MAX_ITER=5", "MAX_ITER=30")
    spec = spec.replace(
        "    return lambda step: (", "    return lambda step: failing(step) and (", 1
    ).replace(
        "def batches",
        "def failing(step):\n    if step == 12:\n        raise ValueError('e' * 10 ** 6)\n"
        f"    return True  # {'c' * 100_000}\n\ndef batches",
    )
    values = [f"{'v' * 100_000}{number}" for number in range(20)]
    run = launched(tmp_path, spec.replace("AXES", f"{{'mark': {values!r}}}, WIDTH=4"))
    path = write_report(run, out=tmp_path / "long.html")
    page = path.read_text()
    assert "ValueError: eee" in page
    assert path.stat().st_size < 1_400_000
    assert len(set(read([run]).column("mark").values)) == 20


@pytest.mark.slow
def test_watch_goes_on_when_the_disk_is_full_for_a_while(
    records: Any, tmp_path: Path, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = records.create(tmp_path / "runs" / "a" / "one")
    fill(directory, range(2), 20)
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    own |= {"process_start": process_start(os.getpid()), "pid_namespace": pid_namespace()}
    directory.submission(0).mkdir(parents=True)
    intent = records.intent([[[0, 10]]], host=own["host"], created=time.time())
    publish_json(directory.submission(0) / "intent.json", intent)
    jobs = {"jobs": [records.job("1", **own)]}
    publish_json(directory.submission(0) / "jobs.json", jobs)
    beat = records.beat(**own, state="training", task="000-0000", started=time.time())
    publish_json(directory.path / "heartbeats" / "000-0000.json", {**beat, "updated": time.time()})
    assert Run(directory).status().running, Run(directory).status().tasks
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            fill_disk(monkeypatch, lambda name: "one.html" in name)
        elif len(pauses) == 2:
            monkeypatch.undo()
            monkeypatch.setattr(report_command.time, "sleep", sleep)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(report_command.time, "sleep", sleep)
    out = tmp_path / "one.html"
    shown = mlpsubmit("report", directory.path, "--out", out, "--watch")
    assert shown.out.count("report: ") == 3
    assert "not written: " in shown.err
    assert "No space left on device" in shown.err
    assert "until the run ends (Ctrl-C)" in shown.err
    assert "4 of 20" in out.read_text()


@pytest.mark.parametrize(
    ("axis", "fixed"),
    [
        ('"RECORD_EVERY": [1, 10]', "ONLYTHRESHOLDS=False"),
        ('"ONLYTHRESHOLDS": [False, True]', "RECORD_EVERY=1"),
    ],
)
def test_configs_that_record_at_other_steps_keep_their_ends(
    tmp_path: Path, axis: str, fixed: str
) -> None:
    """Also where they stop early."""
    run = launched(tmp_path, STOPS.replace("AXIS_HERE", axis).replace("FIXED_HERE", fixed))
    contents, ds = read([run]), run.collect()
    (final,) = (column.values for column in contents.columns if column.name == "train_loss")
    wanted = ds.train_loss.values.reshape(4, -1)[:, -1]
    np.testing.assert_allclose(final, wanted, rtol=1e-6)
    assert (ds.steps < 200).all()
    curves = next(own for own in contents.curves if own.name == "train_loss")
    ends = {row: steps[-1] for row, (steps, _) in zip(curves.configs, curves.points, strict=True)}
    assert ends == {row: steps - 1 for row, steps in enumerate(ds.steps.values.ravel())}
