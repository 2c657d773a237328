"""All that needs no torch works with every supported Python that this machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: This Python, and the others for which install.py has made an environment.
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


WITHOUT_WHEELS = """#!/bin/sh
case "$*" in
*ensurepip*) echo {0} ;;
*venv*) /bin/mkdir -p "$4/bin"; /bin/cp "$0" "$4/bin/python" ;;
*) echo "ERROR: No matching distribution found for h5py>=3.10" >&2; exit 1 ;;
esac
"""


def test_a_python_without_wheels_is_left_out(tmp_path: Path) -> None:
    version = "3.14" if sys.version_info[1] != 14 else "3.13"
    python = tmp_path / f"python{version}"
    python.write_text(WITHOUT_WHEELS.format(version))
    python.chmod(0o755)
    script = Path(__file__).with_name("install.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "pythons"],
        env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    why = "ERROR: No matching distribution found for h5py>=3.10"
    assert done.stdout == f"other Pythons: {version} (left out: {why})\n"
    assert not (tmp_path / "pythons" / version).exists()  # no half-made environment
