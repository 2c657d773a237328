"""Names as plain text: LaTeX becomes Unicode where Unicode has the characters."""

from __future__ import annotations

import re
import unicodedata

from mlpsubmit.display.output import inline

__all__ = ["plain"]

_FORMULA = re.compile(r"\$([^$]+)\$")
_COMMAND = re.compile(r"\\([A-Za-z]+) ?")
_STYLED = re.compile(r"\\(?:mathrm|mathbf|mathit|mathcal|text|operatorname)\s*\{([^{}]*)\}")
_INDEX = re.compile(r"([_^])(?:\{([^{}]*)\}|(\S))")

_PLACES = {
    "_": dict(zip("0123456789+-=()aeijoruvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₒᵣᵤᵥₓ", strict=True)),
    "^": dict(zip("0123456789+-=()nijxT", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱʲˣᵀ", strict=True)),
}

#: Commands that are not names of Greek letters.
_SYMBOLS = {
    "times": "×",
    "cdot": "·",
    "pm": "±",
    "infty": "∞",
    "partial": "∂",
    "nabla": "∇",
    "leq": "≤",
    "le": "≤",
    "geq": "≥",
    "ge": "≥",
    "approx": "≈",
    "sum": "∑",
    "sqrt": "√",
    "ell": "ℓ",
    "log": "log",
    "exp": "exp",
    "to": "→",
    "Vert": "‖",
    "|": "‖",
}


def plain(text: object) -> str:
    """Return text on one line in which nothing acts, with its formulas in Unicode: ``x₀²``.

    What Unicode cannot write stays as LaTeX has it: ``x_width``.
    """
    return _FORMULA.sub(lambda found: _formula(found[1]), inline(text))


def _formula(latex: str) -> str:
    text = _STYLED.sub(r"\1", latex)
    text = _COMMAND.sub(_symbol, text)
    return _INDEX.sub(_index, text)


def _symbol(command: re.Match[str]) -> str:
    name = command[1]
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    # Unicode spells this one letter in another way.
    letter = re.sub("lambda", "lamda", name, flags=re.IGNORECASE).upper()
    try:
        size = "SMALL" if name[0].islower() else "CAPITAL"
        return unicodedata.lookup(f"GREEK {size} LETTER {letter}")
    except KeyError:
        return command[0]


def _index(index: re.Match[str]) -> str:
    sign, content = index[1], index[2] if index[2] is not None else index[3]
    characters = _PLACES[sign]
    if all(character in characters for character in content):
        return "".join(characters[character] for character in content)
    return f"{sign}{content}"
