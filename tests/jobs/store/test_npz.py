"""What is read of small npz files in our own way is what numpy reads of them, or nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from mlpsubmit.jobs.store import shards
from mlpsubmit.jobs.store.npz import npz_bytes, stored_arrays
from mlpsubmit.jobs.store.shards import Shard, StoredPack, members

unhurried = settings(deadline=None)  # cores may be shared

DTYPES = ("?", "u1", "<i8", ">i4", "<f8", "<f2", "<c16", "S32", "<U3")
PACK = {
    "index": np.arange(5),
    "key": np.array(["0f" * 16] * 5, dtype="S32"),
    "status": np.ones(5, np.uint8),
    "timekeys": np.arange(10).reshape(5, 2),
    "grab.gram": np.asfortranarray(np.random.default_rng(0).random((5, 3, 2))),
}


def by_numpy(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as npz:
        return {name: npz[name] for name in npz.files}


def assert_same(read, expected):
    assert list(read) == list(expected)
    for name, array in expected.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


@unhurried
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][\w.é]{0,8}", fullmatch=True),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0))
        ),
        max_size=4,
    )
)
def test_arrays_are_those_that_numpy_reads(arrays):
    content = npz_bytes(arrays)
    assert_same(by_numpy(content), arrays)
    assert_same(stored_arrays(content), arrays)


def test_arrays_can_be_written_to():
    read = stored_arrays(npz_bytes(PACK))
    read["timekeys"][2] = 7
    assert read["timekeys"].sum() == PACK["timekeys"].sum() - 9 + 14


@unhurried
@given(st.integers(0, len(npz_bytes(PACK)) - 1), st.integers(1, 255))
def test_a_flipped_byte_yields_nothing_or_the_same(place, flip):
    content = bytearray(npz_bytes(PACK))
    content[place] ^= flip
    if (read := stored_arrays(bytes(content))) is not None:
        assert_same(read, PACK)


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 23, 500, -1])
def test_a_file_that_is_cut_off_yields_nothing(cut):
    assert stored_arrays(npz_bytes(PACK)[:cut]) is None


def test_what_was_not_written_here_is_left_to_numpy():
    packed, pickled, commented = io.BytesIO(), io.BytesIO(), npz_bytes(PACK) + b"more"
    np.savez_compressed(packed, **PACK)
    np.savez(pickled, x=np.array([{}], dtype=object))
    assert stored_arrays(packed.getvalue()) is None
    assert stored_arrays(pickled.getvalue()) is None
    assert stored_arrays(commented) is None


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["array by array", "at once"])
def test_a_pack_reads_the_same_however_large_it_is(small, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SMALL_PACK", small)
    with Shard(tmp_path / "000-0000.0.tar") as shard:
        shard.append("0000000.npz", npz_bytes(PACK))
    (member,) = members(shard.path)
    pack = StoredPack(member)
    assert pack.intact()
    assert_same({name: pack[name] for name in pack.arrays()}, PACK)


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["array by array", "at once"])
def test_a_compressed_pack_is_damaged(small, tmp_path, monkeypatch):
    """A kilobyte of it may have a gigabyte of zeros."""
    monkeypatch.setattr(shards, "SMALL_PACK", small)
    packed = io.BytesIO()
    np.savez_compressed(packed, **PACK)
    with Shard(tmp_path / "000-0000.0.tar") as shard:
        shard.append("0000000.npz", packed.getvalue())
    (member,) = members(shard.path)
    assert not StoredPack(member).intact()
