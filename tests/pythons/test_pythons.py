"""All that needs no torch works with every supported Python that this machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: This Python, and those for which install.py has made an environment.
PYTHONS = {
    f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable),
    **{f.parts[-3]: f for f in sorted(Path(sys.prefix).glob("pythons/3.*/bin/python"))},
}

FOLDERS = ("spec", "slurm_templates", "jobs/store", "jobs/slurm")


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_all_that_needs_no_torch_passes(version: str) -> None:
    plugin = Path(__file__).with_name("without_torch.py")
    folders = [f"tests/{folder}" for folder in FOLDERS]
    options = ("-q", "-rA", "-p", plugin.stem, "-p", "no:cacheprovider")
    path = os.pathsep.join(map(str, (ROOT, plugin.parent)))
    done = subprocess.run(
        [PYTHONS[version], "-m", "pytest", *options, *folders],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    passed = re.findall(r"^PASSED (tests/[\w/]+\.py)", done.stdout, re.M)
    assert len(passed) > 400
    for module in ("hyperparameters", "sweep", "keys", "load", "overrides", "libraries"):
        assert passed.count(f"tests/spec/test_{module}.py") >= 10, module
