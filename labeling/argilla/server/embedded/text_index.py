# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""The texts of a dataset as words, kept in memory: read from the tables once, then what changed.

Which records answer a query, and how well (BM25), is worked out once for a query and a state of the dataset, so reading
all pages of its hits costs what one page does. What tells one state from the next is asked of the tables each time:
nothing can fall out of step.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log1p
from typing import Any
from uuid import UUID

from argilla_server.models import Dataset, Field, Record
from query_string import Node, joined, matches_joined, sought
from sqlalchemy import func, select

_FIELD = "\1"  # between the fields of a record; never in a word
_AT_ONCE = 500  # records whose fields are read in one query
_MOST_CHARACTERS = 1_000_000_000  # of all datasets together; the one that is searched is always kept
_MOST_QUERIES = 16  # whose hits are kept for a dataset
_MOST_SCORED = 64  # words of a query that count for the order of its hits
LINK_DIGITS = 12  # of a record's id, in short links (`labeling.argilla.client.Argilla.record_url`)
_K1, _B = 1.2, 0.75  # of BM25, as in Elasticsearch

Hits = dict[UUID, float]


@dataclass(frozen=True)
class DatasetTexts:
    """One state of a dataset. `texts` are in the order in which records were added."""

    state: tuple[Any, ...]
    names: tuple[str, ...]
    ids: list[UUID]
    texts: list[str]
    changed: dict[UUID, Any]
    hits: OrderedDict[tuple[str, str | None], Hits] = field(default_factory=OrderedDict)


_datasets: OrderedDict[UUID, DatasetTexts] = OrderedDict()
_reading: dict[UUID, asyncio.Lock] = {}


async def ranked_hits(db: Any, dataset: Dataset, query: str, node: Node, name: str | None) -> Hits:
    """Record id -> score of the records that answer a query (in one field, if named), best first."""
    async with _reading.setdefault(dataset.id, asyncio.Lock()):
        texts = await _current(db, dataset)
    found = texts.hits.get((query, name))
    if found is None:
        found = await asyncio.to_thread(_search, texts, node, name)
        texts.hits[query, name] = found
        while len(texts.hits) > _MOST_QUERIES:
            texts.hits.popitem(last=False)
    return found


def _search(texts: DatasetTexts, node: Node, name: str | None) -> Hits:
    searched = texts.texts
    if name is not None:
        place = texts.names.index(name) if name in texts.names else None
        searched = [text.split(_FIELD)[place] if place is not None else "" for text in searched]
    matched = [place for place, text in enumerate(searched) if matches_joined(node, text)]
    scores = _scores([searched[place] for place in matched], searched, sought(node)[:_MOST_SCORED])
    best_first = sorted(zip(scores, matched, strict=True), key=lambda hit: (-hit[0], hit[1]))
    return {texts.ids[place]: score for score, place in best_first}


def _scores(matched: Sequence[str], texts: Sequence[str], needles: Sequence[str]) -> list[float]:
    """BM25 of each matched text (Robertson and Zaragoza 2009, eq. 3.15); 1 where nothing is sought."""
    if not needles or not matched:
        return [1.0] * len(matched)
    mean = sum(text.count(" ") for text in texts) / len(texts)
    # A word stands between spaces that it shares with its neighbours: counted without the first, "a a" holds two.
    weights = []
    for needle in needles:
        holding = sum(needle in text for text in texts)
        weights.append((needle[1:], log1p((len(texts) - holding + 0.5) / (holding + 0.5))))
    scores = []
    for text in matched:
        norm = _K1 * (1 - _B + _B * text.count(" ") / mean)
        score = 0.0
        for needle, weight in weights:
            if often := text.count(f" {needle}"):
                score += weight * often * (_K1 + 1) / (often + norm)
        scores.append(score or 1.0)
    return scores


async def _current(db: Any, dataset: Dataset) -> DatasetTexts:
    """The texts as the tables have them now: what was not there, or changed since, is read."""
    kinds = {
        name: settings["type"]
        for name, settings in await db.execute(
            select(Field.name, Field.settings)
            .where(Field.dataset_id == dataset.id)
            .order_by(Field.inserted_at, Field.id)
        )
    }
    mine = Record.dataset_id == dataset.id
    sums = select(func.count(), func.max(Record.updated_at), _sum_of_times(db)).where(mine)
    state = (tuple(kinds.items()), *(await db.execute(sums)).one())
    known = _datasets.get(dataset.id)
    if known is not None and known.state == state:
        _datasets.move_to_end(dataset.id)
        return known
    rows = await db.execute(select(Record.id, Record.updated_at).where(mine).order_by(Record.inserted_at, Record.id))
    changed = dict(rows.tuples().all())
    kept: dict[UUID, str] = {}
    if known is not None and known.state[0] == state[0]:  # the same fields
        kept = {
            id: text for id, text in zip(known.ids, known.texts, strict=True) if known.changed[id] == changed.get(id)
        }
    fresh = [id for id in changed if id not in kept]
    for start in range(0, len(fresh), _AT_ONCE):
        some = fresh[start : start + _AT_ONCE]
        fields = (await db.execute(select(Record.id, Record.fields).where(Record.id.in_(some)))).all()
        kept |= await asyncio.to_thread(lambda rows=fields: {id: _joined(id, values, kinds) for id, values in rows})
    ids = [id for id in changed if id in kept]  # one may have been deleted meanwhile
    names = tuple(name for name in kinds if kinds[name] != "image")
    texts = DatasetTexts(state, names, ids, [kept[id] for id in ids], changed)
    _datasets[dataset.id] = texts
    _datasets.move_to_end(dataset.id)
    while len(_datasets) > 1 and sum(sum(map(len, d.texts)) for d in _datasets.values()) > _MOST_CHARACTERS:
        _datasets.popitem(last=False)
    return texts


def _sum_of_times(db: Any) -> Any:
    """Changes with any record that is written, whatever the order in which writes are committed: of microseconds."""
    if db.bind.dialect.name == "sqlite":
        return func.sum(func.substr(Record.updated_at, -6))
    return func.sum(func.extract("microseconds", Record.updated_at))


def _joined(id: UUID, fields: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """A record's searchable text: Argilla's own contract for each kind of field, and what short links call the record.

    Of an image nothing, of a custom field keys and values of every kind, of a chat its roles and what was said.
    """
    others = [name for name in fields if name not in kinds]
    return (
        _FIELD.join(
            joined([_unescaped(text) for text in _texts(fields.get(name), keys=kinds.get(name) == "custom")])
            for name in (*kinds, *others)
            if kinds.get(name) != "image"
        )
        + f"{_FIELD} {id.hex[:LINK_DIGITS]} "
    )


def _texts(value: Any, keys: bool) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item, keys)]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*([key] if keys else []), *_texts(item, keys))]
    return [] if value is None else [str(value)]


def _unescaped(text: str) -> str:
    """What was written, where it was escaped for display (`labeling.argilla.questions.as_text`)."""
    return text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&") if "&" in text else text
