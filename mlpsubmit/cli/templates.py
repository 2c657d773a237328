"""``mlpsubmit templates``: the cluster profiles."""

from __future__ import annotations

import click

from mlpsubmit.errors import UserError

__all__ = ["templates"]


@click.command()
@click.argument("template", required=False, metavar="[NAME|FILE]")
def templates(template: str | None) -> None:
    """List the cluster profiles, or show one.

    That is, those that come with mlpsubmit and your own; one that is shown is also checked.
    """
    if template is None:
        _list()
    else:
        _show(template)


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
        click.echo(f"{name:<14} {description}")
        click.echo(f"{'':<14} {path}")
    click.echo(f"your own go into {user_folder()}/NAME.toml; to show one: mlpsubmit templates NAME")
    if errors:
        raise UserError("\n".join(errors))


def _show(name_or_file: str) -> None:
    from mlpsubmit.slurm_templates import find_template

    template = find_template(name_or_file)
    click.echo(f"# the template {template.name}, from {template.path}")
    click.echo(template.to_toml(), nl=False)
