"""MLPscape's result dictionary, for the notebooks that read it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.errors import UserError
from mlpsubmit.results.axes import finished
from mlpsubmit.results.dataset import assemble
from mlpsubmit.results.expt_trace import ExptTrace
from mlpsubmit.results.grab_arrays import grab_of, result_name
from mlpsubmit.results.origin import MARK
from mlpsubmit.results.schema import METRIC, scan
from mlpsubmit.results.source import Array, Layout, ResultSource, Scalar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["mlpscape_dictionary", "write_pickle"]


def write_pickle(layout: Layout, source: ResultSource, path: Path) -> None:
    """Pickle the dictionary, which contains only builtins and numpy types."""
    result = mlpscape_dictionary(layout, source)
    with path.open("wb") as file:
        pickle.dump(result, file, protocol=4)
        if "run" in layout.attributes:  # whoever unpickles ignores what follows
            file.write(MARK.format(layout.attributes["run"]).encode())


def mlpscape_dictionary(layout: Layout, source: ResultSource) -> dict[str, Any]:
    """Return the results of the finished configs as MLPscape's ``run_job_iterator`` does.

    ``jobs`` is the list of their axis values (tuples, in product order), ``var_axes`` the axis
    names, those of a zipped axis one by one; ``losses`` (test losses; online, as in MLPscape, the
    train losses), ``timekeys`` (int64, shape (thresholds,), -1 for never) and each of ``extras``
    (the grabs, a key of a grab's dictionaries as ``<grab>_<key>``; and by their names in the
    dataset the metrics and the timekeys of METRIC_THRESHOLDS) are serialised `ExptTrace` objects
    keyed by these tuples. Traces and grabs that differ in shape between configs are padded as in
    `to_dataset`.

    Raises:
        UserError: an axis has a name that `ExptTrace` reserves, or two configs have equal values.
    """
    schema = scan(layout, source)
    dataset = assemble(schema, source, schema.variables)
    indices = np.flatnonzero(finished(dataset["status"].values))
    keys = [_job(layout, index) for index in indices]
    arrays = {v.name: grab_of(v.array) for v in schema.variables}
    grabs = {name: result_name(*array) for name, array in arrays.items() if array is not None}
    timekeys = [thresholds.named("timekeys") for thresholds in layout.all_thresholds]
    measured = [v.name for v in schema.variables if v.array.startswith(METRIC)]
    extras = {name: name for name in (*measured, *timekeys[1:])}
    extras |= {name: name if own in extras else own for name, own in grabs.items()}

    def trace(variable: xr.DataArray) -> dict[str, Any]:
        values = variable.values
        values = values.reshape(layout.size, *values.shape[len(layout.shape) :])[indices]
        if variable.name in timekeys:
            values = np.nan_to_num(values, nan=-1).astype(np.int64)
        elif values.dtype.kind == "b":  # which is no number to it
            values = values.astype(np.int64)
        return _trace(layout, keys, values)

    return {
        "jobs": keys,
        "var_axes": list(layout.coordinate_names),
        "losses": trace(_losses(dataset, layout)),
        "timekeys": trace(dataset["timekeys"]),
        "extras": {key: trace(dataset[name]) for name, key in extras.items()},
    }


def _losses(dataset: xr.Dataset, layout: Layout) -> xr.DataArray:
    """Return the test losses; online the train losses, whether or not test losses are evaluated."""
    import xarray as xr

    online = np.broadcast_to(np.asarray(layout.online).ravel(), layout.size).reshape(layout.shape)
    train, test = dataset["train_loss"], dataset.get("test_loss")
    if test is None or online.all():
        return train
    if not online.any():
        return test
    test = test.rename({"eval_step": "step"}) if "eval_step" in test.dims else test
    train, test = xr.align(train, test, join="outer")
    return train.where(xr.DataArray(online, dims=dataset["status"].dims), test)


def _job(layout: Layout, index: int) -> tuple[Scalar, ...]:
    """Return the axis values of a config."""
    where = np.unravel_index(index, layout.shape)
    values = (
        column[i]
        for dimension, i in zip(layout.dimensions, where, strict=True)
        for column in dimension.coordinates.values()
    )
    return tuple(value.item() if isinstance(value, np.generic) else value for value in values)


def _trace(layout: Layout, keys: list[tuple[Scalar, ...]], rows: Array) -> dict[str, Any]:
    try:
        trace = ExptTrace(list(layout.coordinate_names))
        for key, row in zip(keys, rows, strict=True):
            trace[key] = row.copy() if row.ndim else row.item()
    except ValueError as error:
        raise UserError(f"these results do not fit a .pkl: {error}; write .nc instead") from error
    return trace.serialize()
