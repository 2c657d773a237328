"""Part b: the quickstart, and a sweep of each kind, undisturbed and killed and resumed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray
from packs import GPU
from report import Report
from torch import Tensor, nn
from workload import polynomials

from mlpsubmit import Run, Sweep, from_run, launch
from mlpsubmit.batchfns import arrays, epochs

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


class Drawing(Tanh):
    """A custom model with dropout, noise, and statistics of its batches."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__(d_in, width)
        self.dropout, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(d_in, affine=False)
        self.hidden_norm = nn.BatchNorm1d(width)  # with weights it is one of cuDNN

    def forward(self, X: Tensor) -> Tensor:
        noise = 0.1 * torch.randn_like(X) if self.training else 0.0
        hidden = torch.tanh(self.hidden_norm(self.read_in(self.norm(X) + noise)))
        output: Tensor = self.read_out(self.dropout(hidden))
        return output


def signs(bsz: int, gen: torch.Generator) -> Any:
    """Batch function with targets of -1 and 1."""
    draw = polynomials(16, bsz, gen)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X, y = draw(step)
        return X, 2 * (y > 0).to(X.dtype) - 1

    return batch_fn


def rows() -> Any:
    """Return training and test rows with targets of -1 and 1, for minibatches by epoch."""
    X = np.random.default_rng(0).standard_normal((4096, 16)).astype(np.float32)
    y = np.sign(X[:, 0] * (1 + X[:, 1]))
    return arrays(X[:3500], y[:3500], X[3500:], y[3500:])


def penalised(output: Tensor, y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """A callable loss with a penalty on a layer."""
    return (output - y).square().mean() + 1e-3 * params["input_layer.weight"].abs().sum()


def largest(output: Tensor, y: Tensor) -> Tensor:
    """A metric of the user's."""
    return (output - y).abs().amax()


def decaying(step: int) -> float:
    """A callable LR_SCHEDULE."""
    return 1 / (1 + step / 1000)


def mean_output(model: nn.Module, X_tr: Tensor) -> Tensor:
    """A grab."""
    output: Tensor = model(X_tr)
    return output.abs().mean()


def moments(model: nn.Module, X_tr: Tensor) -> dict[str, Tensor]:
    """A grab that returns a dictionary."""
    output: Tensor = model(X_tr)
    return {"mean": output.mean(), "outputs": output[:4].flatten()}


def read_in(model: nn.Module) -> Tensor:
    """A grab of weights."""
    return model.get_parameter("input_layer.weight").detach()


def initial_read_in(model0: nn.Module) -> Tensor:
    """The same of the network at initialisation."""
    return read_in(model0)


TRACES = {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 50, "EVAL_EVERY": 50, "GRAB_EVERY": 500}


@dataclass(frozen=True)
class Kind:
    """A kind of sweep.

    Attributes:
        steps: on a GPU, some seconds of training.
        refusal: where steps are not replayed, by design: a part of the line that says why, or
            nothing where replay is not tried. None where they have to be replayed.
        continued: whether the run is measured, continued and begun from afterwards.
    """

    settings: Mapping[str, Any]
    steps: int
    refusal: str | None = None
    continued: bool = False


#: The longest first.
KINDS: dict[str, Kind] = {
    "weights and states kept": Kind(
        {
            "grabs": {"moments": moments, "read_in": read_in},
            "SAVE_WEIGHTS": "final",
            "KEEP_STATE": True,
        },
        12_000,
        continued=True,
    ),
    "online": Kind({}, 30_000),
    "online, adam, traces and a grab": Kind(
        {"OPTIMIZER": "adam", "LR": 1e-3, "grabs": {"out": mean_output}, **TRACES}, 15_000
    ),
    "offline, tests, thresholds": Kind(
        {"ONLINE": False, "EVAL_EVERY": 10, "LOSS_CHECKPOINTS": [0.5, 1e-7]}, 15_000
    ),
    "COMPILE=False": Kind({"COMPILE": False}, 2_000, refusal=""),
    "steps that cannot be replayed": Kind(
        {"batchfn": using_step}, 3_000, refusal="a batch function uses its step"
    ),
    "custom model, COMPILE=True": Kind({"MODEL": Tanh, "COMPILE": True}, 15_000),
    "one optimizer of torch.optim per config": Kind(
        {"OPTIMIZER": "Adagrad", "LR": 1e-3, "axes": {"trial": range(2)}}, 2_000, refusal=""
    ),
    "bf16, widths side by side": Kind(
        {"PRECISION": "bf16", "axes": {"WIDTH": [16, 32, 64], "trial": range(4)}}, 15_000
    ),
    "muon, huber, cosine with warmup, clipping, a metric at every step": Kind(
        {
            "OPTIMIZER": "muon",
            "LR": 1e-3,
            "LOSS": "huber",
            "LR_SCHEDULE": "cosine",
            "WARMUP_STEPS": 100,
            "GRAD_CLIP_NORM": 0.1,
            "METRICS": ["r2"],
            "METRIC_THRESHOLDS": {"train_r2": [0.1, 0.5]},
            "STOP_ON": None,
        },
        10_000,
    ),
    # The configs of one LR stop, and the stack shrinks.
    "lion, logistic, linear, metrics now and then, STOP_ON": Kind(
        {
            "OPTIMIZER": "lion",
            "axes": {"LR": [1e-9, 1e-3], "trial": range(8)},
            "batchfn": signs,
            "LOSS": "logistic",
            "LR_SCHEDULE": "linear",
            "METRICS": ["accuracy", "margin", {"largest": (largest, "min")}],
            "METRIC_THRESHOLDS": {"train_accuracy": [0.6, 0.7], "test_loss": [0.6]},
            "STOP_ON": "train_accuracy",
            **TRACES,
        },
        15_000,
    ),
    "rmsprop, a loss of parameters, a callable schedule, fp64": Kind(
        {
            "OPTIMIZER": "rmsprop",
            "LR": 1e-3,
            "LOSS": penalised,
            "LR_SCHEDULE": decaying,
            "PRECISION": "fp64",
            "grabs": {"moments": moments},
            **TRACES,
        },
        12_000,
    ),
    "minibatches by epoch, hinge": Kind(
        {
            "batchfn": epochs,
            "data": rows(),
            "LOSS": "hinge",
            "METRICS": ["error"],
            "EVAL_EVERY": 100,
        },
        15_000,
    ),
    "dropout and BatchNorm, mae, weights along the training": Kind(
        {
            "MODEL": Drawing,
            "PARAMETRIZATION": "sp",  # others have no rule for the weights of BatchNorm
            "LOSS": "mae",
            "axes": {"LR": [0.01, 0.02], "trial": range(4)},
            "grabs": {"out": mean_output},
            "SAVE_WEIGHTS": "log:6",
        },
        8_000,
    ),
}
#: Those that a rehearsal on a CPU trains.
REHEARSED = ("weights and states kept", "online, adam, traces and a grab")


def sweep(number: int, **more: Any) -> Sweep:
    """Return a sweep of one kind, with further settings."""
    kind = list(KINDS.values())[number]
    changes = {**kind.settings, **more}
    settings: dict[str, Any] = {
        "axes": {"LR": [0.01, 0.02], "trial": range(8)},
        "batchfn": batches,
        "WIDTH": 64,
        "N_SAMPLES": 128,
        "N_TEST": 512,
        "MAX_ITER": kind.steps if GPU else 1500,
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
    return results_of(run.collect().drop_vars("seconds"))


def results_of(dataset: xarray.Dataset) -> xarray.Dataset:
    """Return a dataset without attributes, which name the run and the functions."""
    return dataset.drop_attrs()


def differing(ours: xarray.Dataset, others: xarray.Dataset) -> list[str]:
    """Return the variables that are not bit-identical."""
    names = sorted({*ours.variables, *others.variables}, key=str)
    both = [name for name in names if name in ours and name in others]
    alone = [str(name) for name in names if name not in both]
    return alone + [str(name) for name in both if not ours[name].identical(others[name])]


def kill_once_saved(run: Run, seconds: float = 120) -> bool:
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


def not_replayed(*runs: Run) -> list[str]:
    """Return why steps were not replayed, from the logs."""
    logs = [path.read_text() for run in runs for path in run.logs().values()]
    lines = "\n".join(logs).splitlines()
    return sorted({line.split(": ", 1)[1] for line in lines if "steps are not replayed" in line})


def started(sweep: Sweep, folder: str) -> Run:
    """Launch a sweep on this machine, as one task."""
    return launch(sweep, executor="local", runs_dir=folder, tasks=1)


def compare(number: int, folder: str, report: Report) -> None:
    """Train one kind undisturbed, and killed and resumed; compare the results bit for bit."""
    name, kind = list(KINDS.items())[number]
    whole, broken = (started(sweep(number), f"{folder}/{each}") for each in ("whole", "broken"))
    shorter: Run | None = None
    if kind.continued:
        steps = whole.directory.sweep["hyperparameters"]["max_iter"] // 2
        shorter = started(sweep(number, MAX_ITER=steps), f"{folder}/continued")
    was_killed = kill_once_saved(broken)
    if was_killed:
        broken.resume()
    states = [run.wait() for run in (whole, broken)]
    if not all(state.complete for state in states):
        errors = [str(f.error).splitlines()[-1] for state in states for f in state.failures]
        report.add(name, f"failed: {errors[:1]}", target="bits equal", passed=False)
        for path in broken.logs().values():
            print(path.read_text()[-3000:], flush=True)
        return
    different = differing(results(whole), results(broken))
    devices = {t.heartbeat["device"] for s in states for t in s.tasks if t.heartbeat}
    how = "killed and resumed" if was_killed else "not caught in time"
    reasons = not_replayed(whole, broken)
    how += f", steps not replayed: {reasons[0]}" if reasons else ""
    equal = "bits equal" if not different else f"differ: {', '.join(different)}"
    report.add(
        name,
        f"{how}, {equal} ({', '.join(sorted(devices))})",
        target="bits equal",
        passed=was_killed and not different and (not GPU or "cpu" not in devices),
        not_replayed=reasons,
    )
    if shorter is not None:
        compare_later(number, whole, shorter, folder, report)


def compare_later(number: int, whole: Run, shorter: Run, folder: str, report: Report) -> None:
    """Continue a shorter run, begin another from the networks of the whole one, measure these."""
    after, source = results(whole), from_run(whole.path)
    begun = started(
        sweep(
            number,
            MAX_ITER=200,
            INIT_WEIGHTS=source,
            grabs={"read_in": initial_read_in},
            KEEP_STATE=False,
        ),
        f"{folder}/begun",
    )
    ended, longer = shorter.wait(), io.StringIO()
    with contextlib.redirect_stdout(longer):
        continued = started(sweep(number), f"{folder}/continued")

    def measure() -> list[str]:
        measured = whole.measure({"moments": moments, "read_in": read_in})
        names = ["moments_mean", "moments_outputs", "read_in"]
        return differing(results_of(measured[names]), after[names])

    def model() -> list[str]:
        at = {"lr": 0.02, "trial": 1}
        weights = read_in(whole.model(**at)).numpy()
        return [] if np.array_equal(weights, after["read_in"].sel(at)) else ["read_in"]

    def continuation() -> list[str]:
        states = [ended, continued.wait()]
        how = "" if " from the states kept by run " in longer.getvalue() else "from scratch"
        how = how if all(state.complete for state in states) else "incomplete"
        return [how] if how else differing(results(continued), after)

    def initial() -> list[str]:
        begun.wait()
        return [] if np.array_equal(results(begun)["read_in"], after["read_in"]) else ["read_in"]

    report_equal("SAVE_WEIGHTS, run.measure", "grabs, and those of the training", measure, report)
    report_equal("SAVE_WEIGHTS, run.model", "weights, and a grab of them", model, report)
    case = "KEEP_STATE, continued to twice the steps"
    report_equal(case, "all results, and those of one long training", continuation, report)
    report_equal("INIT_WEIGHTS=from_run", "model0, and the network of the run", initial, report)


def report_equal(
    case: str, what: str, differences: Callable[[], Sequence[str]], report: Report
) -> None:
    """Add a row that says whether everything has equal bits."""
    try:
        different = differences()
    except Exception as error:  # the other rows count
        different = [f"{type(error).__name__}: {error}"]
    equal = "bits equal" if not different else f"differ: {', '.join(different)}"
    report.add(case, f"{what}: {equal}", target="bits equal", passed=not different)


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


def report_replay(report: Report, found: Mapping[str, Sequence[str]]) -> None:
    """Add a row that says of which kinds the steps were replayed, and whether these should be.

    Args:
        found: per kind, the reasons why steps were not replayed.
    """
    wrong, replayed, others = [], [], []
    for name, reasons in found.items():
        refusal = KINDS[name].refusal
        (replayed if refusal is None and not reasons else others).append(name)
        expected = refusal in reasons[0] if refusal and reasons else bool(reasons) == bool(refusal)
        if not expected:
            wrong.append(f"{name} ({reasons[0] if reasons else 'replayed'})")
    missing = [name for name in KINDS if name not in found]
    measured = f"replayed: {len(replayed)} of {len(KINDS)} kinds; not: {', '.join(others)}"
    measured += f"; NOT AS EXPECTED: {'; '.join(wrong)}" if wrong else ""
    measured += f"; unknown: {', '.join(missing)}" if missing else ""
    report.add(
        "steps replayed",
        measured,
        target="all but those that cannot be",
        passed=not wrong and not missing,
        not_replayed=dict(found),
    )


def main(file: Path) -> None:
    """Compare all kinds at the same time, each in a process: they wait for imports mostly."""
    report = Report("b", file)
    numbers = [i for i, name in enumerate(KINDS) if GPU or name in REHEARSED]
    found: dict[str, Sequence[str]] = {}
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
                own = Path(f"{folder}/{number}.json")
                report.extend(own)
                rows = json.loads(own.read_text())["rows"]
                found |= {
                    row["case"]: row["figures"]["not_replayed"]
                    for row in rows
                    if "not_replayed" in row["figures"]
                }
            time.sleep(0.1)
    if GPU:
        report_replay(report, found)
    report.finish()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        compare(int(sys.argv[2]), f"{sys.argv[3]}/{sys.argv[2]}", Report("b", Path(sys.argv[1])))
