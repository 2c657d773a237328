"""Names that trackers and file systems take: of runs, and of what they show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mlpsubmit.display.notation import plain
from mlpsubmit.results.names import threshold_label
from mlpsubmit.results.source import Scalar

__all__ = ["labels_along", "run_label", "tags", "words"]

#: The most bytes of a label: W&B takes names of 128 characters, file systems of 255 bytes.
MOST_BYTES = 120

#: The most characters of one value in it.
MOST_CHARACTERS = 40


def labels_along(values: Mapping[str, Sequence[Scalar]]) -> list[str]:
    """Return a label for each position along a dimension, all of them different.

    Args:
        values: of its coordinates, by name: several of a zipped axis.
    """
    texts = [
        ", ".join(
            f"{_named(name)}={_named(value)}" for name, value in zip(values, own, strict=True)
        )
        for own in zip(*values.values(), strict=True)
    ]
    return _distinct(texts)


def run_label(parts: Iterable[str], index: int) -> str:
    """Return the label of a config; a long one is cut, and ends in the index of the config."""
    label = ", ".join(parts)
    if len(label.encode()) > MOST_BYTES:
        end = f"… #{index}"
        kept = label.encode()[: MOST_BYTES - len(end.encode())]
        label = kept.decode(errors="ignore") + end
    return f"_{label[1:]}" if label.startswith(".") else label  # hidden, or a folder of its own


def _named(value: object) -> str:
    text = threshold_label(value) if isinstance(value, float) else plain(value)
    text = text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
    # A slash that separates no folders; a comma and a space stand between values only.
    return text.replace("/", "∕").replace(", ", ",")


def tags(names: Iterable[str]) -> dict[str, str]:
    """Return a tag for each name: of entries of an array in a group of its own.

    ``timekeys [0.1]`` becomes ``timekeys/0.1``.
    """
    names = list(names)
    return _unique(names, [_tag(name) for name in names])


def _tag(name: str) -> str:
    array, bracket, entry = plain(name).replace("/", "∕").partition(" [")
    return f"{array}/{entry.removesuffix(']')}" if bracket else array


def words(names: Iterable[str]) -> dict[str, str]:
    """Return a word for each name, of ASCII letters, digits and underscores.

    ``timekeys [0.1]`` becomes ``timekeys_0_1``: by others, W&B neither sorts nor filters.
    """
    names = list(names)
    return _unique(names, [_word(name) for name in names])


def _word(name: str) -> str:
    word = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "_"
    return f"_{word}" if word[0].isdigit() else word


def _unique(names: Sequence[str], forms: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, _distinct(forms), strict=True))


def _distinct(texts: Sequence[str]) -> list[str]:
    """Return texts of which those that are there several times end in a number."""
    taken = set(texts)
    found: list[str] = []
    seen: set[str] = set()
    for text in texts:
        own, number = text, 1
        while own in seen or (number > 1 and own in taken):
            number += 1
            own = f"{text}_{number}"
        seen.add(own)
        found.append(own)
    return found
