"""Text is data: no control character of a name, an error or a log reaches a terminal or a pipe."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel
from rich.table import Table

from mlpsubmit.cli import terminal
from mlpsubmit.display.console import Console, text
from mlpsubmit.display.html import status_html
from mlpsubmit.display.output import echo, inert, inline, without_styles
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.status import Status, TaskStatus

Command = Callable[..., Any]

#: A title, a hyperlink, a cleared screen, a colour in one byte, and text that runs backwards.
HOSTILE = "a[/b][link=http://x.y]c\x1b]0;owned\x07\x1b]8;;http://x.y\x1b\\d\x1b[2J\x9b31m\u202ee\r\x08\x7f"
VISIBLE = inert(HOSTILE)


def acts(shown: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in shown if c not in "\n\t")


def test_every_character_that_acts_is_escaped() -> None:
    """The categories of Unicode are the independent route; format characters join emoji, too."""
    harmless = {0x0A, 0x09}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        bidirectional = unicodedata.bidirectional(character) in (
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B"),
        )
        must = category in ("Cc", "Cs", "Zl", "Zp") or bidirectional
        if must and code not in harmless:
            escaped = inert(character)
            assert escaped == (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    assert json.loads(f'"{inert(chr(27))}"') == "\x1b"


@pytest.mark.parametrize("kept", ["ünï ±5% 日本 עברית", "👩‍🔬 🏳️‍🌈", "a\tb\nc", "x\xa0y", r"\u001b"])
def test_other_text_is_kept(kept: str) -> None:
    assert inert(kept) == kept


def test_a_field_stays_on_its_line() -> None:
    assert inline("a\nall 8 configs are done\x1b") == r"a\nall 8 configs are done\u001b"


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[1;31mred\x1b[0m and \x9b32mgreen",
        "\x1b]0;title\x07red \x1b]8;;http://x.y\x1b\\and\x1b]8;;\x1b\\ green",
        "\x1bPq#0\x1b\\red \x1b(Band \x1b=green\x1b[K\x1b[?25l",
    ],
)
def test_lines_of_logs_lose_their_colours_titles_and_links(line: str) -> None:
    assert without_styles(line) == "red and green"


def test_a_sequence_without_an_end_takes_nothing_else_with_it() -> None:
    assert (
        inert(without_styles("\x1b]0;open\nnext\x1b[")) == r"\u001b]0;open" + "\nnext" + r"\u001b["
    )


def test_a_stream_that_cannot_encode_text_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    echo("5 ± 1", newline=False)
    monkeypatch.setattr(sys, "stdout", None)
    echo("nobody reads it")
    assert stream.buffer.getvalue() == rb"5 \xb1 1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_shows_text_as_it_is_written(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=200, color_system="truecolor")
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(text((HOSTILE, "red")))
    for shown in (HOSTILE, f":smile: 12 {HOSTILE}", text(HOSTILE), Panel(HOSTILE), table):
        console.print(shown)
    styles = re.compile("\x1b\\[[0-9;]*m")  # those of this package
    printed = styles.sub("", file.getvalue())
    assert not acts(printed)
    assert "[/b][link=http://x.y]" in printed
    assert ":smile: 12 " in printed
    assert "owned" in printed, "data is shown, not hidden"


def hostile_status(log: Path) -> Status:
    crashed = TaskStatus(HOSTILE, "crashed", {}, log, HOSTILE)
    return Status(
        *(HOSTILE, HOSTILE, HOSTILE, "crashed", 4, 1, 0, 3, 0, 0.25, 0.0, None),
        tasks=[crashed],
        failures=[],
        retry=HOSTILE,
        retry_failure=HOSTILE,
    )


def test_a_status_with_hostile_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text(f"{HOSTILE}\n")
    status = hostile_status(log)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=300, color_system="standard")
    console.print(terminal.render(status))
    assert not acts(re.sub("\x1b\\[[0-9;]*m", "", file.getvalue()))
    terminal.report(status)
    with terminal.status_display(Console(file=io.StringIO())) as show:
        show(status)
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)
    shown = status_html(*(HOSTILE,) * 3, 0.5, HOSTILE, [(HOSTILE,) * 3], ["<script>" + HOSTILE])
    assert not acts(shown)
    assert "<script>" not in shown


FAILING = f"""
import torch
from mlpsubmit import Sweep
def raises(bsz, gen, X=None, y=None):
    def batch_fn(step):
        if step == 3:
            print({HOSTILE!r})
            raise ValueError({HOSTILE!r})
        inputs = torch.randn(bsz, 3, generator=gen)
        return inputs, inputs[:, 0]
    return batch_fn
sweep = Sweep("failing", batchfn=raises, MAX_ITER=5, WIDTH=4)
"""


def test_no_command_lets_text_act(mlpsubmit: Command, workplace: Path, records: Any) -> None:
    runs = workplace / "[red]runs[/] \x1b]0;owned\x07"
    where = ("--runs-dir", runs)
    assert mlpsubmit("launch", "small.py", "MAX_ITER=3", "--executor", "debug", *where).code == 0
    (run,) = (runs / "small").glob("2*")
    (run.parent / f"{run.name}{HOSTILE.replace('/', '')}").symlink_to(run)
    job = records.job("000-0000", host=HOSTILE, pid=7)
    publish_json(run / "submissions/000/jobs.json", {"jobs": [job]})
    (run / "submissions/000/000-0000_0_log.out").write_text(f"{HOSTILE}\ntitle\n")
    beat = records.beat(state="crashed", error=HOSTILE, host=HOSTILE)
    publish_json(run / "heartbeats/000-0000.json", beat)
    publish_json(run / "launched.json", {"number": HOSTILE})
    ingredients = read_json(run / "ingredients.json")
    ingredients["settings"][HOSTILE] = {"hash": "0", "text": HOSTILE}
    publish_json(run / "ingredients.json", ingredients)
    (workplace / f"spec{HOSTILE.replace('/', '')}.py").write_text("1 / 0")
    for arguments in [
        ("status",),
        ("status", "--json"),
        ("logs",),
        ("collect", "--out", f"{HOSTILE.replace('/', '')}.nc"),
        ("cancel",),
        ("verify",),
        ("why", run.name, "0"),
        ("why", run.name, "0", "--json"),
        ("ls",),
        ("ls", "--json"),
        ("ls", HOSTILE),
        ("show",),
        ("show", "--json"),
        ("show", "--config", "0"),
        ("show", "--config", HOSTILE),
        ("show", HOSTILE),
        ("diff", run.name, run.name),
        ("diff", run.name, HOSTILE),
        ("prune",),
        ("prune", HOSTILE),
        ("resume", "--executor", HOSTILE),
        ("status", HOSTILE),
        (HOSTILE,),
        ("status", f"--{HOSTILE}"),
        ("launch", HOSTILE),
        ("launch", f"spec{HOSTILE.replace('/', '')}.py"),
        ("launch", "small.py", f"{HOSTILE}=3", "--dry-run"),
        ("launch", "small.py", "--executor", "slurm", "--template", HOSTILE),
        ("templates", HOSTILE),
        ("init", HOSTILE),
    ]:
        reading = ("status", "logs", "collect", "cancel", "resume", "verify", "why")
        reading += ("ls", "show", "diff", "prune")
        extra = where if arguments[0] in reading else ()
        shown = mlpsubmit(*arguments, *extra)
        assert shown.out + shown.err, arguments
        assert not acts(shown.out + shown.err), arguments


@pytest.mark.slow
def test_a_function_that_raises_hostile_text(mlpsubmit: Command, workplace: Path) -> None:
    (workplace / "failing.py").write_text(FAILING)
    mlpsubmit("launch", "failing.py", "--executor", "local", "--tasks", "1", "--follow")
    for arguments in [("status",), ("logs",), ("collect",), ("status", "--json")]:
        shown = mlpsubmit(*arguments)
        assert "ValueError" in shown.out + shown.err, arguments
        assert not acts(shown.out + shown.err), arguments


def test_an_unexpected_error_is_shown_as_text(
    mlpsubmit: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    mlpsubmit("--version")
    sys.excepthook(ValueError, ValueError(HOSTILE), None)
    assert f"ValueError: {VISIBLE}" in capfd.readouterr().err
