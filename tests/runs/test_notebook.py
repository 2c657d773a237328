"""Notebooks: one that launches local workers and plots; what runs and sweeps look like there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from mlpsubmit import Monomial, Sweep, launch, open_run
from mlpsubmit.display.loss_figure import loss_figure
from mlpsubmit.jobs.status import Status
from mlpsubmit.jobs.task_status import TaskStatus
from mlpsubmit.runs.run import _html, notebook_display
from mlpsubmit.spec.load import load_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "staircase.ipynb"


def executed(path: Path, folder: Path) -> list[list[Any]]:
    """Run a notebook in a kernel of its own, and return the outputs of its code cells."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def html(output: Any) -> str:
    return str(output["data"]["text/html"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's client is not ours
def test_the_example_trains_shows_progress_and_plots(
    workplace: Path, mlpsubmit: Callable[..., Any]
) -> None:
    outputs = executed(EXAMPLE, workplace)
    sweep, waited, dataset, plot, table = outputs[3], *outputs[4:]
    assert "<b>staircase-notebook</b>: 6 configs" in html(sweep[0])
    # The first is what wait has shown, again and again in one place; the second is the run itself.
    assert len(waited) == 2
    assert all("6/6 configs" in html(output) for output in waited)
    assert html(waited[0]).count("<progress") == html(waited[0]).count("<svg") == 1
    assert "xarray.Dataset" in html(dataset[0])
    assert any("image/png" in output["data"] for output in plot)
    assert "last step alone" in html(table[0])

    ds = open_run("staircase-notebook").collect()
    assert (ds.status == "done").all()
    reached = (ds.coefficient.mean("trial") > 0.5).argmax("grab_step")
    steps, alone = (reached.sel(target=t).values for t in ds.target.values)
    assert steps[0] < steps[1] < steps[2] < alone[2]

    # From the command line it is the same sweep, so nothing is left to train.
    again = mlpsubmit("launch", str(EXAMPLE), "--executor", "local")
    assert again.code == 0
    assert "all 6 configs are done" in again.out
    assert len(list((workplace / "mlpruns" / "staircase-notebook").glob("2*"))) == 1


def test_the_example_is_stored_without_outputs() -> None:
    cells = nbformat.read(EXAMPLE, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# ---- HTML ----------------------------------------------------------------------------------------


def batches(noise, bsz, gen):
    raise NotImplementedError


def test_a_sweep_shows_its_axes_and_what_it_sets() -> None:
    sweep = Sweep(
        "a<b".replace("<", "-"),
        {
            "WIDTH": [2**n for n in range(4, 14)],
            ("LR", "noise"): [(0.1, "<i>"), (0.2, "&")],
            "monomials": [Monomial({0: 1})],
        },
        batchfn=lambda noise, monomials, bsz, gen: None,
        MAX_ITER=7,
    )
    shown = sweep._repr_html_()
    assert "<b>a-b</b>: 20 configs" in shown
    assert ">16, 32, 64, 128, ..., 8192<" in shown
    assert ">lr_noise<" in shown
    assert "&lt;i&gt;" in shown
    assert "$x_{0}$" in shown
    assert "MAX_ITER=7; batchfn=" in shown
    assert "DEPTH" not in shown
    assert Sweep(batchfn=batches, noise=0)._repr_html_().startswith("<div><b>sweep</b>: 1 config<")


def test_a_run_shows_how_far_it_is(workplace: Path) -> None:
    run = launch(load_spec(workplace / "small.py"), executor="debug")
    shown = run._repr_html_()
    assert f"<b>small</b> <code>{run.id}</code> done" in shown
    assert '<progress value="1.0000" max="1"></progress> 8/8 configs  100%' in shown
    assert "<table>" not in shown


def test_a_run_shows_why_configs_failed(workplace: Path) -> None:
    spec = workplace / "small.py"
    broken = "        if step == 5: raise ValueError('<bad>')\n        inputs ="
    spec.write_text(spec.read_text().replace("        inputs =", broken))
    run = launch(load_spec(spec), executor="debug")
    shown = run._repr_html_()
    assert "0/8 configs" in shown
    assert " failed  " in shown
    assert "failed: " in shown
    assert "ValueError: &lt;bad&gt;" in shown
    assert "<td" in shown


def test_a_script_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook_display() is None
    assert "IPython" not in sys.modules
    import IPython

    assert IPython.get_ipython() is None
    assert notebook_display() is None


# ---- losses -----------------------------------------------------------------------------------


def test_losses_are_drawn_with_a_line_for_each_task() -> None:
    drawn = loss_figure(
        (
            ("000-0000", ((64, 1.0), (128, 0.1), (192, None))),
            ("000-0001", ((64, 0.5),)),
            ("000-0002", ((64, None),)),
        )
    )
    assert drawn.startswith("<svg")
    assert all(f"<!-- {text} -->" in drawn for text in ("000-0000", "000-0001", "train loss"))
    assert "$\\mathdefault{10^{-1}}$" in drawn, "positive losses are on a logarithmic axis"
    assert "mathdefault{10" not in loss_figure((("a", ((1, 1.0), (2, -0.5))),))
    assert loss_figure(()) == loss_figure((("a", ((1, None),)),)) == ""


@pytest.mark.parametrize(
    "losses",
    [
        (1.7e308, -1.7e308),
        (1.7e308, 5e-324),
        (-5e-324, 0.0),
        (5e-324, 5e-324),
        (1.0, 1.0 + 2e-16),
    ],
)
def test_losses_of_any_size_are_drawn(losses: tuple[float, float]) -> None:
    """A display that fails would end the wait for the run."""
    assert "<svg" in loss_figure((("a", tuple(enumerate(losses))),))


def test_the_style_of_a_notebook_does_not_matter() -> None:
    import matplotlib as mpl

    plain = loss_figure((("a", ((1, 1.0), (2, 0.25))),))
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "black"}):
        loss_figure.cache_clear()
        styled = loss_figure((("a", ((1, 1.0), (2, 0.25))),))
        assert mpl.rcParams["text.usetex"]
    assert len(styled) == len(plain)
    assert "000000" not in plain.partition("patch_2")[2].partition("/>")[0]


def test_a_crashed_task_is_listed_among_many() -> None:
    tasks = [TaskStatus(f"000-{n:04d}", "running", {}, None) for n in range(20)]
    tasks.append(TaskStatus("000-0020", "crashed", {}, None, "killed by SIGKILL"))
    counts = (100, 0, 0, 100, 0)
    status = Status("id", "name", "path", "running", *counts, 0.0, 0.0, None, tasks, ())
    shown = _html(status)
    assert "killed by SIGKILL" in shown
    assert "... and 13 more tasks" in shown
