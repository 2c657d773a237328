"""The functions in C: how they are compiled and kept, and what is said where they cannot be."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlpsubmit.native import compiler, cpu, library

#: Each compiles for a second or two.
pytestmark = pytest.mark.slow

COMPILER = shutil.which("cc")


@pytest.fixture
def load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that loads them as a new process would, and returns what is printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    def loaded(dtype: torch.dtype = torch.float32, works: bool = True) -> str:
        functions = library.library.__wrapped__(dtype)
        assert (functions is not None) == works
        return capsys.readouterr().out

    return loaded


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "mlpsubmit").iterdir())


def program(tmp_path: Path, script: str) -> str:
    """Return the path of a program that takes the place of the compiler."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_they_are_compiled_once_and_kept_for_the_user_alone(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load() == load(torch.float64) == ""
    assert [path.name.partition("-")[0] for path in kept(tmp_path)] == ["double", "float"]
    assert stat.S_IMODE((tmp_path / "mlpsubmit").stat().st_mode) == 0o700
    monkeypatch.setattr(compiler, "_run_compiler", lambda arguments: pytest.fail("called again"))
    assert load() == load(torch.float64) == ""


def test_another_compiler_and_other_options_get_their_own(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setenv("CC", f"{COMPILER} -DOTHER")
    load()
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-DMORE"))
    load()
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("links", [True, False])
def test_of_two_processes_that_compile_at_once_the_first_file_stays(
    links: bool, load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have mapped it. A file system may lack links: then it is replaced."""
    run, theirs = compiler._run_compiler, []

    def slowly(arguments: list[str]) -> None:
        if not theirs:
            theirs.append(None)
            assert load() == ""  # the other process, which is done first
            theirs.append(kept(tmp_path)[-1].stat().st_ino)
        run(arguments)

    def none(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(compiler, "_run_compiler", slowly)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", none)
    assert load() == ""
    (file,) = (path for path in kept(tmp_path) if path.is_file())
    assert (file.stat().st_ino == theirs[1]) == links


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(
    mode: int, load: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "mlpsubmit").mkdir()
    (tmp_path / "mlpsubmit").chmod(mode)
    assert load() == ""
    assert kept(tmp_path) == []
    assert compiler.report() == (
        True,
        f"compiled anew by each process, as nothing can be kept: {tmp_path / 'mlpsubmit'}: others "
        "can write to it; XDG_CACHE_HOME may name another folder in place of ~/.cache",
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [("gcc '", "CC: No closing quotation"), ("-ffast-math", "networks that diverge would not be")],
)
def test_a_cc_that_cannot_be_used_is_named(
    given: str, reason: str, load: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "-ffast-math":  # after our options, as a wrapper might put it
        monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, given))
    else:
        monkeypatch.setenv("CC", given)
    assert reason in load(works=False)


def test_fast_math_in_cc_is_undone(
    load: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", f"{COMPILER} -ffast-math")
    assert load() == ""
    monkeypatch.setenv("CC", "  ")  # as if it were not set
    assert load() == ""


def test_another_cpu_gets_its_own(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setattr(cpu, "cpu_name", lambda: "another")
    load()
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "empty"])
def test_a_damaged_file_is_compiled_anew(
    damage: str, load: Callable[..., str], tmp_path: Path
) -> None:
    # In processes of their own: one that has loaded the file maps it.
    command = [sys.executable, "-c", "import torch; from mlpsubmit.native.library import library; "]
    command[-1] += "print(library(torch.float32) is not None)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("CC", None)
    run = lambda: subprocess.check_output(command, env=environment, text=True)  # noqa: E731
    assert run() == "True\n"
    (file,) = kept(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes({"cut off": content[:1000], "empty": b""}.get(damage, bytes(content)))
    assert run() == "True\n"
    assert compiler._is_whole(file)
    assert kept(tmp_path) == [file]


def test_without_a_compiler_the_reason_is_printed(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load(works=False) == (
        "the functions in C are not used: no C compiler found (cc, gcc, clang); install GCC or "
        "Clang, or name one in CC; PyTorch's are, which may be slower\n"
    )
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo warning: old >&2; echo 'mlp.c:3: error: no such thing' >&2; exit 1", "mlp.c:3: "),
        ("exit 3", "exit code 3"),
    ],
)
def test_what_the_compiler_says_is_printed(
    script: str,
    reason: str,
    load: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", program(tmp_path, script))
    told = load(works=False)
    assert f"are not used: {tmp_path}/compiler: {reason}" in told
    assert "; CC should name a GCC or a Clang; PyTorch's are, which may be slower" in told
    assert kept(tmp_path) == []


def test_a_compiler_that_does_not_exist_is_named(
    load: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler --fast")
    assert "no-such-compiler: [Errno 2]" in load(works=False)


def test_a_cpu_without_vectors_is_refused_by_the_sources(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = 'for a; do shift; case $a in -m*) ;; *) set -- "$@" $a;; esac; done'
    monkeypatch.setenv("CC", program(tmp_path, f'{plain}\nexec {COMPILER} -mno-avx "$@"'))
    assert "this CPU has none of AVX-512, AVX2 with FMA, and 64-bit NEON" in load(works=False)


def test_a_compiler_that_knows_this_cpu_by_another_option_is_asked_again(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'case "$1" in -march=native) echo "error: unknown" >&2; exit 1;; esac\n'
        f'shift; exec {COMPILER} -march=native "$@"'
    )
    monkeypatch.setenv("CC", program(tmp_path, script))
    assert load() == ""


@pytest.mark.parametrize("home", ["a file", "a full disk", "none"])
def test_a_cache_that_cannot_be_written_is_done_without(
    home: str, load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home == "a file":
        (tmp_path / "mlpsubmit").write_text("in the way")
    elif home == "none":  # as in a container whose user is not in its /etc/passwd

        def fails() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", fails)
    else:
        write = compiler._compile

        def full(sources: list[Path], real: str, library: Path) -> None:
            if library.parent == tmp_path / "mlpsubmit":
                raise OSError(28, "No space left on device")
            write(sources, real, library)

        monkeypatch.setattr(compiler, "_compile", full)
    assert load() == ""
    reason = {
        "a file": f"[Errno 17] File exists: '{tmp_path / 'mlpsubmit'}'",
        "a full disk": f"{tmp_path / 'mlpsubmit'} takes no file",
        "none": "Could not determine home directory.",
    }[home]
    assert compiler.report() == (
        True,
        f"compiled anew by each process, as nothing can be kept: {reason}; XDG_CACHE_HOME may name "
        "another folder in place of ~/.cache",
    )


def test_the_report_says_where_they_are_or_why_there_are_none(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlpsubmit"
    assert compiler.report() == (True, f"compiled for {cpu.cpu_name()}, in {folder}")
    shutil.rmtree(folder)
    monkeypatch.setenv("CC", "no-such-compiler")
    works, text = compiler.report()
    assert not works
    assert text.startswith("not used: no-such-compiler: [Errno 2]")
    assert text.endswith("; CC should name a GCC or a Clang; PyTorch's are, which may be slower")


def test_other_types_have_none() -> None:
    assert library.library(torch.float16) is None


def test_draws_have_the_same_bits_with_narrower_registers(
    load: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> torch.Tensor:
        functions = library.library.__wrapped__(torch.float32)
        key, numbers = torch.tensor(3), torch.empty(100_003)
        functions.normals(key.data_ptr(), len(numbers), numbers.data_ptr())
        return numbers

    widest = drawn()
    other = "-march=haswell" if platform.machine() == "x86_64" else "-O1"
    replaced = f'[ "$a" = -march=native ] && a={other}; set -- "$@" "$a"'
    script = f'for a; do shift; {replaced}; done; exec {COMPILER} "$@"'
    monkeypatch.setenv("CC", program(tmp_path, script))
    assert torch.equal(drawn(), widest)
