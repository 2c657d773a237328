"""Every name in a run directory, and its small files; does not import torch.

| path                         | written by, and when                                          |
|------------------------------|---------------------------------------------------------------|
| sweep.json                   | launch, once                                                  |
| sweep.pkl                    | launch, once                                                  |
| plan.json                    | launch, once                                                  |
| ingredients.json             | launch, once: what the keys of configs are made of            |
| initial_weights.npz          | launch, once, with INIT_WEIGHTS: the networks to begin from   |
| launched.json                | launch or resume, replaced atomically: the order of launches  |
| launched.<uid>.json          | the same by another user than the one to whom the run belongs |
| results/device.json          | with same_device, the first task to train, once: its device   |
| data/<key>.pt                | the first task that needs it, once, under data/<key>.lock; or |
|                              | launch: a link to that of an earlier run                      |
| data/<key>.json              | with it: its content hash, and the files that it comes from   |
| submissions/NNN/intent.json  | launch or resume, before anything is submitted                |
| submissions/NNN/jobs.json    | launch or resume, after each job: its id, as the executor     |
|                              | returned it                                                   |
| submissions/NNN/array.N.sh   | launch or resume: the sbatch script of one job array          |
| submissions/NNN/retry.sh     | the same for the job that follows: it submits the tasks that  |
|                              | limits left no room for, or resumes what is missing           |
| submissions/NNN/ended.json   | cancel, or a launch that failed halfway: no task may train    |
| submissions/NNN/*_0_log.out  | SLURM, or a local worker: the log of one task                 |
| results/<task>.<attempt>.tar | one attempt of one task, appended per pack and fsynced        |
| results/<task>.<attempt>.json| that attempt: the versions, the device and the threads        |
| results/reused.0.tar, .json  | launch, once: finished configs of earlier runs                |
| results/<shard>.verified.json| whoever has read a whole shard: its size and time; or, if any |
| results/<shard>.damaged.json | member is damaged, also which                                 |
| checkpoints/<pack>.pt        | the task that trains the pack, replaced atomically            |
| checkpoints/<pack>.ends.json | the task that trains the pack, or resume: how processes were  |
|                              | killed in it                                                  |
| states/<pack>.pt             | the task that trains the pack, replaced atomically, with      |
|                              | KEEP_STATE: what a longer training continues from             |
| states/<pack>.uncrossed.pt   | the same before any config had stopped at a threshold         |
| heartbeats/<task>.json       | one task, replaced atomically every few seconds               |
| compiled/<machine>/          | torch, where COMPILE pays: code that other tasks use as well  |

One writer per file. A published file is complete: a temporary name, fsync, rename; or it is a tar,
and its torn tail is ignored. Every file that is read back has a checksum, which is compared then
(:mod:`mlpsubmit.checksums`; arrays in shards have those of zip). Scripts and logs have none, nor
has what torch compiles. Nothing here unpickles. The fields of the JSON files are those of
:mod:`mlpsubmit.jobs.store.records`. Without sweep.json and plan.json there is no run; any other
file that cannot be read is noted in :attr:`RunDirectory.unreadable`, and only its content is lost.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mlpsubmit.errors import DamageError, FormatError, RunError
from mlpsubmit.files import (
    LARGEST_JSON,
    SMALL_JSON,
    is_shared,
    leftovers,
    publish_first,
    publish_json,
    read_json,
    refresh,
    remove_leftovers,
    verify,
)
from mlpsubmit.jobs.store import records
from mlpsubmit.jobs.store.owners import owner, user_name
from mlpsubmit.jobs.store.pack_schema import ANY_PACKS, PackSchema
from mlpsubmit.jobs.store.records import Beat, DataRecord, Intent, JobRecord, Jobs, Manifest
from mlpsubmit.jobs.store.stored_results import StoredResults

__all__ = ["FORMAT", "RunDirectory", "task_name"]

#: Counted up whenever a name or the meaning of a file changes; runs of another one are refused.
FORMAT = 12

SWEEP_JSON = "sweep.json"
SWEEP_PICKLE = "sweep.pkl"
PLAN = "plan.json"
INGREDIENTS = "ingredients.json"
INITIAL_WEIGHTS = "initial_weights.npz"
LAUNCHED = "launched.json"
DEVICE = "results/device.json"
OTHERS_LAUNCHED = "launched.{}.json"
DATA = "data"
SUBMISSIONS = "submissions"
INTENT = "intent.json"
JOBS = "jobs.json"
ENDED = "ended.json"
RESULTS = "results"
CHECKPOINTS = "checkpoints"
STATES = "states"
UNCROSSED_SUFFIX = ".uncrossed.pt"
ENDS_SUFFIX = ".ends.json"
HEARTBEATS = "heartbeats"
COMPILED = "compiled"
LOCK = ".lock"

#: The suffix of a log after the id of its job, as submitit names it on SLURM.
LOG_SUFFIX = "_0_log.out"

#: The folders of a new run directory.
FOLDERS = (DATA, SUBMISSIONS, RESULTS, CHECKPOINTS, STATES, HEARTBEATS, COMPILED)


_SUBMISSION = re.compile(r"[0-9]{3,9}")
_HEARTBEAT = re.compile(r"([0-9]{3,9})-([0-9]{4,9})\.json")

#: Errors of what is no folder, or one of another user.
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)

_T = TypeVar("_T")


def task_name(submission: int, index: int) -> str:
    """Return the name of a task in files."""
    return f"{submission:03d}-{index:04d}"


def _only_copy(file: Path, model: type[_T]) -> _T:
    """Return the content of a file that only another launch can make again."""
    try:
        return records.read(file, model)
    except DamageError as error:
        raise DamageError(
            f"{error}; launch its spec again: a new run reuses the finished results of this one"
        ) from error


@dataclass(frozen=True)
class RunDirectory:
    """One launched sweep on disk.

    Attributes:
        path: its folder; absolute, as the working directory may change while a run is held.
        unreadable: the files that could not be read when they were read last, and why.
    """

    path: Path
    unreadable: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)
    #: By number, the intent of a submission, and what identifies the file that it was read from.
    _intents: dict[int, tuple[tuple[int, ...], Intent]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.absolute())

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return a run that exists.

        Raises:
            RunError: if the folder is no run, or its sweep.json or plan.json are damaged.
        """
        path = path.absolute()
        if not path.is_dir():
            raise RunError(f"{path}: no such folder")
        if not (path / SWEEP_JSON).is_file() or not (path / PLAN).is_file():
            raise RunError(
                f"{path}: is not a run (it has no {SWEEP_JSON} and {PLAN}); give the folder that "
                "launch printed, the name of a sweep, or the start of a run id"
            )
        run = cls(path)
        run.check()
        return run

    def check(self) -> None:
        """Check sweep.json and plan.json.

        Raises:
            RunError: they are damaged, do not fit together, or have the format of another version.
        """
        _ = self._schema

    @cached_property
    def _schema(self) -> PackSchema:
        """What the packs have in common, by sweep.json and plan.json, which are checked."""
        records.check_run(self.path / SWEEP_JSON, self.sweep, self.path / PLAN, self.plan)
        shape = [len(axis["values"][0]) for axis in self.sweep["axes"]]
        return PackSchema(
            points=math.prod(shape),
            thresholds=len(self.sweep["thresholds"]),
            packs=self.plan["packs"],
            reused=self.sweep["reused"],
            metric_thresholds=tuple(
                (one["name"], len(one["thresholds"])) for one in self.sweep["metric_thresholds"]
            ),
        )

    def has_this_format(self) -> bool:
        """Return whether the run is in this version's format, by one of its files at least."""
        try:
            return self._format() == FORMAT
        except (RunError, OSError):
            return False

    def _format(self) -> object:
        """Return the format of the run: from plan.json if sweep.json is damaged."""
        try:
            return read_json(self.path / SWEEP_JSON).get("format")
        except DamageError:
            if (written := self.plan.get("format")) is None:
                raise
            return written

    @cached_property
    def sweep(self) -> Manifest:
        """The content of sweep.json.

        Raises:
            RunError: it is damaged, or in the format of another version.
        """
        written = self._format()
        if written != FORMAT:
            raise FormatError(self.path, written, FORMAT)
        return _only_copy(self.path / SWEEP_JSON, Manifest)

    @cached_property
    def plan(self) -> records.PlanRecord:
        """The content of plan.json."""
        return _only_copy(self.path / PLAN, records.PlanRecord)

    def _readable(
        self,
        file: Path,
        model: type[_T],
        most: int = SMALL_JSON,
        check: Callable[[_T], None] = lambda _: None,
    ) -> _T | None:
        """Return the content of a file; None if there is none, or it is unreadable.

        Args:
            most: the bytes that it may have.
            check: raises a RunError for what the model does not exclude.
        """
        self.unreadable.pop(file, None)
        try:
            content = records.read(file, model, most)
            check(content)
        except FileNotFoundError:
            return None
        except (RunError, OSError) as error:
            self.note_unreadable(file, error)
            return None
        return content

    def note_unreadable(self, file: Path, error: RunError | OSError) -> None:
        """Note a file that cannot be read."""
        text = str(error) if isinstance(error, RunError) else f"{file}: {error.strerror}"
        self.unreadable[file] = text

    @property
    def pickle(self) -> Path:
        """The file of the sweep with its functions."""
        return self.path / SWEEP_PICKLE

    def verify_pickle(self) -> str:
        """Return the checksum of that file's content, in hex.

        Raises:
            DamageError: it is damaged or lost.
        """
        try:
            return verify(self.pickle)
        except FileNotFoundError:
            raise DamageError(f"{self.pickle}: is missing") from None

    def remove_leftovers(self) -> None:
        """Remove the temporary files of killed processes; only while no task of the run is active.

        Not those of a cancel, which may be in progress whatever is locked.
        """
        for folder in self._written_folders():
            remove_leftovers(folder, ENDED.__ne__)

    def leftovers(self) -> list[Path]:
        """Return what :meth:`remove_leftovers` would remove."""
        return [f for folder in self._written_folders() for f in leftovers(folder, ENDED.__ne__)]

    def _written_folders(self) -> list[Path]:
        """Return the folders of the run in which files are published."""
        folders = [self.path, *(self.path / name for name in FOLDERS)]
        return [*folders, *map(self.submission, self._numbers())]

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    def refresh(self) -> None:
        """Let this machine see what others have written, for a process that is about to submit."""
        folders = [self.path / name for name in FOLDERS if name != DATA]
        for folder in (*folders, *(self.path / SUBMISSIONS).glob("[0-9]*")):
            refresh(folder)

    @property
    def launched(self) -> int:
        """The number of its last launch or resume: larger than those before it in the folder.

        0 if there is no record, or a damaged one.
        """
        names = [self.path / LAUNCHED]
        with contextlib.suppress(OSError):
            if is_shared(self.path, writable=True):
                names += self.path.glob(OTHERS_LAUNCHED.format("[0-9]*"))
        read = (self._readable(file, records.Launched) for file in names)
        return max((record["number"] for record in read if record is not None), default=0)

    def record_launch(self, number: int) -> None:
        """Record a launch or resume by the user; each user replaces a file of their own."""
        own = owner(self.path) is None
        name = LAUNCHED if own else OTHERS_LAUNCHED.format(os.geteuid())
        publish_json(self.path / name, {"number": number})

    @property
    def device(self) -> records.DeviceRecord | None:
        """The device to which the run is bound; None if it is to none, or the record is lost."""
        return self._readable(self.path / DEVICE, records.DeviceRecord)

    def bind_to_device(self, device: str, task: str, host: str) -> records.DeviceRecord:
        """Bind the run to a device unless it is bound to one; return the record of that.

        Args:
            device: its name, as :func:`mlpsubmit.results.names.device_kind` returns it.
            task: the one that trains on it, or nothing.

        Raises:
            DamageError: the record is damaged.
        """
        publish_first(self.path / DEVICE, {"device": device, "task": task, "host": host})
        return records.read(self.path / DEVICE, records.DeviceRecord, SMALL_JSON)

    def release_device(self) -> None:
        """Bind the run to no device."""
        (self.path / DEVICE).unlink(missing_ok=True)

    @cached_property
    def results(self) -> StoredResults:
        """The finished and failed packs."""
        try:
            schema = self._schema
        except DamageError:  # the results have keys and checksums of their own
            schema = ANY_PACKS
        return StoredResults(self.path / RESULTS, schema, self.unreadable)

    def checkpoint(self, pack: str) -> Path:
        """Return the file that holds the state of a pack."""
        return self.path / CHECKPOINTS / f"{pack}.pt"

    def kept_state(self, pack: str, *, uncrossed: bool) -> Path:
        """Return the file with the last kept state of a pack.

        Args:
            uncrossed: the last one before any config had stopped at a threshold; else after.
        """
        return self.path / STATES / f"{pack}{UNCROSSED_SUFFIX if uncrossed else '.pt'}"

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

    def data_record(self, key: str) -> DataRecord | None:
        """Return what is recorded of the entries of a data function; None if that is lost."""
        file = self.data_file(key).with_suffix(".json")
        return self._readable(file, DataRecord, LARGEST_JSON)

    def data_records(self, besides: Container[str] = ()) -> dict[str, DataRecord]:
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

    def heartbeats(self, submission: int | None = None) -> dict[str, Beat]:
        """Return the heartbeat of every task that has one, of a submission or of all."""
        numbers = self.submissions() if submission is None else [submission]
        tasks = {number: self._readable_worker_count(number) for number in numbers}
        found = [_HEARTBEAT.fullmatch(entry.name) for entry in _entries(self.path / HEARTBEATS)]
        places = sorted((int(name[1]), int(name[2])) for name in found if name)
        names = [task_name(*place) for place in places if place[1] < tasks.get(place[0], 0)]
        last = {name: self.last_heartbeat(name) for name in names}
        return {name: beat for name, beat in last.items() if beat is not None}

    def last_heartbeat(self, task: str) -> Beat | None:
        """Return the last heartbeat of a task, of any attempt; None if none is readable."""
        file = self.heartbeat(task)
        return self._readable(
            file, Beat, check=lambda beat: records.check_beat(file, beat, self.plan["packs"])
        )

    def record_crash(self, task: str, error: str) -> None:
        """Make the heartbeat of a task that has ended show why."""
        now = time.time()
        last = self.last_heartbeat(task) or {"task": task, "started": now}
        crashed = {"state": "crashed", "error": error, "updated": now}
        with contextlib.suppress(OSError):  # a full disk; the log has it
            publish_json(self.heartbeat(task), {**last, **crashed}, sync=False)

    # ---- submissions

    def submission(self, number: int) -> Path:
        """Return the folder of one submission."""
        return self.path / SUBMISSIONS / f"{number:03d}"

    def submissions(self) -> list[int]:
        """Return the numbers of the submissions whose intent is on disk, in order."""
        return [number for number in self._numbers() if self._intent_file(number).exists()]

    def _numbers(self) -> list[int]:
        """Return the numbers of all folders of submissions, in order."""
        names = [entry.name for entry in _entries(self.path / SUBMISSIONS)]
        found = {int(name) for name in names if _SUBMISSION.fullmatch(name)}
        return sorted(number for number in found if f"{number:03d}" in names)

    def _intent_file(self, number: int) -> Path:
        return self.submission(number) / INTENT

    def submitter(self, number: int) -> str | None:
        """Return the name of another user who has made a submission; None if it is this user's."""
        return owner(self.submission(number)) or owner(self._intent_file(number))

    def users(self) -> list[str]:
        """Return who has made each submission, by name, from the first to the last."""
        return [user_name(self.submission(n).stat().st_uid) for n in self.submissions()]

    def next_submission(self) -> int:
        """Return the number of the submission that comes next."""
        return max(self._numbers(), default=-1) + 1

    def intent(self, number: int) -> Intent:
        """Return the content of intent.json, which is written before anything is submitted.

        Raises:
            RunError: it is damaged.
        """
        file = self._intent_file(number)
        status = file.stat()
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._intents.get(number)
        if known is None or known[0] != identity:
            intent = records.read(file, Intent)
            records.check_slices(file, intent, self.plan["packs"])
            self._intents[number] = known = identity, intent
        return known[1]

    def readable_intent(self, number: int) -> Intent | None:
        """Return the intent of a submission; None if it is unreadable."""
        file = self._intent_file(number)
        self.unreadable.pop(file, None)
        try:
            return self.intent(number)
        except (RunError, OSError) as error:
            self.note_unreadable(file, error)
            return None

    def continues(self, number: int) -> int | None:
        """Return the submission that had left the tasks of another for later; None if none had."""
        intent = self.readable_intent(number)
        before = None if intent is None else intent.get("continues")
        known = before is not None and before < number and self._intent_file(before).exists()
        return before if known else None

    def chain(self, number: int) -> list[int]:
        """Return a submission, and those whose tasks for later it has in part, the newest first."""
        numbers = [number]
        while (before := self.continues(numbers[-1])) is not None:
            numbers.append(before)
        return numbers

    def followed(self, number: int) -> int:
        """Return the submission that the job which follows one is to continue.

        The latest, if that has continued this one and there was no room for a job of its own.
        """
        latest = max(self.submissions(), default=number)
        if latest == number or number not in self.chain(latest):
            return number
        intent, jobs = self.readable_intent(latest), self.jobs(latest)
        if intent is None or jobs is None or intent.get("retry") is None:
            return number
        return latest if all(job["count"] for job in jobs["jobs"]) else number

    def jobs(self, number: int) -> Jobs | None:
        """Return the jobs of a submission; None if it has none, or they are unreadable."""
        file = self.submission(number) / JOBS
        return self._readable(
            file,
            Jobs,
            LARGEST_JSON,
            lambda jobs: records.check_jobs(file, jobs, self.intent(number)),
        )

    def worker_count(self, number: int) -> int:
        """Return the number of workers of a submission, which are its slices."""
        return len(self.intent(number)["slices"])

    def workers_of(self, number: int, task: int) -> range:
        """Return the indices of the workers of one task of a submission."""
        each = self.intent(number).get("workers", 1)
        return range(task * each, min((task + 1) * each, self.worker_count(number)))

    def _readable_worker_count(self, number: int) -> int:
        """Return the number of workers of a submission; 0 if its intent is unreadable."""
        intent = self.readable_intent(number)
        return 0 if intent is None else len(intent["slices"])

    def task_jobs(self, number: int) -> dict[str, JobRecord]:
        """Return the job of each task of a submission, as far as it has one.

        An entry of jobs.json covers ``count`` tasks from ``first`` on; if it is an array, the id of
        each task has an array index at its end. The workers of a task have the same.
        """
        found: dict[str, JobRecord] = {}
        for job in (self.jobs(number) or Jobs(jobs=[]))["jobs"]:
            for offset in range(job["count"]):
                own = f"{job['id']}_{offset}" if job["array"] else job["id"]
                for worker in self.workers_of(number, job["first"] + offset):
                    found[task_name(number, worker)] = {**job, "id": own}
        return found

    def worker_log(self, number: int, worker: str, job: str) -> Path:
        """Return the file of a worker's output.

        Of several workers of a task each has one, besides that of their job.
        """
        several = self.intent(number).get("workers", 1) > 1
        return self.log(number, worker if several else job)

    def log(self, number: int, job: str) -> Path:
        """Return the file of a job's output."""
        return self.submission(number) / f"{job}{LOG_SUFFIX}"

    def end_submission(self, number: int, why: str) -> None:
        """Keep every task of a submission that starts from now on from training."""
        publish_json(self.submission(number) / ENDED, {"why": why, "at": time.time()})

    def ended(self, number: int) -> str | None:
        """Return why no task of a submission is to train any more; None if tasks may."""
        file = self.submission(number) / ENDED
        if not file.exists():
            return None
        ended = self._readable(file, records.EndedSubmission)
        return self.unreadable[file] if ended is None else ended["why"]

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
        if not self._intent_file(number).exists():
            return "its submission was withdrawn"
        return self.overtaken(number) or self.ended(number)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder; none if there is no such folder, or no readable one.

    Raises:
        OSError: the disk fails: a run whose tasks are not seen would be trained twice.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        return []
