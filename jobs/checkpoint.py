"""The file that holds the state of a pack in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mlpsubmit import files
from mlpsubmit.checksums import sealed
from mlpsubmit.display.output import echo
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.jobs.pack_parts import PackParts
from mlpsubmit.jobs.pack_results import Arrays
from mlpsubmit.training.monitor import StateError

__all__ = ["Checkpoint"]


@dataclass
class Checkpoint:
    """The state of a pack in training, and the file from which an interrupted pack resumes.

    Attributes:
        file: replaced atomically at every save.
        device: the type of device that the pack trains on; the state of another type is not used.
        configs: the number of configs of the pack.
        parts: the configs that are not yet trained.
        finished: the arrays of the stacks that are trained.
        failures: why configs of the pack have no result.
        ends: how many of the pack's killed processes are accounted for in ``parts``.
        reached: the progress of the pack when the last of them was.
        state: the saved state of the stack to train next; None to start at step 0.
        seconds: the time that earlier attempts spent on that stack up to its state.
        rows: the rows of its configs; None before one is begun.
        environments: those in which the progress was made; see :func:`environment`.
        curve: of the losses of that stack, up to its state or beyond; see :class:`LossCurve`.
    """

    file: Path
    device: str
    configs: int
    parts: PackParts
    finished: list[Arrays] = field(default_factory=list)
    state: dict[str, Any] | None = None
    seconds: float = 0.0
    failures: list[RowsFailure] = field(default_factory=list)
    ends: int = 0
    reached: tuple[int, int] = (0, 0)
    rows: list[int] | None = None
    environments: list[dict[str, Any]] = field(default_factory=list)
    curve: dict[str, Any] | None = None

    @classmethod
    def load(cls, file: Path, device: str, configs: int) -> Checkpoint:
        """Return the content of the file; if it is unusable, a pack without progress."""
        if file.is_file():
            try:
                files.verify(file)
                content = torch.load(file, weights_only=True)
                if content["device"] != device:
                    raise ValueError(f"it was saved on {content['device']}, not on {device}")
                finished = [
                    {name: tensor.numpy() for name, tensor in arrays.items()}
                    for arrays in content["finished"]
                ]
                return cls(
                    file,
                    device,
                    configs,
                    PackParts(**content["parts"]),
                    finished,
                    state=content["state"],
                    seconds=content["seconds"],
                    failures=[RowsFailure(**failure) for failure in content["failures"]],
                    ends=content["ends"],
                    reached=tuple(content["reached"]),
                    rows=content["rows"],
                    environments=content["environments"],
                    curve=content["curve"],
                )
            except Exception as error:
                echo(f"checkpoint {file.name} is unusable, starting from scratch: {error}")
        return cls(file, device, configs, PackParts.whole(configs))

    @property
    def done(self) -> set[int]:
        """The rows of the configs that have a result."""
        return {row for arrays in self.finished for row in arrays["row"].tolist()}

    @property
    def settled(self) -> int:
        """The number of configs that have a result, or have failed."""
        return self.configs - len({row for part in self.parts.left for row in part} - self.done)

    @property
    def progress(self) -> tuple[int, int]:
        """The number of configs with a result, and the step of the saved state."""
        return len(self.done), 0 if self.state is None else int(self.state["start"])

    def enter(self, environment: dict[str, Any]) -> None:
        """Add the environment of this process to those in which the progress is made."""
        if self.progress == (0, 0):
            self.environments = []
        others = [other for other in self.environments if other != environment]
        self.environments = [*others, environment]

    def set_aside(self, failures: Sequence[RowsFailure], alone: Sequence[int]) -> None:
        """Keep why configs of the first part failed, and train the others without them.

        Args:
            alone: the rows of configs to train alone.
        """
        self.failures += failures
        rows = [row for failure in failures for row in failure.rows]
        self.parts.set_aside(rows, alone, self.done)

    def retry_failures(self) -> None:
        """Let the next training of the pack try the configs that have failed again.

        Together, except those that killed their process.
        """
        killed = [row for failure in self.failures if failure.killed for row in failure.rows]
        raised = [row for failure in self.failures if not failure.killed for row in failure.rows]
        if self.parts.left or killed or sorted(raised) != self.rows:
            self.begin_stack()
        self.parts.left += [sorted(raised)] if raised else []
        self.parts.left += [[row] for row in sorted(killed)]
        self.parts.suspect, self.parts.failed_alone = bool(killed), 0
        self.failures = []

    def save(self, state: dict[str, Any] | None, seconds: float) -> None:
        """Replace the file.

        Args:
            state: of the stack in training; None to start at step 0.
            seconds: the time spent on that stack, in all attempts.

        Raises:
            OSError, RuntimeError: if the disk is full; torch turns that into the latter.
        """
        content = self._content(state, seconds)
        files.publish(self.file, sealed(partial(torch.save, content)))

    def keep(self, file: Path, state: dict[str, Any], seconds: float) -> None:
        """Write a state of all configs to another file, from which another run can go on.

        Raises:
            OSError, RuntimeError: if the disk is full.
        """
        own = Checkpoint(file, self.device, self.configs, PackParts.whole(self.configs))
        own.rows, own.environments, own.curve = self.rows, self.environments, self.curve
        own.save(state, seconds)

    def _content(self, state: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        return {
            "device": self.device,
            "parts": asdict(self.parts),
            "finished": [
                {name: torch.from_numpy(array) for name, array in arrays.items()}
                for arrays in self.finished
            ],
            "state": state,
            "seconds": seconds,
            "failures": [asdict(failure) for failure in self.failures],
            "ends": self.ends,
            "reached": list(self.reached),
            "rows": self.rows,
            "environments": self.environments,
            "curve": self.curve,
        }

    def try_to_save(self) -> None:
        """Replace the file between two trainings; if the disk is full, keep the old one."""
        try:
            self.save(self.state, self.seconds)
        except (OSError, RuntimeError) as error:
            echo(f"checkpoint {self.file.name} not written: {error}")

    def check_stack(self, rows: list[int]) -> None:
        """Check that the stack to train next has the configs of the saved state.

        Raises:
            StateError: for others, or for some of which there is a result already.
        """
        if (self.state is not None and self.rows != rows) or not self.done.isdisjoint(rows):
            raise StateError(
                f"saved state: it is of the configs {self.rows} of the pack, but now {rows} train "
                "together: MODEL, PARAMETRIZATION or LOSS make something else at every start"
            )
        self.rows = rows

    def begin_stack(self) -> None:
        """Let the stack to train next start at step 0."""
        self.state, self.seconds, self.curve = None, 0.0, None

    def restore_state(self, rows: Sequence[int]) -> None:
        """Let the stack to train next start at the last saved state, if that is of these rows."""
        saved = Checkpoint.load(self.file, self.device, self.configs)
        if saved.rows == list(rows):
            self.state, self.seconds, self.rows = saved.state, saved.seconds, saved.rows
            self.curve = saved.curve

    def discard(self) -> None:
        """Remove the file and start the pack anew: its state cannot be continued from."""
        self.file.unlink(missing_ok=True)
        self.environments = self.environments[-1:]  # that of this process
        self.parts, self.finished = PackParts.whole(self.configs), []
        self.failures, self.reached = [], (0, 0)
        self.begin_stack()
