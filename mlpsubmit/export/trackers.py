"""The trackers that runs are exported to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.export.configs import Configs, ExportedConfig
from mlpsubmit.export.record import Record

__all__ = ["TRACKERS", "Options", "Tracker", "TrackerKind", "chosen"]


@dataclass(frozen=True)
class Options:
    """What trackers can be told.

    Args:
        project: of W&B.
        offline: whether W&B writes files only.
    """

    project: str | None = None
    offline: bool = False


class Tracker(Protocol):
    """Writes configs into one tracker: one run of it for each.

    It is made before anything is written, and raises a UserError if nothing can be.
    """

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the configs go, besides the folder: all exports into this go there."""

    @property
    def next_step(self) -> str:
        """How to look at what was exported."""

    def write(self, config: ExportedConfig) -> None:
        """Write one config; what there is of it already is replaced or completed."""

    def end_pass(self, record: Record) -> None:
        """Write what is about all configs together."""


@dataclass(frozen=True)
class TrackerKind:
    """A tracker that runs can be exported to.

    Args:
        title: as people call it.
        maker: the module and the class ``(configs, folder, options)`` of it, imported when used.
        needs: the module outside the dependencies that it imports.
        extra: the extra of mlpsubmit that installs this module.
    """

    title: str
    maker: str
    needs: str
    extra: str

    def make(self, configs: Configs, folder: Path, options: Options) -> Tracker:
        """Return the tracker.

        Raises:
            UserError: what it needs is not installed; or as the tracker says.
        """
        try:
            importlib.import_module(self.needs)
        except ImportError as error:
            raise UserError(
                f"exporting to {self.title} needs {self.needs}; try: pip install "
                f"'mlpsubmit[{self.extra}]'"
            ) from error
        made: Tracker = pkgutil.resolve_name(self.maker)(configs, folder, options)
        return made


#: By the name that ``--to`` takes.
TRACKERS = {
    "tensorboard": TrackerKind(
        "TensorBoard", "mlpsubmit.export.event_files:EventFiles", "tensorboard", "tensorboard"
    ),
    "wandb": TrackerKind("W&B", "mlpsubmit.export.wandb_runs:WandbRuns", "wandb", "wandb"),
}


def chosen(name: str | None) -> TrackerKind:
    """Return the tracker of a name.

    Raises:
        UserError: there is none.
    """
    valid = " or ".join(TRACKERS)
    if name is None:
        raise UserError(f"export: where to? Add --to {valid}")
    if name not in TRACKERS:
        raise UserError(f"--to: got {name!r}; valid are {valid}{did_you_mean(name, TRACKERS)}")
    return TRACKERS[name]
