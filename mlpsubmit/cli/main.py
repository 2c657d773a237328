"""The entry point: finds the command, and turns a user's error into one message."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TextIO

import click

from mlpsubmit.errors import UserError

__all__ = ["cli", "main"]

#: Commands in the order in which a study uses them. Each lives in the module of its name, which
#: imports nothing heavy at its top, so that --help answers at once.
COMMANDS = (
    "init",
    "launch",
    "status",
    "collect",
    "resume",
    "cancel",
    "logs",
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
    """Sweep small neural networks: one spec in, a job array out, one labelled dataset back."""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as a line of words: where in our code it came up tells a user nothing."""
    click.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        cli(prog_name="mlpsubmit")
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that went away: nothing to look up in our code
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
