"""Tasks in a container without SLURM's commands, behind a wrap that is a shell, on a real cluster.

The container program is the script `apptainer` beside this file.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray

import mlpsubmit
from mlpsubmit.jobs.slurm.probe import run_probe
from mlpsubmit.runs.run import Run
from mlpsubmit.slurm_templates import read_template

PACKAGE = str(Path(mlpsubmit.__file__).parents[1].resolve())
SMALL = {"gpus": 0, "cpus": 1, "mem": "600M", "time": "10"}

#: What only a task does: looks for SLURM, and reads a file that is beside neither spec nor run.
INSIDE = """
def products(bsz, gen, X=None, y=None):
    import os, shutil
    if "SLURM_JOB_ID" in os.environ:
        assert shutil.which("scontrol") is None
        assert (Path("TABLES_HERE") / "one.txt").read_text() == os.environ["OF_THE_SITE"]
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside that of the study, with a container program, an image, a wrap and a table."""
    place = tmp_path_factory.mktemp("place")
    for name in ("bin", "tables", "disk"):
        (place / name).mkdir()
    (place / "link").symlink_to("disk")
    (place / "tables" / "one.txt").write_text("1")
    shutil.copy(Path(__file__).parent / "apptainer", place / "bin")
    content = dict.fromkeys((sys.prefix, sys.base_prefix, PACKAGE))
    (place / "study.sif").write_text("".join(f"{folder}\n" for folder in content))
    wrap = place / "bin" / "wrap"
    wrap.write_text('#!/bin/bash\n"$@"\n')  # without exec: the signal would end it
    wrap.chmod(0o755)
    (place / "box.toml").write_text(
        f"""
        setup = ['export PATH="{place}/bin:$PATH" OF_THE_SITE=1']
        container = "study.sif"
        python = "{sys.executable}"
        wrap = "{wrap}"
        """
    )
    return place


def test_an_interrupted_task_goes_on(
    study: Any,
    place: Path,
    training: Callable[[Run], dict[str, Any]],
    results: Callable[[Run], xarray.Dataset],
    undisturbed: xarray.Dataset,
) -> None:
    """Signals reach it through wrap and container, its exit code the script that requeues it."""
    inside = INSIDE.replace("TABLES_HERE", f"{place}/tables")
    text = study.plain_spec.replace("def products(bsz, gen, X=None, y=None):\n", inside[1:])
    study.pace("boxed", 0.02)
    how = {"template": str(place / "box.toml"), "runs_dir": place / "link"}
    run = study.launch("boxed", text=text, **how)
    training(run)
    study.cluster.run("scancel", "--signal=USR2", study.job(run))
    study.pace("boxed", None)
    status = run.wait()
    log = study.log(run)
    assert status.complete, log
    assert "interrupted, its state is saved" in log
    assert "interrupted in the job state RUNNING\n" in log
    assert run.directory.submissions() == [0]
    xarray.testing.assert_identical(results(run), undisturbed)

    within = run.path.relative_to(place / "link")
    binds = {study.folder, place / "disk" / within, place / "link" / within, place / "tables"}
    call, *_ = (place / "bin" / "calls").read_text().splitlines()
    words = call.split()
    assert words[0] == "exec"
    image = words.index(f"{place}/study.sif")
    assert set(words[1:image:2]) == {"--bind"}
    assert (
        binds <= set(map(Path, words[2:image:2])) <= {*binds, Path(PACKAGE), *map(Path, sys.path)}
    )
    assert words[image + 1 : image + 4] == [sys.executable, "-u", "-c"]
    assert run.directory.intent(0)["template"]["container"] == f"{place}/study.sif"


def test_doctor_tries_each_part_in_its_job(study: Any, place: Path, tmp_path: Path) -> None:
    """One job for what works, and one for what does not."""
    box = read_template(place / "box.toml").overridden(**SMALL)
    python = f"their Python: {sys.version.split()[0]} at {sys.executable}"
    well, text = run_probe(tmp_path, box, 30)
    assert well, text
    assert f"\ntasks are run by {place}/bin/wrap\ntasks run in {box.container}\n{python}\n" in text
    gone = box.model_copy(update={"container": f"{place}/gone.sif"})
    well, text = run_probe(tmp_path, gone, 30)
    assert well is False
    assert text.endswith(f"; its log ends:\ncontainer: no {place}/gone.sif on this node")
