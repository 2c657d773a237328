"""The figure of a report for readers without scripts: a picture in the page, as SVG."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from mlpsubmit.errors import UserError, error_text
from mlpsubmit.results._plot import drawn_into
from mlpsubmit.results.figures.page import CONTEXTS
from mlpsubmit.results.figures.request import Request
from mlpsubmit.results.names import sweep_dims
from mlpsubmit.results.schema import Schema, Variable
from mlpsubmit.results.source import Array, ResultSource

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Picture", "picture", "with_losses"]

#: The most bytes of a picture, and the steps of a curve in one attempt after the other.
MOST_BYTES = 400_000
STEPS = (240, 80, 24)
#: Of more configs, the first attempt is not worth its second.
FEW_CONFIGS = 300

#: CSS pixels per point of matplotlib: text of 8 points is 12 pixels high.
_PIXELS = 1.5

_SVG = "http://www.w3.org/2000/svg"
_LOSSES = ("train_loss", "test_loss")


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in a page.

    Attributes:
        svg: an element without scripts and without styles, which the policy of the page forbids;
            empty if there is nothing to draw.
        notes: what it leaves out, or why there is none.
    """

    svg: str
    notes: tuple[str, ...]


def picture(dataset: xr.Dataset) -> Picture:
    """Return the figure that ``mlpsubmit plot`` draws of a dataset if nothing is asked for.

    It never costs the page: what goes wrong is a note.
    """
    size = 0
    try:
        for steps in STEPS if dataset["status"].size <= FEW_CONFIGS else STEPS[1:]:
            drawn = _drawn(_thinned(dataset, steps))
            if (size := len(drawn.svg)) <= MOST_BYTES:
                return drawn
    except UserError as error:
        return Picture("", (str(error),))
    except Exception as error:  # of matplotlib: the page has much else to show
        return Picture("", (f"it could not be drawn: {error_text(error)}",))
    return Picture("", (f"it would take {size / 1e6:.1f} MB",))


def with_losses(dataset: xr.Dataset, schema: Schema, source: ResultSource) -> xr.Dataset:
    """Return a dataset with the losses along the training, at no more steps than are drawn.

    Args:
        dataset: without traces.
    """
    traces = [v for v in schema.variables if v.name in _LOSSES and v.recorded is not None]
    clocks = {str(dim): _chosen(len(dataset[dim]), STEPS[0]) for dim in schema.clocks}
    found = dataset.isel(clocks)
    for trace in traces:
        values = _values(trace, schema, source, clocks[trace.dims[0]])
        dims = (*sweep_dims(schema.layout), *trace.dims)
        found[trace.name] = (dims, values, trace.attributes)
    return found


def _values(trace: Variable, schema: Schema, source: ResultSource, chosen: Array) -> Array:
    """Return a trace of all configs at some positions of its clock, shape (*sweep, len(chosen))."""
    shape = (len(chosen), *trace.shape[1:])
    values = np.full((schema.layout.size, *shape), trace.fill, dtype=trace.dtype)
    for point, _, row in schema.rows(source, [trace]):
        values[point] = row[chosen]
    return values.reshape(*schema.layout.shape, *shape)


def _chosen(count: int, most: int) -> Array:
    """Return positions in a clock: all, or some, half of them evenly and half logarithmically."""
    if count <= most:
        return np.arange(count)
    even = np.linspace(0, count - 1, most // 2)
    logarithmic = np.geomspace(1, count, most // 2) - 1
    chosen: Array = np.unique(np.concatenate([even, logarithmic]).round().astype(np.int64))
    return chosen


def _thinned(dataset: xr.Dataset, steps: int) -> xr.Dataset:
    clocks = [dim for dim in dataset.dims if str(dim) in ("step", "eval_step")]
    return dataset.isel({dim: _chosen(dataset.sizes[dim], steps) for dim in clocks})


def _drawn(dataset: xr.Dataset) -> Picture:
    import matplotlib as mpl
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

    figure, file = Figure(), io.BytesIO()
    settings: Any = CONTEXTS["paper"].settings
    with warnings.catch_warnings(), mpl.rc_context(settings):
        warnings.simplefilter("ignore")  # of characters that its fonts lack
        drawn = drawn_into(dataset, Request(), figure)
        for scale in figure.findobj(QuadMesh):
            scale.set(rasterized=False, edgecolor="face")  # an image needs more of the policy
        figure.savefig(file, format="svg", metadata={"Date": None})
    notes = tuple(filter(None, (drawn.status, *drawn.notes)))
    return Picture(_without_styles(file.getvalue()), notes)


def _without_styles(svg: bytes) -> str:
    """Return matplotlib's picture as an element of a page, its styles as attributes.

    A policy that allows one style sheet by its hash refuses styles in attributes and in the
    picture.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    used = {name for own in root.iter() for name in _USED.findall(" ".join(own.attrib.values()))}
    _tidy(root, used)
    _, _, width, height = root.get("viewBox", "0 0 1 1").split()
    root.attrib.pop("version", None)
    root.set("width", f"{_PIXELS * float(width):.0f}")
    root.set("height", f"{_PIXELS * float(height):.0f}")
    # Those of matplotlib's style sheet.
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    root.set("role", "img")
    root.set("aria-label", "Figure of the results; the tables below have their values.")
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, used: set[str]) -> None:
    """Turn styles into attributes, and leave out what shows nothing: half of the bytes.

    Args:
        used: the identities that other elements refer to.
    """
    children: list[ElementTree.Element] = []
    for child in element:
        if child.tag in _UNUSED:
            continue
        _tidy(child, used)
        children += child if child.tag == f"{{{_SVG}}}g" and not child.attrib else [child]
    element[:] = children
    element.text = element.tail = None  # line breaks: text is drawn as paths
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        if value:
            element.set(name.strip(), value.strip())
    for name in ("x", "y"):
        if name in element.attrib:
            element.set(name, _NUMBER.sub(_rounded, element.get(name, "")))
    if "clip-path" in element.attrib or "fill" in element.attrib:  # no glyph: those are scaled
        path = _NUMBER.sub(_rounded, element.get("d", ""))
        if path:
            element.set("d", re.sub(r"\s*([A-Za-z])\s*", r"\1", path).strip())


_UNUSED = tuple(f"{{{_SVG}}}{name}" for name in ("metadata", "style", "image"))
_USED = re.compile(r"#([^)\s]+)")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
