"""What a figure is asked to show, and what is wrong with that whatever the dataset is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.results.figures.estimates import ERRORBARS, NO_BAND
from mlpsubmit.results.figures.lines import STYLES
from mlpsubmit.results.figures.page import CONTEXTS

__all__ = ["KINDS", "SCALES", "NothingToDraw", "Request"]


class NothingToDraw(UserError):
    """The results, or the part of them that is selected, have no value to draw."""


KINDS = ("line", "heatmap", "scatter")
SCALES = ("linear", "log")


@dataclass(frozen=True)
class Request:
    """What a figure is asked to show; what is None or empty is chosen by what the sweep is.

    Args:
        y: names of variables.
        roles: names of axes, by role: x, hue, col, row.
        mean: names of axes to average, besides the trials.
        sel: values of coordinates, as for :func:`select`.
        kind: one of KINDS.
        errorbar: one of ERRORBARS, or NO_BAND, as None is.
        context: one of CONTEXTS.
        xscale: one of SCALES.
        yscale: one of SCALES.
        title: instead of one that names the selected values.
        problems: what is wrong with what was given, and is in none of the others.
    """

    y: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    mean: tuple[str, ...] = ()
    sel: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    errorbar: str | None = "se"
    context: str = "paper"
    xscale: str | None = None
    yscale: str | None = None
    title: str | None = None
    problems: tuple[str, ...] = ()

    def spelt(self, axes: Collection[str]) -> Request:
        """Return the request with names of axes as the dataset spells them, whatever their case.

        Args:
            axes: the names of the dataset.
        """
        by_lower = {name.lower(): name for name in axes}

        def own(name: str) -> str:
            return name if name in axes else by_lower.get(name.lower(), name)

        return replace(
            self,
            roles={role: own(name) for role, name in self.roles.items()},
            mean=tuple(map(own, self.mean)),
            sel={own(name): value for name, value in self.sel.items()},
        )

    def errors(self) -> list[str]:
        """Return what is wrong whatever the dataset is."""
        found = list(self.problems)
        for name, value, valid in [
            ("kind", self.kind, KINDS),
            ("errorbar", self.errorbar, (*ERRORBARS, NO_BAND)),
            ("context", self.context, tuple(CONTEXTS)),
            ("xscale", self.xscale, SCALES),
            ("yscale", self.yscale, SCALES),
        ]:
            if value is not None and value not in valid:
                hint = did_you_mean(str(value), valid)
                found.append(f"{name}: got {value!r}; valid are {', '.join(valid)}{hint}")
        roles_of: dict[str, list[str]] = {}
        for role, name in [*self.roles.items(), *(("mean", name) for name in self.mean)]:
            roles_of.setdefault(name, []).append(role)
        for name, given in roles_of.items():
            if len(given) > 1:
                found.append(f"{', '.join(given)}: {name} is given twice; keep one of them")
        if len(self.y) > len(STYLES) or len(set(self.y)) < len(self.y):
            found.append(
                f"y: got {', '.join(self.y)}; should be at most {len(STYLES)} variables, each once"
            )
        if self.errorbar not in (None, NO_BAND, "se") and self.kind in ("heatmap", "scatter"):
            shows = "means" if self.kind == "heatmap" else "single configs"
            found.append(
                f"errorbar: a {self.kind} shows {shows} only; use kind line, or leave it out"
            )
        if self.mean and self.kind == "scatter":
            found.append("mean: a scatter shows single configs; use kind line, or leave it out")
        if len(self.y) > 1 and self.kind in ("heatmap", "scatter"):
            found.append(f"y: a {self.kind} shows one variable; choose one of {', '.join(self.y)}")
        return found
