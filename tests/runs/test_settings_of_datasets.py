"""A dataset stands alone: what was asked is in its attributes."""

import json

import numpy as np
import torch

from mlpsubmit import Sweep, from_run, launch
from mlpsubmit.grabs import weight_norms
from mlpsubmit.results.join import join
from mlpsubmit.results.settings import fixed_settings


def spectrum(d, alpha=1.5):
    return {"scales": torch.arange(1.0, d + 1) ** -alpha}


def batches(bsz, gen, scales, noise=0.25):
    def batch_fn(step):
        X = torch.randn(bsz, len(scales), generator=gen) * scales
        return X, X[:, 0] + noise

    return batch_fn


def size(model):
    return sum(p.numel() for p in model.parameters())


def study(name="alone", **further):
    settings = {"MAX_ITER": 3, "N_SAMPLES": 4, "LOSS_CHECKPOINTS": [], "axes": {"LR": [0.1, 0.2]}}
    functions = {"data": spectrum, "batchfn": batches, "grabs": {"norms": weight_norms, "n": size}}
    return Sweep(name, d=3, WIDTH=4, **{**functions, **settings, **further})


def test_all_fixed_settings_are_attributes(workplace):
    ds = launch(study(), executor="debug").collect()
    attributes = ds.attrs
    assert attributes["Conventions"] == "CF-1.11"
    assert (attributes["width"], attributes["depth"], attributes["d"]) == (4, 2, 3)
    assert (attributes["alpha"], attributes["noise"]) == (1.5, 0.25)  # defaults of the functions
    assert attributes["online"] == "True"
    assert attributes["grad_clip_norm"] == "None"
    assert (attributes["batchfn"], attributes["data"]) == ("batches", "spectrum")
    assert ds.steps.dtype == np.int64
    assert "lr" not in attributes
    assert "num_trials" not in attributes
    counting = attributes["settings"].split()
    assert {"width", "d", "alpha", "noise", "batchfn", "trial"} <= set(counting)
    assert not {"lr", "devices", "pack_size", "verbose"} & set(counting)
    assert attributes["pack_size"] == "auto"
    assert fixed_settings(attributes)["online"].value is True
    assert ds.norms.attrs["function"] == "weight_norms"
    assert "function_hash" not in ds.norms.attrs  # of the library
    assert len(ds.n.attrs["function_hash"]) == 8
    assert ds.lr.attrs == {
        "long_name": "learning rate",
        "units": "1",
        "description": "LR: base learning rate",
    }


def test_hashes_tell_functions_of_one_name_apart(workplace):
    def renamed(bsz, gen, scales, noise=0.25):
        def batch_fn(step):
            X = torch.randn(bsz, len(scales), generator=gen) * scales
            return X, X[:, 0] - noise

        return batch_fn

    renamed.__name__ = "batches"
    first = launch(study(), executor="debug").collect()
    again = launch(study(MAX_ITER=4), executor="debug").collect()
    other = launch(study(batchfn=renamed), executor="debug").collect()
    assert first.value_hashes == again.value_hashes
    assert first.batchfn == other.batchfn == "batches"
    assert fixed_settings(first.attrs)["batchfn"] != fixed_settings(other.attrs)["batchfn"]
    assert fixed_settings(first.attrs)["data"] == fixed_settings(other.attrs)["data"]


def test_values_that_texts_do_not_say_in_full_are_told_apart(workplace):
    def target(bsz, gen, form, table):
        return lambda step: (torch.ones(bsz, 2), form(torch.ones(bsz)) + table[0])

    def launched(edited, width, table):
        forms = [edited, torch.sign]
        axes = {"form": forms, "WIDTH": [width]}
        given = {"batchfn": target, "table": table, "MAX_ITER": 2, "LOSS_CHECKPOINTS": []}
        return launch(Sweep("forms", axes=axes, N_SAMPLES=4, **given), executor="debug").collect()

    before = lambda x: x + 1  # noqa: E731
    after = lambda x: x + 2  # noqa: E731
    table = torch.arange(2000.0)
    one, two = launched(before, 4, table), launched(after, 8, table)
    codes = [json.loads(ds.form.attrs["value_hashes"]) for ds in (one, two)]
    assert [{*own} for own in codes] == [{"<lambda>", "sign"}] * 2
    found = join([one, two])
    assert found.form.values.tolist() == [
        f"<lambda> ({codes[0]['<lambda>'][:8]})",
        "sign",
        f"<lambda> ({codes[1]['<lambda>'][:8]})",
    ]
    other = table.clone()
    other[1000] = 0  # is not in the text
    three = launched(before, 16, other)
    assert join([one, three]).sizes["table"] == 2


def test_networks_to_start_from_are_told_apart_by_their_weights(workplace):
    hashes = []
    for seed in (1, 2):
        launch(study(SAVE_WEIGHTS="final", SEED=seed), executor="debug")
        again = study("again", INIT_WEIGHTS=from_run("alone"))
        hashes.append(launch(again, executor="debug").collect().attrs["value_hashes"])
    first, second = map(json.loads, hashes)
    assert len(first["init_weights"]) == 16
    assert first["init_weights"] != second["init_weights"]
    assert first["batchfn"] == second["batchfn"]
