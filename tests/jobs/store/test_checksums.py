"""Any changed byte of a file with a checksum is detected."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.checksums import parsed_json, sealed, summed_json
from mlpsubmit.errors import DamageError
from mlpsubmit.files import checked, publish, publish_json, read_json, verify

CONTENT = {"name": "é", "pairs": (1, 2.5), "none": None, "": {"checksum": "inner"}}


def test_every_changed_bit_and_every_truncation_of_json_is_detected() -> None:
    text = summed_json(CONTENT)
    assert parsed_json(text) == json.loads(json.dumps(CONTENT))
    assert list(json.loads(text)) == ["checksum", *CONTENT]
    changed = [
        text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]
        for place in range(len(text))
        for bit in range(8)
    ]
    for damaged in (*changed, *(text[:size] for size in range(len(text))), text + b" "):
        with pytest.raises(ValueError, match=r"checksum|line|utf-8|codec"):
            parsed_json(damaged)


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b"3", b"{}", b'{\n "checksum": 1\n}', b"[" * 10**5]
)
def test_json_without_a_checksum_is_damaged(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DamageError, match=r"a.json: is damaged \("):
        read_json(tmp_path / "a.json")


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.recursive(st.none() | st.floats() | st.integers() | st.text(), st.lists))
def test_any_json_reads_back(value: Any) -> None:
    again = parsed_json(summed_json({"value": value}))["value"]
    assert repr(again) == repr(json.loads(json.dumps(value)))
    assert parsed_json(summed_json(parsed_json(summed_json({"n": math.nan})))).keys() == {"n"}


def test_a_checksum_is_replaced_when_content_is_published_again(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"n": 1})
    publish_json(tmp_path / "a.json", {**json.loads((tmp_path / "a.json").read_bytes()), "n": 2})
    assert read_json(tmp_path / "a.json") == {"n": 2}


def test_other_readers_ignore_the_checksum_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    publish(file, sealed(partial(torch.save, {"a": torch.arange(5)})))
    for options in ({"weights_only": True}, {"weights_only": False, "mmap": True}):
        assert torch.load(file, **options)["a"].tolist() == [0, 1, 2, 3, 4]
    publish(file, sealed(pickle.dumps((1, 2))))
    assert pickle.loads(file.read_bytes()) == (1, 2)
    assert pickle.loads(checked(file)) == (1, 2)
    publish(file, sealed(lambda stream: np.save(stream, np.arange(3))))
    assert np.load(file).tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [0, 1, 100, (1 << 20) - 1, 1 << 20, (1 << 21) + 3])
@pytest.mark.parametrize("read", [verify, checked])
def test_a_sealed_file_is_what_was_written_or_damaged(
    tmp_path: Path, size: int, read: Callable[[Path], object]
) -> None:
    file, content, stream = tmp_path / "file", bytes(size), io.BytesIO()
    checksum = sealed(content)(stream)
    whole = stream.getvalue()
    file.write_bytes(whole)
    assert read(file) in (checksum, content)
    places = {0, size // 2, size, len(whole) - 40, len(whole) - 2, len(whole) - 1}
    changed = [whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :] for p in places if p < len(whole)]
    for damaged in (*changed, b"", content, whole[:-1], whole[1:], whole + b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(DamageError, match="file: is damaged"):
            read(file)
