"""A preview in words: what is asked, what comes back, what each stage makes of it, and what the run would take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from engine.trials.preview import Exchanged, Tried
from engine.view.rows import line_of
from engine.view.spending import in_words

ASKED = 5  # requests that are shown of a stage


def lines(tried: Tried) -> Iterator[str]:
    """A stage."""
    yield f"── {tried.stage} ({tried.stage_kind})"
    if tried.skipped:
        yield f"  not tried: {tried.skipped}"
        return
    for number, exchange in enumerate(tried.exchanges[:ASKED], 1):
        yield from _exchange(number, exchange)
    if len(tried.exchanges) > ASKED:
        yield f"  ... and {len(tried.exchanges) - ASKED} more requests"
    if tried.failed:
        yield f"  failed: {tried.failed}"
    came = f"{tried.rows_in:,} rows in, " if tried.rows_in else ""
    yield f"  {came}{tried.rows_out:,} out ({tried.kind}), {tried.seconds:.1f} s{_rejected(tried)}"
    for row in tried.rows:
        yield f"    {line_of(tried.kind, row, 160)}"
    yield from _expected(tried)


def _exchange(number: int, exchange: Exchanged) -> Iterator[str]:
    request = exchange.request
    rest = {name: value for name, value in request.items() if name not in ("messages", "prompt")}
    yield f"  request {number} to {exchange.who}{f' {json.dumps(rest, ensure_ascii=False)}' if rest else ''}"
    said: list[dict[str, Any]] = request.get("messages", [])
    for message in said:
        yield from _indented(f"{message['role']}: {message.get('content') or ''}")
    if "prompt" in request:
        yield from _indented(request["prompt"])
    yield from _indented(f"→ {exchange.answer if exchange.answer is not None else exchange.failure}")


def _indented(text: str) -> Iterator[str]:
    yield from (f"    {line}" for line in text.splitlines() or [""])


def _rejected(tried: Tried) -> str:
    told = ", ".join(f"{count:,} {reason}" for reason, count in tried.rejected.items())
    return f"; did not make it: {told}" if told else ""


def _expected(tried: Tried) -> Iterator[str]:
    if not tried.spent:
        return
    told = f"  spent {in_words(tried.spent)}"
    if tried.factor is None:
        yield f"{told}; nobody can say yet how many rows the run has"
    else:
        yield f"{told}; the run: about {in_words(tried.expected)}"


def total(tried: Iterable[Tried]) -> Iterator[str]:
    """What the run would take in all, and how sure that is."""
    every = list(tried)
    spent = [one.expected for one in every if one.spent and one.factor is not None]
    seconds = sum(one.seconds * one.factor for one in every if one.factor is not None and not one.skipped)
    if spent:
        sums = {name: sum(one.get(name, 0) for one in spent) for name in ("tokens_in", "tokens_out", "cost")}
        yield f"The run: about {in_words(sums)}, as much a row as these rows took; others may be longer or shorter."
    if seconds:
        yield f"Time: at most about {_duration(seconds)} for what was tried, since many rows at once take less than one after the other."
    unknown = [one.stage for one in every if one.failed or (one.factor is None and not one.skipped)]
    skipped = [one.stage for one in every if one.skipped and "in the store" not in one.skipped]
    if unknown or skipped:
        yield f"Not in it: {', '.join([*skipped, *unknown])}."
    yield "Nothing was kept."


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def as_json(tried: Iterable[Tried]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{**asdict(one), "expected": one.expected} for one in tried]
