"""What a task has, of a template and of the nodes of its partition."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpsubmit.errors import SpecError
from mlpsubmit.jobs.slurm.arrays import Array
from mlpsubmit.jobs.slurm.nodes import Node
from mlpsubmit.jobs.slurm.script import script
from mlpsubmit.jobs.slurm.task_resources import idle_hint, task_resources
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

GPU_NODES = [
    Node("g1", 64, 512_000, (("a100", 8),), None, exclusive=True),
    Node("g2", 48, 256_000, (("a100", 4),), None, exclusive=True),
    Node("g3", 16, 64_000, (("v100", 2),), None, exclusive=True),
]
CPU_NODES = [Node("c1", 128, 256_000, (), None), Node("c2", 12, 4_000, (), None)]


def template(**keys: object) -> Template:
    return Template.from_table({"whole_node": True, "cpus": 1, **keys}, Path("mine.toml"))


@pytest.mark.parametrize(
    ("keys", "has"),
    [
        ({"gpus": 1}, (1, 1)),
        ({"gpus": 4, "cpus": 16}, (4, 4)),
        ({"gpus": "a100:2", "cpus": 5}, (2, 2)),
        ({"gpus": 4, "workers": 2, "cpus": 16}, (2, 8)),
        ({"gpus": 0, "cpus": 16}, (1, 16)),
        ({"gpus": 0, "cpus": 16, "workers": 5}, (5, 3)),
    ],
)
def test_a_task_that_shares_its_node(keys: dict[str, object], has: tuple[int, int]) -> None:
    asked = template(**{**keys, "whole_node": False})
    task = task_resources(asked, [])
    assert (task.workers, task.threads) == has
    assert task.request == asked


@pytest.mark.parametrize(
    ("nodes", "keys", "has"),
    [
        # GPUs, cores, workers, threads, and what is asked of sbatch: that of the smallest node
        (GPU_NODES, {"gpus": 1}, (2, 16, 2, 8, 2)),
        (GPU_NODES, {"gpus": 3}, (4, 48, 4, 12, 4)),
        (GPU_NODES, {"gpus": "a100:1"}, (4, 48, 4, 12, "a100:4")),
        (GPU_NODES, {"gpus": 1, "cpus": 50}, (8, 64, 8, 8, 8)),
        (GPU_NODES, {"gpus": 1, "mem": "300G"}, (8, 64, 8, 8, 8)),
        (GPU_NODES, {"gpus": 0}, (0, 16, 16, 1, 0)),
        (GPU_NODES, {"gpus": 1, "workers": 1}, (2, 16, 1, 16, 2)),
        (CPU_NODES, {"gpus": 0}, (0, 12, 7, 1, 0)),  # as many as its memory holds
        (CPU_NODES, {"gpus": 0, "cpus": 20}, (0, 128, 16, 8, 0)),
        (CPU_NODES, {"gpus": 0, "workers": 3}, (0, 12, 3, 4, 0)),
        (CPU_NODES, {"gpus": 4}, (4, 12, 4, 3, 4)),  # SLURM does not know them
    ],
)
def test_a_whole_node(nodes: list[Node], keys: dict[str, object], has: tuple[object, ...]) -> None:
    task = task_resources(template(**keys), nodes)
    assert (task.gpus, task.cores, task.workers, task.threads, task.request.gpus) == has
    assert task.request.gpus_on_node == (nodes is CPU_NODES)


@pytest.mark.parametrize(
    ("nodes", "keys", "message"),
    [
        ([], {}, "--whole-node: sinfo lists no nodes of the default partition, whose GPUs and"),
        (GPU_NODES, {"gpus": 9}, "--gpus: got 9; no node has more than 8 GPUs in the default"),
        (CPU_NODES, {"gpus": 0, "cpus": 200}, "--cpus: got 200; no node has more than 128 cores"),
        (GPU_NODES, {"gpus": 1, "workers": 3}, "--workers: got 3; should be at most 2, as each"),
        (CPU_NODES, {"gpus": 0, "workers": 13}, "--workers: got 13; should be at most 12, as each"),
    ],
)
def test_nodes_that_do_not_do(nodes: list[Node], keys: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        task_resources(template(**keys), nodes)
    assert caught.value.errors[0].startswith(message)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"gpus": 2, "workers": 3},
            "workers: got 3; should be at most 2, as each worker",
        ),
        (
            {"gpus": 0, "cpus": 2, "workers": 3},
            "workers: got 3; should be at most 2, as each",
        ),
        ({"whole_node": "yes"}, "whole_node: got 'yes'; should be true or false"),
        (
            {"whole_node": True, "sbatch": {"mem-per-cpu": "1G"}},
            "got whole_node and sbatch.mem-per-cpu: a whole node comes with all of its memory",
        ),
    ],
)
def test_errors_of_a_template(keys: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Template.from_table(keys, Path("mine.toml"))
    assert any(error.startswith(message) for error in caught.value.errors)


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (
            {"gpus": 1},
            "each task gets a whole node, and uses 1 of 2 GPUs; to use them",
        ),
        (
            {"gpus": 0, "cpus": 4},
            "each task gets a whole node, and uses 4 of 16 cores; to use",
        ),
        ({"gpus": 2}, ""),
        ({"gpus": 1, "whole_node": True}, ""),
    ],
)
def test_what_would_be_idle_is_said(keys: dict[str, object], hint: str) -> None:
    asked = template(**{"whole_node": False, **keys})
    assert idle_hint(asked, GPU_NODES).startswith(hint)
    assert bool(idle_hint(asked, GPU_NODES)) == bool(hint)
    assert idle_hint(asked, []) == idle_hint(asked, CPU_NODES) == ""


def test_the_script_of_whole_nodes() -> None:
    task = task_resources(template(gpus=1, mem="1G"), GPU_NODES)
    submission = Submission(Path("/runs/s/r"), "s.r", 0, 2, 8, workers_per_task=2, slices=3)
    assert (submission.workers, submission.all_workers) == (3, 3)
    text = script(task.request, submission, Array("s.r.000", first=0, count=2))
    for line in ("--exclusive", "--mem=0", "--gpus-per-node=2", "--cpus-per-task=16"):
        assert f"#SBATCH {line}\n" in text
    assert " mlpsubmit.jobs.node /runs/s/r 0 '' $((0 + SLURM_ARRAY_TASK_ID))" in text
    unknown = task_resources(template(gpus=4), CPU_NODES)
    assert "gpus" not in script(unknown.request, submission, Array("s.r.000", first=0, count=2))
