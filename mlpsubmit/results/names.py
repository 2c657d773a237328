"""The names of the dataset's variables, and text that every file format can store."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

from mlpsubmit.results.grab_arrays import grab_of, result_name
from mlpsubmit.results.source import Layout

__all__ = [
    "CLOCKS",
    "RESERVED",
    "SEVERAL",
    "TOGETHER",
    "TRAINED_BY",
    "TRAINED_ON",
    "array_names",
    "clean_text",
    "coordinate_names",
    "device_kind",
    "grab_dim_names",
    "grab_names",
    "metric_names",
    "spaced",
    "sweep_dims",
    "threshold_label",
]

# Dimensions along which traces run, each with the steps at which something was recorded.
CLOCKS = ("step", "eval_step", "grab_step")
RESERVED = frozenset(CLOCKS) | {
    *("threshold", "train_loss", "test_loss", "timekeys", "crossed", "status", "steps", "seconds"),
    *("threshold_value", "trained_together", "error", "trained_on", "trained_by"),
}

#: Only of packs that were divided: how many configs trained together with each.
TOGETHER = "trained_together"
#: Of each config the kind of device on which it was trained, and the run and the task that did.
TRAINED_ON, TRAINED_BY = "trained_on", "trained_by"
#: Between several of one config.
SEVERAL = "; "


def clean_text(text: str) -> str:
    """Return the text without what HDF5 strings refuse: NUL characters and lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


def _free_name(name: str, taken: Container[str], suffix: str) -> str:
    # No control characters, and no slashes: those make groups in a file.
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", clean_text(name)).strip() or "_"
    while name in taken:
        name += suffix
    return name


def metric_names(layout: Layout) -> list[str]:
    """Return the names of the metrics of the train and of the test set."""
    return [f"{which}_{name}" for name in layout.metrics for which in ("train", "test")]


def _reserved(layout: Layout) -> set[str]:
    """Return the names that no axis and no grab can have."""
    of_thresholds = ("threshold", "threshold_value", "timekeys", "crossed")
    further = {t.named(name) for t in layout.metric_thresholds for name in of_thresholds}
    return {*RESERVED, *metric_names(layout), *further}


def coordinate_names(layout: Layout) -> dict[str, str]:
    """Return the dataset's name of every dimension and coordinate of the layout.

    It is the same name, unless a variable of the dataset has it: an axis ``steps`` becomes
    ``steps_axis``, because a finished run should not be uncollectable for its names.
    """
    taken: dict[str, str] = {}
    reserved = _reserved(layout)
    for dimension in layout.dimensions:
        for name in (dimension.name, *dimension.coordinates):
            if name not in taken:
                taken[name] = _free_name(name, {*reserved, *taken.values()}, "_axis")
    return taken


def sweep_dims(layout: Layout) -> tuple[str, ...]:
    """Return the dataset's names of the layout's dimensions, in order."""
    names = coordinate_names(layout)
    return tuple(names[dimension.name] for dimension in layout.dimensions)


def grab_dim_names(dims: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return the dataset's name of every dimension that grabs name: ``_dim`` where it is taken."""
    taken = {*_reserved(layout), *coordinate_names(layout).values()}
    return {dim: _free_name(dim, taken, "_dim") for dim in dims}


def grab_names(arrays: Iterable[str], dims: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return the dataset's name of every array of a grab: with ``_grab`` where that is taken.

    Args:
        dims: the dataset's names of the dimensions that grabs name.
    """
    taken = {*_reserved(layout), *coordinate_names(layout).values(), *dims}
    names: dict[str, str] = {}
    for array in arrays:
        grab, key = grab_of(array) or (array, None)
        names[array] = _free_name(result_name(grab, key), taken, "_grab")
        taken.add(names[array])
    return names


def array_names(arrays: Collection[str]) -> dict[str, str]:
    """Return what arrays of a pack are called in messages: as in the dataset, by array.

    A grab with the name of an axis has that name here.
    """
    names = {
        array: array.removeprefix("metric.").replace("timekeys.", "timekeys_")
        for array in arrays
        if grab_of(array) is None
    }
    taken = {*RESERVED, *names.values()}
    for array in arrays:
        if (grab := grab_of(array)) is not None:
            names[array] = _free_name(result_name(*grab), taken, "_grab")
            taken.add(names[array])
    return names


def spaced(name: str) -> str:
    """Return a name as words; underscores in mathematics stay."""
    return name if "$" in name else name.replace("_", " ").strip()


def device_kind(made_with: Mapping[str, Any]) -> str:
    """Return the kind of device of an environment: on one kind, equal plans give equal bits.

    That is a type of GPU, or a model of CPU with the functions in C or without; empty if unknown.

    Args:
        made_with: versions and devices by name, as results and attributes of datasets have them.
    """
    device = str(made_with.get("device", ""))
    if device not in ("", "cpu"):
        return device
    name, instructions = (str(made_with.get(one, "")) for one in ("cpu", "instructions"))
    plain = made_with.get("c_functions") == "not compiled"
    return (
        name
        + (f" ({instructions})" if name and instructions else "")
        + (", without the functions in C" if name and plain else "")
    )


def threshold_label(threshold: float) -> str:
    """Return the shortest text that still is exactly this threshold."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(float(threshold))
