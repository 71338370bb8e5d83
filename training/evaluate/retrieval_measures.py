"""How well indexes find what answers questions: recall, reciprocal rank and nDCG as TREC counts them (ir-measures), with intervals.

What answers a question is said by its row: the column `gold`, or `gold` in its metadata, a list of texts, each

    a source (`handbook/leave.md`) or a document's id    any passage of it will do
    DOCUMENT:CHARACTER                                   the passage of it that holds this character

so that indexes that cut documents in other ways are held to the same. What is counted are these places, not passages: a second passage of a
place that was found already counts for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
from ir_measures import RR, Measure, R, nDCG
from numpy.typing import NDArray

from engine.errors import UserError
from engine.retrieval.retrieval_index import Hit, Method, RetrievalIndex
from engine.statistics import bootstrap
from generators.text.prompts import prompt_of
from training.evaluate.table import Line, spread

DEPTH = 100  # passages looked at
MEASURES: dict[str, Measure] = {"mrr": RR, "ndcg_at_10": nDCG @ 10}


@dataclass(frozen=True)
class Sought:
    """A question, and the places that answer it."""

    id: str
    question: str
    gold: tuple[str, ...]


def measures(cutoffs: Sequence[int]) -> dict[str, Measure]:
    """Name -> measure."""
    return {**{f"recall_at_{k}": R @ k for k in cutoffs}, **MEASURES}


def sought(rows: Iterable[Mapping[str, Any]]) -> list[Sought]:
    """The questions that say what answers them.

    Raises:
        UserError: none does.
    """
    found: list[Sought] = []
    for row in rows:
        told: Any = row.get("gold")
        if told is None:
            facts: Any = json.loads(row.get("metadata") or "{}")
            told = facts.get("gold") if isinstance(facts, dict) else None  # pyright: ignore[reportUnknownMemberType]
        gold = [told] if isinstance(told, str) else told
        messages, _ = prompt_of(row)
        if isinstance(gold, list) and gold and messages:
            found.append(Sought(row["id"], messages[-1]["content"], tuple(str(one) for one in gold)))  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    if not found:
        raise UserError(
            "no question says what answers it. Expected a column `gold`, or `gold` in `metadata`: a list of sources, ids of documents, or "
            "DOCUMENT:CHARACTER."
        )
    return found


def measured(
    index: RetrievalIndex, method: Method, asked: Sequence[Sought], cutoffs: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Measure -> (questions,) its value for each."""
    known = measures(cutoffs)
    qrels = {one.id: dict.fromkeys(one.gold, 1) for one in asked}
    run = {one.id: ranking(index.search(one.question, DEPTH, method), one.gold) for one in asked}
    at = {one.id: i for i, one in enumerate(asked)}
    values = {name: np.zeros(len(asked)) for name in known}
    names = {measure: name for name, measure in known.items()}
    for metric in ir_measures.iter_calc(list(known.values()), qrels, run):
        values[names[metric.measure]][at[metric.query_id]] = metric.value
    return values


def ranking(hits: Sequence[Hit], gold: Sequence[str]) -> dict[str, float]:
    """What was found, best first: places that answer by their names, other passages by their ids."""
    left, ranks = list(gold), list[str]()
    for hit in hits:
        mine = [place for place in gold if answers(hit, place)]
        new = next((place for place in mine if place in left), None)
        if new is not None:
            left.remove(new)
            ranks.append(new)
        elif not mine:
            ranks.append(f"passage {hit.id}")
    return {name: float(len(ranks) - i) for i, name in enumerate(ranks)}


def answers(hit: Hit, place: str) -> bool:
    """Whether a passage is, or holds, a place."""
    if place in (hit.document, hit.source):
        return True
    document, colon, character = place.rpartition(":")
    held = colon and document in (hit.document, hit.source) and character.isdecimal()
    return bool(held) and hit.start <= int(character) < hit.end


def tabulate_retrieval(
    values: Mapping[str, Mapping[str, NDArray[np.float64]]], ids: Sequence[str], reference: str | None, seed: int
) -> dict[str, Line]:
    """Way to search -> the mean of each measure, and what it gains over the reference, with 95 % intervals by resampling questions: of
    both ways the same ones."""
    table: dict[str, Line] = {}
    for name, own in values.items():
        line: Line = {}
        for measure, each in own.items():
            line |= spread(measure, bootstrap.mean(each, ids, seed, measure))
            if reference is not None and reference in values and reference != name:
                gain = bootstrap.mean(each - values[reference][measure], ids, seed, measure)
                line |= spread(f"{measure}_gain", gain)
        table[name] = {one: round(value, 6) if isinstance(value, float) else value for one, value in line.items()}
        table[name]["n"] = len(ids)
    return table
