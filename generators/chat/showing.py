"""Answers with what they rest on, in the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.retrieval.retrieval_index import Hit
from engine.view.output import put
from generators.chat.assistant import Reply


def place(hit: Hit, documents: str) -> str:
    """Where a passage stands, as editors and terminals open it: `handbook/leave.md:7`."""
    return f"{_file(hit, documents)}:{hit.line}"


def _file(hit: Hit, documents: str) -> Path:
    root = Path(documents)
    if root.is_file():
        return root
    return root / hit.source if root.is_dir() else Path(hit.source)


def put_reply(reply: Reply, documents: str, passages: bool) -> None:
    """Print what follows an answer: what it rests on, what rests on nothing, and the passages where they are asked for."""
    if reply.lacking:
        put(reply.lacking)
    for one in reply.citations:
        gone = (
            "" if _file(one.hit, documents).exists() or not Path(documents).exists() else " (gone since it was indexed)"
        )
        found = "" if one.named else " (not cited; found by comparison)"
        put(f"[{one.number}] {_where(one.hit, documents)}{gone}{found}", one_line=True)
        put(f"    “{one.quote}”")
    for statement in reply.unsupported if not reply.lacking else []:
        put(f"not in the passages: “{statement}”", one_line=True)
    for hit in reply.left_out:
        put(f"not shown to the model: {_where(hit, documents)} holds the marks of its chat template", one_line=True)
    if passages:
        put_passages(reply.hits, documents)


def put_passages(hits: list[Hit], documents: str) -> None:
    for number, hit in enumerate(hits, 1):
        put()
        put(f"[{number}] {_where(hit, documents)}  {hit.score:.3f}", one_line=True)
        put(f"{hit.text}")


def _where(hit: Hit, documents: str) -> str:
    heading = f" › {hit.heading}" if hit.heading else ""
    return f"{place(hit, documents)}{heading} (characters {hit.start}-{hit.end})"


def as_json(reply: Reply, documents: str) -> dict[str, Any]:
    """A reply for programs: `citations` and `passages` with their places."""
    return {
        "answer": reply.text,
        "lacking": reply.lacking,
        "citations": [
            {
                "number": one.number,
                "place": place(one.hit, documents),
                "quote": one.quote,
                "named": one.named,
                **_hit(one.hit),
            }
            for one in reply.citations
        ],
        "unsupported": reply.unsupported,
        "passages": [{"place": place(hit, documents), **_hit(hit), "text": hit.text} for hit in reply.hits],
    }


def _hit(hit: Hit) -> dict[str, Any]:
    return {name: value for name, value in asdict(hit).items() if name not in ("text", "metadata")}
