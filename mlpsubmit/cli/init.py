"""``mlpsubmit init``: a spec to start from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["init", "starter_spec"]


def starter_spec() -> str:
    """Return the text of the starter spec."""
    return resources.files("mlpsubmit.cli").joinpath("starter_spec.py.txt").read_text()


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("spec.py"))
def init(path: Path) -> None:
    """Write a starter spec to PATH (default: spec.py).

    It can be launched as it is.
    """
    if path.is_dir() or not path.name:
        raise UserError(f"{path}: is a folder; try {path / 'spec.py'}")
    if path.suffix != ".py":
        raise UserError(f"{path}: a spec is a .py file; try {path.with_suffix('.py')}")
    text, created = starter_spec(), False
    try:
        with path.open("x") as file:
            created = True
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: exists already; give another path") from None
    except OSError as error:
        if created:  # the disk is full
            path.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    echo(f"wrote {path}; next: mlpsubmit launch {path}")
