"""Runs that a group shares, with real users: what they can read, continue and replace."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import files
from mlpsubmit.checksums import sealed
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import sweep_hash

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
    assert f"if you trust {ALICE} and take it over, with jobs of your own: --trust" in refused[1]
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert f"taken over from {ALICE}; the missing configs will be trained in your jobs" in out
    assert code == 0, out
    assert "computed again" not in out
    assert len(list(people.folder.glob("computed-*"))) == 1, "Bob has loaded the data of Alice"
    code, out = people.cli(ALICE, "collect")
    assert "(2 of 2 configs)" in out, "although Bob's umask is 077"
    refused = people.cli(ALICE, "resume")
    assert refused[0] == 2
    assert f"was resumed last by {BOB}; let {BOB} resume it, or, if you take it over" in refused[1]
    assert people.cli(ALICE, "resume", "--trust", "--executor", "debug")[0] == 0
    assert f"study  {people.run.name}  done  (user {BOB})" in people.cli(ALICE, "status")[1]
    shown = people.cli(ALICE, "show")[1]
    assert f"launched and resumed by {ALICE}, then {BOB}\n" in shown
    assert f" {BOB} " in people.cli(CAROL, "ls")[1]
    code, out = people.cli(OUTSIDER, "status", people.run, member=False)
    assert code == 2
    assert "Permission denied; ask the user to whom it belongs, who shares a run with" in out


class Planted:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("open('planted', 'w')",)


def test_what_a_member_changes_is_executed_by_nobody_else(people: Any) -> None:
    interrupted(people)
    (data,) = (people.run / "data").glob("*.pt")

    def attack() -> list[str]:
        done = []
        for name in ("sweep.pkl", "sweep.json", "plan.json", "compiled", "submissions/000"):
            try:
                os.rename(people.run / name, people.run / f"{name}.old")
            except PermissionError:
                continue
            done.append(name)
        for name in ("sweep.pkl", "sweep.json", "compiled/x", "submissions/000/array.0.sh"):
            try:
                (people.run / name).write_text("x")
            except PermissionError:
                continue
            done.append(name)
        (people.folder / "home-man/x").write_text("")
        files.publish(data, sealed(pickle.dumps(Planted())))
        (data.with_suffix(".lock")).unlink()
        (data.with_suffix(".lock")).symlink_to(people.folder / f"home-{BOB}/created")
        return done

    assert people.do(CAROL, attack) == []
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert code != 0
    assert "Too many levels of symbolic links" in out
    people.do(CAROL, data.with_suffix(".lock").unlink)
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert code == 0, out
    assert f"{data}: is damaged; its data is computed again" in out
    assert not (people.folder / f"home-{BOB}/created").exists()
    assert not list(people.folder.glob("home-*/planted"))


def test_data_with_objects_of_another_member_is_computed_again(people: Any) -> None:
    """Loading arrays executes nothing; loading objects would."""
    spec = (people.folder / "study.py").read_text()
    changed = spec.replace('{"scale": torch.ones(1)}', '{"scale": torch.ones(1), "o": Path("x")}')
    (people.folder / "study.py").write_text(changed)
    interrupted(people)
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert code == 0, out
    assert "is another user's, and holds more than arrays and numbers; its data is computed" in out


def test_the_retry_job_of_one_user_leaves_the_run_to_the_next(people: Any) -> None:
    interrupted(people)
    carried = people.do(ALICE, lambda: sweep_hash(RunDirectory(people.run)))
    assert people.cli(BOB, "resume", "--trust", "--executor", "debug")[0] == 0
    job = ("resume", people.run, "--after", "0", "--sweep-hash", carried, "--retries", "1")
    code, out = people.cli(ALICE, *job)
    assert (code, "0 packs to train" in out) == (0, True), out
    assert people.do(ALICE, lambda: RunDirectory(people.run).submissions()) == [0, 1]


def test_of_two_users_one_gets_the_run(people: Any) -> None:
    interrupted(people)

    def meanwhile() -> tuple[int, str]:
        with files.locked(people.run / "plan.json"):
            outcome: tuple[int, str] = people._command(("resume", "--trust", "--executor", "debug"))
        return outcome

    code, out = people.do(BOB, meanwhile)
    assert code == 2
    assert "another launch, resume or prune is in progress; wait until it is done" in out


def test_sticky_folders_are_refused_before_anything_is_submitted(people: Any) -> None:
    interrupted(people)
    folder = people.run / "checkpoints"
    people.do(ALICE, lambda: folder.chmod(0o3770))
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert code == 2
    assert f"{folder} is sticky, so that you could not replace what {ALICE} and others have" in out
    assert f"saved there; ask {ALICE} to run: chmod -t {folder}" in out
    assert not (people.run / "submissions/001").exists()


def test_groups_that_cannot_share_a_run(people: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ("launch", people.folder / "study.py", "--executor", "debug")
    code, out = people.cli(ALICE, *study, "--group", "uers")
    assert code == 2
    assert (
        "--group: got 'uers'; no such group (did you mean 'users'?); yours are games, users" in out
    )
    code, out = people.cli(ALICE, *study, "--group", "mail")
    assert code == 2
    assert "--group mail: you are not a member of it; your groups are games, users" in out
    monkeypatch.setattr("mlpsubmit.runs.sharing.set_modes", lambda *_: None)
    code, out = people.cli(ALICE, *study, "--group", "users")
    assert code == 2
    assert "its file system does not keep the group, setgid and the sticky bit; choose" in out
    assert not (people.folder / "runs").exists(), "nothing is half-created"


def test_a_closed_folder_above_a_shared_run_is_named(people: Any) -> None:
    home = people.folder / f"home-{ALICE}"
    people.do(ALICE, lambda: home.chmod(0o700))
    _, out = people.launch(ALICE, "--runs-dir", home / "runs", "--dry-run")
    assert "warning" not in out
    code, out = people.launch(ALICE, "--runs-dir", home / "runs")
    assert code == 0, out
    assert f"warning: --group users: its members cannot get to the run through {home}; open" in out


def test_a_run_that_colleagues_may_only_read(people: Any) -> None:
    """Without --group, at the usual umask: all commands that read work, and resume says why not."""
    study = ("launch", people.folder / "study.py", "--executor", "debug")
    assert people.cli(ALICE, *study, umask=0o022)[0] == 0
    reading = (("status",), ("collect",), ("show",), ("ls",), ("logs",), ("plot",), ("report",))
    for command in (*reading, ("verify",), ("prune",)):
        code, out = people.cli(BOB, *command)
        assert code == 0, (command, out)
    assert "sweep.pkl: is not for this user to read" in people.cli(BOB, "verify")[1]
    code, out = people.cli(BOB, "resume", "--trust", "--executor", "debug")
    assert code == 2
    assert "sweep.pkl cannot be read (Permission denied); let games resume it" in out
    code, out = people.cli(BOB, "launch", people.folder / "study.py", "--executor", "debug")
    assert code == 2, out


def test_what_a_member_has_resumed_is_not_pruned(people: Any) -> None:
    interrupted(people)
    assert people.cli(BOB, "resume", "--trust", "--executor", "debug")[0] == 0
    assert people.launch(ALICE, "--fresh")[0] == 0
    code, out = people.cli(ALICE, "prune", "--dry-run")
    assert code == 0
    assert f"has files of {BOB}, who resumed it and alone can remove them" in out


def test_a_run_is_shared_by_launching_it_again(people: Any) -> None:
    study = ("launch", people.folder / "study.py", "--executor", "debug")
    assert people.cli(ALICE, *study)[0] == 0
    assert people.cli(BOB, "status", people.run)[0] == 2
    assert people.launch(ALICE)[0] == 0
    people.do(ALICE, lambda: [path.chmod(0o711) for path in people.run.parents[:2]])
    code, out = people.cli(BOB, "collect", people.run)
    assert (code, "(2 of 2 configs)" in out) == (0, True), out


def test_what_is_made_can_be_opened_by_the_group_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed before modes are set leaves nothing that keeps the others out."""
    tmp_path.chmod(0o2770)
    monkeypatch.setattr(files, "set_modes", lambda *_: os._exit(9))
    child = os.fork()
    if child == 0:
        os.umask(0o077)
        with contextlib.suppress(BaseException), files.locked(tmp_path / "lock"):
            files.make_folder(tmp_path / "000")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert stat.S_IMODE((tmp_path / "000").stat().st_mode) & 0o7777 == 0o2755
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o660
