"""docs/results.md: its blocks run, on small runs with the axes that they select from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mlpsubmit import Monomial, Sweep, launch
from mlpsubmit.batchfns import polynomial, power_law

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def trained(name, axes, **settings):
    targets = [Monomial({0: 1}), Monomial({0: 1, 1: 1}), Monomial({0: 2})]
    sweep = Sweep(
        name,
        axes={"monomials": targets, "trial": range(2), **axes},
        data=power_law(d=4, alpha=1.0),
        batchfn=polynomial,
        MAX_ITER=3,
        N_SAMPLES=4,
        LOSS_CHECKPOINTS=[0.5],
        **settings,
    )
    return launch(sweep, executor="debug")


@pytest.mark.slow
def test_every_block_runs(workplace, mlpsubmit):
    for name, width in (("narrow", 4), ("wide", 8)):
        trained(name, {}, WIDTH=width)
    run = trained("study", {("WIDTH", "LR"): [(4, 0.1), (8, 0.2)]})
    names = {"run": run, "ds": run.collect()}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 5
    for language, text in blocks:
        if language == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            done = mlpsubmit(*shlex.split(line)[1:])
            assert done.code == 0, done.err
    assert names["both"].status.dims == ("width", "monomials", "trial")
