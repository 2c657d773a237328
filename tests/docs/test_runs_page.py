"""The commands of docs/runs.md on looking at runs, executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run

# The fixtures `mlpsubmit` and `workplace` come from conftest.py.
Command = Callable[..., Any]

PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
SECTIONS = (
    "What a run was launched with",
    "Comparing two runs",
    "All runs at a glance",
    "Removing what is superseded",
)


def test_every_command_that_looks_at_runs_works(
    mlpsubmit: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (workplace / "small.py").read_text().replace('"small"', '"study"')
    (workplace / "study.py").write_text(text)
    ids = []
    for more in ((), ("noise+=1.0",)):
        assert mlpsubmit("launch", "study.py", "--executor", "debug", "MAX_ITER=3", *more).code == 0
        ids.append(open_run().id)
    names = {"20261127-1502": ids[0], "20261127-1640": ids[1]}
    for section in SECTIONS:
        block = re.search(rf"^## {section}\n\n```bash\n(.*?)```", PAGE, re.M | re.S)
        assert block is not None, section
        for line in block[1].splitlines():
            program, *arguments = shlex.split(line)
            assert program == "mlpsubmit"
            done = mlpsubmit(*(names.get(one, one) for one in arguments))
            assert done.code == 0, (line, done.err)
            assert done.out, line
    assert [path.name for path in (workplace / "mlpruns" / "study").glob("2*")] == [ids[1]]
