"""Train packs of a finished run again, as its tasks did, and compare the bits of the results."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError, UserError
from mlpsubmit.files import open_regular
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.plan import Plan, cut
from mlpsubmit.jobs.status import Status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.environments import stored_environments
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import StoredPack
from mlpsubmit.jobs.trust import RETRAIN, sweep_hash, untrusted, untrusted_status
from mlpsubmit.results.names import TOGETHER, TRAINED_BY, TRAINED_ON
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.submit import submission_for, submit
from mlpsubmit.spec.hyperparameters import validate

__all__ = ["Comparison", "Share", "retrain"]

#: What a task reads of a run, besides data.
_FILES = (run_directory.SWEEP_JSON, run_directory.SWEEP_PICKLE, run_directory.PLAN)

#: The most packs that are named.
_NAMED = 8


@dataclass(frozen=True)
class Share:
    """The share of a run's packs to train again, 0 to 1."""

    fraction: float

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that ``"1%"`` means.

        Raises:
            UserError: for any other text.
        """
        match = re.fullmatch(r"(\d{1,9}(\.\d{1,9})?)%", text.strip(), re.ASCII)
        if match is None or not 0 < float(match[1]) <= 100:
            raise UserError(
                f"--retrain: got {text!r}; should be a percentage of the packs above 0% and up to "
                "100%, such as 1%"
            )
        return cls(float(match[1]) / 100)

    def of(self, count: int) -> int:
        """Return how many of so many packs these are, at least one."""
        return max(1, math.ceil(self.fraction * count))


@dataclass(frozen=True)
class Comparison:
    """Packs that were trained again, compared with their results.

    Attributes:
        packs: their names.
        candidates: how many packs they were chosen from.
        differing: by name, what differs in those of which any bit does.
        environment: how versions and devices differ from those of the results; empty if they do
            not.
    """

    packs: list[str]
    candidates: int
    differing: Mapping[str, str]
    environment: str

    def __str__(self) -> str:
        if not self.packs:
            return "no pack to train again: none is finished that trained as one"
        more = f" and {len(self.packs) - _NAMED} more" if len(self.packs) > _NAMED else ""
        lines = [
            f"{len(self.packs)} of {counted(self.candidates, 'pack')} trained again "
            f"({', '.join(self.packs[:_NAMED])}{more}): "
            + (f"{len(self.differing)} differ" if self.differing else "all bits are equal")
        ]
        lines += [f"  pack {name}: {text}" for name, text in self.differing.items()]
        if self.differing and self.environment:
            lines.append(
                f"  the results were computed elsewhere, where equal bits are not promised: "
                f"{self.environment}"
            )
        return "\n".join(lines)


def retrain(
    run: RunDirectory,
    share: Share,
    on_status: Callable[[Status], None] | None = None,
    *,
    trust: bool = False,
) -> Comparison:
    """Train randomly chosen packs of a run again, on this machine, and compare their results.

    Nothing is written to the run: a copy of its plan and its sweep trains in a temporary folder.
    Packs that were divided, because they ran out of memory or configs of them failed, are left out,
    as are the results of earlier runs.

    Args:
        trust: execute the functions in the run even if other users could have written them.

    Raises:
        RunError: the results were computed on a GPU, and this machine has none. Or other users
            could have written the functions in the run, or they are damaged.
    """
    submitted_hash = sweep_hash(run, trust=trust, use=RETRAIN)
    plan = Plan.from_json(run.plan)
    stored = run.results.stored()
    whole = [name for name, pack in stored.items() if TOGETHER not in pack.arrays()]
    if not whole:
        return Comparison([], 0, {}, "")
    chosen = sorted(random.SystemRandom().sample(whole, share.of(len(whole))))
    executor = LocalExecutor(validate({"devices": run.sweep["devices"]}), None)
    original = _environments(stored[name] for name in chosen)
    _check_device(run, original, executor)
    numbers = np.array([int(name) for name in chosen], dtype=np.int64)
    with _scratch(run) as scratch:
        submission = submission_for(scratch, run.sweep, executor, plan, numbers, 0, submitted_hash)
        slices = cut(numbers, plan.pack_costs[numbers], submission.tasks)
        submit(scratch, executor, submission, slices, None)
        again = Run(scratch)
        try:
            again.wait(on_status)
        except BaseException:
            again.cancel()
            again.wait(None)
            raise
        trained = scratch.results.stored()
        failures = {failure.pack: failure.error for failure in scratch.results.failures()}
        differing = {}
        for name in chosen:
            if name not in trained:
                differing[name] = f"has no result now: {failures.get(name, _why(again.status()))}"
            elif text := _difference(stored[name], trained[name]):
                differing[name] = text
        environment = _differing_entries(original, _environments(trained.values()))
    return Comparison(chosen, len(whole), differing, environment)


@contextlib.contextmanager
def _scratch(run: RunDirectory) -> Iterator[RunDirectory]:
    """Yield a run in a temporary folder, with the sweep, the plan and the data of another.

    Data that other users could have written is left out, and computed again: a copy would be ours.
    """
    with tempfile.TemporaryDirectory(prefix="mlpsubmit-") as name:
        path = Path(name) / run.id
        for folder in run_directory.FOLDERS:
            (path / folder).mkdir(parents=True)
        for file in [run.path / name for name in _FILES]:
            shutil.copy2(file, path / file.name)
        if (networks := run.path / run_directory.INITIAL_WEIGHTS).exists():
            shutil.copy2(networks, path / networks.name)
        for file in (run.path / run_directory.DATA).glob("[!.]*"):
            copy = path / run_directory.DATA / file.name
            try:
                os.link(file, copy)
            except OSError:  # another file system, or another user's file
                _copy(file, copy)
            # As it is here, where nobody can put another one in its place.
            if copy.suffix == ".pt" and copy.exists() and untrusted(copy):
                copy.unlink()
        yield RunDirectory.open(path)


def _copy(file: Path, copy: Path) -> None:
    """Copy a file of data, unless others could have written what would be executed."""
    with open_regular(file) as stream:
        if file.suffix == ".pt" and untrusted_status(os.fstat(stream.fileno())):
            return
        with copy.open("xb") as target:
            shutil.copyfileobj(stream, target)


def _difference(before: StoredPack, now: StoredPack) -> str:
    """Return which arrays of two results differ; empty if all bits are equal."""
    names = sorted({*before.arrays(), *now.arrays()} - {"seconds", TRAINED_ON, TRAINED_BY})
    known = set(before.arrays()) & set(now.arrays())
    found = [n for n in names if n not in known or not _equal_bits(before[n], now[n])]
    if not found:
        return ""
    errors = [_relative(before[n], now[n]) for n in found if n in known]
    largest = max((error for error in errors if error is not None), default=None)
    by = "" if largest is None else f", by at most {largest:.2g} relative to the largest value"
    return f"{', '.join(found)} {'differs' if len(found) == 1 else 'differ'}{by}"


def _equal_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _relative(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Return the largest difference of numbers, relative to the largest of them."""
    if a.shape != b.shape or not a.size or a.dtype.kind not in "biuf":
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.abs(a[finite]).max(initial=0.0) or 1.0
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0) / scale)


def _environments(packs: Any) -> list[dict[str, Any]]:
    """Return the environments that packs were trained in."""
    shards = sorted({pack.member.shard for pack in packs})
    found = []
    for shard in shards:
        with contextlib.suppress(OSError, RunError):
            found += stored_environments(shard)
    return found


def _differing_entries(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Return the versions and devices that are others than before, as text."""
    names = dict.fromkeys(name for entry in (*before, *now) for name in entry)
    texts = []
    for name in names:
        old, new = (dict.fromkeys(str(e.get(name, "?")) for e in part) for part in (before, now))
        if old != new:
            texts.append(f"{name} {', '.join(old)}, here {', '.join(new)}")
    return "; ".join(texts)


def _check_device(
    run: RunDirectory, original: list[dict[str, Any]], executor: LocalExecutor
) -> None:
    devices = {str(entry.get("device", "cpu")) for entry in original} - {"cpu"}
    if devices and not executor.has_gpus:
        raise RunError(
            f"--retrain: run {run.id} was trained on {', '.join(sorted(devices))}, and this "
            "machine has no GPU, where other random numbers are drawn; run verify on such a "
            "machine (srun, or an interactive job)"
        )


def _why(status: Status) -> str:
    return next((task.why for task in status.tasks if task.why), status.state)
