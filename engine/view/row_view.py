"""One row as a person reads it: who said what, what was ranked how, which of two was chosen and where they differ."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.view.rows import shorten, turns

WIDEST = 240  # characters of a cell
MOST_WORDS = 4_000  # of two texts that are compared word by word: it takes their product
LONG = ("token_ids", "logprobs", "prompt_token_ids", "tokens", "starts")
QUIET = ("id", "parents", *LONG)  # columns that a table does not show by itself


@dataclass(frozen=True)
class Utterance:
    """One message. `calls` are the tools that it calls, as JSON; `thought` is what was thought before it was said."""

    role: str
    text: str
    thought: str = ""
    calls: str = ""


@dataclass(frozen=True)
class Change:
    """Words of two texts: in both (`same`), only in the first (`gone`), only in the second (`new`)."""

    how: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a row under its column's name. One of the others is filled.

    Attributes:
        ranked: (rank, answer), best first.
    """

    title: str
    text: str = ""
    turns: list[Utterance] = field(default_factory=lambda: [])
    ranked: list[tuple[str, str]] = field(default_factory=lambda: [])


def sections(row: dict[str, Any]) -> list[Section]:
    """What there is to read in a row, in the order of its columns."""
    found: list[Section] = []
    ranked = isinstance(row.get("ranks"), list) and isinstance(row.get("completions"), list)
    if ranked:
        found.append(Section("ranking", ranked=ranking(row["ranks"], row["completions"])))
    for name, value in row.items():
        if name in QUIET or value in (None, "", []) or (ranked and name in ("ranks", "completions", "shown")):
            continue
        if is_said(value):
            found.append(Section(name, turns=[_turn(one) for one in value]))
        elif isinstance(value, str) and (len(value) > 60 or "\n" in value or name in ("text", "detail")):
            found.append(Section(name, text=_laid_out(value)))
    order = ("prompt", "messages", "text")
    return sorted(found, key=lambda p: order.index(p.title) if p.title in order else len(order))


def facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The short values of a row."""
    told = {section.title for section in sections(row)}
    return [
        (name, short(value, 400))
        for name, value in row.items()
        if name not in told
        and value not in (None, "", [])
        and not (name in LONG and value is not None and len(value) > 40)
    ]


def is_said(value: Any) -> bool:
    """Whether a value is a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "content" in value[0]


def ranking(ranks: Iterable[int | None], completions: Iterable[str]) -> list[tuple[str, str]]:
    """Rank and answer, best first; those without a rank last."""
    pairs = sorted(zip(ranks, completions, strict=False), key=lambda pair: (pair[0] is None, pair[0] or 0))
    return [("–" if rank is None else str(rank), text) for rank, text in pairs]


def short(value: Any, width: int = WIDEST) -> str:
    """A value on one line."""
    if value is None:
        return ""
    if is_said(value):
        return shorten(turns([{**one, "content": one["content"] or ""} for one in value]), width)
    if isinstance(value, float):
        return f"{value:.6g}"
    return shorten(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), width)


def plain(row: dict[str, Any]) -> str:
    """The text of a row that two rows are compared by."""
    for name in ("text", "completion", "messages", "prompt"):
        value = row.get(name)
        if value:
            return value if isinstance(value, str) else "\n".join(one["content"] or "" for one in value)
    return ""


def changes(first: str, second: str) -> list[Change]:
    """What has to happen to the words of the first text to get the second; both whole where they are too long to compare."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    if len(a) + len(b) > MOST_WORDS:
        return [
            Change("same" if first == second else "gone", first),
            *([] if first == second else [Change("new", second)]),
        ]
    found: list[Change] = []
    for how, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if how == "equal":
            found.append(Change("same", "".join(a[i:j])))
            continue
        found += [Change(name, text) for name, text in (("gone", "".join(a[i:j])), ("new", "".join(b[k:m]))) if text]
    return found


def _turn(message: dict[str, Any]) -> Utterance:
    calls = message.get("tool_calls")
    name = f" ({message['name']})" if message.get("name") else ""
    return Utterance(
        f"{message.get('role') or '?'}{name}",
        message["content"] or "",
        message.get("reasoning_content") or "",
        _laid_out(calls if isinstance(calls, str) else json.dumps(calls, ensure_ascii=False)) if calls else "",
    )


def _laid_out(text: str) -> str:
    """JSON on several lines; any other text as it is."""
    if text[:1] in "{[":
        try:
            return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except ValueError:
            pass
    return text
