"""Users of one group on a real cluster: one launches, another takes over."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "people", Path(__file__).parents[1] / "users/people.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
PEOPLE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(PEOPLE)

#: Of one primary group, which a job has as well, on every Debian.
ALICE, BOB, GROUP = "sync", "nobody", "nogroup"

SMALL = ("--partition", "urgent", "--gpus", "0", "--cpus", "1", "--mem", "600M", "--tasks", "1")


@pytest.fixture
def people(study: Any) -> Iterator[Any]:
    """Users of the cluster, with a study that trains slowly as long as a file is there."""
    folder = Path(tempfile.mkdtemp(prefix="mlpsubmit-users-", dir="/tmp"))
    folder.chmod(0o1777)
    spec = study.spec("shared").read_text()
    spec = spec.replace(str(study.folder), str(folder))
    (folder / "study.py").write_text(spec)
    (folder / "shared.pace").write_bytes(b"." * 50)
    for file in folder.iterdir():
        file.chmod(0o644)
    yield PEOPLE.People(folder)
    shutil.rmtree(folder)


def test_a_run_of_one_user_is_continued_by_another(people: Any, study: Any, wait_for: Any) -> None:
    cli = people.cli
    how = (*SMALL, "--group", GROUP, "--time", "10", "--sbatch", "comment=of-alice")
    code, out = cli(ALICE, "launch", people.folder / "study.py", *how, member=False)
    assert code == 0, out
    (path,) = (people.folder / "runs/shared").glob("[!.]*")
    run = study.open(path)
    wait_for(lambda: run.directory.heartbeats() and list((path / "checkpoints").glob("*.pt")))
    code, out = cli(BOB, "status", member=False)
    assert f"running  (user {ALICE})" in out
    code, out = cli(BOB, "resume", "--trust", member=False)
    assert (code, "is still running; wait for it to end" in out) == (2, True), out
    code, out = cli(BOB, "cancel", member=False)
    assert (code, f"only {ALICE} can stop them; ask {ALICE} to run" in out) == (2, True), out
    assert cli(ALICE, "cancel", member=False)[0] == 0
    (people.folder / "shared.pace").write_bytes(b"")
    code, out = cli(BOB, "resume", member=False)
    assert (code, f"if you trust {ALICE} and take it over" in out) == (2, True), out
    code, out = cli(BOB, "resume", "--trust", *SMALL, "--time", "9", member=False)
    assert (code, f"taken over from {ALICE}" in out) == (0, True), out
    wait_for(lambda: not run.status().busy)
    code, out = cli(ALICE, "collect", member=False)
    assert "(4 of 4 configs)" in out
    assert "pack 000000" in cli(ALICE, "logs", path, "001-0000", member=False)[1], "umask 077"
    assert run.directory.intent(0)["template"]["sbatch"]["comment"] == "of-alice"
    assert "comment" not in (run.directory.intent(1)["template"]["sbatch"] or {})
    # The controller sends its records to the accounting some time after it has made them.
    wait_for(lambda: _users_of(study.cluster, path.name) == {ALICE, BOB})


def _users_of(cluster: Any, run: str) -> set[str]:
    """Return who has submitted jobs of a run, as the accounting has it."""
    rows = cluster.run("sacct", "-n", "-X", "-a", "-o", "user,jobname%60").stdout.splitlines()
    return {row.split()[0] for row in rows if run in row}
