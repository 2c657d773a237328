"""Templates by name, from the user's folder, the site's or the package, or by file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlpsubmit.errors import SpecError, UserError, did_you_mean
from mlpsubmit.slurm_templates.template import Template

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "SITE_FOLDER",
    "SITE_VARIABLE",
    "find_template",
    "read_template",
    "template_paths",
    "user_folder",
]

#: The templates of a machine, and a variable that names folders with further ones, like PATH.
SITE_FOLDER = Path("/etc/mlpsubmit")
SITE_VARIABLE = "MLPSUBMIT_TEMPLATES"


def user_folder() -> Path:
    """Return the folder of a user's own templates."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):  # its specification says to ignore a relative one
        config = os.path.expanduser("~/.config")
    return Path(config) / "mlpsubmit"


def template_folders() -> list[Path]:
    """Return the folders of templates, in the order in which a name is looked up.

    The user's own, those in ``$MLPSUBMIT_TEMPLATES``, that of the machine, and the packaged ones.

    Raises:
        SpecError: listing the entries of the variable that are no absolute paths.
    """
    entries = os.environ.get(SITE_VARIABLE, "").split(os.pathsep)
    named = [Path(os.path.expanduser(entry)) for entry in entries if entry]
    if errors := [
        f"${SITE_VARIABLE}: got {str(path)!r}; should be absolute paths of folders, separated by "
        f"{os.pathsep!r}"
        for path in named
        if not path.is_absolute()
    ]:
        raise SpecError(errors)
    return list(dict.fromkeys([user_folder(), *named, SITE_FOLDER, Path(__file__).parent]))


def template_paths() -> dict[str, list[Path]]:
    """Return the files of each template by name: the one that is used, and those that it replaces.

    Raises:
        SpecError: listing every folder that cannot be read, and those in ``$MLPSUBMIT_TEMPLATES``
            that do not exist.
    """
    paths: dict[str, list[Path]] = {}
    errors = []
    for folder in template_folders():
        try:
            files = [path for path in folder.iterdir() if path.suffix == ".toml"]
        except FileNotFoundError:
            # Templates of the site would be missing: another account, another partition.
            if folder not in (user_folder(), SITE_FOLDER):
                errors.append(f"${SITE_VARIABLE}: {folder}: no such folder")
            continue
        except OSError as error:
            errors.append(f"{folder}: its templates cannot be read: {error.strerror}")
            continue
        for path in files:
            paths.setdefault(path.stem, []).append(path)
    if errors:
        raise SpecError(errors)
    return dict(sorted(paths.items()))


def find_template(name_or_file: str | None = None) -> Template:
    """Return the template of a name, or of a file, whose path has a ``/`` or ends with ``.toml``.

    Args:
        name_or_file: None for the template called ``default``.

    Raises:
        UserError: if there is none, or its file cannot be read or is not TOML.
        SpecError: listing every error in it, or every folder of templates that cannot be read.
    """
    wanted = "default" if name_or_file is None else name_or_file
    if "/" in wanted or wanted.endswith(".toml"):
        path, name = Path(os.path.expanduser(wanted)).resolve(), wanted.removesuffix(".toml")
        if not path.exists() and "/" not in wanted and name in template_paths():
            raise UserError(f"{path}: no such template file; for the template {name}, write {name}")
        return read_template(path)
    paths = template_paths()
    if wanted not in paths:
        raise UserError(
            f"no template is called {wanted!r}{did_you_mean(wanted, paths)}; there are "
            f"{', '.join(paths)}; your own go into {user_folder()}/NAME.toml"
        )
    return read_template(paths[wanted][0])


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
