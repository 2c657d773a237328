"""Where no cluster can run its tests are skipped with the reason; in CI that is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def collected(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the test of the guide on a machine without any SLURM."""
    ours = ("CI", "PATH", "PYTEST")  # a pytest within one
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/slurm/test_guide.py"],
        cwd=ROOT,
        env={**kept, "PATH": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_slurm() -> None:
    skipped = collected()
    assert skipped.returncode == 0
    assert "1 skipped" in skipped.stdout
    assert "needs slurmctld, slurmd, slurmdbd, munged" in skipped.stdout
    assert "make test installs them for root on Debian" in skipped.stdout


@pytest.mark.slow
def test_without_slurm_in_ci() -> None:
    failed = collected(CI="true")
    assert failed.returncode == 4
    assert "must not be skipped, and needs slurmctld" in failed.stderr
