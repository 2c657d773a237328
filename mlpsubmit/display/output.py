"""The one way from this package to a terminal, a pipe or a log: text that is data and never acts.

Names, paths, errors and log lines come from specs, other users and other programs. A terminal obeys
control characters in them: colours, titles, hyperlinks, a moving cursor. Here they become visible
escapes, such as ``\\u001b``, which JSON, TOML and Python read back. Tables and live displays take
the same way, through :mod:`mlpsubmit.display.console`.
"""

from __future__ import annotations

import re
import sys

__all__ = ["echo", "inert", "inline", "without_styles"]

#: What a terminal may obey, or what changes the order or the visibility of the text around it: the
#: control characters (tab and newline are harmless), line and paragraph separators, bidirectional
#: and other invisible formatting, tags, and surrogates, which no stream can encode.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

#: Whole escape sequences: strings with a terminator (titles, hyperlinks), CSI (colours, cursor),
#: and the short ones.
_SEQUENCE = re.compile(
    "(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x9c|\x1b\\\\)"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|\x1b[ -/]*[0-Z\\\\^-~]"
)


def inert(text: object) -> str:
    """Return text in which no character acts; lines and tabs are kept."""
    string = str(text)
    return string if string.isprintable() else _ACTIVE.sub(_escape, string)


def inline(text: object) -> str:
    """Return the text of a field, such as a name, in which not even a line break acts."""
    return inert(str(text).replace("\n", "\\n"))


def without_styles(line: str) -> str:
    """Return a line of a log without its escape sequences, such as those of colours."""
    return line if line.isprintable() else _SEQUENCE.sub("", line)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def echo(text: object = "", *, err: bool = False, newline: bool = True) -> None:
    """Write text that is data to standard output or error, at once.

    Args:
        newline: whether to end the line.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # this process was started with it closed
        return
    string = inert(text) + "\n" * newline
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # A terminal without UTF-8 gets escapes, too, instead of ending the command.
    stream.write(string.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
