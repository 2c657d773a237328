"""Where results come from: versions, command line, and the state of the user's repository."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["origin"]

GIT_SECONDS = 5.0


def origin(spec: Path | None, command: Sequence[str]) -> dict[str, str]:
    """Return what a dataset's attributes say about its origin."""
    folder = (spec.parent if spec else Path.cwd()).resolve()
    entries = {
        "spec": str(spec.resolve()) if spec else "",
        "command": shlex.join(command),
        "mlpsubmit": version("mlpsubmit"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "git_commit": _git(folder, "rev-parse", "HEAD").decode().strip(),
    }
    changes = _git(folder, "diff", "HEAD")
    entries["git_diff_hash"] = hashlib.blake2b(changes).hexdigest()[:16] if changes else ""
    return entries


def _git(folder: Path, *arguments: str) -> bytes:
    """Return what git says about the user's folder; nothing where it is no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
