"""A text as a model sees it, on one line, with what it learns told from what it is only shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

LONGEST = 300  # characters of a part that is not learnt


def shown(tokenizer: Any, ids: Sequence[int], learnt: Sequence[bool]) -> str:
    """Token ids as text; what is learnt stands in «»."""
    parts: list[str] = []
    for said, group in groupby(zip(ids, learnt, strict=True), key=lambda pair: pair[1]):
        text = str(tokenizer.decode([token for token, _ in group])).replace("\n", "⏎")
        if not said and len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
        parts.append(f"«{text}»" if said else text)
    return "".join(parts)
