"""What was asked of a run: axes, settings, functions with their code, versions, git, command."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from mlpsubmit.display.notation import plain
from mlpsubmit.display.text import counted, cut
from mlpsubmit.errors import RunError
from mlpsubmit.report.contents import ReportedRun
from mlpsubmit.report.markup import definitions, details, escape, table
from mlpsubmit.runs.run_keys import RunKeys
from mlpsubmit.spec.ingredients import sources

__all__ = ["asked"]

#: The most values of an axis, and characters of a value, of a source and of all sources.
MOST_VALUES, MOST_CHARACTERS, MOST_CODE, MOST_OF_ALL_CODE = 24, 300, 20_000, 200_000

_ORIGIN = ("spec", "spec_hash", "command", "git_commit", "git_diff_hash", "data_hash")


def asked(one: ReportedRun) -> str:
    """Return what was asked of a run, as HTML."""
    sweep = one.run.directory.sweep
    changed, defaults = _settings(sweep["hyperparameters"])
    settings = definitions(_texts({**changed, **sweep["arguments"]}))
    further = definitions(_texts(defaults))
    origin, versions = _origin(one)
    parts = [
        _axes(sweep["axes"]),
        "<h3>Settings</h3>",
        settings or '<p class="note">All settings have their defaults.</p>',
        details(f"{counted(len(defaults), 'setting')} at default", further),
        "<h3>Functions</h3>",
        definitions(_texts(_functions(sweep["functions"]))),
        _code(one),
        "<h3>Origin</h3>",
        definitions(_texts(origin)),
        details("versions and devices", definitions(_texts(versions))),
    ]
    return "\n".join(filter(None, parts))


def _functions(functions: Mapping[str, Any]) -> dict[str, Any]:
    grabs: Mapping[str, Any] = functions.get("grabs") or {}
    used = {name: functions.get(name) for name in ("batchfn", "data", "where")}
    used |= {f"grab {name}": function for name, function in grabs.items()}
    return {name: value for name, value in used.items() if value not in (None, "None")}


def _origin(one: ReportedRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return where a run comes from, and the versions and devices of its results."""
    found = {name: value for name, value in one.layout.attributes.items() if value != ""}
    origin = {name: found.pop(name) for name in _ORIGIN if name in found}
    origin["launched"] = one.run.directory.sweep["created"]
    origin["folder"] = str(one.run.path.resolve())
    return origin, {name: v for name, v in found.items() if name not in ("run", "sweep")}


def _axes(axes: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for axis in axes:
        for name, values in zip(axis["names"], axis["values"], strict=True):
            texts = [cut(plain(value), MOST_CHARACTERS) for value in values]
            if len(texts) > MOST_VALUES:
                texts[MOST_VALUES - 4 : -3] = ["…"]
            zipped = "" if len(axis["names"]) == 1 else f" (with {_others(axis['names'], name)})"
            rows.append((plain(name) + zipped, str(len(values)), ", ".join(texts)))
    return (
        table(("axis", "number", "values"), rows, numbers=[1], caption="Axes", wraps=True)
        if rows
        else ""
    )


def _others(names: Iterable[str], name: str) -> str:
    return ", ".join(plain(other) for other in names if other != name)


def _settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that differ from the defaults, and those that do not."""
    from mlpsubmit.runs.value_labels import axis_label
    from mlpsubmit.spec.hyperparameters import Hyperparameters

    defaults = {name: axis_label(value) for name, value in dict(Hyperparameters()).items()}
    changed = {
        name: v for name, v in values.items() if defaults.get(name, v) != v or name not in defaults
    }
    return changed, {name: v for name, v in values.items() if name not in changed}


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(plain(name), cut(plain(value), MOST_CHARACTERS)) for name, value in values.items()]


def _code(one: ReportedRun) -> str:
    """Return the sources of the functions that the keys of configs are made of."""
    try:
        found = sources(RunKeys(one.run.directory).content)
    except (RunError, OSError):  # lost or damaged
        return ""
    texts = [
        text for own in found.values() for part, text in own.items() if part.startswith("function ")
    ]
    every = [cut(text, MOST_CODE) for text in dict.fromkeys(texts)]
    room = itertools.accumulate(map(len, every))
    shown = [text for text, used in zip(every, room, strict=True) if used <= MOST_OF_ALL_CODE]
    blocks = [f"<pre><code>{escape(text)}</code></pre>" for text in shown]
    if left := len(every) - len(shown):
        blocks.append(f'<p class="note">… and {counted(left, "more function")}.</p>')
    return details(f"code of {counted(len(every), 'function')}, as launched", *blocks)
