"""``mlpsubmit templates``: the cluster profiles."""

from __future__ import annotations

import click

__all__ = ["templates"]


@click.command()
def templates() -> None:
    """List the cluster profiles that come with mlpsubmit, and your own."""
    from mlpsubmit.slurm_templates import every_template

    for template in every_template():
        click.echo(f"{template.name:<14} {template.description}")
        click.echo(f"{'':<14} {template.path}")
