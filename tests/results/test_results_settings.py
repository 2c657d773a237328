"""Fixed settings as attributes, in every format that has attributes."""

import json
from dataclasses import replace
from typing import Any

import pyarrow.parquet
import pytest
import xarray as xr

from mlpsubmit.results import to_dataset, write
from mlpsubmit.results.settings import fixed_settings, hash_attributes, hashes_of
from mlpsubmit.results.source import FixedSetting
from mlpsubmit.results.values import identity, scalar_hash

SETTINGS = {
    "lr": FixedSetting(0.1),
    "n": FixedSetting(3),
    "online": FixedSetting(True),
    "model": FixedSetting("my_model", hash="0123abcd"),
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
    expected["large"] = FixedSetting(str(2**70), scalar_hash(2**70))
    expected["unicode_α"] = FixedSetting(r"é\0", scalar_hash("é\0"))
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


def test_what_a_text_stands_for_is_read_back(fakes, layout):
    """Without a hash, "None" is None; the texts themselves have one."""
    values: list[Any] = [None, "None", True, "True", 1, "1", {}, "{}", 2**53 + 1, float(2**53)]
    given = [str(one) if one is None or one == {} else one for one in values]
    hashes = [scalar_hash(one) for one in values]
    settings = {
        f"s{n}": FixedSetting(one, hash=own)
        for n, (one, own) in enumerate(zip(given, hashes, strict=True))
    }
    changed = replace(layout, settings=settings)
    attributes = to_dataset(changed, fakes.Source()).attrs
    assert set(json.loads(attributes["value_hashes"])) == {"s1", "s3", "s7"}
    found = fixed_settings(attributes).values()
    assert [identity(one.value, one.hash) for one in found] == hashes
    assert len(set(hashes)) == len(hashes)


def test_hashes_of_many_values_are_in_several_attributes():
    labels = [f"function number {n}" for n in range(5000)]
    hashes = [scalar_hash(n) for n in range(5000)]
    attributes = hash_attributes(labels, hashes)
    names = ["value_hashes", *(f"value_hashes_{n}" for n in range(2, len(attributes) + 1))]
    assert list(attributes) == names
    assert len(names) > 2
    assert max(map(len, attributes.values())) < 1 << 16
    assert list(hashes_of(labels, attributes)) == hashes
    assert hashes_of(labels[4000:4001], attributes) == (hashes[4000],)
    assert hash_attributes(range(10), [""] * 10) == {}
    # Numbers that texts beside them make texts.
    mixed = hash_attributes([1, "1 #1", "b"], ["", scalar_hash("1"), ""])
    assert json.loads(mixed["value_hashes"]) == {"1": scalar_hash(1), "1 #1": scalar_hash("1")}
