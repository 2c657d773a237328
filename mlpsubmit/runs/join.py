"""The results of several runs, joined into one dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.display.progress import doing
from mlpsubmit.errors import UserError
from mlpsubmit.runs.run import Run, as_run, say_what_is_missing

if TYPE_CHECKING:
    import xarray

    from mlpsubmit.results.source import Layout, ResultSource

__all__ = ["collect", "collect_runs", "partial_runs"]


def collect(
    *runs: Run | str | Path | None,
    out: str | Path | None = None,
    force: bool = False,
    runs_dir: str | Path | None = None,
) -> xarray.Dataset:
    """Return all results so far of one or several runs as one labelled dataset.

    Several runs are joined along their axes: the dataset is that of one launch of the union of
    their sweeps. What is an axis of one run and a fixed setting of another has the values of both,
    and settings that differ between the runs become axes: several of them one zipped axis, unless
    the runs have all combinations of their values. Points that no run has are "excluded". A config
    that several runs have finished must have the same results in all of them, to the last bit.

    Args:
        runs: as :func:`mlpsubmit.launch` and :func:`mlpsubmit.open_run` return them, or what the
            latter takes; none for the latest run.
        out: a file to write as well, as in :meth:`mlpsubmit.Run.collect`. With ``.nc`` the
            traces of several runs need not fit into memory, either.
        force: replace the file even if it is not an earlier one of these runs.
        runs_dir: the folder of all runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: no run matches, or several do.
        UserError: a run is given twice; a config has different results in several runs; a run lacks
            what is an axis of another; or the file has another suffix, or exists and is not of
            these runs.
    """
    opened = [as_run(one, runs_dir) for one in runs or (None,)]
    dataset = collect_runs(opened, out, force=force)
    say_what_is_missing("+".join(run.id for run in opened), dataset)
    return dataset


def collect_runs(runs: Sequence[Run], out: str | Path | None, *, force: bool) -> xarray.Dataset:
    """Return the dataset of runs that are open; see :func:`collect`."""
    from mlpsubmit.results.export import collected

    with doing("reading the results"):
        return collected(*_joined(runs), out, force=force)


def partial_runs(runs: Sequence[Run], names: Collection[str]) -> xarray.Dataset:
    """Return the dataset of runs that are open, of traces and large grabs some only.

    See :meth:`mlpsubmit.Run.partial`.
    """
    from mlpsubmit.results.dataset import partial_dataset

    return partial_dataset(*_joined(runs), names)


def _joined(runs: Sequence[Run]) -> tuple[Layout, ResultSource]:
    """Return the layout and the results of runs, of several those of their union."""
    from mlpsubmit.results.join import Part, joined

    twice = [run for run, count in Counter(run.id for run in runs).items() if count > 1]
    if twice:
        raise UserError(
            f"run {', '.join(twice)} is given several times; name each run once (a name means the "
            "latest run of that sweep; mlpsubmit takes ids, too)"
        )
    parts = [Part(run.id, run.layout(), run.directory.results.unread()) for run in runs]
    return joined(parts) if parts[1:] else (parts[0].layout, parts[0].source)
