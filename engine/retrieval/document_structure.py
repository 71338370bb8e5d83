"""Documents in passages, along their structure: a passage ends where a section does, and otherwise between paragraphs, items of a
list or blocks of code.

Markdown's headings (CommonMark 0.31, 4.2 and 4.3) are those of plain text, too; fenced code (4.5) is never taken for them. A block that is
longer than a passage is cut between lines, sentences or, in the end, words. Nothing is rewritten: a passage is `text[start:end]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from engine.text.words import token_spans

SEPARATOR = " › "
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*\n?\Z")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*\n?\Z")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])[ \t]+\S")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])")


@dataclass(frozen=True)
class Stretch:
    """A passage of a document.

    Attributes:
        start, end: characters of the document.
        heading: the headings that it stands under, the outermost first (`Leave › Sick days`); empty where there are none.
    """

    start: int
    end: int
    heading: str


@dataclass(frozen=True)
class _Block:
    """What is not cut if it need not be. `level`: of a heading, else 0; `title`: what it says."""

    start: int
    end: int
    level: int = 0
    title: str = ""


def cut(text: str, size: int, code: bool = False) -> list[Stretch]:
    """The passages of a document, in order; together they hold all of it but white space between them.

    Args:
        size: tokens of a passage at most (words by white space; of scripts without spaces letters). A single longer word is one passage.
        code: it is a program, in which `#` begins no heading.
    """
    found: list[Stretch] = []
    above: list[tuple[int, str]] = []  # headings that hold here: level, title
    start = end = tokens = 0
    bare = True  # so far, nothing but headings

    def close() -> None:
        nonlocal start, end, tokens, bare
        if end > start:
            found.append(Stretch(start, end, SEPARATOR.join(title for _, title in above if title)))
        start = end = tokens = 0
        bare = True

    for block in _blocks(text, code):
        if block.level:
            if not bare:
                close()
            above[:] = [one for one in above if one[0] < block.level]
            above.append((block.level, block.title))
        for begin, stop, count in _pieces(text, block, size):
            if end > start and tokens + count > size:
                close()
            if end == start:
                start = begin
            end, tokens = stop, tokens + count
        if not block.level:
            bare = False
    close()
    return found


def _blocks(text: str, code: bool) -> Iterator[_Block]:
    """Headings, paragraphs, items of lists, blocks of code, in order, without the empty lines between them."""
    lines = [match.span() for match in _LINE.finditer(text)]
    begin: int | None = None  # of a paragraph under way
    at = 0
    while at < len(lines):
        start, end = lines[at]
        line = text[start:end]
        blank = not line or line.isspace()
        fence = None if code else _FENCE.match(line)
        heading = None if code else _HEADING.match(line)
        item = not code and _ITEM.match(line) is not None
        if begin is not None and (blank or fence or heading or item):
            yield _Block(begin, lines[at - 1][1])
            begin = None
        if heading:
            yield _Block(start, end, len(heading[1]), heading[2].strip())
        elif fence:
            close = at + 1
            while close < len(lines) and not text[slice(*lines[close])].lstrip().startswith(fence[1]):
                close += 1
            at = min(close, len(lines) - 1)
            yield _Block(start, lines[at][1])
        elif not blank:
            under = text[slice(*lines[at + 1])] if at + 1 < len(lines) and begin is None and not (code or item) else ""
            if mark := _UNDERLINE.match(under):
                at += 1
                yield _Block(start, lines[at][1], 1 if mark[1][0] == "=" else 2, line.strip())
            elif begin is None:
                begin = start
        at += 1
    if begin is not None:
        yield _Block(begin, lines[-1][1])


def _pieces(text: str, block: _Block, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, tokens) of a block: whole if it is short enough, else between lines, else sentences, else words."""
    start, end = _stripped(text, block.start, block.end)
    count = len(token_spans(text[start:end]))
    if count <= size:
        if count:
            yield start, end, count
        return
    yield from _cut_at(text, start, end, size, (re.compile(r"\n"), _SENTENCE))


def _cut_at(
    text: str, start: int, end: int, size: int, marks: tuple[re.Pattern[str], ...]
) -> Iterator[tuple[int, int, int]]:
    if not marks:
        spans = token_spans(text[start:end])
        for at in range(0, len(spans), size):
            group = spans[at : at + size]
            yield start + group[0][0], start + group[-1][1], len(group)
        return
    ends = [match.end() for match in marks[0].finditer(text, start, end)]
    begin = start
    for stop in [*ends, end]:
        low, high = _stripped(text, begin, stop)
        begin = stop
        count = len(token_spans(text[low:high]))
        if count > size:
            yield from _cut_at(text, low, high, size, marks[1:])
        elif count:
            yield low, high, count


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The same stretch without empty lines and white space at its ends; indentation of its first line stays with code."""
    piece = text[start:end]
    lead = len(piece) - len(piece.lstrip())
    return start + lead, start + len(piece.rstrip()) if piece.strip() else start + lead
