"""Accept a GPU: everything about mlpsubmit that only a GPU can show, in about six minutes.

    python bench/gpu/accept.py [--only a,d] [--out DIR] [--wheels DIR]

Each part is a process of its own with a time limit, and writes DIR/<part>.json after each of its
cases, so that what was cut off still counts. Printed last is one table for docs/performance.md.

The machine needs Python 3.10 or newer and a CUDA build of torch; packages that it lacks are
installed from the wheels in ``--wheels`` into a temporary folder (bench/gpu/README.md).
Without a GPU all parts run at a toy size on the CPU: a rehearsal, which proves the script and
nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report import Row, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Part:
    """One part of the acceptance.

    Attributes:
        module: its file in this folder.
        seconds: its time limit.
        timed: whether it measures speeds, or fills the device: then nothing runs beside it.
    """

    letter: str
    title: str
    module: str
    seconds: int
    timed: bool = True


#: The most telling first. Those that are not timed run at once, before the others: together they
#: take at most 400 s.
PARTS = (
    Part("a", "the tests marked gpu", "marked_tests", 130, timed=False),
    Part("b", "whole runs, killed and resumed", "interrupted_runs", 130, timed=False),
    Part("g", "precisions", "precisions", 90, timed=False),
    Part("c", "speed of the train loop", "speeds", 75),
    Part("d", "packs side by side", "beside", 30),
    Part("e", "launches and idle time", "launches", 55),
    Part("f", "memory of packs", "memory", 65),
    Part("h", "constants", "constants", 45),
)


def install(wheels: Path, target: Path) -> None:
    """Install wheels without their dependencies, and without a package index."""
    found = sorted(map(str, wheels.glob("*.whl")))
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *found], check=True)


def run(
    parts: Sequence[Part], patience: float, out: Path, environment: dict[str, str]
) -> dict[Part, str]:
    """Run parts at the same time; return how each has ended."""
    begun, running = time.monotonic(), dict[Part, subprocess.Popen[bytes]]()
    for part in parts:
        file = out / f"{part.letter}.json"
        file.unlink(missing_ok=True)  # rows of an earlier acceptance are none of this one
        command = [sys.executable, str(HERE / f"{part.module}.py"), str(file)]
        print(f"\n{part.letter}: {part.title}, at most {patience * part.seconds:.0f} s", flush=True)
        # A session of its own: what it has started ends with it.
        running[part] = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    ended = {}
    for part, process in running.items():
        try:
            code = process.wait(max(0.0, begun + patience * part.seconds - time.monotonic()))
            ended[part] = "complete" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            ended[part] = f"cut off after {patience * part.seconds:.0f} s"
        kill_session(process)
    return ended


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill everything of a process's session that is still alive."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def rows_of(part: Part, out: Path, ended: str) -> list[Row]:
    """Return the rows that a part has written, and one more if it has not reached its end."""
    file = out / f"{part.letter}.json"
    content = json.loads(file.read_text()) if file.exists() else {"complete": False, "rows": []}
    rows = [Row(**row) for row in content["rows"]]
    if not content["complete"] or ended != "complete":
        rows.append(Row(part.letter, part.title, ended, passed=False))
    return rows


def device_line() -> str:
    """Return the card, driver and versions, as seen by a process of its own."""
    code = (
        "import torch, platform, numpy\n"
        "cuda = torch.cuda.is_available()\n"
        "name = torch.cuda.get_device_name() if cuda else 'CPU, a rehearsal: no figure counts'\n"
        "print(f'{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, '"
        "f'numpy {numpy.__version__}, Python {platform.python_version()}')"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    letters = ",".join(sorted(part.letter for part in PARTS))
    parser.add_argument("--only", default=letters, help="parts, such as a,d; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "gpu", help="for the JSON")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="multiplies the time limits, for rehearsals"
    )
    parser.add_argument("--wheels", type=Path, help="wheels of packages that are missing here")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(letters.split(","))):
        parser.error(f"--only: got {', '.join(unknown)}; parts are {letters}")
    if options.wheels and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels: {options.wheels} has no wheels; see bench/gpu/README.md")
    if options.patience <= 0:
        parser.error(f"--patience: got {options.patience:g}; valid are numbers above 0")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        paths = [str(ROOT), str(ROOT / "bench")]
        if options.wheels:
            install(options.wheels, Path(site))
            paths.append(site)
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        device = device_line()
        print(device, flush=True)
        begun, chosen = time.monotonic(), [part for part in PARTS if part.letter in wanted]
        groups = [[part for part in chosen if not part.timed]]
        groups += [[part] for part in chosen if part.timed]
        ended = dict[Part, str]()
        for group in groups:
            ended |= run(group, options.patience, out, environment)
        rows = [row for part in chosen for row in rows_of(part, out, ended[part])]
        total = time.monotonic() - begun
    printed = f"{device}; {total:.0f} s.\n\n{table(rows)}\n"
    (out / "table.md").write_text(printed)
    print(f"\n{printed}")
    return int(any(row.passed is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
