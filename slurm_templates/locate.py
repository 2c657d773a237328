"""Templates by name, from the user's folder or the package, or by file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.slurm_templates.template import Template

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["find_template", "read_template", "template_paths", "user_folder"]


def user_folder() -> Path:
    """Return the folder of a user's own templates."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):  # its specification says to ignore a relative one
        config = os.path.expanduser("~/.config")
    return Path(config) / "mlpsubmit"


def template_paths() -> dict[str, Path]:
    """Return the file of each template by name; a user's replaces a packaged one."""
    packaged = Path(__file__).parent.glob("*.toml")
    paths = {path.stem: path for path in [*packaged, *user_folder().glob("*.toml")]}
    return dict(sorted(paths.items()))


def find_template(name_or_file: str | None = None) -> Template:
    """Return the template of a name, or of a file, whose path has a ``/`` or ends with ``.toml``.

    Args:
        name_or_file: None for the template called ``default``.

    Raises:
        UserError: if there is none, or its file cannot be read or is not TOML.
        SpecError: listing every error in it.
    """
    wanted = "default" if name_or_file is None else name_or_file
    paths = template_paths()
    if "/" in wanted or wanted.endswith(".toml"):
        path = Path(os.path.expanduser(wanted)).resolve()
        if not path.exists() and wanted.removesuffix(".toml") in paths:
            name = wanted.removesuffix(".toml")
            raise UserError(f"{path}: no such template file; for the template {name}, write {name}")
        return read_template(path)
    if wanted not in paths:
        raise UserError(
            f"no template is called {wanted!r}{did_you_mean(wanted, paths)}; there are "
            f"{', '.join(paths)}; your own go into {user_folder()}/NAME.toml"
        )
    return read_template(paths[wanted])


def read_template(path: Path) -> Template:
    """Read the template in a file.

    Raises:
        UserError: if the file cannot be read or is not TOML.
        SpecError: listing every error in it.
    """
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such template file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a template should be a TOML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 (at byte {error.start}); save it with that encoding"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not TOML: {error}") from error
    return Template.from_table(table, path)
