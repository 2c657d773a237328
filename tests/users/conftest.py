"""Users who share a folder; see people.py."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The tests' folders are no packages: a module beside the tests is loaded by its path.
_SPEC = importlib.util.spec_from_file_location("people", Path(__file__).parent / "people.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["people"] = _MODULE
_SPEC.loader.exec_module(_MODULE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only root can become another user; in CI, to be another one is a failure."""
    for item in items:
        if "people" in getattr(item, "fixturenames", ()) and os.geteuid():
            if os.environ.get("CI"):
                raise pytest.UsageError(f"{item.nodeid} must not be skipped, and needs root")
            item.add_marker(pytest.mark.skip(reason="needs root, which can become other users"))


@pytest.fixture
def people() -> Iterator[Any]:
    """Users in a folder like /scratch, with a study of two configs that all can read."""
    folder = Path(tempfile.mkdtemp(prefix="mlpsubmit-users-", dir="/tmp"))
    folder.chmod(0o1777)
    (folder / "study.py").write_text(_MODULE.SPEC.replace("FOLDER", str(folder)))
    (folder / "study.py").chmod(0o644)
    yield _MODULE.People(folder)
    shutil.rmtree(folder)
