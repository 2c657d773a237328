"""Every name in a run directory, and its small files; does not import torch.

| path                         | written by, and when                                          |
|------------------------------|---------------------------------------------------------------|
| sweep.json                   | launch, once                                                  |
| sweep.pkl                    | launch, once                                                  |
| plan.json                    | launch, once                                                  |
| launched.json                | launch or resume, replaced atomically: the order of launches  |
| data/<key>.pt                | the first task that needs it, once, under data/<key>.lock; or |
|                              | launch: a link to that of an earlier run                      |
| data/<key>.json              | with it: its content hash, and the files that it comes from   |
| submissions/NNN/intent.json  | launch or resume, before anything is submitted                |
| submissions/NNN/jobs.json    | launch or resume, after each job: its id, as the executor     |
|                              | returned it                                                   |
| submissions/NNN/array.N.sh   | launch or resume: the sbatch script of one job array          |
| submissions/NNN/retry.sh     | the same for the job that resumes what is missing             |
| submissions/NNN/ended.json   | cancel, or a launch that failed halfway: no task may train    |
| submissions/NNN/*_0_log.out  | SLURM, or a local worker: the log of one task                 |
| results/<task>.<attempt>.tar | one attempt of one task, appended per pack and fsynced        |
| results/<task>.<attempt>.json| that attempt: the versions, the device and the threads        |
| results/reused.0.tar, .json  | launch, once: finished configs of earlier runs                |
| checkpoints/<pack>.pt        | the task that trains the pack, replaced atomically            |
| checkpoints/<pack>.ends.json | the task that trains the pack, or resume: how processes were  |
|                              | killed in it                                                  |
| heartbeats/<task>.json       | one task, replaced atomically every few seconds               |
| compiled/<machine>/          | torch, where COMPILE pays: code that other tasks use as well  |

One writer per file. A published file is complete: a temporary name, fsync, rename; or it is a tar,
and its torn tail is ignored. Nothing here unpickles.
"""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlpsubmit.errors import RunError
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.store.stored_results import StoredResults

__all__ = ["FORMAT", "RunDirectory", "task_name"]

#: Counted up whenever a name or the meaning of a file changes; runs of another one are refused.
FORMAT = 5

SWEEP_JSON = "sweep.json"
SWEEP_PICKLE = "sweep.pkl"
PLAN = "plan.json"
LAUNCHED = "launched.json"
DATA = "data"
SUBMISSIONS = "submissions"
INTENT = "intent.json"
JOBS = "jobs.json"
ENDED = "ended.json"
RESULTS = "results"
CHECKPOINTS = "checkpoints"
ENDS_SUFFIX = ".ends.json"
HEARTBEATS = "heartbeats"
COMPILED = "compiled"
LOCK = ".lock"

#: The suffix of a log after the id of its job, as submitit names it on SLURM.
LOG_SUFFIX = "_0_log.out"

#: The folders of a new run directory.
FOLDERS = (DATA, SUBMISSIONS, RESULTS, CHECKPOINTS, HEARTBEATS, COMPILED)


def task_name(submission: int, index: int) -> str:
    """Return the name of a task in files."""
    return f"{submission:03d}-{index:04d}"


def _content(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(file)
    return content


@dataclass(frozen=True)
class RunDirectory:
    """One launched sweep on disk."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return a run that exists.

        Raises:
            RunError: if the folder is no run.
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
        return _content(self.path / SWEEP_JSON)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json."""
        return _content(self.path / PLAN)

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    @property
    def launched(self) -> int:
        """The number of its last launch or resume: larger than those before it in the folder.

        0 if there is no record, or a damaged one.
        """
        try:
            return int(_content(self.path / LAUNCHED)["number"])
        except (RunError, OSError, LookupError, TypeError, ValueError, OverflowError):
            return 0

    def record_launch(self, number: int) -> None:
        """Record a launch or resume by the user."""
        publish_json(self.path / LAUNCHED, {"number": number})

    @cached_property
    def results(self) -> StoredResults:
        """The finished and failed packs."""
        return StoredResults(self.path / RESULTS)

    def checkpoint(self, pack: str) -> Path:
        """Return the file that holds the state of a pack."""
        return self.path / CHECKPOINTS / f"{pack}.pt"

    def pack_ends(self, pack: str) -> Path:
        """Return the file that holds how processes were killed while they trained a pack."""
        return self.path / CHECKPOINTS / f"{pack}{ENDS_SUFFIX}"

    def packs_with_ends(self) -> list[str]:
        """Return the names of the packs that have such a file."""
        files = (self.path / CHECKPOINTS).glob(f"[!.]*{ENDS_SUFFIX}")
        return [file.name.removesuffix(ENDS_SUFFIX) for file in files]

    def data_file(self, key: str) -> Path:
        """Return the file of the entries of a data function."""
        return self.path / DATA / f"{key}.pt"

    def data_record(self, key: str) -> dict[str, Any] | None:
        """Return what is recorded of the entries of a data function; None if that is lost."""
        try:
            return _content(self.data_file(key).with_suffix(".json"))
        except (RunError, FileNotFoundError):
            return None

    def data_records(self, besides: Container[str] = ()) -> dict[str, dict[str, Any]]:
        """Return the records of all entries that results of the run were made with, by key.

        Args:
            besides: keys whose records are left out.
        """
        keys = sorted(file.stem for file in (self.path / DATA).glob("[!.]*.json"))
        found = {key: self.data_record(key) for key in keys if key not in besides}
        return {key: record for key, record in found.items() if record is not None}

    def heartbeat(self, task: str) -> Path:
        """Return the heartbeat file of a task."""
        return self.path / HEARTBEATS / f"{task}.json"

    def heartbeats(self, submission: int | None = None) -> dict[str, dict[str, Any]]:
        """Return the heartbeat of every task that has one, of a submission or of all."""
        tasks = "[!.]*" if submission is None else f"{submission:03d}-*"
        names = sorted(file.stem for file in (self.path / HEARTBEATS).glob(f"{tasks}.json"))
        last = {name: self.last_heartbeat(name) for name in names}
        return {name: beat for name, beat in last.items() if beat is not None}

    def last_heartbeat(self, task: str) -> dict[str, Any] | None:
        """Return the last heartbeat of a task, of any attempt; None if none is complete."""
        try:
            return _content(self.heartbeat(task))
        except (RunError, OSError):  # torn by a power cut, or just replaced
            return None

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
        """Return the content of intent.json, which is written before anything is submitted."""
        return _content(self.submission(number) / INTENT)

    def jobs(self, number: int) -> dict[str, Any] | None:
        """Return the jobs of a submission; None if its launch died before it had any."""
        file = self.submission(number) / JOBS
        return read_json(file) if file.exists() else None

    def tasks(self, number: int) -> int:
        """Return the number of tasks of a submission."""
        return len(self.intent(number)["slices"])

    def task_jobs(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the job of each task of a submission, as far as it has one.

        An entry of jobs.json covers ``count`` tasks from ``first`` on; if it is an array, the id of
        each task has an array index at its end.
        """
        found = {}
        for job in (self.jobs(number) or {"jobs": []})["jobs"]:
            for offset in range(job["count"]):
                own = f"{job['id']}_{offset}" if job["array"] else job["id"]
                found[task_name(number, job["first"] + offset)] = {**job, "id": own}
        return found

    def log(self, number: int, job: str) -> Path:
        """Return the file of a job's output."""
        return self.submission(number) / f"{job}{LOG_SUFFIX}"

    def end_submission(self, number: int, why: str) -> None:
        """Keep every task of a submission that starts from now on from training."""
        publish_json(self.submission(number) / ENDED, {"why": why, "at": time.time()})

    def ended(self, number: int) -> str | None:
        """Return why no task of a submission is to train any more; None if tasks may."""
        file = self.submission(number) / ENDED
        return str(read_json(file)["why"]) if file.exists() else None

    def overtaken(self, number: int) -> str:
        """Return which later submission trains the packs of a submission; empty if none does.

        The intent of the latest one, published by a rename, is the claim to all missing packs.
        """
        latest = max(self.submissions(), default=number)
        return f"submission {latest:03d} has taken its place" if latest > number else ""

    def superseded(self, number: int) -> str | None:
        """Return why a task of a submission that starts now is not to train; None if it is.

        A job that its launch believed lost may start after all.
        """
        if not (self.submission(number) / INTENT).exists():
            return "its submission was withdrawn"
        return self.overtaken(number) or self.ended(number)
