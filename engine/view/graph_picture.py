"""Boxes that were made from boxes, as an SVG picture: each below all that it was made from, at a size that is read without a glass."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDE, GAP_X, GAP_Y = 160, 16, 26  # pixels
ABREAST = 5  # boxes of one depth side by side; more go on in the next line
NAME = 16  # characters of a title that fit on a line of its box
MUTED = "#68748a"


@dataclass(frozen=True)
class Box:
    """One thing of the picture.

    Attributes:
        key: what others call it in `above`.
        title: one or two lines of it are shown, all of it when one points at it.
        notes: a line each.
        above: keys of what it was made from. Those that are no box are left out.
        mark: a class for the page's style sheet: `failed`, `waiting`, ...
    """

    key: str
    title: str
    notes: tuple[str, ...] = ()
    above: tuple[str, ...] = ()
    colour: str = MUTED
    link: str = ""
    mark: str = ""


def graph_svg(boxes: Sequence[Box], label: str) -> str:
    """The picture. Boxes come after what they were made from; a box that names a later one stands beside it, without a line."""
    levels = _levels(boxes)
    high = {box.key: 12 + 15 * len(_lines(box.title)) + 14 * len(box.notes) for box in boxes}
    place: dict[str, tuple[float, float]] = {}
    top = 0.0
    widest = max((min(len(level), ABREAST) for level in levels), default=0) * (WIDE + GAP_X) - GAP_X
    for level in levels:
        wish = {box.key: _mean([place[key][0] for key in box.above if key in place], widest / 2) for box in level}
        level.sort(key=lambda box: wish[box.key])
        for at in range(0, len(level), ABREAST):
            line = level[at : at + ABREAST]
            left = _left(line, wish, widest)
            for number, box in enumerate(line):
                place[box.key] = (left + number * (WIDE + GAP_X), top)
            top += max(high[box.key] for box in line) + GAP_Y
    width, height = max(widest, 0) + 4, max(top - GAP_Y, 0) + 4
    parts = [
        f'<svg viewBox="-2 -2 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{html.escape(label)}" class="flow" font-family="system-ui, sans-serif">'
    ]
    for box in boxes:
        x2, y2 = place[box.key][0] + WIDE / 2, place[box.key][1]
        for key in dict.fromkeys(box.above):
            if key in place and place[key][1] < y2:
                x1, y1 = place[key][0] + WIDE / 2, place[key][1] + high[key]
                bend = max(14.0, (y2 - y1) / 2)
                parts.append(
                    f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2:.0f}" '
                    'fill="none" stroke="#a8b2c3" stroke-width="1.5"/>'
                )
    for box in boxes:
        drawn = _drawn(box, *place[box.key], high[box.key])
        parts.append(f'<a href="{html.escape(box.link)}">{drawn}</a>' if box.link else drawn)
    return "".join([*parts, "</svg>"])


def _levels(boxes: Sequence[Box]) -> list[list[Box]]:
    """Boxes by depth: how many others stand above one at most."""
    depth: dict[str, int] = {}
    levels: list[list[Box]] = []
    for box in boxes:
        depth[box.key] = 1 + max((depth.get(key, -1) for key in box.above), default=-1)
        while len(levels) <= depth[box.key]:
            levels.append([])
        levels[depth[box.key]].append(box)
    return levels


def _left(line: Sequence[Box], wish: dict[str, float], widest: float) -> float:
    """Where a line of boxes begins, so that it is near what it was made from and inside of the picture."""
    wide = len(line) * (WIDE + GAP_X) - GAP_X
    middle = _mean([wish[box.key] for box in line], widest / 2) + WIDE / 2
    return min(max(middle - wide / 2, 0), widest - wide)


def _drawn(box: Box, x: float, y: float, high: float) -> str:
    titles = _lines(box.title)
    texts = [
        f'<text x="9" y="{18 + 15 * i}" font-size="13" font-weight="600" fill="#fff">{html.escape(line)}</text>'
        for i, line in enumerate(titles)
    ]
    texts += [
        f'<text x="9" y="{17 + 15 * len(titles) + 14 * i}" font-size="11.5" fill="#fff">{html.escape(_cut(note, 25))}</text>'
        for i, note in enumerate(box.notes)
    ]
    told = html.escape("\n".join([box.title, *box.notes]))
    return (
        f'<g transform="translate({x:.0f},{y:.0f})" class="box {html.escape(box.mark)}"><title>{told}</title>'
        f'<rect width="{WIDE}" height="{high}" rx="7" fill="{html.escape(box.colour)}"/>{"".join(texts)}</g>'
    )


def _lines(title: str) -> list[str]:
    """A title on one line or, where it is too long for its box, on two, broken after a `_`, a `-` or a space."""
    title = " ".join(title.split())
    if len(title) <= NAME:
        return [title]
    cut = max((i + 1 for i, letter in enumerate(title[:NAME]) if letter in "_- /"), default=NAME)
    return [title[:cut].rstrip(), _cut(title[cut:], NAME)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
