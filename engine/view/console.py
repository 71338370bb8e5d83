"""The one console that styles what it prints: the styles are ours, the text is text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from engine.text.visible import visible


def styled(*parts: str | tuple[str, str], one_line: bool = False) -> Text:
    """One text of several, each alone or with a style of ours (`"bold"`). Nothing in them is markup, an emoji's name or an escape."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((visible(text, one_line=one_line), style) for text, style in pairs))


class PlainConsole(rich.console.Console):
    """Prints what would move a cursor, ring, colour or link as its code."""

    def __init__(self, *, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> None:
        super().__init__(
            stderr=stderr, width=width, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
        )  # fmt: skip

    def render_str(self, text: str, **options: Any) -> Text:
        """Before anything is laid out, so that columns are as wide as what is shown."""
        plain: dict[str, Any] = {**options, "markup": False, "emoji": False}
        return super().render_str(visible(text), **plain)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Whatever else comes to be printed; control segments are Rich's own."""
        for text, style, control in super().render(renderable, options):
            if style is not None and style.link:
                style = style.update_link(None)
            yield Segment(text if control else visible(text), style, control)
