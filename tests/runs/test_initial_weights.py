"""INIT_WEIGHTS: trainings that begin from the trained networks of another run."""

from __future__ import annotations

import copy
import functools
import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import Run, SpecError, Sweep, from_run, launch
from mlpsubmit.training.seeds import streams


def noisy(bsz: int, gen: torch.Generator, shift: float = 0.0, inputs: int = 3) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, inputs, generator=gen)
        return X, X[:, 0] + shift

    return batch_fn


AXES: dict[Any, Any] = {"WIDTH": [4, 6], "trial": range(2)}
SETTINGS: dict[str, Any] = {"N_SAMPLES": 8, "MAX_ITER": 12, "LOSS_CHECKPOINTS": []}
SETTINGS |= {"SAVE_WEIGHTS": "final", "LR": 0.1}


def trained(folder: Path, name: str, axes: dict[Any, Any] = AXES, **settings: Any) -> Run:
    given = {n: v for n, v in {**SETTINGS, **settings}.items() if n not in axes}
    return launch(Sweep(name, axes, batchfn=noisy, **given), executor="debug", runs_dir=folder)


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


@pytest.mark.slow
def test_configs_begin_from_the_networks_of_theirs(tmp_path: Path) -> None:
    before = trained(tmp_path, "before")
    axes = {"LR": [0.01, 0.05], **AXES}
    traces = {"ONLYTHRESHOLDS": False, "EMA_SMOOTHER": 0.0, "shift": 1.0}
    source = {"INIT_WEIGHTS": from_run("before")}
    after = trained(tmp_path, "after", axes, CENTERED=False, **source, **traces)
    centered = trained(tmp_path, "centered", axes, **source, **traces)
    lr = 0.05
    for width in (4, 6):
        for trial in range(2):
            at = {"width": width, "trial": trial}
            model = before.model(**at)
            begun = after.model(lr=lr, **at, initial=True)
            assert all(map(torch.equal, tensors(model), tensors(begun)))
            ended = after.model(lr=lr, **at)
            assert not torch.equal(tensors(model)[0], tensors(ended)[0])
            generator = torch.Generator().manual_seed(streams(42, trial).train)
            X, y = noisy(8, generator, 1.0)(0)
            loss = (model(X).squeeze() - y).square().mean().item()
            first = after.collect().train_loss.sel(lr=lr, **at).isel(step=0)
            np.testing.assert_allclose(loss, first, rtol=1e-5)
            # f0 is the loaded network.
            first = centered.collect().train_loss.sel(lr=lr, **at).isel(step=0)
            np.testing.assert_allclose(y.square().mean().item(), first, rtol=1e-5)
    # Packed, with another network for each trial, and one by one.
    alone = trained(tmp_path, "alone", axes, PACK_SIZE=1, **source, **traces, CENTERED=False)
    np.testing.assert_allclose(alone.collect().train_loss, after.collect().train_loss, rtol=1e-5)


@pytest.mark.slow
def test_a_source_in_another_folder_is_no_file_of_the_spec(tmp_path: Path) -> None:
    """Its files are copied: nothing warns that keys do not cover them."""
    axes: dict[Any, Any] = {"trial": range(2)}
    before = trained(tmp_path / "one", "before", axes, WIDTH=256)  # read array by array
    source = from_run(before.path)
    after = trained(tmp_path / "other", "after", axes, WIDTH=256, INIT_WEIGHTS=source)
    at = {"trial": 1}
    pairs = zip(tensors(before.model(**at)), tensors(after.model(**at, initial=True)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_keys_hold_the_hash_of_the_weights(tmp_path: Path) -> None:
    trained(tmp_path, "before")
    after = trained(tmp_path, "after", INIT_WEIGHTS=from_run("before"))
    launch_again = trained(tmp_path, "after", INIT_WEIGHTS="before")
    assert launch_again.id == after.id
    # Another run with the same weights: the same keys; only new configs train.
    trained(tmp_path, "copy", {"WIDTH": [4, 6, 8], "trial": range(2)})
    grown = {"WIDTH": [8, 4, 6], "trial": range(2)}
    more = trained(tmp_path, "after", grown, INIT_WEIGHTS=from_run("copy"))
    assert (more.status().reused, more.status().done) == (4, 6)
    # Other weights: other keys. Of a step that was kept, and of none.
    trained(tmp_path, "along", LR=0.2, SAVE_WEIGHTS=5)
    other = trained(tmp_path, "after", INIT_WEIGHTS=from_run("along", step=5))
    assert other.status().reused == 0
    with pytest.raises(SpecError, match="got step=3, at which no weights were kept; the nearest"):
        trained(tmp_path, "after", INIT_WEIGHTS=from_run("along", step=3))


@pytest.mark.slow
def test_an_axis_of_initial_weights(tmp_path: Path) -> None:
    trained(tmp_path, "before")
    sources = [None, from_run("before", sel={"trial": 1})]
    run = trained(tmp_path, "both", {"WIDTH": [4, 6], "INIT_WEIGHTS": sources})
    plain = trained(tmp_path, "both", {"WIDTH": [4, 6]})
    assert plain.status().reused == 2
    begun = [run.model(width=4, init_weights=value, initial=True) for value in sources]
    expected = [
        plain.model(width=4, initial=True),
        launch_model(tmp_path),
    ]
    for one, other in zip(begun, expected, strict=True):
        assert all(map(torch.equal, tensors(one), tensors(other)))


def launch_model(folder: Path) -> nn.Module:
    return trained(folder, "before").model(width=4, trial=1)


@pytest.mark.slow
def test_the_source_may_be_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained(tmp_path, "before")
    after = trained(tmp_path, "after", INIT_WEIGHTS=from_run("before"))
    expected = after.collect().train_loss
    file = after.path / "initial_weights.npz"
    intact = file.read_bytes()

    def retrained() -> None:
        for shard in (after.path / "results").glob("*"):
            shard.unlink()
        after.resume(executor="debug")

    file.write_bytes(intact[:300] + bytes(64) + intact[364:])
    retrained()
    assert (
        "launch its spec again, which writes the initial weights again" in capsys.readouterr().out
    )
    assert after.status().failed
    file.unlink()
    trained(tmp_path, "after", INIT_WEIGHTS=from_run("before"))
    assert after.collect().train_loss.equals(expected)

    shutil.rmtree(before.path)
    retrained()
    assert after.collect().train_loss.equals(expected)
    with pytest.raises(SpecError, match="try mlpsubmit resume RUN: it keeps copies of them"):
        trained(tmp_path, "after", INIT_WEIGHTS=from_run("before"))


@pytest.mark.parametrize(
    ("source", "settings", "text"),
    [
        (from_run("before", sel={"trial": 0}), {"GAMMA": 2.0}, r"GAMMA is 1.0 in run .* 2.0 here"),
        (
            from_run("before", sel={"trial": 0}),
            {"PARAMETRIZATION": "ntp"},
            r"PARAMETRIZATION is mup in run .* \(width=4, trial=0\) and ntp here",
        ),
        (
            from_run("before", sel={"trial": 0}),
            {"nonlinearity": "tanh"},
            r"NONLINEARITY is relu in run .* and tanh here .* where the same weights are another",
        ),
        (
            from_run("before", sel={"trial": 0}),
            {"nonlinearity": torch.relu},  # without the gain of the built-in one
            r"NONLINEARITY is another relu in run .* than here .*, in code or content, where the "
            "same weights are another function; use the one of that run, or select another",
        ),
        (
            from_run("before"),
            {},
            r"axes that this sweep has not, .*\(trial: 0, 1\), as in sel=\{'trial': 0\}",
        ),
        (from_run("before", sel={"tril": 0}), {}, r"tril: is not an axis .* 'trial'"),
        (from_run("before", sel={"trial": 7}), {}, r"trial: got 7; valid are 0, 1"),
        (
            from_run("before", sel={"trial": 0, "width": 6}),
            {},
            r"its input_layer.weight has shape \(6, 3\), and that of the model here shape \(4, 3\)",
        ),
        (
            from_run("before", sel={"trial": 0}),
            {"DEPTH": 3},
            r"its hidden_layers.1.weight has no such tensor, and that of the model here shape \(4",
        ),
        (from_run("before", sel={"trial": 0}), {"inputs": 5}, r"has shape \(4, 3\)"),
        (from_run("plain"), {}, "keeps no weights; launch its spec with SAVE_WEIGHTS='final'"),
        (from_run("wild"), {}, r"the network of run .* at the only config has diverged"),
        (from_run("nowhere"), {}, "nowhere: no run of that name"),
        (
            3,
            {},
            r"INIT_WEIGHTS: got 3; should be from_run\('name of a sweep', sel=\{\.\.\.\}\), or",
        ),
    ],
)
def test_what_cannot_be_begun_from_is_refused(
    source: Any, settings: dict[str, Any], text: str, sources: Path
) -> None:
    folders = sorted(sources.iterdir())
    with pytest.raises(SpecError, match=text):
        trained(sources, "new", {"WIDTH": [4]}, INIT_WEIGHTS=source, **settings)
    assert sorted(sources.iterdir()) == folders  # nothing half created


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    trained(folder, "before", MAX_ITER=2)
    trained(folder, "plain", {}, WIDTH=4, MAX_ITER=2, SAVE_WEIGHTS=None)
    trained(folder, "wild", {}, WIDTH=4, LR=1e8)
    return folder


def test_arguments_of_from_run_are_checked() -> None:
    with pytest.raises(SpecError, match=r"(?s)got 3; .*got sel=\[1\]; .*got step='x'; should be"):
        from_run(3, sel=[1], step="x")  # type: ignore[arg-type]
    assert repr(from_run("a", {"gamma": 1.0}, 5)) == "from_run('a', sel={'gamma': 1.0}, step=5)"


def leaky(slope: float) -> Any:
    return functools.partial(torch.nn.functional.leaky_relu, negative_slope=slope)


def scaled(factor: float) -> Any:
    return lambda x: torch.sin(factor * x)


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (leaky(0.1), leaky(0.9), "leaky_relu"),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.9), "LeakyReLU"),
        (scaled(1.0), scaled(3.0), "<lambda>"),
    ],
)
def test_nonlinearities_of_one_name_are_told_apart(
    before: Any, after: Any, name: str, tmp_path: Path
) -> None:
    first = trained(tmp_path, "before", {}, WIDTH=4, MAX_ITER=2, nonlinearity=before)
    source = from_run(first.path)
    begun = {"INIT_WEIGHTS": source, "WIDTH": 4, "MAX_ITER": 2}
    again = trained(tmp_path, "after", {}, nonlinearity=copy.deepcopy(before), **begun)
    assert again.status().done == 1
    with pytest.raises(SpecError, match=rf"NONLINEARITY is another {name} in run .* than here"):
        trained(tmp_path, "after", {}, nonlinearity=after, **begun)
    # Every value of an axis is compared.
    axes = {"nonlinearity": [before, after]}
    with pytest.raises(SpecError, match=rf"is another {name} in run .* \(Config\(nonlinearity="):
        trained(tmp_path, "after", axes, **begun)


def valued(bsz: int, gen: torch.Generator, v: Any = None) -> Any:
    return noisy(bsz, gen)


def along(folder: Path, name: str, values: list[Any], **settings: Any) -> Run:
    """A run with an axis `v` that no result depends on; its networks differ in their widths."""
    points = [(value, 4 + n) for n, value in enumerate(values)]
    given = {**SETTINGS, "MAX_ITER": 2, **settings}
    sweep = Sweep(name, {("v", "WIDTH"): points}, batchfn=valued, **given)
    return launch(sweep, executor="debug", runs_dir=folder)


TABLE = torch.arange(2000.0)
CHANGED = torch.where(TABLE == 1000, 0, TABLE)  # of the same text


@pytest.mark.parametrize(
    "values",
    [
        [leaky(0.1), leaky(0.2)],
        [scaled(1.0), scaled(2.0), torch.sin],
        [TABLE, CHANGED],
        [True, "True"],
        [1, "1"],
        [None, "None", math.nan, Fraction(1, 3)],
    ],
)
def test_axes_are_matched_by_value(values: list[Any], tmp_path: Path) -> None:
    before = along(tmp_path, "before", values)
    source = from_run(before.path)
    own = [copy.deepcopy(value) for value in values]
    after = along(tmp_path, "after", own, INIT_WEIGHTS=source)
    assert after.status().done == len(values)
    for value, shown in zip(values, before.collect().v.values, strict=True):
        models = [before.model(v=value), before.model(v=shown), after.model(v=value, initial=True)]
        first, *others = map(tensors, models)
        assert all(map(torch.equal, first, other) for other in others)
        assert len({len(weights[0]) for weights in (first, *others)}) == 1


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (scaled(1.0), scaled(3.0), r"v: got <lambda>, whose code or content is another one in run"),
        (TABLE, CHANGED, r"v: got tensor\(.* whose code or content is another one in run"),
        (1, "1", r"v: got '1', whose .*; give the same, or take that one with sel=\{'v': 1\}"),
        (leaky(0.1), scaled(1.0), r"v: got <lambda>; valid are leaky_relu"),
    ],
)
def test_values_of_one_text_are_not_matched(
    before: Any, after: Any, text: str, tmp_path: Path
) -> None:
    first = along(tmp_path, "before", [before])
    with pytest.raises(SpecError, match=f"(?s){text}"):
        along(tmp_path, "after", [after], INIT_WEIGHTS=from_run(first.path))
    label = first.collect().v.values[0]
    source = from_run(first.path, sel={"v": label})  # what a person types is a text
    assert along(tmp_path, "after", [after], INIT_WEIGHTS=source).status().done == 1


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))


def other_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def test_another_model_with_the_same_tensors_is_told(tmp_path: Path) -> None:
    other_network.__name__ = "network"
    given = {"WIDTH": 4, "MAX_ITER": 2, "PARAMETRIZATION": "sp"}
    before = trained(tmp_path, "before", {}, MODEL=network, **given)
    source = from_run(before.path)
    trained(tmp_path, "after", {}, MODEL=network, INIT_WEIGHTS=source, **given)
    text = f"MODEL is another function in run {before.id} than here; with the same weights, the"
    with pytest.warns(UserWarning, match=text):
        trained(tmp_path, "after", {}, MODEL=other_network, INIT_WEIGHTS=source, **given)
