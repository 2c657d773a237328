"""What a spec sets in its process holds on a cluster as in local workers and with debug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SPEC = Path(__file__).parents[1] / "specs" / "process_settings.py"


def test_all_executors_give_the_same_bits(study: Any, results: Any) -> None:
    (study.folder / "tables").mkdir()
    (study.folder / "lib").mkdir()
    np.save(study.folder / "tables" / "offset.npy", np.full(3, 0.125))
    (study.folder / "lib" / "targets_of_study.py").write_text("def target(X): return X[:, 0]\n")
    path = study.spec("settings", SPEC.read_text())
    found = {}
    resources = ("--gpus", 0, "--cpus", 1, "--mem", "600M", "--time", "00:10:00")
    for executor, options in {"slurm": resources, "local": (), "debug": ()}.items():
        asked = ("--executor", executor, "--tasks", 1, *options, "--fresh", "--follow")
        done = study.cli("launch", path, *asked, STUDY_REMOVED="x")
        assert done.returncode == 0, done.stdout + done.stderr
        found[executor] = results(study.open("settings"))
        folder = study.open("settings").path
        scripts = [file.read_text() for file in folder.rglob("*.sh")]
        assert not any("STUDY" in script for script in scripts)
    assert (found["slurm"].facts == 1).all()
    assert found["slurm"].identical(found["local"])
    assert found["slurm"].identical(found["debug"])
