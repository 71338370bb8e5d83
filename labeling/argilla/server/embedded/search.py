# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""Argilla's search engine over Argilla's own tables: no Elasticsearch, and nothing that can fall out of step.

Registered through `SearchEngine.register` and chosen by `ARGILLA_SEARCH_ENGINE=flywheel`. The tables are the
index, so every method that writes to an index does nothing. Works on SQLite and PostgreSQL; where the two
differ (JSON), the difference is in `_json_values`. Text and the per-user shuffle are evaluated here rather
than in SQL, so that both databases give the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

import numpy as np
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import (
    MetadataPropertyType,
    RecordStatus,
    ResponseStatus,
    ResponseStatusFilter,
    SimilarityOrder,
    SortOrder,
    SuggestionType,
)
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Question,
    Record,
    Response,
    Suggestion,
    User,
    Vector,
    VectorSettings,
)
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataFilterScope,
    MetadataMetrics,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    SuggestionFilterScope,
    TermsFilter,
    TermsMetrics,
    TextQuery,
)
from argilla_server.settings import settings
from query_string import Node, matches, parse, required_words
from sqlalchemy import (
    Float,
    String,
    Text,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH

ENGINE_NAME = "flywheel"
_MAX_SIMILAR = 1000  # the most that Argilla's search endpoint pages through


@SearchEngine.register(ENGINE_NAME)
class TableSearchEngine(SearchEngine):
    @classmethod
    async def new_instance(cls) -> TableSearchEngine:
        return cls()

    async def close(self) -> None: ...

    async def ping(self) -> bool:
        async with AsyncSessionLocal() as db:
            return await db.scalar(select(literal(1))) == 1

    async def info(self) -> dict:
        return {"name": ENGINE_NAME, "database": "sqlite" if settings.database_is_sqlite else "postgresql"}

    # The tables are the index: nothing to create, write or delete.
    async def create_index(self, dataset: Dataset) -> None: ...
    async def delete_index(self, dataset: Dataset) -> None: ...
    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None: ...
    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None: ...
    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None: ...
    async def partial_record_update(self, record: Record, **update: Any) -> None: ...
    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None: ...
    async def update_record_response(self, response: Response) -> None: ...
    async def delete_record_response(self, response: Response) -> None: ...
    async def update_record_suggestion(self, suggestion: Suggestion) -> None: ...
    async def delete_record_suggestion(self, suggestion: Suggestion) -> None: ...

    async def get_dataset_progress(self, dataset: Dataset) -> dict:
        counted = select(Record.status, func.count()).where(Record.dataset_id == dataset.id).group_by(Record.status)
        async with AsyncSessionLocal() as db:
            counts = {str(status.value): count for status, count in await db.execute(counted)}
        return {"total": sum(counts.values()), "pending": 0, "completed": 0, **counts}

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict:
        counted = (
            select(Response.status, func.count())
            .join(Record, Record.id == Response.record_id)
            .where(Record.dataset_id == dataset.id, Response.user_id == user.id)
            .group_by(Response.status)
        )
        async with AsyncSessionLocal() as db:
            counts = {str(status.value): count for status, count in await db.execute(counted)}
        return {"total": sum(counts.values()), "submitted": 0, "draft": 0, "discarded": 0, **counts}

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | str | None = None,
    ) -> SearchResponses:
        conditions = [Record.dataset_id == dataset.id, *_conditions(filter, dataset)]
        ordering = [column for order in sort or [] for column in _ordering(order, dataset)]
        ordering += [Record.inserted_at.asc(), Record.id.asc()]
        shuffled = user_id is not None and not sort

        async with AsyncSessionLocal() as db:
            if query is None and not shuffled:
                total = await db.scalar(select(func.count()).select_from(Record).where(*conditions))
                page = select(Record.id).where(*conditions).order_by(*ordering).offset(offset).limit(limit)
                ids = list(await db.scalars(page))
            else:
                found = select(Record.id).where(*conditions)
                if not shuffled:
                    found = found.order_by(*ordering)
                ids = await _matching(db, found, query) if query is not None else list(await db.scalars(found))
                total = len(ids)
                if shuffled:
                    ids.sort(key=_shuffle_key(user_id))
                ids = ids[offset : offset + limit]
        return SearchResponses(items=[SearchResponseItem(record_id=id) for id in ids], total=total)

    async def similarity_search(
        self,
        dataset: Dataset,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        if bool(value) == bool(record):
            raise ValueError("Must provide either vector value or record to compute the similarity search")
        target = value if record is None else record.vector_value_by_vector_settings(vector_settings)
        if not target:
            raise ValueError("Cannot find a vector value to apply with provided info")

        async with AsyncSessionLocal() as db:
            vectors = await _unit_vectors(db, vector_settings)
            allowed: set[UUID] | None = None
            if filter is not None or query is not None:
                found = select(Record.id).where(Record.dataset_id == dataset.id, *_conditions(filter, dataset))
                allowed = set(await _matching(db, found, query) if query is not None else await db.scalars(found))

        if not vectors.ids:
            return SearchResponses(items=[], total=0)
        target_D = np.asarray(target, dtype=np.float32)
        target_D = target_D / max(float(np.linalg.norm(target_D)), 1e-12)
        if order == SimilarityOrder.least_similar:
            target_D = -target_D
        scores_N = (1 + vectors.unit_ND @ target_D) / 2  # as Elasticsearch scores a cosine
        items = []
        for index in np.argsort(-scores_N, kind="stable"):
            id, score = vectors.ids[index], float(scores_N[index])
            if threshold is not None and score < threshold:
                break
            if (record is None or id != record.id) and (allowed is None or id in allowed):
                items.append(SearchResponseItem(record_id=id, score=score))
        return SearchResponses(items=items[:max_results], total=min(len(items), _MAX_SIMILAR))

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        values = _json_values(Record.metadata_, metadata_property.name)
        rows = select(Record).join(values.table, true())
        rows = rows.where(Record.dataset_id == metadata_property.dataset_id)
        async with AsyncSessionLocal() as db:
            if metadata_property.type == MetadataPropertyType.terms:
                count = func.count()
                terms = rows.with_only_columns(values.text, count).where(values.text.is_not(None))
                counted = (await db.execute(terms.group_by(values.text).order_by(count.desc(), values.text))).all()
                return TermsMetrics(
                    total=sum(count for _, count in counted),
                    values=[TermsMetrics.TermCount(term=term, count=count) for term, count in counted],
                )
            extremes = rows.with_only_columns(func.min(values.number), func.max(values.number))
            low, high = (await db.execute(extremes)).one()
        if metadata_property.type == MetadataPropertyType.integer:
            return IntegerMetadataMetrics(
                min=None if low is None else int(low), max=None if high is None else int(high)
            )
        return FloatMetadataMetrics(min=low, max=high)


# --- text and order -------------------------------------------------------------------------------


async def _matching(db: Any, found: Any, query: TextQuery | str) -> list[UUID]:
    """Ids of the rows of `found` that answer a text query, in the order of `found`."""
    text, field = (query, None) if isinstance(query, str) else (query.q, query.field)
    node = parse(text)
    # A word of ASCII letters and digits stands in the stored JSON as itself: the database discards most rows
    # cheaply.
    for word in required_words(node):
        stored = _json_text(Record.fields)
        found = found.where(stored.like(f"%{word}%") if _sqlite() else stored.ilike(f"%{word}%"))
    rows = await db.execute(found.add_columns(Record.fields))
    return [id for id, fields in rows if _answers(node, fields, field)]


def _answers(node: Node, fields: dict, field: str | None) -> bool:
    chosen = fields.values() if field is None else [fields.get(field)]
    return matches(node, [text for value in chosen for text in _texts(value)])


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):  # a chat
        return [text for message in value for text in _texts(message)]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    return []


def _shuffle_key(user_id: UUID | str | None) -> Any:
    """An order that is random from user to user, and always the same for one user and record."""
    seed = str(user_id).encode()
    return lambda id: blake2b(id.bytes, key=seed, digest_size=8).digest()


# --- vectors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vectors:
    ids: list[UUID]
    unit_ND: np.ndarray  # float32, rows of length 1


_vector_cache: dict[UUID, tuple[tuple, _Vectors]] = {}


async def _unit_vectors(db: Any, vector_settings: VectorSettings) -> _Vectors:
    """All vectors of one setting. Parsing their JSON is the slow part, so it is done once per change."""
    mine = Vector.vector_settings_id == vector_settings.id
    stamp = tuple(
        (
            await db.execute(
                select(func.count(), func.max(Vector.updated_at), func.max(Vector.inserted_at)).where(mine)
            )
        ).one()
    )
    cached = _vector_cache.get(vector_settings.id)
    if cached is not None and cached[0] == stamp:
        return cached[1]
    rows = (
        await db.execute(select(Vector.record_id, _json_text(Vector.value)).where(mine).order_by(Vector.record_id))
    ).all()
    matrix_ND = np.asarray([json.loads(value) for _, value in rows], dtype=np.float32)
    matrix_ND = matrix_ND.reshape(len(rows), vector_settings.dimensions)
    norms_N1 = np.linalg.norm(matrix_ND, axis=1, keepdims=True)
    vectors = _Vectors([id for id, _ in rows], matrix_ND / np.maximum(norms_N1, 1e-12))
    _vector_cache[vector_settings.id] = (stamp, vectors)
    return vectors


# --- JSON columns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JsonValues:
    """The values at a path of a JSON column, one row each (a list gives its items, a missing path none)."""

    table: Any
    text: Any
    number: Any


def _sqlite() -> bool:
    return settings.database_is_sqlite


def _json_text(column: Any) -> Any:
    return type_coerce(column, Text) if _sqlite() else cast(column, Text)


def _json_values(column: Any, *path: str) -> _JsonValues:
    if _sqlite():
        if path and set(path[0]) & {'"', "\\"}:  # SQLite's paths know no escapes: look the key up instead
            entry = func.json_each(column).table_valued("key", "value", "type")
            whole = case((entry.c.type.in_(["array", "object"]), entry.c.value), else_=func.json_array(entry.c.value))
            column = select(whole).where(entry.c.key == path[0]).scalar_subquery()
            path = path[1:]
        # It compares keys as they are written, and they are written in ASCII.
        steps = "".join(f".{json.dumps(step)}" for step in path)
        table = func.json_each(column, f"${steps}").table_valued("value", "type")
        text = cast(table.c.value, String)
        number = case((table.c.type.in_(["integer", "real"]), cast(table.c.value, Float)))
        return _JsonValues(table, text, number)
    steps = "".join(f".{json.dumps(step)}" for step in path)
    items = func.jsonb_path_query(cast(column, JSONB), cast(literal(f"${steps}[*]"), JSONPATH))
    table = items.table_valued("value").render_derived()
    text = table.c.value.op("#>>")(literal_column("'{}'"))
    number = case((func.jsonb_typeof(table.c.value) == "number", cast(text, Float)))
    return _JsonValues(table, text, number)


def _any_value(values: _JsonValues, filter: TermsFilter | RangeFilter) -> Any:
    return exists(select(literal(1)).select_from(values.table).where(_value_condition(values, filter)))


def _value_condition(values: _JsonValues, filter: TermsFilter | RangeFilter) -> Any:
    if isinstance(filter, TermsFilter):
        numbers = [number for number in map(_number, filter.values) if number is not None]
        return or_(values.text.in_(filter.values), values.number.in_(numbers) if numbers else false())
    return _between(values.number, _number(filter.ge), _number(filter.le))


def _between(column: Any, ge: Any, le: Any) -> Any:
    return and_(true(), *([column >= ge] if ge is not None else []), *([column <= le] if le is not None else []))


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


# --- filters and sorts ----------------------------------------------------------------------------


def _conditions(filter: Filter | None, dataset: Dataset) -> list[Any]:
    if filter is None:
        return []
    if isinstance(filter, AndFilter):
        return [condition for inner in filter.filters for condition in _conditions(inner, dataset)]
    scope = filter.scope
    if isinstance(scope, MetadataFilterScope):
        return [_any_value(_json_values(Record.metadata_, scope.metadata_property), filter)]
    if isinstance(scope, ResponseFilterScope):
        return [_response_condition(filter, scope)]
    if isinstance(scope, SuggestionFilterScope):
        return [_suggestion_condition(filter, scope, dataset)]
    if isinstance(scope, RecordFilterScope):
        return [_record_condition(filter, scope)]
    raise ValueError(f"Cannot process request for filter {filter}")


def _response_condition(filter: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Any:
    mine = [Response.record_id == Record.id]
    if scope.user is not None:
        mine.append(Response.user_id == scope.user.id)
    if scope.question:
        values = _json_values(Response.values, scope.question, "value")
        return exists().where(*mine, _any_value(values, filter))
    if scope.property != "status" or not isinstance(filter, TermsFilter):
        raise ValueError(f"Cannot process request for search scope {scope}")
    wanted = {ResponseStatusFilter(value) for value in filter.values}
    statuses = [ResponseStatus(status.value) for status in wanted if status is not ResponseStatusFilter.pending]
    options = [exists().where(*mine, Response.status.in_(statuses))] if statuses else []
    if ResponseStatusFilter.pending in wanted:
        options.append(~exists().where(*mine))
    return or_(false(), *options)


def _suggestion_condition(filter: TermsFilter | RangeFilter, scope: SuggestionFilterScope, dataset: Dataset) -> Any:
    mine = _suggestion_of(scope.question, dataset)
    if scope.property == "value":
        return exists().where(*mine, _any_value(_json_values(Suggestion.value), filter))
    if scope.property == "score":
        return exists().where(*mine, _any_value(_json_values(Suggestion.score), filter))
    if not isinstance(filter, TermsFilter):
        return false()
    if scope.property == "agent":
        return exists().where(*mine, Suggestion.agent.in_(filter.values))
    if scope.property == "type":
        known = [SuggestionType(value) for value in filter.values if value in SuggestionType.__members__]
        return exists().where(*mine, Suggestion.type.in_(known))
    raise ValueError(f"Cannot process request for search scope {scope}")


def _suggestion_of(question: str, dataset: Dataset) -> list[Any]:
    asked = select(Question.id).where(Question.dataset_id == dataset.id, Question.name == question)
    return [Suggestion.record_id == Record.id, Suggestion.question_id == asked.scalar_subquery()]


def _record_condition(filter: TermsFilter | RangeFilter, scope: RecordFilterScope) -> Any:
    column, parsed = _RECORD_COLUMNS[str(scope.property)]
    if isinstance(filter, TermsFilter):
        return column.in_([value for value in map(parsed, filter.values) if value is not None])
    return _between(column, parsed(filter.ge), parsed(filter.le))


def _uuid(value: Any) -> UUID | None:
    try:
        return None if value is None else UUID(str(value))
    except ValueError:
        return None


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    time = datetime.fromisoformat(str(value))
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time  # stored as naive UTC


def _status(value: Any) -> RecordStatus | None:
    return RecordStatus(value) if value in RecordStatus.__members__ else None


_RECORD_COLUMNS: dict[str, tuple[Any, Any]] = {
    "id": (Record.id, _uuid),
    "external_id": (Record.external_id, lambda value: None if value is None else str(value)),
    "inserted_at": (Record.inserted_at, _time),
    "updated_at": (Record.updated_at, _time),
    "status": (Record.status, _status),
}


def _ordering(order: Order, dataset: Dataset) -> Sequence[Any]:
    """Sort columns of one order; records without a value come last either way, as in Elasticsearch."""
    scope = order.scope
    if isinstance(scope, RecordFilterScope):
        columns = [_RECORD_COLUMNS[str(scope.property)][0]]
    elif isinstance(scope, MetadataFilterScope):
        columns = _extremes(_json_values(Record.metadata_, scope.metadata_property), order, [])
    elif isinstance(scope, SuggestionFilterScope):
        mine = _suggestion_of(scope.question, dataset)
        if scope.property in ("value", "score"):
            column = Suggestion.value if scope.property == "value" else Suggestion.score
            columns = _extremes(_json_values(column), order, [(Suggestion, mine)])
        else:
            column = Suggestion.agent if scope.property == "agent" else cast(Suggestion.type, String)
            columns = [select(func.min(column)).where(*mine).correlate(Record).scalar_subquery()]
    elif isinstance(scope, ResponseFilterScope):
        mine = [Response.record_id == Record.id]
        if scope.user is not None:
            mine.append(Response.user_id == scope.user.id)
        if scope.question:
            values = _json_values(Response.values, scope.question, "value")
            columns = _extremes(values, order, [(Response, mine)], number=func.avg)
        else:
            columns = [select(func.min(cast(Response.status, String))).where(*mine).correlate(Record).scalar_subquery()]
    else:
        raise ValueError(f"Cannot process request for search scope {scope}")
    direction = SortOrder(order.order)
    return [(column.asc() if direction is SortOrder.asc else column.desc()).nulls_last() for column in columns]


def _extremes(values: _JsonValues, order: Order, owners: list[tuple[Any, list[Any]]], number: Any = None) -> list:
    """The least value (ascending) or the greatest (descending) of a record: numbers first, then text."""
    pick = func.min if order.order == SortOrder.asc else func.max
    columns = []
    for value, by in ((values.number, number or pick), (values.text, pick)):
        subquery = select(by(value))
        if owners:
            (owner, mine), *_ = owners
            subquery = subquery.select_from(owner).join(values.table, true()).where(*mine)
        else:
            subquery = subquery.select_from(values.table)
        columns.append(subquery.correlate(Record).scalar_subquery())
    return columns
