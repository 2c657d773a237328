"""bench/precision.py at small sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def precision(bench, monkeypatch):
    module = bench("precision")
    monkeypatch.setattr(module, "HAS_TF32", False)
    return module


@pytest.fixture
def cases(bench, precision):
    workload = bench("workload").Workload
    online, offline = workload(32, 2, 64, d=8), workload(32, 2, 64, d=8, test_rows=128)
    return precision.Case("online", online, 12), precision.Case("offline", offline, 12)


@pytest.mark.parametrize("place", [0, 1], ids=["online", "offline"])
def test_the_train_loop_makes_all_its_products_where_the_emulation_sees_them(
    place, bench, cases, precision
):
    case = cases[place]
    with bench("tf32").Tf32Products() as products:
        emulated = case.train()
    needed = case.workload.operations(case.steps, evaluations=2)
    assert products.operations == pytest.approx(needed, rel=0.05)
    again = precision.tf32(case)
    np.testing.assert_array_equal(emulated.train_loss, again.train_loss)


def test_products_that_go_past_the_emulation_are_an_error(bench, cases, precision, monkeypatch):
    monkeypatch.delitem(bench("tf32")._FACTORS, torch.ops.aten.baddbmm)
    with pytest.raises(RuntimeError, match=r"^online: \d+% of the products' operations were round"):
        precision.tf32(cases[0])


def test_differences_are_in_the_order_of_the_precisions(
    cases, precision, figures_in, monkeypatch, tmp_path
):
    monkeypatch.setattr(precision, "CASES", cases)
    precision.main(["--save", str(tmp_path)])
    found = figures_in(tmp_path)
    for case in cases:
        last = {
            name: found[f"{case.name}, {name}", "train loss, step 12"].median
            for name in precision.VARIANTS
        }
        assert 0 < last["float64"] < 1e-5
        assert last["float64"] < last["tf32"] < last["bf16"] < last["other seed"]
        # Centred: the first outputs are zero.
        assert found[f"{case.name}, tf32", "train loss, step 1"].median == 0


def test_a_moved_timekey_is_shown_in_steps_and_relative_to_fp32(cases, precision):
    exact = cases[0].train()
    exact.timekeys[:] = [[10, 20, 40, -1]] * 2
    moved = cases[0].train()
    moved.timekeys[:] = [[10, 21, 38, -1], [10, 20, -1, -1]]
    found = precision.differences(moved, exact)
    assert found["timekeys"] == pytest.approx(0.05)
    assert found["timekeys_in_steps"] == 2
    assert found["thresholds_crossed_by_one_only"] == 1
