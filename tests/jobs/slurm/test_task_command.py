"""The commands of jobs in containers, with other Pythons and wraps, word for word."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit.jobs.slurm.arrays import Array
from mlpsubmit.jobs.slurm.script import retry_script, sbatch_text, script
from mlpsubmit.jobs.slurm.task_command import (
    KEEP,
    bound,
    container_lines,
    program_errors,
    task_command,
)
from mlpsubmit.jobs.slurm.trials import trial_lines
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

THIS = "{}.{}".format(*sys.version_info)


def command(**keys: Any) -> str:
    """Return the command of a task without what lets Python run a module."""
    text = task_command(Template(gpus=0, **keys), "mlpsubmit.jobs.worker", "/my runs/r", 3)
    before, _, after = text.partition(" -u -c ")
    return before + after.rpartition("alter_sys=True)'")[2]


def test_the_command_of_a_task() -> None:
    arguments = "mlpsubmit.jobs.worker '/my runs/r' 3"
    enter = '"$apptainer" exec "${bind[@]}"'
    assert command() == f"{sys.executable} {arguments}"
    assert command(python="/env/bin/python") == f"/env/bin/python {arguments}"
    assert command(wrap="numactl -l") == f"{KEEP} numactl -l {sys.executable} {arguments}"
    assert command(container="/i/s.sif") == f"{KEEP} {enter} /i/s.sif python3 {arguments}"
    everything = command(container="/my images/s.sif", python="python3.11", wrap='nsys -o "$X"')
    assert everything == (
        f"{KEEP} nsys -o \"$X\" {enter} '/my images/s.sif' python3.11 {arguments}"
    )
    with_gpus = task_command(Template(gpus="a100:2", container="docker://a/b:1"), "m")
    assert with_gpus.startswith(f'{KEEP} "$apptainer" exec --nv "${{bind[@]}}" docker://a/b:1 ')


def test_the_program_and_the_folders_of_a_container_are_found_on_the_node(tmp_path: Path) -> None:
    """What a node lacks cannot be bound, and /tmp is there anyway."""
    here, temporary = tmp_path / "its data", tmp_path / "job 7"
    here.mkdir()
    temporary.mkdir()
    lines = container_lines(Template(container="/i/s.sif"), [here, tmp_path / "gone"])
    assert container_lines(Template(), [here]) == ()

    def run(programs: str, **environment: str) -> subprocess.CompletedProcess[str]:
        for name in programs.split():
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o755)
        shows = 'echo "$apptainer"; printf "%s\\n" "${bind[@]}"'
        return subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", "\n".join([*lines, shows])],
            env={"PATH": str(tmp_path), **environment},
            capture_output=True,
            text=True,
        )

    none = run("")
    assert (none.returncode, none.stdout) == (
        1,
        "the tasks run in the container /i/s.sif, and this node has neither apptainer nor "
        "singularity on the PATH; if a module has it, load that in the template's setup\n",
    )
    assert run("singularity").stdout == f"{tmp_path}/singularity\n--bind\n{here}\n"
    assert run("apptainer", TMPDIR="/tmp").stdout == f"{tmp_path}/apptainer\n--bind\n{here}\n"
    found = run("", TMPDIR=str(temporary)).stdout
    assert found == f"{tmp_path}/apptainer\n--bind\n{here}\n--bind\n{temporary}\n"
    assert run("", TMPDIR=str(tmp_path / "of the login node")).stdout.count("--bind") == 1


def test_what_is_bound(tmp_path: Path) -> None:
    """Folders as they are named and where links lead, each once; none of the system."""
    runs, table = tmp_path / "disk" / "runs", tmp_path / "data" / "table.npy"
    (runs / "a" / "1").mkdir(parents=True)
    table.parent.mkdir()
    table.touch()
    (tmp_path / "link").symlink_to(runs)
    real = os.path.realpath(tmp_path)
    paths = [tmp_path / "link" / "a" / "1", runs, runs / "a", table, "/usr/lib/x", "/bin/sh", "/"]
    system = ["/proc/1", "/etc/hosts", "/tmp", "/opt", "//", "/var/tmp"]
    assert bound([*paths, *system]) == sorted(
        {f"{tmp_path}/link/a/1", f"{real}/disk/runs", f"{tmp_path}/data", f"{real}/data"}
    )
    assert bound([tmp_path, table]) == sorted({str(tmp_path), real})
    names = ["/etcetera", "/optional/a", "/usr/users/ann", "/usrlocal"]
    assert bound([*names, "/usr", "/usr/local/x", "/lib64/x", "/run/x"]) == names


def test_the_scripts_of_a_run_in_a_container(tmp_path: Path) -> None:
    """The job that resumes runs outside, where SLURM's commands are."""
    template = Template(
        gpus=0, container="/i/s.sif", python="python3.11", wrap="numactl -l", setup=("module x",)
    )
    run = tmp_path / "runs" / "s" / "r"
    submission = Submission(run, "s.r", 0, 1, 1, 2, "5e1f", reads=(str(tmp_path / "data"),))
    text = script(template, submission, Array("s.r.000", first=0, count=1))
    assert f'for folder in {tmp_path}/data {run} "${{TMPDIR:-}}"; do\n' in text
    assert text.index("module x") < text.index("apptainer=$(")
    assert " numactl -l " in text.splitlines()[-1]
    assert text.endswith(" 5e1f $((0 + SLURM_ARRAY_TASK_ID)) || end_task $?\n")
    outside = retry_script(template.for_helper(15, "2G"), submission, ["1"])
    assert f"{shlex.quote(sys.executable)} -u -c" in outside
    assert not any(word in outside for word in ("apptainer", "s.sif", "numactl", "python3.11"))
    other = Template(python="/env/bin/python", wrap="numactl -l").for_helper(15, "2G")
    resumes = retry_script(other, submission, ["1"])
    assert "/env/bin/python -u -c" in resumes
    assert "numactl" not in resumes
    assert template.for_helper(5, "1G", as_tasks=True).container == "/i/s.sif"
    assert template.for_gpu_helper(5).wrap == "numactl -l"


def test_what_of_it_is_refused_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s.sif", "python"):
        (tmp_path / name).touch()
    image, odd = str(tmp_path / "s.sif"), tmp_path / "a,b:c"
    odd.mkdir()
    assert program_errors(Template(container=image, python="/not/here/python"), [tmp_path]) == []
    assert program_errors(Template(container="oras://lab/study:1")) == []
    assert program_errors(Template(container="/on/nodes/alone.sif", python="python9")) == []
    assert program_errors(Template(python="/usr/bin/python9")) == [], "nodes may have it"
    assert program_errors(Template(container=f"{tmp_path}/gone.sif"), [odd]) == [
        f"container: {tmp_path}/gone.sif: no such image; give its path, which nodes should see, or "
        "a URI such as docker://python:3.11",
        *(
            f"container: {odd} cannot be bound, as the name has {letter!r}; rename it, or use a "
            "link without it"
            for letter in ",:"
        ),
    ]
    assert program_errors(Template(python=f"{tmp_path}/pyton")) == [
        f"python: {tmp_path}/pyton: no such file; give the Python of an environment"
    ]
    assert program_errors(Template(python=sys.executable, wrap="numactl -l")) == []
    assert program_errors(Template(wrap=f"{tmp_path}/a b")) == [
        f"wrap: {tmp_path}/a: no such program"
    ]
    assert program_errors(Template(python=f"{tmp_path}/python")) == [], "it may need the setup"
    (tmp_path / "python").write_text("#!/bin/sh\necho 2.7")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert program_errors(Template(python="python")) == [], "nodes may have another"
    assert program_errors(Template(python=f"{tmp_path}/python")) == [
        f"python: {tmp_path}/python is Python 2.7, and this launch runs in {THIS}: the functions "
        "of a spec can be loaded by the same release only; launch with that Python, or give another"
    ]


@pytest.mark.parametrize(
    ("keys", "last"),
    [
        ({}, "done"),
        ({"python": sys.executable}, "done"),
        ({"wrap": "env -i"}, "done"),
        ({"wrap": "no-such-program"}, "wrap: 'no-such-program' does not run the command after it"),
        ({"wrap": "bash -c '\"$@\" || true' bash"}, "or loses its exit code"),
        ({"python": "/no/python"}, "python: /no/python does not run on this node"),
        ({"python": "/bin/true", "wrap": "nice"}, "done"),
        ({"python": "bare"}, "cannot import mlpsubmit; install it there"),
    ],
)
def test_what_doctor_tries_in_its_job(keys: dict[str, str], last: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    if keys.get("python") == "bare":
        keys = {"python": str(bare)}
    lines = trial_lines(Template(**keys), tmp_path)  # type: ignore[arg-type]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*lines, "echo done"])],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert last in done.stdout.splitlines()[-1]
    assert done.returncode == (last != "done")
    assert "\n".join(lines) in sbatch_text(Template(), tmp_path, "true", before=lines)
