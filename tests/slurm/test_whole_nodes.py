"""Tasks with several workers: on the cores of a whole node, and on several GPUs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray

from mlpsubmit import launch
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GUIDE = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
#: The template of the guide, on the nodes of this cluster.
BLOCK = GUIDE.partition("**... gives whole nodes")[2].partition("```toml\n")[2].partition("```")[0]
WHOLE = {**tomllib.loads(BLOCK), "partition": "whole"}
CORES = {**WHOLE, "gpus": 0}


def spec(text: str) -> str:
    """Six configs, each a pack of its own, so that the plan of any number of workers is one."""
    return text.replace("[0.5, 1]", "[0.5, 1, 2]").replace("MAX_ITER", "PACK_SIZE=1, MAX_ITER")


def trained_here(study: Any, text: str) -> Run:
    """Train the same by the local executor, on one core."""
    cores = os.sched_getaffinity(0)
    path = study.spec("here", text)
    try:
        os.sched_setaffinity(0, {min(cores)})
        run = launch(load_spec(path), spec=path, executor="local", runs_dir=study.folder / "runs")
    finally:
        os.sched_setaffinity(0, cores)
    assert run.wait().complete
    return run


def test_the_workers_of_a_node_are_interrupted_together_and_killed_alone(
    study: Any, wait_for: Any, slurm_text: str, results: Callable[[Run], xarray.Dataset]
) -> None:
    text = spec(slurm_text)
    study.pace("whole", 0.02)
    run = study.launch("whole", text=text, slurm={**CORES, "workers": 3})
    names = ["000-0000", "000-0001", "000-0002"]

    def beats() -> dict[str, Any]:
        return {name: run.directory.last_heartbeat(name) or {} for name in names}

    def states() -> list[str]:
        return [task.state for task in run.status().tasks]

    wait_for(lambda: all(beat.get("step", 0) > 0 for beat in beats().values()))
    assert len({beat["pid"] for beat in beats().values()}) == 3
    os.kill(beats()["000-0001"]["pid"], signal.SIGKILL)
    wait_for(lambda: states() == ["running", "crashed", "running"])
    assert run.status().tasks[1].why == "its process was killed by SIGKILL (usually out of memory)"
    shown = json.loads(study.cli("status", "whole", "--json").stdout)
    job = f"{study.job(run)}_0"
    assert [(task["array_task"], task["job"]) for task in shown["tasks"]] == [(0, job)] * 3
    assert "000-0001 of task 0  crashed" in study.cli("status", "whole").stdout

    study.cluster.run("scancel", "--signal=USR2", study.job(run))
    wait_for(lambda: states() == ["waiting", "crashed", "waiting"])
    study.pace("whole", None)
    assert run.wait().complete, study.log(run)
    assert states() == ["done"] * 3
    assert run.directory.submissions() == [0]
    log = study.cli("logs", "whole", job).stdout
    assert (log.count("requeued"), log.count("worker 000-0001 was killed by SIGKILL")) == (1, 1)
    assert "interrupted, its state is saved" in study.cli("logs", "whole", "2").stdout
    trained = sorted(member.name for member in run.directory.results.members())
    assert trained == [f"{pack:07d}.npz" for pack in range(6)], "each pack exactly once"
    xarray.testing.assert_identical(results(run), results(trained_here(study, text)))


def test_each_worker_has_a_gpu_of_its_own(study: Any, wait_for: Any, slurm_text: str) -> None:
    """The cluster's GPUs are none that torch could see: each worker says which it was given."""
    text = spec(slurm_text)
    asked = {
        "pair": {"gpus": 2, "mem": "2G"},
        "node": WHOLE,
        "unknown": {"partition": "preempt", "whole_node": True, "gpus": 2},
    }
    runs = {name: study.launch(name, text=text, slurm=keys) for name, keys in asked.items()}
    ended = {name: run.wait().tasks for name, run in runs.items()}
    for name in ("pair", "node"):
        assert [task.state for task in ended[name]] == ["crashed", "crashed"]
        for index, task in enumerate(ended[name]):
            assert f"CUDA_VISIBLE_DEVICES is '{index}'" in task.why
    script = (runs["node"].directory.submission(0) / "array.0.sh").read_text()
    for line in ("--exclusive", "--gpus-per-node=2", "--cpus-per-task=8", "--mem=0"):
        assert f"#SBATCH {line}\n" in script
    for task in ended["unknown"]:
        assert task.why.startswith(
            "no GPU is left for this worker: its task needs 2, and n3 has 0 for it"
        )
    # Any other number of workers trains what is missing.
    runs["pair"].resume(slurm={"gpus": 0, "cpus": 3, "workers": 3, "mem": "2G"})
    assert runs["pair"].wait().complete
    assert len(runs["pair"].status().tasks) == 3
