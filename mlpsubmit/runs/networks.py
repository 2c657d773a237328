"""The trained networks of a run: as modules, and measured afterwards."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlpsubmit.assembly.assemble import StackInputs, assemble
from mlpsubmit.display.text import counted
from mlpsubmit.errors import SpecError, UserError, shown
from mlpsubmit.jobs.as_launched import as_launched
from mlpsubmit.jobs.pack_results import Arrays, joined, stack_arrays
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.stored_weights import WeightsInMemory, has_weights, weights_steps
from mlpsubmit.jobs.trust import NETWORKS, sweep_hash
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.results.dataset import to_dataset
from mlpsubmit.results.names import TOGETHER
from mlpsubmit.results.results_hash import RESULTS_HASH
from mlpsubmit.results.schema import scan
from mlpsubmit.results.source import Failure, FinishedPack, FixedSetting, Layout
from mlpsubmit.runs.manifest import code_hash
from mlpsubmit.runs.selection import point_text, select_one
from mlpsubmit.runs.value_labels import axis_label
from mlpsubmit.spec.ingredients import ingredient
from mlpsubmit.spec.sweep import Sweep
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.culprits import take_culprits
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.saved_networks import SavedNetworks, load_weights
from mlpsubmit.training.seeds import data_seed

if TYPE_CHECKING:
    import xarray

__all__ = ["column_of", "measured", "saved_model", "stored_configs"]


def stored_configs(
    run: RunDirectory, indices: Collection[int], what: str
) -> dict[int, tuple[FinishedPack, int]]:
    """Return the pack with the latest result of each config, and its row there.

    Args:
        what: a name for messages.

    Raises:
        UserError: a config has no result, or the run keeps no weights.
    """
    found: dict[int, tuple[FinishedPack, int]] = {}
    for pack in run.results.packs():
        for row in np.flatnonzero(np.isin(pack["index"], list(indices))).tolist():
            found[int(pack["index"][row])] = pack, row
    for index in indices:
        if index not in found:
            raise UserError(
                f"{what}: config {index} of run {run.id} ({point_text(run, index)}) has no result; "
                f"see mlpsubmit status {run.id}"
            )
        if not has_weights(found[index][0]):
            raise UserError(_no_weights(run, what))
    return found


def column_of(pack: FinishedPack, step: int | None, what: str) -> int | None:
    """Return the position of a saved step, by default the last; None where there are no steps.

    Raises:
        UserError: listing the steps that were saved.
    """
    steps = weights_steps(pack)
    if steps is None:
        if step is not None:
            raise UserError(
                f"{what}: got step={step}, but the final weights alone were kept "
                "(SAVE_WEIGHTS='final'); leave step out"
            )
        return None
    if step is None:
        return len(steps) - 1
    if step not in steps:
        nearest = steps[np.argsort(np.abs(steps - step))[:4]]
        raise UserError(
            f"{what}: got step={step}, at which no weights were kept; the nearest are "
            f"{', '.join(map(str, sorted(nearest.tolist())))}"
        )
    return int(np.searchsorted(steps, step))


def saved_model(
    run: RunDirectory,
    selection: Mapping[str, Any],
    *,
    step: int | None,
    initial: bool,
    trust: bool,
) -> nn.Module:
    """Return the network of one config; see :meth:`mlpsubmit.Run.model`."""
    what = "model"
    if not (step is None or isinstance(step, (int, np.integer))) or isinstance(step, bool):
        raise UserError(
            f"model: got step={shown(step)}; should be an integer, a step of SAVE_WEIGHTS; leave "
            "it out for the last one"
        )
    index = select_one(run, selection, what)
    weights: Mapping[str, NDArray[Any]] = {}
    if not initial:
        pack, row = stored_configs(run, {index}, what)[index]
        weights = WeightsInMemory(pack).of(row, column_of(pack, step, what))
        steps = int(pack["steps"][row])
        if pack["status"][row] == DIVERGED and (step is None or step >= steps):
            warnings.warn(
                f"model: config {index} of run {run.id} ({point_text(run, index)}) diverged after "
                f"{counted(steps, 'step')}: its loss is infinite or NaN, and so may be its weights",
                stacklevel=3,
            )
    elif step is not None:
        raise UserError("model: got step and initial=True; give one of the two")
    with _loaded(run, trust=trust) as loaded:
        (stack,) = loaded.assembled([index], loaded.sweep)
        return load_weights(stack.models[0], weights).eval()


def measured(
    run: RunDirectory, layout: Layout, grabs: Mapping[str, Any], *, trust: bool
) -> xarray.Dataset:
    """Return a dataset with grabs of all saved networks; see :meth:`mlpsubmit.Run.measure`."""
    _check_grabs(grabs)
    source = run.results.unread()
    schema = scan(layout, source)
    with _loaded(run, trust=trust) as loaded:
        sweep = loaded.sweep.measuring(grabs)
        own = run.sweep["functions"].get("arguments", {})
        layout = replace(
            layout,
            labels=sweep.labels,
            functions=_functions(sweep.grabs, own),
            metrics=(),  # as the losses, they are not measured here
            metric_thresholds=(),
        )
        packs = [
            _measured_pack(loaded, sweep, pack, rows) for pack, rows, _ in schema.owned(source)
        ]
    if packs and all(pack is None for pack in packs):
        raise UserError(_no_weights(run, "measure"))
    found = _Measured([pack for pack in packs if pack is not None], list(source.failures()))
    dataset = to_dataset(layout, found)
    losses = ["train_loss", "test_loss", "timekeys", "crossed", "seconds", TOGETHER]
    dataset = dataset.drop_vars(losses, errors="ignore").drop_dims("threshold", errors="ignore")
    if "grab_step" in dataset.dims:
        dataset = dataset.rename(grab_step="step")
    dataset.attrs.pop(RESULTS_HASH, None)
    return dataset


def _check_grabs(grabs: Any) -> None:
    if not (isinstance(grabs, Mapping) and grabs):
        got = shown(grabs) if grabs else "no grabs"
        raise SpecError(
            f"measure: got {got}; give functions by name: measure({{'norm': my_function}})"
        )
    errors = [
        f"measure: got the name {shown(name)}; a name should be a string"
        for name in grabs
        if not isinstance(name, str)
    ]
    errors += [
        f"grabs[{name!r}]: got {grab!r:.80}; should be a function, or the name of one in grabs/"
        for name, grab in grabs.items()
        if not (callable(grab) or isinstance(grab, str))
    ]
    if errors:
        raise SpecError(errors)


def _functions(grabs: Mapping[str, Any], arguments: Collection[str]) -> dict[str, FixedSetting]:
    """Return the functions of grabs with hashes of their code, as those that a run launched with.

    Args:
        arguments: the names of arguments of functions that are settings of the run.
    """
    found = {}
    for name, grab in grabs.items():
        code = ""
        with contextlib.suppress(TypeError):  # it holds an open file, say: its code has no hash
            code = code_hash(ingredient(f"grab()[{name}]", grab), arguments)
        found[name] = FixedSetting(axis_label(grab), code)
    return found


def _no_weights(run: RunDirectory, what: str) -> str:
    return (
        f"{what}: run {run.id} keeps no weights; launch its spec with SAVE_WEIGHTS='final', which "
        "trains its configs again"
    )


@dataclass(frozen=True)
class _Pack:
    """A pack whose grabs were measured, a :class:`~mlpsubmit.results.source.FinishedPack`."""

    name: str
    content: Arrays

    def __getitem__(self, array: str) -> NDArray[Any]:
        return self.content[array]

    def arrays(self) -> Sequence[str]:
        return list(self.content)


@dataclass(frozen=True)
class _Measured:
    """A :class:`~mlpsubmit.results.source.ResultSource` of such packs."""

    content: list[_Pack]
    failed: list[Failure]

    def packs(self) -> Iterator[FinishedPack]:
        return iter(self.content)

    def failures(self) -> list[Failure]:
        return self.failed


def _measured_pack(
    loaded: _Loaded, sweep: Sweep, pack: FinishedPack, rows: NDArray[np.int64]
) -> _Pack | None:
    """Measure some rows of a pack; None if it keeps no weights."""
    if not has_weights(pack):
        return None
    everything = list(range(len(rows)))
    try:
        stacks = _measured_stacks(loaded, sweep, pack, rows, everything)
    except StackingError:  # of configs that trained one at a time
        stacks = [
            stack
            for one in everything
            for stack in _measured_stacks(loaded, sweep, pack, rows, [one])
        ]
    names = ("index", "key", "seconds")
    arrays = {**joined(stacks, everything, divided=False), **{n: pack[n][rows] for n in names}}
    return _Pack(pack.name, arrays)


def _measured_stacks(
    loaded: _Loaded, sweep: Sweep, pack: FinishedPack, rows: NDArray[np.int64], chosen: list[int]
) -> list[Arrays]:
    """Measure rows of a pack, as one stack or several; return the arrays of each.

    Args:
        chosen: positions in ``rows``.
    """
    indices = pack["index"][rows[chosen]]
    traced, kept = weights_steps(pack) is not None, WeightsInMemory(pack)
    found = []
    for stack in loaded.assembled(indices, sweep):
        own = [int(rows[chosen[row]]) for row in stack.rows]

        def weights(config: int, column: int, own: list[int] = own) -> dict[str, NDArray[Any]]:
            return kept.of(own[config], column if traced else None)

        saved = SavedNetworks(pack["steps"][own], pack["status"][own], weights)
        loaded.seed(stack)
        try:
            trained = stack.measure(saved)
        except StackingError:
            raise
        except UserError as error:
            failed = next(iter(take_culprits(error)), None)
            if failed is None:
                raise
            place = point_text(loaded.run, int(pack["index"][own[failed]]))
            raise UserError(f"{error} ({place})") from error
        positions = [chosen[row] for row in stack.rows]
        found.append(stack_arrays(positions, trained, 0.0, tested=False))
    return found


# ---- the functions of a run --------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    """The functions and the data of a run, in this process.

    Attributes:
        device: of the kind that the run trained on.
    """

    run: RunDirectory
    sweep: Sweep
    device: torch.device
    data: SharedData

    def assembled(self, indices: Iterable[int], sweep: Sweep) -> list[StackInputs]:
        """Build the models and batch functions of configs, as the tasks of the run did."""
        configs = [sweep.config(int(index)) for index in indices]
        entries = [self.data.entries(config) for config in configs]
        self._seed_generators(configs[0].hyperparameters.seed)
        return assemble(sweep, configs, entries, self.device)

    def seed(self, stack: StackInputs) -> None:
        """Set the global generators as they are when a stack begins to train."""
        self._seed_generators(stack.hyperparameters[0].seed)

    def _seed_generators(self, seed: int) -> None:
        assert self.sweep.process is not None
        self.sweep.process.seed_generators(data_seed(seed))


@contextlib.contextmanager
def _loaded(run: RunDirectory, *, trust: bool) -> Iterator[_Loaded]:
    """Yield the functions and the data of a run; restore this process afterwards.

    Raises:
        RunError: other users could have written the functions.
    """
    with as_launched(run, sweep_hash(run, trust=trust, use=NETWORKS)) as sweep, global_state_kept():
        torch.set_num_threads(Plan.from_json(run.plan).threads)
        device = _device(run)
        yield _Loaded(run, sweep, device, SharedData(run, sweep, device, trust=trust))


def _device(run: RunDirectory) -> torch.device:
    """Return a device of the kind that a run was trained on: other ones draw other numbers."""
    trained_on = {str(entry.get("device", "cpu")) for entry in run.results.environments()}
    if trained_on <= {"cpu"}:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        warnings.warn(
            f"run {run.id} was trained on {', '.join(sorted(trained_on))}, and this process sees "
            "no GPU, where other random numbers are drawn: batches and test sets differ from those "
            "of the training; measure on such a machine",
            stacklevel=5,
        )
        return torch.device("cpu")
    return torch.device("cuda")
