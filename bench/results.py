"""The figures of benchmarks: bench/results/<date>-<processor>.json, one format for all of them.

A file has the machine, and a record per benchmark: versions, commit and load when it ran, and its
figures. What runs again on the same day takes the place of its older record. docs/performance.md
is written from these files by ``page.py``.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlpsubmit.native.cpu import cpu_name

__all__ = [
    "FOLDER",
    "Figure",
    "Machine",
    "Record",
    "Recording",
    "Results",
    "available_cores",
    "figure",
    "records",
]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "bench" / "results"

#: Instruction sets that decide how fast products are, by the beginning of their name.
_INSTRUCTIONS = re.compile(r"avx|fma$|amx|asimd|sve|sme2?$|neon")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Closed):
    """One measured number, of some rounds.

    Attributes:
        case: what it was measured on.
        what: what was measured.
        unit: such as ``model-steps/s``, ``s``, ``MB`` (2^20 bytes), ``kB`` (1000 bytes); ``x`` for
            a ratio, ``share`` for a fraction.
        target: what it should be at least.
    """

    case: str
    what: str
    unit: str
    median: float
    min: float
    max: float
    rounds: Annotated[int, Field(ge=1)]
    target: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        if not self.min <= self.median <= self.max:
            raise ValueError("the median should be between min and max")
        return self

    @property
    def reached(self) -> bool | None:
        """Whether it is what it should be; None where nothing is required."""
        return None if self.target is None else self.median >= self.target


class Machine(_Closed):
    """Where benchmarks ran.

    Attributes:
        cores: of the machine.
        instructions: the instruction sets of the processor that decide how fast products are.
    """

    processor: str
    cores: int
    instructions: list[str]
    system: str

    @classmethod
    def this(cls) -> Machine:
        """Return this machine."""
        return cls(
            processor=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
            cores=os.cpu_count() or 1,
            instructions=sorted(flag for flag in _flags() if _INSTRUCTIONS.match(flag)),
            system=f"{platform.system()} {platform.machine()}",
        )


class Record(_Closed):
    """One run of one benchmark.

    Attributes:
        at: when it began, in UTC.
        commit: of mlpsubmit; with ``+`` where files differed from it.
        cores: that it was allowed to use.
        load: the mean number of running processes in the minute before it began.
    """

    benchmark: str
    at: datetime.datetime
    commit: str
    versions: dict[str, str]
    cores: int
    load: float
    figures: list[Figure]

    def of(self, what: str) -> dict[str, Figure]:
        """Return the figures of what was measured, by case."""
        return {figure.case: figure for figure in self.figures if figure.what == what}

    @property
    def cases(self) -> list[str]:
        """The cases, in the order in which they were measured."""
        return list(dict.fromkeys(figure.case for figure in self.figures))


class Results(_Closed):
    """A file of results."""

    format: Literal[1]
    machine: Machine
    records: list[Record]


def _flags() -> list[str]:
    """Return what the kernel says that the first CPU has; nothing where it does not say so."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found[1].split() if found else []


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def figure(
    case: str, what: str, unit: str, values: float | Sequence[float], target: float | None = None
) -> Figure:
    """Return the figure of one or more measured values."""
    found = [values] if isinstance(values, (int, float)) else list(values)
    return Figure(
        case=case,
        what=what,
        unit=unit,
        median=statistics.median(found),
        min=min(found),
        max=max(found),
        rounds=len(found),
        target=target,
    )


class Recording:
    """What is the case when a benchmark begins; :meth:`save` writes its record.

    Args:
        benchmark: the name of its file.
        further: versions of libraries besides those that every record has.
    """

    def __init__(self, benchmark: str, further: Mapping[str, str] | None = None) -> None:
        self._machine, self._benchmark = Machine.this(), benchmark
        self._at = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        self._load, self._cores = os.getloadavg()[0], available_cores()
        self._versions = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mlpsubmit", "torch", "numpy")},
            **(further or {}),
        }

    def save(self, figures: Sequence[Figure], folder: Path | None) -> None:
        """Write the record into the file of the day in a folder; None writes nothing."""
        if folder is None:
            return
        record = Record(
            benchmark=self._benchmark,
            at=self._at,
            commit=_commit(),
            versions=self._versions,
            cores=self._cores,
            load=round(self._load, 2),
            figures=list(figures),
        )
        file = folder / file_name(self._at, self._machine)
        kept = []
        if file.exists():
            earlier = Results.model_validate_json(file.read_text())
            kept = [one for one in earlier.records if one.benchmark != self._benchmark]
        results = Results(format=1, machine=self._machine, records=[*kept, record])
        folder.mkdir(exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(results.model_dump_json(indent=1, exclude_none=True) + "\n")
        os.replace(temporary, file)
        print(f"written: {file}")


def file_name(at: datetime.datetime, machine: Machine) -> str:
    """Return the name of the file of a day and a machine."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.processor.lower()).strip("-")
    return f"{at:%Y-%m-%d}-{name}.json"


def _commit() -> str:
    """Return the short hash of the commit, with ``+`` where files differ; empty without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ":!bench/results", ":!docs/performance.md")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def records(benchmark: str, folder: Path = FOLDER) -> Mapping[str, tuple[Machine, Record]]:
    """Return the newest record of a benchmark for each processor, by the processor's name."""
    found: dict[str, tuple[Machine, Record]] = {}
    for machine, record in _all(folder):
        known = found.get(machine.processor)
        if record.benchmark == benchmark and (known is None or known[1].at <= record.at):
            found[machine.processor] = machine, record
    return dict(sorted(found.items()))


def _all(folder: Path) -> Iterator[tuple[Machine, Record]]:
    for file in sorted(folder.glob("*.json")):
        results = Results.model_validate_json(file.read_text())
        for record in results.records:
            yield results.machine, record
