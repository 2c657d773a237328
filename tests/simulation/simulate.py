"""Run launch, status, collect, resume, cancel and workers on a simulated cluster.

    python simulate.py --first 0 --count 300        # the schedules of these seeds
    python simulate.py --first 17 --trace           # one of them, and all that happened in it

A schedule is two minutes to some hours of a run in virtual time, with users, node deaths,
preemption, kills, outages, lost answers, a full or failing disk and power cuts. A seed decides all
of it. Whatever happens, nothing that has finished is lost, nothing trains twice at the same time,
the run ends or says why it does not, and its results are those of a training without interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from schedules import Schedule
from seams import patch_product


def main() -> int:
    """Run schedules; print the seeds of those that fail, and why."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--most", type=int, default=5, help="stop after so many failures")
    arguments = parser.parse_args()
    out, began = sys.stdout, time.monotonic()
    patch_product()
    failed, counts = 0, Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.count):
        schedule = Schedule(seed)
        problems = schedule.run()
        counts.update(schedule.counts)
        failed += bool(problems)
        if arguments.trace or problems:
            lines = schedule.world.trace
            print(*(lines if arguments.trace else lines[-40:]), sep="\n", file=out)
        for problem in problems:
            print(f"seed {seed}: {problem}", file=out, flush=True)
        if failed >= arguments.most:
            break
    seconds = time.monotonic() - began
    events = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(
        f"{seed - arguments.first + 1} schedules, {failed} failed, {seconds:.1f} s: {events}",
        file=out,
    )
    if failed:
        print(f"one again: {sys.executable} {sys.argv[0]} --trace --first SEED", file=out)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
