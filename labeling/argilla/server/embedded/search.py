# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""Argilla's search engine over Argilla's own tables: no Elasticsearch, and nothing that can fall out of step.

Registered through `SearchEngine.register` and chosen by `ARGILLA_SEARCH_ENGINE=flywheel`. The tables are the
index, so every method that writes to an index does nothing. Works on SQLite and PostgreSQL. Text (`text_index`) and the
per-user shuffle are evaluated here rather than in SQL, so that both databases give the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import UUID

import numpy as np
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Record,
    Response,
    Suggestion,
    User,
    Vector,
    VectorSettings,
)
from argilla_server.search_engine.base import (
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    Order,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)
from argilla_server.settings import settings
from query_string import EVERYTHING, QueryTooLarge, parse
from record_conditions import conditions, json_text, json_values, ordering
from sqlalchemy import func, literal, select, true
from text_index import Hits, ranked_hits

ENGINE_NAME = "flywheel"


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
        if dataset.is_draft:
            return {}
        counted = select(Record.status, func.count()).where(Record.dataset_id == dataset.id).group_by(Record.status)
        return await _total_and_counts(counted)

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict:
        if dataset.is_draft:
            return {}
        counted = (
            select(Response.status, func.count())
            .join(Record, Record.id == Response.record_id)
            .where(Record.dataset_id == dataset.id, Response.user_id == user.id)
            .group_by(Response.status)
        )
        return await _total_and_counts(counted)

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
        """Records in the order asked for; else best first, equals in the user's own order or as they were added."""
        narrowed = [Record.dataset_id == dataset.id, *conditions(filter, dataset)]
        order = [column for by in sort or [] for column in ordering(by, dataset)]
        order += [Record.inserted_at.asc(), Record.id.asc()]
        shuffled = user_id is not None and not sort

        async with AsyncSessionLocal() as db:
            hits = None if query is None else await _hits(db, dataset, query)
            if hits is None and not shuffled:
                total = await db.scalar(select(func.count()).select_from(Record).where(*narrowed))
                page = select(Record.id).where(*narrowed).order_by(*order).offset(offset).limit(limit)
                ids = list(await db.scalars(page))
            else:
                if hits is not None and filter is None and not sort and not shuffled:
                    ids = list(hits)
                else:
                    found = select(Record.id).where(*narrowed)
                    ids = list(await db.scalars(found if shuffled else found.order_by(*order)))
                    ids = ids if hits is None else [id for id in ids if id in hits]
                if shuffled:
                    ids.sort(key=_shuffle_key(user_id))
                if hits is not None and not sort and (shuffled or filter is not None):
                    ids.sort(key=lambda id: -hits[id])
                total = len(ids)
                ids = ids[offset : offset + limit]
        items = [SearchResponseItem(record_id=id, score=1.0 if hits is None else hits[id]) for id in ids]
        return SearchResponses(items=items, total=total)

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
        if len(target) != vector_settings.dimensions or not np.isfinite(target).all():
            raise UnprocessableEntityError(
                f"The vector asked about has {len(target)} numbers; those of {vector_settings.name!r} have"
                f" {vector_settings.dimensions}, none of them infinite."
            )

        async with AsyncSessionLocal() as db:
            vectors = await _unit_vectors(db, vector_settings)
            allowed: set[UUID] | None = None
            if filter is not None or query is not None:
                found = select(Record.id).where(Record.dataset_id == dataset.id, *conditions(filter, dataset))
                allowed = set(await db.scalars(found))
                hits = None if query is None else await _hits(db, dataset, query)
                allowed = allowed if hits is None else allowed & hits.keys()

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
            if len(items) == max_results or (threshold is not None and score < threshold):
                break
            if (record is None or id != record.id) and (allowed is None or id in allowed):
                items.append(SearchResponseItem(record_id=id, score=score))
        # One asks for so many that are most like something: there are no more of them, however many records there are.
        return SearchResponses(items=items, total=len(items))

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        values = json_values(Record.metadata_, metadata_property.name)
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
            extremes = rows.with_only_columns(func.min(values.numeral), func.max(values.numeral))
            low, high = (await db.execute(extremes)).one()
        if metadata_property.type == MetadataPropertyType.integer:
            return IntegerMetadataMetrics(
                min=None if low is None else int(low), max=None if high is None else int(high)
            )
        return FloatMetadataMetrics(min=low, max=high)


async def _total_and_counts(counted: Any) -> dict:
    async with AsyncSessionLocal() as db:
        counts = {str(status.value): count for status, count in await db.execute(counted)}
    return {"total": sum(counts.values()), **counts}


# --- text and order -------------------------------------------------------------------------------


async def _hits(db: Any, dataset: Dataset, query: TextQuery | str) -> Hits | None:
    """Record id -> score of what answers a text query, best first; None if it asks for nothing.

    Raises:
        UnprocessableEntityError: the query is larger than is searched for.
    """
    text, field = (query, None) if isinstance(query, str) else (query.q, query.field)
    try:
        node = parse(text)
    except QueryTooLarge as large:
        raise UnprocessableEntityError(str(large)) from large
    return None if node == EVERYTHING else await ranked_hits(db, dataset, text, node, field)


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
        await db.execute(select(Vector.record_id, json_text(Vector.value)).where(mine).order_by(Vector.record_id))
    ).all()
    matrix_ND = np.asarray([json.loads(value) for _, value in rows], dtype=np.float32)
    matrix_ND = matrix_ND.reshape(len(rows), vector_settings.dimensions)
    norms_N1 = np.linalg.norm(matrix_ND, axis=1, keepdims=True)
    vectors = _Vectors([id for id, _ in rows], matrix_ND / np.maximum(norms_N1, 1e-12))
    _vector_cache[vector_settings.id] = (stamp, vectors)
    return vectors
