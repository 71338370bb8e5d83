# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""The fixtures of Argilla's tests of search engines, with ours: takes the place of their conftest.py.

Their tests write into Elasticsearch's index, and look into it, past the engine; ours has no index but Argilla's tables. So what
a test writes into the index is written into the tables, and a document that it looks up is what Argilla's own code
makes of the record that our engine finds. A mapping there is none: a test that asks for one is skipped, and says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import search
from argilla_server.enums import ResponseStatus
from argilla_server.models import Dataset, Record, Response, Suggestion, Vector
from argilla_server.search_engine import OpenSearchEngine
from opensearchpy.serializer import JSONSerializer
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload
from tests.database import TestSession

_ASKS_FOR_A_MAPPING = "asks for the mapping of Elasticsearch's index; the tables have none"
_OWN = ("id", "status", "user_id")  # of a response in the index; its other keys are questions


@asynccontextmanager
async def _session_of_the_test() -> AsyncIterator[Any]:
    yield TestSession()  # what a test has written it does not commit


class EngineOfTheTables(search.TableSearchEngine):
    """Ours. Who deletes rows is the caller, before the engine hears of it; these tests ask the engine alone."""

    async def delete_records(self, dataset: Dataset, records: Any) -> None:
        await TestSession().execute(delete(Record).where(Record.id.in_([record.id for record in records])))
        await super().delete_records(dataset, records)

    async def delete_record_response(self, response: Response) -> None:
        await TestSession().execute(delete(Response).where(Response.id == response.id))
        await super().delete_record_response(response)

    async def _bulk_op_request(self, actions: list[dict[str, Any]]) -> None:
        """The tests write vectors into the index by this; the same vectors are in the tables already."""


class IndexOfTheTables:
    """What the tests use of OpenSearch's client; synchronous, though the tables are asked asynchronously."""

    def __init__(self, engine: EngineOfTheTables) -> None:
        self.engine = engine
        self.transport = SimpleNamespace(serializer=JSONSerializer())
        nothing: Any = lambda *_, **__: None  # noqa: E731
        self.indices = SimpleNamespace(
            create=nothing, delete=nothing, refresh=nothing, exists=_mapping, get=_mapping, get_mapping=_mapping
        )
        self._thread = ThreadPoolExecutor(1)

    def bulk(self, body: str, **_: Any) -> dict[str, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        for action, document in pairs:
            self._done(_write_fields(UUID(action["index"]["_id"]), document["fields"]))
        return {"items": [{"index": {"status": 200}} for _ in pairs]}

    def update(self, index: str, id: Any, body: dict[str, Any]) -> None:
        self._done(_write_responses(UUID(str(id)), body["doc"]["responses"]))

    def get(self, index: str, id: Any) -> dict[str, Any]:
        (document,) = [hit for hit in self._documents(index) if hit["_id"] == str(id)]
        document["_source"].setdefault("responses", [])  # as Elasticsearch keeps it where there were some
        return document

    def search(self, index: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        asked = None if body is None else set(body["query"]["ids"]["values"])
        hits = [hit for hit in self._documents(index) if asked is None or hit["_id"] in asked]
        return {"hits": {"hits": hits}}

    def _documents(self, index: str) -> list[dict[str, Any]]:
        return self._done(_documents(self.engine, UUID(index.removeprefix("rg."))))

    def _done(self, work: Coroutine[Any, Any, Any]) -> Any:
        # The test's own event loop stands still meanwhile, so that nothing else is asked of its connection.
        return self._thread.submit(asyncio.run, work).result()


def _mapping(*_: Any, **__: Any) -> None:
    pytest.skip(_ASKS_FOR_A_MAPPING)


async def _documents(engine: EngineOfTheTables, dataset_id: UUID) -> list[dict[str, Any]]:
    """What Argilla's own code would have put into the index, of the records that our engine finds."""
    async with AsyncSession(bind=TestSession().bind) as session:  # its own: what the test holds stays as it is
        dataset = await session.get(Dataset, dataset_id)
        found = [item.record_id for item in (await engine.search(dataset)).items]
        of_dataset = selectinload(Record.dataset)
        related = (
            selectinload(Record.responses),
            selectinload(Record.suggestions).selectinload(Suggestion.question),
            selectinload(Record.vectors).selectinload(Vector.vector_settings),
            of_dataset.selectinload(Dataset.fields),
            of_dataset.selectinload(Dataset.metadata_properties),
        )
        rows = await session.scalars(select(Record).where(Record.id.in_(found)).options(*related))
        records = {record.id: record for record in rows}
        theirs = OpenSearchEngine.__new__(OpenSearchEngine)
        documents = []
        for id in found:
            document = theirs._map_record_to_es_document(records[id])
            pictures = {field.name for field in dataset.fields if field.is_image}  # not kept in an index
            document["fields"] = {name: value for name, value in document["fields"].items() if name not in pictures}
            documents.append({"_id": str(id), "_source": json.loads(JSONSerializer().dumps(document))})
        return documents


async def _write_fields(id: UUID, fields: dict[str, Any]) -> None:
    await TestSession().execute(
        update(Record).where(Record.id == id).values(fields=fields), execution_options={"synchronize_session": False}
    )


async def _write_responses(record_id: UUID, documents: list[dict[str, Any]]) -> None:
    """The responses of one record. Of a user's own the last stays: Argilla has at most one of each, the tests' index several."""
    gone = delete(Response).where(Response.record_id == record_id)
    await TestSession().execute(gone, execution_options={"synchronize_session": False})
    rows = [
        {
            "id": UUID(document["id"]),
            "user_id": UUID(document["user_id"]),
            "record_id": record_id,
            "status": ResponseStatus(document["status"]),
            "values": {name: {"value": value} for name, value in document.items() if name not in _OWN},
        }
        for document in {document["user_id"]: document for document in documents}.values()
    ]
    await TestSession().execute(insert(Response), rows)


@pytest.fixture
def search_engine(monkeypatch: pytest.MonkeyPatch) -> EngineOfTheTables:
    monkeypatch.setattr(search, "AsyncSessionLocal", _session_of_the_test)
    return EngineOfTheTables()


@pytest.fixture
def opensearch(search_engine: EngineOfTheTables) -> Iterator[IndexOfTheTables]:
    index = IndexOfTheTables(search_engine)
    yield index
    index._thread.shutdown()


@pytest.fixture(autouse=True)
def empty_job_queues() -> None:
    """These tests queue no job, and there is no Redis to empty."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # these make thousands of users before they ask for it
        if "annotator" in item.name and "limits" in item.name:
            item.add_marker(pytest.mark.skip(reason=_ASKS_FOR_A_MAPPING))
