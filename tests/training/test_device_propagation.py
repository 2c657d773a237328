"""Nothing is mixed between CPU and GPU, and no step waits: all of training on a simulated GPU.

The simulated device (simulated_gpu.py) changes its process for good, so all cases run in processes
of their own. Streams and CUDA graphs are not simulated: tests/training/accel/test_replay.py has a
tape of operations in their place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def test_on_a_gpu_all_of_training_is_as_on_a_cpu() -> None:
    done = subprocess.run(
        [sys.executable, HERE / "gpu_cases.py"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    assert len(reports) > 70
    assert [report["error"] for report in reports.values() if "error" in report] == []
    assert {name: r["differing"] for name, r in reports.items() if r["differing"]} == {}
    assert {name: r["waits"] for name, r in reports.items() if r["waits"]} == {}


#: Per batch of a batch function, what is found; None where nothing is wrong.
BODIES = {
    "X + torch.ones(4)": "tensors on two devices, gpu and cpu",
    "X * float(X.abs().max())": "aten._local_scalar_dense.default at",
    "X + torch.tensor([1.0, 2.0, 3.0, 4.0], device=X.device)": "aten._to_copy.default at",
    "X[torch.arange(8, device=X.device) >= 0]": "aten.index.Tensor at",
    "torch.where(X > 1, 1.0, X[X[:, 0].argsort()]).clamp(max=torch.tensor(1.0))": None,
}
SCRIPT = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
import gpu_cases

found = {}
for body in sys.argv[2:]:
    change = eval(f"lambda X: {body}")

    def batches(bsz, gen, change=change):
        def batch_fn(step):
            X = change(torch.randn(bsz, 4, generator=gen, device=gen.device))
            return X, X[:, 0]
        return batch_fn

    spec = {"axes": {"trial": range(2)}, "batchfn": batches, "N_SAMPLES": 8}
    gpu_cases.SPECS["changed"] = spec
    found[body] = gpu_cases.report("changed")
print(json.dumps(found))
"""


def test_what_mixes_devices_or_waits_is_found() -> None:
    command = [sys.executable, "-c", SCRIPT, HERE, *BODIES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for body, report in json.loads(done.stdout.splitlines()[-1]).items():
        expected = BODIES[body]
        if expected is None:
            assert report == {"differing": [], "waits": []}, body
        else:
            assert expected in json.dumps(report), body
