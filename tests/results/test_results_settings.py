"""Fixed settings as attributes, in every format that has attributes."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest
import xarray as xr

from mlpsubmit.results import to_dataset, write
from mlpsubmit.results.settings import fixed_settings
from mlpsubmit.results.source import FixedSetting

SETTINGS = {
    "lr": FixedSetting(0.1),
    "n": FixedSetting(3),
    "online": FixedSetting(True),
    "model": FixedSetting("my_model", code="0123abcd"),
    "run": FixedSetting("fast"),
    "settings": FixedSetting("mine"),
    "n_done": FixedSetting(2),
    "large": FixedSetting(2**70),
    "pack_size": FixedSetting("auto", counts=False),
    "unicode_α": FixedSetting("é\0"),
}


@pytest.fixture
def layout(fakes):
    return replace(fakes.layout(a=[0, 1], attributes={"run": "r1"}), settings=SETTINGS)


def test_settings_are_read_back(fakes, layout):
    attributes = to_dataset(layout, fakes.Source([fakes.pack([0, 1])])).attrs
    assert (attributes["run"], attributes["run_setting"]) == ("r1", "fast")
    assert (attributes["n_done"], attributes["n_done_setting"]) == (2, 2)
    assert attributes["online"] == "True"
    found = fixed_settings(attributes)
    expected = {name: one for name, one in SETTINGS.items() if one.counts}
    expected["large"] = FixedSetting(str(2**70))
    expected["unicode_α"] = FixedSetting(r"é\0")
    assert found == expected
    assert found["online"].value is True


@pytest.mark.parametrize("ending", [".nc", ".zarr", ".parquet"])
def test_files_have_the_settings(fakes, layout, tmp_path, ending):
    path = write(layout, fakes.Source([fakes.pack([0, 1])]), tmp_path / f"r{ending}")
    if ending == ".parquet":
        metadata = pyarrow.parquet.read_schema(path).metadata
        attributes = json.loads(metadata[b"mlpsubmit"])
    else:
        opened = xr.open_zarr(path) if ending == ".zarr" else xr.open_dataset(path)
        with opened:
            attributes = opened.attrs
    assert fixed_settings(attributes)["n"].value == 3
    assert attributes["settings_setting"] == "mine"


def test_a_long_text_is_cut_and_hashed(fakes, layout):
    one, other = ("x" * 100_000 + end for end in "ab")
    texts = []
    for text in (one, other):
        changed = replace(layout, settings={"big": FixedSetting(text)})
        texts.append(to_dataset(changed, fakes.Source()).attrs["big"])
    assert len(texts[0]) < 2100
    assert texts[0] != texts[1]
    assert "... (100001 characters, of the hash " in texts[0]
