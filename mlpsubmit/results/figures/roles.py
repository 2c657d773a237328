"""Which axis of a sweep goes where in a figure: across, a colour, a panel or a mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlpsubmit.errors import did_you_mean
from mlpsubmit.results.axes import TRIAL
from mlpsubmit.results.figures.axis import Along, Axis

__all__ = ["MOST_COLOURS", "PANEL_ROLES", "ROLES", "Roles", "assign", "no_axis", "spread"]

#: The roles in the order in which they are given to axes.
ROLES = ("x", "hue", "col", "row")
PANEL_ROLES = ("col", "row")

#: The most colours of values that are not numbers; numbers have a scale of colours.
MOST_COLOURS = 10
#: The most panels of one axis, which go on below each other.
MOST_WRAPPED = 12
#: The most that an axis gets without being asked for.
_FITTING = {"col": 9, "row": 4}


@dataclass
class Roles:
    """The axes of a figure.

    Args:
        axes: by role.
        averaged: titles of what a mean is over.
        thinned: by role, the levels that are shown of an axis with more of them than fit.
    """

    axes: dict[str, Axis]
    averaged: list[str] = field(default_factory=list)
    thinned: dict[str, list[int]] = field(default_factory=dict)

    def shown(self, role: str) -> list[int]:
        """Return the levels of a role that are shown; ``[0]`` if no axis has the role."""
        axis = self.axes.get(role)
        return [0] if axis is None else self.thinned.get(role, list(range(axis.size)))


def spread(size: int, most: int) -> list[int]:
    """Return positions along an axis: all, or as many as wanted, evenly from end to end."""
    return [int(i) for i in np.unique(np.linspace(0, size - 1, min(size, most)).round())]


def assign(
    along: Mapping[str, Along],
    given: Mapping[str, str],
    mean: Collection[str],
    kind: str,
    has_clock: bool,
    grid: tuple[int, int],
    errors: list[str],
) -> Roles:
    """Return which axis has which role: those given, and the others in their order.

    No axis but the trials is averaged while a role is free.

    Args:
        along: the axes along each dimension of what is drawn, by dimension.
        given: names of axes, by role.
        mean: names of axes to average.
        kind: of the figure.
        has_clock: whether steps go across.
        grid: the most columns and rows of panels.
        errors: gets a message for each name that is no axis, and each axis that does not fit.
    """
    named = {name: axis for axes in along.values() for name, axis in axes.named.items()}
    roles = Roles({})
    for role, name in [*given.items(), *(("mean", name) for name in mean)]:
        if name not in named:
            errors.append(no_axis(role, name, named))
        elif role != "mean":
            roles.axes[role] = named[name]
    for role, axis in roles.axes.items():
        _check_size(role, axis, kind, errors)
    if not errors:
        _give_out(roles, along, {named[name].dim for name in mean}, kind, has_clock, grid)
        _check_panels(roles, grid, errors)
        _name_averaged(roles, along)
        _add_members(roles, along)
    return roles


def no_axis(role: str, name: str, valid: Iterable[str]) -> str:
    """Return a message on a name that is no axis."""
    listed = ", ".join(valid)
    return f"{role}: {name!r} is not an axis of what is drawn{did_you_mean(name, valid)}; " + (
        f"valid are {listed}" if listed else "there is none"
    )


def _check_size(role: str, axis: Axis, kind: str, errors: list[str]) -> None:
    if role == "hue" and kind != "heatmap" and not axis.numeric and axis.size > MOST_COLOURS:
        errors.append(
            f"hue: {axis.name} has {axis.size} values that are not numbers; at most {MOST_COLOURS} "
            f"colours can be told apart; select some with sel ({_few(axis)}), or give {axis.name} "
            "to x"
        )


def _few(axis: Axis) -> str:
    """Return how two values of an axis are selected; the points of a zipped one by position."""
    values = axis.texts[:2] if len(axis.parts[0]) == 1 else ("0", "1")
    return f"{axis.name}={','.join(values)}"


def _check_panels(roles: Roles, grid: tuple[int, int], errors: list[str]) -> None:
    has_rows = "row" in roles.axes
    most = dict(zip(PANEL_ROLES, grid, strict=True)) if has_rows else {"col": MOST_WRAPPED}
    for role, count in most.items():
        if len(roles.shown(role)) > count:
            axis = roles.axes[role]
            errors.append(
                f"{role}: {axis.name} has {axis.size} values; at most {count} panels fit; select "
                f"some with sel ({_few(axis)}), or give {axis.name} to x or hue"
            )


def _give_out(
    roles: Roles,
    along: Mapping[str, Along],
    mean: set[str],
    kind: str,
    has_clock: bool,
    grid: tuple[int, int],
) -> None:
    """Give free roles to the axes that have none."""
    asked = set(roles.axes)

    def left() -> list[Axis]:
        open_dims = [dim for dim in along if dim not in mean]
        return [a for dim in open_dims if (a := _further(dim, along[dim], roles)) is not None]

    if "x" not in roles.axes and not has_clock and (axes := left()):
        numeric = [axis for axis in axes if axis.numeric]
        roles.axes["x"] = max(numeric, key=lambda axis: axis.size) if numeric else axes[0]
    if kind == "scatter" and "hue" not in roles.axes and (x := roles.axes.get("x")):
        beside = [a for a in along[x.dim].members if a.numeric and a.size > 1 and a.name != x.name]
        if beside and along[x.dim].is_search:
            roles.axes["hue"] = beside[0]
    wraps = "col" in asked and roles.axes["col"].size > grid[0]
    free = [role for role in ("hue", "col", "row") if role != "row" or not wraps]
    for role in free:
        axes = left()
        if role in roles.axes or not axes:
            continue
        if chosen := _fitting(role, axes, kind):
            roles.axes[role] = chosen
    for role in free[1:] + free[:1]:
        axes = left()
        if role not in roles.axes and axes:
            roles.axes[role] = axes[0]
    fitting = {"hue": MOST_COLOURS, **_FITTING}
    if {*PANEL_ROLES} <= set(roles.axes):
        fitting |= {"col": 4, "row": min(4, grid[1])}
    for role in {*roles.axes} & {*fitting} - asked:
        axis = roles.axes[role]
        if axis.size > fitting[role] and not (
            role == "hue" and (axis.numeric or kind == "heatmap")
        ):
            roles.thinned[role] = spread(axis.size, fitting[role])


def _fitting(role: str, axes: Sequence[Axis], kind: str) -> Axis | None:
    """Return the first axis that fits a role; numbers that fit nowhere else get the colours."""
    if role != "hue":
        return next((axis for axis in axes if axis.size <= _FITTING[role]), None)
    if kind == "heatmap":
        numeric = [axis for axis in axes if axis.numeric]
        return max(numeric or axes, key=lambda axis: axis.size)
    long = [axis for axis in axes if axis.numeric and axis.size > _FITTING["col"]]
    small = [axis for axis in axes if axis.size <= MOST_COLOURS or axis.numeric]
    return next(iter([*long, *small]), None)


def _further(dim: str, axes: Along, roles: Roles) -> Axis | None:
    """Return an axis of a dimension that needs a role, so that no two positions are merged."""
    own = [axis for axis in roles.axes.values() if axis.dim == dim]
    if axes.size == 1 or (dim == TRIAL and not own):
        return None
    if own:
        return next((a for a in axes.members if a not in own and _adds(a, own)), None)
    unique = [axis for axis in axes.members if axis.size == axes.size]
    return next(iter([*(axis for axis in unique if axis.numeric), *unique]), axes.whole)


def _adds(axis: Axis, own: Sequence[Axis]) -> bool:
    """Return whether an axis tells positions apart that others of its dimension do not."""
    before = np.unique(np.stack([one.codes for one in own]), axis=1).shape[1]
    return np.unique(np.stack([axis.codes, *(one.codes for one in own)]), axis=1).shape[1] > before


def _name_averaged(roles: Roles, along: Mapping[str, Along]) -> None:
    for dim, axes in along.items():
        own = [axis for axis in roles.axes.values() if axis.dim == dim]
        if not own and axes.size > 1:
            roles.averaged.append(axes.whole.title)
        elif own:
            roles.averaged += [a.title for a in axes.members if a not in own and _adds(a, own)]


def _add_members(roles: Roles, along: Mapping[str, Along]) -> None:
    """Add to axes of zipped dimensions the members that have no role of their own."""
    names = {axis.name for axis in roles.axes.values()}
    for role, axis in roles.axes.items():
        members = [a for a in along[axis.dim].members if a.name not in names and a.size > 1]
        others = [a for a in members if axis.determines(a)] if axis.name != axis.dim else []
        if others and axis.size <= MOST_COLOURS:
            roles.axes[role] = axis.with_members(others)
        elif others:
            title = f"{axis.title} (with {', '.join(other.title for other in others)})"
            roles.axes[role] = replace(axis, title=title)
