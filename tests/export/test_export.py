"""The command: its errors, what it prints, and the names that it makes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlpsubmit import UserError, export_run
from mlpsubmit.export.configs import ExportedConfig
from mlpsubmit.export.names import labels_along, run_label, tags, words
from mlpsubmit.export.record import LOCK, RECORD, opened
from mlpsubmit.files import locked, publish_json, read_json
from mlpsubmit.jobs.store.run_directory import FORMAT
from mlpsubmit.runs.run import Run
from tests.report.conftest import ONE, fill, launched

Command = Callable[..., Any]


def entries(folder: Path) -> list[Path]:
    """Return all files, but for what says that the results of a run are intact."""
    return sorted(path for path in folder.rglob("*") if not path.match("*.verified.json"))


@pytest.fixture
def refused(mlpsubmit: Command, workplace: Path) -> Callable[..., str]:
    """Return a function that runs an export which is refused, and returns the message."""

    def run(*arguments: Any) -> str:
        before = entries(workplace)
        done = mlpsubmit("export", *arguments)
        assert done.code == 2, done
        assert done.out == ""
        assert entries(workplace) == before  # nothing half-created
        text: str = done.err.removeprefix("error: ").rstrip("\n")
        return text

    return run


def test_where_to(study: Run, refused: Callable[..., str]) -> None:
    assert refused(study.path) == "export: where to? Add --to tensorboard or wandb"
    assert refused(study.path, "--to", "tensorbord") == (
        "--to: got 'tensorbord'; valid are tensorboard or wandb (did you mean 'tensorboard'?)"
    )
    assert refused(study.path, "--to", "tensorboard", "--offline") == (
        "--offline: is of W&B; leave it out, or export with --to wandb"
    )
    assert refused(study.path, "--to", "tensorboard", "--project", "x") == (
        "--project: is of W&B; leave it out, or export with --to wandb"
    )


@pytest.mark.parametrize(
    ("to", "title"),
    [("tensorboard", "TensorBoard"), ("wandb", "W&B")],
    ids=["tensorboard", "wandb"],
)
def test_without_the_extra(
    study: Run,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    title: str,
) -> None:
    monkeypatch.setitem(sys.modules, to, None)
    assert refused(study.path, "--to", to) == (
        f"exporting to {title} needs {to}; try: pip install 'mlpsubmit[{to}]'"
    )


def test_selections_are_those_of_plot(study: Run, refused: Callable[..., str]) -> None:
    to = (study.path, "--to", "tensorboard", "--sel")
    assert refused(*to, "width=5", "--sel", "wdth=4") == (
        "2 errors:\n  - sel: width has no value 5; valid are 4, 8\n"
        "  - sel: 'wdth' is not an axis (did you mean 'width'?); valid are width, note, factor"
    )
    assert refused(*to, "width") == (
        "sel: got 'width'; should be NAME=VALUE, as in width=64, width=64,128 or lr=0.01:0.1"
    )


def test_no_results_yet(records: Any, workplace: Path, refused: Callable[..., str]) -> None:
    directory = records.create(workplace / "mlpruns" / "a" / "one", packs=2)
    assert refused("--to", "tensorboard") == (
        "run one: none of 4 configs has a result yet; see mlpsubmit status one, or wait for "
        "results with --follow"
    )
    fill(directory, [0], 5)
    assert refused("--to", "tensorboard", "--sel", "n=3") == (
        "run one: the selected config has no result yet; see mlpsubmit status one, or wait for "
        "results with --follow"
    )


def test_very_many_configs(records: Any, workplace: Path, refused: Callable[..., str]) -> None:
    records.create(workplace / "mlpruns" / "a" / "one", packs=5000)
    assert refused("--to", "wandb") == (
        "run one: this would make 10,000 runs in W&B, one for each config; select fewer with "
        "--sel, such as --sel n=0, or make them all with --many"
    )
    assert "none of 10,000 configs has a result" in refused("--to", "wandb", "--many")
    assert "the selected config has no result" in refused("--to", "wandb", "--sel", "n=0")


def test_folders_that_cannot_be_written_to(
    study: Run, workplace: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "file").touch()
    to = (study.path, "--to", "tensorboard", "--out")
    assert refused(*to, "file") == "cannot export into file: file is a file; give another --out"
    assert refused(*to, "/proc/in") == (
        "cannot export into /proc/in: No such file or directory; give another --out"
    )
    assert refused(*to, "file/in") == (
        "cannot export into file/in: file is a file; give another --out"
    )
    # The tests may run as root, who can write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refused(*to, "new/logs") == (
        "cannot export into new/logs: the folder . is not writable; give another --out"
    )


def test_a_folder_is_of_one_export(
    study: Run, own_study: Run, workplace: Path, refused: Callable[..., str]
) -> None:
    (workplace / "logs").mkdir()
    record = workplace / "logs" / RECORD
    record.write_text(json.dumps({"run": "other", "to": "tensorboard"}) + "\n")
    (workplace / "logs" / LOCK).touch()
    to = (study.path, "--to", "tensorboard", "--out", "logs")
    assert refused(*to) == (
        f"logs: has an export with run 'other', not {study.id!r}; give another --out"
    )
    record.write_text("something else")
    assert refused(*to) == f"logs/{RECORD}: is not a record of an export; give another --out"
    record.unlink()
    with locked(workplace / "logs" / LOCK):
        assert refused(*to) == (
            "logs: another mlpsubmit export writes into it; wait for its end, or give another --out"
        )


def test_runs_of_other_formats(own_study: Run, refused: Callable[..., str]) -> None:
    file = own_study.path / "sweep.json"
    publish_json(file, {**read_json(file), "format": 3})
    assert refused(own_study.path, "--to", "tensorboard") == (
        f"{own_study.path}: was written in format 3; this mlpsubmit reads format "
        f"{FORMAT}; use the version that launched it"
    )


def test_what_is_printed(
    own_study: Run, keep: Callable[[int], None], resumed: Callable[[], None], mlpsubmit: Command
) -> None:
    own = f"mlpexports/tensorboard/odd/{own_study.id}"
    keep(2)
    first = mlpsubmit("export", own_study.path, "--to", "tensorboard")
    assert first.code == 1
    assert first.out == (
        f"export: {own} (2 new configs; 2 of 8)\nto see them: tensorboard --logdir {own}\n"
    )
    assert first.err == (
        "not exported: large (arrays, which trackers do not show; mlpsubmit collect has them)\n"
        f"6 configs without a result; to train them: mlpsubmit resume {own_study.id}\n"
    )
    keep(8)
    second = mlpsubmit("export", own_study.path, "--to", "tensorboard")
    assert second.code == 1
    assert second.out.startswith(f"export: {own} (6 new configs; 8 of 8)\n")
    assert second.err.endswith(
        f"2 failed configs; to train them: mlpsubmit resume {own_study.id}\n"
    )
    again = mlpsubmit("export", own_study.path, "--to", "tensorboard")
    assert again.out.startswith(f"export: {own} (nothing new; 8 of 8)\n")
    width = mlpsubmit("export", own_study.path, "--to", "tensorboard", "--sel", "note=a/b")
    assert (width.code, width.err) == (0, "")
    assert width.out.startswith(f"export: {own} (nothing new; 2 of 2)\n")
    resumed()
    last = mlpsubmit("export", own_study.path, "--to", "tensorboard", "--follow")
    assert last.code == 0
    assert last.out.startswith(f"export: {own} (2 new configs; 8 of 8)\n")


def test_a_run_that_has_lost_its_ingredients(records: Any, tmp_path: Path) -> None:
    directory = records.create(tmp_path / "a" / "one", packs=2)
    fill(directory, [0, 1], 5)
    logs = export_run(Run(directory), "tensorboard", out=tmp_path / "logs")
    assert len(list(logs.glob("n=*/events*"))) == 4


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ("{}, WIDTH=4", ["one"]),
        ("{('WIDTH', 'LR'): [(4, .1), (8, .2)]}", ["width=4, lr=0.1", "width=8, lr=0.2"]),
        ("{'CENTERED': [True, False], 'WIDTH': [4]}",
         ["centered=False, width=4", "centered=True, width=4"]),
        ("{'LOSS_CHECKPOINTS': [[0.5], [0.9, 0.1]]}, WIDTH=4",
         ["loss_checkpoints=(0.5,)", "loss_checkpoints=(0.9,0.1)"]),
        ("{'LOSS': ['mse', lambda out, y: (out - y).abs().mean()]}, WIDTH=4",
         ["loss=<lambda>", "loss=mse"]),
    ],
)  # fmt: skip
def test_all_kinds_of_axes(tmp_path: Path, axes: str, labels: list[str]) -> None:
    run = launched(tmp_path, ONE.replace("AXES", axes))
    logs = export_run(run, "tensorboard", out=tmp_path / "logs")
    assert sorted(path.name for path in logs.iterdir() if path.is_dir()) == sorted(labels)


def test_odd_values_in_a_run_are_passed_on_or_become_text(records: Any, tmp_path: Path) -> None:
    directory = records.create(tmp_path / "a" / "one", packs=1)
    sweep = read_json(directory.path / "sweep.json")
    odd = {"\ud800\n": "\ud800\0", "nan": float("inf"), "huge": 10**30, "status": "x", "": 1}
    publish_json(directory.path / "sweep.json", {**sweep, "created": "soon", "arguments": odd})
    fill(
        directory, [0], 4, train_loss=lambda clock: np.array([[np.nan, np.inf, -np.inf, 1e300]] * 2)
    )
    logs = export_run(directory.path, "tensorboard", out=tmp_path / "logs")
    (file,) = logs.glob("n=1/*")
    assert file.name == "events.out.tfevents.0000000000.mlpsubmit"
    values = [one.value for one in EventAccumulator(str(file)).Reload().Scalars("train_loss")]
    assert np.array_equal(values, [np.nan, np.inf, -np.inf, np.inf], equal_nan=True)


def test_nothing_in_a_run_is_executed(own_study: Run, tmp_path: Path) -> None:
    (own_study.path / "sweep.pkl").write_bytes(b"cos\nabort\n(tR.")
    (own_study.path / "sitecustomize.py").write_text("raise SystemExit")
    assert export_run(own_study, "tensorboard", out=tmp_path / "logs").is_dir()
    with pytest.raises(UserError, match="sel: got 'gamma=1'; should be a dictionary, as in"):
        export_run(own_study, "tensorboard", out=tmp_path / "logs", sel="gamma=1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ({"lr": [0.1, 0.1000001, 100000.0]}, ["lr=0.1", "lr=0.1000001", "lr=100000"]),
        ({"width": [4, 8], "lr": [1e-5, 0.5]}, ["width=4, lr=1e-05", "width=8, lr=0.5"]),
        ({"f": ["a", "a", "a_2"]}, ["f=a", "f=a_3", "f=a_2"]),
        ({"f": ["$x_0$", "../b", "\n\x1b"]}, ["f=x₀", "f=..∕b", r"f=\n\u001b"]),
        ({"f": ["1, g=2"]}, ["f=1,g=2"]),
        ({"f": ["x" * 50, "x" * 51]}, ["f=" + "x" * 39 + "…", "f=" + "x" * 39 + "…_2"]),
    ],
)
def test_labels_are_different(axes: Any, labels: list[str]) -> None:
    assert labels_along(axes) == labels


def test_long_labels_are_cut() -> None:
    assert run_label(["width=4", "lr=0.1"], 7) == "width=4, lr=0.1"
    long = run_label([f"{name}={'é' * 40}" for name in "abcd"], 1234)
    assert long.endswith("… #1234")
    assert len(long.encode()) <= 120
    assert run_label([".", "x"], 0) == "_, x"


def test_names_of_curves() -> None:
    names = [
        "train_loss",
        "timekeys [0.1]",
        "a/b [layer=0]",
        "$x_0$",
        "a b",
        "a.b",
        "0",
        "_step",
        "é",
    ]
    assert list(tags(names).values()) == [
        *("train_loss", "timekeys/0.1", "a∕b/layer=0", "x₀", "a b", "a.b", "0", "_step", "é"),
    ]
    assert list(words(names).values()) == [
        *("train_loss", "timekeys_0_1", "a_b_layer_0", "x_0", "a_b", "a_b_2", "_0", "step", "_"),
    ]


def test_the_record_of_somebody_else_costs_nothing(tmp_path: Path) -> None:
    lines = ['{"run": "one"}', '{"index": 0, "state": "done"}', "[1]", '{"index": "x"}', '{"names"']
    (tmp_path / RECORD).write_text("\n".join(lines))
    with opened(tmp_path, {"run": "one"}) as record:
        assert record.states == {0: "done"}
        record.add(ExportedConfig(3, "k", "l", "failed", {}, {}, error="e"))
    with pytest.raises(UserError, match="has an export with run 'one', not 'two'"), \
            opened(tmp_path, {"run": "two"}):  # fmt: skip
        pass
    with opened(tmp_path, {"run": "one"}) as record:
        assert record.states == {0: "done", 3: "failed: e"}
