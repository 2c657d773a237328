"""How a pack is divided until the configs that fail are alone."""

from __future__ import annotations

import pytest

from mlpsubmit.jobs.pack_parts import PackParts


def trained(size: int, failing: set[int]) -> tuple[list[list[int]], set[int], int]:
    """Divide a pack until nothing is left, as if parts with a config of ``failing`` fail whole.

    Returns:
        the parts that were trained, the configs set aside, and how many parts were tried.
    """
    parts, done, failed = PackParts.whole(size), set[int](), set[int]()
    finished, tries = [], 0
    while parts.left:
        part, tries = parts.left[0], tries + 1
        if failing.isdisjoint(part):
            finished.append(part)
            done.update(part)
            parts.drop_first()
        elif len(part) == 1:
            failed.update(part)
            parts.set_aside(part, (), done)
        else:
            parts.divide(part, done)
    return finished, failed, tries


@pytest.mark.parametrize(
    ("failing", "tries"),
    [(set(), 1), ({5}, 13), ({63}, 13), ({8, 9}, 13), (set(range(64)), 75)],
)
def test_only_configs_that_fail_are_set_aside(failing: set[int], tries: int) -> None:
    finished, failed, tried = trained(64, failing)
    assert failed == failing
    assert sorted(row for part in finished for row in part) == sorted(set(range(64)) - failing)
    assert tried == tries


def test_an_innocent_config_among_many_that_fail_is_trained() -> None:
    finished, failed, tried = trained(512, set(range(512)) - {300})
    assert finished == [[300]]
    assert len(failed) == 511
    assert tried < 512 + 20


def test_one_that_fails_costs_few_trainings_of_the_others() -> None:
    finished, _, tried = trained(512, {100})
    assert tried == 19
    assert max(map(len, finished)) == 256


def test_configs_of_one_stack_are_divided_and_the_other_stacks_stay() -> None:
    parts = PackParts([[0, 1, 2, 3, 4, 5]])
    parts.divide([1, 3, 5], {0})  # the stack of 0 is done, that of 2 and 4 has yet to train
    assert parts.left == [[1, 3], [5], [2, 4]]
    assert parts.divided
    assert not parts.halved


def test_configs_set_aside_leave_the_others_together() -> None:
    parts = PackParts([[0, 1, 2, 3], [4, 5]], siblings=2)
    parts.set_aside([1], [3], set())
    assert (parts.left, parts.siblings) == ([[0, 2], [4, 5], [3]], 2)
    parts.set_aside([0, 2], [], set())
    assert (parts.left, parts.siblings) == ([[4, 5], [3]], 1)
