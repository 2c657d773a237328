"""Reproduce the figures of the gallery: train, draw, compare with the papers, write the pages.

    python examples/gallery/run.py                       all figures, into docs/gallery
    python examples/gallery/run.py saxe hea              some of them
    python examples/gallery/run.py saxe SEED=1           with another seed; writes no page
    python examples/gallery/run.py --small --out small   small versions, into another folder

Results of earlier runs are reused, as by `mlpsubmit launch`; --fresh trains everything again. The
exit code is 1 if a claim does not hold, and the last lines say which.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr
from claims import Claim
from matplotlib.figure import Figure
from pages import SPECS, index, names, write_page
from PIL import Image

from mlpsubmit import launch
from mlpsubmit.cli.options import parse_overrides
from mlpsubmit.errors import UserError
from mlpsubmit.spec.load import load_spec

PAGES = Path(__file__).parents[2] / "docs" / "gallery"


def reproduce(
    name: str, out: Path | None, overrides: dict[str, Any] | None = None, **options: Any
) -> list[Claim]:
    """Train one figure's spec, write its picture and its page, and return its claims.

    Args:
        name: of a module of the gallery.
        out: the folder of NAME.md and NAME.png; None to write neither.
        overrides: settings that replace those of the spec.
        options: arguments of :func:`mlpsubmit.launch`.

    Raises:
        UserError: if a config failed.
    """
    module = importlib.import_module(name)
    path = SPECS / f"{name}.py"
    sweep = load_spec(path)
    run = launch(sweep.overridden(overrides) if overrides else sweep, spec=path, **options)
    status = run.wait()
    if without := status.failed + status.missing:
        raise UserError(
            f"{name}: {without} of {status.configs} configs have no result; "
            f"mlpsubmit status {run.path} shows why"
        )
    ds = run.collect()
    claims = module.claims(ds)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        draw(module, ds, out / f"{name}.png")
        write_page(module, ds, claims, out / f"{name}.md")
    return list(claims)


def draw(module: ModuleType, ds: xr.Dataset, path: Path) -> None:
    """Draw the figure of a module: one panel, or as many as its PANELS says."""
    panels = getattr(module, "PANELS", 1)
    figure = Figure(figsize=(5.2 * panels if panels > 1 else 6, 4), layout="constrained")
    axes = figure.subplots(1, panels)
    module.plot(ds, axes)
    full = io.BytesIO()
    figure.savefig(full, dpi=120)
    # A palette makes the file three times smaller.
    Image.open(full).convert("RGB").quantize(256).save(path, optimize=True)


def main() -> int:
    """Do what the command line says, and return the exit code."""
    try:
        failed = reproduce_all()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in failed:
        print(f"does not hold: {line}", file=sys.stderr)
    return 1 if failed else 0


def reproduce_all() -> list[str]:
    """Reproduce the figures that the command line names, and return the claims that do not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="NAME or KEY=VALUE")
    parser.add_argument("--small", action="store_true", help="the versions of make test")
    parser.add_argument("--out", type=Path, help="folder of pages and pictures")
    parser.add_argument("--fresh", action="store_true", help="reuse no results")
    parser.add_argument("--executor", default="local", help="as of mlpsubmit launch")
    parser.add_argument("--runs-dir", type=Path, help="as of mlpsubmit launch")
    parser.add_argument("--index", action="store_true", help="write docs/gallery/README.md alone")
    given = parser.parse_args()
    if given.index:
        (PAGES / "README.md").write_text(index())
        return []
    overrides = parse_overrides(word for word in given.words if "=" in word)
    chosen = [word for word in given.words if "=" not in word] or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    out = given.out or (None if given.small or overrides else PAGES)
    failed: list[str] = []
    for name in chosen:
        small = getattr(importlib.import_module(name), "SMALL", {}) if given.small else {}
        started = time.perf_counter()
        options = {"executor": given.executor, "runs_dir": given.runs_dir, "fresh": given.fresh}
        claims = reproduce(name, out, {**small, **overrides}, **options)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        for claim in claims:
            line = f"{claim.text}: {claim.ours:.4g} ({claim.tolerance}; paper: {claim.paper})"
            print(f"  {'ok    ' if claim.holds else 'FAILED'} {line}", flush=True)
            failed += [] if claim.holds else [f"{name}: {line}"]
    if out == PAGES:
        (PAGES / "README.md").write_text(index())
    return failed


if __name__ == "__main__":
    sys.exit(main())
