"""Runs that a group shares, with real users: what they can read, continue and replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ALICE, BOB, CAROL, OUTSIDER = "games", "news", "man", "lp"


def interrupted(people: Any, **how: Any) -> None:
    """Let Alice launch a run that stops at its first pack, in the middle of its training."""
    home = people.folder / f"home-{ALICE}"
    code, out = people.do(ALICE, lambda: Path("stop").touch() or (0, ""))
    assert code == 0, out
    code, out = people.launch(ALICE, **how)
    assert "stopped by the test" in out
    assert code == 1, out
    (home / "stop").unlink()


def test_a_member_reads_a_shared_run_and_takes_it_over(people: Any) -> None:
    interrupted(people)
    code, out = people.cli(BOB, "status")
    assert "0/2 configs" in out
    refused = people.cli(BOB, "resume", "--executor", "debug")
    assert refused[0] == 2
    assert f"belongs to {ALICE}: resuming it executes the functions and commands in" in refused[1]
    assert f"if you trust {ALICE} and take it over, as your own jobs: --trust" in refused[1]
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert f"taken over from {ALICE}; what is missing trains as your own jobs" in out
    assert code == 0, out
    assert "computed again" not in out
    computed = (people.folder / f"home-{ALICE}/computed").read_text()
    assert computed == "once more\n", "Bob has loaded the data of Alice"
    code, out = people.cli(ALICE, "collect")
    assert "(2 of 2 configs)" in out, "although Bob's umask is 077"
    code, out = people.cli(OUTSIDER, "status", people.run, member=False)
    assert code == 2
    assert "Permission denied; ask the user to whom it belongs, who shares a run with" in out
