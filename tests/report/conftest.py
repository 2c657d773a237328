"""Reports in Chromium, and runs to report on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.runs.launch import launch
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

#: Two widths, three rates of which one diverges, monomials as LaTeX, and trials; with traces.
SPEC = """
import torch
from mlpsubmit import Monomial, Sweep

def target(monomials, bsz, gen, X=None, y=None):
    def batch_fn(step):
        inputs = torch.randn(bsz, 3, generator=gen)
        return inputs, torch.stack([inputs[:, i] ** e for i, e in monomials.items()]).prod(0)
    return batch_fn

def size(model):
    return model.input_layer.weight.abs().mean()

sweep = Sweep(
    "curves",
    axes={
        "WIDTH": [4, 16],
        "LR": [0.01, 0.1, 1e5],
        "monomials": [Monomial({0: 1}), Monomial({0: 1, 1: 2})],
        "trial": range(2),
    },
    batchfn=target,
    N_SAMPLES=32,
    MAX_ITER=60,
    LOSS_CHECKPOINTS=[0.9, 0.5],
    ONLYTHRESHOLDS=False,
    GRAB_EVERY=10,
    grabs={"size": size},
)
"""


#: Final losses only; AXES is to be replaced.
ONE = """
import torch
from mlpsubmit import Sweep, loguniform, choice, random_search
def batches(bsz, gen, X=None, y=None):
    return lambda step: (torch.randn(bsz, 3, generator=gen), torch.randn(bsz, generator=gen))
sweep = Sweep("one", axes=AXES, batchfn=batches, N_SAMPLES=8, MAX_ITER=5)
"""


@dataclass
class Page:
    """A page in the browser, with all that it asked for and complained of.

    Attributes:
        tab: playwright's page.
        requests: addresses other than the file's own.
        messages: of the console, violations of the policy among them, and uncaught errors.
    """

    tab: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def choose(self, name: str, value: str) -> None:
        """Choose an option of the figure."""
        self.tab.select_option(f"#choose-{name}", value)

    def figure(self) -> Mapping[str, Any]:
        """Return what ECharts draws: the series and the axes of the figure."""
        found: Mapping[str, Any] = self.tab.evaluate(
            """() => {
                const chart = document.getElementById("figure-chart");
                const option = echarts.getInstanceByDom(chart).getOption();
                const series = option.series.map(({type, name, data, xAxisIndex}) =>
                    ({type, name, panel: xAxisIndex, data: type === "custom" ? [] : data}));
                const axis = ({type, name, min, max, data}) => ({type, name, min, max, data});
                return {series, x: option.xAxis.map(axis), y: option.yAxis.map(axis),
                        titles: (option.title || []).map((title) => title.text)};
            }"""
        )
        return found

    def curves(self) -> list[list[list[float]]]:
        """Return the points of each curve of the figure."""
        series = (one for one in self.figure()["series"] if one["type"] == "lines")
        return [item["coords"] for one in series for item in one["data"]]


@pytest.fixture(scope="module")
def chromium(installed: Callable[[str], str]) -> Iterator[Any]:
    """Chromium of the system, for one module: its driver occupies the event loop of this thread."""
    program = installed("chromium")
    with sync_playwright() as driver:
        # Its sandbox does not start for root, nor in most containers.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a report; ``before`` is a script that runs before its own."""
    contexts = []

    def opened(path: Path, address: str = "", before: str = "", **options: Any) -> Page:
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        contexts.append(chromium.new_context(**options))
        page = Page(contexts[-1].new_page())
        page.tab.add_init_script(before)
        own = path.resolve().as_uri()
        page.tab.on("console", lambda message: page.messages.append(message.text))
        page.tab.on("pageerror", lambda error: page.messages.append(str(error)))
        page.tab.on(
            "request",
            lambda request: (
                page.requests.append(request.url) if request.url.partition("#")[0] != own else None
            ),
        )
        page.tab.goto(own + address)
        return page

    yield opened
    for context in contexts:
        context.close()


def launched(folder: Path, spec: str, **options: Any) -> Run:
    """Train a spec in this process, and return the run."""
    file = folder / "spec.py"
    file.write_text(spec)
    path = list(sys.path)
    try:
        sweep = load_spec(file)
        return launch(sweep, executor="debug", runs_dir=folder / "runs", spec=file, **options)
    finally:
        sys.path[:] = path


@pytest.fixture(scope="session")
def curves_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with traces: 24 configs, of which 8 diverged."""
    return launched(tmp_path_factory.mktemp("curves"), SPEC)


def fill(run: RunDirectory, packs: Sequence[int], steps: int, **arrays: Callable[..., Any]) -> None:
    """Write results of packs of two configs with traces.

    Args:
        arrays: functions of the steps that return the traces of both configs.
    """
    clock = np.arange(steps)
    with Shard(run.results.folder / "000-0000.0.tar") as shard:
        for pack in packs:
            content = {
                "index": np.array([2 * pack, 2 * pack + 1]),
                "key": np.array([f"{i:032x}" for i in (2 * pack, 2 * pack + 1)], dtype="S32"),
                "status": np.ones(2, np.uint8),
                "steps": np.full(2, steps),
                "seconds": np.full(2, 1.5),
                "timekeys": np.array([[steps // 2], [-1]]),
                "step": clock,
                "train_loss": np.stack([1 / (1 + clock), 2 / (1 + clock)]),
                **{name: function(clock) for name, function in arrays.items()},
            }
            file = io.BytesIO()
            np.savez(file, **content)
            shard.append(f"{pack:07d}.npz", file.getvalue(), sync=False)
