"""The blocks of docs/fine-tuning.md are one script that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_order(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "fine-tuning.md").read_text())
    (tmp_path / "page.py").write_text("\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLPSUBMIT_RUNS", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "page.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "square" in done.stdout
