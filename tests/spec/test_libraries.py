"""Libraries are recognised wherever Python finds them; all else is the user's."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpsubmit import Sweep
from mlpsubmit.spec import libraries
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.spec.load import load_spec, pickle_sweep

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
RECORD = "{0}/__init__.py,,\n{0}/inner.py,,\n"


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Put a package into a folder on ``sys.path``, as if it was there when Python started."""
    known = set(sys.modules)

    def found(name: str, folder: str = "apps", at_start: bool = True) -> Path:
        place = tmp_path / folder
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("")
        (place / name / "inner.py").write_text("def f(x): return x\n")
        monkeypatch.syspath_prepend(place)
        if at_start:
            monkeypatch.setattr(libraries, "_AT_START", libraries._AT_START | {place})
        importlib.invalidate_caches()
        return place

    yield found
    for name in set(sys.modules) - known:
        del sys.modules[name]
    is_library.cache_clear()
    libraries._distributed.cache_clear()
    libraries._has_compiled.cache_clear()


def distributed(place: Path, distribution: str, **files: str) -> None:
    info = place / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.0\n")
    for name, text in files.items():
        (info / {"top_level": "top_level.txt"}.get(name, name)).write_text(text)


@pytest.mark.parametrize(
    "files", [{"RECORD": RECORD.format("pkg_one")}, {"top_level": "other\npkg_one\n"}, {}]
)
@pytest.mark.parametrize("at_start", [True, False])
def test_a_distribution_is_a_library_in_any_folder(found, files, at_start) -> None:
    place = found("pkg_one", at_start=at_start)
    distributed(place, "pkg_one" if not files else "named-otherwise", **files)
    importlib.import_module("pkg_one.inner")
    assert is_library("pkg_one")
    assert is_library("pkg_one.inner")


def test_a_distribution_behind_a_link(found, tmp_path: Path) -> None:
    place = found("pkg_link", "apps")
    (tmp_path / "store").mkdir()
    (place / "pkg_link").rename(tmp_path / "store" / "pkg_link")
    (place / "pkg_link").symlink_to(tmp_path / "store" / "pkg_link")
    distributed(place, "pkg_link")
    importlib.import_module("pkg_link.inner")
    assert is_library("pkg_link.inner")


def test_a_package_with_compiled_parts_on_the_path_of_python(found) -> None:
    place = found("pkg_compiled")
    (place / "pkg_compiled" / f"core{SUFFIX}").touch()
    importlib.import_module("pkg_compiled.inner")
    assert is_library("pkg_compiled.inner")


def test_the_users_own_compiled_parts_make_no_library(found) -> None:
    """In a folder that the spec adds: its Python files are the study's."""
    place = found("pkg_mine", at_start=False)
    (place / "pkg_mine" / f"core{SUFFIX}").touch()
    importlib.import_module("pkg_mine.inner")
    assert not is_library("pkg_mine.inner")


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages", "one-1.0.egg"])
def test_folders_that_hold_libraries(found, folder: str) -> None:
    found(f"pkg_{len(folder)}", f"lib/{folder}", at_start=False)
    importlib.import_module(f"pkg_{len(folder)}.inner")
    assert is_library(f"pkg_{len(folder)}.inner")


def test_plain_files_on_the_path_are_the_users(found) -> None:
    """Also in an editable installation, whose metadata lie elsewhere or end in .egg-info."""
    place = found("pkg_plain")
    (place / "pkg_plain.egg-info").mkdir()
    (place / "pkg_plain.egg-info" / "top_level.txt").write_text("pkg_plain\n")
    importlib.import_module("pkg_plain.inner")
    assert not is_library("pkg_plain")
    assert not is_library("pkg_plain.inner")


@pytest.mark.parametrize("name", ["numpy.linalg", "json", "sys", "mlpsubmit.grabs", "torch.ops"])
def test_modules_of_python_and_of_installed_packages(name: str) -> None:
    assert is_library(name)


def test_torch_is_a_library_even_as_a_source_checkout(found) -> None:
    assert is_library("torch")
    assert is_library("torch.nn.functional")


def test_where_pip_installs_is_no_folder_of_the_user() -> None:
    assert libraries.in_library_folder(Path(sysconfig.get_paths()["purelib"]))
    assert libraries.in_library_folder(Path(sysconfig.get_paths()["stdlib"]))


def test_a_library_that_cannot_be_pickled_by_value_travels_by_name(found, tmp_path: Path) -> None:
    place = found("pkg_held")
    (place / "pkg_held" / "inner.py").write_text(
        "import threading\nlock = threading.Lock()\ndef f(x):\n    with lock:\n        return x\n"
    )
    distributed(place, "pkg_held")
    spec = tmp_path / "spec.py"
    spec.write_text(
        "from mlpsubmit import Sweep\nfrom pkg_held.inner import f\n"
        "def batches(bsz): return lambda step: f(step)\nsweep = Sweep(batchfn=batches)\n"
    )
    sweep = load_spec(spec)
    assert isinstance(sweep, Sweep)
    assert len(pickle_sweep(sweep)) < 5000
