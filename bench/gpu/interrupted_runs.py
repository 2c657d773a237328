"""Part b: the quickstart, and a sweep of each kind, undisturbed and killed and resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import xarray
from packs import GPU
from report import Report
from torch import Tensor, nn
from workload import polynomials

from mlpsubmit import Run, Sweep, launch

ROOT = Path(__file__).resolve().parents[2]

#: A state is saved about this often, so that a run can be killed between two saves.
MINUTES = 0.01


class Tanh(nn.Module):
    """A custom model."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(d_in, width), nn.Linear(width, 1)

    def forward(self, X: Tensor) -> Tensor:
        output: Tensor = self.read_out(torch.tanh(self.read_in(X)))
        return output


def batches(
    bsz: int, gen: torch.Generator, X: Tensor | None = None, y: Tensor | None = None
) -> Any:
    """Batch function, online and offline."""
    draw = polynomials(16, bsz, gen)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        return draw(step) if X is None or y is None else (X, y)

    return batch_fn


def using_step(bsz: int, gen: torch.Generator) -> Any:
    """Batch function whose targets depend on the step, so that no step can be replayed."""
    draw = polynomials(16, bsz, gen)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X, y = draw(step)
        return X, y * (1 + 0.1 * (step % 2))

    return batch_fn


def mean_output(model: nn.Module, X_tr: Tensor) -> Tensor:
    """A grab."""
    output: Tensor = model(X_tr)
    return output.abs().mean()


TRACES = {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 50, "EVAL_EVERY": 50, "GRAB_EVERY": 500}

#: Per kind the settings, and the steps: some seconds of training.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "online": ({}, 30_000),
    "online, adam, traces and a grab": (
        {"OPTIMIZER": "adam", "LR": 1e-3, "grabs": {"out": mean_output}, **TRACES},
        15_000,
    ),
    "offline, tests, thresholds": (
        {"ONLINE": False, "EVAL_EVERY": 10, "LOSS_CHECKPOINTS": [0.5, 1e-7]},
        15_000,
    ),
    "COMPILE=False": ({"COMPILE": False}, 2_000),
    "steps that cannot be replayed": ({"batchfn": using_step}, 3_000),
    "custom model, COMPILE=True": ({"MODEL": Tanh, "COMPILE": True}, 15_000),
    "one optimizer of torch.optim per config": (
        {"OPTIMIZER": "Adagrad", "LR": 1e-3, "axes": {"trial": range(2)}},
        2_000,
    ),
    "bf16, widths side by side": (
        {"PRECISION": "bf16", "axes": {"WIDTH": [16, 32, 64], "trial": range(4)}},
        15_000,
    ),
}


def sweep(number: int, changes: dict[str, Any], steps: int) -> Sweep:
    """Return a sweep of one kind."""
    settings: dict[str, Any] = {
        "axes": {"LR": [0.01, 0.02], "trial": range(8)},
        "batchfn": batches,
        "WIDTH": 64,
        "N_SAMPLES": 128,
        "N_TEST": 512,
        "MAX_ITER": steps if GPU else 1500,
        "LOSS_CHECKPOINTS": [],
        "CHECKPOINT_MINUTES": MINUTES,
        **changes,
    }
    if "LR" in changes:
        settings["axes"] = {"trial": range(4), **changes.get("axes", {})}
    if "WIDTH" in settings["axes"]:
        del settings["WIDTH"]
    return Sweep(f"kind{number}", **settings)


def results(run: Run) -> xarray.Dataset:
    """Return all that a run measured, without what depends on the clock or the launch."""
    dataset = run.collect().drop_vars("seconds")
    dataset.attrs = {}
    return dataset


def differing(ours: xarray.Dataset, others: xarray.Dataset) -> list[str]:
    """Return the variables that are not bit-identical."""
    names = sorted({*ours.variables, *others.variables}, key=str)
    both = [name for name in names if name in ours and name in others]
    alone = [str(name) for name in names if name not in both]
    return alone + [str(name) for name in both if not ours[name].identical(others[name])]


def kill_once_saved(run: Run, seconds: float = 40) -> bool:
    """Kill the worker of a run once it has saved a state; return whether it was caught."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (status := run.status()).busy:
        beats = [task.heartbeat for task in status.tasks if task.heartbeat]
        if beats and list((run.path / "checkpoints").glob("[!.]*.pt")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(beats[0]["pid"], signal.SIGKILL)
            break
        time.sleep(0.02)
    return run.wait().state == "crashed"


def not_replayed(run: Run) -> list[str]:
    """Return why steps were not replayed, from the logs."""
    lines = "\n".join(path.read_text() for path in run.logs().values()).splitlines()
    return sorted({line.split(": ", 1)[1] for line in lines if "steps are not replayed" in line})


def compare(number: int, folder: str, report: Report) -> None:
    """Train one kind undisturbed, and killed and resumed; compare the results bit for bit."""
    kind, (changes, steps) = list(KINDS.items())[number]
    whole, broken = (
        launch(
            sweep(number, changes, steps), executor="local", runs_dir=f"{folder}/{name}", tasks=1
        )
        for name in ("whole", "broken")
    )
    was_killed = kill_once_saved(broken)
    if was_killed:
        broken.resume()
    states = [run.wait() for run in (whole, broken)]
    if not all(state.complete for state in states):
        errors = [str(f.error).splitlines()[-1] for state in states for f in state.failures]
        report.add(kind, f"failed: {errors[:1]}", target="bits equal", passed=False)
        for path in broken.logs().values():
            print(path.read_text()[-3000:], flush=True)
        return
    different = differing(results(whole), results(broken))
    devices = {t.heartbeat["device"] for s in states for t in s.tasks if t.heartbeat}
    how = "killed and resumed" if was_killed else "not caught in time"
    reasons = not_replayed(broken)
    how += f", steps not replayed: {reasons[0]}" if reasons else ""
    equal = "bits equal" if not different else f"differ: {', '.join(different)}"
    report.add(
        kind,
        f"{how}, {equal} ({', '.join(sorted(devices))})",
        target="bits equal",
        passed=was_killed and not different and (not GPU or "cpu" not in devices),
        not_replayed=reasons,
    )


def quickstart(folder: str, report: Report) -> None:
    """Launch and collect the README's example, as a user does."""
    command = [sys.executable, "-m", "mlpsubmit"]
    begun = time.monotonic()
    codes = [
        subprocess.run(
            [*command, *arguments], cwd=ROOT, env={**os.environ, "MLPSUBMIT_RUNS": folder}
        ).returncode
        for arguments in (
            ["launch", "examples/quickstart.py"],
            ["collect", "quickstart", "--out", f"{folder}/results.nc"],
        )
    ]
    seconds = time.monotonic() - begun
    report.add("quickstart", f"{seconds:.0f} s, exit codes {codes}", passed=codes == [0, 0])


def main(file: Path) -> None:
    """Compare all kinds at the same time, each in a process: they wait for imports mostly."""
    report = Report("b", file)
    numbers = range(len(KINDS)) if GPU else (1, 2)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__]
        processes = {
            number: subprocess.Popen([*command, f"{folder}/{number}.json", str(number), folder])
            for number in numbers
        }
        quickstart(f"{folder}/quickstart", report)
        while processes:
            for number in [n for n, process in processes.items() if process.poll() is not None]:
                del processes[number]
                report.extend(Path(f"{folder}/{number}.json"))
            time.sleep(0.1)
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        compare(int(sys.argv[2]), f"{sys.argv[3]}/{sys.argv[2]}", Report("b", Path(sys.argv[1])))
