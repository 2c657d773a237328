"""Cluster profiles: every key, every error in words, finding them, overriding them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlpsubmit.cli import slurm_options as cli
from mlpsubmit.cli.templates import templates as templates_command
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.slurm_templates import (
    KEYS,
    SlurmRequest,
    Template,
    find_template,
    locate,
    read_template,
    template_paths,
    user_folder,
)
from mlpsubmit.slurm_templates.time_limit import normalised, seconds_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

unhurried = settings(deadline=None)  # cores may be shared

#: Text as a line of a script can hold it, which a template leaves as it is.
words = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(
    lambda text: text == text.strip()
)
option_names = st.sampled_from(["exclude", "mail-type", "comment", "nice", "exclusive", "gres"])
option_values = st.one_of(
    words.filter(lambda text: "gpu" not in text), st.integers(-9, 9), st.booleans()
)
limits = st.one_of(
    st.none(),
    st.just("UNLIMITED"),
    st.integers(0, 10**6),
    st.from_regex(r"\A[0-9]{1,3}-[0-9]{2}:[0-9]{2}\Z"),
)
any_keys = st.fixed_dictionaries(
    {},
    optional={
        "description": words,
        "partition": words,
        "account": words,
        "qos": words,
        "constraint": words,
        "time": limits,
        "gpus": st.one_of(st.integers(0, 99), st.sampled_from(["a100:1", "1g.5gb:2"])),
        "cpus": st.integers(1, 999),
        "mem": st.one_of(st.integers(0, 10**6), st.sampled_from(["8G", "500m", "1T"])),
        "max_parallel": st.integers(1, 999),
        "setup": st.lists(words, max_size=3),
        "helper_partition": words,
        "container": st.sampled_from(["/a b/s.sif", "docker://a/b:1"]),
        "python": st.sampled_from(["/p/bin/python", "python3.12"]),
        "wrap": st.sampled_from(["numactl -l", "nsys profile -o 'r $SLURM_JOB_ID'"]),
        "sbatch": st.dictionaries(option_names, option_values),
    },
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's own templates."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "MLPSUBMIT_TEMPLATES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(locate, "SITE_FOLDER", tmp_path / "etc")
    folder = tmp_path / ".config" / "mlpsubmit"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def errors_of(tmp_path: Path) -> Callable[[str], list[str]]:
    """The errors that are found in a template's text."""

    def find(text: str) -> list[str]:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(SpecError) as caught:
            read_template(path)
        assert str(caught.value).startswith(f"{path}: ")
        return caught.value.errors

    return find


def read(text: str, path: Path = Path("/somewhere/mine.toml")) -> Template:
    return Template.from_table(tomllib.loads(text), path)


# The time limit


@pytest.mark.parametrize(
    ("value", "expected", "minutes"),
    [
        (90, "01:30:00", 90),
        ("90", "01:30:00", 90),
        ("1:30", "00:01:30", 2),
        ("4:00:00", "04:00:00", 240),
        ("2-12", "2-12:00:00", 3600),
        ("2-12:30", "2-12:30:00", 3630),
        ("2-12:30:01", "2-12:30:01", 3631),
        ("30:00:00", "1-06:00:00", 1800),
        (" 5 ", "00:05:00", 5),
        ("unlimited", "UNLIMITED", None),
        ("INFINITE", "UNLIMITED", None),
        (0, "UNLIMITED", None),
        ("0-0:00:00", "UNLIMITED", None),
    ],
)
def test_the_ways_to_write_a_time_limit(value: Any, expected: str, minutes: int | None) -> None:
    template = Template(time=value)
    assert (template.time, template.minutes) == (expected, minutes)


def test_a_time_without_quotes_is_one() -> None:
    assert read("time = 04:30:00").minutes == 270
    assert read("gpus = 0").minutes is None


counts = st.integers(0, 10_000)


@unhurried
@given(d=counts, h=counts, m=counts, s=counts)
def test_limits_against_a_sum(d: int, h: int, m: int, s: int) -> None:
    """Whatever the way of writing, a limit is the sum of its parts: seconds in base 60 and 24."""
    day, hour, minute = 24 * 60 * 60, 60 * 60, 60
    ways = {
        f"{m}": m * minute,
        f"{m}:{s}": m * minute + s,
        f"{h}:{m}:{s}": h * hour + m * minute + s,
        f"{d}-{h}": d * day + h * hour,
        f"{d}-{h}:{m}": d * day + h * hour + m * minute,
        f"{d}-{h}:{m:02d}:{s:02d}": d * day + h * hour + m * minute + s,
    }
    for text, seconds in ways.items():
        limit = normalised(text)
        assert (seconds_of(limit) or 0) == seconds
        assert normalised(limit) == limit
        rounded_up = next(n for n in (seconds // 60, seconds // 60 + 1) if n * 60 >= seconds)
        assert Template(time=text).minutes == (rounded_up or None)


@unhurried
@given(st.text(alphabet="0123456789:-+. hdmsUNLIMTED", max_size=12))
def test_any_other_limit_is_refused_in_words(text: str) -> None:
    with contextlib.suppress(ValueError):
        limit = normalised(text)
        assert normalised(limit) == limit
        return
    with pytest.raises(ValueError, match=r"^should be "):
        normalised(text)


@pytest.mark.parametrize(
    ("written", "tried"),
    [("4h", "04:00:00"), ("30 min", "00:30:00"), ("2days", "2-00:00:00"), ("90S", "00:01:30")],
)
def test_a_limit_with_a_unit_is_answered_with_what_to_write(written: str, tried: str) -> None:
    with pytest.raises(ValueError, match=rf"or 'UNLIMITED'; try '{tried}'$"):
        normalised(written)


@pytest.mark.parametrize("value", ["4x", "", ":30", "1-", "1:2:3:4", "-5", -5, 1.5, True, "٣", []])
def test_no_limit(value: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"^should be minutes, 'minutes:seconds', 'hours:minutes:seconds', 'days-hours', "
        r"'days-hours:minutes', 'days-hours:minutes:seconds' or 'UNLIMITED'$",
    ):
        normalised(value)


def test_the_longest_limit() -> None:
    assert normalised("24855-3:14:07") == "24855-03:14:07"
    with pytest.raises(ValueError, match=r"^should be at most 24855 days, the most that SLURM"):
        normalised("24855-3:14:08")


# Keys, defaults and what follows from them


def test_defaults() -> None:
    template = read("")
    assert (template.name, template.path) == ("mine", Path("/somewhere/mine.toml"))
    assert (template.gpus, template.cpus, template.setup, template.sbatch) == (1, 4, (), {})
    assert not template.whole_node
    unset = set(KEYS) - {"description", "gpus", "cpus", "whole_node", "setup", "sbatch"}
    assert {getattr(template, key) for key in unset} == {None}


def test_values_are_normalised() -> None:
    template = read(
        'gpus = "2"\ncpus = "8"\nmem = "08g"\npartition = " gpu "\nsetup = ["a\\tb"]\n'
        'max_parallel = "3"\nnotice = "30"\n'
        "[sbatch]\nmail_type = 'END'\nnice = 5\nexclusive = true\nhold = false\n\"--comment\" = 'x'"
    )
    assert (template.gpus, template.cpus, template.mem) == (2, 8, "8G")
    assert (template.partition, template.setup) == ("gpu", ("a\tb",))
    assert (template.max_parallel, template.notice) == (3, 30)
    expected = {"mail-type": "END", "nice": "5", "exclusive": True, "comment": "x"}
    assert template.sbatch == expected
    assert (Template(mem=512).mem, Template(mem=0).mem, Template(mem="0G").mem) == (
        "512M",
        "0",
        "0",
    )


@pytest.mark.parametrize(("gpus", "count"), [(0, 0), ("3", 3), ("a100:1", 1), ("1g.5gb:12", 12)])
def test_how_many_gpus(gpus: Any, count: int) -> None:
    assert Template(gpus=gpus).gpu_count == count


@pytest.mark.parametrize(
    ("time", "notice", "seconds"),
    [
        (None, None, 120),
        ("UNLIMITED", None, 120),
        (8, None, 120),
        (4, None, 60),
        (1, None, 15),
        ("0:30", None, 15),
        (8, 300, 300),
        (None, 300, 300),
    ],
)
def test_when_a_task_is_told(time: Any, notice: int | None, seconds: int) -> None:
    assert Template(time=time, notice=notice).notice_seconds == seconds


def test_the_partition_of_helpers() -> None:
    assert Template().for_helper(1, "1G").partition is None
    assert Template(partition="gpu").for_helper(1, "1G").partition == "gpu"
    template = Template(partition="gpu", helper_partition="cpu")
    assert template.for_helper(1, "1G").partition == "cpu"


def test_a_template_is_closed_and_frozen() -> None:
    with pytest.raises(ValidationError):
        Template(gpu=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Template().cpus = 2


# Errors


ON_ONE_LINE = "should be a string on one line, without control characters"
GPUS = "should be an integer >= 0, or 'type:count' such as 'a100:1'"
PROGRAM = "should be an absolute path, or the name of a program on the PATH such as 'python3.11'"
WRAP = "should be a program that runs the command after it, such as 'numactl --interleave=all'"
MEM = "should be megabytes, or a whole number with K, M, G or T such as '8G'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partition = "a\\nb"', f"partition: got 'a\\nb'; {ON_ONE_LINE} (partition of the tasks; "),
        ("account = 3", f"account: got 3; {ON_ONE_LINE} (account that is charged; "),
        ('qos = " "', "qos: got ' '; should not be empty; leave it out for the cluster's default"),
        ('constraint = "a\\u0000"', f"constraint: got 'a\\x00'; {ON_ONE_LINE} (features "),
        ('helper_partition = "a\\u2028b"', "helper_partition: got 'a\\u2028b'; should be a str"),
        ('description = "a\\nb"', f"description: got 'a\\nb'; {ON_ONE_LINE} (one line for the "),
        ('time = "4x"', "time: got '4x'; should be minutes, 'minutes:seconds', 'hours:minutes:"),
        ("time = true", "time: got True; should be minutes, "),
        ("gpus = -1", f"gpus: got -1; {GPUS} (GPUs of a task)"),
        ("gpus = true", f"gpus: got True; {GPUS} (GPUs of a task)"),
        ('gpus = "a100"', f"gpus: got 'a100'; {GPUS}; try 'a100:1' (GPUs of a task)"),
        ('gpus = "gpu:a100:2"', f"gpus: got 'gpu:a100:2'; {GPUS}; try 'a100:2' (GPUs of a task)"),
        ('gpus = "gpu:2"', f"gpus: got 'gpu:2'; {GPUS}; try '2' (GPUs of a task)"),
        ('gpus = "a100:0"', f"gpus: got 'a100:0'; {GPUS} (GPUs of a task)"),
        ("cpus = 0", "cpus: got 0; should be an integer >= 1 (CPU cores of a task)"),
        ("cpus = 1.5", "cpus: got 1.5; should be an integer >= 1 (CPU cores of a task)"),
        ('mem = "8GB"', f"mem: got '8GB'; {MEM}; try '8G' (RAM of a task; "),
        ('mem = "8 gib"', f"mem: got '8 gib'; {MEM}; try '8G' (RAM of a task; "),
        ('mem = "1.5G"', f"mem: got '1.5G'; {MEM} (RAM of a task; "),
        ("mem = -1", f"mem: got -1; {MEM} (RAM of a task; "),
        ('mem = "8P"', f"mem: got '8P'; {MEM} (RAM of a task; "),
        ('mem = "K"', f"mem: got 'K'; {MEM} (RAM of a task; "),
        ("max_parallel = 0", "max_parallel: got 0; should be an integer >= 1 (tasks that run at"),
        ("notice = 0", "notice: got 0; should be an integer from 1 to 65535 (seconds before the"),
        ("notice = 65536", "notice: got 65536; should be an integer from 1 to 65535 (seconds "),
        ("notice = 300\ntime = 5", "notice: got 300; should be less than the time limit, 300 sec"),
        ('setup = "a"', "setup: got 'a'; should be a list of shell commands, such as [\"module "),
        ('setup = ["a", "b\\nc"]', f"setup, line 2: got 'b\\nc'; {ON_ONE_LINE}"),
        ("setup = [3]", f"setup, line 1: got 3; {ON_ONE_LINE}"),
        ('container = " "', "container: got ' '; should be the path of an image, or a URI such as"),
        ("container = 3", f"container: got 3; {ON_ONE_LINE} (image that tasks run in, "),
        ('python = "env/bin/python"', f"python: got 'env/bin/python'; {PROGRAM} (Python of the "),
        ('python = "python3 -X dev"', f"python: got 'python3 -X dev'; {PROGRAM} (Python of the "),
        ('python = "-v"', f"python: got '-v'; {PROGRAM} (Python of the tasks; "),
        ("python = 3.11", f"python: got 3.11; {ON_ONE_LINE} (Python of the tasks; "),
        ("wrap = ' '", "wrap: got ' '; should not be empty"),
        ("wrap = 'a \"b'", "wrap: got 'a \"b'; should be shell words; no closing quotation (prog"),
        (
            'wrap = "module load x && "',
            f"wrap: got 'module load x && '; {WRAP}, without '&&'; commands before it go into set",
        ),
        ('wrap = "a < $(b)"', f"wrap: got 'a < $(b)'; {WRAP}, without '<'; commands before it go"),
        (
            'wrap = "perf {command}"',
            f"wrap: got 'perf {{command}}'; {WRAP}; leave out '{{command}}'",
        ),
        (
            'wrap = "A=1 nice"',
            f"wrap: got 'A=1 nice'; {WRAP}; for variables of the environment: env A",
        ),
        ('wrap = "./a"', f"wrap: got './a'; {WRAP}, by its name or its absolute path: jobs may st"),
        (
            'wrap = "source x"',
            f"wrap: got 'source x'; {WRAP}; 'source' is a command of the shell: put it into setup",
        ),
        ("gpu = 1", "gpu: no such key (did you mean 'gpus'?)"),
        ("cpus-per-task = 1", "cpus-per-task: no such key (did you mean 'cpus'?)"),
        ("max-parallel = 1", "max-parallel: no such key (did you mean 'max_parallel'?)"),
        (
            'exclude = "n3"',
            f"exclude: no such key; valid are {', '.join(KEYS)}; further options of sbatch go "
            "into [sbatch]",
        ),
        ('name = "x"', "name: no such key"),
        ('sbatch = "x"', "sbatch: got 'x'; should be a table of sbatch options, such as exclude"),
    ],
)
def test_errors_in_a_key(text: str, message: str, errors_of: Callable[[str], list[str]]) -> None:
    (found,) = errors_of(text)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("mem", "megabytes"),
    [
        ("64000000K", 62_500),
        ("1025k", 2),
        ("1K", 1),
        ("7", 7),
        ("7M", 7),
        ("8g", 8192),
        ("2T", 2_097_152),
        ("123456789012K", 120_563_271),
        ("0", None),
        (None, None),
    ],
)
def test_memory_is_counted_as_slurm_counts_it(mem: str | None, megabytes: int | None) -> None:
    """Its units are 1024 of each other, and a part of a megabyte is a whole one."""
    assert Template().overridden(mem=mem).megabytes == megabytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('array = "0-3"', "sbatch.array: should be left out; mlpsubmit sets it itself"),
        ('job_name = "x"', "sbatch.job_name: should be left out; mlpsubmit sets it itself"),
        ("no-requeue = true", "sbatch.no-requeue: should be left out; mlpsubmit sets it itself"),
        (
            "ntasks = 4",
            "sbatch.ntasks: got '4'; should be 1, as each task is one process on one node; for "
            "more of a node: cpus, gpus",
        ),
        ('ntask = "1"', "sbatch.ntask: should be spelt in full; sbatch reads it as ntasks"),
        ('arra = "0-3"', "sbatch.arra: should be spelt in full; sbatch reads it as array"),
        ('partit = "x"', "sbatch.partit: should be spelt in full; sbatch reads it as partition"),
        (
            'partition = "x"',
            "sbatch.partition: should be set by the template's own key partition, above [sbatch] "
            "(on the command line: --partition)",
        ),
        (
            "gpus_per_task = 1.5",
            "sbatch.gpus_per_task: should be set by the template's own key gpus, above [sbatch] "
            "(on the command line: --gpus)",
        ),
        (
            "max_parallel = 3",
            "sbatch.max_parallel: should be set by the template's own key max_parallel, above "
            "[sbatch] (on the command line: --max-parallel)",
        ),
        (
            'setup = ["a"]',
            "sbatch.setup: should be set by the template's own key setup, above [sbatch]",
        ),
        (
            'signal = "USR1"',
            "sbatch.signal: should be set by the template's own key notice, above [sbatch]",
        ),
        (
            'gres = "tmp:1,gpu:2"',
            "sbatch.gres: got 'tmp:1,gpu:2'; GPUs should be requested by the template's own key "
            "gpus, above [sbatch] (on the command line: --gpus)",
        ),
        ("x = 1", "sbatch.x: should be the long name of an sbatch option, such as exclude"),
        ('"a b" = 1', "sbatch.a b: should be the long name of an sbatch option, such as exclude"),
        (
            "nice = 1.5",
            "sbatch.nice: got 1.5; should be a string, an integer, true (a bare flag) or false "
            "(left out)",
        ),
        ('comment = "a\\nb"', f"sbatch.comment: got 'a\\nb'; {ON_ONE_LINE}"),
        (
            'exclude = ""',
            "sbatch.exclude: got ''; should not be empty; leave it out for the cluster's default",
        ),
        (
            "mail-type = 'END'\nmail_type = 'FAIL'",
            "sbatch: got {'mail-type': 'END', 'mail_type': 'FAIL'}; should have each option once; "
            "keep one mail-type (further options of sbatch)",
        ),
        (
            "mem-per-cpu = '1G'\nmem-per-gpu = '1G'",
            "got mem-per-cpu and mem-per-gpu, which exclude each other; keep one",
        ),
    ],
)
def test_errors_in_the_table_of_options(
    text: str, message: str, errors_of: Callable[[str], list[str]]
) -> None:
    assert errors_of(f"[sbatch]\n{text}") == [message]


def test_all_errors_at_once(errors_of: Callable[[str], list[str]], tmp_path: Path) -> None:
    text = "gpu = 1\ncpus = 0\ntime = '4h'\nsetup = [1, 2]\n[sbatch]\narray = 1\nnice = 1.5"
    heads = [message.partition(":")[0] for message in errors_of(text)]
    expected = ["gpu", "time", "cpus", "setup, line 1", "setup, line 2"]
    assert heads == [*expected, "sbatch.array", "sbatch.nice"]
    with pytest.raises(SpecError, match=r"mine.toml: 7 errors:\n  - gpu: no such key"):
        read_template(tmp_path / "mine.toml")
    both = "notice = 60\ntime = 1\nmem = 1\n[sbatch]\nmem-per-cpu = 1"
    assert [message[:11] for message in errors_of(both)] == ["notice: got", "got mem and"]


# Files


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_template(path)
        return str(caught.value)

    file = tmp_path / "mine.toml"
    assert refusal(file) == f"{file}: no such template file"
    assert refusal(tmp_path) == f"{tmp_path}: is a folder; a template should be a TOML file"
    file.write_bytes(b'description = "caf\xe9"')
    assert refusal(file) == f"{file}: is not UTF-8 (at byte 18); save it with that encoding"
    file.write_text("description = ")
    assert refusal(file).startswith(f"{file}: is not TOML: Invalid value")
    file.write_text("a = " + "[" * 100_000)
    assert refusal(file).startswith(f"{file}: is not TOML: ")

    def forbidden(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert refusal(file) == f"{file}: cannot be read: Permission denied"


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b'\xef\xbb\xbfpartition = "gpu"\r\n')
    assert read_template(tmp_path / "mine.toml").partition == "gpu"


def test_the_packaged_templates(own: Path) -> None:
    found = {name: find_template(name) for name in template_paths()}
    assert list(found) == ["cpu", "default", "gpu", "preemptible"]
    assert {name: template.partition for name, template in found.items()} == {
        "cpu": None,
        "default": None,
        "gpu": "gpu",
        "preemptible": "preempt",
    }
    assert [template.gpus for template in found.values()] == [0, 1, 1, 1]
    assert all(template.description and template.minutes for template in found.values())
    assert find_template() == find_template(None) == found["default"]


@pytest.mark.parametrize("name", ["cpu", "default", "gpu", "preemptible"])
def test_the_examples_in_the_packaged_templates_are_valid(name: str, own: Path) -> None:
    """What is commented out is an example: it should be right when the ``#`` is taken away."""
    text = template_paths()[name][0].read_text()
    text = re.sub(r"(?m)^# (?=[a-z_-]+ = |\[sbatch\])", "", text)
    if name == "gpu":
        text = text.replace("gpus = 1\n", "")  # it has an example of another value
    template = read(text)
    assert template.max_parallel
    assert template.setup
    assert template.sbatch
    if name == "default":
        assert (template.container, template.wrap) == (
            "/somewhere/study.sif",
            "numactl --interleave=all",
        )


def test_the_templates_in_the_guide_are_valid() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", guide, re.M | re.S)
    assert read(blocks[0]).whole_node
    assert read(blocks[1]).wrap == "nsys profile -o report-$SLURM_ARRAY_TASK_ID"
    assert all(read(block) for block in blocks)


def test_a_users_own_go_before_the_packaged(own: Path) -> None:
    (own / "gpu.toml").write_text('partition = "corner"')
    (own / "mine.toml").write_text("cpus = 2")
    (own / "default.toml").write_text("cpus = 3")
    assert find_template("gpu").partition == "corner"
    assert find_template("gpu").path == own / "gpu.toml"
    assert find_template("mine").cpus == 2
    assert find_template().cpus == 3
    assert list(template_paths()) == ["cpu", "default", "gpu", "mine", "preemptible"]


def test_the_templates_of_a_site(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, machine = tmp_path / "first", tmp_path / "second", tmp_path / "etc"
    monkeypatch.setenv("MLPSUBMIT_TEMPLATES", f"~/first::{second}:{second}")
    written = {first: ["a"], second: ["a", "b", "default"], machine: ["a", "b", "c", "gpu"]}
    for folder, names in {**written, own: ["c"]}.items():
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f"{name}.toml").write_text(f'description = "of {folder.name}"')
    (first / "README").write_text("not a template")
    packaged = template_paths()["cpu"]
    assert template_paths() == {
        "a": [first / "a.toml", second / "a.toml", machine / "a.toml"],
        "b": [second / "b.toml", machine / "b.toml"],
        "c": [own / "c.toml", machine / "c.toml"],
        "cpu": packaged,
        "default": [second / "default.toml", packaged[0].with_name("default.toml")],
        "gpu": [machine / "gpu.toml", packaged[0].with_name("gpu.toml")],
        "preemptible": [packaged[0].with_name("preemptible.toml")],
    }
    assert find_template().path == second / "default.toml"
    listed = CliRunner().invoke(templates_command, catch_exceptions=False).output
    assert (
        f"c              of mlpsubmit\n{'':<15}{own}/c.toml\n"
        f"{'':<15}instead of {machine}/c.toml\n" in listed
    )
    assert "a site's are in /etc/mlpsubmit, or in the folders of $MLPSUBMIT_TEMPLATES\n" in listed
    shown = CliRunner().invoke(templates_command, ["--json"], catch_exceptions=False).output
    (gpu,) = (one for one in json.loads(shown)["templates"] if one["name"] == "gpu")
    assert (gpu["file"], gpu["replaces"]) == (
        f"{machine}/gpu.toml",
        [str(packaged[0])[:-8] + "gpu.toml"],
    )


def test_folders_of_templates_that_cannot_be_read(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch would take another template of the same name instead: another account, say."""
    (tmp_path / "etc").write_text("a file")
    own.rmdir()
    own.symlink_to(own)
    monkeypatch.setenv("MLPSUBMIT_TEMPLATES", f"{tmp_path}/gone:{tmp_path}/away")
    with pytest.raises(SpecError) as caught:
        find_template()
    assert caught.value.errors == [
        f"{own}: its templates cannot be read: Too many levels of symbolic links",
        f"$MLPSUBMIT_TEMPLATES: {tmp_path}/gone: no such folder",
        f"$MLPSUBMIT_TEMPLATES: {tmp_path}/away: no such folder",
        f"{tmp_path}/etc: its templates cannot be read: Not a directory",
    ]
    (tmp_path / "mine.toml").write_text("cpus = 9")
    assert find_template(f"{tmp_path}/mine.toml").cpus == 9, "a file needs no folder"
    monkeypatch.setenv("MLPSUBMIT_TEMPLATES", "here:there")
    with pytest.raises(SpecError) as caught:
        find_template()
    assert caught.value.errors == [
        f"$MLPSUBMIT_TEMPLATES: got {name!r}; should be absolute paths of folders, separated by ':'"
        for name in ("here", "there")
    ]


def test_the_users_folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_folder() == own
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert user_folder() == own
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert user_folder() == tmp_path / "xdg" / "mlpsubmit"
    user_folder().mkdir(parents=True)
    (user_folder() / "mine.toml").write_text("cpus = 7")
    assert find_template("mine").cpus == 7


def test_a_template_by_its_file(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("gpu.toml", "folder/plain"):
        (tmp_path / file).write_text("cpus = 9")
    for wanted in ("gpu.toml", "./gpu.toml", "folder/plain", "~/gpu.toml"):
        template = find_template(wanted)
        assert template.cpus == 9
        assert template.path is not None
        assert template.path.is_absolute()


def test_no_such_template(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(wanted: str) -> str:
        with pytest.raises(UserError) as caught:
            find_template(wanted)
        return str(caught.value)

    monkeypatch.chdir(tmp_path)
    (own / "mine.toml").write_text("")
    names = "there are cpu, default, gpu, mine, preemptible"
    where = f"your own go into {own}/NAME.toml"
    assert refusal("gpus") == (
        f"no template is called 'gpus' (did you mean 'gpu'?); {names}; {where}"
    )
    assert refusal("") == f"no template is called ''; {names}; {where}"
    assert refusal("a/b") == f"{tmp_path}/a/b: no such template file"
    assert refusal("gpu.toml") == (
        f"{tmp_path}/gpu.toml: no such template file; for the template gpu, write gpu"
    )


# Round trips


@unhurried
@given(any_keys)
def test_json_and_toml_bring_a_template_back(keys: dict[str, Any]) -> None:
    template = Template.from_table(keys, Path("/somewhere/mine.toml"))
    assert Template(**json.loads(json.dumps(template.to_json()))) == template
    assert read(template.to_toml()) == template
    assert template.overridden() == template


# What the command line changes


def test_changes_take_the_place_of_values() -> None:
    base = read('partition = "gpu"\ntime = 60\nmem = "8G"\n[sbatch]\nexclude = "n1"\nhold = true')
    changed = base.overridden(time="30", gpus="a100:1", sbatch={"exclude": "n2", "hold": False})
    assert (changed.minutes, changed.gpus, changed.partition) == (30, "a100:1", "gpu")
    assert (changed.name, changed.path) == (base.name, base.path)
    assert changed.sbatch == {"exclude": "n2"}
    assert base.sbatch == {"exclude": "n1", "hold": True}
    assert base.overridden(sbatch={"mail_type": "END"}).sbatch["mail-type"] == "END"


def test_memory_is_said_in_one_way() -> None:
    by_core = Template(mem="8G").overridden(sbatch={"mem_per_cpu": "2G"})
    assert (by_core.mem, by_core.sbatch) == (None, {"mem-per-cpu": "2G"})
    by_task = by_core.overridden(mem="4G")
    assert (by_task.mem, by_task.sbatch) == ("4G", {})
    with pytest.raises(SpecError, match="got mem and mem-per-cpu, which exclude each other"):
        by_core.overridden(mem="4G", sbatch={"mem-per-cpu": "1G"})
    assert Template(mem="8G").overridden(sbatch={"mem-per-cpu": False}).mem == "8G"


@unhurried
@given(any_keys, any_keys)
def test_a_change_wins_and_the_rest_stays(keys: dict[str, Any], changes: dict[str, Any]) -> None:
    base, alone = Template(**keys), Template(**changes)
    changed = base.overridden(**changes)
    for key in set(KEYS) - {"sbatch"}:
        assert getattr(changed, key) == getattr(alone if key in changes else base, key)
    named = changes.get("sbatch", {})
    kept = {name: value for name, value in base.sbatch.items() if name not in named}
    assert changed.sbatch == {**kept, **alone.sbatch}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "4x"}, r"^--time: got '4x'; should be minutes, "),
        ({"max_parallel": "0"}, r"^--max-parallel: got '0'; should be an integer >= 1 \(tasks "),
        ({"cpus": "9" * 5000}, r"^--cpus: got '9+\.\.\.; should be an integer >= 1 \(CPU "),
        ({"partition": "\udcff"}, r"^--partition: got '\\udcff'; should be a string on one line"),
        ({"sbatch": {"array": "1"}}, r"^--sbatch array: should be left out; mlpsubmit sets it"),
        ({"sbatch": {"time": "1"}}, r"^--sbatch time: should be .* \(on the command line: --time"),
        ({"sbatch": {"exclude": ""}}, r"^--sbatch exclude: got ''; should not be empty"),
        ({"sbatch": {1: 2}}, r"^--sbatch: got \{1: 2\}; should be a table of sbatch options"),
        ({"sbatch": 3}, r"^--sbatch: got 3; should be a table of sbatch options"),
        (
            {"container": "dokcer://a/b"},
            r"^--container: got 'dokcer://a/b'; should be a path, or begin with one of docker://, "
            r"oras://, library://, shub://, ipfs://, http://, https://, instance:// \(did you mean "
            r"'docker'\?\)",
        ),
        ({"gpu": "1"}, r"^--gpu: no such key \(did you mean 'gpus'\?\)$"),
        ({"time": "x", "mem": "x"}, r"^2 errors:\n  - --time: got 'x'; .*\n  - --mem: got 'x'"),
    ],
)
def test_errors_in_changes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Template().overridden(**changes)


def test_where_an_image_is(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in a file is relative to it, one on the command line to the working directory."""
    monkeypatch.chdir("/usr")
    (own / "box.toml").write_text('container = "images/../s.sif"\npython = "~/python"')
    box = find_template("box")
    assert (box.container, box.python) == (f"{own}/s.sif", f"{tmp_path}/python")
    for written, image in {
        "s.sif": "/usr/s.sif",
        "~/s.sif": f"{tmp_path}/s.sif",
        "/i/a:1.sif": "/i/a:1.sif",
        "docker://python:3.11": "docker://python:3.11",
        "oras://lab/study": "oras://lab/study",
        Path("a/s.sif"): "/usr/a/s.sif",
    }.items():
        assert box.overridden(container=written).container == image
    again = Template(**json.loads(json.dumps(box.to_json())))
    assert again.overridden(wrap="nice -n 3").container == box.container
    assert again.overridden(python=Path("/p")).python == "/p"


def test_what_is_asked_for(own: Path) -> None:
    base = Template(cpus=9, partition="there")
    assert SlurmRequest().options == ()
    ask = SlurmRequest("gpu", {"max_parallel": "2", "sbatch": {"hold": True}})
    assert ask.options == ("--template", "--max-parallel", "--sbatch")
    assert SlurmRequest().resolve() == find_template("default")
    assert SlurmRequest().resolve(base) == base
    assert SlurmRequest(changes={"cpus": "2"}).resolve(base) == base.overridden(cpus=2)
    assert SlurmRequest("gpu", {"cpus": "2"}).resolve(base) == find_template("gpu").overridden(
        cpus=2
    )


@click.command()
@cli.slurm_options
@click.option("--tasks")
def command(**values: Any) -> None:
    asked = cli.slurm_request(values)
    click.echo(json.dumps([asked.template, asked.changes]))


def asked(*arguments: str) -> list[Any]:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    shown: list[Any] = json.loads(done.output)
    return shown


def test_the_options_of_the_command_line() -> None:
    assert asked() == [None, {}]
    assert asked("--tasks", "3") == [None, {}]
    assert asked("--template", "gpu", "--time", "30", "--max-parallel", "x") == [
        "gpu",
        {"time": "30", "max_parallel": "x"},
    ]
    every = ("partition", "account", "qos", "constraint", "time", "gpus", "cpus", "mem")
    given_all = [part for key in every for part in (f"--{key}", key)]
    assert asked(*given_all) == [None, {key: key for key in every}]


def test_further_options_of_sbatch() -> None:
    entries = ("exclude=n3", "exclusive", "mail_type=END=x", "hold=false", "--comment=a b")
    options = [part for entry in entries for part in ("--sbatch", entry)]
    assert asked(*options)[1]["sbatch"] == {
        "exclude": "n3",
        "exclusive": True,
        "mail-type": "END=x",
        "hold": False,
        "comment": "a b",
    }
    with pytest.raises(SpecError) as caught:
        asked("--sbatch", "=3", "--sbatch", "mail-type=A", "--sbatch", "mail_type=B")
    assert caught.value.errors == [
        "--sbatch: got '=3'; should be NAME=VALUE, or NAME for a flag",
        "--sbatch mail-type: is given twice; keep one",
    ]


def test_the_help_explains_the_options() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output
    order = ["--template NAME|FILE", "--partition NAME", "--time LIMIT", "--max-parallel M"]
    places = [shown.index(text) for text in [*order, "--sbatch NAME[=VALUE]"]]
    assert places == sorted(places)


# mlpsubmit templates


def test_one_template_is_shown_as_it_is_read(own: Path) -> None:
    (own / "mine.toml").write_text('time = 90\nsetup = ["a \\"b\\""]\n[sbatch]\nhold = true')
    shown = CliRunner().invoke(templates_command, ["mine"], catch_exceptions=False).output
    assert shown == (
        f"# the template mine, from {own}/mine.toml\n"
        'description = ""\n'
        "# partition: partition of the tasks; the cluster's default unless given\n"
        "# account: account that is charged; your default unless given\n"
        "# qos: quality of service\n"
        "# constraint: features that a node should have\n"
        'time = "01:30:00"\n'
        "gpus = 1\n"
        "cpus = 4\n"
        "# mem: RAM of a task; the partition's default unless given\n"
        "# same_device: whether all tasks of a run train on one type of GPU, or model of CPU; no "
        "unless given\n"
        "whole_node = false\n"
        "# workers: processes of a task that train; one for each of its GPUs unless given\n"
        "# max_parallel: tasks that run at once, at most\n"
        "# notice: seconds before the time limit at which a task saves its state; chosen unless "
        "given\n"
        'setup = [\n    "a \\"b\\"",\n]\n'
        "# container: image that tasks run in, by apptainer or singularity: a path or docker://, "
        "oras://\n"
        "# python: Python of the tasks; that of the launch unless given, in a container python3\n"
        "# wrap: program that runs the command of a task, with arguments\n"
        "# helper_partition: partition of small jobs without a GPU; that of the tasks unless "
        "given\n"
        "\n[sbatch]\nhold = true\n"
    )


def test_a_template_with_an_error_does_not_hide_the_others(own: Path) -> None:
    (own / "a.toml").write_text("cpus = 0")
    (own / "b.toml").write_text("cpus = ")
    (own / "c.toml").write_text('description = "a good one"')
    listed = CliRunner().invoke(templates_command)
    assert isinstance(listed.exception, UserError)
    first, second = str(listed.exception).split("\n")
    assert first.startswith(f"{own}/a.toml: cpus: got 0; should be an integer >= 1")
    assert second.startswith(f"{own}/b.toml: is not TOML: ")
    assert f"a              (cannot be used: see the error)\n{'':<14} {own}/a.toml" in listed.output
    assert "c              a good one" in listed.output
    assert "preemptible    one GPU per task" in listed.output
    assert f"your own go into {own}/NAME.toml" in listed.output


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, mlpsubmit.slurm_templates as t, mlpsubmit.cli.slurm_options\n"
        "t.find_template('gpu')\n"
        "print({'torch', 'submitit', 'xarray', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
    without_click = "import sys, mlpsubmit.slurm_templates\nprint('click' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", without_click], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_options_that_are_one_anyway_may_be_given_and_helpers_get_them() -> None:
    ones = dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "1")
    template = Template().overridden(sbatch={"ntasks": 1, **ones, "nice": 5})
    assert template.sbatch == {**ones, "nice": "5"}
    assert template.for_helper(15, "2G").sbatch == ones
