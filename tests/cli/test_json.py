"""The JSON of all commands that list something: one style, and the keys that docs/runs.md lists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run
from mlpsubmit.display.json_output import echo_json
from mlpsubmit.files import publish_json, read_json

# The fixtures `mlpsubmit` and `workplace` come from conftest.py.
Command = Callable[..., Any]

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"

#: Objects whose keys are names of the user's, of variables or of options.
OF_USERS = {
    *("overrides", "point", "settings", "hyperparameters", "arguments", "values", "ingredients"),
    *("runs_without_it", "differing", "sbatch", "timekeys"),
}


def documented() -> dict[str, set[str]]:
    """Return the keys that the page lists, by schema."""
    rows = re.findall(r"^\| `[^|]*` \| `([a-z-]+/\d)` \| (.*) \|$", PAGE.read_text(), re.M)
    found = {schema: set(re.findall(r"`(\w+)`", keys)) for schema, keys in reversed(rows)}
    assert len(found) == 13
    return found


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def objects(value: Any, within: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield within, value
        for key, own in value.items():
            yield from objects(own, key)
    if isinstance(value, list):
        for own in value:
            yield from objects(own, within)


@pytest.fixture
def runs(mlpsubmit: Command) -> tuple[str, str]:
    found = []
    for more in ((), ("noise+=1.0",)):
        done = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=3", *more)
        assert done.code == 0, done.err
        found.append(open_run().id)
    return found[0], found[1]


def test_every_listing_command_has_one_style(mlpsubmit: Command, runs: tuple[str, str]) -> None:
    first, second = runs
    log = open_run(second).directory.submission(0)
    (log / "000-0000_0_log.out").write_text("hello\n")
    publish_json(log / "jobs.json", {"jobs": [job(second)]})
    keys = documented()
    for command in (
        ("ls",),
        ("show", second),
        ("show", "small.py"),
        ("show", second, "--config", "0"),
        ("diff", first, second),
        ("why", second, "0"),
        ("why", second, "0", "1"),
        ("status", second),
        ("logs", second),
        ("verify", second),
        ("prune",),
        ("templates",),
        ("templates", "gpu"),
        ("doctor", "--timeout", "0"),
        ("launch", "small.py", "--dry-run", "LR=0.3"),
        ("launch", "small.py", "--dry-run", "MAX_ITER=3"),
    ):
        done = mlpsubmit(*command, "--json")
        assert done.code == 0, (command, done.err)
        assert done.out.isascii()
        content = json.loads(done.out, parse_constant=refuse)
        schema = content.pop("schema")
        if command[:2] == ("show", "small.py"):
            states = {"state", "done", "failed", "missing", "reused"}
            assert set(content) == keys[schema] - states | {"continues_run", "missing_packs"}
        else:
            assert set(content) == keys[schema], command
        for within, own in objects(content):
            for key, value in own.items():
                assert within in OF_USERS or re.fullmatch("[a-z][a-z0-9_]*", key), (command, key)
                if key.endswith("_at") and value is not None:
                    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value), (command, key)
                if key in ("path", "file", "folder", "log") and value:
                    assert value.startswith("/"), (command, key)


def job(run: str) -> dict[str, Any]:
    further = {"array": False, "host": "x", "pid": 1, "process_start": None, "pid_namespace": None}
    return {"id": "000-0000", "first": 0, "count": 1, **further}


def test_the_rows_of_ls_are_documented(mlpsubmit: Command, runs: tuple[str, str]) -> None:
    (text,) = re.findall(
        r"^The elements of `runs` in `ls/1` have (.*?);", PAGE.read_text(), re.M | re.S
    )
    row = json.loads(mlpsubmit("ls", "--json").out)["runs"][0]
    assert set(row) == set(re.findall(r"`(\w+)`", text))


def test_the_times_and_units_of_tasks(mlpsubmit: Command, runs: tuple[str, str]) -> None:
    run = open_run(runs[1]).directory
    beat = read_json(run.heartbeat("000-0000"))
    times = {"started": 1e9, "updated": 1e9 + 60}
    publish_json(run.heartbeat("000-0000"), {**beat, **times, "interval": 4.0, "speed": 5.0})
    (task,) = json.loads(mlpsubmit("status", runs[1], "--json").out)["tasks"]
    assert (task["started_at"], task["updated_at"]) == (
        "2001-09-09T01:46:40Z",
        "2001-09-09T01:47:40Z",
    )
    assert (task["interval_seconds"], task["model_steps_per_second"]) == (4.0, 5.0)
    assert not {"started", "updated", "interval", "speed", "cost_done", "startup"} & set(task)
    assert {"training_seconds", "setup_seconds"} <= set(task["speeds"][0])


def test_numbers_that_json_has_not_are_strings(capfd: pytest.CaptureFixture[str]) -> None:
    inf = float("inf")
    echo_json(
        "x/1", {"a": [inf, -inf, float("nan"), 1 + 2j, 1.5, True, None], "b": {"path": Path("/x")}}
    )
    content = json.loads(capfd.readouterr().out, parse_constant=refuse)
    listed = ["Infinity", "-Infinity", "NaN", "(1+2j)", 1.5, True, None]
    assert content == {"schema": "x/1", "a": listed, "b": {"path": "/x"}}


def test_what_does_not_go_with_json(mlpsubmit: Command, runs: tuple[str, str]) -> None:
    for command, error in {
        ("status", "--watch"): "--json: prints one object, once; leave out --watch",
        ("logs", "--follow"): "--json: lists the files of the logs, once; leave out --follow",
        ("launch", "small.py"): "--json: only valid with --dry-run, which starts nothing",
    }.items():
        refused = mlpsubmit(*command, "--json")
        assert refused.code == 2
        assert error in refused.err


def test_what_fails_is_in_the_json_too(
    mlpsubmit: Command, workplace: Path, runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(workplace / "config"))
    (workplace / "config" / "mlpsubmit").mkdir(parents=True)
    (workplace / "config" / "mlpsubmit" / "mine.toml").write_text("gpus = -1")
    listed = mlpsubmit("templates", "--json")
    assert listed.code == 2
    errors = {one["name"]: one["error"] for one in json.loads(listed.out)["templates"]}
    assert "gpus" in errors["mine"]
    assert errors["gpu"] is None
    shard = open_run(runs[1]).path / "results" / "000-0000.0.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY")] ^= 1
    shard.write_bytes(content)
    verified = mlpsubmit("verify", runs[1], "--json")
    assert verified.code == 1
    found = json.loads(verified.out)
    assert len(found["damage"]) == 1
    assert found["missing"] > 0
    monkeypatch.setattr("mlpsubmit.cli.doctor._training", lambda: (False, "no\nreason"))
    sick = mlpsubmit("doctor", "--timeout", "0", "--json")
    assert sick.code == 1
    checks = json.loads(sick.out)
    assert checks["healthy"] is False
    assert {"name": "training", "state": "bad", "text": "no\nreason"} in checks["checks"]
