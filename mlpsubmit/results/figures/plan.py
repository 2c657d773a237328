"""From a request to a plan: what of a dataset is drawn, and which axis goes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.results.axes import finished
from mlpsubmit.results.figures import quantities
from mlpsubmit.results.figures.axis import Along, along
from mlpsubmit.results.figures.page import CONTEXTS
from mlpsubmit.results.figures.points import Points
from mlpsubmit.results.figures.quantities import Quantity, clock_of, quantity
from mlpsubmit.results.figures.request import NothingToDraw, Request
from mlpsubmit.results.figures.roles import Roles, assign, no_axis
from mlpsubmit.results.figures.selection import select
from mlpsubmit.results.names import CLOCKS
from mlpsubmit.results.shown_values import value_text

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Plan", "check_values", "planned"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a figure shows of a dataset, with all that a request left open decided.

    Args:
        dataset: the selected part.
        kind: one of KINDS.
        shown: the quantities; traces if the first one is.
        beside: what a scatter has across, where that is measured and no axis.
        roles: of the axes.
        title: the values that are selected.
    """

    dataset: xr.Dataset
    kind: str
    shown: list[Quantity]
    beside: Quantity | None
    roles: Roles
    title: str

    @property
    def has_curves(self) -> bool:
        """Whether steps go across."""
        return self.shown[0].steps is not None


def planned(dataset: xr.Dataset, request: Request) -> Plan:
    """Decide what a request leaves open, and check the rest.

    Raises:
        SpecError: with a message per name and value that does not fit the dataset.
        NothingToDraw: no config has finished.
    """
    request = request.spelt([str(name) for name in {**dataset.coords, **dataset.sizes}])
    errors = request.errors()
    if "status" not in dataset:
        raise UserError(
            "plot: the dataset has no variable 'status'; give one that collect has made, with all "
            "its variables"
        )
    selected, facts = select(dataset, request.sel, errors)
    words = _words(selected, request, errors)
    _raise(errors)
    _check_finished(selected)
    shown, beside = _quantities(selected, request, words)
    has_curves = _has_curves(shown, words, selected, errors)
    axes = {dim: along(selected, dim) for one in shown for dim in one.dims}
    kind = request.kind or _kind(axes, words.given, beside, has_curves)
    has_x = has_curves or beside is not None
    grid = CONTEXTS[request.context].grid
    roles = assign(axes, words.given, request.mean, kind, has_x, grid, errors)
    _check_dims(shown, beside, roles, errors)
    if kind == "heatmap" and not errors and not {"x", "hue"} <= set(roles.axes):
        several = ", ".join(axis.name for axis in roles.axes.values()) or "none"
        errors.append(
            f"kind: a heatmap needs two axes with several values, and there is {several}; use kind "
            "line"
        )
    _raise(errors)
    # The label of what is shown names the threshold.
    said = [text for name, text in facts.items() if not name.startswith("threshold")]
    return Plan(selected, kind, shown, beside, roles, ", ".join(said))


@dataclass(frozen=True)
class _Words:
    """The words of a request, by what they are in a dataset.

    Args:
        y: the variables to draw.
        given: names of axes, by role.
        measured: the variable that goes across, if that is no axis.
        may_have_curves: whether steps may go across.
    """

    y: list[str]
    given: dict[str, str]
    measured: str | None
    may_have_curves: bool


def _words(dataset: xr.Dataset, request: Request, errors: list[str]) -> _Words:
    y, given, measured = list(request.y), dict(request.roles), None
    if request.kind == "heatmap":
        _vertical_axis(dataset, y, given)
    x = given.get("x")
    if x in dataset.data_vars and x not in dataset.coords:
        measured = given.pop("x")
        if request.kind in ("line", "heatmap"):
            errors.append(f"x: {x} is measured and no axis; only a scatter can have it across")
        if measured not in quantities.drawable(dataset):
            errors.append(f"x: {measured!r} has no values to draw")
    valid = [str(name) for name in {**dataset.coords, **dataset.sizes}]
    for role, name in [*given.items(), *(("mean", name) for name in request.mean)]:
        if name not in valid and name not in dataset.data_vars and name not in CLOCKS:
            errors.append(no_axis(role, name, valid))
        if name in dataset.coords and not dataset.coords[name].ndim and name in request.sel:
            errors.append(
                f"{role}: sel chose one value of {name}; give it several, or another axis"
            )
    may_have_curves = request.kind in (None, "line") and (x is None or x in CLOCKS)
    if not y:
        y += quantities.default_names(dataset, may_have_curves, [*given.values(), *request.sel])
    quantities.check_names(dataset, y, errors)
    return _Words(y, given, measured, may_have_curves)


def _raise(errors: list[str]) -> None:
    if errors:
        raise SpecError(errors)


def _quantities(
    dataset: xr.Dataset, request: Request, words: _Words
) -> tuple[list[Quantity], Quantity | None]:
    """Return what is drawn, and what goes across if that is no axis."""
    named = {*request.sel, *words.given.values()}
    kept = {str(dim) for dim in dataset.dims if dim in named}
    if words.may_have_curves:
        kept -= set(CLOCKS)
    shown = [quantity(dataset, name, kept, words.may_have_curves) for name in words.y]
    if words.measured is None:
        return shown, None
    return shown, quantity(dataset, words.measured, kept, curves=False)


def _vertical_axis(dataset: xr.Dataset, y: list[str], given: dict[str, str]) -> None:
    """Accept a heatmap's words either way: y an axis and hue the variable, or y the variable."""
    hue = given.get("hue")
    if len(y) == 1 and y[0] in dataset.coords and (hue is None or hue in dataset.data_vars):
        given["hue"] = y.pop()
        y += [] if hue is None else [hue]


def _check_finished(dataset: xr.Dataset) -> None:
    status = dataset["status"].values
    if finished(status).any():
        return
    failed, missing = int((status == "failed").sum()), int((status == "missing").sum())
    if not status.size or not failed + missing:
        raise NothingToDraw("nothing to draw: the selected values are of no config of the sweep")
    have = "has" if missing == 1 else "have"
    counts = [f"{failed:,} failed"] * bool(failed)
    counts += [f"{missing:,} {have} no result yet"] * bool(missing)
    total = f"{failed + missing:,} config{'' if failed + missing == 1 else 's'}"
    raise NothingToDraw(
        f"nothing to draw yet: of the {total} {' and '.join(counts)}; see mlpsubmit status"
    )


def _has_curves(
    shown: Sequence[Quantity], words: _Words, dataset: xr.Dataset, errors: list[str]
) -> bool:
    """Return whether steps go across; whether all variables have traces is checked."""
    if not words.may_have_curves:
        return False
    given = words.given
    traced = [one.name for one in shown if one.steps is not None]
    others = [one.name for one in shown if one.steps is None]
    if traced and others:
        errors.append(
            f"y: {', '.join(traced)} has values along the training, and {', '.join(others)} has "
            "one per config; draw them one by one"
        )
    elif others and given.get("x") in CLOCKS:
        with_clock = [name for name in quantities.drawable(dataset) if clock_of(dataset[name])]
        have = (
            f"those along the training are {', '.join(with_clock)}"
            if with_clock
            else ("with ONLYTHRESHOLDS=False there are traces")
        )
        errors.append(f"x: {others[0]} has one value per config, and no steps; {have}")
    if traced:
        given.pop("x", None)
    elif given.get("x") in CLOCKS:
        del given["x"]
    return bool(traced)


def _kind(
    axes: Mapping[str, Along], given: Mapping[str, str], beside: Quantity | None, has_curves: bool
) -> str:
    if beside is not None:
        return "scatter"
    searches = {name for one in axes.values() if one.is_search for name in one.named}
    x = given.get("x")
    return "scatter" if searches and not has_curves and (x is None or x in searches) else "line"


def _check_dims(
    shown: Sequence[Quantity], beside: Quantity | None, roles: Roles, errors: list[str]
) -> None:
    """Check that everything shown varies along all axes of the figure."""
    for role, axis in roles.axes.items():
        for one in shown:
            if axis.dim not in one.dims:
                errors.append(
                    f"{role}: {one.name} does not vary along {axis.name}; its dimensions are "
                    f"{', '.join(one.dims)}"
                )
    if beside is not None:
        for dim in beside.dims:
            if dim not in shown[0].dims:
                errors.append(
                    f"x: {beside.name} varies along {dim}, and {shown[0].name} does not; select "
                    f"one of it with sel ({dim}=...)"
                )


def check_values(
    plan: Plan, points: Sequence[Points], request: Request, dataset: xr.Dataset
) -> None:
    """Check that there is something to draw, and that the scales can show it.

    Args:
        dataset: the whole one, with the thresholds that are not selected.
    """
    finite = [own.values[np.isfinite(own.values)] for own in points]
    values = np.concatenate([own.ravel() for own in finite])
    one = plan.shown[0]
    if not values.size and one.of_steps:
        easier = _easier(plan, one, dataset)
        raise NothingToDraw(
            "nothing to draw: none of the finished configs that are selected crossed the threshold "
            f"{one.threshold}".rstrip()
            + (
                f"; choose an easier one with sel ({easier}), or another y"
                if easier
                else "; choose another y"
            )
        )
    if not values.size:
        names = ", ".join(one.name for one in plan.shown)
        raise NothingToDraw(f"nothing to draw: {names} has no finite value; choose another y")
    errors = []
    if request.yscale == "log" and not (values > 0).any():
        errors.append("yscale: log needs values above 0, and there are none; use linear")
    x = plan.roles.axes.get("x")
    if request.xscale is not None and x is not None and not x.numeric:
        errors.append(f"xscale: {x.name} has values that are not numbers; leave it out")
    elif request.xscale == "log" and x is not None and x.levels.min() <= 0:
        above = [text for text, level in zip(x.texts, x.levels, strict=True) if level > 0]
        ends = ":".join(dict.fromkeys([above[0], above[-1]])) if above else ""
        others = f", or select the others with sel ({x.name}={ends})" if above else ""
        errors.append(
            f"xscale: log needs values above 0, and {x.name} has {x.texts[0]}; use linear{others}"
        )
    if errors:
        raise SpecError(errors)


def _easier(plan: Plan, one: Quantity, dataset: xr.Dataset) -> str:
    """Return how to select the thresholds that are easier to cross than those of a plan, if any.

    That is a larger loss or a smaller accuracy; thresholds are in the order in which they are
    crossed.
    """
    dim = "threshold" + one.name.removeprefix("timekeys")
    every = dataset[dim].values
    first = int(np.flatnonzero(np.isin(every, plan.dataset[dim].values))[0])
    easier = " or ".join(map(value_text, every[:first].tolist()))
    return f"{dim}={easier}" if easier else ""
