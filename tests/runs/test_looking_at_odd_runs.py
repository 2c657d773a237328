"""show, diff, why, ls and prune of runs with wrong or missing fields: one message, or a row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run
from mlpsubmit.errors import UserError
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.config_details import config_details
from mlpsubmit.runs.description import described_run
from mlpsubmit.runs.diff import run_differences
from mlpsubmit.runs.overview import overview
from mlpsubmit.runs.prune import find
from mlpsubmit.runs.why import compare_with_earlier

# The fixtures `mlpsubmit` and `workplace` come from conftest.py.
Command = Callable[..., Any]

ODD: tuple[Any, ...] = (None, -1, 1e300, "", "x\x1b", [], {}, True, [[1]], {"a": None}, 2**70)

FILES = (
    "sweep.json",
    "plan.json",
    "ingredients.json",
    "submissions/000/intent.json",
    "heartbeats/000-0000.json",
    "results/000-0000.0.json",
)


def look(first: Path, second: Path) -> None:
    """Look at a run in every way that reads it."""
    (row,) = overview([second])
    json.dumps(row.to_json())
    find([first, second])
    ways: tuple[Callable[[RunDirectory], Any], ...] = (
        lambda run: described_run(run, {}).to_json(),
        lambda run: run_differences(RunDirectory(first), run).to_json(),
        lambda run: compare_with_earlier(run, "0").to_json(),
        lambda run: config_details(run, open_run(second).status(), "0", {}).to_json(),
    )
    for way in ways:
        with contextlib.suppress(UserError):
            json.dumps(way(RunDirectory.open(second)), default=str)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_wrong_or_missing_field(mlpsubmit: Command, records: Any, name: str) -> None:
    for more in ((), ("noise+=1.0",)):
        mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2", *more)
    second = open_run().path
    (first,) = (path for path in second.parent.glob("2*") if path != second)
    whole = read_json(second / name)
    look(first, second)
    for content in records.wrong(whole, ODD, 3):
        if isinstance(content, dict):  # what has no checksum is tested by tests/jobs/store
            publish_json(second / name, content, sync=False)
            look(first, second)
