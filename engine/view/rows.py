"""Rows in words: one line, or turn by turn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.view.console import PlainConsole


def turns(messages: list[dict[str, str]] | None) -> str:
    """A conversation on one line."""
    return " ".join(f"{m['role']}: {m['content']}" if m["role"] != "user" else m["content"] for m in messages or [])


def line_of(kind: str, row: dict[str, Any], width: int = 100) -> str:
    """What a person wants to know of a row, on one line."""
    match kind:
        case "Document":
            text = row.get("text", "")
        case "Prompt":
            text = turns(row.get("prompt"))
        case "Conversation":
            text = turns(row.get("messages"))
        case "Candidate":
            text = (
                f"{turns(row.get('completion')).removeprefix('assistant: ')!r}, sample {row.get('sample')} of "
                f"{row.get('model')}, seed {row.get('seed')}, {row.get('sampling')}"
            )
        case "Ranking":
            order = sorted(
                ((rank, text) for rank, text in zip(row["ranks"], row["completions"], strict=True) if rank is not None),
            )
            text = f"{row['annotator']} ({row['annotator_kind']}): " + "; ".join(
                f"{rank}. {text}" for rank, text in order
            )
            width = 160
        case "Preference":
            chosen, rejected = (turns(row[side]).removeprefix("assistant: ") for side in ("chosen", "rejected"))
            text = (
                f"{turns(row.get('prompt'))} → {chosen!r} over {rejected!r} (agreement {row.get('agreement') or 0:.0%})"
            )
            width = 200
        case "Verdict":
            text = f"{row.get('model')}: {row.get('metric')} = {row.get('value')} {row.get('text') or ''}"
        case _:
            text = json.dumps(row, default=str)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def quote(row: dict[str, Any], width: int) -> str:
    """The text of a row that did not make it, whichever of the usual columns it has; else its id."""
    told: list[str] = []
    for name in ("text", "prompt", "messages", "completion", "chosen"):
        value = row.get(name)
        told.append(value if isinstance(value, str) else turns(value) if isinstance(value, list) else "")
    return shorten(" ".join(told), width) or str(row.get("id"))


def shorten(text: str, width: int) -> str:
    """A text on one line of at most this many characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


# The columns of a row that are conversations, in the order in which they are read.
SAID = {
    "Conversation": ("messages",),
    "Prompt": ("prompt",),
    "Candidate": ("prompt", "completion"),
    "Preference": ("prompt", "chosen", "rejected"),
}


def print_row(console: PlainConsole, kind: str, row: dict[str, Any]) -> None:
    """One row as a person would want to read it: conversations turn by turn, the rest on a line."""
    console.print(row["id"], style="dim")
    if kind not in SAID:
        console.print(line_of(kind, row, 400))
        return
    for column in SAID[kind]:
        if kind == "Preference" and column != "prompt":
            console.print(f"  {column}", style="dim")
        for message in row[column] or []:
            console.print(f"  {message['role']}  ", style="bold cyan", end="")
            console.print(message["content"].replace("\n", "\n    "))
    if told := _facts(kind, row):
        console.print(f"  {told}", style="dim")


def _facts(kind: str, row: dict[str, Any]) -> str:
    """What else is worth knowing of a row that is a conversation."""
    if kind == "Candidate":
        facts = [f"sample {row['sample']} of {row['model']}", f"ended by {row['finish_reason']}"]
        if row.get("token_ids") is not None:
            facts.append(f"{len(row['token_ids'])} tokens")
        if scores := [score for score in row.get("logprobs") or [] if score is not None]:
            facts.append(f"mean log-probability {sum(scores) / len(scores):.2f}")
        if row.get("value") is not None:
            facts.append(f"value {row['value']:.4g}")
        return ", ".join(facts)
    if kind == "Preference":
        return f"agreement {row.get('agreement') or 0:.0%} of {row.get('annotators')}"
    return f"reference: {row['reference']}" if row.get("reference") else ""
