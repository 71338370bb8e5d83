"""What no tool can show people is refused before anything is pushed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import UserError
from labeling.tool.task import RankingRecord, RankingTask

MAX_RECORD_BYTES = 1_000_000


def fitting(task: RankingTask, records: Sequence[RankingRecord]) -> Iterator[RankingRecord]:
    """The records one by one.

    Raises:
        UserError: an id is there twice, or a record has another number of answers than the task.
    """
    seen: set[str] = set()
    for record in records:
        if record.external_id in seen:
            raise UserError(f"Record {record.external_id!r} is given twice: ids must be unique in a push.")
        seen.add(record.external_id)
        if len(record.answers) != task.answers:
            raise UserError(
                f"Record {record.external_id!r} has {len(record.answers)} answers, and dataset"
                f" {task.name!r} ranks {task.answers}. Push records with another number of answers"
                f" to a dataset of their own."
            )
        yield record


def as_json(record: RankingRecord, item: Mapping[str, Any]) -> bytes:
    """What a tool is sent for a record.

    Raises:
        UserError: it can't be written as JSON, or is too long to be shown to people.
    """
    try:
        encoded = json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a lone surrogate, or NaN
        raise UserError(f"Record {record.external_id!r} can't be written as JSON: {error}.") from error
    if len(encoded) > MAX_RECORD_BYTES:
        raise UserError(
            f"Record {record.external_id!r} is {len(encoded):,} bytes long; at most"
            f" {MAX_RECORD_BYTES:,} can be shown to people. Nothing was pushed. Filter such"
            f" records out before labelling."
        )
    return encoded


def batches(items: Sequence[tuple[str, bytes]], most: int, most_bytes: int) -> Iterator[list[tuple[str, bytes]]]:
    """(external id, JSON) in requests of bounded size, in order."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for item in items:
        if batch and (len(batch) == most or size + len(item[1]) > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        yield batch
