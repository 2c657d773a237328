"""The sections of a report that need no script: progress, thresholds, configs, loading."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mlpsubmit.display.notation import plain
from mlpsubmit.display.text import abridged, counted, throughput
from mlpsubmit.jobs.status import Status
from mlpsubmit.report.columns import Column, varied
from mlpsubmit.report.contents import Contents, ReportedRun
from mlpsubmit.report.cost import Cost, amount, task_table
from mlpsubmit.report.markup import details, escape, section, table
from mlpsubmit.results.axes import TRIAL

__all__ = ["configs", "head", "loading", "progress", "thresholds"]

#: The most rows of tables that the script does not build.
STATIC_ROWS, REASONS = 200, 8

#: The most characters of a traceback: the message of an error may be a whole array.
MOST_TRACEBACK = 20_000

_STATES = ("done", "diverged", "failed", "missing")


def head(contents: Contents, cost: Cost, written: str) -> str:
    """Return the title, the state and the main numbers."""
    names = list(dict.fromkeys(one.run.name for one in contents.runs))
    states = list(dict.fromkeys(one.status.state for one in contents.runs))
    badges = " ".join(f'<span class="badge {escape(s)}">{escape(s)}</span>' for s in states)
    runs = ", ".join(f"<code>{escape(one.run.id)}</code>" for one in contents.runs)
    tiles = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(note)}</small></dd></div>"
        for name, value, note in _tiles(contents, cost)
    )
    return (
        '<header>\n<p class="kind">mlpsubmit report</p>\n'
        f"<h1>{escape(' + '.join(names))} {badges}</h1>\n"
        f'<p class="note">run {runs} · written {escape(written)}</p>\n'
        f'{_bar(contents)}<dl class="tiles">{tiles}</dl>\n</header>'
    )


def _tiles(contents: Contents, cost: Cost) -> list[tuple[str, str, str]]:
    counts = {state: contents.count(state) for state in _STATES}
    others = [f"{n:,} {s}" for s, n in counts.items() if n and s != "done"]
    tiles = [
        (
            "Configs with a result",
            f"{contents.finished:,} of {contents.total:,}",
            ", ".join(others) or "none failed",
        )
    ]
    if last := _last_threshold(contents):
        tiles.append(last)
    training = cost.training or dict.fromkeys(cost.tasks, 0.0) or {"core-hours": 0.0}
    held = " + ".join(map(amount, cost.tasks.values()))
    unit = " and ".join(training) + (f"; {held} held by tasks" if held else "")
    tiles.append(("Training", " + ".join(map(amount, training.values())), unit))
    return tiles + (_speed(contents.runs[0].status) if len(contents.runs) == 1 else [])


def _speed(status: Status) -> list[tuple[str, str, str]]:
    """Return the throughput, and the utilization, as far as they are known."""
    tiles = []
    if status.speed:
        speed, _, unit = throughput(status.speed, None).partition(" ")
        tiles.append(("Throughput", speed, unit))
    if status.matmul_utilization is not None:
        share = f"{100 * status.matmul_utilization:.2g}%"
        tiles.append(("Matmul utilization", share, "of the measured matmul rate"))
    return tiles


def _last_threshold(contents: Contents) -> tuple[str, str, str] | None:
    """Return how many configs crossed the last threshold that any crossed, and when."""
    if contents.size < contents.total:
        return None
    for column in reversed([c for c in contents.columns if c.role == "timekey"]):
        steps = [v for v in column.values if v is not None]
        if steps:
            expected = _expected(contents, column)
            label = column.label.removeprefix("steps to ")
            return (
                f"Crossed {label}",
                f"{len(steps):,} of {expected:,}",
                f"median {counted(round(statistics.median(steps)), 'step')}",
            )
    return None


def _expected(contents: Contents, column: Column) -> int:
    """Return how many configs with a result have a threshold."""
    status = contents.column("status").values
    pairs = zip(status, column.expected, strict=True)
    return sum(s in ("done", "diverged") and has for s, has in pairs)


def _bar(contents: Contents) -> str:
    """Return a bar with a part for each status."""
    left, parts, total = 0.0, [], max(contents.total, 1)
    for state in _STATES:
        width = 1000 * contents.count(state) / total
        if width:
            parts.append(f'<rect class="{state}" x="{left:.2f}" width="{width:.2f}" height="6"/>')
        left += width
    label = ", ".join(f"{contents.count(state)} {state}" for state in _STATES)
    return (
        f'<svg class="bar" viewBox="0 0 1000 6" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>\n'
    )


def progress(contents: Contents) -> str:
    """Return the failures, what is in progress, and the tasks."""
    remarks = [f'<p class="remark">{escape(plain(text))}</p>' for text in contents.remarks]
    return section("progress", "Progress", *map(_progress, contents.runs), *remarks)


def _progress(one: ReportedRun) -> str:
    status = one.status
    summary = status.summary.replace("  ", " · ")
    lines = [f"<p>{escape(one.run.id)}: {escape(status.state)}, {escape(summary)}</p>"]
    groups = status.failure_groups
    for group in groups[:REASONS]:
        place = f"<br><code>{escape(group.place)}</code>" if group.place else ""
        trace = details("traceback", f"<pre>{escape(_ends(group.first.traceback))}</pre>")
        lines.append(
            f'<div class="failure"><p>failed: {escape(plain(group))}{place}</p>{trace}</div>'
        )
    if len(groups) > REASONS:
        lines.append(f"<p>… and {counted(len(groups) - REASONS, 'more reason')}</p>")
    remarks = [
        status.early_crossings,
        status.damage,
        status.outstanding,
        status.retry and f"a job will resume the missing configs: {status.retry}",
    ]
    if status.unreadable:
        remarks.append(f"cannot be read: {abridged(status.unreadable)}")
    lines += [f'<p class="remark">{escape(plain(text))}</p>' for text in remarks if text]
    if status.tasks and not status.complete:
        rows = [(task.name, task.state, plain(task.summary)) for task in status.tasks]
        lines.append(task_table(("task", "state", "progress"), rows))
    return "\n".join(lines)


def _ends(traceback: str) -> str:
    """Return a traceback, of a very long one its beginning and its end."""
    if len(traceback) <= MOST_TRACEBACK:
        return traceback
    half = MOST_TRACEBACK // 2
    return f"{traceback[:half]}\n...\n{traceback[-half:]}"


def thresholds(contents: Contents) -> str:
    """Return the table of steps to thresholds: a row per point of the axes, over its trials."""
    timekeys = [column for column in contents.columns if column.role == "timekey"]
    axes = [c for c in varied(contents.columns) if c.name != TRIAL and not c.members]
    if not timekeys or not contents.finished:
        return ""
    status = contents.column("status").values
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in range(contents.size):
        groups.setdefault(tuple(axis.text(row) for axis in axes), []).append(row)
    rows = []
    for point, members in groups.items():
        finished = [row for row in members if status[row] in ("done", "diverged")]
        cells = [_steps(column, finished) for column in timekeys]
        rows.append([*point, f"{len(finished)}/{len(members)}", *cells])
    header = [*(axis.label for axis in axes), "done", *(c.label for c in timekeys)]
    note = "The first step whose smoothed loss is below the threshold, or whose metric reaches it."
    if any(len(members) > 1 for members in groups.values()):
        note += (
            " Mean ± standard deviation over the trials that crossed it; in parentheses how many "
            "did, if not all."
        )
    more = f" The first {STATIC_ROWS} of {len(rows):,} rows." if len(rows) > STATIC_ROWS else ""
    columns = [i for i, axis in enumerate(axes) if not axis.is_text]
    columns += range(len(axes), len(header))
    shown_rows = table(
        header,
        rows[:STATIC_ROWS],
        numbers=columns,
        identity="steps-table",
        caption="Steps to thresholds",
    )
    return section("thresholds", "Steps to thresholds", shown_rows, note=note + more)


def _steps(column: Column, rows: Sequence[int]) -> str:
    having = [row for row in rows if column.expected[row]]
    steps = [column.values[row] for row in having if column.values[row] is not None]
    if not having:
        return "–"
    if not steps:
        return "never"
    spread = f" ± {statistics.stdev(steps):,.0f}" if len(steps) > 1 else ""
    share = "" if len(steps) == len(having) else f" ({len(steps)}/{len(having)})"
    return f"{statistics.mean(steps):,.0f}{spread}{share}"


def configs(contents: Contents) -> str:
    """Return the table of configs; the script replaces it by one of all that sorts and filters."""
    columns = contents.columns
    rows = [
        [str(row), *(column.text(row) for column in columns)]
        for row in range(min(contents.size, STATIC_ROWS))
    ]
    numbers = [0, *(1 + i for i, column in enumerate(columns) if not column.is_text)]
    more = (
        f'<p class="note without-scripts">The first {STATIC_ROWS} of {contents.size:,} configs; '
        "with scripts, all of them.</p>"
        if contents.size > STATIC_ROWS
        else ""
    )
    controls = (
        '<div class="controls needs-script"><label>Filter <input type="search" id="filter" '
        'placeholder="width=128 lr<0.1 done" autocomplete="off" spellcheck="false"></label>'
        '<output id="matches" aria-live="polite"></output>'
        '<button type="button" id="clear" hidden>Show all</button></div>'
    )
    header = ["config", *(column.label for column in columns)]
    body = table(header, rows, numbers=numbers, identity="configs-table", caption="Configs")
    pages = '<nav class="pages needs-script" id="pages" aria-label="Pages of the table"></nav>'
    return section("configs", "Configs", controls, more, body, pages)


def loading(contents: Contents) -> str:
    """Return how to get at the data."""
    runs = [one.run for one in contents.runs]
    paths = " ".join(run.id for run in runs)
    listed = ", ".join(repr(str(run.path.resolve())) for run in runs)
    python = f"import mlpsubmit\n\nds = mlpsubmit.collect({listed})"
    out = f"{'+'.join(dict.fromkeys(run.name for run in runs))}.nc"
    shell = f"mlpsubmit collect {paths} --out {out}"
    xarray = f'import xarray\n\nds = xarray.open_dataset({out!r}, engine="h5netcdf")'
    blocks = [
        f"<h3>{title}</h3>\n<pre><code>{escape(code)}</code></pre>"
        for title, code in (
            ("In Python, where the run is: an xarray.Dataset, one dimension per axis", python),
            ("As a file for anybody (.nc, .zarr, .parquet or .csv)", shell),
            ("From that file, without mlpsubmit", xarray),
        )
    ]
    return section("data", "Load the data", *blocks)
