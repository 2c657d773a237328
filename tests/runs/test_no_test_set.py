"""N_TEST=0: offline training without a test set, as in studies of the dynamics of full batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import Sweep, launch
from mlpsubmit.batchfns import arrays, images, polynomial, power_law, sample
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs import sharpness

X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
Y = X[:, 0] * X[:, 1]
SETTINGS: dict[str, Any] = {
    "ONLINE": False,
    "N_SAMPLES": 30,
    "N_TEST": 0,
    "WIDTH": 8,
    "MAX_ITER": 8,
    "LOSS_CHECKPOINTS": [],
    "ONLYTHRESHOLDS": False,
}


def trained(folder: Path, **settings: Any) -> Any:
    axes = settings.pop("axes", {"LR": [0.1, 0.2]})
    sweep = Sweep(
        "full", axes, **{k: v for k, v in {**SETTINGS, **settings}.items() if k not in axes}
    )
    return launch(sweep, executor="debug", runs_dir=folder)


def everything(model: Any, **kwargs: Any) -> bool:
    return kwargs["X_te"] is None and kwargs["X_tr"] is not None


def optional(model: Any, X_te: Any = 1) -> bool:
    return X_te is None


def test_nothing_is_evaluated_and_grabs_measure_the_training_set(tmp_path: Path) -> None:
    measured = {"sharpness": sharpness, "absent": everything, "optional": optional}
    run = trained(tmp_path, batchfn=arrays(X, Y), grabs=measured, METRICS=["r2"])
    found = run.collect(tmp_path / "full.csv")
    assert not {"test_loss", "test_r2", "eval_step"} & set(found.variables)
    assert found.train_r2.notnull().all()
    assert found.absent.all()
    assert found.optional.all()
    tested = trained(tmp_path, batchfn=arrays(X, Y, X + 1, Y), N_TEST=30).collect()
    np.testing.assert_array_equal(found.train_loss, tested.train_loss)
    assert tested.test_loss.notnull().all()
    run.collect(tmp_path / "full.pkl").close()  # MLPscape's losses are those of the training then
    run.plot()


@pytest.mark.parametrize(
    "data",
    [
        {"data": images("digits"), "batchfn": sample},
        {"data": power_law(d=3, alpha=1.0), "batchfn": polynomial, "monomials": {0: 1}},
    ],
    ids=["images", "power_law"],
)
def test_recipes_make_no_test_set(data: dict[str, Any], tmp_path: Path) -> None:
    found = trained(tmp_path, axes={"N_TEST": [0, 5]}, **data).collect()
    assert found.test_loss.sel(n_test=0).isnull().all()
    assert found.test_loss.sel(n_test=5).notnull().all()
    np.testing.assert_array_equal(*found.train_loss.values)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"data": arrays(X, Y), "batchfn": sample, "grabs": {"g": lambda X_te: 0.0}},
            "grab 'g' takes",
        ),
        ({"EVAL_EVERY": 5}, "N_TEST: got 0, which is no test set, with EVAL_EVERY=5; leave out wh"),
        ({"METRIC_THRESHOLDS": {"test_loss": [1]}}, "with METRIC_THRESHOLDS of test_loss; leave"),
        (
            {"grabs": {"g": lambda X_te: 0.0}},
            r"grab 'g' takes the test set \(X_te, y_te\), and N_T",
        ),
    ],
)
def test_what_needs_one_is_refused(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=text):
        trained(tmp_path, **{"batchfn": arrays(X, Y), **settings})
    assert not tmp_path.joinpath("full").exists()
