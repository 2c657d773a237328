import copy
import json
import pickle
from collections.abc import Mapping

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.batchfns import Monomial
from mlpsubmit.batchfns.monomial import checked_monomials
from mlpsubmit.errors import SpecError

unhurried = settings(deadline=None)  # cores may be shared
monomials = st.dictionaries(st.integers(0, 30), st.integers(1, 5), max_size=4).map(Monomial)


def spelt_out(monomial):
    """The indices with repetition: x_0^2 x_3 is (0, 0, 3)."""
    return tuple(i for i in sorted(monomial) for _ in range(monomial[i]))


def test_is_a_mapping_that_equals_a_dict():
    monomial = Monomial({3: 1, 0: 2})
    assert list(monomial.items()) == [(0, 2), (3, 1)]
    assert monomial == {0: 2, 3: 1}
    assert dict(monomial) == monomial
    assert monomial != {0: 2}
    assert {0: 1} in [Monomial({0: 1})]
    assert Monomial(monomial) == monomial
    assert monomial.get(7) is None
    assert dict(Monomial()) == {}


def test_degrees_and_factors():
    monomial = Monomial({3: 1, 0: 2})
    assert (monomial.degree(), monomial.max_degree()) == (3, 2)
    assert (Monomial().degree(), Monomial().max_degree()) == (0, 0)
    assert monomial.basis() == {0: 2, 3: 1}
    assert type(monomial.basis()) is dict
    assert monomial.basis_factors() == [{0: 1}, {0: 1}, {3: 1}]


def test_evaluates_plain_powers_of_rows_of_arrays_and_tensors():
    X = np.arange(12.0).reshape(3, 4)
    expected = X[:, 0] ** 2 * X[:, 3]
    monomial = Monomial({3: 1, 0: 2})
    np.testing.assert_array_equal(monomial.evaluate(X), expected)
    np.testing.assert_array_equal(monomial.evaluate(X, gamma=0.5), expected / 8)
    tensor = torch.from_numpy(X).float()
    assert torch.equal(monomial.evaluate(tensor), torch.from_numpy(expected).float())
    assert torch.equal(Monomial().evaluate(tensor), torch.ones(3))
    with pytest.raises(ValueError, match=r"\$x_\{4\}\$ has the index 4, but X has 4 columns"):
        Monomial({4: 1}).evaluate(tensor)


def test_numpy_integers_and_the_string_keys_of_json_become_ints():
    monomial = Monomial({np.int64(2): np.int32(3), "5": 1})
    assert {type(number) for item in monomial.items() for number in item} == {int}
    assert monomial == {2: 3, 5: 1}
    assert Monomial(json.loads(json.dumps(monomial.basis()))) == monomial


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({0: 0}, r"exponents of a monomial are integers >= 1; got 0 in \{0: 0\}"),
        ({0: -1}, r"exponents of a monomial are integers >= 1; got -1"),
        ({-2: 1}, r"the indices of a monomial are integers >= 0; got -2"),
        ({0: 1.5}, r"got 1\.5 in \{0: 1\.5\}"),
        ({0: True}, r"got True"),
        ({0.0: 1}, r"got 0\.0"),
        ({"a": 1}, r"got 'a'"),
        ({None: 1}, r"got None"),
        ({0: "1"}, r"exponents of a monomial .* got '1'"),
        ({"1": 1, 1: 1}, r"each index once; got 1 twice"),
        ([(0, 1)], r"mapping index -> exponent; got \[\(0, 1\)\]; try Monomial\(\{0: 1\}\)"),
        (None, r"mapping index -> exponent; got None"),
    ],
)
def test_bad_entries(entries, message):
    with pytest.raises(ValueError, match=message):
        Monomial(entries)


def test_does_not_change():
    monomial = Monomial({0: 1})
    with pytest.raises(TypeError, match=r"build another one: Monomial\(\{\*\*m, 3: 2\}\)"):
        monomial[3] = 2
    with pytest.raises(TypeError, match=r"del exponents\[0\]; Monomial\(exponents\)"):
        del monomial[0]
    given = {0: 1}
    made = Monomial(given)
    given[0] = 5
    made.basis()[0] = 5
    assert made == {0: 1}
    assert made.copy() is made
    assert copy.deepcopy(made) == made


@unhurried
@given(monomials, monomials)
def test_order_is_total_and_agrees_with_equality(a, b):
    assert (a < b) + (a == b) + (b < a) == 1
    key_a, key_b = ((m.degree(), spelt_out(m)) for m in (a, b))
    assert (a < b) == (key_a < key_b)
    assert (a <= b) == (key_a <= key_b)


def test_order_of_degree_two():
    squares = [Monomial({1: 2}), Monomial({0: 1, 1: 1}), Monomial({2: 1}), Monomial({0: 2})]
    assert [str(m) for m in sorted(squares)] == [
        "$x_{2}$",
        "$x_{0}^2$",
        "$x_{0}x_{1}$",
        "$x_{1}^2$",
    ]
    with pytest.raises(TypeError):
        assert squares[0] < 3


@unhurried
@given(monomials, monomials)
def test_product_adds_exponents(a, b):
    assert spelt_out(a * b) == tuple(sorted(spelt_out(a) + spelt_out(b)))
    assert a * b == b * a == a * b.basis() == a.basis() * b
    assert a * Monomial() == a
    with pytest.raises(TypeError):
        a * 2


@unhurried
@given(monomials)
def test_equal_monomials_share_hash_and_text_whatever_the_order_of_entries(monomial):
    turned = Monomial(dict(reversed(list(monomial.items()))))
    assert hash(turned) == hash(monomial)
    assert repr(turned) == str(monomial)
    assert {monomial: 1}[turned] == 1


@unhurried
@given(monomials)
def test_text_and_pickles_come_back(monomial):
    assert Monomial.from_repr(repr(monomial)) == monomial
    for back in (
        pickle.loads(pickle.dumps(monomial)),
        pickle.loads(cloudpickle.dumps(monomial)),
    ):
        assert type(back) is Monomial
        assert back == monomial


def test_text():
    assert repr(Monomial({3: 1, 0: 2})) == "$x_{0}^2x_{3}$"
    assert str(Monomial()) == "1"
    for text in ("x_{0}^2x_{3}", " $ x_{0}^2 x_{3} $ ", "$x_{0}x_{3}x_{0}$"):
        assert Monomial.from_repr(text) == {0: 2, 3: 1}
    assert Monomial.from_repr("$1$") == Monomial.from_repr("1") == Monomial()


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("$$", 1),
        ("hello", 0),
        ("$x_{0}$ + 1", 0),
        ("$x_{0} + x_{1}$", 7),
        ("$x_{0}x_{a}$", 6),
        ("x_{0}^0", 0),
        ("x_{0}^", 5),
        ("x_{-1}", 0),
        ("x_0", 0),
    ],
)
def test_bad_text_names_the_position(text, position):
    with pytest.raises(ValueError, match=rf"no monomial: .* at position {position}; valid are '1'"):
        Monomial.from_repr(text)


@pytest.mark.parametrize("given", [{0: 2, 3: 1}, Monomial({3: 1, 0: 2})])
def test_one_monomial_or_several_become_a_list(given):
    assert checked_monomials("f", given, 4) == [given]
    assert checked_monomials("f", [given, {}], 4) == [given, {}]
    assert checked_monomials("f", ({},), np.int64(1)) == [{}]
    assert all(type(monomial) is Monomial for monomial in checked_monomials("f", (given, {}), 4))


@pytest.mark.parametrize(
    ("monomials", "message"),
    [
        (
            {5: 1},
            r"^f: the monomial \$x_\{5\}\$ has the index 5, but d=5; .* 0 to 4; try a larger d$",
        ),
        ([{0: 1}, {9: 2, 7: 1}], r"\$x_\{7\}x_\{9\}\^2\$ has the index 9, but d=5"),
        ({0: 0}, r"^f: bad monomial \{0: 0\}: the exponents of a monomial are .* >= 1; got 0"),
        ("x_0", r"^f: bad monomial 'x_0': a monomial is a mapping"),
        (3, r"^f: bad monomial 3: a monomial is a mapping"),
        ([], r"^f: got no monomials; try Monomial\(\{0: 1\}\)$"),
        (None, r"^f: got no monomials; try Monomial"),
    ],
)
def test_monomials_that_do_not_fit_the_coordinates(monomials, message):
    with pytest.raises(SpecError, match=message):
        checked_monomials("f", monomials, 5)


def test_all_monomials_that_do_not_fit_are_listed():
    with pytest.raises(SpecError, match=r"3 errors") as caught:
        checked_monomials("f", [{7: 1}, {0: 1}, {1: -1}, {8: 1}], 5, dimension="k")
    assert caught.value.errors[2].endswith("the index 8, but k=5; valid are 0 to 4; try a larger k")


def test_it_equals_its_text_and_is_still_a_mapping():
    monomial = Monomial({0: 2, 3: 1})
    assert monomial == "$x_{0}^2x_{3}$" == monomial == {3: 1, 0: 2}
    assert monomial != "x_{0}^2x_{3}"
    assert hash(monomial) == hash(str(monomial))
    assert {monomial: 1}["$x_{0}^2x_{3}$"] == 1
    assert Monomial() == "1"
    assert isinstance(monomial, Mapping)
    assert dict(monomial) == {**monomial} == {0: 2, 3: 1}
    assert (monomial[3], monomial.get(0), list(monomial.keys())) == (1, 2, [0, 3])
    with pytest.raises(KeyError):
        monomial[1]


def test_arrays_of_monomials_have_their_texts():
    monomials = [Monomial({0: 1}), Monomial({0: 1, 1: 1}), Monomial()]
    assert np.asarray(monomials[0]).shape == ()
    assert np.array(monomials).tolist() == ["$x_{0}$", "$x_{0}x_{1}$", "1"]
    assert list(np.array(monomials, dtype=object)) == monomials
