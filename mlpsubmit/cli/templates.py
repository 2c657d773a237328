"""``mlpsubmit templates``: the cluster profiles."""

from __future__ import annotations

from typing import Any

import click

from mlpsubmit.cli.options import json_option
from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["templates"]


@click.command()
@click.argument("template", required=False, metavar="[NAME|FILE]")
@json_option
def templates(template: str | None, as_json: bool) -> None:
    """List the cluster profiles, or show one.

    The list contains the packaged profiles, your site's and your own; of several of one name, the
    last of these counts. Showing a profile also validates it.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.slurm_templates import find_template

    if template is None:
        _list(as_json)
        return
    found = find_template(template)
    if as_json:
        own = found.to_json()
        names = {"name": own.pop("name"), "file": own.pop("path")}
        echo_json("template/1", {**names, "settings": own})
        return
    echo(f"# the template {found.name}, from {found.path}")
    echo(found.to_toml(), newline=False)


def _list(as_json: bool) -> None:
    """List every template, including those with errors, which must not hide the others."""
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.slurm_templates import (
        SITE_FOLDER,
        SITE_VARIABLE,
        read_template,
        template_paths,
        user_folder,
    )

    listed = []
    for name, (path, *replaced) in template_paths().items():
        own: dict[str, Any] = {"name": name, "file": path, "description": None, "error": None}
        own["replaces"] = replaced
        try:
            own["description"] = read_template(path).description
        except UserError as error:
            own["error"] = str(error)
        listed.append(own)
    errors = [own["error"] for own in listed if own["error"]]
    if as_json:
        echo_json("templates/1", {"folder": user_folder(), "templates": listed})
    else:
        for own in listed:
            unusable = "(cannot be used: see the error)"
            echo(f"{own['name']:<14} {unusable if own['error'] else own['description']}")
            echo(f"{'':<14} {own['file']}")
            for file in own["replaces"]:
                echo(f"{'':<14} instead of {file}")
        echo(f"your own go into {user_folder()}/NAME.toml; to show one: mlpsubmit templates NAME")
        echo(f"a site's are in {SITE_FOLDER}, or in the folders of ${SITE_VARIABLE}")
    if errors:
        raise UserError("\n".join(errors))
