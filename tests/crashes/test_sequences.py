"""Random sequences of commands on a study: with crashes, and with other commands meanwhile."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from commands import Command, Cut, run
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from study import RUNS

from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.locate import all_runs
from mlpsubmit.runs.run import Run

NOISES, SHIFTS = (0.0, 0.5, 1.0), (0.0, 0.25)

#: A launch that trains everything has about so many operations on the disk.
OPERATIONS = 125

operations = st.integers(0, OPERATIONS)
crashes = st.builds(Cut, st.sampled_from(["kill", "power cut"]), operations)


@functools.cache
def expected() -> dict[str, float]:
    """Return the losses of all configs by key, from runs that nothing disturbs."""
    folder = Path(tempfile.mkdtemp(prefix="mlpsubmit-"))
    try:
        (folder / "disk").mkdir()
        for shift in SHIFTS:
            run(folder, Command("launch", NOISES, shift))
        return {k: v for one in all_runs(folder / "disk" / RUNS) for k, v in losses(one).items()}
    finally:
        shutil.rmtree(folder)


def losses(path: Path) -> dict[str, float]:
    """Return the final losses of the finished configs of a run by key, as its dataset has them."""
    one = Run(RunDirectory.open(path))
    dataset = one.collect()
    found = {}
    for pack in one.directory.results.packs():
        for key, index in zip(pack["key"], pack["index"], strict=True):
            point = np.unravel_index(index, dataset.status.shape)
            assert dataset.status.values[point] == "done"
            assert key.decode() not in found, "one run trains nothing twice"
            found[key.decode()] = float(dataset.train_loss.values[point])
    assert (dataset.status == "done").sum() == len(found) == one.status().done
    return found


class Study(RuleBasedStateMachine):
    """A study that is launched, grown, edited, killed, resumed, cancelled and collected."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mlpsubmit-"))
        (self.folder / "disk").mkdir()
        self.noises, self.shift = NOISES[:1], SHIFTS[0]
        #: The keys of the configs whose results were reported to be on the disk.
        self.trained: list[str] = []
        #: By key, the losses that were ever collected.
        self.collected: dict[str, float] = {}

    @rule()
    @precondition(lambda self: len(self.noises) < len(NOISES))
    def grow(self) -> None:
        self.noises = NOISES[: len(self.noises) + 1]

    @rule()
    def edit(self) -> None:
        self.shift = SHIFTS[1 - SHIFTS.index(self.shift)]

    @rule(cut=st.none() | crashes)
    def launch(self, cut: Cut | None) -> None:
        self.run("launch", cut)

    @rule(cut=st.none() | crashes)
    @precondition(lambda self: self.runs())
    def resume(self, cut: Cut | None) -> None:
        self.run("resume", cut)

    @rule(operation=operations, names=st.permutations(["launch", "resume", "cancel"]))
    @precondition(lambda self: self.runs())
    def launch_meanwhile(self, operation: int, names: list[str]) -> None:
        meanwhile = tuple(self.command(name) for name in names)
        self.run("launch", Cut("pause", operation, meanwhile))

    def command(self, name: str) -> Command:
        return Command(name, self.noises, self.shift)

    def run(self, name: str, cut: Cut | None = None) -> None:
        """Run a command; only others at the same time may keep it from its work."""
        ended = run(self.folder, self.command(name), cut)
        for one in ended:
            assert one.error[0] in ("", "BusyError" if len(ended) > 1 else ""), one.error
            # Of a grown study and the one before, each may train the others that were missing when
            # it began; with nothing else at that time, a command trains no config a second time.
            assert len(ended) > 1 or not set(one.trained) & set(self.trained)
            self.trained += one.trained

    def runs(self) -> list[Path]:
        return all_runs(self.folder / "disk" / RUNS)

    @invariant()
    def collect(self) -> None:
        """Check that nothing is lost, and no number is wrong."""
        found = {key: loss for path in self.runs() for key, loss in losses(path).items()}
        assert set(self.trained) <= set(found)
        for key, loss in found.items():
            assert self.collected.setdefault(key, loss) == loss
            assert loss == pytest.approx(expected()[key], rel=1e-5)

    def teardown(self) -> None:
        """Check that two further launches, at most, end with everything done."""
        try:
            self.run("launch")
            path = self.runs()[-1]
            if not Run(RunDirectory.open(path)).status().complete:
                self.run("launch")
            self.collect()
            assert len(losses(path)) == 2 * len(self.noises)
        finally:
            shutil.rmtree(self.folder)


TestStudy = pytest.mark.slow(Study.TestCase)
if settings.get_current_profile_name() != "night":  # Hypothesis has a profile of its own for CI
    TestStudy.settings = settings.get_profile("day")
