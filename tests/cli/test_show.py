"""show: a run as it was launched, a spec before, one config; diff: two runs."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.spec.load import load_spec

# The fixtures `mlpsubmit`, `workplace` and `records` come from conftest.py.
Command = Callable[..., Any]
Refuse = Callable[[], None]

LAUNCH = ("launch", "small.py", "--executor", "debug", "MAX_ITER=20")


def launched(mlpsubmit: Command, *overrides: str) -> str:
    done = mlpsubmit(*LAUNCH, *overrides)
    assert done.code in (0, 1), done.err
    return open_run().id


@pytest.fixture
def never_unpickle(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """A function after whose call nothing can be unpickled."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was unpickled")

    def refuse() -> None:
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, refused)

    return refuse


def shown(mlpsubmit: Command, *arguments: Any) -> dict[str, Any]:
    done = mlpsubmit("show", *arguments, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


# ---- a run ---------------------------------------------------------------------------------------


def test_a_run_is_shown_as_it_was_launched(mlpsubmit: Command, workplace: Path) -> None:
    run = launched(mlpsubmit, "noise+=0.7", "SEED=3")
    (workplace / "small.py").write_text("raise ValueError")
    found = shown(mlpsubmit, run)
    assert found["schema"] == "show/1"
    assert (found["run"], found["state"], found["done"]) == (run, "done", 12)
    axes = {axis["dimension"]: axis for axis in found["axes"]}
    assert axes["noise"]["values"] == {"noise": [0.0, 0.5, 0.7]}
    assert (axes["noise"]["source"], axes["noise"]["override"]) == ("overridden", "+0.7")
    assert (axes["width"]["source"], axes["width"]["points"]) == ("set", 2)
    settings = found["hyperparameters"]
    assert settings["seed"] == {"value": 3, "source": "overridden", "override": "3"}
    assert settings["lr"] == {"value": 0.1, "source": "set", "override": None}
    assert settings["depth"] == {"value": 2, "source": "default", "override": None}
    assert "width" not in settings
    functions = {one["place"]: one for one in found["functions"]}
    assert set(functions) == {"batchfn", "grab size"}
    assert functions["batchfn"]["name"] == "linear"
    assert functions["batchfn"]["file"] == str(workplace / "small.py")
    assert functions["batchfn"]["line"] == 5
    assert re.fullmatch("[0-9a-f]{12}", functions["batchfn"]["hash"])
    assert found["plan"]["executor"] == "debug"
    assert (found["plan"]["tasks"], found["plan"]["trained_configs"]) == (1, 12)
    assert found["plan"]["template"] is None
    assert len(found["plan"]["devices"]) == 1
    assert found["origin"]["command"].endswith("MAX_ITER=20 noise+=0.7 SEED=3")


def test_the_text_of_a_run(mlpsubmit: Command, never_unpickle: Refuse) -> None:
    run = launched(mlpsubmit, "WIDTH=[4]")
    never_unpickle()
    lines = mlpsubmit("show", run).out.splitlines()
    assert lines[0] == f"small  {run}  done, 4/4 configs done"
    for line in (
        "  width  1  overridden  4",
        "  noise  2              0.0, 0.5",
        "  max_iter          overridden  20",
        "  lr                set         0.1",
        "  debug: 1 task of 1 thread",
    ):
        assert line in lines
    assert any(line.startswith("  defaults: online=True, ") for line in lines)
    assert any(re.fullmatch(r"  batchfn    [0-9a-f]{12}  linear  small.py:5", s) for s in lines)


def test_zipped_and_random_axes_callables_and_where(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text()
    text = text.replace('"WIDTH": [4, 8]', '("WIDTH", "LR"): [(4, 0.1), (8, 0.2)]')
    text = text.replace("    LR=0.1,\n", "    where=lambda c: c.noise == 0 or c.width < 8,\n")
    text = text.replace("LOSS_CHECKPOINTS", "LOSS=absolute, LOSS_CHECKPOINTS")
    text = text.replace(
        "sweep = ", "def absolute(out, y):\n    return (out - y).abs().mean()\n\nsweep = "
    )
    (workplace / "small.py").write_text(text)
    run = launched(mlpsubmit)
    found = shown(mlpsubmit, run)
    assert found["configs"] == 6
    assert found["axes"][0]["values"] == {"width": [4, 8], "lr": [0.1, 0.2]}
    assert {"where", "loss"} <= {one["place"] for one in found["functions"]}
    out = mlpsubmit("show", run).out
    assert "axes (6 configs of 8 points: where= leaves out the others)\n" in out
    assert "  width_lr (width, lr)  2  (4, 0.1), (8, 0.2)\n" in out


def test_damaged_and_older_runs_say_so(mlpsubmit: Command, workplace: Path, records: Any) -> None:
    run = records.create(workplace / "mlpruns" / "a" / "20260101-000000-000000")
    publish_json(run.path / "sweep.json", {**run.sweep, "format": 3})
    for arguments in (("show",), ("diff", run.path, run.path)):
        refused = mlpsubmit(*arguments)
        assert refused.code == 2
        assert "was written in format 3; this mlpsubmit reads format" in refused.err
    (run.path / "sweep.json").write_text("{")
    assert "sweep.json: is damaged" in mlpsubmit("show").err


# ---- a spec --------------------------------------------------------------------------------------


def test_a_spec_is_shown_before_its_launch_as_after_it(mlpsubmit: Command, workplace: Path) -> None:
    before = shown(mlpsubmit, "small.py", "MAX_ITER=20", "LR=0.3")
    assert not (workplace / "mlpruns").exists()
    run = launched(mlpsubmit, "LR=0.3")
    after = shown(mlpsubmit, run)
    for part in ("axes", "hyperparameters", "arguments", "overrides", "functions", "configs"):
        assert before[part] == after[part], part
    assert (before["run"], before["continues_run"]) == (None, None)
    assert before["missing_packs"] == before["plan"]["packs"] > 0
    again = shown(mlpsubmit, "small.py", "MAX_ITER=20", "LR=0.3")
    assert (again["continues_run"], again["missing_packs"]) == (run, 0)
    text = mlpsubmit("show", "small.py", "MAX_ITER=20", "LR=0.3").out
    assert text.startswith("small  8 configs, not launched\n")
    assert f"a launch continues run {run}: 0 packs to train\n" in text
    grown = mlpsubmit("show", "small.py", "MAX_ITER=20", "LR=0.3", "noise+=1.0").out
    assert re.search(r"^a launch makes a new run: \d+ packs? to train, 8 reused$", grown, re.M)


def test_wrong_arguments_of_show(mlpsubmit: Command, workplace: Path) -> None:
    run = launched(mlpsubmit)
    for arguments, error in {
        (run, "LR=1"): "LR=1: goes with a spec (mlpsubmit show spec.py LR=1); a run is shown as it",
        (run, "--sweep", "x"): "--sweep x: goes with a spec",
        ("small.py", "--config", "0"): "--config: goes with a run, and small.py is a spec; launch",
        ("none.py",): "none.py: no such file; give the path of a spec",
        ("small.py", "LRR=1"): "LRR: neither a hyperparameter nor an argument that a function of",
        ("nothing",): "nothing: no run of that name or id in mlpruns",
        (run, "--config", "9"): "config 9: run " + run + " has none with this index; valid are 0",
        (run, "--config", "abcdef"): "abcdef: is the start of the key of no config of run",
        (run, "--config", "width=4"): "config: width=4 matches 4 configs of run",
        (run, "--config", "x y"): "'x y': should be the index of a config, its key, or values of",
    }.items():
        refused = mlpsubmit("show", *arguments)
        assert refused.code == 2, arguments
        assert error in refused.err


# ---- a config ------------------------------------------------------------------------------------


def test_a_config_is_shown_with_its_results(
    mlpsubmit: Command, workplace: Path, never_unpickle: Refuse
) -> None:
    run = launched(mlpsubmit)
    dataset = open_run(run).collect()
    never_unpickle()
    by_index = shown(mlpsubmit, run, "--config", "5")
    assert by_index["schema"] == "show-config/1"
    assert by_index["point"] == {"width": 8, "noise": 0.0, "trial": 1}
    assert (by_index["state"], by_index["task"]) == ("done", "000-0000")
    point = dataset.sel(width=8, noise=0.0, trial=1)
    assert by_index["results"]["train_loss"] == pytest.approx(float(point.train_loss))
    assert by_index["results"]["size"] == pytest.approx(float(point["size"]))
    (timekey,) = by_index["results"]["timekeys"].items()
    crossed = point.timekeys.item()
    assert timekey == ("0.5", None if np.isnan(crossed) else crossed)
    assert by_index["settings"]["lr"] == 0.1
    assert by_index["steps"] == int(point.steps)
    key = by_index["key"]
    for selector in (key, key[:8], "width=8,noise=0,trial=1"):
        if not selector.isdecimal():
            assert shown(mlpsubmit, run, "--config", selector) == by_index
    text = mlpsubmit("show", run, "--config", "5").out
    assert text.startswith(f"config 5 of run {run} (width=8, noise=0.0, trial=1)\nkey {key}\n")
    assert "\npack 0000001, task 000-0000\n" in text
    assert "\nresults\n" in text


def test_configs_that_fail_diverge_miss_and_are_reused(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text()
    text = text.replace(
        "    def batch_fn",
        "    if noise == 0.5:\n        raise ValueError('my bug')\n    def batch_fn",
    )
    text = text.replace("LR=0.1", "LR=1e9")
    (workplace / "small.py").write_text(text)
    sweep = load_spec(workplace / "small.py")
    run = launch(sweep, executor="debug", keep_going=True).id
    failed = shown(mlpsubmit, run, "--config", "noise=0.5,width=4,trial=0")
    assert failed["state"] == "failed"
    assert failed["error"] == "ValueError: my bug"
    assert failed["error_place"] == "small.py:7 in linear"
    assert "Traceback" in failed["traceback"]
    out = mlpsubmit("show", run, "--config", "2").out
    assert "\n  ValueError: my bug\n  small.py:7 in linear: raise ValueError('my bug')\n" in out
    diverged = shown(mlpsubmit, run, "--config", "0")
    assert diverged["state"] == "diverged"
    assert diverged["results"]["train_loss"] in ("Infinity", "NaN")
    assert diverged["results"]["timekeys"] == {"0.5": None}


def test_a_config_in_training(mlpsubmit: Command, workplace: Path, records: Any) -> None:
    run = open_run(launched(mlpsubmit)).directory
    for shard in run.results.shards():
        shard.unlink()
    process = {"pid": os.getpid(), "process_start": process_start(os.getpid())}
    beat = records.beat(**process, host=os.uname().nodename) | {"state": "training"}
    pack = {"pack": "0000001", "step": 7, "max_iter": 20, "attempt": 0, "supervised": False}
    publish_json(run.heartbeat("000-0000"), {**beat, **pack, "cost_done": 0.0})
    running = shown(mlpsubmit, run.id, "--config", "width=8,noise=0,trial=0")
    assert (running["state"], running["step"], running["task"]) == ("running", 7, "000-0000")
    assert (running["results"], running["steps"]) == ({}, None)
    text = mlpsubmit("show", run.id, "--config", "4").out
    assert "\nrunning, step 7 of 20\n" in text
    several = {"configs": 4, "stack": 1, "settled": 2}  # which of the four is not known
    publish_json(run.heartbeat("000-0000"), {**beat, **pack, **several, "cost_done": 0.0})
    text = mlpsubmit("show", run.id, "--config", "4").out
    assert "\nrunning, step 7 of 20 with 1 of 4 configs after 2 others\n" in text
    assert shown(mlpsubmit, run.id, "--config", "4")["step"] is None
    assert shown(mlpsubmit, run.id, "--config", "0")["state"] == "missing"


def test_thresholds_along_an_axis_and_of_metrics(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text().replace("    LOSS_CHECKPOINTS=[0.5],\n", "")
    text = text.replace('"trial": range(2)', '"LOSS_CHECKPOINTS": [[9.0], [8.0, 1e-9]]')
    text = text.replace("LR=0.1", "LR=0.1, METRIC_THRESHOLDS={'train_r2': [-99.0]}")
    (workplace / "small.py").write_text(text)
    run = launched(mlpsubmit)
    both = [shown(mlpsubmit, run, "--config", str(index))["results"] for index in (0, 1)]
    assert both[0]["timekeys"] == {"9.0": 0}
    assert both[1]["timekeys"] == {"8.0": 0, "1e-09": None}
    assert both[1]["timekeys_train_r2"] == {"-99.0": 0}
    assert "8.0 at step 0, 1e-09 never" in mlpsubmit("show", run, "--config", "1").out


def test_a_config_without_a_result_and_one_of_an_earlier_run(
    mlpsubmit: Command, workplace: Path
) -> None:
    first = launched(mlpsubmit)
    second = launched(mlpsubmit, "noise+=1.0")
    assert second != first
    reused = shown(mlpsubmit, second, "--config", "noise=0.5,width=4,trial=0")
    assert (reused["state"], reused["reused"], reused["task"]) == ("done", True, None)
    own = shown(mlpsubmit, second, "--config", "noise=1.0,width=4,trial=0")
    assert (own["reused"], own["task"]) == (False, "000-0000")
    for shard in (workplace / "mlpruns" / "small" / second / "results").glob("*.tar"):
        shard.unlink()
    assert shown(mlpsubmit, second, "--config", "0")["state"] == "missing"


def test_a_config_is_selected_by_positions_and_by_values_with_commas(
    mlpsubmit: Command, workplace: Path
) -> None:
    text = (workplace / "small.py").read_text().replace("    LR=0.1,\n", "")
    text = text.replace('"WIDTH": [4, 8]', '("WIDTH", "LR"): [(4, 0.1), (8, 0.2)]')
    text = text.replace('"trial": range(2)', '"tag": ["a, b", "noise, c", "\\x1b[31m", "$x_1$"]')
    text = text.replace("def linear(noise,", "def linear(noise, tag,")
    (workplace / "small.py").write_text(text)
    run = launched(mlpsubmit)
    found = shown(mlpsubmit, run, "--config", "width_lr=1,noise=0.5,tag=noise, c")
    assert found["point"] == {"width": 8, "lr": 0.2, "noise": 0.5, "tag": "noise, c"}
    assert found["index"] == 13
    without_dollars = shown(mlpsubmit, run, "--config", "width_lr=1,noise=0.5,tag=x_1")
    assert without_dollars["point"]["tag"] == "$x_1$"
    refused = mlpsubmit("show", run, "--config", "width_lr=2")
    assert "width_lr: got '2'; valid are 0, 1" in refused.err
    assert "\x1b" not in mlpsubmit("show", run).out


# ---- diff ----------------------------------------------------------------------------------------


def test_two_runs_are_compared(mlpsubmit: Command, workplace: Path, never_unpickle: Refuse) -> None:
    first = launched(mlpsubmit)
    text = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(
        text.replace("inputs[:, 0] + noise", "inputs[:, 1] + noise")
    )
    second = launched(mlpsubmit, "noise=[0.5,1.0]", "PACK_SIZE=2", "LR=0.2")
    never_unpickle()
    done = mlpsubmit("diff", first, second)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[:2] == [f"--- small {first}", f"+++ small {second}"]
    for line in (
        "  axis noise: 0.0, 0.5 -> 0.5, 1.0",
        "  lr: 0.1 -> 0.2",
        "  pack_size: auto -> 2",
        "  batchfn: function linear",
        "    -        return inputs, inputs[:, 0] + noise",
        "    +        return inputs, inputs[:, 1] + noise",
        "equal: versions",
        f"keys: 0 of 8 keys of {second} are also in {first}",
        "results: 4 configs in both runs, 4 with a result in both, 0 of these equal bit for bit",
    ):
        assert line in lines, line
    found = json.loads(mlpsubmit("diff", first, second, "--json").out)
    assert found["schema"] == "diff/1"
    old, new = open_run(first).collect(), open_run(second).collect()
    both = abs(old.train_loss - new.train_loss)  # xarray takes what both have
    (loss,) = (one for one in found["results"]["variables"] if one["name"] == "train_loss")
    assert loss["largest_difference"] == pytest.approx(float(both.max()))
    assert float(both.sel(loss["point"])) == pytest.approx(float(both.max()))
    assert loss["before"] == pytest.approx(float(old.train_loss.sel(loss["point"])))
    assert (loss["compared_configs"], loss["equal_configs"]) == (4, 0)


@pytest.mark.filterwarnings("ignore:.*diverged")
def test_states_that_differ_are_words(mlpsubmit: Command) -> None:
    first, second = launched(mlpsubmit), launched(mlpsubmit, "LR=1e9")
    lines = mlpsubmit("diff", first, second).out.splitlines()
    at = lines.index("  status: 0 of 8 equal")
    assert lines[at + 1] == "    done -> diverged at width=4, noise=0.0, trial=0"
    found = json.loads(mlpsubmit("diff", second, first, "--json").out)["results"]["variables"]
    (status,) = (one for one in found if one["name"] == "status")
    assert (status["before"], status["after"]) == ("diverged", "done")
    assert status["largest_difference"] is None


def test_equal_runs_differ_in_nothing(mlpsubmit: Command) -> None:
    first, second = launched(mlpsubmit), launched(mlpsubmit, "--fresh")
    assert first != second
    lines = mlpsubmit("diff", first, second).out.splitlines()
    assert lines[2:] == [
        "equal: settings, functions, versions",
        f"keys: 8 of 8 keys of {second} are also in {first}",
        "results: 8 configs in both runs, 8 with a result in both, 8 of these equal bit for bit",
    ]


def test_an_axis_of_one_run_is_matched_with_a_setting_of_the_other(mlpsubmit: Command) -> None:
    first, second = launched(mlpsubmit), launched(mlpsubmit, "WIDTH=8", "noise=[0.5]")
    found = json.loads(mlpsubmit("diff", first, second, "--json").out)["results"]
    assert (found["shared_configs"], found["equal_configs"]) == (2, 2)
    assert found["variables"] == []
    lines = mlpsubmit("diff", second, first).out.splitlines()
    assert "  axis width: 8 (no axis) -> 4, 8" in lines
    third = launched(mlpsubmit, "WIDTH=16")
    assert mlpsubmit("diff", first, third).out.splitlines()[-1] == (
        "results: no config is in both runs: none has the same values on the axes of both"
    )


def batches(bsz: int, gen: torch.Generator, v: Any = None) -> Any:
    factor = v(torch.ones(())).item() if callable(v) else 1.0
    return lambda step: (torch.ones(bsz, 2), torch.full((bsz,), factor))


def scaled(factor: float) -> Any:
    return lambda x: factor * x


@pytest.mark.parametrize(
    ("one", "two", "shared", "equal"),
    [
        ([scaled(1), scaled(2)], [scaled(2), scaled(3)], 1, 1),  # `#1` there is `#0` here
        ([scaled(1)], [scaled(2)], 1, 0),  # edited
        ([None, "None"], ["None", 1], 1, 1),
        ([None], ["None"], 0, 0),
    ],
)
def test_results_are_compared_of_the_configs_with_equal_values(
    mlpsubmit: Command, one: list[Any], two: list[Any], shared: int, equal: int
) -> None:
    ids = two_runs(one, two)
    found = json.loads(mlpsubmit("diff", *ids, "--json").out)["results"]
    assert (found["shared_configs"], found["equal_configs"]) == (shared, equal)


def two_runs(one: list[Any], two: list[Any]) -> list[str]:
    given = {"MAX_ITER": 2, "WIDTH": 4, "N_SAMPLES": 4, "LOSS_CHECKPOINTS": []}
    return [
        launch(Sweep(name, {"v": values}, batchfn=batches, **given), executor="debug").id
        for name, values in (("one", one), ("two", two))
    ]


def test_why_finds_the_config_with_equal_values(mlpsubmit: Command) -> None:
    ids = two_runs([scaled(1), scaled(2)], [scaled(2), scaled(3)])
    found = json.loads(mlpsubmit("why", *ids, "v=<lambda> #1", "--json").out)
    assert [one["point"] for one in found["configs"]] == [
        {"v": "<lambda> #1"},
        {"v": "<lambda> #0"},
    ]
    assert len({one["key"] for one in found["configs"]}) == 1
    done = mlpsubmit("why", *two_runs([None], ["None", "a"]), "v=None")
    assert done.code == 2
    assert "has no such config: no config has v=None (its values: None, a)" in done.err


def test_a_product_and_zipped_axes_of_the_same_values(mlpsubmit: Command, workplace: Path) -> None:
    first = launched(mlpsubmit, "LR=[0.1,0.2]")
    text = (workplace / "small.py").read_text().replace("    LR=0.1,\n", "")
    zipped = text.replace('"WIDTH": [4, 8]', '("WIDTH", "LR"): [(4, 0.1), (8, 0.2)]')
    (workplace / "small.py").write_text(zipped)
    lines = mlpsubmit("diff", first, launched(mlpsubmit)).out.splitlines()
    assert lines[2:4] == ["settings:", "  zipped axes: (none) -> (width, lr)"]
    assert lines[-1].startswith("results: 8 configs in both runs, 8 with a result in both, 8 of ")


FUNCTIONS = """
import functools
import torch
from mlpsubmit import Sweep

SCALE = 2.0

def absolute(out, y):
    return (out - y).abs().mean()

def huber(out, y, delta=1.0):
    return torch.nn.functional.huber_loss(out, y, delta=delta)

def soft(x):
    return SCALE * x.tanh()

def margin(out, y):
    return (out * y).min()

def batches(bsz, gen, target):
    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, target(X[:, 0])
    return batch_fn

sweep = Sweep(
    "small",
    {
        "LOSS": ["mse", absolute, functools.partial(huber, delta=2.0)],
        "target": [lambda x: x, lambda x: x**2, soft],
        ("NONLINEARITY", "WIDTH"): [("relu", 4), (lambda x: x.clamp(-1, 1), 8)],
    },
    batchfn=batches,
    METRICS={"margin": (margin, "max")},
    where=lambda config: config.width < 8 or config.loss == "mse",
    N_SAMPLES=8,
    LOSS_CHECKPOINTS=[],
)
"""


@pytest.fixture
def functions(mlpsubmit: Command, workplace: Path) -> Callable[..., str]:
    """A function that launches a spec with functions on axes, edited, and returns the run's id."""

    def launch_edited(*edits: tuple[str, str]) -> str:
        text = FUNCTIONS
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (workplace / "small.py").write_text(text)
        return launched(mlpsubmit)

    return launch_edited


def differences(mlpsubmit: Command, first: str, second: str) -> list[str]:
    """Return the lines of diff between the settings and the keys, without the heads of diffs."""
    done = mlpsubmit("diff", first, second)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    (end,) = (n for n, line in enumerate(lines) if line.startswith("keys: "))
    return [s for s in lines[2:end] if not s.startswith(("    ---", "    +++", "    @@"))]


def test_functions_on_axes_and_where_are_compared_by_their_sources(
    functions: Callable[..., str], mlpsubmit: Command, never_unpickle: Refuse
) -> None:
    first, second = (
        functions(),
        functions(
            ("x**2", "x**3"),
            ("delta=2.0", "delta=3.0"),
            ("SCALE = 2.0", "SCALE = 3.0"),
            ("-1, 1", "-2, 2"),
            ("config.width < 8 or ", ""),
            ("abs().mean()", "abs().sum()"),
        ),
    )
    never_unpickle()
    assert differences(mlpsubmit, first, second) == [
        "functions:",
        "  axis loss=absolute: function absolute",
        "     def absolute(out, y):",
        "    -    return (out - y).abs().mean()",
        "    +    return (out - y).abs().sum()",
        "  axis loss=huber: delta: 2.0 -> 3.0",
        "  axis target=<lambda> #1: function <lambda>",
        "    -lambda x: x**2",
        "    +lambda x: x**3",
        "  axis target=soft #2: SCALE in soft: 2.0 -> 3.0",
        "  axis nonlinearity=<lambda>: function <lambda>",
        "    -lambda x: x.clamp(-1, 1)",
        "    +lambda x: x.clamp(-2, 2)",
        "  where: function <lambda>",
        '    -lambda config: config.width < 8 or config.loss == "mse"',
        '    +lambda config: config.loss == "mse"',
        "equal: settings, versions",
    ]
    changes = json.loads(mlpsubmit("diff", first, second, "--json").out)["functions"]
    assert changes[-1]["diff"].splitlines()[-1].startswith("+lambda config")
    # The same, of one config.
    why = mlpsubmit("why", first, second, "loss=absolute,target=soft #2,width=4,nonlinearity=relu")
    assert why.code == 2  # which where= leaves out
    why = mlpsubmit("why", first, second, "loss=mse,target=<lambda> #1,width=8")
    lines = why.out.splitlines()
    assert "  target: function <lambda>" in lines
    assert "    -lambda x: x**2" in lines
    assert "  nonlinearity, width: function <lambda> of nonlinearity" in lines


@pytest.mark.slow
def test_functions_that_one_run_has(functions: Callable[..., str], mlpsubmit: Command) -> None:
    first = functions()
    # Inserted among lambdas, which are numbered; on an axis, which was fixed; and none.
    second = functions(
        ("[lambda x: x,", "[lambda x: -x, lambda x: x,"),
        ('["mse", absolute, functools.partial(huber, delta=2.0)]', "[absolute]"),
        ('    where=lambda config: config.width < 8 or config.loss == "mse",\n', ""),
    )
    lines = differences(mlpsubmit, first, second)
    assert lines[0] == "settings:"
    assert lines[lines.index("functions:") :] == [
        "functions:",
        "  axis loss=huber: huber -> (none)",
        "  axis loss=huber: function huber",
        "    -def huber(out, y, delta=1.0):",
        "    -    return torch.nn.functional.huber_loss(out, y, delta=delta)",
        "  axis loss=huber: default of delta in huber: 1.0 -> (none)",
        "  axis loss=huber: delta: 2.0 -> (none)",
        "  axis target=<lambda> #0: (none) -> <lambda>",
        "  axis target=<lambda> #0: function <lambda>",
        "    +lambda x: -x",
        "  where: <lambda> -> (none)",
        "  where: function <lambda>",
        '    -lambda config: config.width < 8 or config.loss == "mse"',
        "equal: versions",
    ]
    fixed = functions(
        ('"LOSS": ["mse", absolute, functools.partial(huber, delta=2.0)],', ""),
        ("LOSS_CHECK", "LOSS=absolute, LOSS_CHECK"),
        ("abs().mean()", "abs().sum()"),
    )
    lines = differences(mlpsubmit, first, fixed)
    assert "    -    return (out - y).abs().mean()" in lines
    many = "[*(lambda x, k=k: k * x for k in range(20)), soft]"
    lines = differences(mlpsubmit, first, functions(("[lambda x: x, lambda x: x**2, soft]", many)))
    assert "  axis target=<lambda> #2 and 7 others: (none) -> <lambda>" in lines
    assert (
        "  axis target: 10 more functions are in one of the runs only: see mlpsubmit show RUN"
        in (" ".join(line.removesuffix(" --sources") for line in lines))
    )


def test_sources_are_shown(
    functions: Callable[..., str], mlpsubmit: Command, never_unpickle: Refuse
) -> None:
    run = functions()
    never_unpickle()
    lines = mlpsubmit("show", run).out.splitlines()
    assert "sources" not in lines
    table = [line.split("  ")[1:] for line in lines if re.search("  [0-9a-f]{12}  ", line)]
    names = {
        row[0]: next(filter(None, row[2:-1])).strip() for row in ([*filter(None, r)] for r in table)
    }
    assert names == {
        "batchfn": "batches",
        "where": 'lambda config: config.width < 8 or config.loss == "mse"',
        "metrics[margin][0]": "margin",
        "axis loss[1]": "absolute",
        "axis loss[2]": "huber(delta=2.0)",
        "axis target[0]": "lambda x: x",
        "axis target[1]": "lambda x: x**2",
        "axis target[2]": "soft",
        "axis nonlinearity[1]": "lambda x: x.clamp(-1, 1)",
    }
    out = mlpsubmit("show", run, "--sources").out
    head, _, sources = out.partition("\nsources\n")
    assert head.splitlines() == lines
    assert "  axis target[2]: function soft\n    def soft(x):\n        return SCALE * " in sources
    assert "  metrics: function margin\n    def margin(out, y):\n" in sources
    found = shown(mlpsubmit, run)["sources"]
    lambda_ = {"place": "axis target[1]", "part": "function <lambda>", "source": "lambda x: x**2"}
    assert lambda_ in found
    assert [one["part"] for one in found if one["place"] == "batchfn"] == ["function batches"]
    assert shown(mlpsubmit, "small.py")["sources"] == found
    refused = mlpsubmit("show", run, "--sources", "--config", "0")
    assert refused.code == 2
    assert "--sources: is of a whole run or spec; leave out --config" in refused.err


@pytest.mark.slow
def test_what_functions_on_an_axis_share_is_stored_once(
    functions: Callable[..., str], mlpsubmit: Command, workplace: Path
) -> None:
    (workplace / "helper.py").write_text(f"LONG = {'x' * 10_000!r}\n")
    many = "[functools.partial(power, k=k) for k in range(50)]"
    power = "def power(x, k):\n    import helper\n    return x * k\n\nsweep"
    run = functions(("[lambda x: x, lambda x: x**2, soft]", many), ("sweep", power))
    assert (open_run(run).path / "ingredients.json").stat().st_size < 100_000
    last = [one for one in shown(mlpsubmit, run)["sources"] if one["place"] == "axis target[49]"]
    assert last[-1]["part"] == "module helper"
    assert last[-1]["source"].startswith("LONG")
    out = mlpsubmit("show", run, "--sources").out
    assert out.count("LONG = ") == 1
    assert "  axis target[7]: module helper\n    as of axis target[0]\n" in out
    (workplace / "helper.py").write_text("LONG = 1\n")
    added = power.replace("x * k", "x + k")
    edited = functions(("[lambda x: x, lambda x: x**2, soft]", many), ("sweep", added))
    lines = differences(mlpsubmit, run, edited)
    assert lines[0:5] == [
        "functions:",
        "  axis target=power #0 and 49 others: function power",
        "     def power(x, k):",
        "         import helper",
        "    -    return x * k",
    ]
    assert lines[6] == "  axis target=power #0 and 49 others: module helper"
    assert sum(line.startswith("  ") for line in lines) == 8


def test_traces_are_compared_at_the_steps_that_both_have(mlpsubmit: Command) -> None:
    traces = ("ONLYTHRESHOLDS=False", "LOSS_CHECKPOINTS=[]", "noise=[0.5]", "trial=[0]")
    first, second = launched(mlpsubmit, *traces), launched(mlpsubmit, *traces, "RECORD_EVERY=3")
    found = json.loads(mlpsubmit("diff", first, second, "--json").out)["results"]
    losses = [one for one in found["variables"] if one["name"] == "train_loss"]
    assert [one["equal_configs"] for one in losses] == [0]
    assert losses[0]["other_shape_configs"] == 0
    assert losses[0]["largest_difference"] is None


def test_complex_and_traced_grabs_are_shown_and_compared(
    mlpsubmit: Command, workplace: Path
) -> None:
    text = (workplace / "small.py").read_text()
    grabs = (
        "unit=lambda LR: torch.tensor(LR * 1j), count=lambda LR: torch.arange(3) + round(9 * LR)"
    )
    (workplace / "small.py").write_text(text.replace('{"size": size}', f"dict({grabs})"))
    one = ("noise=[0.5]", "trial=[0]", "WIDTH=8", "LOSS_CHECKPOINTS=[]")
    first = launched(mlpsubmit, *one)
    second = launched(mlpsubmit, *one, "LR=0.3", "ONLYTHRESHOLDS=False")
    results = [shown(mlpsubmit, run, "--config", "0")["results"] for run in (first, second)]
    assert [one["unit"] for one in results] == [
        str(complex(np.complex64(x * 1j))) for x in (0.1, 0.3)
    ]
    assert [one["count"] for one in results] == ["array of shape (3,)"] * 2
    assert open_run(second).collect()["count"].dtype == np.int64
    third = launched(mlpsubmit, *one, "LR=0.3")
    out = mlpsubmit("diff", first, third).out
    assert "largest difference 0.2 (0+0.1j -> 0+0.3j)" in out
    assert json.loads(mlpsubmit("diff", first, third, "--json").out)["results"]["variables"]


def test_grabs_with_the_names_of_losses_are_called_as_in_the_dataset(
    mlpsubmit: Command, workplace: Path
) -> None:
    text = (workplace / "small.py").read_text()
    own = '{"train_loss": lambda: -1, "timekeys_x": lambda LR: -1 if LR < 0.2 else 3}'
    (workplace / "small.py").write_text(text.replace('{"size": size}', own))
    one = ("noise=[0.5]", "trial=[0]", "WIDTH=8", "LOSS_CHECKPOINTS=[]")
    first, second = launched(mlpsubmit, *one), launched(mlpsubmit, *one, "LR=0.2")
    results = shown(mlpsubmit, first, "--config", "0")["results"]
    assert results["train_loss_grab"] == -1
    assert results["train_loss"] == open_run(first).collect().train_loss.item()
    out = mlpsubmit("diff", first, second).out
    assert "  timekeys_x: 0 of 1 equal\n    largest difference 4 (-1 -> 3) at " in out
    assert "train_loss_grab" not in out


def test_what_only_one_run_has_is_none_in_the_other(mlpsubmit: Command, workplace: Path) -> None:
    first = launched(mlpsubmit)
    text = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(text.replace('"size": size', ""))
    second = launched(mlpsubmit)
    lines = mlpsubmit("diff", first, second).out.splitlines()
    assert "  grab[size]: size -> (none)" in lines
    assert lines.index("functions:") < lines.index("  grab[size]: size -> (none)")


def test_what_is_finite_in_one_run_only_is_counted(mlpsubmit: Command) -> None:
    first, second = (
        launched(mlpsubmit, "LOSS_CHECKPOINTS=[]"),
        launched(mlpsubmit, "LOSS_CHECKPOINTS=[]", "LR=1e9"),
    )
    out = mlpsubmit("diff", first, second).out
    assert "  train_loss: 0 of 8 equal, 8 values finite in one run only\n" in out


def test_versions_and_commits_are_compared(mlpsubmit: Command) -> None:
    first, second = launched(mlpsubmit), launched(mlpsubmit, "--fresh")
    run = open_run(first).directory
    origin = {
        **run.sweep["origin"],
        "torch": "2.4.0",
        "git_commit": "a" * 40,
        "git_diff_hash": "b1",
    }
    publish_json(run.path / "sweep.json", {**run.sweep, "origin": origin})
    out = mlpsubmit("diff", first, second).out
    assert "\n  torch: 2.4.0 -> 2." in out
    assert f"\n  git_commit: {'a' * 12} with changes b1 -> " in out


def test_a_run_whose_ingredients_are_lost_is_not_compared(mlpsubmit: Command) -> None:
    run = launched(mlpsubmit)
    (open_run(run).path / "ingredients.json").unlink()
    refused = mlpsubmit("diff", run, run)
    assert refused.code == 2
    assert f"run {run}: its ingredients.json is lost" in refused.err
    assert mlpsubmit("show", run).code == 0
    assert shown(mlpsubmit, run)["sources"] is None
    refused = mlpsubmit("show", run, "--sources")
    assert (refused.code, refused.out) == (2, "")
    assert f"run {run}: its ingredients.json is lost" in refused.err


# ---- a folder of runs as a selector --------------------------------------------------------------


def test_a_folder_of_runs_selects_the_latest_in_it(mlpsubmit: Command, workplace: Path) -> None:
    run = launched(mlpsubmit)
    (workplace / "mlpruns").rename(workplace / "runs")
    for folder in ("runs", "runs/", "runs/small", str(workplace / "runs")):
        done = mlpsubmit("status", folder)
        assert done.code == 0, done.err
        assert done.err == f"run {run} is the only one in {Path(folder)}\n"
    assert mlpsubmit("show", "runs", "--json").code == 0
    (workplace / "empty").mkdir()
    refused = mlpsubmit("status", "empty/")
    assert refused.code == 2
    assert "empty: is not a run (it has no sweep.json and plan.json)" in refused.err
