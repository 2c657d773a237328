"""Why configs have no result: errors in words, with the lines of the user's code alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mlpsubmit import Sweep, launch
from mlpsubmit.batchfns import sample
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.runs.run import Run
from mlpsubmit.training import BatchError


def batches(bsz: int, gen: torch.Generator, A: Any = None) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0]

    return batch_fn


def launched(folder: Path, **settings: Any) -> Run:
    fixed = {"WIDTH": 4, "N_SAMPLES": 6, "MAX_ITER": 3, "LOSS_CHECKPOINTS": [], "batchfn": batches}
    sweep = Sweep("failing", **{**fixed, **settings})
    return launch(sweep, executor="debug", runs_dir=folder, keep_going=True)


def failure_of(run: Run) -> Any:
    (failure,) = run.status().failures
    return failure


def test_a_traceback_has_the_lines_of_the_user_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def shares(shift: Any) -> float:
        return 1 / shift

    run = launched(tmp_path, data=lambda gen: {"shift": 0}, grabs={"s": shares})
    error = "GrabError: grab 's' of model 0 at step 2 failed: ZeroDivisionError: division by zero"
    shown = capfd.readouterr().out
    traceback = shown[shown.index("Traceback") :].splitlines()
    assert traceback[1].startswith(f'  File "{__file__}", line ')
    assert traceback[2].strip() == "return 1 / shift"
    assert [line for line in traceback if "File" in line] == [traceback[1]]
    assert f"ZeroDivisionError: division by zero\n{error}\n" in shown
    assert failure_of(run).error == error


def test_errors_of_ours_have_no_traceback_where_no_line_of_the_user_raised() -> None:
    caught = BatchError("does not fit")
    caught.__cause__ = RuntimeError("of PyTorch")
    failure = RowsFailure.of(caught, [0])
    assert (failure.error, failure.traceback) == ("BatchError: does not fit", "")
    assert RowsFailure.of(RuntimeError("ours"), [0]).traceback == "RuntimeError: ours\n"


def test_a_file_that_data_did_not_find_is_named_with_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> Any:
        return {"A": torch.load("no_such_file.pt")}

    monkeypatch.chdir(tmp_path)
    failure = failure_of(launched(tmp_path, data=load))
    assert failure.error == (
        "FileNotFoundError: [Errno 2] No such file or directory: 'no_such_file.pt'; it was looked "
        f"for in {tmp_path}, and is not beside test_failures.py in {Path(__file__).parent} either"
    )


def test_a_batch_function_that_misses_an_entry_is_told_which_there_are(tmp_path: Path) -> None:
    X = torch.zeros(8, 3)

    def load() -> Any:
        return {"X_train": X, "y_train": X[:, 0], "X_val": X, "y_val": X[:, 0]}

    failure = failure_of(launched(tmp_path, data=load, batchfn=sample, ONLINE=False))
    assert failure.error.startswith("SpecError: sample: offline training evaluates a test set, ")
    assert failure.error.endswith("; no function of the spec takes the data entries X_val, y_val")


def test_entries_that_nothing_takes_are_no_hint_where_nothing_is_missing(tmp_path: Path) -> None:
    X = torch.zeros(8, 3)

    def load() -> Any:
        entries = {"X_train": X, "y_train": X[:, 0], "X_test": X, "y_test": X[:, 0]}
        return {**entries, "eigvals": X[0]}

    settings = {"batchfn": sample, "ONLINE": False, "N_SAMPLES": 9}
    failure = failure_of(launched(tmp_path, data=load, **settings))
    assert failure.error.startswith("SpecError: sample: N_SAMPLES=9 training rows are requested")
    assert "eigvals" not in failure.error
