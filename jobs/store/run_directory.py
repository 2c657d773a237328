"""Every name and format in a run directory, in one place, without importing torch.

| path                         | who writes it, and when                                       |
|------------------------------|---------------------------------------------------------------|
| sweep.json                   | launch, once                                                  |
| sweep.pkl                    | launch, once                                                  |
| plan.json                    | launch, once                                                  |
| data/<key>.pt                | the first task that needs it, once, under data/<key>.lock     |
| submissions/NNN/intent.json  | launch or resume, before an executor is asked for anything    |
| submissions/NNN/jobs.json    | launch or resume, after: the ids that the executor answered   |
| submissions/NNN/array.N.sh   | launch or resume: the sbatch script of one job array          |
| submissions/NNN/retry.sh     | the same for the job that resumes what is missing             |
| submissions/NNN/ended.json   | cancel, or a launch that cannot tell: no task of it may train |
| submissions/NNN/*            | submitit and SLURM: pickles and logs                          |
| results/<task>.<attempt>.tar | one attempt of one task, appended per pack and fsynced        |
| results/reused.0.tar         | launch, once: finished configs of earlier runs                |
| checkpoints/<pack>.pt        | the task that trains the pack, replaced atomically            |
| heartbeats/<task>.json       | one task, replaced atomically every few seconds               |
| compiled/<machine>/          | torch, where COMPILE pays: code that other tasks use as well  |

One writer per file. What is published is complete: a temporary name, fsync, rename; or a tar whose
torn tail is ignored. Nothing here unpickles.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.store.shards import (
    FAILED_SUFFIX,
    FINISHED_SUFFIX,
    Failure,
    Member,
    PackResult,
    members,
    pack_name,
    read_failure,
)

__all__ = ["FORMAT", "RunDirectory", "pack_mask", "task_name", "unpack_mask"]

FORMAT = 1

SWEEP_JSON = "sweep.json"
SWEEP_PICKLE = "sweep.pkl"
PLAN = "plan.json"
DATA = "data"
SUBMISSIONS = "submissions"
INTENT = "intent.json"
JOBS = "jobs.json"
ENDED = "ended.json"
RESULTS = "results"
CHECKPOINTS = "checkpoints"
HEARTBEATS = "heartbeats"
COMPILED = "compiled"
LOCK = ".lock"
REUSED = "reused.0.tar"
REUSED_PREFIX = "reused-"

#: What a new run directory consists of, besides its files.
FOLDERS = (DATA, SUBMISSIONS, RESULTS, CHECKPOINTS, HEARTBEATS)

_SHARD_NAME = re.compile(r"(?P<task>[\w-]+)\.(?P<attempt>\d+)\.tar")


def task_name(submission: int, index: int) -> str:
    """Return what a task is called in files."""
    return f"{submission:03d}-{index:04d}"


def pack_mask(mask: NDArray[np.bool_]) -> str:
    """Return a mask as text that is short where the mask is regular."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def unpack_mask(text: str, size: int) -> NDArray[np.bool_]:
    """Return the (size,) mask that :func:`pack_mask` wrote."""
    content = zlib.decompress(base64.b64decode(text))
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).astype(bool)


@dataclass(frozen=True)
class RunDirectory:
    """One launched sweep on disk."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return a run that exists.

        Raises:
            RunError: where the folder is no run.
        """
        if not path.is_dir():
            raise RunError(f"{path}: no such folder")
        if not (path / SWEEP_JSON).is_file() or not (path / PLAN).is_file():
            raise RunError(
                f"{path}: is not a run (it has no {SWEEP_JSON} and {PLAN}); give the folder that "
                "launch printed, the name of a sweep, or the start of a run id"
            )
        run = cls(path)
        written = run.sweep.get("format") if isinstance(run.sweep, dict) else None
        if written != FORMAT:
            raise RunError(
                f"{path}: was written in format {written!r}; this mlpsubmit reads format {FORMAT}; "
                "use the version that launched it"
            )
        return run

    @cached_property
    def sweep(self) -> dict[str, Any]:
        """The content of sweep.json."""
        content: dict[str, Any] = read_json(self.path / SWEEP_JSON)
        return content

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json."""
        content: dict[str, Any] = read_json(self.path / PLAN)
        return content

    @cached_property
    def _intact(self) -> set[Member]:
        """Members that were read whole once: collect goes over them several times."""
        return set()

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    @property
    def results(self) -> Path:
        """The folder of shards."""
        return self.path / RESULTS

    def checkpoint(self, pack: str) -> Path:
        """Return where the state of a pack is saved."""
        return self.path / CHECKPOINTS / f"{pack}.pt"

    def data_file(self, key: str) -> Path:
        """Return where what a data function computed is kept."""
        return self.path / DATA / f"{key}.pt"

    def heartbeat(self, task: str) -> Path:
        """Return where a task says how it is doing."""
        return self.path / HEARTBEATS / f"{task}.json"

    def heartbeats(self, submission: int | None = None) -> dict[str, dict[str, Any]]:
        """Return the heartbeat of every task that has one, of a submission or of all."""
        folder = self.path / HEARTBEATS
        found = {}
        whose = "[!.]*" if submission is None else f"{submission:03d}-*"
        for file in sorted(folder.glob(f"{whose}.json")):
            with contextlib.suppress(RunError, OSError):  # torn by a power cut, or just replaced
                found[file.stem] = read_json(file)
        return found

    def last_heartbeat(self, task: str) -> dict[str, Any] | None:
        """Return what a task said last, perhaps in an earlier life; None where nothing whole."""
        try:
            content: dict[str, Any] = read_json(self.heartbeat(task))
        except (RunError, OSError):
            return None
        return content

    # ---- submissions

    def submission(self, number: int) -> Path:
        """Return the folder of one submission."""
        return self.path / SUBMISSIONS / f"{number:03d}"

    def submissions(self) -> list[int]:
        """Return the numbers of the submissions whose intent is on disk, in order."""
        folder = self.path / SUBMISSIONS
        return sorted(int(file.parent.name) for file in folder.glob(f"*/{INTENT}"))

    def next_submission(self) -> int:
        """Return the number of the submission that comes next."""
        taken = [int(folder.name) for folder in (self.path / SUBMISSIONS).glob("[0-9]*")]
        return max(taken, default=-1) + 1

    def intent(self, number: int) -> dict[str, Any]:
        """Return what a submission set out to do."""
        content: dict[str, Any] = read_json(self.submission(number) / INTENT)
        return content

    def jobs(self, number: int) -> dict[str, Any] | None:
        """Return the ids that the executor answered, or None where launch died before."""
        file = self.submission(number) / JOBS
        return read_json(file) if file.exists() else None

    def tasks(self, number: int) -> int:
        """Return how many tasks a submission has."""
        return len(self.intent(number)["slices"])

    def task_jobs(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the job of each task of a submission, as far as the executor answered.

        An entry of jobs.json stands for ``count`` tasks from ``first`` on; one that is an array
        has an index per task behind its id.
        """
        found = {}
        for job in (self.jobs(number) or {"jobs": []})["jobs"]:
            for place in range(job["count"]):
                own = f"{job['id']}_{place}" if job["array"] else job["id"]
                found[task_name(number, job["first"] + place)] = {**job, "id": own}
        return found

    def log(self, number: int, job: str) -> Path:
        """Return where the output of a job is kept, under the name that submitit gives it."""
        return self.submission(number) / f"{job}_0_log.out"

    def end_submission(self, number: int, why: str) -> None:
        """Make sure that no task of a submission trains from now on."""
        publish_json(self.submission(number) / ENDED, {"why": why, "at": time.time()})

    def ended(self, number: int) -> str | None:
        """Return why no task of a submission is to train any more; None where they are."""
        file = self.submission(number) / ENDED
        return str(read_json(file)["why"]) if file.exists() else None

    def superseded(self, number: int) -> str | None:
        """Return why a task of a submission that starts now has nothing to do; None where it has.

        A job that its launch gave up for lost may start after all.
        """
        if not (self.submission(number) / INTENT).exists():
            return "its submission was withdrawn"
        if max(self.submissions()) > number:
            return f"submission {max(self.submissions()):03d} has taken its place"
        return self.ended(number)

    # ---- results

    def shards(self) -> list[Path]:
        """Return the shards from the oldest submission and attempt to the newest."""
        found = []
        for file in self.results.glob("*.tar"):
            match = _SHARD_NAME.fullmatch(file.name)
            if match:
                # Reused results come first, so that whatever this run trained wins over them.
                fresh = file.name != REUSED
                found.append((fresh, match["task"], int(match["attempt"]), file))
        return [file for *_, file in sorted(found)]

    def members(self) -> Iterator[Member]:
        """Yield the whole members of all shards, oldest first."""
        for shard in self.shards():
            yield from members(shard)

    def packs(self) -> Iterator[PackResult]:
        """Yield every finished pack; one whose bytes are damaged is left out: it trains again."""
        return self._whole(self.members())

    def _whole(self, members: Iterable[Member]) -> Iterator[PackResult]:
        for member in members:
            if member.name.endswith(FINISHED_SUFFIX):
                pack = PackResult(member)
                if member not in self._intact and pack.intact():
                    self._intact.add(member)
                if member in self._intact:
                    yield pack

    def finished(self, among: Container[str], task: str | None = None) -> set[str]:
        """Return those of some packs that have a result, having read it and its checksums.

        Args:
            task: look at what the attempts of this task wrote alone.
        """
        own = self.members() if task is None else self._members_of(task)
        wanted = (member for member in own if pack_name(member) in among)
        return {pack.name for pack in self._whole(wanted)}

    def _members_of(self, task: str) -> Iterator[Member]:
        for shard in sorted(self.results.glob(f"{task}.*.tar")):
            yield from members(shard)

    def reused(self) -> int:
        """Return how many configs taken over from earlier runs are there, read and verified."""
        wanted = (m for m in self.members() if m.name.startswith(REUSED_PREFIX))
        return sum(len(pack["index"]) for pack in self._whole(wanted))

    def outcomes(self) -> tuple[set[str], list[Failure]]:
        """Return the names of finished packs, and the failed ones that have not finished since.

        Only headers are read: enough to show how far a run is.
        """
        finished: set[str] = set()
        failed: dict[str, Failure] = {}
        for member in self.members():
            name = pack_name(member)
            if member.name.endswith(FAILED_SUFFIX):
                if failure := read_failure(name, member):
                    failed[name] = failure
            else:
                finished.add(name)
                failed.pop(name, None)
        return finished, list(failed.values())

    def failures(self) -> list[Failure]:
        """Return the failed packs that have not finished since; the last failure of each."""
        return self.outcomes()[1]
