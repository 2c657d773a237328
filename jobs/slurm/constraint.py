"""Which nodes a constraint of SLURM allows, as far as its syntax is plain."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["allows"]

_TOKEN = re.compile(r"[A-Za-z0-9_.:=+-]+|[&|()\[\]]")
_OPENING = {"(": ")", "[": "]"}


class _NotPlain(Exception):
    """A constraint with a syntax that is not evaluated here, such as numbers of nodes."""


def allows(constraint: str, features: Collection[str]) -> bool | None:
    """Return whether a job with a constraint may run on a node with these features.

    Evaluated are names, ``&``, ``|``, parentheses and brackets. SLURM evaluates ``a&b|c`` from left
    to right, unlike most languages, so operators of both kinds should be in parentheses.

    Returns:
        None for any other syntax: it may, as far as is known.
    """
    tokens = _TOKEN.findall(text := re.sub(r"\s", "", constraint))
    if "".join(tokens) != text:
        return None
    try:
        found = _any_or_all(tokens, features)
        return found if not tokens else None
    except (_NotPlain, IndexError):
        return None


def _any_or_all(tokens: list[str], features: Collection[str]) -> bool:
    """Take terms with one kind of operator between them off the tokens; return their value."""
    values, operators = [_term(tokens, features)], set[str]()
    while tokens and tokens[0] in "&|":
        operators.add(tokens.pop(0))
        values.append(_term(tokens, features))
    if len(operators) > 1:
        raise _NotPlain
    return any(values) if operators == {"|"} else all(values)


def _term(tokens: list[str], features: Collection[str]) -> bool:
    token = tokens.pop(0)
    if token not in _OPENING:
        if token in "&|)]":
            raise _NotPlain
        return token in features
    value = _any_or_all(tokens, features)
    if tokens.pop(0) != _OPENING[token]:
        raise _NotPlain
    return value
