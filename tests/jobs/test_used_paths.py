"""The files that a sweep names, wherever it does: in code, arguments, globals, the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpsubmit.jobs.used_paths import used_paths
from mlpsubmit.spec.load import load_spec, pickle_sweep

SPEC = """
import os
from pathlib import Path
import sys
import torch
from functools import partial
from mlpsubmit import Sweep

sys.path.append("lib")
ROOT, UNUSED = Path("HERE/of_global"), "HERE/unused"

def table(name):
    return ROOT / name

def data(folder, other, axis):
    "See HERE/docs."
    open("HERE/in_code"), open(f"HERE/formatted/{folder}"), open(os.environ["OF_STUDY"])
    os.path.expandvars("$OF_STUDY/variable"), Path("~/at_home"), open("../beside"), table("t.npz")
    return {}

def batches(bsz, default="HERE/of_default"):
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

sweep = Sweep("s", {"axis": [Path("HERE/of_axis"), Path("HERE/of_axis") / "two"]}, batchfn=batches,
              data=partial(data, other="HERE/of_partial"), folder="HERE/of_argument", WIDTH=4)
"""


def test_every_path_that_a_sweep_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, study, home = tmp_path / "disk", tmp_path / "study", tmp_path / "home"
    names = ["of_global", "in_code", "formatted", "of_default", "of_axis/two", "of_partial"]
    for name in [*names, "of_argument", "unused", "docs", "of_env/variable"]:
        (here / name).mkdir(parents=True)
    for folder in (study / "lib", home / "at_home", tmp_path / "beside"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OF_STUDY", f"{here}/of_env")
    monkeypatch.chdir(study)
    (study / "spec.py").write_text(SPEC.replace("HERE", str(here)))
    found = used_paths(pickle_sweep(load_spec(study / "spec.py")))
    own = {path for path in found if path.startswith(str(tmp_path))}
    assert own == {
        *(f"{here}/{name}" for name in (*names, "of_axis", "of_argument")),
        *(f"{here}/of_env{name}" for name in ("", "/variable")),
        *map(str, (study, study / "lib", study / "spec.py", home / "at_home", tmp_path / "beside")),
    }
