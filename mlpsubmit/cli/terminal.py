"""How a status looks in the terminal: while a run goes on, and at its end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.results.source import Failure
    from mlpsubmit.runs.run import Run

__all__ = ["after_submitting", "follow", "render", "report", "showing", "stop", "unknown", "watch"]

#: Seconds between lines where the output is no terminal.
QUIET_SECONDS = 5.0

_COLOURS = {
    "done": "green",
    "running": "cyan",
    "waiting": "yellow",
    "interrupted": "yellow",
    "stopped": "yellow",
    "unknown": "yellow",
    "failed": "red",
    "crashed": "red",
}
#: Lines of a traceback that say why, in most cases.
_TRACEBACK_LINES = 6
_REASONS = 3

#: Tasks that are listed.
_TASKS = 24

#: Letters of a log's line that are shown: SLURM repeats whole commands.
_LINE = 160
_RANKS = {"crashed": 0, "unknown": 1, "running": 2, "interrupted": 3, "waiting": 4, "done": 5}


def render(status: Status) -> RenderableType:
    """Return the whole status: one line of totals, a bar, a line per task, the failures."""
    head = Text.assemble(
        (status.name, "bold"), f"  {status.run}  ", (status.state, _COLOURS[status.state])
    )
    bar = Table.grid(padding=(0, 1))
    bar.add_row(_bar(status.fraction), status.summary)
    parts: list[RenderableType] = [head, bar]
    if status.tasks:
        parts.append(_tasks(status))
    if status.retry:
        parts.append(Text(f"  a job will resume what is missing: {status.retry}", "yellow"))
    if status.retry_failure:
        parts.append(Text(f"  {_retry_failure(status)}", "red"))
    return Group(*parts, *_crashes(status), *_failures(status))


def _bar(fraction: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=fraction, width=24, finished_style="green")


def _tasks(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(overflow="fold")  # whole paths, also where the terminal is narrow
    # What went wrong first: of a thousand tasks, those are what one looks for.
    ranked = sorted(status.tasks, key=lambda task: _RANKS[task.state])
    for task in ranked[:_TASKS]:
        table.add_row(Text(f"  {task.name}"), Text(task.state, _COLOURS[task.state]), task.summary)
    if len(ranked) > _TASKS:
        rest = Counter(task.state for task in ranked[_TASKS:])
        told = ", ".join(f"{count} {state}" for state, count in rest.items())
        table.add_row(f"  ... and {counted(len(ranked) - _TASKS, 'more task')}", "", told)
    return table


def _crashes(status: Status) -> list[Text]:
    """Return the last lines of the logs of crashed tasks: each different ending once.

    Those of the tasks that are listed: a thousand logs take too long to read.
    """
    endings: dict[str, tuple[str, list[str]]] = {}
    crashed = [task for task in status.tasks if task.state == "crashed"]
    for task in crashed[:_TASKS]:
        if len(endings) < _REASONS and (lines := task.last_lines()):
            endings.setdefault(lines[-1], (task.name, lines))
    return [_ending(name, lines) for name, lines in endings.values()]


def _ending(name: str, lines: Sequence[str]) -> Text:
    last = "\n".join(f"    {line[:_LINE]}" for line in lines)
    return Text.assemble((f"  the log of {name} ends:\n", "red"), (last, "dim"))


def _failures(status: Status) -> list[Text]:
    """Return why packs failed: each different reason once, the commonest first."""
    reasons: dict[str, list[Failure]] = {}
    for failure in status.failures:
        reasons.setdefault(failure.error, []).append(failure)
    ranked = sorted(reasons.values(), key=len, reverse=True)
    shown = [_failure(failures) for failures in ranked[:_REASONS]]
    if len(ranked) > _REASONS:
        shown.append(Text(f"  ... and {len(ranked) - _REASONS} more reasons; see mlpsubmit logs"))
    return shown


def _failure(failures: Sequence[Failure]) -> Text:
    """Return one reason, with the last lines of its traceback; the first failure stands for all."""
    configs = sum(len(failure.indices) for failure in failures)
    lines = failures[0].traceback.rstrip().splitlines()[-_TRACEBACK_LINES:]
    last = "\n".join(f"    {line}" for line in lines)
    return Text.assemble(
        ("  failed: ", "red"),
        f"{failures[0].error} ({counted(configs, 'config')})",
        "\n",
        (last, "dim"),
    )


def _retry_failure(status: Status) -> str:
    return f"the job that was to resume what is missing did not: {status.retry_failure}"


@contextlib.contextmanager
def showing(console: Console) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status: in place on a terminal, else a line now and then."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda status: live.update(render(status))
        return
    shown = {"at": 0.0, "done": -1}

    def line(status: Status) -> None:
        due = time.monotonic() - shown["at"] >= QUIET_SECONDS and status.done != shown["done"]
        if due or (not status.running and status.done != shown["done"]):
            shown.update(at=time.monotonic(), done=status.done)
            console.print(f"{status.name} {status.state}: {status.summary}", soft_wrap=True)

    yield line


def after_submitting(run: Run, follow_it: bool | None, *, submitted: bool = True) -> int:
    """Say how a run stands; before that, show it to its end where that is wanted or the custom.

    Args:
        submitted: whether anything was submitted just now.

    Returns:
        The exit code.
    """
    from mlpsubmit.jobs.executors import follows

    status = run.status()
    if not submitted and not status.complete:
        known = (
            ""
            if status.state == "unknown"
            else f"run {run.id} was running already, with what was asked for then; "
        )
        click.echo(f"{known}nothing new was submitted")
    if follow_it is None:
        follow_it = follows(run.directory)
    return follow(run) if follow_it and status.running else report(status)


def follow(run: Run) -> int:
    """Show a run until no task of it lives, and say how it ended; return the exit code.

    Ctrl-C asks workers on this machine to save and stop, waits for them, and says how to go on; a
    second one leaves them to it. Where the run is on a cluster, Ctrl-C ends the showing alone.
    """
    try:
        with showing(Console()) as show:
            status = run.wait(show)
    except KeyboardInterrupt:
        return _interrupted(run)
    return report(status)


def _interrupted(run: Run) -> int:
    from mlpsubmit.jobs.executors import follows

    if follows(run.directory):
        click.echo(
            "stopping: workers save their state (Ctrl-C again to leave them to it)", err=True
        )
        return report(stop(run))
    status = run.status()
    if status.state != "running":
        return report(status)
    click.echo(
        f"the run goes on, on the cluster; see: mlpsubmit status {run.id}; "
        f"stop it with: mlpsubmit cancel {run.id}"
    )
    return 0


def watch(run: Run) -> Status:
    """Show a run until no task of it lives; Ctrl-C ends the showing alone."""
    with contextlib.suppress(KeyboardInterrupt), showing(Console()) as show:
        return run.wait(show)
    return run.status()


def unknown(status: Status) -> str:
    """Say that a run may still run for all that is known, and why no more is."""
    why = next(task.why for task in status.tasks if task.state == "unknown")
    return f"whether run {status.run} still runs is not known: {why}"


def stop(run: Run) -> Status:
    """Ask every task to save its pack and stop; wait until they have."""
    with contextlib.suppress(KeyboardInterrupt):
        run.cancel()
        run.wait()
    return run.status()


def report(status: Status, command: str = "mlpsubmit") -> int:
    """Say how a run stands or ended, and what to do next; return the exit code."""
    if status.state == "unknown":
        click.echo(f"{unknown(status)}; see: {command} status {status.run}")
        return 0
    if status.state == "running":
        waiting = sum(task.state == "waiting" for task in status.tasks)
        queued = f" ({waiting} of {len(status.tasks)} tasks are queued)" if waiting else ""
        click.echo(f"run {status.run} is running{queued}; see: {command} status {status.run}")
        return 0
    if status.complete:
        click.echo(f"all {status.configs} configs are done; next: {command} collect {status.run}")
        return 0
    for reason in _failures(status):
        Console(stderr=True).print(reason, soft_wrap=True)
    if status.retry_failure:
        click.echo(_retry_failure(status), err=True)
    left = status.configs - status.done
    click.echo(
        f"{status.done} of {status.configs} configs are done, {left} are missing"
        + (f" ({status.failed} failed)" if status.failed else "")
        + f"; go on with: {command} resume {status.run}",
        err=True,
    )
    if status.failed:
        click.echo(
            "what failed fails again until the spec is mended; then launch it: what is done is "
            "taken over",
            err=True,
        )
    return 1
