"""To whom files belong, by name."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

__all__ = ["group_name", "owner", "this_user", "user_name"]


def owner(path: Path) -> str | None:
    """Return the name of another user to whom a file belongs; None if it is this user's."""
    uid = path.stat().st_uid
    return None if uid == os.geteuid() else user_name(uid)


def this_user() -> str:
    """Return the name of this user."""
    return user_name(os.geteuid())


def user_name(uid: int) -> str:
    """Return the name of a user; that and the number if there is none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def group_name(gid: int) -> str:
    """Return the name of a group; its number if it has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
