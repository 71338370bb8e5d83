"""What is printed is text: every line that a command prints goes through here, or through `engine.view.console`.

Rows, names, reasons and other programs' messages may hold what a terminal obeys; none of it gets there. Only the styles of
our own console do.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from engine.redaction import redacted
from engine.text.visible import visible

_BEYOND = re.compile("[^\x00-\x7e]")


def put(
    text: object = "", *, end: str = "\n", error: bool = False, flush: bool = False, one_line: bool = False
) -> None:
    """Print a text, as something to look at.

    Args:
        one_line: a line break in a name is shown, too, so that it is not taken for the end of the line.
        error: on standard error, where messages go; secrets are hidden in them. Rows are data, and go to standard output.
    """
    told = visible(redacted(str(text)) if error else str(text), one_line=one_line) + end
    stream = sys.stderr if error else sys.stdout
    try:
        stream.write(told)
    except UnicodeEncodeError:  # a terminal that can't show a letter gets its code
        stream.write(told.encode(stream.encoding or "ascii", "backslashreplace").decode(stream.encoding or "ascii"))
    if error or flush:
        stream.flush()


def put_json(value: Any, *, indent: int | None = 1, flush: bool = False) -> None:
    """Print JSON: letters as they are where standard output can take them, and every character that `visible` would show as its code."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    text = _BEYOND.sub(_in_json, text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent, default=str)
    sys.stdout.write(text + "\n")
    if flush:
        sys.stdout.flush()


def _in_json(found: re.Match[str] | str) -> str:
    """A character as JSON may hold it: as it is, if it is seen."""
    letter = found[0]
    return (
        letter
        if visible(letter) == letter
        else f"\\u{ord(letter):04x}"
        if letter < "\U00010000"
        else json.dumps(letter)[1:-1]
    )


class _Shown:
    """A stream on which everything is text. Consoles of ours write to what is under it, by the name that Rich asks for."""

    def __init__(self, stream: TextIO, messages: bool) -> None:
        self.rich_proxied_file = stream
        self._messages = messages

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(visible(redacted(text) if self._messages else text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would go past us
            raise AttributeError(name)
        return getattr(self.rich_proxied_file, name)


@contextmanager
def shown_as_text() -> Generator[None]:
    """Within this, whatever anybody prints in this process is text, on any terminal: libraries, usage errors, tracebacks."""
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError, ValueError):  # a stream of somebody else's
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout, sys.stderr = _Shown(before[0], messages=False), _Shown(before[1], messages=True)  # pyright: ignore
    try:
        yield
    except Exception:  # a fault of ours, which a person may send us
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout, sys.stderr = before
