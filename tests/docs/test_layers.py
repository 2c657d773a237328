"""The layers in CONTRIBUTING are those of the contract in pyproject.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def contract() -> list[set[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [set(layer.split(" | ")) for layer in layers]


def test_the_table_of_layers_is_the_contract() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = re.search(r"^\| layer \|.*?\n\n", text, re.M | re.S)
    assert table is not None
    rows = [line.split("|")[1] for line in table[0].splitlines()[2:] if line]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == contract()


def test_the_picture_of_layers_has_the_order_of_the_contract() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    picture = text[text.index("what the user calls") : text.index("| layer |")]
    layers = [name for layer in contract() for name in layer if name != "__main__"]
    places = {name: min(m.start() for m in re.finditer(rf"\b{name}\b", picture)) for name in layers}
    lines = {name: picture[:place].count("\n") for name, place in places.items()}
    order = [{lines[name] for name in layer if name != "__main__"} for layer in contract()[1:]]
    assert [max(level) for level in order] == sorted(max(level) for level in order)
