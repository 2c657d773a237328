"""Continue finished runs: packs of a new run that start from states which earlier runs kept.

A larger MAX_ITER, or further thresholds below the others, change no step that was made. So the keys
of the configs without these two settings identify equal trainings, and a pack of the same configs
in the same order continues from its kept state, bit for bit as one long training. Where another
setting makes earlier steps depend on these, or the packs are composed differently, it trains from
scratch, and the launch says why.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.files import LARGEST_JSON
from mlpsubmit.jobs.plan import Plan, pack_file_name
from mlpsubmit.jobs.store import records, run_directory
from mlpsubmit.jobs.store.records import Ingredients
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import untrusted
from mlpsubmit.runs.selection import point
from mlpsubmit.spec.hyperparameters import Hyperparameters, canonical_name
from mlpsubmit.spec.initial_weights import InitialWeights
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Continuation", "find_continuation"]

#: The most earlier runs that are read.
_MOST_RUNS = 8

#: The settings that may grow.
_GROWING = ("max_iter", "loss_checkpoints", "percent_thresholds")

#: With another one that changes no step, but whose crossings up to a state are in no state.
_UNSEEN = (*_GROWING, "metric_thresholds")


@dataclass(frozen=True)
class Continuation:
    """The packs of a new run that continue from kept states.

    Attributes:
        files: by pack, the file of its state.
        sources: the ids of the runs that these are of.
        from_scratch: why packs train from scratch although earlier runs trained their configs to a
            smaller MAX_ITER or other thresholds, and how many.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    from_scratch: Mapping[str, int] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The lines that a launch prints about it."""
        texts = []
        if self.files:
            count, runs = counted(len(self.files), "pack"), ", ".join(self.sources)
            continues = "continues" if len(self.files) == 1 else "continue"
            texts.append(f"{count} {continues} from the states kept by run {runs}")
        for why, number in self.from_scratch.items():
            trains = "trains" if number == 1 else "train"
            texts.append(
                f"{counted(number, 'pack')} {trains} from scratch, with configs that an earlier "
                f"run trained to a smaller MAX_ITER or other thresholds: {why}"
            )
        return texts

    def write(self, run: RunDirectory) -> None:
        """Let the packs of a new run begin at these states."""
        for pack, file in self.files.items():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile: trained from scratch
                try:
                    os.link(file, run.checkpoint(pack))
                except OSError:  # another file system
                    shutil.copyfile(file, run.checkpoint(pack))


def find_continuation(
    sweep: Sweep, plan: Plan, earlier: Sequence[RunDirectory]
) -> tuple[Plan, Continuation]:
    """Return which packs of a plan can continue, and the plan with the packs of the kept states.

    Args:
        earlier: runs of the same name, the latest first.
    """
    own, similar = (_Stems.of_sweep(sweep, without) for without in (_GROWING, _UNSEEN))
    if own is None or similar is None or not plan.packs:
        return plan, Continuation()
    wanted = similar.of_configs(plan.indices_of(np.arange(plan.packs)))
    sources = []
    for run in earlier[:_MOST_RUNS]:
        with contextlib.suppress(RunError, OSError, ValueError, KeyError):
            source = _Source.of(run)
            if source is not None and source.knows(wanted):
                sources.append(source)
    if not sources:
        return plan, Continuation()
    plan = _as_before(plan, sources, sweep.base.pack_size)
    found: dict[str, Path] = {}
    used: dict[str, None] = {}
    from_scratch: dict[str, int] = {}
    indices = plan.indices_of(np.arange(plan.packs))
    for number, (start, stems) in enumerate(_by_pack(plan, own.of_configs(indices))):
        members = indices[start : start + len(stems)]
        why = ""
        for source in sources:
            if not source.knows(loose := similar.of_configs(members)):
                continue
            file, reason = source.state(stems, loose, members, sweep)
            if file is not None:
                found[pack_file_name(number)], why = file, ""
                used[source.run.id] = None
                break
            why = why or reason
        if why:
            from_scratch[why] = from_scratch.get(why, 0) + 1
    return plan, Continuation(found, tuple(used), from_scratch)


def _by_pack(plan: Plan, stems: NDArray[np.uint64]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the position of the first config of each pack among all, and the stems of its configs.

    Args:
        stems: of all configs of the plan, in its order.
    """
    stops = np.cumsum(plan.pack_sizes).tolist()
    for start, stop in zip([0, *stops], stops, strict=False):
        yield start, stems[start:stop]


def _as_before(plan: Plan, sources: Iterable[_Source], pack_size: int | str) -> Plan:
    """Return a plan with the packs of a run that has kept states, if it has the same groups.

    Args:
        pack_size: PACK_SIZE, which no pack may exceed.
    """
    for source in sources:
        other = source.plan
        fits = isinstance(pack_size, str) or other.pack_limits.max() <= pack_size
        if source.kept and fits and _same_order(plan, other) and _equal(plan.kept, other.kept):
            return replace(plan, pack_limits=other.pack_limits)
    return plan


def _same_order(plan: Plan, other: Plan) -> bool:
    """Return whether two plans have the same groups, in the same order."""
    one, two = plan.order, other.order
    same = (one.shape, one.axes, one.outside) == (two.shape, two.axes, two.outside)
    return (
        same
        and one.classes.keys() == two.classes.keys()
        and all(np.array_equal(classes, two.classes[axis]) for axis, classes in one.classes.items())
    )


def _equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


@dataclass(frozen=True)
class _Stems:
    """The keys of configs without some settings.

    Attributes:
        shape: of the product.
        base, axes, initial: as in :class:`mlpsubmit.spec.keys.KeyTables`, less these settings.
    """

    shape: tuple[int, ...]
    base: NDArray[np.uint64]
    axes: tuple[NDArray[np.uint64] | None, ...]
    initial: tuple[InitialWeights, NDArray[np.uint64]] | None

    @classmethod
    def of_sweep(cls, sweep: Sweep, without: Sequence[str]) -> _Stems | None:
        """Return those of a sweep; None where a setting to leave out is zipped with another."""
        names = [axis.names for axis in sweep.product.axes]
        content: Any = sweep.ingredients
        return cls.of(content, names, sweep.product.shape, without)

    @classmethod
    def of(
        cls,
        content: Ingredients,
        names: Sequence[Sequence[str]],
        shape: tuple[int, ...],
        without: Sequence[str],
    ) -> _Stems | None:
        """Return those of the ingredients of keys.

        Args:
            names: of each axis.
            without: the settings to leave out.
        """
        if any(len(own) > 1 and not set(without).isdisjoint(own) for own in names):
            return None
        base = _lanes(content["base"])[0].copy()
        for name in without:
            if name in content["settings"]:
                base -= _lanes(content["settings"][name]["hash"])[0]
        axes = [
            None if own[0] in without else _lanes(table)
            for own, table in zip(names, content["axes"], strict=True)
        ]
        initial = None
        if (known := content["initial"]) is not None:
            sizes = tuple(shape[axis] for axis in known["axes"])
            weights = InitialWeights(tuple(known["axes"]), sizes, tuple(known["hashes"]))
            initial = weights, _lanes(known["table"])
        return cls(shape, base, tuple(axes), initial)

    def of_configs(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return those of configs at flat indices, (n, 2) uint64."""
        total = np.tile(self.base, (len(indices), 1))
        columns = np.unravel_index(indices, self.shape) if self.shape else ()
        for table, column in zip(self.axes, columns, strict=True):
            if table is not None:
                total += table[column]
        if self.initial is not None:
            weights, table = self.initial
            total += table[weights.numbers(self.shape, indices)]
        return total


def _lanes(table: str) -> NDArray[np.uint64]:
    """Return (n, 2) uint64 of bytes in hex."""
    return np.frombuffer(bytes.fromhex(table), dtype="<u8").reshape(-1, 2)


@dataclass(frozen=True)
class _Source:
    """An earlier run, whose packs a new one may continue.

    Attributes:
        known: the first lanes of the stems of its configs that trained, sorted, (n,): without the
            thresholds on metrics.
        exact: of these configs, those with them, (n,).
        indices: of these configs, (n,).
        packs: by the stems, with them, of their configs in order, the numbers of packs.
    """

    run: RunDirectory
    plan: Plan
    known: NDArray[np.uint64]
    exact: NDArray[np.uint64]
    indices: NDArray[np.int64]
    packs: Mapping[bytes, list[int]]

    @classmethod
    def of(cls, run: RunDirectory) -> _Source | None:
        """Return an earlier run; None where its keys cannot be taken apart, or nothing trained.

        Raises:
            RunError, OSError, ValueError, KeyError: its files are damaged or lost.
        """
        axes = run.sweep["axes"]
        file = run.path / run_directory.INGREDIENTS
        content = records.read(file, Ingredients, LARGEST_JSON)
        records.check_ingredients(file, content, run.sweep)
        shape = tuple(len(axis["values"][0]) for axis in axes)
        names = [axis["names"] for axis in axes]
        stems, similar = (_Stems.of(content, names, shape, one) for one in (_GROWING, _UNSEEN))
        plan = Plan.from_json(run.plan)
        if stems is None or similar is None or not plan.packs:
            return None
        indices = plan.indices_of(np.arange(plan.packs))
        own, known = stems.of_configs(indices), similar.of_configs(indices)[:, 0]
        packs: dict[bytes, list[int]] = {}
        for number, (_, members) in enumerate(_by_pack(plan, own)):
            packs.setdefault(members.tobytes(), []).append(number)
        order = np.argsort(known)
        return cls(run, plan, known[order], own[order, 0], indices[order], packs)

    @property
    def kept(self) -> bool:
        """Whether it has kept any state."""
        return any((self.run.path / run_directory.STATES).glob("[!.]*.pt"))

    def knows(self, stems: NDArray[np.uint64]) -> bool:
        """Return whether it has trained any of some configs, however far."""
        return bool((self.known[self._nearest(stems)] == stems[:, 0]).any())

    def _nearest(self, stems: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the positions in ``known`` at which stems are, if they are there, (n,)."""
        return np.minimum(np.searchsorted(self.known, stems[:, 0]), len(self.known) - 1)

    def state(
        self,
        stems: NDArray[np.uint64],
        loose: NDArray[np.uint64],
        members: NDArray[np.int64],
        sweep: Sweep,
    ) -> tuple[Path | None, str]:
        """Return the state from which a pack can continue, or why it trains from scratch.

        Args:
            stems: of its configs, in order.
            loose: those without the thresholds on metrics.
            members: the indices of these configs in the sweep.

        Returns:
            No reason if none of these configs was trained less far.
        """
        reasons = []
        settings = sweep.config(int(members[0])).hyperparameters
        for number in self.packs.get(stems.tobytes(), ()):
            index = int(self.plan.indices(self.plan.pack(number))[0])
            file, reason = self._state(pack_file_name(number), index, members, sweep)
            if file is not None:
                return file, ""
            reasons.append(reason)
        if not reasons:
            reasons.append(self._difference(stems, loose, settings))
        return None, next(filter(None, reasons), "")

    def _difference(
        self, stems: NDArray[np.uint64], loose: NDArray[np.uint64], settings: Hyperparameters
    ) -> str:
        """Return why none of its packs has the configs of another, some of which it has trained."""
        at = self._nearest(loose)
        row = int((self.known[at] == loose[:, 0]).argmax())
        among = slice(at[row], np.searchsorted(self.known, loose[row, 0], side="right"))
        equal = self.indices[among][self.exact[among] == stems[row, 0]]
        if not equal.size:
            return (
                f"METRIC_THRESHOLDS are not those of run {self.run.id}, whose states hold no "
                "crossings of others"
            )
        if any(_growth(self._before(int(equal[0])), settings)):
            return (
                f"the packs of run {self.run.id} are composed differently (axes, PACK_SIZE, or "
                "configs with results)"
            )
        return ""

    def _before(self, index: int) -> _Before:
        """Return how far one of its configs was to train."""
        sweep = self.run.sweep
        at = point(self.run, index)
        max_iter = int(at.get("max_iter", sweep["hyperparameters"].get("max_iter", 0)))
        thresholds = sweep["thresholds"]
        fixed = sweep["hyperparameters"].get("percent_thresholds", "None")
        relative = str(at.get("percent_thresholds", fixed)) != "None"
        if (axis := sweep["threshold_axis"]) is not None:
            number = [one["dimension"] for one in sweep["axes"]].index(axis["dimension"])
            shape = [len(one["values"][0]) for one in sweep["axes"]]
            thresholds = axis["values"][int(np.unravel_index(index, shape)[number])]
        return _Before(max_iter, tuple(thresholds), relative)

    def _state(
        self, pack: str, index: int, members: NDArray[np.int64], sweep: Sweep
    ) -> tuple[Path | None, str]:
        settings = sweep.config(int(members[0])).hyperparameters
        before = self._before(index)
        larger, further = _growth(before, settings)
        if not (larger or further):
            return None, ""
        for own in _with_own_schedules(sweep, members):
            if why := _obstacle(before, own, sweep, larger=larger, further=further):
                return None, why
        names = [self.run.kept_state(pack, uncrossed=which) for which in (False, True)]
        files = [file for file in (names[1:] if further else names) if file.is_file()]
        if not files:
            started = further and names[0].is_file()
            return None, (
                f"run {self.run.id} has kept no state from before a config stopped at a threshold"
                if started
                else f"run {self.run.id} has kept no states (KEEP_STATE=True keeps them, of packs "
                "that train as one stack)"
            )
        if (others := untrusted(files[0])) is not None:
            return None, f"{files[0]} {others}"
        return files[0], ""


@dataclass(frozen=True)
class _Before:
    """How far a config was to train: MAX_ITER, and thresholds of one of the two kinds."""

    max_iter: int
    thresholds: tuple[float, ...]
    relative: bool


def _growth(before: _Before, settings: Hyperparameters) -> tuple[bool, bool]:
    """Return whether MAX_ITER is larger than before, and whether there are further thresholds.

    Neither if a training as before is no part of this one.
    """
    relative, now = settings.loss_checkpoints is None, settings.thresholds
    if settings.max_iter < before.max_iter or not set(before.thresholds) <= set(now):
        return False, False
    if relative != before.relative:
        return False, False
    return settings.max_iter > before.max_iter, len(now) > len(before.thresholds)


def _with_own_schedules(sweep: Sweep, members: NDArray[np.int64]) -> Iterator[Hyperparameters]:
    """Yield the settings of the configs of a pack that may depend on MAX_ITER each in its own way.

    Of the settings that may differ within a pack, this is LR_SCHEDULE alone: one config for each
    of its values.
    """
    number = next(
        (n for n, axis in enumerate(sweep.product.axes) if "lr_schedule" in axis.names), None
    )
    chosen = members[:1]
    if number is not None:
        places = np.unravel_index(members, sweep.product.shape)[number]
        chosen = members[np.unique(places, return_index=True)[1]]
    for index in chosen.tolist():
        yield sweep.config(index).hyperparameters


def _obstacle(
    before: _Before,
    settings: Hyperparameters,
    sweep: Sweep,
    *,
    larger: bool,
    further: bool,
) -> str:
    """Return why a training cannot continue from a state of a shorter one; nothing if it can."""
    taken = {canonical_name(name) for name in sweep.accepted.declared}
    if sweep.accepted.takes_any:
        taken |= {"max_iter", "loss_checkpoints", "percent_thresholds"}  # any **kwargs have them
    if larger:
        recorded = [] if settings.onlythresholds else ["record_every", "grab_every"]
        if settings.measured:  # thresholds on metrics of the batch are looked at there
            recorded.append("record_every")
        for name in ("lr_schedule", "eval_every", "save_weights", *recorded):
            value = getattr(settings, name)
            if value in ("linear", "cosine") or (isinstance(value, str) and value[:4] == "log:"):
                return f"{name.upper()}={value!r} depends on MAX_ITER"
        if "max_iter" in taken:
            return "a function of the spec takes MAX_ITER"
    if further:
        earlier = before.thresholds
        if not earlier or settings.thresholds[: len(earlier)] != earlier:
            return (
                "a new threshold is not below all earlier ones, so it may have been crossed before"
            )
        if settings.stop_on != "train_loss":
            return f"with STOP_ON={settings.stop_on!r} thresholds on the train loss stop no config"
        kind = "percent_thresholds" if before.relative else "loss_checkpoints"
        if kind in taken:
            return f"a function of the spec takes {kind.upper()}"
    return ""
