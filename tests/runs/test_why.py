"""why shows which ingredient makes two keys differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import Sweep, open_run
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.spec.load import load_spec

#: Each test launches a run or two.
pytestmark = pytest.mark.slow

Command = Callable[..., Any]

SPEC = """
import functools
import os
import numpy as np
import torch
from mlpsubmit import Sweep

OFFSET = 1.0
TABLE = np.arange(2000.0)

def shift(y):
    return y + OFFSET

def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(noise, bsz, gen, X=None, y=None):
            return function(noise, bsz, gen, factor)
        return wrapper
    return decorate

@scaled(2.0)
def linear(noise, bsz, gen, factor=1.0, order=1):
    import helper
    secret = os.environ.get("WHY_TOKEN")
    def batch_fn(step):
        inputs = torch.randn(bsz, 3, generator=gen)
        return inputs, factor * shift(inputs[:, 0]) + TABLE[0] + noise
    return batch_fn

def size(model, power):
    return model.input_layer.weight.abs().mean() ** power

sweep = Sweep(
    "why", {("WIDTH", "LR"): [(4, 0.1), (8, 0.2)], "noise": [0.0, 0.5]}, batchfn=linear,
    grabs={"size": functools.partial(size, power=2)}, N_SAMPLES=4, MAX_ITER=1, LOSS_CHECKPOINTS=[],
)
"""

LAUNCH = ("launch", "why.py", "--executor", "debug")


@pytest.fixture
def launched(
    workplace: Path, mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A function that launches the spec with some edits, and returns the id of the run."""
    monkeypatch.setenv("WHY_TOKEN", "swordfish")

    def launch(*arguments: str, **edits: str) -> str:
        text = SPEC
        for old, new in edits.pop("edits", {}).items():  # type: ignore[attr-defined]
            assert old in text
            text = text.replace(old, new)
        (workplace / "why.py").write_text(text)
        (workplace / "helper.py").write_text(edits.pop("helper", "A = 1\n"))
        done = mlpsubmit(*LAUNCH, *arguments)
        assert done.code == 0, done.err
        return open_run().id

    return launch


def test_edits_are_shown_by_what_they_change(
    launched: Callable[..., str], mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = launched()
    monkeypatch.setenv("WHY_TOKEN", "plugh")
    edits = {
        "OFFSET = 1.0": "OFFSET = 3.0",
        "return y + OFFSET": "return y - OFFSET",
        "np.arange(2000.0)": "np.arange(2000.0) + (np.arange(2000) == 1000)",
        "@scaled(2.0)": "@scaled(4.0)",
        "order=1": "order=2",
        "power=2)": "power=3)",
        "import functools": "import functools  # a comment",
    }
    new = launched("N_SAMPLES=8", edits=edits, helper="A = 2\n")
    shown = mlpsubmit("why", new, "width=4,noise=0.5")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].endswith(f"  config 1 of run {old} (width=4, lr=0.1, noise=0.5)")
    assert lines[1].endswith(f"  config 1 of run {new} (width=4, lr=0.1, noise=0.5)")
    assert lines[2] == "the keys differ in:"
    for line in (
        "  n_samples: 4 -> 8",
        "  batchfn: OFFSET in shift: 1.0 -> 3.0",
        "  batchfn: factor in linear: 2.0 -> 4.0",
        "  batchfn: default of order in linear: 1 -> 2",
        "  batchfn: function shift",
        "    -    return y + OFFSET",
        "    +    return y - OFFSET",
        "  batchfn: module helper",
        "    -A = 1",
        "    +A = 2",
        "  grab[size]: power: 2 -> 3",
    ):
        assert line in lines
    (table,) = (line for line in lines if "TABLE in linear" in line)
    assert table.endswith(" (of other contents)")  # its text is abridged
    (token,) = (line for line in lines if "WHY_TOKEN" in line)
    assert token.endswith("(not recorded) -> (not recorded) (of other contents)")
    assert not any("swordfish" in line or "function size" in line for line in lines)
    assert "swordfish" not in (open_run(old).path / "ingredients.json").read_text()
    # The same, of the two runs as a whole.
    whole = mlpsubmit("diff", old, new).out.splitlines()
    assert f"keys: 0 of 4 keys of {new} are also in {old}" in whole
    assert set(lines[3:]) <= set(whole)


def test_configs_are_compared_within_and_between_runs(
    launched: Callable[..., str], mlpsubmit: Command
) -> None:
    old = launched()
    new = launched("noise=[0.5,1.0]")
    within = mlpsubmit("why", old, "0", "3").out.splitlines()
    assert within[2:] == [
        "the keys differ in:",
        "  width, lr: 4, 0.1 -> 8, 0.2",
        "  noise: 0.0 -> 0.5",
    ]
    equal = mlpsubmit("why", new, "0").out.splitlines()
    assert equal[0].partition(" ")[0] == equal[1].partition(" ")[0]
    assert equal[2].startswith("the keys are equal: a launch reuses the result, unless")
    assert mlpsubmit("why", old, new, "1").out == mlpsubmit("why", old, new, "1", "0").out
    none = mlpsubmit("why", new, "noise=1.0,LR=0.1").out
    assert "config 1 of run" in none
    assert "no earlier run has it" in none
    assert f"  {old}: no config has noise=1.0 (its values: 0.0, 0.5)" in none
    assert "  batchfn: linear\n" in none
    runs = mlpsubmit("diff", old, new).out.splitlines()
    assert "  axis noise: 0.0, 0.5 -> 0.5, 1.0" in runs
    assert f"keys: 2 of 4 keys of {new} are also in {old}" in runs


def test_versions_are_shown(launched: Callable[..., str], mlpsubmit: Command) -> None:
    old, new = launched(), launched("N_SAMPLES=8")
    path = open_run(old).path
    sweep = read_json(path / "sweep.json")
    publish_json(path / "sweep.json", {**sweep, "origin": {**sweep["origin"], "torch": "2.4.0"}})
    found = read_json(path / "ingredients.json")
    publish_json(path / "ingredients.json", {**found, "python": "3.9"})
    lines = mlpsubmit("why", new, "0").out.splitlines()
    assert any(line.startswith("  python: 3.9 -> 3.") for line in lines)
    assert any(line.startswith("not part of the keys: torch 2.4.0 -> ") for line in lines)


def test_what_cannot_be_compared_is_refused(
    launched: Callable[..., str], mlpsubmit: Command
) -> None:
    old = launched()
    new = launched("noise=[0.5,1.0]")
    for arguments, error in {
        (old,): "why: should be RUN CONFIG, RUN CONFIG CONFIG, RUN RUN CONFIG or RUN RUN CONFIG",
        (old, new): "why: got two runs and no config; to compare runs as a whole: mlpsubmit diff",
        (old, "0", "1", "2"): "why: should be RUN CONFIG",
        (old, "4"): f"config 4: run {old} has none with this index; valid are 0 to 3",
        (old, "width=5"): "width: got '5'; valid are 4, 8",
        (
            old,
            "width=4",
        ): f"config: width=4 matches 2 configs of run {old} (noise=0.0; noise=0.5); select one",
        (
            old,
            "widht=4",
        ): f"widht: is not an axis of run {old} (did you mean 'width'?); its axes are",
        (old, new, "0"): f"run {new} has no such config: no config has noise=0.0",
        (old, "9" * 33): "should be the index of a config, its key, or values of axes, such as",
    }.items():
        refused = mlpsubmit("why", *arguments)
        assert refused.code == 2
        assert error in refused.err
    file = open_run(old).path / "ingredients.json"
    content = read_json(file)
    for change in ({"axes": content["axes"][:1]}, {"base": "0"}, {"settings": {"LR": "x"}}):
        publish_json(file, {**content, **change})
        refused = mlpsubmit("why", old, "0", "1")
        assert refused.code == 2
        assert "ingredients.json: is damaged (" in refused.err
    file.unlink()
    assert f"run {old}: its ingredients.json is lost" in mlpsubmit("why", old, "0", "1").err


@pytest.mark.filterwarnings("ignore:batchfn")
def test_keys_are_the_sums_of_their_ingredients(workplace: Path) -> None:
    sweep = load_spec(workplace / "small.py").refreshed()
    content = sweep.ingredients
    total = sum(
        np.frombuffer(bytes.fromhex(entry["hash"]), dtype="<u8")
        for entry in content["settings"].values()
    )
    assert total.tobytes().hex() == content["base"]
    axes = [np.frombuffer(bytes.fromhex(a), dtype="<u8").reshape(-1, 2) for a in content["axes"]]
    for config in sweep:
        place = np.unravel_index(config.index, sweep.product.shape)
        own = total + sum(table[at] for table, at in zip(axes, place, strict=True))
        assert own.tobytes().hex() == config.key


def test_an_object_whose_text_cannot_be_made_is_named_by_its_type() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise ValueError("no")

    def own(bsz: int, gen: Any, table: Any = Silent()) -> Any:  # noqa: B008
        raise NotImplementedError

    parts = Sweep("silent", batchfn=own).ingredients["settings"]["batchfn"]["parts"]
    (text,) = (part["text"] for name, part in parts.items() if name.startswith("default of table"))
    assert text == "<Silent instance>"
