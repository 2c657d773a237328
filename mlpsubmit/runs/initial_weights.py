"""From INIT_WEIGHTS to the networks of another run: which config begins from which."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.display.text import abridged
from mlpsubmit.errors import RunError, SpecError, UserError
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.initial_weights import missing_networks, write_networks
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.stored_weights import WeightsInMemory, weights_digest
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.runs.locate import find_run
from mlpsubmit.runs.manifest import axis_label
from mlpsubmit.runs.networks import column_of, stored_configs
from mlpsubmit.runs.selection import axis_values, point, point_text, select, select_one
from mlpsubmit.spec.initial_weights import FromRun, InitialWeights
from mlpsubmit.spec.keys import values_of
from mlpsubmit.spec.sweep import Config, Sweep

__all__ = ["keep_initial_weights", "source_folders", "with_initial_weights"]

#: Settings that make another function of the same weights.
_SAME = ("parametrization", "gamma")

#: The default of a setting of the built-in MLP.
_OF_MLP = {"nonlinearity": "relu"}


def with_initial_weights(sweep: Sweep, runs_dir: str | Path | None) -> Sweep:
    """Return a sweep with the networks that its INIT_WEIGHTS refers to.

    Args:
        runs_dir: the folder of all runs.

    Raises:
        SpecError: listing what keeps configs from beginning at networks of another run.
    """
    values = values_of(sweep, "init_weights")
    if not any(values):
        return sweep
    errors: list[str] = []
    sources = dict[FromRun, _Source]()
    for value in filter(None, dict.fromkeys(values)):
        try:
            sources[value] = _Source.of(value, sweep, runs_dir)
        except UserError as error:
            errors.append(f"INIT_WEIGHTS={value!r}: {error}")
    if errors:
        raise SpecError(errors)
    axes = [
        number
        for number, axis in enumerate(sweep.product.axes)
        if set(axis.names) & {"init_weights", *_SAME}
        or any(set(axis.names) & source.matched for source in sources.values())
    ]
    shape = tuple(len(sweep.product.axes[number]) for number in axes)
    initial = InitialWeights(tuple(axes), shape, ("",) * int(np.prod(shape, dtype=np.int64)))
    wanted: dict[int, tuple[_Source, int]] = {}
    for number, config in _first_configs(sweep, initial):
        value = config.hyperparameters.init_weights
        if value is None:
            continue
        try:
            wanted[number] = sources[value], sources[value].index_for(config)
        except UserError as error:
            errors.append(f"INIT_WEIGHTS={value!r}: {error}")
    if not errors:
        for value, source in sources.items():
            try:
                source.load({index for own, index in wanted.values() if own is source})
            except UserError as error:
                errors.append(f"INIT_WEIGHTS={value!r}: {error}")
    if errors:
        distinct = list(dict.fromkeys(errors))
        raise SpecError([*distinct[:8], *([abridged(distinct[8:])] if distinct[8:] else [])])
    hashes = [
        wanted[number][0].hashes[wanted[number][1]] if number in wanted else ""
        for number in range(len(initial.hashes))
    ]
    read = _Networks(list(sources.values()))
    return sweep.beginning_from(InitialWeights(tuple(axes), shape, tuple(hashes), read))


def source_folders(sweep: Sweep) -> list[Path]:
    """Return the folders of the runs whose networks a sweep begins from, once they are found."""
    read = None if sweep.initial is None else sweep.initial.read
    return [source.run.path for source in read.sources] if isinstance(read, _Networks) else []


def keep_initial_weights(sweep: Sweep, folder: Path) -> None:
    """Write the networks that the configs of a sweep begin from into its run, if they are missing.

    So nothing depends on the run that they come from.
    """
    if sweep.initial is None:
        return
    file, read = folder / run_directory.INITIAL_WEIGHTS, sweep.initial.read
    keys = [key for key in dict.fromkeys(sweep.initial.hashes) if key]
    assert read is not None
    if missing_networks(file, keys):
        files.publish(file, lambda stream: write_networks(((k, read(k)) for k in keys), stream))


def _first_configs(sweep: Sweep, initial: InitialWeights) -> Iterator[tuple[int, Config]]:
    """Yield each position in the hashes that a config has, and the first such config."""
    included = sweep.included
    indices = np.arange(sweep.product.size) if included is None else np.flatnonzero(included)
    numbers, first = np.unique(initial.numbers(sweep.product.shape, indices), return_index=True)
    for number, index in zip(numbers.tolist(), indices[first].tolist(), strict=True):
        yield number, sweep.config(index)


@dataclass(frozen=True)
class _Networks:
    """Reads weights by their hash from the runs that they come from."""

    sources: list[_Source]

    def __call__(self, key: str) -> Mapping[str, NDArray[Any]]:
        return next(found for one in self.sources if (found := one.weights(key)) is not None)


@dataclass(eq=False)
class _Source:
    """A run whose networks configs begin from.

    Attributes:
        matched: its axes that the sweep has too, and that are not selected.
        hashes: by the index of one of its configs, the hash of its weights.
    """

    value: FromRun
    sweep: Sweep
    run: RunDirectory
    matched: frozenset[str]
    hashes: dict[int, str] = field(default_factory=dict)
    _packs: dict[str, tuple[WeightsInMemory, int, int | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, value: FromRun, sweep: Sweep, runs_dir: str | Path | None) -> _Source:
        """Open a run, and match its axes with those of a sweep.

        Raises:
            UserError: there is no such run, or axes of it are neither matched nor selected.
        """
        try:
            run = RunDirectory.open(find_run(value.run, runs_dir).path)
        except RunError as error:
            raise RunError(
                f"{error}; to train the rest of a run that was launched with these networks "
                "before, try mlpsubmit resume RUN: it keeps copies of them"
            ) from error
        select(run, value.sel)  # raises its errors
        selected = {name.lower().replace("_", "") for name in value.sel}
        known = axis_values(run)
        chosen = {name for name in known if name.lower().replace("_", "") in selected}
        names = {name for axis in run.sweep["axes"] for name in axis["names"]}
        matched = (sweep.product.names & names) - chosen
        free = [
            axis["dimension"]
            for axis in run.sweep["axes"]
            if len(axis["values"][0]) > 1
            and not {*axis["names"], axis["dimension"]} & (matched | chosen)
        ]
        if free:
            listed = "; ".join(
                f"{name}: {', '.join(map(str, known[name][:6]))}" + ", ..." * (len(known[name]) > 6)
                for name in free
            )
            example = {name: known[name][0] for name in free}
            raise UserError(
                f"run {run.id} has axes that this sweep has not, of which one value each must be "
                f"selected ({listed}), as in sel={ {**value.sel, **example}!r}"
            )
        return cls(value, sweep, run, frozenset(matched))

    @property
    def _fixed(self) -> dict[str, Any]:
        sweep = self.run.sweep
        return {**_OF_MLP, **sweep["hyperparameters"], **sweep["arguments"]}

    def index_for(self, config: Config) -> int:
        """Return the index of the network that a config of the sweep begins from.

        Raises:
            UserError: there is none, or the same weights would be another function here.
        """
        own = {name: config[name] for name in self.matched}
        index = select_one(self.run, {**own, **self.value.sel}, "its networks", exact=own)
        there = {**self._fixed, **point(self.run, index)}
        mlps = config["model"] == there.get("model") == "mlp"
        for name in (*_SAME, "nonlinearity") if mlps else _SAME:
            here, known = axis_label({**_OF_MLP, **config}[name]), there.get(name)
            if known is not None and here != known:
                where = f"run {self.run.id} ({point_text(self.run, index)})"
                raise UserError(
                    f"{name.upper()} is {known} in {where} and {here} here ({config!r}), where the "
                    f"same weights are another function; set {name.upper()}={known!r}, or select "
                    "another network with sel="
                )
        if not self._same_functions():
            raise UserError(
                f"PARAMETRIZATION is another function in run {self.run.id} than here: the same "
                "weights are another network"
            )
        return index

    def _same_functions(self) -> bool:
        """Return whether a callable PARAMETRIZATION is the same, as far as is recorded."""
        if not callable(self.sweep.base.parametrization):
            return True
        file = self.run.path / run_directory.INGREDIENTS
        try:
            before = json.loads(file.read_bytes())["settings"]["parametrization"]["hash"]
            return bool(before == self.sweep.ingredients["settings"]["parametrization"]["hash"])
        except (OSError, ValueError, KeyError, RunError):
            warnings.warn(
                f"INIT_WEIGHTS={self.value!r}: it is not known whether PARAMETRIZATION is the same",
                stacklevel=2,
            )
            return True

    def load(self, indices: set[int]) -> None:
        """Hash the weights of some configs.

        Raises:
            UserError: one has no result, has diverged, or keeps no weights.
        """
        found = stored_configs(self.run, indices, "its networks")
        opened: dict[int, WeightsInMemory] = {}
        for index, (pack, row) in found.items():
            if pack["status"][row] == DIVERGED:
                at = point_text(self.run, index)
                raise UserError(f"the network of run {self.run.id} at {at} has diverged")
            column = column_of(pack, self.value.step, "its networks")
            own = opened.setdefault(id(pack), WeightsInMemory(pack))
            key = weights_digest(own.of(row, column))
            self.hashes[index] = key
            self._packs[key] = own, row, column
        for own in opened.values():
            own.forget()

    def weights(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return weights by their hash; None if they are of another run."""
        if key not in self._packs:
            return None
        own, row, column = self._packs[key]
        return own.of(row, column)
