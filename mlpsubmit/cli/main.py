"""The entry point: imports the command, and turns a user's error into one message."""

from __future__ import annotations

import errno
import importlib
import io
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import click

from mlpsubmit.display.output import echo
from mlpsubmit.display.progress import show_cursor_at_end, show_what_is_done
from mlpsubmit.errors import UserError, shown
from mlpsubmit.jobs.garbage import postpone_collection

__all__ = ["cli", "main"]

#: Commands in the order in which they are used. Each is defined in the module of its name, which
#: imports nothing heavy at its top, so that --help answers at once.
COMMANDS = (
    "init",
    "launch",
    "status",
    "collect",
    "plot",
    "report",
    "export",
    "resume",
    "cancel",
    "logs",
    "ls",
    "show",
    "diff",
    "why",
    "verify",
    "prune",
    "templates",
    "doctor",
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mlpsubmit.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlpsubmit")
def cli() -> None:
    """Train sweeps of small neural networks, on this machine or as SLURM job arrays.

    RUN is a path, the name of a sweep (its latest run), the start of a run id, a folder of runs
    (the latest in it), or nothing for the latest run of all.
    """


def _show_once() -> Callable[..., None]:
    """Return a function that shows each warning once, as one line, without its place in the source.

    A launch may train in its own process, where what it warned of comes up again.
    """
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            echo(f"warning: {message}", err=True)

    return show


def _show_traceback(*error: Any) -> None:
    echo("".join(traceback.format_exception(*error)), err=True, newline=False)


def _show_usage(error: click.ClickException) -> None:
    text = io.StringIO()
    error.show(text)  # with arguments as they were given
    echo(text.getvalue(), err=True, newline=False)


def main() -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    warnings.showwarning = _show_once()
    sys.excepthook = _show_traceback
    postpone_collection()
    show_what_is_done()
    show_cursor_at_end()
    try:
        # Not by itself: click would print arguments as they are.
        sys.exit(cli(prog_name="mlpsubmit", standalone_mode=False))
    except click.ClickException as error:
        _show_usage(error)
        sys.exit(error.exit_code)
    except click.Abort:
        echo("Aborted!", err=True)
        sys.exit(1)
    except UserError as error:
        echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that is gone: no traceback needed
        too_long = error.errno == errno.ENAMETOOLONG
        text = f"{error.strerror}: {shown(error.filename)}" if too_long else str(error)
        echo(f"error: {text}", err=True)
        sys.exit(2 if too_long else 1)
