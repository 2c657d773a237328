"""``build_other_grabs``: MLPscape's functions by name, on Gram matrices that numpy forms."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.compat import Monomial, build_other_grabs
from mlpsubmit.errors import SpecError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))


def weights(model):
    return tuple(layer.weight.detach().numpy() for layer in (model[0], model[2]))


def test_functions_of_mlpscape(model):
    W_in, W_out = weights(model)
    grabs = build_other_grabs(
        {
            "W11": "get_W_ii",
            "of": "get_W_ii",
            "trace": "get_W_trace",
            "gram": "get_W_gram",
            "out": "get_W_gram",
            "in": "get_Win",
            "last": "get_Wout",
            "ntk": "empirical_ntk_trace",
        },
        per_alias_kwargs={"W11": {"i": 1}, "of": {"monomial": Monomial({0: 1, 2: 3})}},
        per_alias_gram={"out": {"source": "out", "concat_outside": "False"}},
    )
    gram = W_in.T @ W_in
    X = torch.randn(4, 3)
    assert grabs["W11"](model=model) == pytest.approx(gram[1, 1], rel=1e-5)
    assert grabs["of"](model=model).tolist() == pytest.approx([gram[0, 0], gram[2, 2]], rel=1e-5)
    assert grabs["trace"](model=model) == pytest.approx(np.trace(gram), rel=1e-5)
    assert grabs["gram"](model=model).numpy() == pytest.approx(gram, abs=1e-6)
    assert grabs["out"](model=model).numpy() == pytest.approx(W_out @ W_out.T, abs=1e-6)
    assert np.array_equal(grabs["in"](model=model), W_in)
    assert np.array_equal(grabs["last"](model=model), W_out)
    squares = 0.0
    for row in X:
        model.zero_grad()
        model(row[None]).sum().backward()
        squares += sum(float(p.grad.square().sum()) for p in model.parameters())
    assert grabs["ntk"](model=model, X_tr=X) == pytest.approx(squares, rel=1e-4)


def test_the_choices_for_all_and_for_one(model):
    W_in, W_out = weights(model)
    choices = {
        "raw": {"source": "in", "use_raw": "True"},
        "raw too": {"source": "in", "input_mode": "raw"},
        "own": {"source": "in", "concat_outside": True, "scale": 2.0},
        "model": {"call_with_model": "true"},
    }

    def total(W, scale=1.0, **kwargs):
        return scale * W.sum()

    def layers(net, **kwargs):
        return len(net)

    functions = {"raw": total, "raw too": total, "own": total, "rest": total}
    grabs = build_other_grabs(
        {**functions, "model": "weight_norms"},
        default_source="out",
        concat_outside=False,
        per_alias_gram=choices,
    )
    assert grabs["raw"](model=model) == pytest.approx(W_in.sum(), rel=1e-4)
    assert grabs["raw too"](model=model) == pytest.approx(W_in.sum(), rel=1e-4)
    assert grabs["own"](model=model) == pytest.approx(2 * (W_in.T @ W_in).sum(), rel=1e-4)
    assert grabs["rest"](model=model) == pytest.approx((W_out @ W_out.T).sum(), rel=1e-4)
    assert grabs["model"](model).tolist() == pytest.approx(
        [np.linalg.norm(W_in), np.linalg.norm(W_out)], rel=1e-5
    )


def test_grabs_travel_to_workers(model):
    grabs = build_other_grabs({"t": "get_W_trace"}, per_alias_kwargs={"t": {}})
    again = pickle.loads(pickle.dumps(grabs))
    assert again["t"](model=model) == grabs["t"](model=model)


def test_all_errors_at_once():
    with pytest.raises(SpecError) as raised:
        build_other_grabs(
            {"a": "get_W_tr", "b": "get_W_ii", "c": "get_W_trace", "d": 3},
            per_alias_gram={"b": {"source": "up"}, "other": {}, "c": {"index": 0}},
            per_alias_kwargs={"d2": {}},
        )
    assert len(raised.value.errors) == 6
    text = str(raised.value)
    assert (
        "grab 'a': no function named 'get_W_tr' (did you mean 'get_W_trace'?); valid are " in text
    )
    assert "grab 'b': got source='up'; valid is 'in' (the first layer) or 'out' (the last)" in text
    assert "per_alias_gram: no grab is called 'other'" in text
    assert "grab 'c': trace: takes no argument 'index'" in text
    assert "per_alias_kwargs: no grab is called 'd2'" in text
    assert "grab 'd': no function named 3; valid are " in text


def test_an_entry_needs_an_index(model):
    grab = build_other_grabs({"entry": "get_W_ii"})["entry"]
    with pytest.raises(SpecError, match="get_W_ii: needs i or monomial; give it in other_model_kw"):
        grab(model=model)


def test_named_grabs_in_a_study(run, config, gaussian, traces):
    """An alias takes iterators by name: here the monomial of each config."""
    monomials = [Monomial({0: 1}), Monomial({1: 1})]

    def bfn(monomial, bsz, gen, X=None, y=None):
        (index,) = monomial

        def batch_fn(step):
            inputs = torch.randn(bsz, 4, generator=gen)
            return inputs, inputs[:, index]

        return batch_fn

    grabs = build_other_grabs({"own": "get_W_ii", "trace": "get_W_trace", "all": "get_W_gram"})
    result = run(
        [[16], [0], monomials],
        ["ntrain", "trial", "monomial"],
        config(otherreturns=grabs, LR=0.5),
        {"base_bfn": bfn},
    )
    found = traces(result)
    for job, index in zip(result["jobs"], (0, 1), strict=True):
        gram = found["all"][job]
        assert found["trace"][job] == pytest.approx(np.trace(gram), rel=1e-5)
        assert found["own"][job].tolist() == pytest.approx(gram[index, index], rel=1e-5)
        assert np.argmax(np.diagonal(gram)) == index  # what the target is made of is what grew
