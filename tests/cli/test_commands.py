"""The command line: what each command does, and the errors that it reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from mlpsubmit import UserError, launch, open_run
from mlpsubmit.files import read_json
from mlpsubmit.jobs.store import records
from mlpsubmit.spec.load import load_spec

Command = Callable[..., Any]


def test_launch_collect_status_logs(mlpsubmit: Command, workplace: Path) -> None:
    launched = mlpsubmit("launch", "small.py", "--executor", "debug")
    assert launched.code == 0, launched.err
    assert "Sweep('small', width[2] x noise[2] x trial[2], 8 configs)" in launched.out
    assert "all 8 configs are done; next: mlpsubmit collect" in launched.out

    shown = mlpsubmit("status")
    assert shown.code == 0
    assert "8/8 configs  100%" in shown.out

    collected = mlpsubmit("collect", "--plot", "picture.png")
    assert collected.code == 0
    assert "results: small.nc (8 of 8 configs)" in collected.out
    assert (workplace / "picture.png").read_bytes().startswith(b"\x89PNG")
    with xarray.open_dataset("small.nc", engine="h5netcdf") as dataset:
        assert dict(dataset.sizes) == {"width": 2, "noise": 2, "trial": 2, "threshold": 1}
        assert (dataset.status == "done").all()
        assert (dataset.timekeys >= 0).all()
        assert np.isfinite(dataset["size"]).all()
        assert dataset.attrs["command"] == "mlpsubmit launch small.py --executor debug"
        assert dataset.attrs["sweep"] == "small"


@pytest.mark.filterwarnings("always")
def test_a_warning_is_shown_once(mlpsubmit: Command) -> None:
    launched = mlpsubmit("launch", "small.py", "OPTIMIZER=Adagrad", "--executor", "debug")
    assert launched.code == 0, launched.err
    assert launched.err.count("warning: PARAMETRIZATION='mup' with OPTIMIZER=Adagrad: ") == 1


def test_a_launch_says_which_code_keeps_results_from_being_reused(
    mlpsubmit: Command, workplace: Path
) -> None:
    """A line that seeds a generator changes all keys, which nobody would suspect."""
    first = mlpsubmit("launch", "small.py", "--executor", "debug")
    before, file = open_run().id, workplace / "small.py"
    assert "is reused" not in first.out
    assert "is reused" not in mlpsubmit("launch", "small.py", "LR=0.2", "--executor", "debug").out

    file.write_text(f"import random\nrandom.seed(1)\n{file.read_text()}")
    again = mlpsubmit("launch", "small.py", "--executor", "debug")
    latest = open_run().id
    assert before != latest
    assert re.search(
        rf"\nno result of run \S+ is reused: process\[generators\] differs \(how: mlpsubmit diff "
        rf"\S+ {latest}\)\n",
        again.out,
    ), again.out
    assert "no result" not in mlpsubmit("launch", "small.py", "--fresh", "--executor", "debug").out


def test_overrides_change_the_sweep(mlpsubmit: Command) -> None:
    done = mlpsubmit(
        "launch", "small.py", "WIDTH=6", "noise=[0.1,0.2]", "lr=[0.1,0.2]", "--dry-run"
    )
    assert done.code == 0
    assert "Sweep('small', noise[2] x trial[2] x lr[2], 8 configs)" in done.out


def test_a_dry_run_makes_nothing(mlpsubmit: Command, workplace: Path) -> None:
    before = sorted(workplace.iterdir())
    done = mlpsubmit("launch", "small.py", "--dry-run", "--tasks", "2")
    assert done.code == 0
    assert "local: 2 tasks of" in done.out
    assert "  task 1: 2 packs, 4 configs, 50% of the FLOPs" in done.out
    assert [path for path in sorted(workplace.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: no such file; give the path of a spec, or make one"),
        (["small.py", "WIDHT=3"], "WIDHT: neither a hyperparameter nor an argument"),
        (["small.py", "WIDHT=3"], "did you mean 'width'?"),
        (["small.py", "WIDTH=0"], "WIDTH: got 0; should be an integer >= 1"),
        (["small.py", "LR=-1"], "LR: got -1; should be a finite number > 0"),
        (["small.py", "LR=nan"], "LR: got nan; should be a finite number > 0"),
        (["small.py", "WIDTH=[]"], "axis width: has no values"),
        (["small.py", "WIDTH=[4,4.0]"], "axis width: the value 4 appears more than once"),
        (["small.py", "WIDTH"], "'WIDTH': an override should be KEY=VALUE, as in LR=0.1"),
        (["small.py", "LR=1", "LR=2"], "LR: is given twice; keep one"),
        (["small.py", "LR=1", "lr=2"], "lr: is given twice; keep one"),
        (["small.py", "PERCENT_THRESHOLDS=[0.1]"], "got both of LOSS_CHECKPOINTS"),
        (["small.py", "LOSS_CHECKPOINTS=None"], "got neither of LOSS_CHECKPOINTS"),
        (["small.py", "--executor", "slurn"], "--executor slurn: no such executor"),
        (
            ["small.py", "--pdb"],
            "--pdb: needs the training to run in this process; add --executor debug",
        ),
        (["small.py", "--tasks", "100000"], "--tasks 100000: this machine has"),
        (["small.py", "--executor", "debug", "--tasks", "2"], "the debug executor has one task"),
        (["small.py", "DEVICES=[97]"], "DEVICES: got [97]; this machine's GPUs are"),
        (["small.py", "--sweep", "larger"], "--sweep larger: no such sweep"),
        (["small.py", "LOSS=cross_entropy"], "D_OUT: not set, and LOSS='cross_entropy'"),
        (["small.py", "MODEL=resnet"], "MODEL: got 'resnet'; should be one of 'mlp'"),
        (["small.py", "OPTIMIZER=SDG"], "OPTIMIZER: torch.optim has no optimizer 'SDG'"),
        (["small.py", "--runs-dir", "small.py"], "small.py/small: cannot be written"),
    ],
)
def test_an_error_on_launch_says_so_and_makes_nothing(
    mlpsubmit: Command, workplace: Path, arguments: list[str], message: str
) -> None:
    refused = mlpsubmit("launch", *arguments)
    assert message in refused.err
    assert refused.err.startswith("error: ")
    assert "Traceback" not in refused.err
    assert refused.code == 2
    assert not (workplace / "mlpruns").exists()


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_of_words(mlpsubmit: Command, workplace: Path) -> None:
    spec = workplace / "small.py"
    again = "if X is not None:\n        return lambda step: (X, y + 1)\n    def batch_fn"
    spec.write_text(spec.read_text().replace("def batch_fn", again))
    launched = mlpsubmit("launch", "small.py", "ONLINE=False", "--dry-run")
    assert launched.code == 0
    (line,) = launched.err.splitlines()
    assert line.startswith("warning: batchfn linear: offline, its first result is the training set")


def test_draws_from_a_global_generator_are_refused(mlpsubmit: Command, workplace: Path) -> None:
    spec = workplace / "small.py"
    spec.write_text(spec.read_text().replace(", generator=gen", ""))
    refused = mlpsubmit("launch", "small.py")
    assert refused.code == 2
    assert "batchfn linear draws from the global generator of torch" in refused.err
    assert not (workplace / "mlpruns").exists()


def test_several_errors_come_together(mlpsubmit: Command) -> None:
    refused = mlpsubmit("launch", "small.py", "WIDTH=0", "GAMMA=-1", "MOMENTUM=1")
    assert refused.code == 2
    assert "3 errors:" in refused.err
    for name in ("WIDTH", "GAMMA", "MOMENTUM"):
        assert f"  - {name}: got" in refused.err


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("None", "batchfn broken: returned NoneType; a batch function should return a function"),
        (
            "lambda step: torch.ones(2, 3)",
            "batch_fn(0) returned Tensor; expected a pair (X, y) of tensors",
        ),
        ("lambda step: (torch.ones(2, 3),) * 3", "batch_fn(0) returned 3 values"),
        (
            "lambda step: (torch.ones(2, 3), torch.ones(5))",
            "got X of shape (2, 3) and y of shape (5,)",
        ),
        (
            "lambda step: (torch.ones(2, 3), torch.ones(2, 2, 2))",
            "should be X (n, ...) of at least two dimensions and y (n,) or (n, d_out)",
        ),
    ],
)
def test_wrong_batches_are_said_at_launch(
    mlpsubmit: Command, workplace: Path, factory: str, message: str
) -> None:
    spec = f"import torch\nfrom mlpsubmit import Sweep\ndef broken(bsz):\n    return {factory}\n"
    (workplace / "wrong.py").write_text(spec + "sweep = Sweep('wrong', batchfn=broken, WIDTH=4)\n")
    refused = mlpsubmit("launch", "wrong.py")
    assert message in refused.err
    assert refused.code == 2
    assert not (workplace / "mlpruns").exists()


def test_an_argument_that_nothing_provides_is_said_at_launch(
    mlpsubmit: Command, workplace: Path
) -> None:
    spec = (workplace / "small.py").read_text().replace('"noise": [0.0, 0.5], ', "")
    (workplace / "small.py").write_text(spec)
    refused = mlpsubmit("launch", "small.py")
    assert "linear needs 'noise'" in refused.err
    assert "give the argument in the spec, as an axis, or with a default" in refused.err
    assert refused.code == 2


def test_a_table_has_all_columns_in_a_pipe_and_those_that_fit_in_a_terminal(
    mlpsubmit: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = [0.5, 0.4, 0.3, 0.2, 0.1]
    overrides = ("MAX_ITER=3", f"LOSS_CHECKPOINTS={thresholds}")
    assert mlpsubmit("launch", "small.py", "--executor", "debug", *overrides).code == 0
    table = mlpsubmit("collect").out.partition("results:")[0]
    assert all(f"steps to {threshold}" in table.splitlines()[2] for threshold in thresholds)
    assert "…" not in table
    for variable, value in {"COLUMNS": "60", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NO_COLOR", "1")
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in mlpsubmit("collect").out.splitlines()]
    assert {len(line) for line in lines if line[:1] in tuple("┏┃┡│└")} == {55}
    assert "steps to 0.5" in lines[2]
    assert "not shown, as this terminal is narrow: steps to 0.1, steps to 0.2, " in lines[-2]
    monkeypatch.setenv("COLUMNS", "30")
    lines = mlpsubmit("collect").out.splitlines()
    assert lines[-2].endswith("steps to 0.5, width")
    assert "noi…" in lines[2]


@pytest.mark.parametrize("command", ["status", "collect", "resume", "cancel", "logs"])
def test_a_selector_that_matches_nothing(mlpsubmit: Command, workplace: Path, command: str) -> None:
    refused = mlpsubmit(command)
    assert "mlpruns: contains no runs; launch one (mlpsubmit launch spec.py)" in refused.err
    assert refused.code == 2

    refused = mlpsubmit(command, ".")
    assert f"{workplace}: is not a run (it has no sweep.json and plan.json)" in refused.err
    assert refused.code == 2
    assert sorted(path.name for path in workplace.iterdir()) == ["small.py"]


def test_a_file_hides_no_sweep_of_its_name(mlpsubmit: Command, workplace: Path) -> None:
    assert mlpsubmit("launch", "small.py", "--executor", "debug").code == 0
    (workplace / "small").touch()
    assert mlpsubmit("status", "small").code == 0
    (workplace / "other").touch()
    assert "other: is no run, but a file; give the name of a" in mlpsubmit("status", "other").err


def test_selectors(mlpsubmit: Command, workplace: Path) -> None:
    for name in ("one", "two"):
        (workplace / f"{name}.py").write_text(
            (workplace / "small.py").read_text().replace('"small"', f'"{name}"')
        )
        mlpsubmit("launch", f"{name}.py", "--executor", "debug", "MAX_ITER=2")
    one, two = open_run("one"), open_run("two")
    assert open_run().id == two.id
    assert open_run(one.id).id == one.id
    assert open_run(one.id[-6:]).id == one.id
    assert open_run(one.path).id == one.id
    assert open_run(f"one/{one.id}").id == one.id

    both = mlpsubmit("status", one.id[:4])
    assert f"{one.id[:4]}: matches 2 runs; give more characters of the id, or a path:" in both.err
    assert one.id in both.err
    assert two.id in both.err
    assert both.code == 2

    assert mlpsubmit("collect", "one", "--no-table").code == 0
    for command, file, give in [
        ("report", "one.nc", f"it was made of run {one.id}; give that"),
        ("status", "one.py", "give the name of its sweep, for the latest run of it"),
        ("collect", "notes.txt", "give the name of a sweep, a run id, or the folder of a run"),
    ]:
        Path("notes.txt").touch()
        for path in (file, f"./{file}"):
            refused = mlpsubmit(command, path)
            assert refused.code == 2
            assert f"{file}: is no run, but a file; {give}" in refused.err
    refused = mlpsubmit("launch", ".")
    assert ".: is a folder; give the path of a spec, a .py file or a notebook" in refused.err
    assert refused.code == 2

    neither = mlpsubmit("status", "onr")
    assert "onr: no run of that name or id in mlpruns (did you mean 'one'?)" in neither.err
    assert "there are runs of one, two" in neither.err
    assert neither.code == 2


def test_collect_refuses_an_unknown_ending(mlpsubmit: Command, workplace: Path) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    refused = mlpsubmit("collect", "--out", "results.xlsx")
    assert "results.xlsx" in refused.err
    assert ".nc" in refused.err
    assert refused.code == 2
    assert not (workplace / "results.xlsx").exists()


def test_a_dry_run_shows_how_large_the_weights_are(mlpsubmit: Command) -> None:
    assert "SAVE_WEIGHTS" not in mlpsubmit("launch", "small.py", "--dry-run").out
    shown = mlpsubmit("launch", "small.py", "--dry-run", "WIDTH=256", "SAVE_WEIGHTS=25").out
    # 4 configs of 64 x 256 + 256 x 256 + 256 weights (64 inputs assumed), after 5 steps.
    assert "SAVE_WEIGHTS=25 keeps about 6.3 MiB of weights in them" in shown


def test_a_dry_run_says_what_is_done_already(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug")
    unchanged = mlpsubmit("launch", "small.py", "--dry-run").out
    assert "continues: 0 packs to train, 8 configs already done" in unchanged
    grown = mlpsubmit("launch", "small.py", "trial=[0,1,2]", "--dry-run").out
    assert "a new run: " in grown
    assert "8 configs already done" in grown


def test_names_that_look_like_files_and_folders(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text().replace('"small"', '"a.b"')
    (workplace / "small.py").write_text(text)
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    (workplace / "a.b").mkdir()
    assert "results: a.b.nc" in mlpsubmit("collect", "a.b").out


def test_functions_on_an_axis_are_told_apart(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text()
    text = text.replace(
        '"noise": [0.0, 0.5]',
        '"LOSS": [lambda f, y: (f - y).abs().mean(), "mse", lambda f, y: (f - y).square().mean()]',
    )
    (workplace / "small.py").write_text(text.replace("LR=0.1", "LR=0.1, noise=0.0"))
    ended = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    assert ended.code == 0, ended.err
    assert open_run().collect().loss.values.tolist() == ["<lambda> #0", "mse #1", "<lambda> #2"]


def test_init_writes_a_spec_that_plans_and_overwrites_nothing(
    mlpsubmit: Command, workplace: Path
) -> None:
    assert mlpsubmit("init", "mine.py").code == 0
    assert "8 configs" in mlpsubmit("launch", "mine.py", "--dry-run").out
    refused = mlpsubmit("init", "mine.py")
    assert "mine.py: exists already; give another path" in refused.err
    assert refused.code == 2
    refused = mlpsubmit("init", "mine")
    assert "mine: a spec is a .py file; try mine.py" in refused.err
    assert refused.code == 2
    refused = mlpsubmit("init", "no/folder/mine.py")
    assert "no/folder/mine.py: cannot be written (No such file or directory)" in refused.err
    assert refused.code == 2


def test_templates_lists_the_packaged_and_the_users_own(
    mlpsubmit: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workplace))
    listed = mlpsubmit("templates").out
    assert "gpu            one GPU per task" in listed
    own = workplace / ".config" / "mlpsubmit"
    own.mkdir(parents=True)
    (own / "gpu.toml").write_text('description = "the one in the corner"')
    assert "gpu            the one in the corner" in mlpsubmit("templates").out
    (own / "gpu.toml").write_text("description = ")
    refused = mlpsubmit("templates")
    assert "gpu.toml: is not TOML" in refused.err
    assert refused.code == 2


def test_doctor_says_what_works(mlpsubmit: Command, workplace: Path) -> None:
    healthy = mlpsubmit("doctor")
    assert healthy.code == 0
    assert "ok   training     20 steps" in healthy.out
    assert "ok   C functions  compiled for " in healthy.out
    assert "ok   spec         a spec of 8 configs is read, and sent to workers in " in healthy.out
    (workplace / "file").write_text("")
    sick = mlpsubmit("doctor", "--runs-dir", "file/runs")
    assert sick.code == 1
    assert "BAD  runs" in sick.out


def test_doctor_says_why_the_functions_in_c_are_not_compiled_which_is_no_failure(
    mlpsubmit: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace))
    monkeypatch.setenv("CC", "no-such-compiler")
    told = mlpsubmit("doctor")
    assert told.code == 0
    assert "-    C functions  not used: no-such-compiler: [Errno 2]" in told.out
    assert "; CC should name a GCC or a Clang; PyTorch's are, which may be slower\n" in told.out


@pytest.mark.parametrize("tasks", [0, -1, 1.5, "2"])
def test_tasks_from_python(workplace: Path, tasks: Any) -> None:
    with pytest.raises(UserError, match=r"tasks: got .*; should be an integer >= 1"):
        launch(load_spec(Path("small.py")), tasks=tasks)
    with pytest.raises(UserError, match=r"retries: got .*; should be an integer >= 0"):
        launch(load_spec(Path("small.py")), executor="slurm", retries=tasks if tasks else -1)
    with pytest.raises(UserError, match=r"launch: got 'small.py'; should be a Sweep"):
        launch("small.py")  # type: ignore[arg-type]
    assert not (workplace / "mlpruns").exists()


def test_sweeps_of_equal_names_are_told_apart_by_variable(
    mlpsubmit: Command, workplace: Path
) -> None:
    text = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(text + "\nother = sweep.overridden({'LR': 0.2})\n")
    refused = mlpsubmit("launch", "small.py", "--sweep", "small")
    assert "2 sweeps have that name; give the variable that holds it: other, sweep" in refused.err
    assert mlpsubmit("launch", "small.py", "--sweep", "other", "--dry-run").code == 0


def test_status_for_scripts(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug")
    shown = json.loads(mlpsubmit("status", "--json").out)
    assert (shown["state"], shown["done"], shown["missing"], shown["failed"]) == ("done", 8, 0, 0)
    assert shown["tasks"][0]["state"] == "done"


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"], ["status"]])
def test_quick_commands_do_not_import_torch(mlpsubmit: Command, arguments: list[str]) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    script = (
        "import sys\nfrom mlpsubmit.cli.main import main\n"
        f"sys.argv = ['mlpsubmit', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'submitit', 'xarray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


def test_every_field_of_a_json_file_is_declared(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small").directory
    run.end_submission(0, "cancelled")
    run.results.verify()
    models: dict[str, Any] = {
        "sweep.json": records.Manifest,
        "plan.json": records.PlanRecord,
        "ingredients.json": records.Ingredients,
        "results/000-0000.0.json": records.Environments,
        "results/000-0000.0.verified.json": records.VerificationRecord,
        "launched.json": records.Launched,
        "submissions/000/intent.json": records.Intent,
        "submissions/000/ended.json": records.EndedSubmission,
        "heartbeats/000-0000.json": records.Beat,
    }
    for name, model in models.items():
        written = read_json(run.path / name)
        assert set(written) <= {*model.__annotations__, "format"}, name


@pytest.mark.slow
def test_every_command_counts_a_damaged_result_as_missing(mlpsubmit: Command) -> None:
    launch = ("launch", "small.py", "--executor", "debug", "MAX_ITER=3", "PACK_SIZE=2")
    assert mlpsubmit(*launch).code == 0
    run = open_run("small")
    (shard,) = run.directory.results.shards()
    member = next(run.directory.results.members()).name
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY")] ^= 1
    shard.write_bytes(content)
    assert mlpsubmit("status").code == 0  # only headers are read, and nobody has found it yet

    collected = mlpsubmit("collect")
    assert collected.code == 1
    assert "(6 of 8 configs)" in collected.out
    damage = f"damaged: {shard.name}: {member}; its configs count as missing"
    assert damage in collected.err
    assert f"to train the missing points: mlpsubmit resume {run.id}" in collected.err
    status = mlpsubmit("status")
    assert status.code == 1
    assert "stopped" in status.out
    assert "6/8 configs" in status.out
    assert damage in " ".join(status.out.split())
    assert json.loads(mlpsubmit("status", "--json").out)["damaged"] == [f"{shard.name}: {member}"]
    assert open_run().wait().done == 6
    assert "1 pack to train, 6 configs already done" in mlpsubmit(*launch, "--dry-run").out
    # A new run reuses what counts, and no more.
    grown = mlpsubmit(*launch[:-2], "MAX_ITER=3", "PACK_SIZE=2", "trial=[0,1,2]")
    assert "6 reused" in mlpsubmit("status").out, grown
    assert mlpsubmit("resume", run.id, "--executor", "debug").code == 0
    assert mlpsubmit("collect", run.id).code == 0
    assert json.loads(mlpsubmit("status", run.id, "--json").out)["damaged"] == []


@pytest.mark.slow
def test_damaged_reused_results_count_as_missing(mlpsubmit: Command) -> None:
    launch = ("launch", "small.py", "--executor", "debug", "MAX_ITER=3", "PACK_SIZE=4")
    mlpsubmit(*launch)
    mlpsubmit(*launch, "trial=[0,1,2]")
    run = open_run("small")
    shard = run.directory.results.folder / "reused.0.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY")] ^= 1
    shard.write_bytes(content)
    assert run.status().reused == 8
    assert "(8 of 12 configs)" in mlpsubmit("collect").out
    assert open_run().status().reused == 4
    refused = mlpsubmit("resume", "--executor", "debug")
    assert refused.code == 2
    assert "4 results reused from earlier runs cannot be read any more (damaged)" in " ".join(
        refused.err.split()
    )
    assert mlpsubmit(*launch, "trial=[0,1,2]").code == 0
    assert open_run().status().complete
