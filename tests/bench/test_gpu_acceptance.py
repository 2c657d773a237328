"""The acceptance of a GPU: rehearsed on the CPU, and cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from mlpsubmit import launch

GPU_BENCH = Path(__file__).parents[2] / "bench" / "gpu"

#: A process that starts another, and never ends.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def accept(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GPU_BENCH))
    return bench("accept")


@pytest.mark.slow
def test_all_parts_rehearse_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, GPU_BENCH / "accept.py", "--only", "b,c,d,e,f,g,h"]
    done = subprocess.run(
        [*command, "--patience", "20", "--out", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in "bcdefgh":
        content = json.loads((tmp_path / f"{part}.json").read_text())
        assert content["complete"]
        assert content["rows"]
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert "killed and resumed, bits equal" in done.stdout
    assert "a rehearsal: no figure counts" in done.stdout


@pytest.fixture
def runs(bench: Callable[[str], ModuleType], accept: ModuleType) -> ModuleType:
    return bench("interrupted_runs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PARAMETRIZATION='mup' with OPTIMIZER=Adagrad")
def test_every_kind_of_sweep_can_be_trained(runs: ModuleType, tmp_path: Path) -> None:
    """A rehearsal trains two of them, and an error in another would show on a GPU alone."""
    for number, name in enumerate(runs.KINDS):
        sweep = runs.sweep(number, MAX_ITER=120, COMPILE=False)
        run = launch(sweep, executor="debug", runs_dir=tmp_path)
        assert run.status().complete, name
    assert {*runs.REHEARSED} < {*runs.KINDS}


def test_a_lost_replay_is_a_failing_row(
    runs: ModuleType, bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    found: dict[str, list[str]] = {name: [] for name in runs.KINDS}
    found["steps that cannot be replayed"] = ["a batch function uses its step"]
    wait = "they wait for the device, in losses.py:1"
    cases = {
        "as expected": (found, True, "11 of 14 kinds; not: COMPILE=False, steps that"),
        "lost": ({**found, "online": [wait]}, False, f"NOT AS EXPECTED: online ({wait})"),
        "not refused": (
            {**found, "steps that cannot be replayed": []},
            False,
            "NOT AS EXPECTED: steps that cannot be replayed (replayed)",
        ),
        "another reason": (
            {**found, "steps that cannot be replayed": [wait]},
            False,
            f"NOT AS EXPECTED: steps that cannot be replayed ({wait})",
        ),
        "cut off": ({"online": []}, False, "unknown: weights and states kept, online, adam"),
    }
    for one, passed, text in cases.values():
        report = bench("report").Report("b", tmp_path / "b.json")
        runs.report_replay(report, one)
        (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
        assert row["passed"] is passed
        assert text in row["measured"]


def test_what_fails_in_a_comparison_is_a_failing_row(
    runs: ModuleType, bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    report = bench("report").Report("b", tmp_path / "b.json")
    runs.report_equal("equal", "weights", list, report)
    runs.report_equal("other", "weights", lambda: ["bias"], report)
    runs.report_equal("raises", "weights", lambda: {}["steps"], report)
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["passed"] for row in rows] == [True, False, False]
    texts = ["bits equal", "differ: bias", "differ: KeyError: 'steps'"]
    assert [row["measured"] for row in rows] == [f"weights: {text}" for text in texts]


@pytest.mark.slow
def test_what_is_cut_off_keeps_its_rows(
    accept: ModuleType,
    bench: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "hanging.py").write_text("import time; time.sleep(600)")
    bench("report").Report("x", tmp_path / "x.json").add(
        "a case", "1.5", target="at least 1", passed=True
    )
    part = accept.Part("x", "hangs", "hanging", 1)
    monkeypatch.setattr(accept, "PARTS", (part,))
    monkeypatch.setattr(accept, "device_line", lambda: "no card")
    monkeypatch.setattr(accept, "run", lambda *_: {part: "cut off after 1 s"})
    assert accept.main(["--out", str(tmp_path)]) == 1
    printed = (tmp_path / "table.md").read_text()
    assert "| x | a case | 1.5 |  | at least 1 | holds |" in printed
    assert "| x | hangs | cut off after 1 s |  |  | **fails** |" in printed
    assert printed in capfd.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(accept, "HERE", tmp_path)
    assert accept.run([part], 1, tmp_path, dict(os.environ)) == {part: "cut off after 1 s"}


@pytest.mark.slow
def test_what_is_cut_off_leaves_no_process(accept: ModuleType) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        child = psutil.Process(int(process.stdout.readline()))
        accept.kill_session(process)
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_rows_of_an_earlier_acceptance_are_not_shown(
    accept: ModuleType,
    bench: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    earlier = bench("report").Report("x", tmp_path / "x.json")
    earlier.add("a case", "1.5", passed=True)
    earlier.finish()
    monkeypatch.setattr(accept, "HERE", tmp_path)
    monkeypatch.setattr(accept, "PARTS", (accept.Part("x", "breaks", "broken", 60),))
    monkeypatch.setattr(accept, "device_line", lambda: "no card")
    assert accept.main(["--out", str(tmp_path)]) == 1
    printed = (tmp_path / "table.md").read_text()
    assert "| x | breaks | ended with exit code 3 |  |  | **fails** |" in printed
    assert "a case" not in printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "a,z"], "--only: got z; parts are a,b,c,d,e,f,g"),
        (["--wheels", "nowhere"], "--wheels: nowhere has no wheels; see bench/gpu/README.md"),
        (["--patience", "0"], "--patience: got 0; valid are numbers above 0"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], text: str, accept: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        accept.main(arguments)
    assert ended.value.code == 2
    assert text in capfd.readouterr().err
