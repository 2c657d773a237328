"""Random search: draws that follow from the seed and the name, and their place in a sweep."""

import math
import pickle

import numpy as np
import pytest

from mlpsubmit import (
    SpecError,
    Sweep,
    choice,
    launch,
    loguniform,
    open_run,
    randint,
    random_search,
    uniform,
)
from mlpsubmit.jobs.plan import make_plan


def batches(bsz, gen, noise=0.0):
    raise NotImplementedError


def column(n=200, seed=0, **distribution):
    ((_, points),) = random_search(n, seed=seed, **distribution).items()
    return [value for (value,) in points]


# ---- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "scale"),
    [
        (uniform(-2, 5), lambda v: (v + 2) / 7),
        (loguniform(1e-4, 1), lambda v: 1 + math.log10(v) / 4),
    ],
)
def test_real_numbers_have_their_distribution(distribution, scale):
    values = column(1000, LR=distribution)
    assert all(type(value) is float for value in values)
    uniforms = np.sort([scale(value) for value in values])
    assert 0 <= uniforms[0] < uniforms[-1] <= 1
    # Kolmogorov's statistic: beyond 1.95 / sqrt(n) with probability 0.001.
    assert np.abs(uniforms - np.arange(1000) / 1000).max() < 1.95 / math.sqrt(1000)


def test_integers_and_choices_are_uniform_over_all_values():
    ((_, points),) = random_search(
        1000, x=uniform(0, 1), DEPTH=randint(2, 5), MODE=choice("a", None, 3)
    ).items()
    for index, values in ((1, [2, 3, 4, 5]), (2, ["a", None, 3])):
        found = [point[index] for point in points]
        counts = np.array([found.count(value) for value in values])
        assert counts.sum() == 1000
        mean = 1000 / len(values)
        assert (np.abs(counts - mean) < 5 * math.sqrt(mean)).all()


def test_the_draws_of_a_setting_follow_from_the_seed_and_its_name():
    lr = column(50, LR=loguniform(1e-4, 1))
    assert lr[:3] == pytest.approx([0.0177976, 0.00187989, 0.2902515], rel=1e-5)  # in all versions
    assert column(200, LR=loguniform(1e-4, 1))[:50] == lr  # more points extend the earlier ones
    assert column(50, lr=loguniform(1e-4, 1)) == lr
    assert column(50, seed=1, LR=loguniform(1e-4, 1)) != lr
    both = random_search(50, GAMMA=loguniform(1e-4, 1), LR=loguniform(1e-4, 1))
    assert [point[1] for point in both["GAMMA", "LR"]] == lr
    assert [point[0] for point in both["GAMMA", "LR"]] != lr


def test_points_differ_and_all_of_a_few_are_found():
    ((names, points),) = random_search(6, WIDTH=choice(4, 8, 16), DEPTH=randint(1, 2)).items()
    assert names == ("WIDTH", "DEPTH")
    assert sorted(points) == [(w, d) for w in (4, 8, 16) for d in (1, 2)]
    less = random_search(4, WIDTH=choice(4, 8, 16), DEPTH=randint(1, 2))
    assert less[names] == points[:4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(1, 1), r"uniform\(1, 1\): valid are finite real numbers low < high"),
        (lambda: uniform(0, math.inf), r"uniform\(0, inf\): valid are finite"),
        (lambda: loguniform(0, 1), r"loguniform\(0, 1\): valid are finite real numbers 0 < low <"),
        (lambda: loguniform("a", 1), r"loguniform\('a', 1\): valid are"),
        (lambda: randint(1.5, 3), r"randint\(1.5, 3\): valid are integers low < high"),
        (lambda: choice(64), r"choice\(64\): got 1 value\(s\); .* give a single one as a setting"),
        (lambda: choice([64, 256]), r"valid are two or more; try choice\(\*values\)"),
        (lambda: choice(1, 1.0), r"choice\(1, 1.0\): has a value twice; keep one"),
        (lambda: random_search(0, LR=uniform(0, 1)), "got n=0; valid is a number of points from 1"),
        (
            lambda: random_search(5, seed=-1, LR=uniform(0, 1)),
            "got seed=-1; valid is an integer >=",
        ),
        (lambda: random_search(5), "got no settings; give a distribution of each, as in LR="),
        (
            lambda: random_search(5, LR=[0.1, 1]),
            r"got LR=\[0.1, 1\]; .*; try LR=choice\(\*values\)",
        ),
        (lambda: random_search(5, LR=0.1), r"got LR=0.1; .*give a single value as a setting"),
        (
            lambda: random_search(5, W=choice(1, 2)),
            "got n=5, but there are only 2 different points",
        ),
        (
            lambda: random_search(5, dimension="a b", W=uniform(0, 1)),
            "got dimension='a b'; valid is",
        ),
        (
            lambda: random_search(9, LR=uniform(1, 1 + 3e-16)),
            "got n=9, but found only 2 different points",
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_all_errors_are_listed_at_once():
    with pytest.raises(SpecError) as caught:
        random_search(-1, seed=0.5, LR=3, GAMMA=4)
    assert len(caught.value.errors) == 4


# ---- in a sweep ----------------------------------------------------------------------------------

SEARCH = random_search(40, LR=loguniform(1e-4, 1), WIDTH=choice(4, 8))


def made(axes, **further):
    return Sweep("search", axes, batchfn=batches, **further)


def test_it_is_one_axis_alone_or_with_others():
    alone, more = made(SEARCH), made({**SEARCH, "trial": range(3)})
    assert (len(alone), len(more)) == (40, 120)
    assert [axis.dimension for axis in more.product.axes] == ["sample", "trial"]
    assert made(random_search(3, LR=uniform(0.1, 1))).product.axes[0].dimension == "lr"
    named = random_search(3, dimension="draw", LR=uniform(0.1, 1), noise=uniform(0, 1))
    assert made(named).product.axes[0].dimension == "draw"
    assert pickle.loads(pickle.dumps(more)).product.axes[0].dimension == "sample"
    other = random_search(3, GAMMA=uniform(0.1, 1), noise=uniform(0, 1))
    with pytest.raises(SpecError, match=r"would be sample, .* random_search\(..., dimension='dr"):
        made({**SEARCH, **other})
    bad = random_search(3, LR=uniform(-1, 1), nois=uniform(0, 1))
    with pytest.raises(SpecError, match=r"nois: .*did you mean 'noise'"):
        made(bad)


def test_packs_are_by_shape_and_a_larger_search_keeps_the_keys():
    sweep = made({**SEARCH, "trial": range(2)})
    plan = make_plan(sweep, 1, 1)
    assert plan.packs == 2
    for pack in plan:
        assert len({sweep.config(int(i)).width for i in plan.indices(pack)}) == 1
    larger = made(
        {**random_search(60, LR=loguniform(1e-4, 1), WIDTH=choice(4, 8)), "trial": [0, 1]}
    )
    assert np.array_equal(larger.keys(np.arange(80)), sweep.keys(np.arange(80)))


def test_a_setting_that_is_overridden_leaves_the_search():
    sweep = made({**SEARCH, "trial": range(2)})
    points = SEARCH["LR", "WIDTH"]
    fixed = sweep.overridden({"width": 16})
    assert [axis.names for axis in fixed.product.axes] == [("lr",), ("trial",)]
    assert fixed.product.axes[0].values("lr") == tuple(lr for lr, _ in points)
    assert fixed.base.width == 16
    listed = sweep.overridden({"LR": [0.1, 0.2]})
    assert [(axis.dimension, len(axis)) for axis in listed.product.axes] == [
        ("width", 2),
        ("trial", 2),
        ("lr", 2),
    ]
    assert len(sweep.overridden({"LR": 0.1, "WIDTH": 4})) == 2
    again = fixed.overridden({"LR": 0.1})
    assert [axis.dimension for axis in again.product.axes] == ["trial"]
    with pytest.raises(SpecError, match=r"LR is part of the random search \(LR, WIDTH\), whose"):
        sweep.overridden({"LR+": 0.1})


@pytest.mark.slow
def test_a_larger_search_trains_only_the_new_points(tmp_path):
    import torch

    def linear(bsz, gen):
        def batch_fn(step):
            X = torch.randn(bsz, 2, generator=gen)
            return X, X[:, 0]

        return batch_fn

    losses = [
        lambda output, y: ((output - y) ** 2).mean(),
        lambda output, y: (output - y).abs().mean(),
    ]

    def search(n):
        axes = random_search(n, LR=loguniform(1e-2, 1), WIDTH=choice(4, 8), LOSS=choice(*losses))
        settings = {"N_SAMPLES": 8, "MAX_ITER": 3, "LOSS_CHECKPOINTS": []}
        return Sweep("search", axes, batchfn=linear, **settings)

    few = launch(search(6), executor="debug", runs_dir=tmp_path)
    assert few.directory.plan["packs"] <= 4
    run = launch(search(10), executor="debug", runs_dir=tmp_path)
    dataset = open_run(run.path).collect()
    assert run.directory.sweep["reused"] == 6
    assert dataset.train_loss.dims == ("sample",)
    assert dataset.lr.dims == dataset.width.dims == ("sample",)
    points = next(iter(search(10).axes.values()))
    assert dataset.width.values.tolist() == [width for _, width, _ in points]  # numbers
    labels = dict(zip(dataset.loss.values.tolist(), [loss for *_, loss in points], strict=True))
    assert {*labels} < {f"<lambda> #{n}" for n in range(10)}  # one for each of the functions
    assert len(labels) == len({id(loss) for loss in labels.values()}) == 2
    assert (dataset.status == "done").all()
    assert np.array_equal(dataset.train_loss[:6], few.collect().train_loss)
