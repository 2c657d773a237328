"""The benchmarks are scripts of one folder that import each other by their plain names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def figures_in(bench: Callable[[str], ModuleType]) -> Callable[[Path], dict[tuple[str, str], Any]]:
    """A function that returns the figures of the only record in a folder, by case and what."""

    def read(folder: Path) -> dict[tuple[str, str], Any]:
        (file,) = folder.glob("*.json")
        (record,) = bench("results").Results.model_validate_json(file.read_text()).records
        return {(one.case, one.what): one for one in record.figures}

    return read


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module
