"""A sweep: axes times hyperparameters, and the functions that yield data and measure."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.html import sweep_html
from mlpsubmit.errors import SpecError, collected, did_you_mean, error_text, shown
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.axes import is_list
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.ingredients import ingredients
from mlpsubmit.spec.initial_weights import InitialWeights, Reader
from mlpsubmit.spec.keys import KeyTables, config_keys, fingerprint, key_tables, values_of
from mlpsubmit.spec.limits import bounded
from mlpsubmit.spec.overrides import override
from mlpsubmit.spec.process import ProcessSettings
from mlpsubmit.spec.read import Spec, grab_labels, misfits, read

__all__ = ["Config", "Sweep"]

#: The cached attributes of a sweep that follow from the keys of its configs.
_OF_KEYS = ("_key_tables", "fingerprint", "ingredients")


class Config(Mapping[str, Any]):
    """One point of a sweep: an immutable mapping from the name of every setting to its value.

    Names are accepted in any spelling, and as attributes: ``config["WIDTH"]``, ``config.width``.

    Attributes:
        index: flat index into the product of the axes, in C order.
        point: {name: value} of the names on axes.
    """

    index: int
    point: Mapping[str, Any]

    def __init__(self, sweep: Sweep, index: int, point: Mapping[str, Any] | None = None) -> None:
        # Directly: __setattr__ refuses, and where= may be called for a million configs.
        own = self.__dict__
        own["_sweep"], own["index"] = sweep, index
        own["point"] = sweep.product.point(index) if point is None else point

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Every hyperparameter, fixed argument and axis value, by lower-case name.

        A function that declares a hyperparameter in another spelling finds it under that too.
        """
        sweep: Sweep = self._sweep
        settings = {**sweep.fixed, **self.point}
        settings.update({spelt: settings[name] for spelt, name in sweep.spellings.items()})
        return settings

    @functools.cached_property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters at this point."""
        sweep: Sweep = self._sweep
        fields = Hyperparameters.model_fields
        update = {name: value for name, value in self.point.items() if name in fields}
        return sweep.base.model_copy(update=update)

    def replaced(self, **settings: Any) -> Config:
        """Return this config with some settings changed, whether they are on an axis or not."""
        return Config(self._sweep, self.index, {**self.point, **settings})

    @property
    def trial(self) -> int:
        """The number of the repetition; with SEED it determines every random draw."""
        return int(self.settings["trial"])

    @property
    def key(self) -> str:
        """The hex content hash of everything that determines this config's result."""
        return str(self._sweep.keys(np.array([self.index]))[0].tobytes().hex())

    def __getitem__(self, name: str) -> Any:
        if name in self.point:
            return self.point[name]
        for spelling in (name, hp.canonical_name(name) or name, name.lower()):
            # Building all settings would be too slow for where=.
            for values in (self.point, self._sweep.fixed):
                if spelling in values:
                    return values[spelling]
        raise KeyError(f"{name}: no such setting{did_you_mean(name, self.settings)}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self.point:  # a million times for where=
            return self.point[name]
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a config is immutable; use config.replaced({name}=...)")

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    def __repr__(self) -> str:
        point = ", ".join(f"{name}={shown(value)}" for name, value in self.point.items())
        return f"Config({point})"


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Sweep(Spec):
    """Axes times settings, and the functions that yield data and measure. Immutable.

    Args:
        name: names the run's folder: letters, digits, ``.``, ``_`` and ``-``.
        axes: {name: values}; a tuple of names zips: ``("WIDTH", "LR"): [(64, 0.1), (256, 0.03)]``.
            A name is a hyperparameter, ``trial``, or an argument that some function declares.
        batchfn: the batch function, a factory ``(..., bsz, gen, X=None, y=None) -> batch_fn(step)``
            whose result yields ``(X (n, ...), y (n,) or (n, d_out))``.
        data: a function that returns a mapping of names to arrays, run once per run on a worker;
            its entries are offered by name to batch functions and grabs.
        grabs: {name: function} measured inside the train loop; of the library's, the name will do.
        where: ``config -> bool``; points for which it is false are left out.
        settings: hyperparameters, in any spelling, and fixed arguments of the functions.

    Raises:
        SpecError: listing every error at once.
    """

    def __init__(
        self,
        name: str = "sweep",
        axes: Mapping[Any, Iterable[Any]] | None = None,
        *,
        batchfn: Callable[..., Any] | None = None,
        data: Callable[..., Any] | None = None,
        grabs: Mapping[str, Callable[..., Any] | str] | None = None,
        where: Callable[[Config], bool] | None = None,
        _replaced: frozenset[str] = frozenset(),
        _process: ProcessSettings | None = None,
        **settings: Any,
    ) -> None:
        named = {k: v for k, v in settings.items() if hp.canonical_name(k) and not callable(v)}
        spec = read(
            name=name,
            axes=_bounded(dict(axes or {}), "axis "),
            settings={**settings, **_bounded(named)},
            batchfn=batchfn,
            data=data,
            grabs=dict(grabs or {}) if grabs is None or isinstance(grabs, Mapping) else grabs,
            where=where,
            replaced=_replaced,
            process=_process,
        )
        super().__init__(**vars(spec))
        if where is not None and (errors := self._misfits()):
            raise SpecError(errors)
        if self.included is not None and not self.included.any():
            raise SpecError(
                f"where: leaves none of the {self.product.size} points; "
                "check its condition against the axes"
            )

    # ---- the product ---------------------------------------------------------------------------

    @functools.cached_property
    def included(self) -> NDArray[np.bool_] | None:
        """(size,) bool, the points that ``where`` keeps; None where there is no ``where``.

        Raises:
            SpecError: if ``where`` raises.
        """
        if self.where is None:
            return None
        kept = np.empty(self.product.size, dtype=bool)
        for config in self._points():
            try:
                kept[config.index] = bool(self.where(config))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise SpecError(f"where: raised {error_text(error)} at {config!r}") from error
        return kept

    def _misfits(self) -> list[str]:
        """Return the errors of settings that do not fit together at points that where keeps."""

        @functools.cache
        def kept_along(axes: tuple[int, ...]) -> NDArray[np.bool_]:
            others = tuple({*range(len(self.product.axes))} - {*axes})
            included = np.asarray(self.included).reshape(self.product.shape)
            return np.asarray(included.any(axis=others))

        def is_kept(point: Mapping[int, int]) -> bool:
            return bool(kept_along(tuple(point))[tuple(point.values())])

        return misfits(self.product, dict(self.base), {}, is_kept=is_kept)

    def __len__(self) -> int:
        """Return the number of configs: points of the product that ``where`` keeps."""
        return self.product.size if self.included is None else int(self.included.sum())

    def config(self, index: int) -> Config:
        """Return the config at a flat index of the product, whether ``where`` keeps it or not."""
        if not 0 <= index < self.product.size:
            raise IndexError(f"config {index}: the product has {self.product.size} points")
        return Config(self, index)

    def __iter__(self) -> Iterator[Config]:
        """Iterate over the configs that ``where`` keeps, one at a time."""
        points = self._points()
        return points if self.included is None else itertools.compress(points, self.included)

    def _points(self) -> Iterator[Config]:
        """Iterate over all points of the product, one at a time."""
        return map(Config, itertools.repeat(self), itertools.count(), self.product.points())

    @functools.cached_property
    def fixed(self) -> dict[str, Any]:
        """Every hyperparameter and argument, as it is where no axis changes it."""
        return {**dict(self.base), "trial": 0, **self.arguments}

    @functools.cached_property
    def spellings(self) -> dict[str, str]:
        """The hyperparameters that functions declare in another spelling, {as declared: name}."""
        names = {spelt: hp.canonical_name(spelt) for spelt in self.accepted.declared}
        return {spelt: name for spelt, name in names.items() if name and name != spelt}

    # ---- keys ----------------------------------------------------------------------------------

    def keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys (n, 2) uint64 of the configs at n flat indices.

        Raises:
            SpecError: where a setting or function holds something that has no content to hash.
        """
        return config_keys(self._key_tables, indices)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hex hash of the whole sweep: equal for two launches of an unchanged spec."""
        return fingerprint(self, self._key_tables)

    @functools.cached_property
    def ingredients(self) -> dict[str, Any]:
        """What the keys are made of, to be compared with those of another sweep."""
        with self._own_process():
            return ingredients(self, self._key_tables)

    @functools.cached_property
    def data_digest(self) -> bytes:
        """The content hash of the data function, part of the keys of what it computes."""
        with self._own_process():
            return digest(self.data)

    @functools.cached_property
    def _key_tables(self) -> KeyTables:
        with self._own_process():  # modules that functions import later are found on its path
            return key_tables(self)

    def _own_process(self) -> contextlib.AbstractContextManager[None]:
        return self.process.applied() if self.process else contextlib.nullcontext()

    # ---- other sweeps --------------------------------------------------------------------------

    def overridden(self, overrides: Mapping[str, Any]) -> Sweep:
        """Return a sweep with some settings replaced; a list becomes an axis.

        The new values of an axis take its place; a new axis comes last. A list that is itself a
        valid value (LOSS_CHECKPOINTS) stays one value; a list of such lists is an axis. With ``+``
        after its name an axis gets further values at its end: ``{"noise+": 0.6}``. A setting of a
        random search that is replaced is no part of the search any more.

        Raises:
            SpecError: for an unknown name, a bad value, or one name of a zipped axis.
        """
        (axes, settings), replaced = override(self, overrides)
        with self._own_process():
            sweep = Sweep(
                self.name,
                axes,
                batchfn=self.batchfn,
                data=self.data,
                grabs=self.grabs,
                where=self.where,
                _replaced=replaced,
                _process=self.process,
                **settings,
            )
        return sweep._with(overrides=self._with_texts(overrides))

    def _with_texts(self, overrides: Mapping[str, Any]) -> dict[str, str]:
        """Return all overrides so far, the last one of each setting, as text."""
        found = dict(self.overrides)
        for key, value in overrides.items():
            name, appends = self.accepted.canonical(key.removesuffix("+")), key.endswith("+")
            if not appends:
                found.pop(f"{name}+", None)
            found[name + "+" * appends] = value if isinstance(value, str) else shown(value)
        return found

    @property
    def grab_names(self) -> frozenset[str]:
        """The names of all grabs, those of OTHER_MODEL_GRABS too."""
        return frozenset(self.grabs).union(*values_of(self, "other_model_grabs"))

    def in_process(self, process: ProcessSettings) -> Sweep:
        """Return this sweep with the settings of the process that its functions are to run in."""
        return self._with(process=process, without=_OF_KEYS)  # the settings are part of them

    def beginning_from(self, initial: InitialWeights) -> Sweep:
        """Return this sweep with the networks that its INIT_WEIGHTS refers to."""
        return self._with(initial=initial, without=_OF_KEYS)

    def reading_initial(self, read: Reader) -> Sweep:
        """Return this sweep with a function that reads initial weights by their hash."""
        if self.initial is None:
            return self
        return self._with(initial=dataclasses.replace(self.initial, read=read))

    def _with(self, without: Iterable[str] = (), **changes: Any) -> Sweep:
        """Return this sweep with some attributes changed, and without some cached ones."""
        sweep = object.__new__(Sweep)
        kept = {name: value for name, value in vars(self).items() if name not in without}
        vars(sweep).update(kept, **changes)
        return sweep

    def measuring(self, grabs: Mapping[str, Any]) -> Sweep:
        """Return this sweep with other grabs: functions, or names of the library's.

        Raises:
            SpecError: for an unknown name, and for labels that do not fit the axes.
        """
        from mlpsubmit.grabs import by_name

        named = ("other_model_grabs", "other_model_kwargs", "other_model_gram")
        base = self.base.model_copy(update={name: {} for name in named})
        accepted = self.accepted.with_functions(filter(callable, grabs.values()))
        functions = {n: g if callable(g) else by_name(g) for n, g in grabs.items()}
        labels = grab_labels(functions, self.product, self.arguments)
        changes = {"grabs": dict(grabs), "base": base, "accepted": accepted, "labels": labels}
        return self._with(**changes, without=(*_OF_KEYS, "spellings"))

    def refreshed(self) -> Sweep:
        """Return the sweep of the same spec, read again, with its keys as they are now.

        In a notebook one edits a helper and launches the same sweep again: what functions use may
        have changed since the sweep was made. So may the settings of the process, which are
        recorded now, unless a spec file was read.

        Raises:
            SpecError: for settings of the process that belong to a hyperparameter.
        """
        process = self.process or ProcessSettings.of_this_process()
        sweep = self.in_process(process).overridden({})
        process.check(sweep.base.precision, sweep.base.deterministic)
        # Before a function of the user runs and fills one of its caches.
        _ = sweep.fingerprint, sweep.data_digest, sweep.ingredients
        return sweep

    def __getstate__(self) -> dict[str, Any]:
        """Leave caches out, so that a sweep pickles to the same bytes before and after use.

        What keys are made of is kept: a worker's keys are those of the launch, even where a module
        of the user has changed on disk since.
        """
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**state, "_key_tables": self._key_tables, "data_digest": self.data_digest}

    # ---- display -------------------------------------------------------------------------------

    def __repr__(self) -> str:
        axes = " x ".join(f"{axis.dimension}[{len(axis)}]" for axis in self.product.axes)
        return f"Sweep({self.name!r}, {f'{axes}, {len(self)} configs' if axes else 'one config'})"

    def _repr_html_(self) -> str:
        axes = [(axis.dimension, axis.points) for axis in self.product.axes]
        return sweep_html(self.name, len(self), axes, self._shown_settings(), self.grabs)

    def _shown_settings(self) -> dict[str, Any]:
        """Return the settings that are neither at their default nor on an axis, and functions."""
        fields = Hyperparameters.model_fields
        changed = {
            name.upper(): value
            for name, value in dict(self.base).items()
            if name not in self.product.names
            and value is not None
            and value != fields[name].default
        }
        functions = {"batchfn": self.batchfn, "data": self.data, "where": self.where}
        given = {name: value for name, value in functions.items() if value is not None}
        return {**changed, **self.arguments, **given}


def _bounded(given: Mapping[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """Return lists of values that are known to end.

    Raises:
        SpecError: naming each one that has too many.
    """
    errors: list[str] = []
    found = {}
    for key, values in given.items():
        shown = ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
        with collected(errors, f"{prefix}{shown:.60}: "):
            found[key] = bounded(values) if is_list(values) else values
    if errors:
        raise SpecError(errors)
    return found
