"""What comes before and after training grows with the sweep as it should, by counting calls.

Times would tell more, but only on a quiet machine: bench/scale.py measures those.
"""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mlpsubmit import Sweep
from mlpsubmit.jobs import heartbeat, task, train_pack
from mlpsubmit.jobs.plan import Plan, cut, make_plan
from mlpsubmit.jobs.status import read_status
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import members
from mlpsubmit.jobs.store.stored_results import REUSED
from mlpsubmit.results import write
from mlpsubmit.runs.reuse import Reused
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.submit import missing_packs
from mlpsubmit.spec.load import load_spec

pytestmark = pytest.mark.slow

MILLION = {"LR": np.geomspace(1e-4, 1, 100), "GAMMA": range(1, 101), "trial": range(100)}
THOUSAND = {"LR": np.geomspace(1e-4, 1, 10), "GAMMA": range(1, 11), "trial": range(10)}


def batches(bsz, gen):
    raise NotImplementedError


def calls(function):
    """Return how many functions, of Python and of C, are called within a function."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


# ---- before the training -------------------------------------------------------------------------


def plan_and_cut(sweep):
    plan = make_plan(sweep, max_tasks=64, threads=1)
    cut(np.arange(plan.packs), plan.pack_costs, 64)
    sweep.keys(np.arange(len(sweep)))
    return json.dumps(plan.to_json())


@pytest.mark.parametrize("axes", [{}, {"WIDTH": [32, 64, 128]}], ids=["one shape", "widths"])
def test_a_plan_takes_as_many_calls_for_a_million_configs_as_for_a_thousand(axes):
    small, large = (
        Sweep("growth", {**axes, **own}, batchfn=batches) for own in (THOUSAND, MILLION)
    )
    for sweep in (small, large):
        _ = sweep.keys(np.zeros(1, np.int64))  # each value of an axis is digested once
    assert calls(lambda: plan_and_cut(large)) < 1.1 * calls(lambda: plan_and_cut(small))


def test_a_plan_of_a_million_configs_needs_some_bytes_for_each():
    sweep = Sweep("growth", MILLION, batchfn=batches, where=lambda config: True, WIDTH=64)
    tracemalloc.start()
    try:
        plan = make_plan(sweep, max_tasks=64, threads=1)
        assert cut(np.arange(plan.packs), plan.pack_costs, 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 10**6


def test_where_is_asked_once_for_each_point_in_order():
    asked = []
    axes = {"LR": [0.1, 1.0], ("WIDTH", "DEPTH"): [(32, 1), (64, 2), (64, 3)], "trial": range(4)}
    sweep = Sweep("growth", axes, batchfn=batches, where=lambda c: asked.append(c.point) or True)
    assert len(sweep) == len(asked) == 24
    assert asked == [sweep.product.point(index) for index in range(24)]


# ---- in the training -----------------------------------------------------------------------------


def test_a_task_makes_few_calls_for_each_pack_and_writes_no_file_for_it(
    bench, tmp_path, monkeypatch
):
    """Besides the training, and besides what it appends to its shard."""
    for module, name in ((os, "fsync"), (train_pack, "assemble")):  # the benchmark replaces these
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(task, "HEARTBEAT_SECONDS", 1e6)
    monkeypatch.setattr(heartbeat, "PROMPT_SECONDS", 1e6)
    renamed, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (renamed.append(paths), rename(*paths)))
    counts, files = [], []
    for packs in (20, 20, 40, 80):  # the first one imports
        spec = bench("scale").ALONE.spec(tmp_path, packs)
        path = bench("finished").created_run(spec, tmp_path / f"{packs}-{len(counts)}", tasks=1)
        renamed.clear()
        counts.append(calls(lambda path=path: bench("finished").trained(path)))
        files.append(len(renamed))
        assert Run(RunDirectory.open(path)).status().complete
    assert files[1] == files[2] == files[3]
    assert counts[3] - counts[2] < 2.1 * (counts[2] - counts[1])
    assert (counts[3] - counts[2]) / 40 < 1900  # a quarter of them in numpy's writer of npz files


# ---- after the training --------------------------------------------------------------------------


@pytest.fixture
def finished(bench, tmp_path):
    """A function that writes a finished run of so many packs; it returns the run and its sweep."""

    def write_run(packs, size=2):
        folder = tmp_path / f"{packs}-{size}"
        folder.mkdir()
        kind = bench("scale").SweepKind(
            "growth", '"LR": [0.1, 1.0]', 2, f"WIDTH=64, PACK_SIZE={size}"
        )
        spec = kind.spec(folder, packs * size)
        path = bench("finished").created_run(spec, folder)
        bench("finished").finish(spec, path)
        sweep = load_spec(spec)
        _ = sweep.keys(np.zeros(1, np.int64))  # each value of an axis is digested once
        return path, sweep

    return write_run


def look(path, sweep):
    status = read_status(RunDirectory.open(path))
    assert status.complete


def collect(path, sweep):
    run = Run(RunDirectory.open(path))
    write(run.layout(), run.directory.results, path / "results.nc")


def take_over(path, sweep):
    reused = Reused(sweep)
    reused.add([RunDirectory.open(path)])
    assert len(reused.indices) == len(sweep)


def find_missing(path, sweep):
    run = RunDirectory.open(path)
    assert not len(missing_packs(run, Plan.from_json(run.plan)))


def calls_of_each(function, runs):
    """Return the calls for each run, of which nothing is recorded as verified."""
    for path, _ in runs:
        for file in path.glob("results/*.verified.json"):
            file.unlink()
    return [calls(lambda run=run: function(*run)) for run in runs]


LOOKS = [look, collect, take_over, find_missing]


@pytest.mark.parametrize("function", LOOKS)
def test_calls_grow_with_the_packs_and_no_faster(function, finished):
    runs = [finished(packs) for packs in (60, 120, 240)]
    function(*runs[0])  # imports, and what is read once
    few, more, most = calls_of_each(function, runs)
    assert most - more < 2.1 * (more - few)
    assert (most - more) / 120 < 1500  # calls per pack, each in a shard of its own


@pytest.mark.parametrize("function", LOOKS)
def test_calls_do_not_grow_with_the_configs_of_a_pack(function, finished):
    runs = [finished(60, size) for size in (2, 200)]
    function(*runs[0])
    few, many = calls_of_each(function, runs)
    assert many < 1.5 * few


def test_results_that_are_taken_over_are_flushed_together(finished, tmp_path, monkeypatch, records):
    path, sweep = finished(60)
    reused = Reused(sweep)
    reused.add([RunDirectory.open(path)])
    run = records.create(tmp_path / "new")
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(file) or flush(file))
    reused.write(run)
    assert len(flushed) == 4  # the shard, the record of its environment, and their folder for each
    assert len(list(members(run.results.folder / REUSED))) == 60


def test_a_finished_run_is_as_tasks_would_have_left_it(finished):
    path, sweep = finished(60)
    dataset = Run(RunDirectory.open(path)).collect()
    assert (dataset.status == "done").all()
    assert dataset.sizes == {"lr": 2, "trial": 60, "threshold": 2}
    assert len(list((path / "results").glob("*.tar"))) == 60
    assert dataset.attrs["n_done"] == len(sweep)


# ---- the benchmark -------------------------------------------------------------------------------


def test_the_benchmark_measures_every_command_at_its_smallest_size(
    bench, figures_in, tmp_path, capsys
):
    bench("scale").main(["--largest", "1000", "--only", "numeric", "--save", str(tmp_path)])
    found = figures_in(tmp_path).items()
    measured = {(case.partition(",")[0], what): one.median for (case, what), one in found}
    commands = ("launch --dry-run", "status", "collect", "resume, to the submission")
    for what in ("plan", *commands):
        assert 0 < measured["numeric", what] < 60
        assert 10 < measured["numeric", f"{what}, peak"] < 2000
    assert 0 < measured["small", "launch, to the first step"] < 60
    assert "collected .nc" in capsys.readouterr().out


def test_the_benchmark_measures_each_phase_per_pack(bench, tmp_path):
    scale = bench("scale")
    measured = scale.Bench(tmp_path)
    measured.per_pack(200)
    figures = {figure.what: figure for figure in measured.figures}
    phases = ("plan", "run", "status", "collect", "launch --dry-run, with reuse")
    assert {f"{phase}, per pack" for phase in phases} <= set(figures)
    assert figures["run, per pack"].unit == "ms"
    assert measured.grown(scale.Figure("alone", "run, per pack", 20, 1.5, "ms")) == "  !"
    assert measured.grown(scale.Figure("alone", "run, per pack", 20, 0.5, "ms")) == ""


@pytest.mark.parametrize(
    ("values", "shown"),
    [((1.0, 2.0, 11.0), "x10.0"), ((1.0, 2.0, 101.0), "x100.0 !"), ((1.0, 1.0, 1.1), "x0.3")],
)
def test_growth_is_relative_to_the_smallest_sweep(values, shown, bench, tmp_path):
    scale = bench("scale")
    measured = scale.Bench(Path(tmp_path))
    measured.figures = [
        scale.Figure("numeric", "plan", 10**power, value, "s")
        for power, value in zip((3, 4, 5), values, strict=True)
    ]
    assert measured.grown(measured.figures[-1]).strip() == shown
    assert measured.grown(measured.figures[0]) == measured.grown(measured.figures[1]) == ""
