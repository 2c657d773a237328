"""The code blocks of docs/mlpscape.md run in order, and the imports of its diff work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlpsubmit import open_run

GUIDE = Path(__file__).parents[2] / "docs" / "mlpscape.md"
BLOCK = re.compile(r"^```(bash|python|diff)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_imports_that_replace_mlpscapes() -> None:
    (diff,) = (text for kind, text in BLOCK.findall(GUIDE.read_text()) if kind == "diff")
    added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
    removed = [line[1:] for line in diff.splitlines() if line.startswith("-")]
    assert len(added) == len(removed)
    for old, new in zip(removed, added, strict=True):
        wanted = old.partition(" import ")[2].replace("main as ", "")
        assert new == f"from mlpsubmit.compat import {wanted}"
    exec("\n".join(added), {})


@pytest.mark.slow
def test_every_block_runs(workplace: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = [block for block in BLOCK.findall(GUIDE.read_text()) if block[0] != "diff"]
    assert len(blocks) == 6
    for language, text in blocks:
        if file := re.match(r"# (\w+\.py)\n", text):
            (workplace / file[1]).write_text(text)
            continue
        runner = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else ["python", "-c"]
        done = subprocess.run(
            [*runner, text],
            cwd=workplace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    script, spec = (open_run(name, workplace / "mlpruns") for name in ("product_script", "product"))
    assert script.status().configs == spec.status().configs == 4
    assert script.directory.plan["packs"] < 4
