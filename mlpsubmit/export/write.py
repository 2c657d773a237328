"""Export the configs of a run into a tracker: what is new, once or until the run ends."""

from __future__ import annotations

import itertools
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError
from mlpsubmit.export.configs import Configs
from mlpsubmit.export.record import Record, check_folder, opened
from mlpsubmit.export.selection import selected
from mlpsubmit.export.trackers import Options, Tracker, chosen
from mlpsubmit.jobs.garbage import resume_collection
from mlpsubmit.jobs.status import Status
from mlpsubmit.runs.run import Run, as_run

__all__ = ["Export", "export_folder", "export_run", "exporting"]

#: Runs of a tracker above which they are made only if that is asked for.
MOST_RUNS = 1000

#: Seconds between two looks at a run in progress, at least, and how many times as long as an
#: export has taken.
FOLLOW_SECONDS = 2.0
FOLLOW_PAUSES = 2.0

#: Seconds after which the number of exported configs is shown anew.
SHOW_SECONDS = 2.0


def export_folder(run: Run, to: str) -> Path:
    """Return the folder of an export by default, below the working directory."""
    return Path("mlpexports", to, run.name, run.id)


class Export:
    """An export in progress.

    Attributes:
        folder: of its record, and of the files of the tracker.
        next_step: how to look at what was exported.
        configs: how many are selected.
        new: how many of them this has exported.
        status: of the run, as it was before its results were read last.
    """

    def __init__(
        self, configs: Configs, wanted: npt.NDArray[np.bool_], tracker: Tracker, record: Record
    ) -> None:
        self._configs, self._wanted = configs, wanted
        self._tracker, self._record = tracker, record
        self._recorded = np.zeros(len(wanted), dtype=np.bool_)
        self._final = np.zeros(len(wanted), dtype=np.bool_)
        for index, state in record.states.items():
            if 0 <= index < len(wanted):
                self._recorded[index] = True
                self._final[index] = state in ("done", "diverged")
        self.folder = record.path.parent
        self.next_step = tracker.next_step
        self.configs = int(wanted.sum())
        self.new = 0
        self.status: Status | None = None

    @property
    def exported(self) -> int:
        """How many of the selected configs are in the tracker."""
        return int((self._recorded & self._wanted).sum())

    @property
    def failed(self) -> int:
        """How many of the selected configs are there as failed."""
        return int((self._recorded & ~self._final & self._wanted).sum())

    @property
    def left_out(self) -> list[str]:
        """The arrays that are too large for a tracker, as far as they were read."""
        return sorted(self._configs.left_out)

    def update(self) -> int:
        """Export what is new, and return how many configs that were.

        Raises:
            UserError: a grab is not numeric, or the tracker refuses.
        """
        with doing("reading the results"), ExitStack() as shown:
            self.status = self._configs.run.status()
            todo, before, last = self._wanted & ~self._final, self.new, -math.inf
            finished = self._configs.finished(todo)
            for config in itertools.chain(finished, self._configs.failed(todo)):
                self._final[config.index] = config.status != "failed"
                if self._record.has(config):
                    continue
                if time.monotonic() > last + SHOW_SECONDS:
                    last = time.monotonic()
                    shown.close()
                    now = f"{self.exported:,} of {counted(self.configs, 'config')}"
                    shown.enter_context(doing(f"exporting: {now}"))
                self._tracker.write(config)
                self._record.add_names(config.names)
                self._record.add(config)
                self._recorded[config.index] = True
                self.new += 1
            self._tracker.end_pass(self._record)
            self._record.sync()
        return self.new - before

    def follow(self) -> Iterator[int]:
        """Export what is new until the run ends; yield how many configs that were, each time."""
        resume_collection()  # this may go on for days
        while True:
            with doing("waiting for results (Ctrl-C ends this)"):
                began = time.monotonic()
                new = self.update()
                assert self.status is not None
                running = self.status.running
                while running and not new:
                    time.sleep(max(FOLLOW_SECONDS, FOLLOW_PAUSES * (time.monotonic() - began)))
                    began = time.monotonic()
                    new, running = self.update(), self.status.running
            if new:
                yield new
            if not running:
                return


@contextmanager
def exporting(
    run: Run,
    to: str | None,
    *,
    out: str | Path | None = None,
    sel: Mapping[str, Any] | None = None,
    follow: bool = False,
    project: str | None = None,
    offline: bool = False,
    many: bool = False,
) -> Iterator[Export]:
    """Open an export; nothing exists before all of it is checked. See :func:`export_run`."""
    kind = chosen(to)
    if kind.extra != "wandb" and (project or offline):
        given = "--project" if project else "--offline"
        raise UserError(f"{given}: is of W&B; leave it out, or export with --to wandb")
    configs = Configs(run)
    wanted = selected(configs.layout, sel or {})
    _check_number(configs, wanted, kind.title, many)
    folder = export_folder(run, str(to)) if out is None else Path(out).expanduser()
    check_folder(folder)
    if not follow:
        _check_results(configs, wanted)
    with doing(f"importing {kind.needs}"):
        tracker = kind.make(configs, folder, Options(project, offline))
    with opened(folder, {"run": run.id, "to": to, **tracker.about}) as record:
        yield Export(configs, wanted, tracker, record)


def _check_number(configs: Configs, wanted: npt.NDArray[np.bool_], title: str, many: bool) -> None:
    """Check that no more runs would be made than somebody wants to look at."""
    count = int(wanted.sum())
    if count <= MOST_RUNS or many:
        return
    varied = (f"{name}={own[0]}" for name, own in configs.values.items() if len(set(own)) > 1)
    example = shlex.quote(next(varied, "NAME=VALUE"))
    raise UserError(
        f"run {configs.run.id}: this would make {count:,} runs in {title}, one for each config; "
        f"select fewer with --sel, such as --sel {example}, or make them all with --many"
    )


def _check_results(configs: Configs, wanted: npt.NDArray[np.bool_]) -> None:
    """Check that there is anything to export."""
    count = int(wanted.sum())
    with doing("reading the results"):
        if configs.has_any(wanted):
            return
    none = "the selected config has no" if count == 1 else f"none of {count:,} configs has a"
    raise UserError(
        f"run {configs.run.id}: {none} result yet; see mlpsubmit status {configs.run.id}, or wait "
        "for results with --follow"
    )


def export_run(
    run: Run | str | Path | None,
    to: str,
    *,
    out: str | Path | None = None,
    sel: Mapping[str, Any] | None = None,
    follow: bool = False,
    project: str | None = None,
    offline: bool = False,
    many: bool = False,
    runs_dir: str | Path | None = None,
) -> Path:
    """Export the configs of a run to TensorBoard or W&B, one run there for each; return the folder.

    Only what is new is written: configs that have finished, or failed, since the last export into
    the folder. An export that was interrupted goes on in the same way.

    Args:
        run: as :func:`mlpsubmit.launch` and :func:`mlpsubmit.open_run` return it, or what the
            latter takes.
        to: ``tensorboard`` or ``wandb``.
        out: a folder for the record of what was exported, and for the files of the tracker; by
            default ``mlpexports/<to>/<name>/<run id>`` in the working directory.
        sel: which configs: values of axes, as :meth:`mlpsubmit.Run.plot` takes them.
        follow: go on until the run ends.
        project: of W&B; by default ``$WANDB_PROJECT``, else ``mlpsubmit``.
        offline: write files that ``wandb sync`` sends later.
        many: make more than 1,000 runs.
        runs_dir: the folder of all runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: no run matches, or several do.
        UserError: an unknown tracker, or one that is not installed; a name or a value that no
            config has; no result yet; a folder that cannot be written to, or with an export of
            another run; or W&B is not logged in.
        BusyError: another process exports into the folder.
    """
    options: dict[str, Any] = {"project": project, "offline": offline, "many": many}
    run = as_run(run, runs_dir)
    with exporting(run, to, out=out, sel=sel, follow=follow, **options) as export:
        if follow:
            for _ in export.follow():
                pass
        else:
            export.update()
    return export.folder
