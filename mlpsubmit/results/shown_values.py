"""Values of axes as tables and figures show them, and which of them a value or a text means."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.results.names import clean_text
from mlpsubmit.results.source import Array

__all__ = ["equals_label", "matching", "number_texts", "value_text", "visible"]


def visible(character: str) -> str:
    """Return a character; of a control character a visible escape."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def value_text(value: Any, digits: int = 6) -> str:
    """Return a value of an axis as text, numbers to some digits: 1234 is not 1.23e+03.

    Control characters become visible escapes.
    """
    if not isinstance(value, float):
        return "".join(map(visible, str(value)))
    text = f"{value:.{digits}g}"
    return text if "e+" not in text else f"{value:.6g}"


def number_texts(levels: Array) -> tuple[str, ...]:
    """Return distinct numbers as text, with so many digits that they differ."""
    for digits in (3, 4, 6):
        texts = tuple(value_text(level, digits) for level in levels.tolist())
        if len(set(texts)) == len(texts):
            return texts
    return tuple(map(str, levels.tolist()))


def equals_label(label: Any, wanted: Any) -> bool:
    """Return whether a label of an axis is a wanted value, or has its text."""
    wanted = _plain(wanted)
    if _is_number(label) and isinstance(wanted, str):
        for parse in (int, float):  # no float equals some integers
            with contextlib.suppress(ValueError):
                return bool(label == parse(wanted))
        return False
    if isinstance(label, (int, float)) and isinstance(wanted, (int, float)):
        return isinstance(label, bool) == isinstance(wanted, bool) and label == wanted
    return clean_text(str(label)) == clean_text(str(wanted))


def matching(labels: Sequence[Any], wanted: Any) -> npt.NDArray[np.bool_]:
    """Return which labels of an axis a value or a text means, (n,).

    Those that equal it. If none does, those that a table or a legend shows so, with fewer digits;
    or else those with its text in another case, or without its dollars, which shells expand.
    """
    wanted = _plain(wanted)
    found = np.array([equals_label(label, wanted) for label in labels], dtype=bool)
    if not found.any():
        found = _shown_as(labels, value_text(wanted))
    if not found.any():
        text = value_text(wanted).lower()
        texts = [value_text(label).lower() for label in labels]
        found = np.array([text in (own, own.replace("$", "")) for own in texts], dtype=bool)
    return found


def _shown_as(labels: Sequence[Any], text: str) -> npt.NDArray[np.bool_]:
    """Return which labels are numbers that are shown as a text."""
    found = np.zeros(len(labels), dtype=bool)
    at = [place for place, label in enumerate(labels) if _is_number(label)]
    levels, codes = np.unique(np.array([labels[place] for place in at]), return_inverse=True)
    few = number_texts(levels)
    exact = [value_text(level) for level in levels.tolist()]
    found[at] = [text in (few[code], exact[code]) for code in codes.tolist()]
    return found


def _is_number(label: Any) -> bool:
    return isinstance(label, (int, float)) and not isinstance(label, bool)


def _plain(wanted: Any) -> Any:
    """Return a wanted value as a builtin; of a function the name, which is its label."""
    item = getattr(wanted, "item", None)
    if callable(item) and getattr(wanted, "ndim", 1) == 0:
        return item()
    name = getattr(wanted, "__name__", None) if callable(wanted) else None
    return name or wanted
