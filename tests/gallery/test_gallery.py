"""The figures of the gallery: their specs are short, their pages current, their claims hold."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "examples" / "gallery"
PAGES = ROOT / "docs" / "gallery"
NAMES = sorted({path.stem for path in SPECS.glob("*.py")} - {"claims", "pages", "run"})
SMALL = [name for name in NAMES if "\nSMALL = " in (SPECS / f"{name}.py").read_text()]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module run.py; it and those that it imports are forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(SPECS)
    yield importlib.import_module("run")
    for name in set(sys.modules) - known:
        if str(SPECS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def code_lines(name: str) -> int:
    """Count the lines of spec and plot: not blank, and not of docstring, claims or SMALL."""
    source = (SPECS / f"{name}.py").read_text()
    left_out = set[int]()
    for node in ast.parse(source).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_claims = isinstance(node, ast.FunctionDef) and node.name == "claims"
        is_small = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SMALL"
        if is_docstring or is_claims or is_small:
            left_out.update(range(node.lineno, (node.end_lineno or 0) + 1))
    numbered = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and number not in left_out for number, line in numbered)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_a_short_spec_with_a_page_and_a_picture(name: str) -> None:
    source, page = (SPECS / f"{name}.py").read_text(), (PAGES / f"{name}.md").read_text()
    assert code_lines(name) < 60
    assert f'name="{name}"' in source
    assert page.endswith(f"```python\n{source}```\n"), f"run examples/gallery/run.py {name}"
    assert f"]({name}.png)" in page
    assert "**does not hold**" not in page
    picture = PAGES / f"{name}.png"
    assert picture.stat().st_size < 80_000
    with Image.open(picture) as image:
        assert image.width >= 600
        assert image.height >= 400


def test_the_index_is_that_of_the_figures(harness: ModuleType) -> None:
    assert harness.names() == NAMES
    assert len(SMALL) >= 5
    # python examples/gallery/run.py --index
    assert (PAGES / "README.md").read_text() == harness.index()
    assert {path.stem for path in PAGES.glob("*.png")} == set(NAMES)


def test_a_claim_that_does_not_hold_fails_the_run(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = importlib.import_module("claims").Claim
    measured = [claim("slope", "2", 2.1, 1.8, 2.2), claim("ratio", "about 1", float("nan"), 0.5)]
    assert [one.holds for one in measured] == [True, False]
    assert [one.tolerance for one in measured] == ["1.8 to 2.2", "at least 0.5"]
    assert claim("error", "0", 0.1, high=0.2).tolerance == "at most 0.2"
    monkeypatch.setattr(harness, "reproduce", lambda *_, **__: measured)
    monkeypatch.setattr(sys, "argv", ["run.py", "saxe", "SEED=1"])
    assert harness.main() == 1
    out, err = capsys.readouterr()
    assert "ok     slope: 2.1 (1.8 to 2.2; paper: 2)" in out
    assert err == "does not hold: saxe: ratio: nan (at least 0.5; paper: about 1)\n"
    measured.pop()
    assert harness.main() == 0
    monkeypatch.setattr(sys, "argv", ["run.py", "sax"])
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == 2
    assert f"no figure sax; there are {', '.join(NAMES)}" in capsys.readouterr().err


def test_a_run_that_fails_is_one_message(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "saxe", "NO_SETTING=1"])
    assert harness.main() == 2
    assert capsys.readouterr().err.startswith("error: NO_SETTING: neither a hyperparameter nor")
    status = SimpleNamespace(failed=1, missing=2, configs=9)
    run = SimpleNamespace(wait=lambda: status, path="mlpruns/saxe/1")
    monkeypatch.setattr(harness, "launch", lambda *_, **__: run)
    monkeypatch.setattr(sys, "argv", ["run.py", "saxe"])
    assert harness.main() == 2
    message = "saxe: 3 of 9 configs have no result; mlpsubmit status mlpruns/saxe/1 shows why"
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_claims_hold_for_the_small_version(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SPECS / "run.py"), name, "--small", "--executor", "debug"]
    command += ["--out", str(tmp_path / "pages"), "--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{name}: " in done.stdout
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {f"{name}.md", f"{name}.png"}
