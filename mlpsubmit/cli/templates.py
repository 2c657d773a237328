"""``mlpsubmit templates``: the cluster profiles."""

from __future__ import annotations

import click

from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["templates"]


@click.command()
@click.argument("template", required=False, metavar="[NAME|FILE]")
def templates(template: str | None) -> None:
    """List the cluster profiles, or show one.

    The list contains the packaged profiles and your own. Showing a profile also validates it.
    """
    from mlpsubmit.slurm_templates import find_template

    if template is None:
        _list()
    else:
        found = find_template(template)
        echo(f"# the template {found.name}, from {found.path}")
        echo(found.to_toml(), newline=False)


def _list() -> None:
    """List every template, including those with errors, which must not hide the others."""
    from mlpsubmit.slurm_templates import read_template, template_paths, user_folder

    errors = []
    for name, path in template_paths().items():
        try:
            description = read_template(path).description
        except UserError as error:
            errors.append(str(error))
            description = "(cannot be used: see the error)"
        echo(f"{name:<14} {description}")
        echo(f"{'':<14} {path}")
    echo(f"your own go into {user_folder()}/NAME.toml; to show one: mlpsubmit templates NAME")
    if errors:
        raise UserError("\n".join(errors))
