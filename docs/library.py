"""Writes docs/library.md: every function of the library, from its docstring.

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

#: Names that the train loop supplies, and the hyperparameters that functions of the library read.
SUPPLIED = LOOP | {"online", "n_train", "n_test", "loss", "centered"}

PAGE = Path(__file__).with_name("library.md")

HEAD = """\
# The library

Every function of `mlpsubmit.batchfns` and `mlpsubmit.grabs`, with one line of use. Shapes, formulas
and where they come from stand in the docstrings: `help(mlpsubmit.grabs.sharpness)`.

Arguments that you do not give come by name from axes, fixed settings, `datasethps` or what `data=`
returned; those that the train loop supplies (`bsz`, `gen`, `model`, `X_tr`, ...) are left out here.
See [spec.md](spec.md).

<!-- Written by docs/library.py from the docstrings; a test holds the two together. -->
"""

#: What stands under which heading, in the order of the page.
SECTIONS: dict[tuple[ModuleType, str], list[str]] = {
    (mlpsubmit.batchfns, "Data recipes, for `data=`"): [
        *("power_law", "images", "synthetic", "modular_addition"),
    ],
    (mlpsubmit.batchfns, "Batch functions, for `batchfn=`"): [
        *("polynomial", "sparse_parity", "multi_index", "teacher", "teacher_weights"),
        *("sample", "arrays", "from_dataset"),
    ],
    (mlpsubmit.batchfns, "Monomials and Hermite polynomials"): [
        *("Monomial", "hermite", "hermite_features"),
    ],
    (mlpsubmit.batchfns, "The eigenstructure of kernels on Gaussian data"): [
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
    (mlpsubmit.grabs, "Of a matrix, which `OTHER_MODEL_GRAM` chooses"): [
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
    (mlpsubmit.grabs, "Grabs out of grabs"): ["on_test_set", "by_name"],
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
    """Return the functions and classes that a package offers, by name."""
    offered = {name: getattr(package, name) for name in package.__all__}
    return {
        name: value
        for name, value in offered.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


def example(value: Any) -> str:
    """Return the line that shows the use of a function: the first of its docstring's Example."""
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
    """Return what a user gives, with defaults; None stands for an argument that is left out."""
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
