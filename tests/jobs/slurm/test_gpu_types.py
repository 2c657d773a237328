"""Which types of GPU a task may get, by what sinfo says, and the memory that is planned for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpsubmit.files import publish_json
from mlpsubmit.jobs.gpu_models import MEMORY, is_of_type, memory_in_name, model_of, smallest_memory
from mlpsubmit.jobs.gpus import ASSUMED_MEMORY
from mlpsubmit.jobs.slurm import gpu_types as types_of
from mlpsubmit.jobs.slurm import nodes as nodes_module
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.constraint import allows
from mlpsubmit.jobs.slurm.gpu_types import gpu_types, recorded_gpus
from mlpsubmit.jobs.slurm.nodes import Node, nodes_of
from mlpsubmit.jobs.store.run_directory import INTENT
from mlpsubmit.slurm_templates import Template

GIB = 1 << 30

#: As sites have it: typed GPUs; untyped ones and a feature; types that NVML has found; MIG.
SINFO = """\
g1|gpu*|64|515000|2-00:00:00|gpu:a100:4(S:0-1)|NO|a100,ib,milan
g2|gpu*|64|515000|2-00:00:00|gpu:a100:4(S:0-1)|NO|a100,ib,milan
g3|gpu*|40|192000|2-00:00:00|gpu:v100:2(S:0)|NO|v100,ib,cascade
g4|gpu*|32|128000|2-00:00:00|(null)|NO|milan
f1|feature|16|128000|infinite|gpu:2|NO|skylake,V100_32GB
f2|feature|16|128000|infinite|gpu:4(S:0-1)|NO|rome,a40
f3|feature|16|128000|infinite|gpu:4|NO|rome
m1|mig|64|515000|1-00:00:00|gpu:nvidia_a100_3g.39gb:2(S:0),gpu:nvidia_a100_1g.5gb:7(S:1)|NO|(null)
w1|whole|16|128000|infinite|(null)|EXCLUSIVE|rome,a40
w2|whole|16|128000|infinite|(null)|EXCLUSIVE|rome
o1|old|8|32000|n/a|gpu:gtx1080ti:4,gpu:big:1|NO|(null)
"""


@pytest.fixture(autouse=True)
def sinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with these nodes."""

    def run(*command: str) -> str:
        if command[:3] == ("scontrol", "show", "hostnames"):
            return {"g[1-2]": "g1\ng2\n", "g3": "g3\n"}[command[3]]
        assert command[0] == "sinfo"
        return SINFO

    monkeypatch.setattr(nodes_module, "run_checked", run)


def found(recorded: Any = None, **keys: Any) -> list[types_of.GpuType]:
    template = Template.from_table({"gpus": 1, "mem": "1G", **keys}, Path("mine.toml"))
    return gpu_types(template, nodes_of(template.partition), recorded or {})


def memories(recorded: Any = None, **keys: Any) -> dict[str, int]:
    return {own.name: own.memory // GIB for own in found(recorded, **keys)}


@pytest.mark.parametrize(
    ("name", "model", "size", "smallest"),
    [
        ("a100", "a100", None, 40),
        ("nvidia_a100-sxm4-80gb", "a100", 80, 40),
        ("a100_80gb_pcie", "a100", 80, 40),
        ("a100-40g", "a100", 40, 40),
        ("a100_3g.20gb", "a100", 20, 40),
        ("1g.10gb", "", 10, None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "a100", 40, 40),
        ("tesla_v100-sxm2-32gb", "v100", 32, 16),
        ("v100s", "v100s", None, 32),
        ("gtx1080ti", "1080ti", None, 11),
        ("NVIDIA GeForce RTX 2080 Ti", "2080ti", None, 11),
        ("quadro_rtx_6000", "6000", None, 24),
        ("NVIDIA RTX 6000 Ada Generation", "6000ada", None, 48),
        ("L40S", "l40s", None, 45),
        ("NVIDIA GH200 480GB", "gh200", None, 96),  # the memory of its CPU is in the name
        ("Tesla T4", "t4", None, 15),
        ("a1000", "", None, None),
        ("big", "", None, None),
        ("", "", None, None),
    ],
)
def test_names_say_models_and_memory(
    name: str, model: str, size: int | None, smallest: int | None
) -> None:
    assert model_of(name) == model
    assert memory_in_name(name) == (None if size is None else size * GIB)
    assert smallest_memory(name) == (None if smallest is None else smallest * GIB)


def test_every_model_is_found_by_its_own_name() -> None:
    assert [model_of(name) for name in MEMORY] == list(MEMORY)


@pytest.mark.parametrize(
    ("device", "gpu_type", "is_it"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100", True),
        ("NVIDIA A100-SXM4-80GB", "a100-40gb", False),
        ("NVIDIA A100-SXM4-80GB", "a100_3g.40gb", False),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "a100", False),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "3g.40gb", True),
        ("Tesla V100-SXM2-16GB", "a100", False),
        ("Tesla V100-SXM2-16GB", "big", False),
    ],
)
def test_a_device_is_of_a_type_as_far_as_names_say(device: str, gpu_type: str, is_it: bool) -> None:
    assert is_of_type(device, gpu_type) == is_it


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ("a", True),
        ("c", False),
        ("a&b", True),
        ("a&c", False),
        ("c|a", True),
        ("[c|d]", False),
        ("(c|a)&b", True),
        ("[(c|a)&(b|d)]", True),
        (" a & b ", True),
        ("a&b|c", None),  # SLURM goes from left to right
        ("[a*2&b*1]", None),
        ("a,b", None),
        ("(a", None),
        ("a&", None),
        ("&a", None),
        ("a)", None),
        ("", None),
    ],
)
def test_constraints_that_are_plain(constraint: str, allowed: bool | None) -> None:
    assert allows(constraint, ("a", "b")) is allowed


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"v100": 16, "a100": 40}),
        ({"gpus": "a100:1"}, {"a100": 40}),
        ({"constraint": "a100"}, {"a100": 40}),
        ({"constraint": "a100|v100"}, {"v100": 16, "a100": 40}),
        ({"constraint": "ib&cascade"}, {"v100": 16}),
        ({"constraint": "[a100*1]"}, {"v100": 16, "a100": 40}),  # who knows
        ({"cpus": 48}, {"a100": 40}),
        ({"mem": "200G"}, {"a100": 40}),
        ({"gpus": 4}, {"a100": 40}),
        ({"sbatch": {"exclude": "g[1-2]"}}, {"v100": 16}),
        ({"sbatch": {"nodelist": "g3"}}, {"v100": 16}),
        ({"partition": "feature"}, {"": 8, "V100_32GB": 32, "a40": 45}),
        ({"partition": "mig"}, {"nvidia_a100_1g.5gb": 5, "nvidia_a100_3g.39gb": 39}),
        ({"partition": "mig", "gpus": "nvidia_a100_3g.39gb:1"}, {"nvidia_a100_3g.39gb": 39}),
        ({"partition": "old"}, {"big": 8, "gtx1080ti": 11}),
        ({"partition": "gpu,feature", "constraint": "a40|a100"}, {"a100": 40, "a40": 45}),
        ({"partition": "whole", "whole_node": True, "mem": None}, {"": 8, "a40": 45}),
        ({"partition": "whole", "whole_node": True, "mem": None, "constraint": "a40"}, {"a40": 45}),
        ({"gpus": "h200:1"}, {"h200": 141}),  # an error elsewhere
    ],
)
def test_the_types_that_a_task_may_get(keys: dict[str, Any], expected: dict[str, int]) -> None:
    assert memories(**keys) == expected
    assert list(memories(**keys)) == list(expected), "the least memory comes first"


def test_without_an_answer_the_name_of_the_type_is_all_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*_: str) -> str:
        raise SlurmUnavailable("sinfo did not answer within 10 s")

    monkeypatch.setattr(nodes_module, "run_checked", silent)
    assert memories(gpus="v100:1") == {"v100": 16}
    assert memories() == {"": ASSUMED_MEMORY // GIB}


def test_what_earlier_tasks_found_comes_first(tmp_path: Path, records: Any) -> None:
    run = records.create(tmp_path / "run")
    run.submission(0).mkdir()
    content = records.intent([[[0, 1]]] * 5, executor="slurm", gpus=True)
    publish_json(run.submission(0) / INTENT, content)
    a100, v100 = "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB"
    beats = [
        {"host": "g1.site.edu", "device": a100, "device_memory": 80 * GIB},
        {"host": "g2", "device": a100, "device_memory": 79 * GIB},
        {"host": "o1", "device": "Odd", "device_memory": 3 * GIB},  # of which type is not known
        {"host": "gone", "device": v100, "device_memory": 31 * GIB},
        {"host": "g3", "device": "cpu"},
    ]
    for number, beat in enumerate(beats):
        publish_json(run.heartbeat(f"000-{number:04d}"), records.beat(**beat))
    recorded = recorded_gpus([run], "mlp")
    assert recorded["g1"] == {a100: 80 * GIB}
    assert memories(recorded) == {"v100": 31, "a100": 79}
    assert memories(recorded, partition="old") == {"big": 8, "gtx1080ti": 11}
    assert recorded_gpus([run], "another cluster") == {}


def test_what_the_dry_run_says() -> None:
    alone = types_of.lines(found(gpus="a100:1"), planned=True)
    assert alone == [
        "GPUs: a100 (40 GiB: the least that is sold under this name, 2 nodes); packs are planned "
        "for that memory"
    ]
    assert types_of.lines(found(gpus="a100:1"), planned=False) == []
    several = types_of.lines(found(), planned=True)
    assert several == [
        "GPUs: tasks may get v100 (16 GiB: the least that is sold under this name, 1 node) or a100 "
        "(40 GiB: the least that is sold under this name, 2 nodes)",
        "packs are planned for v100, with the least memory",
        "on different types, results agree up to rounding only; for one type: --gpus v100:1 or "
        "--gpus a100:1",
    ]
    assert types_of.lines(found(), planned=False) == several[::2]
    by_feature = types_of.lines(found(partition="feature", constraint="skylake|a40"), planned=True)
    assert by_feature[-1].endswith(
        "for one type: --constraint 'V100_32GB&(skylake|a40)' or --constraint 'a40&(skylake|a40)'"
    )
    unknown = types_of.lines(found(partition="feature"), planned=True)
    assert unknown[0].startswith("GPUs: tasks may get an unknown type (8 GiB: assumed, 1 node) or")
    assert unknown[1] == "packs are planned for an unknown type, with the least memory"


@pytest.mark.parametrize(
    ("keys", "device", "error"),
    [
        ({"gpus": "a100:1"}, "", ""),
        ({"gpus": "a100:1"}, "NVIDIA A100-SXM4-40GB", ""),
        ({"partition": "old", "gpus": "big:1"}, "NVIDIA A100-SXM4-40GB", ""),  # not known
        ({}, "", "; choose one type: --gpus v100:1 or --gpus a100:1"),
        (
            {},
            "NVIDIA A100-SXM4-40GB",
            "; the results so far were made on NVIDIA A100-SXM4-40GB; choose one type: "
            "--gpus a100:1",
        ),
        (
            {"gpus": "v100:1"},
            "NVIDIA A100-SXM4-40GB",
            "the results so far were made on NVIDIA A100-SXM4-40GB, and tasks would get v100; give "
            "a --gpus, --constraint or --partition that gets them the same, or leave it out "
            "(--no-same-device)",
        ),
    ],
)
def test_why_tasks_would_not_get_one_type(keys: dict[str, Any], device: str, error: str) -> None:
    told = types_of.error(found(**keys), device)
    assert told.endswith(error)
    assert bool(told) == bool(error)


def test_a_node_without_gpus_has_no_type() -> None:
    assert Node("g4", 1, 1, (), None, ("a100",)).gpu_types == ()
