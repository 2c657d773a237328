"""Make an environment for each other Python on this machine, with all dependencies but torch.

    python tests/pythons/install.py FOLDER

The environment of Python 3.12 is FOLDER/3.12. Without other Pythons this does nothing. A Python for
which pip finds no wheels of a dependency is left out, and the reason is printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

#: Minor versions of Python 3 that the package supports.
SUPPORTED = range(10, 15)

#: What the tests need besides the package's dependencies.
FOR_TESTS = ("pytest", "hypothesis", "packaging", "scikit-learn", "scipy")


def version_of(python: str) -> str:
    """Return the version of an interpreter that can make environments; empty if it cannot."""
    show = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-c", show], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def other_pythons() -> dict[str, str]:
    """Return {version: interpreter} of the supported Pythons on the PATH, or under pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, str] = {}
    for version in (f"3.{minor}" for minor in SUPPORTED if minor != sys.version_info[1]):
        installed = [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
        on_path = shutil.which(f"python{version}")  # of pyenv, this may be a shim that does nothing
        for python in [*([on_path] if on_path else []), *installed]:
            if version not in found and version_of(python) == version:
                found[version] = python
    return found


def install(python: str, folder: Path) -> str:
    """Make one environment: with the pinned versions or, where a pin has no wheel, the latest.

    Returns:
        Why there is none, for example because a dependency has no wheels for a new Python: nothing
        of the project is wrong then.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [name for name in project["dependencies"] if not name.startswith("torch")]
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    pip.append("--disable-pip-version-check")
    latest = [*pip, *needed, *FOR_TESTS]
    oldest = [*pip, "--no-deps", "--target", str(folder / "submitit-oldest"), "submitit==1.5.0"]
    error = _run([python, "-m", "venv", "--clear", str(folder)])
    if not error and _run([*latest, "-c", str(ROOT / "constraints.txt")]):
        error = _run(latest)
    error = error or _run(oldest)
    if error:
        shutil.rmtree(folder, ignore_errors=True)
    return error


def _run(command: list[str]) -> str:
    """Run a command; return the last line of its messages if it fails, else nothing."""
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[-1]


def main(folder: Path) -> None:
    """Make the environments, two at a time, and print for which Pythons there are none."""
    pythons = other_pythons()
    with ThreadPoolExecutor(2) as pool:
        errors = pool.map(lambda version: install(pythons[version], folder / version), pythons)
        found = [f"{v} (left out: {e})" if e else v for v, e in zip(pythons, errors, strict=True)]
    print(f"other Pythons: {', '.join(found) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
