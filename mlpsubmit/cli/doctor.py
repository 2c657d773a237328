"""``mlpsubmit doctor``: check this machine, and the cluster that it belongs to."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import json_option, runs_dir_option
from mlpsubmit.cli.slurm_options import slurm_options, slurm_request
from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable

if TYPE_CHECKING:
    from mlpsubmit.jobs.slurm.probe import Check, CheckResult
    from mlpsubmit.slurm_templates import SlurmRequest

__all__ = ["doctor"]

#: The extras that a user may install, and a module that each brings.
_EXTRAS = {
    "zarr": "zarr",
    "parquet": "pyarrow",
    "images": "sklearn",
    "notebook": "ipykernel",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


@click.command()
@slurm_options
@click.option(
    "--timeout",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="SLURM: how long to wait for a small test job on a node; 0 submits none.",
)
@json_option
@runs_dir_option
def doctor(runs_dir: Path | None, timeout: int, as_json: bool, **where: Any) -> None:
    """Check this machine and its cluster.

    The checks cover Python, torch, GPUs, how a spec is read, the runs folder, the functions in C
    and a tiny training; on a cluster also its partitions, whether it would accept a task, and
    whether its nodes see the runs folder.
    """
    from mlpsubmit.display.json_output import echo_json

    found: list[dict[str, str]] = []
    for name, check in _checks(runs_dir, slurm_request(where), timeout):
        try:
            well, text = check()
        except (SlurmUnavailable, UserError) as error:
            well, text = False, str(error)
        except Exception as error:  # a check that breaks is a finding, not the end of the report
            well, text = False, f"{type(error).__name__}: {error}"
        state = {True: "ok", False: "bad", None: "none"}[well]
        found.append({"name": name, "state": state, "text": text})
        if not as_json:  # at once: some checks take a minute
            _show(found[-1])
    healthy = all(check["state"] != "bad" for check in found)
    if as_json:
        echo_json("doctor/1", {"healthy": healthy, "checks": found})
    sys.exit(0 if healthy else 1)


def _show(check: dict[str, str]) -> None:
    mark = {"ok": "ok", "bad": "BAD", "none": "-"}[check["state"]]
    first, *more = check["text"].splitlines() or [""]
    echo(f"{mark:<4} {check['name']:<12} {first}")
    for line in more:
        echo(f"{'':<17} {line}".rstrip())


def _checks(
    runs_dir: Path | None, slurm: SlurmRequest, timeout: int
) -> Iterator[tuple[str, Check]]:
    from mlpsubmit.jobs.slurm.commands import configured
    from mlpsubmit.jobs.slurm.doctor import cluster_checks

    yield "python", lambda: (True, f"{platform.python_version()} at {sys.executable}")
    yield "mlpsubmit", lambda: (True, metadata.version("mlpsubmit"))
    yield "torch", _torch
    yield "spec", _spec
    yield "cores", _cores
    yield "runs", partial(_runs, runs_dir)
    yield "C functions", _c_functions
    yield "training", _training
    for extra, module in _EXTRAS.items():
        yield extra, partial(_extra, extra, module)
    if configured():
        yield from cluster_checks(slurm, _folders(runs_dir)[1], timeout)
        return
    found = shutil.which("sbatch")
    why = f"{found} finds no cluster configuration" if found else "no sbatch on the PATH"
    yield "slurm", lambda: (None, f"{why}: runs stay on this machine")


def _cores() -> CheckResult:
    """Return the cores of this machine, or of the job that this shell belongs to."""
    from mlpsubmit.jobs.executors.local import usable_cores
    from mlpsubmit.jobs.slurm.allocation import allocation

    own = allocation()
    job = "" if own is None else f", those of job {own.job}"
    return True, f"{usable_cores(own)} usable{job}"


def _torch() -> CheckResult:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(f"{i}: {torch.cuda.get_device_name(i)}" for i in range(count))
    return True, f"{torch.__version__}, GPUs: {names or 'none, trains on the CPU'}"


def _spec() -> CheckResult:
    """Read the starter spec and pickle its sweep, as a launch does."""
    from mlpsubmit.cli.init import starter_spec
    from mlpsubmit.spec.load import load_spec, pickle_sweep

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.py"
        file.write_text(starter_spec())
        sweep = load_spec(file)
        size = len(pickle_sweep(sweep.refreshed()))
    return True, f"a spec of {len(sweep)} configs is read, and sent to workers in {size} bytes"


def _runs(runs_dir: Path | None) -> CheckResult:
    folder, existing = _folders(runs_dir)
    with tempfile.TemporaryFile(dir=existing):
        pass
    free = shutil.disk_usage(existing).free / 1e9
    return free > 1, f"{folder}, {free:.0f} GB free"


def _c_functions() -> CheckResult:
    """Report whether the functions in C are compiled; without them, everything works."""
    from mlpsubmit.native.compiler import report

    works, text = report()
    return works or None, text


def _training() -> CheckResult:
    """Train one tiny network, through the loop that a run uses."""
    import torch

    from mlpsubmit.training import MLP, train

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(16, 4, generator=generator)
    settings = {"width": 8, "max_iter": 20, "online": False, "LOSS_CHECKPOINTS": []}
    trained = train([MLP(4, 8)], [lambda step: (X, X[:, 0])], settings)
    return True, f"20 steps, final loss {trained.train_loss[0]:.3f}"


def _folders(runs_dir: Path | None) -> tuple[Path, Path]:
    """Return the folder of all runs, and the nearest of it and its parents that exists."""
    from mlpsubmit.runs.locate import runs_folder

    folder = runs_folder(runs_dir).resolve()
    return folder, next(path for path in [folder, *folder.parents] if path.exists())


def _extra(extra: str, module: str) -> CheckResult:
    if importlib.util.find_spec(module):
        return True, f"{module} is installed"
    return None, f"{module} is not installed; to install it: pip install 'mlpsubmit[{extra}]'"
