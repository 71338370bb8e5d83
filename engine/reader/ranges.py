"""Large files of rows cut into ranges, each of which can be read by itself: JSON lines at the ends of lines, Parquet between row groups.

Where a file is cut depends on its content alone. What is compressed, in UTF-16, or one JSON array is not cut.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from engine.reader.apart import Unreadable, apart
from engine.reader.encodings import START, told_by_start
from engine.reader.records import RANGED, RecordOptions, is_array
from engine.reader.sources import COMPRESSION, FORMATS, Range, SourceFile

LARGE = 256 << 20  # bytes of a file from which on it is cut
RANGE = 64 << 20  # bytes of a range, about


def may_be_cut(file: SourceFile, form: str = "auto") -> bool:
    """Whether a file is cut, as far as its name and size tell."""
    form = FORMATS.get(file.suffix, "") if form == "auto" else form
    return file.size > LARGE and form in RANGED and not file.name.lower().endswith(tuple(COMPRESSION))


def ranges(file: SourceFile, form: str, limits: RecordOptions) -> list[Range]:
    """The ranges of a file, in order; none where it is to be read whole."""
    if not may_be_cut(file, form) or file.packed:
        return []
    found = _of_lines(file, limits) if form == "jsonl" else _of_row_groups(file)
    return found if len(found) > 1 else []


def _of_lines(file: SourceFile, limits: RecordOptions) -> list[Range]:
    if limits.encoding.replace("_", "-").startswith(("utf-16", "utf-32")) or is_array(file, limits):
        return []
    ends: list[int] = []
    with file.open() as raw:
        if told_by_start(raw.read(8)):
            return []
        for place in range(RANGE, file.size, RANGE):
            if not ends or place > ends[-1]:
                ends.append(_after_line(raw, place))
    bounds = [0, *(end for end in ends if end < file.size), file.size]
    return [Range(a, b, a, b - a) for a, b in pairwise(bounds)]


def _after_line(raw: Any, place: int) -> int:
    """Where the line ends that the byte before this place is in."""
    raw.seek(place - 1)
    while block := raw.read(START):
        if (end := block.find(b"\n")) >= 0:
            return raw.tell() - len(block) + end + 1
    return raw.tell()


def _of_row_groups(file: SourceFile) -> list[Range]:
    try:
        groups: list[tuple[int, int]] = list(apart("engine.reader.columnar:row_groups", file))
    except Unreadable:  # whoever reads it says what is wrong
        return []
    found: list[Range] = []
    begin = first = rows = size = 0
    for number, (count, bytes_) in enumerate(groups, 1):
        rows, size = rows + count, size + bytes_
        if size >= RANGE or number == len(groups):
            found.append(Range(begin, number, first, size))
            begin, first, rows, size = number, first + rows, 0, 0
    return found
