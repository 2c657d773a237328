"""Write docs/library.md, a table of every function of the library, from the docstrings.

.venv/bin/python docs/library.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlpsubmit.batchfns
import mlpsubmit.grabs
from mlpsubmit.protocol import SUPPLIED as LOOP

#: Names that the train loop supplies, and hyperparameters that functions of the library take.
SUPPLIED = LOOP | {"online", "n_train", "n_test", "loss", "centered"}

PAGE = Path(__file__).with_name("library.md")

HEAD = """\
# The library

Every function of `mlpsubmit.batchfns` (data) and `mlpsubmit.grabs` (measurements), with a line of
use. The docstrings have the details, with shapes, formulas and references:
`help(mlpsubmit.grabs.sharpness)`.

In a sweep, arguments are supplied by name: from the axes, the fixed settings, `datasethps`, and the
data entries that `data=` returned. The signatures here omit the arguments that the train loop
supplies (`bsz`, `gen`, `model`, `X_tr`, ...), and default values of None. See [spec.md](spec.md).

<!-- Written by docs/library.py from the docstrings; a test holds the two together. -->
"""

#: The functions under each heading, in the order of the page.
SECTIONS: dict[tuple[ModuleType, str], list[str]] = {
    (mlpsubmit.batchfns, "Data recipes, for `data=`"): [
        *("power_law", "images", "synthetic", "modular_addition"),
    ],
    (mlpsubmit.batchfns, "Recipes that change the data of another one"): [
        *("held_out", "label_noise", "corruption"),
    ],
    (mlpsubmit.batchfns, "Batch functions, for `batchfn=`"): [
        *("polynomial", "sparse_parity", "multi_index", "teacher"),
        *("sample", "epochs", "arrays", "from_dataset"),
    ],
    (mlpsubmit.batchfns, "Inside your own batch functions"): [
        "randn",
    ],
    (mlpsubmit.batchfns, "Monomials, Hermite polynomials, weights of teachers"): [
        *("Monomial", "hermite", "hermite_features", "teacher_weights"),
    ],
    (mlpsubmit.batchfns, "Eigenstructure of kernels on Gaussian data"): [
        *("hea_monomials", "hea_eigenvalue"),
        *("relu_ntk_level_coeffs", "gaussian_level_coeffs", "exponential_level_coeffs"),
    ],
    (mlpsubmit.grabs, "Weights"): [
        *("weight", "bias", "readin_weight", "readout_weight"),
        *("weight_norms", "spectral_norms", "singular_values", "distance_from_init"),
    ],
    (mlpsubmit.grabs, "Gram matrices of weights"): [
        *("weight_gram", "gram_trace", "gram_diagonal"),
        *("readin_gram", "readin_gram_trace", "readin_gram_diagonal"),
    ],
    (mlpsubmit.grabs, "Functions of a matrix, for `OTHER_MODEL_GRAM`"): [
        *("trace", "diagonal", "entry"),
    ],
    (mlpsubmit.grabs, "Activations"): ["activations", "activation_kernel", "preactivation_stats"],
    (mlpsubmit.grabs, "Gradients and curvature"): [
        *("gradient_norm", "gradient_norms", "sharpness", "hessian_eigenvalues"),
    ],
    (mlpsubmit.grabs, "The neural tangent kernel"): [
        *("empirical_ntk", "empirical_ntk_trace", "ntk_alignment"),
        *("ntk_eigenvalues", "ntk_eigenvectors"),
    ],
    (mlpsubmit.grabs, "The learned function"): ["monomial_coefficients", "held_out_loss"],
    (mlpsubmit.grabs, "Grabs on the test set, with named dimensions, and by name"): [
        *("on_test_set", "grab", "by_name"),
    ],
}

TITLES = {
    mlpsubmit.batchfns: "## Data and batch functions: `mlpsubmit.batchfns`",
    mlpsubmit.grabs: "## Grabs: `mlpsubmit.grabs`",
}


def page() -> str:
    """Return the whole text of docs/library.md."""
    parts = [HEAD]
    titles = dict(TITLES)
    for (package, heading), names in SECTIONS.items():
        if package in titles:
            parts.append(titles.pop(package))
        parts.append(f"### {heading}\n\n{_table(package, names)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def public(package: ModuleType) -> dict[str, Any]:
    """Return the public functions and classes of a package, by name."""
    values = {name: getattr(package, name) for name in package.__all__}
    return {
        name: value
        for name, value in values.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


def example(value: Any) -> str:
    """Return the first line of the Example in a function's docstring."""
    _, _, text = (inspect.getdoc(value) or "").partition("Example:")
    line = re.search(r">>> (.*)", text)
    if line is None:
        raise ValueError(f"{value.__name__} has no Example in its docstring")
    return re.sub(r"\s*# doctest:.*", "", line[1])


def _table(package: ModuleType, names: Sequence[str]) -> str:
    rows = ["| function | what it does | for example |", "|---|---|---|"]
    for name in names:
        value = getattr(package, name)
        cells = (f"`{_signature(name, value)}`", _summary(value), f"`{example(value)}`")
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _summary(value: Any) -> str:
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    text = " ".join(textwrap.dedent(paragraph).split()).replace("``", "`")
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return re.sub(r":math:`(.+?)`", lambda m: f"${m[1].replace('|', chr(92) + 'vert ')}$", text)


def _signature(name: str, value: Any) -> str:
    """Return the arguments that a user gives, with defaults other than None."""
    parameters = inspect.signature(value).parameters
    supplied = SUPPLIED if {"gen", "model"} & set(parameters) else set()
    given = [p for p in parameters.values() if p.name not in supplied]
    plain = (int, float, str, bool)
    shown = [f"{p.name}={p.default!r}" if isinstance(p.default, plain) else p.name for p in given]
    return f"{name}({', '.join(shown)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
