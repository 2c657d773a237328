"""A sweep as it was launched, or as it would be: axes, settings, functions and plan.

Of a run it is read from JSON files: nothing in the run is executed or unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.store.records import Manifest, task_count
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.run_keys import RunKeys
from mlpsubmit.spec.accepted import AXIS_OF
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.ingredients import sources

if TYPE_CHECKING:
    from mlpsubmit.runs.launch import PreparedLaunch

__all__ = ["Description", "Setting", "described_run", "described_spec"]

DEFAULT, SET, OVERRIDDEN = "default", "set", "overridden"


@dataclass(frozen=True)
class Setting:
    """A setting and where its value comes from.

    Attributes:
        source: ``default``, ``set`` (in the spec), or ``overridden`` (by KEY=VALUE since).
        override: what it was overridden with, as text; with ``+`` in front if it was appended.
    """

    name: str
    value: Any
    source: str
    override: str = ""


@dataclass(frozen=True)
class Description:
    """A sweep, and how it is trained.

    Attributes:
        manifest: as in sweep.json.
        plan: packs, tasks, executor, template and device, by name.
        sources: of functions, by the place of the function and what they are; None if they are
            lost.
        run: the run, if there is one.
        state: of the run, in one line.
    """

    manifest: Mapping[str, Any]
    plan: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, str]] | None
    run: RunDirectory | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    def _source(self, name: str, *, given: bool) -> tuple[str, str]:
        """Return where the value of a setting comes from, and its override."""
        overrides = self.manifest["overrides"]
        for key, text in overrides.items():
            own = key.removesuffix("+")
            if name in (own, AXIS_OF.get(own)):
                return OVERRIDDEN, f"+{text}" if key.endswith("+") else text
        return (SET if given else DEFAULT), ""

    @property
    def axes(self) -> list[dict[str, Any]]:
        """Each axis: its dimension, names, the values of each name, source and override."""
        found = []
        for axis in self.manifest["axes"]:
            sources = [self._source(name, given=True) for name in axis["names"]]
            source, override = next((s for s in sources if s[0] == OVERRIDDEN), (SET, ""))
            own = {"dimension": axis["dimension"], "points": len(axis["values"][0])}
            values = dict(zip(axis["names"], axis["values"], strict=True))
            found.append({**own, "values": values, "source": source, "override": override or None})
        return found

    @property
    def hyperparameters(self) -> list[Setting]:
        """Every hyperparameter that is on no axis, in the order of the documentation."""
        values = self.manifest["hyperparameters"]
        known = [*(n for n in Hyperparameters.model_fields if n in values)]
        known += [name for name in values if name not in known]
        given = set(self.manifest["given"])
        return [Setting(n, values[n], *self._source(n, given=n in given)) for n in known]

    @property
    def arguments(self) -> list[Setting]:
        """The fixed arguments of functions."""
        values = self.manifest["arguments"]
        return [Setting(n, v, *self._source(n, given=True)) for n, v in values.items()]

    def to_json(self) -> dict[str, Any]:
        """Return it as ``show --json`` prints it."""
        manifest, run = self.manifest, self.run
        settings = {
            "hyperparameters": self.hyperparameters,
            "arguments": self.arguments,
        }
        return {
            "name": manifest["name"],
            "run": None if run is None else run.id,
            "path": None if run is None else run.path.absolute(),
            **self.state,
            "created_at": None if run is None else manifest["created"],
            "configs": manifest["configs"],
            "axes": self.axes,
            **{
                name: {
                    s.name: {"value": s.value, "source": s.source, "override": s.override or None}
                    for s in own
                }
                for name, own in settings.items()
            },
            "overrides": dict(manifest["overrides"]),
            "functions": list(manifest["sources"]),
            "sources": None
            if self.sources is None
            else [
                {"place": place, "part": part, "source": source}
                for place, own in self.sources.items()
                for part, source in own.items()
            ],
            "plan": dict(self.plan),
            "origin": dict(manifest["origin"]),
            "reads": list(manifest["reads"]),
        }


def described_run(run: RunDirectory, state: Mapping[str, Any]) -> Description:
    """Return the sweep of a run as it was launched, and how it was submitted last.

    Args:
        state: what is said about its progress.
    """
    sweep: Manifest = run.sweep
    submissions = run.submissions()
    intent = run.readable_intent(submissions[-1]) if submissions else None
    devices = [str(entry.get("device", "cpu")) for entry in run.results.environments()]
    cpus = [str(entry["cpu"]) for entry in run.results.environments() if entry.get("cpu")]
    plan = {
        **_packs(Plan.from_json(run.plan), int(sweep["reused"])),
        "executor": None if intent is None else intent["executor"],
        "tasks": None if intent is None else task_count(intent),
        "template": None if intent is None else intent.get("template"),
        "devices": _devices(devices, cpus),
        "submissions": len(submissions),
        "users": run.users(),
    }
    return Description(sweep, plan, _stored_sources(run), run, state)


def _stored_sources(run: RunDirectory) -> dict[str, dict[str, str]] | None:
    with contextlib.suppress(RunError, OSError):  # lost or damaged
        return sources(RunKeys(run).content)
    return None


def _devices(devices: list[str], cpus: list[str]) -> list[str]:
    """Return what trained: GPUs by name, and CPUs by their model."""
    gpus = [device for device in devices if device != "cpu"]
    return list(dict.fromkeys(gpus or cpus or devices))


def _packs(plan: Plan, reused: int) -> dict[str, Any]:
    sizes = plan.pack_sizes if plan.packs else np.zeros(1, np.int64)
    return {
        "trained_configs": plan.configs,
        "reused_configs": reused,
        "packs": plan.packs,
        "smallest_pack_configs": int(sizes.min()),
        "largest_pack_configs": int(sizes.max()),
        "threads": plan.threads,
        "flops": plan.cost,
    }


def described_spec(prepared: PreparedLaunch, spec: Path) -> Description:
    """Return the sweep of a spec, and what a launch would do with it.

    Args:
        prepared: the launch, before anything is written.
        spec: its file.
    """
    from mlpsubmit.runs.initial_weights import source_folders
    from mlpsubmit.runs.manifest import manifest

    sweep, executor = prepared.sweep, prepared.executor
    reused = prepared.reused.count
    reads = source_folders(sweep)
    content = manifest(sweep, spec, [], reused, prepared.path.absolute(), reads)
    template = getattr(executor, "template", None)
    missing = len(prepared.missing)
    plan = {
        **_packs(prepared.plan, reused),
        "executor": executor.name if missing else None,
        "tasks": len(prepared.slices) if missing else 0,
        "template": None if template is None else template.to_json(),
        "devices": [executor.device(prepared.plan.threads)],
        "submissions": 0,
        "users": [],
    }
    state = {
        "continues_run": None if prepared.run is None else prepared.run.id,
        "missing_packs": missing,
    }
    return Description(content, plan, sources(sweep.ingredients), None, state)
