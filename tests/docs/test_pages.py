"""The documentation agrees with the code."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from mlpsubmit import launch
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.load import load_spec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_the_table_of_hyperparameters_is_the_model() -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| `(.*?)` \| (.*) \|$", (ROOT / "docs/spec.md").read_text(), re.M
    )
    fields = Hyperparameters.model_fields
    wanted = [(n.upper(), repr(f.default), f.description) for n, f in fields.items()]
    assert rows == wanted


def test_the_table_of_heartbeats_is_what_a_task_writes(workplace: Path) -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", text[text.index("The fields of a heartbeat") :], re.M)
    documented = {field for row in rows for field in re.findall(r"`(\w+)`", row)}
    run = launch(load_spec(workplace / "small.py"), executor="debug")
    (beat,) = run.directory.heartbeats().values()
    assert documented - set(beat) == {"error"}  # that of a crash
    assert not set(beat) - documented


#: Quotes of docs/slurm.md that are another program's words, or too short to be searched for.
OTHERS = {
    "waiting  queued again: BeginTime",
    "No space left on device",
    "failed: ValueError: my bug (4 configs: noise=0.3)",
    "crashed  the sweep was launched with Python 3.11, and this is Python 3.12 ...",
    "No module named 'mlpsubmit'",
}


def test_the_failures_on_a_cluster_quote_messages_of_the_code() -> None:
    text = (ROOT / "docs" / "slurm.md").read_text()
    table = text[text.index("| event |") : text.index("\nNotes:")]
    cells = [line.split("|")[3] for line in table.splitlines() if line.startswith("|")]
    quotes = {quote for cell in cells for quote in re.findall(r"`(.*?)`", cell) if " " in quote}
    assert quotes > OTHERS
    pieces = set()
    for file in [*ROOT.glob("jobs/**/*.py"), *ROOT.glob("mlpsubmit/cli/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces |= {piece.strip() for piece in re.split(r"[:;]", node.value)}
    messages = {piece for piece in pieces if len(piece) >= 12 and " " in piece}
    for quote in quotes - OTHERS:
        assert any(message in quote for message in messages), f"slurm.md quotes {quote!r}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_the_files_that_pages_name_exist() -> None:
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "docs" / "extending.md"}
    named = {
        name
        for page in pages
        for name in re.findall(r"[` ]((?:[\w-]+/)+[\w-]+\.(?:py|md|ipynb))\b", page.read_text())
    }
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "mlpsubmit" / name).exists(), name


def test_the_extras_that_pages_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "".join(page.read_text() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    named = set(re.findall(r"(?:\.|mlpsubmit)\[([a-z]+)\]", text))
    named |= set(re.findall(r"^\| extra `(\w+)`", text, re.M))
    assert named == set(project["optional-dependencies"])


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = (ROOT / "CONTRIBUTING.md").read_text()
    for requirement in project["dependencies"]:
        name = re.split(r"[^\w-]", requirement)[0]
        assert re.search(rf"^\|.*\b{name}\b.*\|", reasons, re.M), f"{name} has no reason"
