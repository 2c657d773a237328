"""Finished configs of earlier runs are not trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import RunError, Sweep, launch, open_run
from mlpsubmit.spec.load import load_spec


def noisy(noise: float, bsz: int, gen: Any) -> Any:
    import torch

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def sweep(widths: list[int], noise: list[float], **settings: Any) -> Sweep:
    fixed = {"MAX_ITER": 20, "N_SAMPLES": 8, "LR": 0.1, "LOSS_CHECKPOINTS": [1e-6], **settings}
    return Sweep("grows", {"WIDTH": widths, "noise": noise}, batchfn=noisy, **fixed)


def test_new_values_train_alone_and_old_ones_are_reused(workplace: Path) -> None:
    first = launch(sweep([4, 8], [0.0, 0.5]), executor="debug")
    grown = launch(sweep([8, 16, 4], [0.5, 0.0, 1.0]), executor="debug")
    assert grown.id != first.id
    status = grown.status()
    assert (status.configs, status.reused, status.done) == (9, 4, 9)
    assert grown.directory.plan["configs"] == 5

    old, new = first.collect(), grown.collect()
    for width in (4, 8):
        for noise in (0.0, 0.5):
            point = {"width": width, "noise": noise}
            for name in ("train_loss", "seconds", "steps"):
                assert old[name].sel(point).item() == new[name].sel(point).item()
    assert new.train_loss.notnull().all()

    # Reused once more, from a run that reused them itself.
    whole = launch(sweep([4, 8, 16], [0.0, 0.5, 1.0]), executor="debug")
    assert whole.directory.plan["configs"] == 0
    assert whole.status().complete
    assert whole.collect().sel(width=16, noise=1.0).train_loss == new.train_loss.sel(
        width=16, noise=1.0
    )


def test_traces_are_reused_whole(workplace: Path) -> None:
    settings = {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 5, "EVAL_EVERY": 5}
    first = launch(sweep([4], [0.0], **settings), executor="debug").collect()
    grown = launch(sweep([4, 8], [0.0], **settings), executor="debug").collect()
    assert grown.train_loss.sel(width=4).equals(first.train_loss.sel(width=4))


@pytest.mark.parametrize("change", [{"LR": 0.2}, {"SEED": 7}, {"CENTERED": False}])
def test_another_setting_is_another_config(workplace: Path, change: dict[str, Any]) -> None:
    launch(sweep([4], [0.0]), executor="debug")
    assert launch(sweep([4], [0.0], **change), executor="debug").status().reused == 0


def test_equal_values_of_other_types_are_reused(workplace: Path) -> None:
    launch(sweep([4], [0.0, 0.5]), executor="debug")
    grown = launch(sweep([4], [0, 0.5, 1]), executor="debug")  # as on the command line
    assert (grown.status().reused, grown.directory.plan["configs"]) == (2, 1)
    assert grown.collect().noise.values.tolist() == [0.0, 0.5, 1.0]
    whole = launch(sweep([4], [1, 0]), executor="debug")
    assert whole.status().reused == 2
    assert whole.collect().sel(noise=0.0).train_loss == grown.collect().sel(noise=0).train_loss


WRAPPED = """
from functools import wraps
from mlpsubmit import Monomial, Sweep
from mlpsubmit.batchfns import polynomial, power_law
C = 1

@wraps(polynomial)
def scaled(*args, **kwargs):
    batch_fn = polynomial(*args, **kwargs)
    def scaled_batch(step):
        X, y = batch_fn(step)
        return X, C * y
    return scaled_batch

sweep = Sweep(
    "wrapped", {"WIDTH": [8]}, data=power_law(d=6, alpha=1.0, offset=1.0), batchfn=scaled,
    monomials=Monomial({0: 1}), N_SAMPLES=32, N_TEST=32, MAX_ITER=4, LR=0.1, LOSS_CHECKPOINTS=[],
)
"""


def test_an_edit_behind_the_name_of_a_library_function_is_trained(workplace: Path) -> None:
    spec = workplace / "spec.py"
    losses = []
    for text in (WRAPPED, WRAPPED.replace("C = 1", "C = 3"), "# a comment\n" + WRAPPED):
        spec.write_text(text)
        run = launch(load_spec(spec), executor="debug", spec=spec)
        losses.append(run.collect().train_loss.item())
    assert losses[1] > 2 * losses[0] == 2 * losses[2]
    assert run.directory.submissions() == [0]  # the first run, not trained again


def test_fresh_reuses_nothing(workplace: Path) -> None:
    first = launch(sweep([4], [0.0]), executor="debug")
    fresh = launch(sweep([4], [0.0]), executor="debug", fresh=True)
    assert fresh.id != first.id
    assert fresh.status().reused == 0
    assert fresh.collect().drop_vars("seconds").equals(first.collect().drop_vars("seconds"))


def test_an_unchanged_sweep_goes_on_in_its_run(workplace: Path) -> None:
    first = launch(sweep([4], [0.0]), executor="debug")
    launch(sweep([4, 8], [0.0]), executor="debug")  # another one in between changes nothing
    again = launch(sweep([4], [0.0]), executor="debug")
    assert again.id == first.id
    assert again.directory.submissions() == [0]


def test_damaged_results_of_earlier_runs_are_missed_and_trained_by_the_next_launch(
    workplace: Path,
) -> None:
    launch(sweep([4, 8], [0.0]), executor="debug")
    grown = launch(sweep([4, 8, 16], [0.0]), executor="debug")
    shard = grown.path / "results" / "reused.0.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    status = open_run(grown.path).status()
    assert (status.reused, status.done, status.missing, status.complete) == (0, 1, 2, False)
    with pytest.raises(RunError, match="2 results reused from earlier runs cannot be read"):
        open_run(grown.path).resume("debug")
    whole = launch(sweep([4, 8, 16], [0.0]), executor="debug")
    assert whole.id != grown.id
    assert whole.status().complete
    assert whole.collect().train_loss.notnull().all()


def test_another_pack_size_makes_another_plan_and_keeps_the_results(workplace: Path) -> None:
    first = launch(sweep([4], [0.0, 1.0]), executor="debug")
    smaller = launch(sweep([4], [0.0, 1.0], PACK_SIZE=1), executor="debug")
    assert smaller.id != first.id
    assert smaller.status().reused == 2


def caching(cache: dict[int, Any]) -> Any:
    def batchfn(bsz: int, gen: Any) -> Any:
        cache[len(cache)] = bsz
        return noisy(0.0, bsz, gen)

    return batchfn


def test_a_function_that_fills_a_cache_keeps_its_key(workplace: Path) -> None:
    settings = {"MAX_ITER": 3, "N_SAMPLES": 4, "WIDTH": 4}
    for lrs, reused in (([0.1], 0), ([0.1, 0.2], 1)):
        made = Sweep("caching", {"LR": lrs}, batchfn=caching({}), **settings)
        assert launch(made, executor="debug").status().reused == reused


NOTEBOOK = """
import torch
SCALE = 1.0

def noisy(bsz, gen):
    def batch_fn(step):
        X = torch.randn(bsz, 4, generator=gen)
        return X, SCALE * X[:, 0]
    return batch_fn

def spread(y_tr):
    return y_tr.square().mean()
"""


def test_a_sweep_that_is_launched_again_sees_what_has_changed(tmp_path: Path) -> None:
    cells: dict[str, Any] = {"__name__": "cells_of_a_notebook"}
    exec(NOTEBOOK, cells)
    settings = {"WIDTH": 4, "MAX_ITER": 3, "N_SAMPLES": 64, "grabs": {"spread": cells["spread"]}}
    sweep = Sweep("again", batchfn=cells["noisy"], **settings)

    def trained(fresh: bool = False) -> tuple[str, float]:
        run = launch(sweep, executor="debug", runs_dir=tmp_path, fresh=fresh)
        return run.id, float(run.collect().spread)

    first = trained()
    assert trained() == first
    cells["SCALE"] = 5.0
    second = trained()
    assert second[0] != first[0]
    assert second[1] == pytest.approx(25 * first[1], rel=1e-5)
    cells["SCALE"] = 1.0
    assert trained() == first
    cells["SCALE"] = 3.0
    assert trained(fresh=True)[1] == pytest.approx(9 * first[1], rel=1e-5)
    cells["SCALE"] = 1.0
    assert trained() == first
