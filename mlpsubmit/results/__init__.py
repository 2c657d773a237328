"""A run's results: one labelled dataset, whatever is missing of it. Knows nothing of SLURM."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpsubmit.results.dataset import to_dataset
    from mlpsubmit.results.export import write
    from mlpsubmit.results.expt_trace import ExptTrace
    from mlpsubmit.results.layout import Dimension, Layout
    from mlpsubmit.results.plots import plot
    from mlpsubmit.results.table import summary_table

__all__ = ["Dimension", "ExptTrace", "Layout", "plot", "summary_table", "to_dataset", "write"]

_HOMES = {
    "Dimension": "layout",
    "ExptTrace": "expt_trace",
    "Layout": "layout",
    "plot": "plots",
    "summary_table": "table",
    "to_dataset": "dataset",
    "write": "export",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: none of them is needed to start the CLI."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
