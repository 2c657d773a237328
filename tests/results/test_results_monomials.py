"""Selection by monomials from datasets whose coordinates are their texts."""

import numpy as np
import pytest
import xarray as xr

from mlpsubmit import Monomial, Sweep, launch
from mlpsubmit.batchfns import polynomial, power_law
from mlpsubmit.results import to_dataset
from mlpsubmit.results.source import Dimension, Layout
from tests.results.conftest import FakeSource, make_pack

X0, X0X1, X1_2 = Monomial({0: 1}), Monomial({0: 1, 1: 1}), Monomial({1: 2})
AXIS = [X0, X0X1, X1_2]


@pytest.fixture(params=["memory", "netcdf", "zarr"])
def dataset(request, tmp_path):
    values = [1.0, 2.0, 3.0]
    dataset = xr.Dataset({"t": ("monomials", values)}, {"monomials": [str(one) for one in AXIS]})
    if request.param == "netcdf":
        dataset.to_netcdf(tmp_path / "m.nc", engine="h5netcdf")
        return xr.load_dataset(tmp_path / "m.nc", engine="h5netcdf")
    if request.param == "zarr":
        dataset.to_zarr(tmp_path / "m.zarr", consolidated=False, zarr_format=2)
        return xr.open_zarr(tmp_path / "m.zarr", consolidated=False).load()
    return dataset


def test_a_monomial_selects_as_its_text_does(dataset):
    for value, monomial in enumerate(AXIS, start=1):
        assert dataset.sel(monomials=monomial).t == value
        assert dataset.t.sel({"monomials": monomial}) == value
        assert dataset.t.loc[monomial] == dataset.sel(monomials=str(monomial)).t == value
    assert dataset.sel(monomials=[X1_2, X0]).t.values.tolist() == [3, 1]
    assert dataset.drop_sel(monomials=[X0]).t.values.tolist() == [2, 3]
    np.testing.assert_array_equal(
        dataset.t.reindex(monomials=[X0X1, Monomial({5: 1})]), [2, np.nan]
    )
    with pytest.raises(KeyError, match=r"not all values found in index 'monomials'"):
        dataset.sel(monomials=Monomial({5: 1}))


def test_a_monomial_compares_with_coordinates(dataset):
    assert (dataset.monomials == X0X1).values.tolist() == [False, True, False]
    assert dataset.monomials.isin([X0, X1_2]).values.tolist() == [True, False, True]
    assert dataset.where(dataset.monomials == X0X1, drop=True).t.values.tolist() == [2]
    assert dataset.t.to_series()[X0X1] == 2
    assert dataset.to_dataframe().loc[[X1_2, X0]].t.tolist() == [3, 1]
    theory = xr.DataArray([10, 20], {"monomials": [X0X1, X0]}, "monomials")
    assert (dataset.t + theory).sel(monomials=X0) == 21


def test_from_a_run_and_in_where(workplace):
    run = launch(
        Sweep(
            "monomials",
            axes={"monomials": AXIS, "GAMMA": [0.5, 1.0]},
            where=lambda c: (
                c.monomials in (X0, "$x_{0}x_{1}$") or c.monomials.max_degree() > c.gamma
            ),
            data=power_law(d=3, alpha=1.0),
            batchfn=polynomial,
            WIDTH=4,
            MAX_ITER=2,
            N_SAMPLES=8,
        ),
        executor="debug",
    )
    dataset = run.collect("monomials.nc")
    assert (dataset.sel(monomials=[X0, X0X1]).status == "done").all()
    assert dataset.sel(monomials=X1_2, gamma=0.5).status == "done"
    xr.testing.assert_identical(dataset.sel(monomials=X0X1), dataset.sel(monomials="$x_{0}x_{1}$"))


def test_a_zipped_axis_is_selected_by_comparison():
    layout = Layout(
        (Dimension("monomials_lr", {"monomials": tuple(map(str, AXIS)), "lr": (1, 2, 3)}),), (), {}
    )
    dataset = to_dataset(layout, FakeSource([make_pack([0, 1, 2])]))
    assert dataset.where(dataset.monomials == X1_2, drop=True).lr.values.tolist() == [3]
