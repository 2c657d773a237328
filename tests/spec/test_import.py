"""``from mlpsubmit import Sweep`` is quick: it imports no more than a spec needs."""

from __future__ import annotations

import subprocess
import sys

#: Of other projects, to check what the user writes. All of it together takes a sixth of a second.
QUICK = {
    *("mlpsubmit", "lazy_loader", "numpy", "pydantic", "pydantic_core"),
    *("annotated_types", "typing_extensions", "typing_inspection"),
}

IMPORTED = """
import sys
before = set(sys.modules)  # what the interpreter itself imports, such as for editable installs
from mlpsubmit import Sweep
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*(name for name in new - sys.stdlib_module_names if not name.startswith("_sysconfigdata")))
"""


def test_a_sweep_is_imported_without_torch_and_other_heavy_packages() -> None:
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= QUICK
