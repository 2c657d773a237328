"""The whole page: one file that fetches nothing and runs only the scripts in it."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from mlpsubmit.display.notation import plain
from mlpsubmit.display.text import counted
from mlpsubmit.report.asked import asked
from mlpsubmit.report.columns import encoded
from mlpsubmit.report.contents import Contents
from mlpsubmit.report.cost import cost, costs
from mlpsubmit.report.markup import escape, section
from mlpsubmit.report.picture import Picture
from mlpsubmit.report.sections import configs, head, loading, progress, thresholds
from mlpsubmit.results.join import joined_id
from mlpsubmit.results.origin import MARK

__all__ = ["page"]

#: Lines that the parallel axes can show at a time.
MOST_LINES = 3000

_PLACEHOLDERS = """
<div class="controls needs-script" id="figure-controls"></div>
<div id="figure-legend" class="legend needs-script"></div>
<div class="chart needs-script" id="figure-chart" role="img" aria-label="Figure"></div>
<p class="note needs-script" id="figure-note"></p>
"""

_PARALLEL = """
<div class="controls" id="parallel-controls"></div>
<div class="wide">
<div class="chart" id="parallel-chart" role="img" aria-label="Parallel axes"></div>
</div>
<p class="note" id="parallel-note"></p>
"""


def page(contents: Contents, reload_seconds: int | None = None) -> str:
    """Return the HTML.

    Args:
        reload_seconds: how often the page reloads itself; None if it is not written again.
    """
    script, style = _own("report.js"), _own("report.css")
    charts = _own("echarts/echarts.min.js")
    spent = cost(contents.runs)
    names = " + ".join(dict.fromkeys(one.run.name for one in contents.runs))
    joined = joined_id([one.run.id for one in contents.runs])
    now = time.time()
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    live = (
        ""
        if reload_seconds is None
        else f' data-reload="{reload_seconds}" data-written="{now:.0f}"'
    )
    plain_reload = (
        ""
        if reload_seconds is None
        else f'<noscript><meta http-equiv="refresh" content="{reload_seconds}"></noscript>\n'
    )
    policy = _policy([charts, script], style)
    sections = [
        head(contents, spent, written),
        progress(contents) if _open(contents) else "",
        section("figure", "Figure", _PLACEHOLDERS, _picture(contents.picture)),
        thresholds(contents),
        section("parallel", "Parallel axes", _PARALLEL, kind="needs-script"),
        configs(contents),
        costs(contents, spent),
        *_asked(contents),
        loading(contents),
        _about(contents),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'{plain_reload}<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="mlpsubmit {version("mlpsubmit")}">\n'
        f'<meta name="description" content="{MARK.format(joined)}">\n'
        f"<title>{escape(names)}</title>\n<style>{style}</style>\n</head>\n<body{live}>\n"
        f"<main>\n{chr(10).join(filter(None, sections))}\n</main>\n"
        '<div id="hover" role="status" hidden></div>\n'
        f'<script type="application/json" id="report-data">{encoded(_data(contents))}</script>\n'
        f"<script>{charts}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _open(contents: Contents) -> bool:
    """Return whether there is more to tell of any run than that it is complete."""
    if contents.remarks:
        return True
    statuses = [one.status for one in contents.runs]
    return any(s.failures or not s.complete or s.early_crossings or s.damage for s in statuses)


def _picture(picture: Picture) -> str:
    """Return what stands in the place of the interactive figure until its script has run."""
    notes = [
        *picture.notes,
        "As mlpsubmit plot draws it, if nothing else is asked for. With scripts, which are in this "
        "file, there is an interactive figure in its place.",
    ]
    texts = "".join(f"<p>{escape(plain(note))}</p>" for note in notes)
    return (
        '<figure class="without-scripts" id="picture" aria-label="Figure">'
        f'{picture.svg}<figcaption class="note">{texts}</figcaption></figure>'
    )


def _data(contents: Contents) -> dict[str, Any]:
    return {**contents.to_json(), "mostLines": MOST_LINES}


def _asked(contents: Contents) -> Sequence[str]:
    several = len(contents.runs) > 1
    return [
        section(
            f"asked-{number}",
            f"What was asked: {plain(one.run.id)}" if several else "What was asked",
            asked(one),
        )
        for number, one in enumerate(contents.runs)
    ]


def _about(contents: Contents) -> str:
    """Return how the page was made: what is thinned or left out."""
    library = json.loads(_own("echarts/VERSION.json"))
    lines = [
        "This page fetches nothing. Its charts are drawn by Apache ECharts "
        f"{library['version']} (Apache License 2.0), which is in it.",
    ]
    if contents.curves:
        most, recorded = contents.curves[0].most, max(c.recorded for c in contents.curves)
        if recorded > most:
            lines.append(
                f"Of up to {recorded:,} points of a curve at most {most} are here: the smallest "
                "and the largest in each of some intervals, at their own steps, and the first and "
                "the last. Half of the intervals are evenly spread over the steps, half over their "
                "logarithms. Values have seven digits. The dataset has all points."
            )
    if contents.size < contents.total:
        lines.append(
            f"{contents.size:,} of {contents.total:,} configs are on this page, evenly chosen: "
            "there are too many. The dataset has all."
        )
    if contents.every > 1:
        lines.append(f"One of {contents.every} configs has its curves here: there are too many.")
    if contents.dropped:
        names = ", ".join(map(plain, contents.dropped))
        lines.append(f"No room for the curves of {names}; the table has their final values.")
    if contents.arrays:
        names = ", ".join(map(plain, contents.arrays))
        lines.append(f"Arrays, which are in the dataset alone: {names}.")
    if contents.size > MOST_LINES:
        lines.append(
            f"The parallel axes draw {MOST_LINES:,} of {counted(contents.size, 'config')} at a "
            "time, evenly chosen; the table has all."
        )
    return section("about", "About this page", *(f"<p>{escape(line)}</p>" for line in lines))


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return a Content-Security-Policy under which nothing else runs, and nothing is fetched."""
    allowed = " ".join(f"'{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _own(name: str) -> str:
    """Return a file of this package."""
    return files("mlpsubmit.report").joinpath(name).read_text(encoding="utf-8")
