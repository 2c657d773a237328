"""Sources of functions as they are shown: of lambdas the lambda itself."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from mlpsubmit.spec.source_text import source_text


def around(scale: float) -> Callable[[float], float]:
    return lambda x: x * scale  # the closure is loaded in another way than a global


class Holder:
    def method(self) -> int:
        """Return one."""
        return 1

    table = {"a": lambda self: 1, "b": lambda self: 2}  # noqa: RUF012 - as in a spec


def test_a_function_is_not_indented() -> None:
    expected = 'def method(self) -> int:\n    """Return one."""\n    return 1\n'
    assert source_text(Holder.method) == expected


def test_a_lambda_is_told_from_those_beside_it() -> None:
    pair = (lambda x: x, lambda x, y=(1, 2): (x, y))
    assert source_text(pair[0]) == "lambda x: x"
    assert source_text(pair[1]) == "lambda x, y=(1, 2): (x, y)"
    assert source_text(Holder.table["b"]) == "lambda self: 2"
    assert source_text(around(2.0)) == "lambda x: x * scale"
    nested = lambda x: lambda y: y + x  # noqa: E731
    assert source_text(nested) == "lambda x: lambda y: y + x"
    assert source_text(nested(1)) == "lambda y: y + x"
    lines = functools.partial(
        lambda x, y: x + y,  # a comment
        y=1,
    )
    assert source_text(lines.func).startswith("lambda x, y: x")


def test_a_lambda_that_is_not_found_is_shown_with_its_line() -> None:
    a, b = 1.0, 2.0
    pair = (lambda x: a * x, lambda x: b * x)
    assert [source_text(one) for one in pair] == ["lambda x: a * x", "lambda x: b * x"]
    pair = (lambda x: a * x, lambda x: a + x)
    assert {source_text(one) for one in pair} == {"pair = (lambda x: a * x, lambda x: a + x)\n"}


def test_a_lost_source_is_an_error() -> None:
    with pytest.raises((OSError, TypeError)):
        source_text(eval("lambda: 1"))
