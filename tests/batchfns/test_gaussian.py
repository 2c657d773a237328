import inspect
import math

import numpy as np
import pytest
import torch

from mlpsubmit.batchfns import power_law
from mlpsubmit.errors import SpecError


def test_eigenvalues_follow_the_power_law():
    eigvals = power_law(d=200, alpha=2.0, offset=6)()["data_eigvals"]
    assert eigvals.shape == (200,)
    assert eigvals.dtype == torch.float32
    expected = [1 / (6 + i) ** 2 for i in range(200)]
    total = math.fsum(expected)
    np.testing.assert_allclose(eigvals.numpy(), np.array(expected) / total, rtol=1e-6)
    assert float(eigvals.double().sum()) == pytest.approx(1, abs=1e-6)


def test_offset_one_unnormalized_is_the_plain_power_law():
    eigvals = power_law(d=4, alpha=1, offset=1, normalized=False)()["data_eigvals"]
    np.testing.assert_allclose(eigvals.numpy(), [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)


def test_alpha_zero_is_isotropic():
    assert torch.equal(power_law(d=4, alpha=0)()["data_eigvals"], torch.full((4,), 0.25))


def test_arguments_show_in_the_signature_and_can_be_overridden():
    recipe = power_law(d=3, offset=2)
    parameters = inspect.signature(recipe).parameters
    assert set(parameters) == {"d", "alpha", "offset", "normalized"}
    assert parameters["d"].default == 3
    assert parameters["alpha"].default is inspect.Parameter.empty
    assert len(recipe(alpha=1.0, d=np.int64(5))["data_eigvals"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0}, r"power_law: got d=0; valid is an integer >= 1, such as 200"),
        ({"d": 2.5}, r"got d=2\.5"),
        ({"d": True}, r"got d=True"),
        ({"alpha": -1.0}, r"got alpha=-1\.0; valid is a finite number >= 0"),
        ({"alpha": math.nan}, r"got alpha=nan"),
        ({"alpha": "2"}, r"got alpha='2'"),
        ({"offset": 0}, r"got offset=0; valid is a finite number > 0, where 1 gives the plain"),
        ({"normalized": "False"}, r"got normalized='False'; valid is True or False"),
    ],
)
def test_bad_values_are_refused_here_and_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        power_law(**arguments)
    with pytest.raises(SpecError, match=message):
        power_law(d=3, alpha=1.0)(**arguments)


def test_all_bad_values_are_listed_together():
    with pytest.raises(SpecError, match=r"2 errors") as caught:
        power_law(d=-1, alpha=1.0, offset=-2)
    assert len(caught.value.errors) == 2
