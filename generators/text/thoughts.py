"""A thought: what a model writes before its answer, in a `<think>` block or in the field `reasoning_content`.

Rules and judges read the answer without it, and training says what becomes of it (`reasoning`).
"""

from __future__ import annotations

import re
from typing import Literal

Reasoning = Literal["learn", "keep", "drop"]

OPENING, CLOSING = "<think>", "</think>"
BLOCK = re.compile(rf"\s*{OPENING}(.*?){CLOSING}\s*", re.DOTALL)


def apart(text: str) -> tuple[str, str]:
    """The thought that a written answer begins with ("" if none does), and the answer without it."""
    block = BLOCK.match(text)
    return (block[1].strip(), text[block.end() :]) if block else ("", text)


def sampled_apart(text: str, opening: str = OPENING, closing: str = CLOSING, begun: bool = False) -> tuple[str, str]:
    """The same of a sampled answer, which may have been cut off before its thought was over.

    Args:
        begun: the prompt has opened the thought already.
    """
    start = text.lstrip()
    if start.startswith(opening):
        start = start[len(opening) :]
    elif not begun:
        return "", text
    thought, _, answer = start.partition(closing)
    return thought.strip(), answer.strip()


def block(thought: str, answer: str) -> str:
    """An answer with its thought, for a template that has no other place for one."""
    return f"{OPENING}\n{thought}\n{CLOSING}\n\n{answer}"
