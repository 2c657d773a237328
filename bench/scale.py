"""The cost of a sweep before and after its training, against its number of configs.

    python bench/scale.py [--largest N] [--finished N] [--packs N] [--only TEXT] [--save]

Every command is a new process, timed from its start to its end. So are the plan and the part of a
launch before its submission, timed without the start of Python. Peaks are of resident memory.
Results of finished runs are written without training. The growth of a figure is its ratio to that
of a tenth of the configs, both after subtracting the smallest sweep's: about 10 is linear, constant
costs make it less, and clearly more is marked with "!".

The cost per pack is that of N packs of one config each, less that of a tenth of them, divided by
the difference of their numbers. "run" is a whole task in which only the training is left out,
without the time of its flushes to the disk. More than a millisecond is marked with "!".
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import results
from options import only_option, save_option
from processes import Cost, apart, command

SMALLEST = 1000

#: Differences below these are noise, in the units of figures.
NOISE = {"s": 0.3, "MB": 20.0, "kB": 10.0, "ms": 0.1}

#: Files of a launch that could grow with its sweep.
FILES = (
    *("sweep.pkl", "sweep.json", "plan.json"),
    *("submissions/000/intent.json", "submissions/000/array.0.sh"),
)

#: Growth that is clearly more than linear.
SUSPICIOUS = 15.0

#: Milliseconds for each pack that are clearly too many, besides flushes to the disk.
MOST_PER_PACK = 1.0

#: A sweep whose batch function records the time of the first gradient step.
SMALL_SPEC = """
import time
from pathlib import Path

from mlpsubmit import Sweep
from mlpsubmit.batchfns import sparse_parity

def batches(bsz, gen):
    draw = sparse_parity(16, bsz, gen, k=2)
    def batch_fn(step):
        if step == 1:
            Path({clock!r}).write_text(str(time.time()))
        return draw(step)
    return batch_fn

sweep = Sweep("small", {{"trial": range(2)}}, batchfn=batches, WIDTH=64, N_SAMPLES=64, MAX_ITER=50)
"""

SPEC = """
import numpy as np
from mlpsubmit import Sweep
from mlpsubmit.batchfns import sparse_parity

sweep = Sweep(
    {name!r}, {{{axes}, "trial": range({trials})}}, batchfn=sparse_parity, {more},
    d=16, k=2, N_SAMPLES=64, MAX_ITER=50, LOSS_CHECKPOINTS=[0.15, 0.1],
)
"""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        unit: s, MB (2^20 bytes), kB (1000 bytes), or ms for each pack.
    """

    kind: str
    what: str
    configs: int
    value: float
    unit: str

    @property
    def recorded(self) -> results.Figure:
        """The figure as all benchmarks write it."""
        case = f"{self.kind}, {self.configs:,} configs"
        return results.figure(case, self.what, self.unit, self.value)


@dataclass(frozen=True)
class SweepKind:
    """A kind of sweep, of any number of configs through its number of trials.

    Attributes:
        axes: all axes but the trials, as source text.
        points: the number of their points, without excluded ones.
        more: further arguments of the sweep, as source text.
    """

    name: str
    axes: str
    points: int
    more: str

    def spec(self, folder: Path, configs: int, more: int = 0) -> Path:
        """Write the spec of a sweep with a number of configs and ``more`` extra trials."""
        name = f"{self.name}-{configs}"
        path = folder / f"{name}+{more}.py"
        trials = configs // self.points + more
        path.write_text(SPEC.format(name=name, axes=self.axes, trials=trials, more=self.more))
        return path


KINDS = (
    SweepKind(
        "numeric",
        axes='"LR": np.geomspace(1e-3, 1, 10), "GAMMA": np.geomspace(1e-2, 1e2, 20)',
        points=200,
        more="WIDTH=64",
    ),
    SweepKind(
        "widths",
        axes='"WIDTH": [16, 32, 64, 128, 256], "LR": np.geomspace(1e-3, 1, 10)',
        points=40,
        more="where=lambda c: c.width * c.lr <= 16",
    ),
)

#: A sweep with one config in each pack.
ALONE = SweepKind(
    "alone", axes='"LR": np.geomspace(1e-3, 1, 10)', points=10, more="WIDTH=4, PACK_SIZE=1"
)


def planned(spec: Path) -> int:
    """Plan a spec as launch does; return its number of configs."""
    from mlpsubmit.jobs.plan import make_plan
    from mlpsubmit.spec.load import load_spec

    sweep = load_spec(spec)
    return make_plan(sweep, max_tasks=2, threads=1).configs


def created(spec: Path, runs: Path, **options: int) -> Path:
    """Write the files of a launch up to its submission; return the run's folder."""
    from finished import created_run

    return created_run(spec, runs, **options)


def trained(path: Path) -> float:
    """Run the task of a run without the training; return its seconds besides flushes."""
    from finished import trained

    return trained(path)


def finish(spec: Path, path: Path, missing: int) -> None:
    """Write the results of a run."""
    from finished import finish

    finish(spec, path, missing)


class Bench:
    """Measures costs, and prints each figure as soon as it is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: list[Figure] = []

    def record(self, kind: str, what: str, configs: int, cost: Cost) -> None:
        """Record the cost of a process."""
        self._add(Figure(kind, what, configs, cost.seconds, "s"))
        self._add(Figure(kind, f"{what}, peak", configs, cost.peak, "MB"))

    def record_bytes(self, kind: str, what: str, configs: int, count: int) -> None:
        """Record a size in bytes."""
        self._add(Figure(kind, what, configs, count / 1000, "kB"))

    def _add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(
            f"{figure.kind:<10}{figure.what:<34}{figure.configs:>10,}{figure.value:>12,.2f} "
            f"{figure.unit:<3}{self.grown(figure)}",
            flush=True,
        )

    def growth(self, figure: Figure) -> float | None:
        """Return the ratio to the figure of a tenth of the configs, less the smallest sweep's."""
        same = {
            other.configs: other.value
            for other in self.figures
            if (other.kind, other.what) == (figure.kind, figure.what)
        }
        tenth = figure.configs // 10
        if tenth <= SMALLEST:
            return None
        start, noise = same[SMALLEST], NOISE[figure.unit]
        return max(figure.value - start, 0.0) / max(same[tenth] - start, noise)

    def grown(self, figure: Figure) -> str:
        """Return the growth as the table shows it, or whether a cost per pack is too large."""
        if figure.unit == "ms":
            return "  !" * (figure.value > MOST_PER_PACK)
        growth = self.growth(figure)
        if growth is None:
            return ""
        return f"  x{growth:.1f}" + (" !" if growth > SUSPICIOUS else "")

    def start_up(self, repeats: int = 3) -> None:
        """Measure a small local run up to its first step, and commands on a small run."""
        spec, clock = self.folder / "small.py", self.folder / "first-step"
        spec.write_text(SMALL_SPEC.format(clock=str(clock)))
        runs = ("--runs-dir", self.folder / "small")
        launched = time.time()
        command("launch", spec, *runs, "--executor", "local", folder=self.folder)
        seconds = float(clock.read_text()) - launched
        self._add(Figure("small", "launch, to the first step", 2, seconds, "s"))
        for what, line in {
            "--help": ("--help",),
            "status": ("status", *runs),
            "launch --dry-run": ("launch", "--dry-run", "--fresh", spec, *runs),
        }.items():
            costs = [command(*line, folder=self.folder) for _ in range(repeats)]
            self.record("small", what, 2, min(costs, key=lambda cost: cost.seconds))

    def before(self, kind: SweepKind, configs: int) -> Path:
        """Measure everything before training; return the folder of the created run."""
        spec, runs = kind.spec(self.folder, configs), self.folder / f"runs-{configs}"
        count, cost = apart(planned, spec)
        if count != configs:
            raise RuntimeError(f"{spec} has {count} configs")
        self.record(kind.name, "plan", configs, cost)
        cost = command("launch", "--dry-run", spec, "--runs-dir", runs, folder=self.folder)
        self.record(kind.name, "launch --dry-run", configs, cost)
        path: Path
        path, cost = apart(created, spec, runs)
        self.record(kind.name, "launch, to the submission", configs, cost)
        for file in FILES:
            name = file.rpartition("/")[-1]
            self.record_bytes(kind.name, name, configs, (path / file).stat().st_size)
        return path

    def after(self, kind: SweepKind, configs: int, path: Path) -> None:
        """Measure everything after training, on a run with two missing packs."""
        spec, out = kind.spec(self.folder, configs), self.folder / "results.nc"
        apart(finish, spec, path, 2)
        cost = command("status", path, folder=self.folder, fails=True)
        self.record(kind.name, "status", configs, cost)
        cost = command("collect", path, "--out", out, folder=self.folder, fails=True)
        self.record(kind.name, "collect", configs, cost)
        self.record_bytes(kind.name, "collected .nc", configs, out.stat().st_size)

    def again(self, kind: SweepKind, configs: int, path: Path) -> None:
        """Measure a launch of a finished sweep with one more trial, and a resume."""
        more, runs = kind.spec(self.folder, configs, more=1), path.parents[1]
        cost = command("launch", "--dry-run", more, "--runs-dir", runs, folder=self.folder)
        self.record(kind.name, "launch --dry-run, with reuse", configs, cost)
        cost = command("resume", path, "--executor", "local", "--detach", folder=self.folder)
        self.record(kind.name, "resume, to the submission", configs, cost)
        command("cancel", path, folder=self.folder)

    def per_pack(self, packs: int) -> None:
        """Measure what each pack costs, besides its training."""
        few, many = self._of_packs(packs // 10), self._of_packs(packs)
        for what, seconds in many.items():
            cost = (seconds - few[what]) / (packs - packs // 10)
            self._add(Figure(ALONE.name, f"{what}, per pack", packs, 1000 * cost, "ms"))

    def _of_packs(self, packs: int) -> dict[str, float]:
        """Return the seconds of each phase of a sweep with so many packs of one config."""
        spec, runs = ALONE.spec(self.folder, packs), self.folder / f"alone-{packs}"
        _, plan = apart(planned, spec)
        dry = command("launch", "--dry-run", spec, "--runs-dir", runs, folder=self.folder)
        path, launch = apart(partial(created, tasks=1), spec, runs)
        run, _ = apart(trained, path)
        status = command("status", path, folder=self.folder)
        collect = command(
            "collect", path, "--out", self.folder / f"alone-{packs}.nc", folder=self.folder
        )
        more = ALONE.spec(self.folder, packs, more=1)
        reuse = command("launch", "--dry-run", more, "--runs-dir", runs, folder=self.folder)
        return {
            "plan": plan.seconds,
            "launch --dry-run": dry.seconds,
            "launch, to the submission": launch.seconds,
            "run": run,
            "status": status.seconds,
            "collect": collect.seconds,
            "launch --dry-run, with reuse": reuse.seconds,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--largest", type=int, default=10**6, help="configs of the largest sweep")
    parser.add_argument(
        "--finished", type=int, default=10**5, help="configs of the largest finished run"
    )
    parser.add_argument("--packs", type=int, default=10**4, help="packs of one config each")
    only_option(parser, (kind.name for kind in (ALONE, *KINDS)))
    save_option(parser)
    options, recording = parser.parse_args(arguments), results.Recording("scale")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.start_up()
        if options.only in ALONE.name:
            bench.per_pack(options.packs)
        for kind in (kind for kind in KINDS if options.only in kind.name):
            for configs in sizes(options.largest):
                run = bench.before(kind, configs)
                if configs <= options.finished:
                    bench.after(kind, configs, run)
                    if kind is KINDS[0]:  # reuse and resume do not depend on the kind
                        bench.again(kind, configs, run)
    recording.save([one.recorded for one in bench.figures], options.save)


def sizes(largest: int) -> list[int]:
    """Return powers of ten from the smallest sweep to the largest."""
    return [10**power for power in range(round(math.log10(SMALLEST)), len(str(largest)))]


if __name__ == "__main__":
    main()
