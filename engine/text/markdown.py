"""Text from elsewhere inside of Markdown that a hub renders: none of it is a link, HTML, or the end of what it stands in."""

from __future__ import annotations

import re

from engine.text.visible import visible

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What begins a span, a cell or a link; an underscore inside of a word begins nothing.
_MARKS = re.compile(r"[\\`*\[\]|~$!^]|(?<!\w)_|_(?!\w)|:(?=//)|@|(?<=www)\.|(?<=\.)\.", re.IGNORECASE)


def plain(text: object) -> str:
    """As words, on one line."""
    shown = "".join(_HTML.get(letter, letter) for letter in visible(str(text), one_line=True))
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", shown)


def code(text: object, cell: bool = False) -> str:
    """As code, on one line.

    Args:
        cell: in a table, where `|` ends a cell even in code.
    """
    shown = visible(str(text), one_line=True) or " "
    ticks = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{ticks}{pad}{shown.replace('|', chr(92) + '|') if cell else shown}{pad}{ticks}"


def block(text: str, language: str = "") -> list[str]:
    """As lines of a block of code."""
    shown = visible(text)
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return [f"{fence}{language}", shown, fence]
