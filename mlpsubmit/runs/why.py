"""Why the keys of two configs differ: setting by setting, and functions by their source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.errors import RunError, UserError
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.differences import Change, changes, version_changes
from mlpsubmit.runs.locate import readable, runs_of
from mlpsubmit.runs.run_keys import RunKeys

__all__ = ["KeyComparison", "compare_configs", "compare_with_earlier"]


@dataclass(frozen=True)
class KeyComparison:
    """The keys of two configs, and how they differ.

    Attributes:
        configs: each as ``key``, ``index``, ``run`` and its ``point``; one if there is no other.
        changes: what differs in the keys.
        versions: what differs and is no part of them.
        lacking: by run, why none of its configs can be compared.
        texts: of a config without another, the text of every ingredient, by name.
    """

    configs: list[dict[str, Any]]
    changes: list[Change] = field(default_factory=list)
    versions: list[Change] = field(default_factory=list)
    lacking: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool | None:
        """Whether the keys are equal; None if there is only one."""
        keys = [config["key"] for config in self.configs]
        return keys[0] == keys[1] if len(keys) == 2 else None

    @property
    def lines(self) -> Iterator[str]:
        """The lines that show it."""
        if self.equal is None:
            (one,) = self.configs
            yield (
                f"config {one['index']} of run {one['run']} ({_text(one)}): no earlier run has it"
            )
            yield from (f"  {run}: {why}" for run, why in self.lacking.items())
            yield from (f"  {name}: {text}" for name, text in self.texts.items())
            return
        for one in self.configs:
            yield f"{one['key']}  config {one['index']} of run {one['run']} ({_text(one)})"
        yield (
            "the keys are equal: a launch reuses the result, unless the files of its data= have "
            "changed or --fresh is given"
            if self.equal
            else "the keys differ in:"
        )
        for change in self.changes:
            if change.name == "python":
                python = f"{change.before} -> {change.after}"
                yield f"  python: {python}, whose bytecode differs, and so do all functions"
            else:
                yield from change.lines
        if self.versions:
            listed = ", ".join(f"{v.name} {v.before} -> {v.after}" for v in self.versions)
            yield f"not part of the keys: {listed}"

    def to_json(self) -> dict[str, Any]:
        """Return it as ``why --json`` prints it."""
        return {
            "configs": self.configs,
            "equal": self.equal,
            "changes": [change.to_json() for change in self.changes],
            "other_versions": [change.to_json() for change in self.versions],
            "runs_without_it": dict(self.lacking),
            "ingredients": dict(self.texts),
        }


def _text(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in config["point"].items()) or "-"


def compare_configs(
    runs: tuple[RunDirectory, RunDirectory], selectors: tuple[str, str | None]
) -> KeyComparison:
    """Return how the keys of two configs differ, each in a run.

    Args:
        selectors: of each config, its index, its key or the values of axes; None for the one in
            the second run with the values of the first.

    Raises:
        UserError: there is no such config, or there are several.
    """
    before, after = (RunKeys(run) for run in runs)
    first = before.select(selectors[0])
    if selectors[1] is None:
        second = after.counterpart(before, first)
        if isinstance(second, str):
            raise UserError(f"run {after.run.id} has no such config: {second}")
    else:
        second = after.select(selectors[1])
    return _compared(before, first, after, second)


def compare_with_earlier(run: RunDirectory, selector: str) -> KeyComparison:
    """Return why a config was trained and not reused, by the runs before its own."""
    own = RunKeys(run)
    index = own.select(selector)
    earlier = [path for path in runs_of(run.path.parent) if path.name != run.id]
    lacking: dict[str, str] = {}
    for other in readable(reversed(earlier)):
        if other.sweep["created"] > run.sweep["created"]:
            continue
        with contextlib.suppress(RunError):  # its ingredients are damaged
            keys = RunKeys(other)
            found = keys.counterpart(own, index)
            if isinstance(found, int):
                return _compared(keys, found, own, index)
            lacking[other.id] = found
    return KeyComparison([_config(own, index)], lacking=lacking, texts=own.texts(index))


def _compared(before: RunKeys, first: int, after: RunKeys, second: int) -> KeyComparison:
    """Return how the keys of two configs differ."""
    configs = [_config(before, first), _config(after, second)]
    versions = version_changes(before, after)
    if configs[0]["key"] == configs[1]["key"]:
        return KeyComparison(configs, versions[0], versions[1])
    ingredients = before.ingredients(first), after.ingredients(second)
    found = [*changes(*ingredients, before.run.id, after.run.id), *versions[0]]
    return KeyComparison(configs, found, versions[1])


def _config(keys: RunKeys, index: int) -> dict[str, Any]:
    own = {"run": keys.run.id, "index": index, "key": keys.key(index)}
    return {**own, "point": keys.on_axes(index)}
