"""How two runs differ: settings, functions, versions, results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.differences import Change, axis_changes, changes, function_changes
from mlpsubmit.runs.result_differences import ResultDifferences, result_differences
from mlpsubmit.runs.run_keys import RunKeys

__all__ = ["RunDifferences", "run_differences"]

#: What the origin of a run has besides versions.
_NO_VERSIONS = ("spec", "spec_hash", "command", "git_diff_hash")


@dataclass(frozen=True)
class RunDifferences:
    """How two runs differ.

    Attributes:
        before, after: the runs.
        equal_keys: how many configs of the second have a key of the first.
        settings, functions, versions: what differs.
        results: how the results of the configs differ that both have.
    """

    before: RunKeys
    after: RunKeys
    equal_keys: int
    settings: list[Change]
    functions: list[Change]
    versions: list[Change]
    results: ResultDifferences

    def point(self, config: tuple[int, int] | None) -> str:
        """Return the values on axes of a config, by its indices in both runs."""
        return "" if config is None else self.after.point(config[1])

    def to_json(self) -> dict[str, Any]:
        """Return it as ``diff --json`` prints it."""
        parts = {"settings": self.settings, "functions": self.functions, "versions": self.versions}
        results = asdict(self.results)
        variables = [
            {
                "name": one.name,
                "compared_configs": one.compared,
                "equal_configs": one.equal,
                "other_shape_configs": one.other_shape,
                "one_sided_values": one.one_sided,
                "largest_difference": None if one.config is None or one.words else one.largest,
                "before": None if one.config is None else (one.words or (one.before,))[0],
                "after": None if one.config is None else (one.words or (one.after,))[-1],
                "index_before": None if one.config is None else one.config[0],
                "index_after": None if one.config is None else one.config[1],
                "point": None if one.config is None else self.after.on_axes(one.config[1]),
            }
            for one in self.results.variables
        ]
        return {
            "before": _head(self.before.run),
            "after": _head(self.after.run),
            "equal_keys": self.equal_keys,
            **{name: [change.to_json() for change in own] for name, own in parts.items()},
            "results": {
                "shared_configs": results["shared"],
                "compared_configs": results["compared"],
                "equal_configs": results["equal"],
                "variables": variables,
                "only_before": [n for n, where in self.results.alone.items() if where == 0],
                "only_after": [n for n, where in self.results.alone.items() if where == 1],
            },
        }


def _head(run: RunDirectory) -> dict[str, Any]:
    sweep = run.sweep
    names = {"name": sweep["name"], "run": run.id, "path": run.path.absolute()}
    return {**names, "configs": sweep["configs"], "created_at": sweep["created"]}


def run_differences(first: RunDirectory, second: RunDirectory) -> RunDifferences:
    """Compare two runs; nothing in them is executed.

    Raises:
        RunError: what the keys of one are made of is lost or damaged.
    """
    before, after = RunKeys(first), RunKeys(second)
    settings, functions = _settings(before, after)
    return RunDifferences(
        before,
        after,
        equal_keys=len(np.intersect1d(before.all_keys(), after.all_keys())),
        settings=settings,
        functions=functions,
        versions=[*_versions(first, second)],
        results=result_differences(before, after),
    )


def _settings(before: RunKeys, after: RunKeys) -> tuple[list[Change], list[Change]]:
    """Return the settings that differ, those on axes first, and the functions."""
    known = before.settings, after.settings
    on_axes = {name for keys in (before, after) for axis in keys.axes for name in axis["names"]}
    with_parts = {name for own in known for name, entry in own.items() if entry.get("parts")}
    found = [
        _with_defaults(change, before, after)
        for change in changes(*known, before.run.id, after.run.id)
        if change.name not in on_axes
    ]
    functions = [change for change in found if _is_function(change.name, with_parts)]
    settings = [change for change in found if change not in functions]
    covered = on_axes.union(*known)
    others = (
        {name: str(value) for name, value in keys.fixed.items() if name not in covered}
        for keys in (before, after)
    )
    functions += function_changes(before, after)
    shown = {change.name.partition("=")[0].removeprefix("axis ") for change in functions}
    axes = [  # without those whose functions differ, of equal names
        change
        for change in axis_changes(before, after)
        if not change.same_text or shown.isdisjoint(change.name.removeprefix("axis ").split(", "))
    ]
    return [*axes, *settings, *_changed(*others)], functions


def _is_function(name: str, with_parts: Collection[str]) -> bool:
    """Return whether an ingredient is a function: of the user, or of the library."""
    return name in with_parts or name in ("batchfn", "data") or name.startswith("grab[")


def _with_defaults(change: Change, before: RunKeys, after: RunKeys) -> Change:
    """Return a change with the value of a setting that is at its default in one run.

    What is no hyperparameter has no default: a run without it does not have it.
    """
    texts = []
    for text, keys in ((change.before, before), (change.after, after)):
        if text == "(default)":
            text = f"{keys.fixed[change.name]} {text}" if change.name in keys.fixed else ""
        texts.append(text)
    return replace(change, before=texts[0], after=texts[1])


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = dict.fromkeys([*before, *after])
    return [
        Change(name, "", before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _versions(before: RunDirectory, after: RunDirectory) -> Iterable[Change]:
    """Yield the versions, the commits and what the results were computed on that differ."""
    origins = [_origin(run) for run in (before, after)]
    made = [_environment(run) for run in (before, after)]
    yield from _changed(*origins)
    shared = {n: None for n in made[0] if n in made[1] and n not in {**origins[0], **origins[1]}}
    yield from _changed(*({name: own[name] for name in shared} for own in made))


def _origin(run: RunDirectory) -> dict[str, str]:
    """Return the versions of a launch; a commit with changes has their hash."""
    own = {n: v for n, v in run.sweep["origin"].items() if n not in _NO_VERSIONS}
    dirty = run.sweep["origin"].get("git_diff_hash", "")
    if own.get("git_commit"):
        own["git_commit"] = own["git_commit"][:12] + (f" with changes {dirty}" if dirty else "")
    return own


def _environment(run: RunDirectory) -> dict[str, str]:
    """Return what the results were computed with; several values of one name together."""
    found = run.results.environments()
    names = dict.fromkeys(name for entry in found for name in entry)
    return {
        name: "; ".join(dict.fromkeys(str(entry[name]) for entry in found if name in entry))
        for name in names
    }
