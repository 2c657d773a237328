"""Part a: the tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from report import Report

ROOT = Path(__file__).resolve().parents[2]

#: Processes that share the GPU: most of a test's time is Python.
WORKERS = 6


def files() -> list[str]:
    """Return the test files with such tests: the others need packages that may be missing."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in tests if "mark.gpu" in file.read_text()]


def main(file: Path) -> int:
    report, results = Report("a", file), file.with_suffix(".xml")
    options = ["-m", "gpu", "-q", "-n", str(WORKERS), f"--junitxml={results}", "--tb=short"]
    options += ["-p", "no:benchmark"]  # where it is installed, it warns of xdist: an error here
    code = subprocess.run([sys.executable, "-m", "pytest", *options, *files()], cwd=ROOT).returncode
    suite = next(ElementTree.parse(results).getroot().iter("testsuite"))
    ran, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    expected = torch.cuda.is_available()
    for case in suite.iter("testcase"):
        for problem in (*case.iter("failure"), *case.iter("error")):
            name = f"{case.get('classname')}::{case.get('name')}"
            report.add(name, (problem.get("message") or "")[:200], passed=False)
    passed = (code == 0 and ran > 0 and not skipped) if expected else None
    measured = f"{ran - failed - skipped} of {ran} pass"
    report.add("pytest -m gpu", measured, target="all", passed=passed, ran=ran, failed=failed)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
