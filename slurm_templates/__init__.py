"""Cluster profiles: what a cluster's jobs ask for, one TOML file each.

The packaged ones are starting points; a file of the same name in ``~/.config/mlpsubmit/`` takes
the place of one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpsubmit.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Template", "every_template", "user_folder"]


@dataclass(frozen=True)
class Template:
    """One cluster profile."""

    name: str
    path: Path
    description: str
    options: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Template:
        """Read a profile.

        Raises:
            UserError: where the file is no TOML.
        """
        try:
            options = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path}: is not TOML: {error}") from error
        return cls(path.stem, path, str(options.pop("description", "")), options)


def user_folder() -> Path:
    """Return where a user keeps profiles of their own."""
    return Path("~/.config/mlpsubmit").expanduser()


def every_template() -> list[Template]:
    """Return every profile, the user's in place of packaged ones of the same name."""
    packaged = Path(__file__).parent.glob("*.toml")
    own = user_folder().glob("*.toml")
    paths = {path.stem: path for path in [*packaged, *own]}
    return [Template.read(paths[name]) for name in sorted(paths)]
