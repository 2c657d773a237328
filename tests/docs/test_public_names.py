import importlib
import pickle
import subprocess
import sys
import types

import pytest

import mlpsubmit.batchfns
import mlpsubmit.grabs


def run(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("package", ["batchfns", "grabs"])
def test_importing_the_packages_and_monomial_does_not_import_torch(package):
    run(
        f"import sys, mlpsubmit.{package}; from mlpsubmit.batchfns import Monomial; "
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)"
    )


@pytest.mark.parametrize("package", [mlpsubmit.batchfns, mlpsubmit.grabs])
def test_public_names_are_there(package):
    assert sorted(package.__all__) == list(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        value = getattr(package, name)
        assert not isinstance(value, types.ModuleType)
    with pytest.raises(AttributeError, match=r"attribute nonsense"):
        _ = package.nonsense


@pytest.mark.parametrize(
    "name",
    [
        *("arrays", "corruption", "epochs", "held_out", "hermite", "images", "label_noise"),
        *("multi_index", "polynomial", "synthetic", "teacher"),
    ],
)
def test_a_function_is_not_shadowed_by_the_module_it_comes_from(name):
    module = importlib.import_module(f"mlpsubmit.batchfns._{name}")
    assert isinstance(module, types.ModuleType)
    function = getattr(mlpsubmit.batchfns, name)
    assert function is getattr(module, name)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.slow
def test_a_module_that_is_imported_first_shadows_nothing():
    run(
        "from mlpsubmit.batchfns._polynomial import polynomial as function; "
        "from mlpsubmit.batchfns import hermite, polynomial; "
        "assert polynomial is function and hermite.__name__ == 'hermite'"
    )
