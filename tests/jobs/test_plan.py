"""Plans: every config in one pack of equal shapes, and slices of nearly equal cost."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlpsubmit import Sweep
from mlpsubmit.checksums import summed_json
from mlpsubmit.jobs.plan import LARGEST_PACK, Plan, cut, make_plan
from mlpsubmit.jobs.store.masks import decode_classes, encode_classes
from mlpsubmit.jobs.store.plan_order import PlanOrder
from mlpsubmit.jobs.throughput.workload import workloads_of
from mlpsubmit.spec.hyperparameters import STACKED, Hyperparameters

unhurried = settings(deadline=None)  # cores may be shared

#: Settings on which the shapes of tensors, or what a pack computes, may depend.
SHARED = sorted(set(Hyperparameters.model_fields) - STACKED)


def batches(bsz, gen, noise=0.0, shift=0, trial=0):
    raise NotImplementedError


def make(axes=None, **further):
    return Sweep(axes=axes, **{"batchfn": batches, "WIDTH": 16, **further})


def planned(axes, max_tasks=2, finished=None, **further):
    if any("WIDTH" in key for key in axes):
        further = {"batchfn": batches, **further}
        return make_plan(Sweep(axes=axes, **further), max_tasks, 1, finished)
    return make_plan(make(axes, **further), max_tasks, 1, finished)


def through_json(plan):
    return Plan.from_json(json.loads(summed_json(plan.to_json())))


# ---- any sweep -----------------------------------------------------------------------------------

AXES = {
    "WIDTH": [16, 64, 512, 4096],
    "DEPTH": [1, 2, 3],
    "N_SAMPLES": [8, 1000],
    "MAX_ITER": [1, 50, 10**6],
    "ONLINE": [True, False],
    "EVAL_EVERY": [1, "log:5", 20],
    "METRIC_THRESHOLDS": [{}, {"test_loss": [0.1]}, {"train_r2": [0.5]}],
    "LR": [0.1, 0.2, 0.3],
    "GAMMA": [0.5, 2],
    "trial": [0, 1, 2, 3, 4],
    "noise": [0.0, "b", None],
    ("SEED", "EMA_SMOOTHER"): [(1, 0.1), (2, 0.2)],
    ("LOSS", "MOMENTUM"): [("mse", 0.1), ("mse", 0.2), ("cross_entropy", 0.1)],
    ("WEIGHT_DECAY", "N_TEST", "shift"): [(0.1, 9, 0), (0, 8, 1), (0, 9, 2), (0.2, 8, 0)],
}


@st.composite
def sweeps(draw):
    """A sweep of some axes in any order, perhaps with points left out, and what it has finished."""
    chosen = draw(st.lists(st.sampled_from(sorted(AXES, key=str)), unique=True, max_size=5))
    axes = {name: AXES[name][: draw(st.integers(1, len(AXES[name])))] for name in chosen}
    size = int(np.prod([len(values) for values in axes.values()], dtype=int))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
    further = draw(
        st.fixed_dictionaries(
            {}, optional={"PACK_SIZE": st.integers(1, 7), "OPTIMIZER": st.just("Adagrad")}
        )
    )
    if "WIDTH" not in axes:
        further["WIDTH"] = draw(st.sampled_from([8, 2048]))
    if mask is not None and any(mask):
        further["where"] = lambda config: mask[config.index]
    finished = draw(st.none() | st.lists(st.integers(0, size - 1), unique=True))
    return (
        Sweep(axes=axes, batchfn=batches, **further),
        None if finished is None else np.array(finished, dtype=np.int64),
        draw(st.integers(1, 5)),
    )


@unhurried
@given(sweeps())
def test_every_config_that_is_wanted_is_in_one_pack(drawn):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 1, finished)
    wanted = {config.index for config in sweep} - set([] if finished is None else finished.tolist())
    found = [index for pack in plan for index in plan.indices(pack).tolist()]
    assert sorted(found) == sorted(wanted)
    assert plan.configs == len(wanted)
    assert plan.packs == len(list(plan)) == len({pack.name for pack in plan})


@unhurried
@given(sweeps())
def test_configs_of_a_pack_agree_in_all_that_a_pack_holds_once(drawn):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 1, finished)
    for pack in plan:
        configs = [sweep.config(index).hyperparameters for index in plan.indices(pack).tolist()]
        assert len({repr([getattr(config, name) for name in SHARED]) for config in configs}) == 1


@unhurried
@given(sweeps())
def test_packs_are_no_larger_than_allowed(drawn):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 1, finished)
    largest = sweep.base.pack_size if sweep.base.pack_size != "auto" else LARGEST_PACK
    if sweep.base.optimizer == "Adagrad":
        largest = 1
    sizes = [len(plan.indices(pack)) for pack in plan]
    assert all(1 <= size <= largest for size in sizes)
    assert plan.pack_sizes.tolist() == sizes == [pack.stop - pack.start for pack in plan]


@unhurried
@given(sweeps())
def test_a_plan_comes_back_from_json(drawn):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 3, finished)
    again = through_json(plan)
    assert again.to_json() == plan.to_json()
    assert list(again) == list(plan)
    assert [again.indices(p).tolist() for p in again] == [plan.indices(p).tolist() for p in plan]
    assert (again.threads, again.configs, again.cost) == (3, plan.configs, plan.cost)


@unhurried
@given(sweeps())
def test_a_pack_costs_what_its_configs_cost_one_by_one(drawn):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 1, finished)
    for pack in list(plan)[:5]:
        config = sweep.config(int(plan.indices(pack)[0])).hyperparameters
        settings = {name: getattr(config, name) for name in Hyperparameters.model_fields}
        alone = make_plan(Sweep(batchfn=batches, **settings), 1, 1)
        assert pack.cost == pytest.approx(alone.cost * (pack.stop - pack.start))
    assert plan.cost == pytest.approx(sum(pack.cost for pack in plan))


@pytest.mark.parametrize("values", [[100, 100_000], [100_000, 100]])
def test_costs_do_not_depend_on_the_order_of_an_axis(values):
    plan = planned({"MAX_ITER": values}, EVAL_EVERY="log:20", N_TEST=10_000)
    costs = dict(zip(values, plan.pack_costs.tolist(), strict=True))
    assert costs == {
        n: planned({}, MAX_ITER=n, EVAL_EVERY="log:20", N_TEST=10_000).cost for n in values
    }


@pytest.mark.parametrize("memory", [None, 16 << 30])
def test_thresholds_of_the_test_set_cost_what_its_evaluations_do(memory):
    common = {"axes": {"trial": range(256)}, "WIDTH": 256, "N_TEST": 100_000, "MAX_ITER": 100}
    evaluated, of_loss, of_metric, none = (
        make_plan(Sweep(batchfn=batches, **common, **further), 1, 1, memory=memory)
        for further in (
            {"EVAL_EVERY": 1},
            {"METRIC_THRESHOLDS": {"test_loss": [0.1]}},
            {"METRIC_THRESHOLDS": {"test_r2": [0.9]}},
            {"METRIC_THRESHOLDS": {"train_r2": [0.9]}},
        )
    )
    assert of_loss.cost == of_metric.cost == evaluated.cost > 10 * none.cost
    np.testing.assert_array_equal(of_loss.pack_bytes, evaluated.pack_bytes)
    assert len(of_loss.pack_sizes) == len(of_metric.pack_sizes) > len(none.pack_sizes)


@unhurried
@given(st.data())
def test_the_plan_order_has_the_points_of_a_group_in_one_range(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=4)))
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    outside = data.draw(st.integers(0, len(shape)))
    classes = {}
    for axis in axes[:outside]:
        if data.draw(st.booleans()):
            drawn = data.draw(
                st.lists(st.integers(0, 2), min_size=shape[axis], max_size=shape[axis])
            )
            numbers = {value: number for number, value in enumerate(dict.fromkeys(drawn))}
            classes[axis] = np.array([numbers[value] for value in drawn])
    order = PlanOrder(shape, axes, outside, classes)
    flat = np.arange(int(np.prod(shape, dtype=int)))
    places = order.places(flat)
    assert sorted(places) == flat.tolist()
    assert np.array_equal(order.points(places), flat)
    assert order.group_sizes.sum() == len(flat)
    points = np.unravel_index(order.points(flat), shape) if shape else ()
    of_group = [
        tuple(
            int(classes[a][points[a][i]]) if a in classes else int(points[a][i])
            for a in axes[:outside]
        )
        for i in flat
    ]
    assert of_group == sorted(of_group)
    assert [of_group.count(group) for group in sorted(set(of_group))] == order.group_sizes.tolist()
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(flat), max_size=len(flat))))
    by_group = np.repeat(np.arange(len(order.group_sizes)), order.group_sizes)
    counts = np.bincount(by_group[kept], minlength=len(order.group_sizes))
    assert np.array_equal(order.group_counts(kept), counts)


# ---- particular sweeps ---------------------------------------------------------------------------


def test_configs_that_differ_in_stacked_settings_share_a_pack():
    plan = planned(
        {"LR": [0.1, 0.2], "WIDTH": [4, 8], "trial": range(3), "noise": [1, 2]}, max_tasks=1
    )
    assert [plan.indices(pack).tolist() for pack in plan] == [
        [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17],
        [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23],
    ]
    assert [pack.name for pack in plan] == ["0000000", "0000001"]


def test_points_of_a_zipped_axis_pack_by_shape_wherever_they_stand():
    widths = [4, 8, 4, 8, 8, 4, 16]
    axes = {("LR", "WIDTH"): [(0.1 + n, width) for n, width in enumerate(widths)]}
    plan = planned({**axes, "trial": range(2)}, max_tasks=1)
    assert [plan.indices(pack).tolist() for pack in plan] == [
        [0, 1, 4, 5, 10, 11],
        [2, 3, 6, 7, 8, 9],
        [12, 13],
    ]
    finished = np.array([0, 4, 13])
    left = through_json(planned({**axes, "trial": range(2)}, max_tasks=1, finished=finished))
    assert [left.indices(pack).tolist() for pack in left] == [
        [1, 5, 10, 11],
        [2, 3, 6, 7, 8, 9],
        [12],
    ]
    random.Random(0).shuffle(many := [(0.1 + n, 2 ** (2 + n % 2)) for n in range(40)])
    sweep = Sweep(axes={("LR", "WIDTH"): many}, batchfn=batches)
    plan = make_plan(sweep, 2, 1)
    assert plan.packs == 4
    assert len(workloads_of(plan, sweep).workloads) == 2
    assert plan.to_json()["cost_settings"]["width"] == {
        "axis": 0,
        "values": [many[0][1], 12 - many[0][1]],
    }


@unhurried
@given(st.lists(st.integers(0, 300), min_size=1), st.integers(0, 4))
def test_classes_as_text(drawn, cut):
    numbers = {value: number for number, value in enumerate(dict.fromkeys(drawn))}
    classes = np.array([numbers[value] for value in drawn])
    text = encode_classes(classes)
    assert np.array_equal(decode_classes(text, len(drawn)), classes)
    with pytest.raises(ValueError, match=r"it should have|should be all from 0"):
        decode_classes(text, 5 * len(drawn) + 1)
    with pytest.raises(ValueError, match="should be all from 0 to the largest"):
        decode_classes(encode_classes(np.array([0, 2])), 2)
    with pytest.raises(ValueError, match=r".+"):
        decode_classes(text[:cut], len(drawn))


def test_packs_of_a_group_are_of_nearly_equal_size():
    plan = planned({"trial": range(10)}, max_tasks=1, PACK_SIZE=4)
    assert plan.pack_sizes.tolist() == [3, 3, 4]


def test_large_networks_train_one_by_one():
    assert planned({"WIDTH": [16_384], "trial": range(3)}, max_tasks=1).pack_sizes.tolist() == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("optimizer", ["Adagrad", torch.optim.Rprop])
def test_optimizers_of_torch_train_one_by_one(optimizer):
    assert (
        planned({"trial": range(3)}, max_tasks=1, OPTIMIZER=optimizer).pack_sizes.tolist()
        == [1] * 3
    )


def test_a_group_that_carries_the_cost_is_shared_by_all_tasks():
    for max_tasks in (1, 2, 4):
        assert planned({"trial": range(8)}, max_tasks=max_tasks).packs == max_tasks


@pytest.mark.parametrize(
    ("count", "tasks", "packs", "most"),
    [(32, 2, 16, 16), (9, 4, 3, 3), (17, 2, 6, 9), (7, 3, 3, 3), (5, 2, 2, 3)],
)
def test_packs_of_few_configs_are_a_little_smaller_where_that_evens_the_tasks(
    count, tasks, packs, most
):
    """Of three configs of width 1024 at most: 32 would be 11 packs, of which a task gets six."""
    plan = planned({"WIDTH": [1024], "trial": range(count)}, max_tasks=tasks)
    slices = cut(np.arange(plan.packs), plan.pack_costs, tasks)
    shares = [sum(plan.pack_sizes[start:stop].sum() for start, stop in own) for own in slices]
    assert (plan.packs, max(shares)) == (packs, most)


@pytest.mark.parametrize("max_tasks", [1, 2, 3])
def test_all_tasks_get_as_many_packs(max_tasks):
    """Where a limit on activations makes packs of 13, two tasks would get 21 and 11 configs."""
    offline = {"WIDTH": 256, "ONLINE": False, "N_SAMPLES": 1024, "N_TEST": 10_000}
    plan = planned({"trial": range(36)}, max_tasks=max_tasks, **offline)
    slices = cut(np.arange(plan.packs), plan.pack_costs, max_tasks)
    configs = [sum(plan.pack_sizes[a:b].sum() for a, b in ranges) for ranges in slices]
    assert configs == [36 // max_tasks] * max_tasks
    assert max(plan.pack_sizes) <= 13


def test_a_model_that_takes_no_width_is_not_planned_at_the_default_width():
    def own(channels=8):
        raise NotImplementedError

    def wide(width):
        raise NotImplementedError

    def packs(**given):
        return make_plan(Sweep(axes={"trial": range(32)}, batchfn=batches, **given), 2, 1).packs

    assert packs(MODEL=own) == 2
    assert packs(MODEL=wide) == packs() == packs(MODEL=own, WIDTH=8192) == 32
    assert packs(MODEL=wide, WIDTH=64) == 2


def test_what_costs_more_is_estimated_to_cost_more():
    def cost(**further):
        return planned({}, **{"N_SAMPLES": 100, "MAX_ITER": 1000, **further}).cost

    assert cost(WIDTH=64) < cost(WIDTH=128) < cost(WIDTH=128, DEPTH=4)
    assert cost() < cost(N_SAMPLES=200) < cost(N_SAMPLES=200, MAX_ITER=2000)
    assert cost() == cost(N_TEST=1) < cost(ONLINE=False, N_TEST=1000)
    offline = {"ONLINE": False, "N_TEST": 10_000}
    assert cost(**offline, EVAL_EVERY="log:10") < cost(**offline, EVAL_EVERY=10) < cost(**offline)
    online = {"N_TEST": 1000}
    assert cost() < cost(**online, EVAL_EVERY=10) < cost(**online, EVAL_EVERY=1)
    assert cost(datasethps={"d": 10}) < cost() < cost(datasethps={"d": 1000})


@pytest.mark.parametrize("axes", [{}, {"WIDTH": [4, 8], "trial": range(3)}])
def test_a_plan_of_which_all_is_finished_has_no_packs(axes):
    size = 6 if axes else 1
    plan = through_json(planned(axes, finished=np.arange(size)))
    assert (plan.packs, plan.configs, plan.cost) == (0, 0, 0.0)
    assert list(plan) == plan.pack_costs.tolist() == plan.pack_sizes.tolist() == []
    assert cut(np.arange(0), plan.pack_costs, 3) == []


def test_what_is_finished_need_not_be_kept_by_where():
    axes = {"trial": range(4)}
    plan = planned(axes, finished=np.array([0, 1]), where=lambda config: config.trial % 2)
    assert [plan.indices(pack).tolist() for pack in plan] == [[3]]


@pytest.mark.parametrize(
    "axes",
    [
        {"WIDTH": range(1, 101), "LR": np.linspace(0.1, 1, 100), "trial": range(100)},
        {"LR": np.linspace(0.1, 1, 100), "GAMMA": range(1, 101), "trial": range(100)},
        {"WIDTH": range(16, 1616, 16), "DEPTH": range(1, 101), "trial": range(100)},
        {"trial": range(100), "DEPTH": range(1, 101), "WIDTH": range(16, 1616, 16)},
        {"N_SAMPLES": range(1, 101), "MAX_ITER": range(1, 101), "WIDTH": range(16, 1616, 16)},
        {
            ("WIDTH", "LR"): [(16 * (1 + n * 7919 % 100), 0.1 + n) for n in range(1000)],
            "trial": range(1000),
        },
    ],
    ids=lambda axes: "-".join(map(str, axes)),
)
@pytest.mark.parametrize("max_tasks", [1, 50])
def test_the_plan_of_a_million_configs_is_small(axes, max_tasks):
    plan = planned(axes, max_tasks=max_tasks)
    content = summed_json(plan.to_json())
    assert len(content) < 50_000
    assert plan.configs == 1_000_000
    again = Plan.from_json(json.loads(content))
    ends = [again.indices(again.pack(number)) for number in (0, plan.packs // 2, plan.packs - 1)]
    assert all(len(indices) >= 1 for indices in ends)
    assert again.pack_sizes.sum() == 1_000_000


def test_a_million_configs_are_each_in_one_pack():
    axes = {"WIDTH": range(1, 101), "LR": np.linspace(0.1, 1, 100), "trial": range(100)}
    finished = np.arange(0, 1_000_000, 1000)
    plan = through_json(planned(axes, max_tasks=8, finished=finished))
    seen = np.zeros(1_000_000, dtype=int)
    for pack in plan:
        seen[plan.indices(pack)] += 1
    assert plan.configs == 999_000
    assert (seen[finished] == 0).all()
    assert seen.sum() == 999_000
    assert seen.max() == 1


# ---- slices --------------------------------------------------------------------------------------


def loads_of(slices, costs_by_number):
    return [
        sum(costs_by_number[number] for low, high in ranges for number in range(low, high))
        for ranges in slices
    ]


def check_slices(slices, numbers, costs, tasks):
    """Every pack exactly once, none empty, ranges as they should be, loads as level as they can."""
    numbers, costs = list(map(int, numbers)), list(map(float, costs))
    assert all(slices)
    assert len(slices) == min(tasks, len(numbers))
    ranges = [(low, high) for each in slices for low, high in each]
    assert all(low < high for low, high in ranges)
    found = [number for low, high in ranges for number in range(low, high)]
    assert sorted(found) == numbers
    loads = loads_of(slices, dict(zip(numbers, costs, strict=True)))
    loads += [0.0] * (tasks - len(slices))
    # Costs within 1% of each other count as equal.
    assert max(loads) <= 1.011 * (min(loads) + max(costs))


costs_lists = st.lists(
    st.tuples(st.floats(1, 1e18) | st.integers(0, 17).map(lambda n: 10.0**n), st.integers(1, 50)),
    min_size=1,
    max_size=8,
).map(lambda runs: [cost for cost, count in runs for _ in range(count)])


@unhurried
@given(costs_lists, st.integers(1, 9), st.randoms(use_true_random=False))
@example([1.0] * 100 + [1.045] * 100, 2, random.Random(0))
def test_slices_hold_every_pack_once_and_are_balanced(costs, tasks, rng):
    numbers = sorted(rng.sample(range(2 * len(costs)), len(costs)))
    slices = cut(np.array(numbers), np.array(costs), tasks)
    check_slices(slices, numbers, costs, tasks)


@unhurried
@given(sweeps(), st.integers(1, 6))
def test_slices_of_a_plan_are_balanced(drawn, tasks):
    sweep, finished, max_tasks = drawn
    plan = make_plan(sweep, max_tasks, 1, finished)
    numbers = np.arange(plan.packs)
    slices = cut(numbers, plan.pack_costs, tasks)
    if plan.packs:
        check_slices(slices, numbers, plan.pack_costs, tasks)
    else:
        assert slices == []
    assert json.loads(json.dumps(slices)) == [[list(r) for r in ranges] for ranges in slices]


@pytest.mark.parametrize("max_tasks", [2, 4])
def test_narrow_and_wide_networks_are_shared_fairly(max_tasks):
    plan = planned({"WIDTH": [64, 4096], "trial": range(8)}, max_tasks=max_tasks)
    slices = cut(np.arange(plan.packs), plan.pack_costs, max_tasks)
    loads = np.array(loads_of(slices, plan.pack_costs)) / plan.cost
    assert len(slices) == max_tasks
    assert loads.max() < 1.02 / max_tasks


def test_equal_packs_are_cut_into_long_ranges():
    assert cut(np.arange(10), np.ones(10), 3) == [[(0, 4)], [(4, 7)], [(7, 10)]]
    assert cut(np.array([1, 2, 5, 6]), np.ones(4), 1) == [[(1, 3), (5, 7)]]


def test_the_most_expensive_packs_come_first():
    slices = cut(np.arange(4), np.array([1.0, 100.0, 10.0, 1000.0]), 1)
    assert slices == [[(3, 4), (1, 2), (2, 3), (0, 1)]]


def test_more_tasks_than_packs_leave_no_slice_empty():
    assert cut(np.arange(2), np.array([1.0, 5.0]), 10) == [[(1, 2)], [(0, 1)]]
