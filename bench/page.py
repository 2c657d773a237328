"""The tables of docs/performance.md, written from the newest results for each processor.

    python bench/page.py [--check]

A section of the page between ``<!-- bench:NAME -->`` and ``<!-- end -->`` is replaced, if there are
results of that benchmark; everything else is written by hand. ``--check`` writes nothing: its exit
code is 1 if the page would change.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from results import FOLDER, ROOT, Figure, Machine, Record, records

__all__ = ["PAGE", "TABLES", "written"]

PAGE = ROOT / "docs" / "performance.md"

#: The instruction sets that the page names.
_NAMED = ("avx2", "avx512f", "amx_tile", "asimd", "sve")

_SECTION = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def shown(figure: Figure | None) -> str:
    """Return a figure as it is read, with its range where that is wide, and its unit."""
    if figure is None:
        return ""
    middle, low, high = (number(v, figure.unit) for v in (figure.median, figure.min, figure.max))
    wide = figure.unit in ("x", "share") and low != high
    return f"{middle} ({low} to {high})" if wide else middle


def number(value: float, unit: str) -> str:
    """Return a number with its unit, or what takes the place of one."""
    if unit == "share":
        return f"{value:.0%}" if abs(value) >= 0.1 else f"{100 * value:.2g}%"
    if unit == "s" and abs(value) < 0.1:
        return f"{1000 * value:.2g} ms"
    digits = 2 if unit == "x" and abs(value) < 10 else 1 if abs(value) < 10 else 0
    plain = f"{value:,.{digits}f}"
    return plain if unit in ("x", "model-steps/s", "configs") else f"{plain} {unit}"


def source(machine: Machine, record: Record) -> str:
    """Return where and when figures were measured."""
    sets = ", ".join(name for name in _NAMED if name in machine.instructions)
    versions = ", ".join(
        f"{name} {record.versions[name]}" for name in ("torch", "jax") if name in record.versions
    )
    return (
        f"**{machine.processor}**, {record.cores} of {machine.cores} cores ({sets}); "
        f"{record.at:%Y-%m-%d}, commit {record.commit}, {versions}, load {record.load:g} before it:"
    )


# ---- what each benchmark shows -------------------------------------------------------------------


def trainloop(record: Record) -> str:
    """Return the speeds of runs, and their ratios."""
    columns = {
        "run": "run, model-steps/s",
        "plain loop": "plain loop",
        "over plain": "run / plain loop",
        "JAX": "JAX",
        "over JAX": "run / JAX",
        "over JAX, one vmap": "run / JAX, one vmap",
        "of torch's products": "of torch's products",
        "of the peak": "of the peak",
    }
    rows = [
        [case, *(_with_target(record.of(what).get(case)) for what in columns)]
        for case in record.cases
    ]
    products = {
        "torch's products": "large products of torch",
        "JAX's products": "of JAX",
        "own layers": "of the package, in a layer",
        "peak": "the peak",
    }
    rates = ", ".join(
        f"{name} {_middle(record, what)}" for what, name in products.items() if record.of(what)
    )
    missed = sum(figure.reached is False for figure in record.figures)
    required = sum(figure.target is not None for figure in record.figures)
    return (
        f"{table(['case', *columns.values()], rows)}\n\n"
        f"Together the cores reach: {rates}. Targets reached: {required - missed} of {required}."
    )


def _with_target(figure: Figure | None) -> str:
    if figure is None or figure.target is None:
        return shown(figure)
    target = number(figure.target, figure.unit)
    text = f"{shown(figure)}; target {target}"
    return text if figure.reached else f"**{text}**"


def _middle(record: Record, what: str) -> str:
    values = sorted(figure.median for figure in record.of(what).values())
    return f"{values[len(values) // 2]:,.0f} GFLOP/s"


def ntk(record: Record) -> str:
    """Return the times of empirical NTKs, and their ratio."""
    return _by_case(record, ("row by row", "empirical_ntk", "row by row / empirical_ntk"))


def overheads(record: Record) -> str:
    """Return the costs of saves, of heartbeats, and of recording."""
    saves = {
        "configs": "configs in a pack",
        "megabytes": "state",
        "seconds": "one save",
        "share": "of five minutes",
    }
    widths = [case for case in record.cases if case.startswith("one save")]
    beats = [case for case in record.cases if case.startswith("heartbeats")]
    others = [case for case in record.cases if case not in (*widths, *beats)]
    beat = {"publish_seconds": "one heartbeat", "share": "of the time"}
    recorded = {"speed": "model-steps/s", "of final losses": "of final losses alone"}
    parts = ((saves, widths), (beat, beats), (recorded, others))
    return "\n\n".join(_by_case(record, columns, cases) for columns, cases in parts)


def _by_case(
    record: Record, columns: Sequence[str] | dict[str, str], cases: Sequence[str] | None = None
) -> str:
    """Return a table with a row per case."""
    titles = columns if isinstance(columns, dict) else {name: name for name in columns}
    rows = [
        [case, *(shown(record.of(what).get(case)) for what in titles)]
        for case in (record.cases if cases is None else cases)
    ]
    return table(["", *titles.values()], rows)


def scale(record: Record) -> str:
    """Return the costs of large sweeps, a column for each of the largest."""
    large = [case for case in record.cases if case.endswith("00,000 configs")]
    others = [case for case in record.cases if case.startswith(("small", "alone"))]
    return "\n\n".join(_transposed(record, cases) for cases in (large, *zip(others)) if cases)


def _transposed(record: Record, cases: Sequence[str]) -> str:
    """Return a table with a row for what was measured, its peak of memory in the same cell."""
    whats = dict.fromkeys(figure.what for figure in record.figures if figure.case in cases)
    rows = []
    for what in whats:
        if what.endswith(", peak"):
            continue
        pairs = [(record.of(what).get(c), record.of(f"{what}, peak").get(c)) for c in cases]
        rows.append([what, *(", ".join(shown(one) for one in pair if one) for pair in pairs)])
    return table(["", *cases], rows)


#: By the name of the section, which is that of the benchmark.
TABLES: dict[str, Callable[[Record], str]] = {
    "trainloop": trainloop,
    "overheads": overheads,
    "scale": scale,
    "ntk": ntk,
}


# ---- the page ------------------------------------------------------------------------------------


def section(name: str, folder: Path = FOLDER) -> str:
    """Return the tables of a benchmark, of one processor after another; nothing without results."""
    found = records(name, folder).values()
    return "\n\n".join(f"{source(*one)}\n\n{TABLES[name](one[1])}" for one in found)


def written(text: str, folder: Path = FOLDER) -> str:
    """Return the text of the page with all sections written from the results in a folder.

    Raises:
        SystemExit: for a section of no benchmark, and for a benchmark without a section.
    """
    names = [match[2] for match in _SECTION.finditer(text)]
    if sorted(names) != sorted(TABLES):
        raise SystemExit(f"sections of the page are {names}; should be {list(TABLES)}, once each")

    def replaced(match: re.Match[str]) -> str:
        own = section(match[2], folder)
        return f"{match[1]}{own}\n{match[3]}" if own else match[0]

    return _SECTION.sub(replaced, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    before = PAGE.read_text()
    after = written(before)
    if options.check:
        return int(before != after)
    if before != after:
        PAGE.write_text(after)
        print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
