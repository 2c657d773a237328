"""One template: the resources of a SLURM array task, as a closed, typed, validated model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from mlpsubmit.errors import SpecError, did_you_mean, validation_errors
from mlpsubmit.slurm_templates import time_limit
from mlpsubmit.slurm_templates.sbatch_options import (
    KEY_OF,
    ONE,
    option_name,
    option_value,
    spelling,
    table,
)
from mlpsubmit.slurm_templates.values import (
    count,
    flag,
    gpus,
    image,
    image_in,
    line,
    lines,
    mebibytes,
    memory,
    prefix,
    program,
    word,
)

__all__ = ["KEYS", "Template", "as_option"]

#: Seconds before its time limit at which a task is signalled, unless the template sets them.
NOTICE_SECONDS = 120

#: The longest that sbatch accepts.
_MOST_NOTICE = 65_535

#: Options that apply to helper jobs as well as to tasks.
_FOR_HELPERS = frozenset({"comment", "exclude", "nodelist", "reservation"}) | ONE

#: Options that replace the key mem: SLURM accepts one of the three.
_MEMORY_OPTIONS = ("mem-per-cpu", "mem-per-gpu")

Word = Annotated[str, PlainValidator(word)]
Line = Annotated[str, PlainValidator(line)]
TimeLimit = Annotated[str, PlainValidator(time_limit.normalised)]
Gpus = Annotated[int | str, PlainValidator(gpus)]
Count = Annotated[int, PlainValidator(count(1))]
Memory = Annotated[str, PlainValidator(memory)]
Notice = Annotated[int, PlainValidator(count(1, _MOST_NOTICE))]
Flag = Annotated[bool, PlainValidator(flag)]
Image = Annotated[str, PlainValidator(image)]
Program = Annotated[str, PlainValidator(program)]
Prefix = Annotated[str, PlainValidator(prefix)]
Setup = Annotated[tuple[Line, ...], BeforeValidator(lines)]
Options = Annotated[
    dict[
        Annotated[str, AfterValidator(option_name)],
        Annotated[str | bool, PlainValidator(option_value)],
    ],
    BeforeValidator(table),
    AfterValidator(lambda options: {k: v for k, v in options.items() if v is not False}),
]


def _field(default: Any, meaning: str) -> Any:
    return Field(default=default, description=meaning)


class Template(BaseModel):
    """The resources of one task of a job array.

    Get one from :func:`find_template`. All fields but ``name``, ``path`` and
    ``gpus_on_node`` are keys of its file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Line = _field("", "name of the template")
    path: Path | None = _field(None, "the file that it was read from")
    gpus_on_node: bool = _field(
        False, "whether the GPUs are those of the node, of which SLURM does not know"
    )
    description: Line = _field("", "one line for the list of templates")
    partition: Word | None = _field(
        None, "partition of the tasks; the cluster's default unless given"
    )
    account: Word | None = _field(None, "account that is charged; your default unless given")
    qos: Word | None = _field(None, "quality of service")
    constraint: Word | None = _field(None, "features that a node should have")
    time: TimeLimit | None = _field(
        None, "time limit of a task; the partition's default unless given"
    )
    gpus: Gpus = _field(1, "GPUs of a task")
    cpus: Count = _field(4, "CPU cores of a task")
    mem: Memory | None = _field(None, "RAM of a task; the partition's default unless given")
    same_device: Flag | None = _field(
        None,
        "whether all tasks of a run train on one type of GPU, or model of CPU; no unless given",
    )
    whole_node: Flag = _field(
        False, "whether a task gets all of a node, which has gpus, cpus and mem at least"
    )
    workers: Count | None = _field(
        None, "processes of a task that train; one for each of its GPUs unless given"
    )
    max_parallel: Count | None = _field(None, "tasks that run at once, at most")
    notice: Notice | None = _field(
        None, "seconds before the time limit at which a task saves its state; chosen unless given"
    )
    setup: Setup = _field((), "shell commands that run before Python")
    container: Image | None = _field(
        None, "image that tasks run in, by apptainer or singularity: a path or docker://, oras://"
    )
    python: Program | None = _field(
        None, "Python of the tasks; that of the launch unless given, in a container python3"
    )
    wrap: Prefix | None = _field(None, "program that runs the command of a task, with arguments")
    helper_partition: Word | None = _field(
        None, "partition of small jobs without a GPU; that of the tasks unless given"
    )
    sbatch: Options = _field({}, "further options of sbatch")

    @model_validator(mode="after")
    def _fits_together(self) -> Template:
        errors = []
        limit = self._limit_seconds
        if self.notice is not None and limit is not None and self.notice >= limit:
            errors.append(
                f"notice: got {self.notice}; should be less than the time limit, {limit} seconds"
            )
        double = ["mem"] if self.mem is not None else []
        double += [name for name in _MEMORY_OPTIONS if name in self.sbatch]
        if len(double) > 1:
            errors.append(f"got {' and '.join(double)}, which exclude each other; keep one")
        if "gpu" in str(self.sbatch.get("gres", "")).replace(":", ",").split(","):
            errors.append(
                f"sbatch.gres: got {self.sbatch['gres']!r}; GPUs should be requested by the "
                "template's own key gpus, above [sbatch] (on the command line: --gpus)"
            )
        errors += [
            f"sbatch.{name}: got {value!r}; should be 1, as each task is one process on one node; "
            "for more of a node: cpus, gpus"
            for name, value in self.sbatch.items()
            if name in ONE and value != "1"
        ]
        errors += self._node_errors()
        if errors:
            raise ValueError("\n".join(errors))
        return self

    def _node_errors(self) -> list[str]:
        """Return what does not fit to a task with several workers, or to a whole node."""
        errors = [
            f"got whole_node and sbatch.{name}: a whole node comes with all of its memory; keep one"
            for name in _MEMORY_OPTIONS
            if self.whole_node and name in self.sbatch
        ]
        has, unit = self.gpu_count or self.cpus, "GPU" if self.gpu_count else "core"
        if self.workers is not None and self.workers > has and not self.whole_node:
            errors.append(
                f"workers: got {self.workers}; should be at most {has}, as each worker has a "
                f"{unit} of its own at least, and a task has {has}"
            )
        return errors

    @property
    def minutes(self) -> int | None:
        """The time limit in minutes, rounded up as SLURM does; None without one in the template."""
        seconds = None if self.time is None else time_limit.seconds_of(self.time)
        return None if seconds is None else -(-seconds // 60)

    @property
    def _limit_seconds(self) -> int | None:
        return None if self.minutes is None else self.minutes * 60

    @property
    def gpu_count(self) -> int:
        """The number of GPUs of a task, of any type."""
        return self.gpus if isinstance(self.gpus, int) else int(self.gpus.rpartition(":")[2])

    @property
    def gpu_type(self) -> str:
        """The type of a task's GPUs; empty for any."""
        return "" if isinstance(self.gpus, int) else self.gpus.rpartition(":")[0]

    @property
    def worker_count(self) -> int:
        """The number of workers of a task that is not a whole node."""
        return self.workers or self.gpu_count or 1

    @property
    def megabytes(self) -> int | None:
        """The RAM of a task in MiB, rounded up; None if it is not given, or is all of a node."""
        return None if self.mem in (None, "0") else mebibytes(self.mem)

    @property
    def notice_seconds(self) -> int:
        """Seconds before its time limit at which a task is signalled to save."""
        if self.notice is not None:
            return self.notice
        limit = self._limit_seconds
        return NOTICE_SECONDS if limit is None else min(NOTICE_SECONDS, limit // 4)

    def for_helper(self, minutes: int, mem: str, *, as_tasks: bool = False) -> Template:
        """Return the template of a small job without a GPU.

        Of the further options of sbatch it keeps those that restrict where a job may run, or that
        only satisfy a filter.

        Args:
            as_tasks: whether it runs in the container, by the Python and the wrap of the tasks;
                else outside, where SLURM's commands are.
        """
        outside = {
            "container": None,
            "wrap": None,
            "python": None if self.container else self.python,
        }
        kept = {name: value for name, value in self.sbatch.items() if name in _FOR_HELPERS}
        partition = self.helper_partition or self.partition
        elsewhere = partition != self.partition  # other features, other rules
        return self.model_copy(
            update={
                "partition": partition,
                "qos": None if elsewhere else self.qos,
                "constraint": None if elsewhere else self.constraint,
                "gpus": 0,
                "cpus": 1,
                "whole_node": False,
                "workers": None,
                "notice": None,
                "time": time_limit.normalised(minutes),
                "mem": mem,
                "sbatch": kept,
                **({} if as_tasks else outside),
            }
        )

    def for_gpu_helper(self, minutes: int) -> Template:
        """Return the template of a short job with one GPU, where the tasks get theirs."""
        gpu = f"{self.gpu_type}:1" if self.gpu_type else 1
        short = {"cpus": 1, "notice": None, "time": time_limit.normalised(minutes)}
        return self.model_copy(update={"gpus": gpu, **short})

    @classmethod
    def from_table(cls, keys: Mapping[str, Any], path: Path) -> Template:
        """Build the template of a TOML file.

        Raises:
            SpecError: listing every unknown key and every bad value.
        """
        return _build(keys, {"name": path.stem, "path": path}, path)

    def overridden(self, **changes: Any) -> Template:
        """Return the template with other values, as the command line gives them.

        A table ``sbatch`` is merged into the template's; False removes an option. A memory option
        replaces the template's other memory options.

        Raises:
            SpecError: listing every error, each by the option of the command line.
        """
        mine = dict(self)
        if changes.get("mem") is not None:
            mine["sbatch"] = _without(mine["sbatch"], _MEMORY_OPTIONS)
        options = changes.get("sbatch")
        if isinstance(options, Mapping):
            given = {spelling(str(name)) for name, value in options.items() if value is not False}
            if given.intersection(_MEMORY_OPTIONS):
                mine["mem"] = None
            kept = _without(mine["sbatch"], map(spelling, map(str, options)))
            changes = {**changes, "sbatch": {**kept, **options}}
        return _build(changes, mine)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values, from which ``Template(**values)`` is equal."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """Return the keys as a TOML file; those that are not set are comments."""
        text = ""
        for key in KEYS[:-1]:
            value = getattr(self, key)
            if value is None or value == ():
                text += f"# {key}: {type(self).model_fields[key].description}\n"
            else:
                text += tomli_w.dumps({key: value})
        return text + ("\n" + tomli_w.dumps({"sbatch": self.sbatch}) if self.sbatch else "")


def _without(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    gone = set(names)
    return {name: value for name, value in options.items() if name not in gone}


#: The keys that a template's file may hold, ``sbatch`` last.
KEYS = tuple(key for key in Template.model_fields if key not in ("name", "path", "gpus_on_node"))


def as_option(key: str) -> str:
    """Return the command-line option of a key."""
    return "--" + key.replace("_", "-")


def _build(
    keys: Mapping[str, Any], others: Mapping[str, Any], path: Path | None = None
) -> Template:
    """Build a template from keys that a user gave, in a file or as options, and other values."""

    def spelt(key: str) -> str:
        return key if path else as_option(key)

    where = str(path) if path else ""
    errors = [f"{spelt(key)}: {_no_such_key(key)}" for key in keys if key not in KEYS]
    known = {key: value for key, value in keys.items() if key in KEYS}
    if "container" in known:
        known["container"] = image_in(path.parent if path else Path.cwd(), known["container"])
    try:
        template = Template(**{**others, **known})
    except ValidationError as error:
        named = validation_errors(error, Template, lambda key, inside: _label(spelt(key), inside))
        raise SpecError(errors + named, where) from None
    if errors:
        raise SpecError(errors, where)
    return template


def _no_such_key(key: str) -> str:
    meant = KEY_OF.get(key.replace("_", "-"))
    hint = f" (did you mean {meant!r}?)" if meant else did_you_mean(key, KEYS)
    valid = f"; valid are {', '.join(KEYS)}; further options of sbatch go into [sbatch]"
    return f"no such key{hint or valid}"


def _label(key: str, inside: Sequence[int | str]) -> str:
    if not inside:
        return key
    if isinstance(inside[0], int):
        return f"{key}, line {inside[0] + 1}"
    return f"{key} {inside[0]}" if key.startswith("--") else f"{key}.{inside[0]}"
