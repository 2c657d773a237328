"""A sweep: axes times hyperparameters, and the functions that yield data and measure."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.display.html import sweep_html
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.fingerprint import DIGEST_BYTES, digest
from mlpsubmit.spec.hints import hints
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.product import Axis, Product

__all__ = ["NUMERICS", "Config", "Sweep"]

#: Part of every key; raised when a release changes the results that the same settings give.
NUMERICS = 1

#: Settings that scripts give as lists and mean as axes: {hyperparameter: axis}.
_LISTED = {"n_samples": "n_samples", "target_monomials": "monomials"}

_UNREADABLE = (
    "holds something without a content of its own ({}); settings and functions may hold arrays, "
    "numbers and functions, but no open files, locks or generators: make those inside a function"
)

_VALID_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LANES = DIGEST_BYTES // 8


class Config(Mapping[str, Any]):
    """One point of a sweep: a mapping from the name of every setting to its value.

    Names are accepted in any spelling, and as attributes: ``config["WIDTH"]``, ``config.width``.
    """

    def __init__(self, sweep: Sweep, index: int, point: dict[str, Any] | None = None) -> None:
        self._sweep = sweep
        self.index = index
        self.point = sweep.product.point(index) if point is None else point

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Every hyperparameter, fixed argument and axis value, by lower-case name.

        A function that declares a hyperparameter in another spelling finds it under that too.
        """
        sweep = self._sweep
        settings = {**sweep.fixed, **self.point}
        settings.update({spelt: settings[name] for spelt, name in sweep.spellings.items()})
        return settings

    @functools.cached_property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters at this point."""
        fields = Hyperparameters.model_fields
        update = {name: value for name, value in self.point.items() if name in fields}
        return self._sweep.base.model_copy(update=update)

    def replaced(self, **settings: Any) -> Config:
        """Return this config with some settings changed, whether they are on an axis or not."""
        return Config(self._sweep, self.index, {**self.point, **settings})

    @property
    def trial(self) -> int:
        """Which repetition this is; with SEED it determines every random draw."""
        return int(self.settings["trial"])

    @property
    def key(self) -> str:
        """The hex content hash of all that determines this config's result."""
        return str(self._sweep.keys(np.array([self.index]))[0].tobytes().hex())

    def __getitem__(self, name: str) -> Any:
        if name in self.point:
            return self.point[name]
        for spelling in (name, hp.canonical_name(name), name.lower()):
            # Looked up often, as in where=, the whole of settings is not worth building.
            for place in (self.point, self._sweep.fixed):
                if spelling in place:
                    return place[spelling]
        raise KeyError(f"{name}: no such setting{did_you_mean(name, self.settings)}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    def __repr__(self) -> str:
        point = ", ".join(f"{name}={value!r}" for name, value in self.point.items())
        return f"Config({point})"


class Sweep:
    """What to train, over which axes.

    Args:
        name: names the run's folder: letters, digits, ``.``, ``_`` and ``-``.
        axes: {name: values}; a tuple of names zips: ``("WIDTH", "LR"): [(64, 0.1), (256, 0.03)]``.
            A name is a hyperparameter, ``trial``, or an argument that some function declares.
        batchfn: the batch function, a factory ``(..., bsz, gen, X=None, y=None) -> batch_fn(step)``
            whose result yields ``(X (n, ...), y (n,) or (n, d_out))``.
        data: a function that returns a mapping of names to arrays, run once per run on a worker;
            its entries are offered by name to batch functions and grabs.
        grabs: {name: function} measured inside the train loop.
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
        grabs: Mapping[str, Callable[..., Any]] | None = None,
        where: Callable[[Config], bool] | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        self.batchfn: Callable[..., Any] = batchfn  # type: ignore[assignment]  # checked below
        self.data = data
        if grabs is not None and not isinstance(grabs, Mapping):
            raise SpecError(
                f"grabs: got {grabs!r:.80}; should be a mapping of names to functions, as in "
                "grabs={'sharpness': sharpness}"
            )
        self.grabs = dict(grabs or {})
        self.where = where
        # An iterator can be read only once, and not pickled.
        self._spec = (
            {key: _as_list(values) for key, values in dict(axes or {}).items()},
            {key: _as_list(v) if hp.canonical_name(key) else v for key, v in settings.items()},
        )
        self._freed: frozenset[str] = frozenset()
        self._check()

    # ---- reading the spec ----------------------------------------------------------------------

    def _check(self) -> None:
        """Read axes, hyperparameters and arguments out of the spec, or list its errors."""
        errors = _name_errors(self.name) + self._function_errors()
        raw_axes, raw_settings = self._spec
        settings, listed = _split_listed(raw_settings)
        axes: list[Axis] = []
        for key, values in [*raw_axes.items(), *listed.items()]:
            try:
                axes.append(self._axis(key, values))
            except SpecError as error:
                errors += error.errors
        errors += _repeated_names(axes)
        self.product = Product(tuple(axes))
        errors += self._read_settings(settings)
        if errors:
            raise SpecError(dict.fromkeys(errors))
        self._check_tied()
        self._check_where()

    def _function_errors(self) -> list[str]:
        errors: list[str] = []
        if self.batchfn is None:
            errors.append(
                "batchfn: missing; give the function that yields batches, for example "
                "batchfn=mlpsubmit.batchfns._polynomial"
            )
        functions = {"batchfn": self.batchfn, "data": self.data, "where": self.where}
        functions |= {f"grabs[{name!r}]": grab for name, grab in self.grabs.items()}
        for place, function in functions.items():
            if function is not None and not callable(function):
                hint = (
                    f" (by its name: OTHER_MODEL_GRABS={{'mine': {function!r}}})"
                    if isinstance(function, str) and place.startswith("grabs")
                    else ""
                )
                errors.append(f"{place}: got {function!r}; should be a function{hint}")
        for alias, grab in self._named_grabs().items():
            if isinstance(grab, SpecError):
                errors += [f"OTHER_MODEL_GRABS[{alias!r}]: {text}" for text in grab.errors]
        try:
            _ = self.declared
            errors += hints(self.batchfn, self.data, self._spec[1])
        except SpecError as error:
            errors += error.errors
        return errors

    def _functions(self) -> list[Callable[..., Any]]:
        """Return every function whose arguments settings and axes may name."""
        models = [v for name, v in self._spec[1].items() if hp.canonical_name(name) == "model"]
        named = [grab for grab in self._named_grabs().values() if callable(grab)]
        candidates = [self.batchfn, self.data, *self.grabs.values(), *named, *models]
        return [function for function in candidates if callable(function)]

    def _named_grabs(self) -> dict[str, Any]:
        """Return the grabs of OTHER_MODEL_GRABS by alias: the function, or the error."""
        found: dict[str, Any] = {}
        for setting, value in self._spec[1].items():
            if hp.canonical_name(setting) == "other_model_grabs" and isinstance(value, Mapping):
                found |= {alias: _named(grab) for alias, grab in value.items()}
        return found

    @functools.cached_property
    def declared(self) -> set[str]:
        """The names that functions of the spec declare and the train loop does not supply."""
        names = set().union(*(declared(function) for function in self._functions()))
        return names - SUPPLIED

    def _unused(self) -> set[str]:
        """Return the hyperparameters that belong to optimizers other than those of the spec."""
        axes, settings = self._spec
        given = [
            value
            for place in (axes, settings)
            for name, value in place.items()
            if isinstance(name, str) and hp.canonical_name(name) == "optimizer"
        ]
        zipped = any(
            hp.canonical_name(name) == "optimizer"
            for names in axes
            if isinstance(names, tuple)
            for name in map(str, names)
        )
        if zipped or any(not isinstance(value, str) for value in given):
            return set()  # several, or a class, which may take what it likes
        uses_betas = given and given[0] in ("adam", "adamw")
        return {"momentum", "nesterov"} if uses_betas else {"betas", "eps"}

    def takes(self, name: str) -> bool:
        """Tell whether any function of the spec takes an argument of this name."""
        return name in self.declared or any(map(takes_all, self._functions()))

    @functools.cached_property
    def spellings(self) -> dict[str, str]:
        """The hyperparameters that functions declare in another spelling, {as declared: name}."""
        names = {spelt: hp.canonical_name(spelt) for spelt in self.declared}
        return {spelt: name for spelt, name in names.items() if name and name != spelt}

    def _canonical(self, name: Any) -> str:
        """Return the name under which results carry a setting.

        Raises:
            SpecError: if it is neither a hyperparameter nor an argument of any function.
        """
        if not isinstance(name, str):
            raise SpecError(f"axis {name!r}: a name should be a string")
        canonical = hp.canonical_name(name)
        if canonical is not None:
            return canonical
        if name in self.declared or name.lower() in ("trial", "monomials"):
            return name if name in self.declared else name.lower()
        known = {*Hyperparameters.model_fields, *self.declared, "trial"}
        raise SpecError(
            f"{name}: neither a hyperparameter nor an argument that a function of the spec "
            f"declares{did_you_mean(name, known)}"
        )

    def _axis(self, key: Any, values: Any) -> Axis:
        names = key if isinstance(key, tuple) else (key,)
        label = ", ".join(map(str, names))
        canonical = tuple(_LISTED.get(name, name) for name in map(self._canonical, names))
        if idle := [name for name in canonical if name in hp.OUTSIDE_RESULTS]:
            raise SpecError(
                f"axis {label}: no result depends on {idle[0].upper()}; give it as one value"
            )
        if idle := [name for name in canonical if name in self._unused()]:
            raise SpecError(
                f"axis {label}: no optimizer of the spec uses {idle[0].upper()}, so no result "
                "depends on it"
            )
        if "n_train" in canonical and not self.takes("n_train"):
            raise SpecError(
                f"axis {label}: no function of the spec takes N_TRAIN, so no result depends on it; "
                "data recipes such as images do"
            )
        if not _is_list(values):
            raise SpecError(f"axis {label}: got {values!r}; should be a list of values")
        points = [tuple(value) if isinstance(key, tuple) else (value,) for value in values]
        if not points:
            raise SpecError(f"axis {label}: has no values; give at least one or leave it out")
        uneven = [point for point in points if len(point) != len(names)]
        if uneven:
            raise SpecError(
                f"axis ({label}): got {uneven[0]!r}; each point of this zip should have "
                f"{len(names)} values"
            )
        return self._parsed_axis(canonical, label, points)

    def _parsed_axis(
        self, names: tuple[str, ...], label: str, points: list[tuple[Any, ...]]
    ) -> Axis:
        errors: list[str] = []
        parsed = []
        for point in points:
            try:
                parsed.append(tuple(map(_parsed, names, point)))
            except SpecError as error:
                errors += [f"axis {label}: {message}" for message in error.errors]
        if errors:
            raise SpecError(errors)
        axis = Axis(names, tuple(parsed))
        try:
            repeats = axis.repeats()
        except TypeError as error:
            raise SpecError(f"axis {label}: {_UNREADABLE.format(error)}") from error
        if repeats:
            shown = repeats[0] if len(names) > 1 else repeats[0][0]
            raise SpecError(f"axis {label}: the value {shown!r} stands more than once; keep one")
        return axis

    def _read_settings(self, settings: Mapping[str, Any]) -> list[str]:
        """Set ``base`` and ``arguments`` from the settings; return the errors among them."""
        errors: list[str] = []
        values: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        axis_names = {name for axis in self.product.axes for name in axis.names}
        for name, value in settings.items():
            try:
                canonical = self._canonical(name)
            except SpecError as error:
                errors += error.errors
                continue
            if canonical in axis_names:
                errors.append(
                    f"{name}: is an axis and also fixed to {value!r}; keep one of the two"
                )
            elif canonical in Hyperparameters.model_fields:
                values[name] = value
            else:
                try:
                    self.arguments[canonical] = _parsed(canonical, value)
                except SpecError as error:
                    errors += [f"{name}: {message}" for message in error.errors]
        first = self.product.point(0)
        sampled = {name: first[name] for name in first if name in Hyperparameters.model_fields}
        try:
            self.base = hp.validate({**values, **sampled})
            errors += self._shadowed(axis_names)
        except SpecError as error:
            errors += [_with_axis_hint(message, values) for message in error.errors]
        return errors

    def _shadowed(self, axis_names: set[str]) -> list[str]:
        """Return an error for each value that a function fixes, and the spec in another way."""
        hps = [("datasethps", name, value) for name, value in self.base.datasethps.items()]
        bound = [
            (function_name(function), name, value)
            for function in self._functions()
            for name, value in getattr(function, "keywords", {}).items()
        ]
        errors = {
            name: f"axis {name}: {who} already fixes {name}; leave it out there or drop the axis"
            for who, name, _ in reversed(hps + bound)
            if name in axis_names - self._freed
        }
        set_here = {**self.base.datasethps, **self.arguments}
        for who, name, value in bound + [entry for entry in hps if entry[1] in self.arguments]:
            if name in set_here.keys() - self._freed and not _alike(value, set_here[name]):
                errors[name] = (
                    f"{name}: {who} fixes it to {value!r:.40}, and the spec to "
                    f"{set_here[name]!r:.40}; keep one of the two"
                )
        return [errors[name] for name in sorted(errors)]

    def _check_tied(self) -> None:
        """Check at every point what the first point cannot show: settings that have to fit."""
        axes = [axis for axis in self.product.axes if hp.TIED & set(axis.names)]
        tied = Product(tuple(axes))
        for index in range(tied.size if axes else 0):
            update = {name: v for name, v in tied.point(index).items() if name in hp.TIED}
            try:
                hp.validate({**dict(self.base), **update})
            except SpecError as error:
                at = ", ".join(f"{name.upper()}={value!r}" for name, value in update.items())
                raise SpecError([f"at {at}: {message}" for message in error.errors]) from None

    def _check_where(self) -> None:
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
            except Exception as error:
                raise SpecError(
                    f"where: raised {type(error).__name__}: {error} at {config!r}"
                ) from error
        return kept

    def __len__(self) -> int:
        """How many configs there are: points of the product that ``where`` keeps."""
        return self.product.size if self.included is None else int(self.included.sum())

    def config(self, index: int) -> Config:
        """Return the config at a flat index of the product, whether ``where`` keeps it or not."""
        if not 0 <= index < self.product.size:
            raise IndexError(f"config {index}: the product has {self.product.size} points")
        return Config(self, index)

    def __iter__(self) -> Iterator[Config]:
        """Iterate over the configs that ``where`` keeps, one at a time."""
        included = self.included
        return (c for c in self._points() if included is None or included[c.index])

    def _points(self) -> Iterator[Config]:
        """Iterate over all points of the product, one at a time."""
        return (Config(self, index, p) for index, p in enumerate(self.product.points()))

    # ---- keys ----------------------------------------------------------------------------------

    def keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys of configs, shape (n, 2), uint64.

        A key is the lane-wise sum of the digests of its settings: the order of settings does not
        matter, a value counts the same whether it is fixed or on an axis, and a million keys cost
        a few vector additions. Settings at their default are left out, so that a later release
        may add one without changing the keys of old results.
        """
        total = np.tile(self._base_key, (len(indices), 1))
        if self.product.axes:
            columns = np.unravel_index(indices, self.product.shape)
            for table, column in zip(self._axis_keys, columns, strict=True):
                total += table[column]
        return total

    @functools.cached_property
    def _axis_keys(self) -> list[NDArray[np.uint64]]:
        """What each point of each axis adds to a key, (points, 2) per axis."""
        return [
            np.array([_lanes(zip(axis.names, point, strict=True)) for point in axis.points])
            for axis in self.product.axes
        ]

    @functools.cached_property
    def _base_key(self) -> NDArray[np.uint64]:
        axis_names = {name for axis in self.product.axes for name in axis.names}
        entries: list[tuple[str, Any]] = [
            (name, getattr(self.base, name))
            for name in Hyperparameters.model_fields
            if name not in axis_names
        ]
        entries += self.arguments.items()
        if "trial" not in axis_names | set(self.arguments):
            entries.append(("trial", 0))
        entries += [("batchfn()", self.batchfn), ("data()", self.data), ("numerics()", NUMERICS)]
        entries += [(f"grab()[{name}]", grab) for name, grab in self.grabs.items()]
        return np.array(_lanes(entries))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hex hash of the whole sweep: equal for two launches of an unchanged spec."""
        axes = [(axis.names, axis.points) for axis in self.product.axes]
        arithmetic = (self.base.pack_size, self.base.compile)  # in no key, but they round
        parts = (self.name, self._base_key.tobytes(), axes, self.where, *arithmetic)
        return _digest("where", *parts).hex()

    def reread(self) -> None:
        """Forget the keys: functions, or what they use, may have changed since they were computed.

        In a notebook one edits a helper and launches the same sweep again.
        """
        for name in ("_base_key", "_axis_keys", "fingerprint"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def fixed(self) -> dict[str, Any]:
        """Every hyperparameter and argument, as it is where no axis changes it."""
        return {**dict(self.base), "trial": 0, **self.arguments}

    # ---- changing a sweep ----------------------------------------------------------------------

    def overridden(self, overrides: Mapping[str, Any]) -> Sweep:
        """Return a sweep with some settings replaced; a list becomes an axis.

        The new values of an axis take its place; a new axis comes last. A list that is itself a
        valid value (LOSS_CHECKPOINTS) stays one value; a list of such lists is an axis.

        Raises:
            SpecError: for an unknown name, a bad value, or one name of a zipped axis.
        """
        axes, settings = dict(self._spec[0]), dict(self._spec[1])
        errors: list[str] = []
        replaced: set[str] = set()
        order = [key if isinstance(key, tuple) else self._canonical(key) for key in axes]
        for name, value in overrides.items():
            try:
                canonical = self._canonical(name)
                self._remove(canonical, axes, settings)
            except SpecError as error:
                errors += error.errors
                continue
            if canonical in replaced:
                errors.append(f"{name}: is given twice; keep one")
            replaced.add(canonical)
            target = axes if _means_axis(canonical, value) else settings
            target[canonical] = value
        if errors:
            raise SpecError(errors)
        sweep = object.__new__(type(self))
        sweep.__dict__.update(
            {name: self.__dict__[name] for name in ("name", "batchfn", "data", "grabs", "where")}
        )
        places = {key: place for place, key in enumerate(order)}
        axes = dict(sorted(axes.items(), key=lambda axis: self._place(axis[0], places)))
        sweep._spec, sweep._freed = (axes, settings), self._freed | replaced
        sweep._check()
        return sweep

    def _place(self, key: Any, places: Mapping[Any, int]) -> int:
        """Return where an axis stood before, or behind all that did."""
        return places.get(key if isinstance(key, tuple) else self._canonical(key), len(places))

    def _remove(self, canonical: str, axes: dict[Any, Any], settings: dict[str, Any]) -> None:
        """Take a setting out of the axes, the settings and datasethps, wherever it stands."""
        for names in [key for key in axes if isinstance(key, tuple)]:
            if canonical in map(self._canonical, names):
                raise SpecError(
                    f"{canonical}: is part of the zipped axis ({', '.join(names)}); "
                    "change that axis in the spec"
                )
        aliases = {"monomials": "target_monomials", "trial": "num_trials"}
        same = {canonical, aliases.get(canonical, canonical)}
        same |= {axis for axis, setting in aliases.items() if setting == canonical}
        places: tuple[dict[Any, Any], ...] = (axes, settings)
        for place in places:
            for key in [key for key in place if isinstance(key, str)]:
                if self._canonical(key) in same:
                    del place[key]
        for key in settings:
            if self._canonical(key) == "datasethps" and canonical in settings[key]:
                settings[key] = {k: v for k, v in settings[key].items() if k != canonical}

    def __getstate__(self) -> dict[str, Any]:
        """Leave caches out, so that a sweep pickles to the same bytes before and after use.

        What keys are made of goes with it: a worker's keys are those of the launch, even where a
        module of the user has changed on disk since.
        """
        _ = self._base_key, self._axis_keys
        cached = {"included", "fingerprint", "fixed", "declared", "spellings"}
        state = self.__dict__.items()
        return {name: value for name, value in sorted(state) if name not in cached}

    def __repr__(self) -> str:
        axes = " x ".join(f"{axis.dimension}[{len(axis)}]" for axis in self.product.axes)
        return f"Sweep({self.name!r}, {axes or 'one config'}, {len(self)} configs)"

    def _repr_html_(self) -> str:
        axes = [(axis.dimension, axis.points) for axis in self.product.axes]
        return sweep_html(self.name, len(self), axes, self._shown_settings(), self.grabs)

    def _shown_settings(self) -> dict[str, Any]:
        """Return the settings that are not at their default nor on an axis, and the functions."""
        fields = Hyperparameters.model_fields
        varied = {name for axis in self.product.axes for name in axis.names}
        changed = {
            name.upper(): value
            for name, value in dict(self.base).items()
            if name not in varied and value is not None and value != fields[name].default
        }
        functions = {"batchfn": self.batchfn, "data": self.data, "where": self.where}
        given = {name: value for name, value in functions.items() if value is not None}
        return {**changed, **self.arguments, **given}


def _name_errors(name: Any) -> list[str]:
    if isinstance(name, str) and _VALID_NAME.fullmatch(name):
        return []
    return [f"name: got {name!r}; should be letters, digits, '.', '_' and '-', as in 'staircase-2'"]


def _split_listed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the settings that mean axes: N_SAMPLES, NUM_TRIALS and TARGET_MONOMIALS."""
    fixed: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for name, value in settings.items():
        canonical = hp.canonical_name(name)
        if canonical == "num_trials":
            fixed[name] = value
            with contextlib.suppress(SpecError):  # listed with all errors among the settings
                axes["trial"] = range(hp.validate_one("num_trials", value))
        elif canonical in _LISTED and _is_list(value):
            axes[_LISTED[canonical]] = value
        elif canonical == "target_monomials" and value is not None:
            axes["monomials"] = [value]
        else:
            fixed[name] = value
    order = [axis for axis in ("n_samples", "trial", "monomials") if axis in axes]
    return fixed, {axis: axes[axis] for axis in order}


def _as_list(values: Any) -> Any:
    return list(values) if isinstance(values, Iterator) else values


def _is_list(values: Any) -> bool:
    """Tell whether values have an order, so that they can be an axis."""
    unordered = isinstance(values, (str, bytes, Mapping, set, frozenset))
    return isinstance(values, Iterable) and not unordered and getattr(values, "ndim", 1) > 0


def _repeated_names(axes: Sequence[Axis]) -> list[str]:
    names = [name for axis in axes for name in axis.names]
    return [
        f"axis {name}: stands more than once; keep one"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]


def _parsed(name: str, value: Any) -> Any:
    """Return an axis value as its hyperparameter's type, a trial as an int, others as they are."""
    if name == "trial":
        return _trial(value)
    if name == "monomials":
        return _monomial(value)
    if name in Hyperparameters.model_fields:
        return hp.validate_one(name, value)
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


def _named(grab: Any) -> Any:
    """Return the grab of the library that has this name, or the error; functions as they are."""
    from mlpsubmit.grabs import by_name

    try:
        return grab if callable(grab) else by_name(grab)
    except SpecError as error:
        return error


def _alike(one: Any, other: Any) -> bool:
    return one is other or digest(one) == digest(other)


def _trial(value: Any) -> int:
    try:
        return int(hp.validate_one("seed", value))  # what is valid for one is for the other
    except SpecError:
        raise SpecError(f"got {value!r}; should be an integer >= 0") from None


def _monomial(value: Any) -> Any:
    from mlpsubmit.batchfns.monomial import Monomial

    try:
        if isinstance(value, Mapping):
            return Monomial(value)
        if isinstance(value, str):
            return Monomial.from_repr(value)
        if isinstance(value, (list, tuple)):
            return tuple(_monomial(entry) for entry in value)
    except ValueError as error:
        raise SpecError(f"got {value!r}; {error}") from None
    return value


def _means_axis(name: str, value: Any) -> bool:
    if not isinstance(value, (list, range)):
        return False
    if name not in Hyperparameters.model_fields or name in ("n_samples", "target_monomials"):
        return name != "target_monomials"
    try:
        hp.validate_one(name, value)
    except SpecError:
        return True
    return False


def _with_axis_hint(message: str, values: Mapping[str, Any]) -> str:
    """Point out to someone who wrote a list for a single value that axes= is meant for that."""
    for name, value in values.items():
        canonical = hp.canonical_name(name)
        listed = isinstance(value, (list, tuple, range, np.ndarray))
        if listed and canonical and message.startswith(f"{canonical.upper()}: "):
            return f"{message}; to sweep over it, write axes={{{name!r}: {value!r}}}"
    return message


def _lanes(entries: Iterable[tuple[str, Any]]) -> list[np.uint64]:
    """Return the sum, lane by lane modulo 2^64, of the digests of (name, value) entries."""
    total = np.zeros(_LANES, dtype=np.uint64)
    for name, value in entries:
        if _counts(name, value):
            total += np.frombuffer(_digest(name, name, value), dtype="<u8")
    return list(total)


def _digest(place: str, *values: Any) -> bytes:
    try:
        return digest(*values)
    except TypeError as error:
        raise SpecError(f"{place.replace('()', '')}: {_UNREADABLE.format(error)}") from error


def _counts(name: str, value: Any) -> bool:
    """Tell whether a setting is part of a key: it affects results and is not at its default."""
    field = Hyperparameters.model_fields.get(name)
    return field is None or (name not in hp.OUTSIDE_RESULTS and value != field.default)
