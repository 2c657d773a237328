"""The pages of the gallery: their text, from a module and its results."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import xarray as xr
from claims import Claim

SPECS = Path(__file__).parent

#: Modules of this folder that are no figures.
HARNESS = {"claims", "pages", "run"}

INDEX = """\
# Published figures, reproduced

Which published results does mlpsubmit reproduce? Each of these, by one spec. A page has the paper's
claim, the picture, the paper's number beside ours with the tolerance that fails the run, the cost,
and the spec.

    make science                              # all of them, about 5 minutes on two cores
    python examples/gallery/run.py NAME       # one; NAME.md and NAME.png in docs/gallery

Where a paper gives no number for the setting of the spec, or it could not be read, the form of the
claim is tested (a slope, an order, a limit), and the page says so.

A further figure is a module in [examples/gallery](../../examples/gallery): a docstring with the
paper and its claim, `sweep`, `plot(ds, ax)` for the collected dataset (`PANELS = 2` for two axes),
and `claims(ds)`, a list of `Claim(text, paper, ours, low, high)`. `SMALL`, if it is there, has the
settings of the version in `make test`. `run.py NAME SEED=1` shows how far the numbers depend on the
random draws.

<!-- Written by examples/gallery/run.py; a test compares the two. -->
"""


PAGE = """\
# {title}

{claim}

![{title}]({name}.png)

{table}

{cost}

    mlpsubmit launch examples/gallery/{name}.py --follow
    python examples/gallery/run.py {name}

The second command trains what is missing, draws the figure, and fails if a claim does not hold. The
spec, [examples/gallery/{name}.py](../../examples/gallery/{name}.py):

```python
{source}```
"""


def names() -> list[str]:
    """Return the names of all figures."""
    return sorted({path.stem for path in SPECS.glob("*.py")} - HARNESS)


def title(docstring: str) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    return docstring.split("\n", 1)[0].rstrip(".")


def write_page(module: ModuleType, ds: xr.Dataset, claims: Sequence[Claim], path: Path) -> None:
    """Write the page of one figure.

    Args:
        module: of the gallery.
        ds: its collected results.
        claims: what ``module.claims(ds)`` returned.
        path: NAME.md, beside NAME.png.
    """
    name = path.stem
    docstring = inspect.getdoc(module) or ""
    claim = docstring.split("\n", 1)[1].strip()
    rows = [
        f"| {_cell(c.text)} | {_cell(c.paper)} | {c.ours:.4g} | {_verdict(c)} |" for c in claims
    ]
    table = "\n".join(["| claim | paper | ours | tolerance |", "|---|---|---|---|", *rows])
    path.write_text(
        PAGE.format(
            name=name,
            title=title(docstring),
            claim=_linked(claim),
            table=table,
            cost=cost(ds),
            source=(SPECS / f"{name}.py").read_text(),
        )
    )


def cost(ds: xr.Dataset) -> str:
    """Return a sentence on what the training of a dataset cost."""
    threads = int(str(ds.attrs["threads"]).split(";")[0])
    seconds = float(ds.seconds.sum()) * threads
    steps = float(ds.steps.sum())
    configs = f"{ds.attrs['n_configs']} configs, {_counted(steps)} model-steps"
    return f"Cost: {configs}, {seconds:.0f} core-seconds of training ({ds.attrs['cpu']})."


def index() -> str:
    """Return the text of the index: titles and pictures."""
    parts = [INDEX]
    for name in names():
        docstring = ast.get_docstring(ast.parse((SPECS / f"{name}.py").read_text())) or ""
        heading, body = title(docstring), docstring.split("\n", 1)[1].strip()
        cited = re.match(r".*?arXiv:[\d.]*\d", body, re.S)
        parts.append(f"\n## [{heading}]({name}.md)\n\n{_linked(cited[0] if cited else '')}\n")
        parts.append(f"\n[![{heading}]({name}.png)]({name}.md)\n")
    return "".join(parts)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:([\d.]*\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _counted(number: float) -> str:
    return f"{number / 1e6:.2g} million" if number >= 1e6 else f"{number:,.0f}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _verdict(claim: Claim) -> str:
    return claim.tolerance if claim.holds else f"{claim.tolerance}: **does not hold**"
