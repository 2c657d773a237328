"""A run's status in the terminal: live while the run is in progress, and at its end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlpsubmit.display.console import Console, text
from mlpsubmit.display.output import echo, inline, without_styles
from mlpsubmit.display.progress import is_dumb
from mlpsubmit.display.sparkline import sparkline
from mlpsubmit.display.text import compact, counted, duration
from mlpsubmit.jobs.garbage import resume_collection
from mlpsubmit.jobs.heartbeat import pack_share
from mlpsubmit.jobs.store.owners import this_user

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status, TaskStatus
    from mlpsubmit.runs.run import Run

__all__ = [
    "cancel_and_wait",
    "follow",
    "follow_or_report",
    "render",
    "report",
    "status_display",
    "unknown_line",
    "watch",
]

#: Seconds between lines if the output is no terminal, or one that cannot move its cursor; and if
#: nothing has been done in between.
LINE_SECONDS = 5.0
SAME_SECONDS = 60.0

#: Colours of states; all others are yellow.
_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "crashed": "red"}
#: How many lines of a traceback are shown: the last ones give the reason in most cases.
_TRACEBACK_LINES = 6
_REASONS = 3

#: The most tasks that are listed.
_TASKS = 24

#: Characters of the progress bar.
_BAR = 76

#: Characters of the curve of a loss: it takes what the other columns leave.
_SHORTEST_CURVE, _LONGEST_CURVE = 8, 40

#: The most characters of a line of a log: SLURM's messages repeat whole commands.
_LINE = 160
#: The order in which tasks are listed: if there are many, the crashed ones must be visible.
_ORDER = {"crashed": 0, "unknown": 1, "running": 2, "interrupted": 3, "waiting": 4, "done": 5}


def render(status: Status) -> RenderableType:
    """Return the whole status: name and state, a progress bar, a line per task, the failures."""
    name, run = inline(status.name), inline(status.run)
    whose = "" if status.user in ("", this_user()) else f"  (user {inline(status.user)})"
    head = text((name, "bold"), f"  {run}  ", _state(status.state), whose)
    bar = Table.grid()  # which ends the line
    bar.add_row(ProgressBar(1.0, status.fraction, width=_BAR, finished_style="green"))
    parts: list[RenderableType] = [head, bar, text(f"  {status.summary}")]
    if status.tasks:
        parts.append(_Tasks(status.tasks))
    if status.outstanding:
        parts.append(text((f"  {inline(status.outstanding)}", "yellow")))
    if status.retry:
        retry = f"  a job will resume the missing configs: {inline(status.retry)}"
        parts.append(text((retry, "yellow")))
    if status.retry_failure:
        parts.append(text((f"  {_retry_failure(status)}", "red")))
    if status.divergence:
        parts.append(text((f"  {status.divergence}", "yellow")))
    if status.early_crossings:
        parts.append(text((f"  {status.early_crossings}", "yellow")))
    if status.mixed_devices:
        parts.append(text((f"  {inline(status.mixed_devices)}", "yellow")))
    if status.damage:
        parts.append(text((f"  {inline(status.damage)}", "red")))
    return Group(*parts, *_crashes(status), *_failures(status), *_unreadable(status))


def _state(state: str) -> tuple[str, str]:
    """Return the state of a run or of a task as a styled part of a text."""
    return state, _COLOURS.get(state, "yellow")


class _Tasks:
    """A line for each task: what it trains, in columns, or what it waits for, or how it ended."""

    def __init__(self, tasks: Sequence[TaskStatus]) -> None:
        self._tasks = sorted(tasks, key=lambda task: _ORDER[task.state])

    def __rich_console__(self, _: Any, options: ConsoleOptions) -> RenderResult:
        shown, rest = self._tasks[:_TASKS], self._tasks[_TASKS:]
        devices = _devices(shown)
        grid = Table.grid(padding=(0, 2))
        for _ in range(3 + bool(devices)):
            grid.add_column(overflow="fold")  # paths stay whole in a narrow terminal
        names = [f"  {inline(task.label)}" for task in shown]
        left = options.max_width - max(map(len, names)) - max(len(t.state) for t in shown) - 4
        left -= max((2 + len(device) for device in devices), default=0)
        lines = _training_lines([t for t in shown if t.training], left, options.ascii_only)
        if lines:
            grid.add_row("", "", *[""] * bool(devices), text((lines.pop(0), "dim")))
        for name, task in zip(names, shown, strict=True):
            about = lines.pop(0) if task.training else inline(task.summary)
            device = [text(devices.pop(0))] if devices else []
            grid.add_row(text(name), text(_state(task.state)), *device, text(about))
        if rest:
            states = ", ".join(
                f"{n} {state}" for state, n in Counter(t.state for t in rest).items()
            )
            more = counted(len(rest), f"more {_unit(rest)}")
            grid.add_row(f"  ... and {more}", "", text(states))
        yield grid


def _unit(tasks: Sequence[TaskStatus]) -> str:
    """Return what each of them is: a task, or one of the workers of a task."""
    return "worker" if any(task.array_task is not None for task in tasks) else "task"


def _devices(tasks: Sequence[TaskStatus]) -> list[str]:
    """Return the device of each task; none if no two differ."""
    devices = [inline(task.device) for task in tasks]
    return devices if len({*devices} - {""}) > 1 else []


def _training_lines(tasks: Sequence[TaskStatus], width: int, ascii_only: bool) -> list[str]:
    """Return the head of the columns, and a line for each task; none if there are no tasks.

    Args:
        width: the characters of a line.
    """
    if not tasks:
        return []
    columns = list(map(list, zip(_HEAD, *map(_cells, tasks), strict=True)))
    left_out = iter(_LEFT_OUT)
    while _room(columns, width) < _SHORTEST_CURVE and (head := next(left_out, None)):
        columns = [column for column in columns if column[0] != head]
    curve = min(_room(columns, width), _LONGEST_CURVE)
    at = next(i for i, column in enumerate(columns) if not column[0])  # the last loss
    if curve < _SHORTEST_CURVE // 2:
        columns[at][0] = "loss"
        curve = 0
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    if curve:
        losses = [[loss for _, loss in task.losses] for task in tasks]
        curves = ["loss", *(sparkline(one, curve, ascii_only=ascii_only) for one in losses)]
        padded.insert(at, [one.ljust(curve) for one in curves])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _room(columns: Sequence[Sequence[str]], width: int) -> int:
    """Return the characters that columns leave for one more."""
    return width - sum(2 + max(map(len, column)) for column in columns)


#: The columns of a task that trains, besides the curve of its loss.
_HEAD = ("packs", "pack", "", "speed", "matmul", "left")

#: Those that a narrow terminal lacks, in this order.
_LEFT_OUT = ("matmul", "speed", "packs", "left")


def _cells(task: TaskStatus) -> tuple[str, ...]:
    beat = task.heartbeat
    loss, speed, used = beat.get("loss"), beat.get("speed"), beat.get("matmul_utilization")
    return (
        task.packs.replace(" packs", ""),
        f"{100 * pack_share(beat):.0f}%",
        "" if not task.losses else "NaN" if loss is None else f"{loss:.3g}",
        f"{compact(speed)}/s" if speed else "",
        "" if used is None else f"{100 * used:.0f}%",
        "" if task.remaining_seconds is None else duration(task.remaining_seconds),
    )


def _crashes(status: Status) -> list[Text]:
    """Return the last lines of the logs of crashed tasks, each distinct ending once.

    Only of the tasks that are listed: a thousand logs take too long to read.
    """
    endings: dict[str, tuple[str, list[str]]] = {}
    crashed = [task for task in status.tasks if task.state == "crashed"]
    for task in crashed[:_TASKS]:
        if len(endings) < _REASONS and (lines := task.last_lines()):
            endings.setdefault(lines[-1], (task.name, lines))
    return [
        text((f"  the log of {inline(name)} ends:\n", "red"), _indented(lines))
        for name, lines in endings.values()
    ]


def _failures(status: Status) -> list[Text]:
    """Return why configs failed: each reason once, with the place, the most frequent first."""
    groups = status.failure_groups
    shown = []
    for group in groups[:_REASONS]:
        place = [group.place] if group.place else _traceback_end(group.first.traceback)
        reason = str(group).replace("\n", "\n    ")
        shown.append(text(("  failed: ", "red"), reason, *(["\n", _indented(place)] * bool(place))))
    if len(groups) > _REASONS:
        shown.append(
            text(f"  ... and {counted(len(groups) - _REASONS, 'more reason')}; see mlpsubmit logs")
        )
    return shown


def _unreadable(status: Status) -> list[Text]:
    """Return why files of the run cannot be read."""
    problems = status.unreadable
    shown = [text(("  cannot be read: ", "red"), inline(one)) for one in problems[:_REASONS]]
    if len(problems) > _REASONS:
        shown.append(text(f"  ... and {counted(len(problems) - _REASONS, 'more file')}"))
    return shown


def _traceback_end(traceback: str) -> list[str]:
    """Return the last lines of a traceback: of an error of ours, those of its cause, if any."""
    lines = traceback.partition("\n\nThe above exception was")[0].splitlines()
    return [line for line in lines if line.strip(" ^~")][-_TRACEBACK_LINES:]


def _indented(lines: Sequence[str]) -> tuple[str, str]:
    """Return lines of a log or a traceback as a styled part of a text."""
    return "\n".join(f"    {without_styles(line)[:_LINE]}" for line in lines), "dim"


def _retry_failure(status: Status) -> str:
    reason = inline(status.retry_failure)
    if status.later:
        tasks = counted(status.later, "more task")
        return f"the job that should submit {tasks} failed: {reason}"
    return f"the job that should resume the missing configs failed: {reason}"


@contextlib.contextmanager
def status_display(console: Console) -> Iterator[Callable[[Status], None]]:
    """Yield a function that shows a status: in place in a terminal, else as a line now and then."""
    if console.is_terminal and not is_dumb():
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda status: live.update(render(status))
        return
    printed_at, printed = -SAME_SECONDS, (-1, "")

    def show(status: Status) -> None:
        nonlocal printed_at, printed
        news, since = (status.done, status.awaited), time.monotonic() - printed_at
        due = since >= (LINE_SECONDS if news != printed else SAME_SECONDS) or not status.running
        if due and (news != printed or status.running):
            printed_at, printed = time.monotonic(), news
            echo(_line(status), err=console.stderr)

    yield show


def _line(status: Status) -> str:
    """Return the state of a run, and what is waited for, in one line."""
    line = f"{inline(status.name)} {status.state}: {status.summary}"
    return line + (f"  {inline(status.awaited)}" if status.awaited else "")


def follow_or_report(run: Run, following: bool | None, *, submitted: bool = True) -> int:
    """Show a run to its end, or print its status; return the exit code.

    Args:
        following: which of the two; None for the default of the run's executor.
        submitted: whether anything was submitted just now.
    """
    from mlpsubmit.jobs.executors import follows

    status = run.status()
    if not submitted and not status.complete:
        running = f"run {run.id} was already running, with the options of that launch; "
        echo(f"{'' if status.state == 'unknown' else running}nothing new was submitted")
    if following is None:
        following = follows(run.directory)
    return follow(run) if following and status.running else report(status)


def follow(run: Run) -> int:
    """Show a run until it ends, and report how; return the exit code.

    Ctrl-C makes workers on this machine save their state and stop, waits for them, and prints
    how to continue; a second one ends the wait. On a cluster, Ctrl-C only ends the display.
    """
    console = Console()
    resume_collection()  # this may go on for days
    try:
        with status_display(console) as show:
            status = run.wait(show)
    except KeyboardInterrupt:
        return _interrupted(run)
    return report(status, shown=console.is_terminal)


def _interrupted(run: Run) -> int:
    from mlpsubmit.jobs.executors import follows

    if follows(run.directory):
        echo("stopping: workers save their state (Ctrl-C again to stop waiting for them)", err=True)
        return report(cancel_and_wait(run))
    status = run.status()
    if status.state != "running":
        return report(status)
    echo(
        f"the run continues on the cluster; see: mlpsubmit status {run.id}; "
        f"stop it with: mlpsubmit cancel {run.id}"
    )
    return 0


def watch(run: Run) -> Status:
    """Show a run until it ends; Ctrl-C only ends the display."""
    resume_collection()
    with contextlib.suppress(KeyboardInterrupt), status_display(Console()) as show:
        return run.wait(show)
    return run.status()


def unknown_line(status: Status) -> str:
    """Return a line with the reason that it is unknown whether a run is still running."""
    why = next(task.why for task in status.tasks if task.state == "unknown")
    return f"cannot tell whether run {status.run} is still running: {inline(why)}"


def cancel_and_wait(run: Run) -> Status:
    """Tell every task to save its state and stop, and wait until they have."""
    with contextlib.suppress(KeyboardInterrupt):
        run.cancel()
        run.wait()
    return run.status()


def report(status: Status, *, shown: bool = False) -> int:
    """Print the state of a run and what to do next; return the exit code.

    Args:
        shown: whether the whole status has been shown: why packs failed, and how many diverged.
    """
    if status.state == "unknown":
        echo(f"{unknown_line(status)}; see: mlpsubmit status {status.run}")
        return 0 if status.running else 1
    if status.state == "running":
        waiting = sum(task.state == "waiting" for task in status.tasks)
        every = counted(len(status.tasks), _unit(status.tasks))
        queued = f" ({waiting} of {every} queued)" if waiting else ""
        if status.outstanding:
            queued += f"; {inline(status.outstanding)}"
        echo(f"run {status.run} is running{queued}; see: mlpsubmit status {status.run}")
        return 0
    if status.divergence and not shown:
        echo(status.divergence)
    if status.complete:
        done = f"all {status.configs} configs are" if status.configs > 1 else "the config is"
        echo(f"{done} done; next: mlpsubmit collect {status.run}")
        return 0
    console = Console(stderr=True)
    for reason in () if shown else _failures(status):
        console.print(reason, soft_wrap=not console.is_terminal)
    if status.outstanding:
        echo(inline(status.outstanding), err=True)
    if status.retry_failure:
        echo(_retry_failure(status), err=True)
    if status.damage:
        echo(inline(status.damage), err=True)
    left = status.configs - status.done
    echo(
        f"{status.done} of {counted(status.configs, 'config')} done, {left} missing"
        + (f" ({status.failed} failed)" if status.failed else "")
        + f"; continue with: mlpsubmit resume {status.run}",
        err=True,
    )
    if status.failed:
        echo(
            "failed configs will fail again until the spec is fixed; then launch it: finished "
            "results of configs that did not change are reused",
            err=True,
        )
    return 1
