"""The Arrow schemas of every dataset, in one place, and the identity of a row.

Column names and values are those TRL and `datasets` expect (`messages`, `prompt`, `chosen`, `rejected`), so an exported
Parquet trains elsewhere unchanged. A dataset may carry extra columns; the ones named here are always there.
Every row has `id`, a digest of its content and origin, and `parents`, the ids of the rows it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import xxhash

from engine.errors import UserError

Message = pa.struct([("role", pa.string()), ("content", pa.string())])
Messages = pa.list_(Message)
# A message that calls a tool, answers for one, or was thought about before it was said. A table has these fields where one of
# its messages uses them. `tool_calls` is JSON: the arguments of two tools have no type in common.
EXTRAS = ("reasoning_content", "tool_calls", "tool_call_id", "name")
ToolMessage = pa.struct([("role", pa.string()), ("content", pa.string()), *((name, pa.string()) for name in EXTRAS)])
ToolMessages = pa.list_(ToolMessage)


def _rows(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([("id", pa.string()), ("parents", pa.list_(pa.string())), *fields])


DATASETS: dict[str, pa.Schema] = {
    # One text. `source` names the file (relative to the root it was read from) or the generator, `offset` is the byte
    # (or row) in it at which the text starts, `metadata` is a JSON object.
    "Document": _rows(
        ("text", pa.string()), ("source", pa.string()), ("offset", pa.int64()), ("metadata", pa.string())
    ),
    # A stretch of a document, in an index (`pipelines/index/`): `document` is its row's id, `heading` the headings it stands under
    # (`Leave › Sick days`), `start` and `end` characters of the document's text, `byte` where in that text as UTF-8 it begins, `line` its first
    # line, from 1; `source` and `metadata` are the document's, and `digest` is of all of it.
    "Passage": _rows(
        ("document", pa.string()),
        ("text", pa.string()),
        ("heading", pa.string()),
        ("source", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("byte", pa.int64()),
        ("line", pa.int64()),
        ("metadata", pa.string()),
        ("digest", pa.string()),
    ),
    # What a model is asked. `reference` is a known right answer, if there is one.
    "Prompt": _rows(("prompt", Messages), ("reference", pa.string()), ("metadata", pa.string())),
    "Conversation": _rows(("messages", Messages), ("reference", pa.string()), ("metadata", pa.string())),
    # One sampled answer. `sampling` is JSON (temperature, top_p, ...), `sample` counts the answers to one prompt from 0.
    # `token_ids` are the ids as sampled: nothing downstream tokenises them anew.
    "Candidate": _rows(
        ("prompt_id", pa.string()),
        ("prompt", Messages),
        ("completion", Messages),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("model", pa.string()),
        ("sampling", pa.string()),
        ("seed", pa.int64()),
        ("sample", pa.int32()),
        ("reference", pa.string()),
    ),
    # One annotator's judgement of the answers to one prompt. `ranks[i]` belongs to `candidates[i]`: 1 is best, equal
    # ranks are ties, null is not ranked. `shown[i]` is the position (from 0) at which the annotator saw it.
    "Ranking": _rows(
        ("prompt_id", pa.string()),
        ("prompt", Messages),
        ("candidates", pa.list_(pa.string())),
        ("completions", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int32())),
        ("shown", pa.list_(pa.int32())),
        ("annotator", pa.string()),
        ("annotator_kind", pa.string()),  # person | scripted | judge
        ("correction", pa.string()),
        ("flags", pa.list_(pa.string())),
    ),
    # `margin` is the difference of the two utilities (log-odds), `agreement` the share of annotators who had an
    # opinion and preferred `chosen`, `annotators` how many had one.
    "Preference": _rows(
        ("prompt_id", pa.string()),
        ("prompt", Messages),
        ("chosen", Messages),
        ("rejected", Messages),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("margin", pa.float64()),
        ("agreement", pa.float64()),
        ("annotators", pa.int32()),
        ("split", pa.string()),  # train | validation
    ),
    # One measurement of one thing: `subject` is the id of the row judged, `model` who made it, `metric` what was measured.
    "Verdict": _rows(
        ("subject", pa.string()),
        ("model", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("text", pa.string()),
    ),
    # Packed token ids. On disk this kind is Arrow IPC, uncompressed, memory-mapped (see `pipelines/tokenize/stage.py`);
    # `starts` are the offsets in the block at which a document begins.
    "TokenBlock": _rows(("tokens", pa.list_(pa.uint32())), ("starts", pa.list_(pa.int32()))),
}

MODELS: frozenset[str] = frozenset({"Model", "RewardModel", "Adapter"})
KINDS: tuple[str, ...] = (*DATASETS, *sorted(MODELS))

# Rows that did not make it: the columns of the rows they were, and why. `failed` tells a row that broke
# (counted against the ceiling) from a row that was removed on purpose (a filter, a duplicate).
REJECTED = pa.schema([("reason", pa.string()), ("detail", pa.string()), ("failed", pa.bool_())])


def row_id(kind: str, *parts: str | int | bytes | None) -> str:
    """The id of a row: 128 bits of XXH3 over its kind and parts, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128(kind.encode())
    for part in parts:
        encoded = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def messages_digest(messages: Iterable[Mapping[str, Any]]) -> str:
    """A stable text of a conversation, to be used as one part of a row's id."""
    told: list[list[Any]] = []
    for message in messages:
        extras = {name: message[name] for name in EXTRAS if message.get(name) is not None}
        told.append([message["role"], message["content"], *([extras] if extras else [])])
    return json.dumps(told, ensure_ascii=False)


def spoken(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stored messages as chat templates and servers take them: without what is not there, `tool_calls` as a list."""
    said: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message["role"], "content": message["content"] or ""}
        turn |= {name: message[name] for name in EXTRAS if message.get(name) is not None}
        if isinstance(turn.get("tool_calls"), str):
            turn["tool_calls"] = json.loads(turn["tool_calls"])
        said.append(turn)
    return said


def stored(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The inverse of `spoken`: messages as rows hold them, `tool_calls` as JSON."""
    held: list[dict[str, Any]] = []
    for message in messages:
        turn = {name: message.get(name) for name in ("role", "content", *EXTRAS)}
        if turn["tool_calls"] is not None and not isinstance(turn["tool_calls"], str):
            turn["tool_calls"] = json.dumps(turn["tool_calls"], ensure_ascii=False, sort_keys=True)
        held.append({name: value for name, value in turn.items() if name not in EXTRAS or value is not None})
    return held


def wide(messages: Iterable[Mapping[str, Any]] | None) -> bool:
    """Whether these messages use a field that plain ones don't have."""
    return any(message.get(name) is not None for message in messages or [] for name in EXTRAS)


def table(kind: str, rows: list[dict[str, Any]], extra: Iterable[tuple[str, pa.DataType]] = ()) -> pa.Table:
    """Rows in the schema of their kind; a column of messages has the fields of `ToolMessage` where one of its rows uses them.

    Args:
        extra: columns beside those of the kind, and their types.
    """
    fields: list[pa.Field] = []
    for field in [*DATASETS[kind], *(pa.field(name, form) for name, form in extra)]:
        uses = field.type == Messages and any(wide(row.get(field.name)) for row in rows)
        fields.append(pa.field(field.name, ToolMessages) if uses else field)
    return pa.Table.from_pylist(rows, pa.schema(fields))


def united(tables: list[pa.Table]) -> list[pa.Table]:
    """Tables of one kind, made to have the same types: messages are as wide in each as in the widest."""
    names = {f.name for t in tables for f in t.schema if f.type == ToolMessages}
    return [_widened(t, names) for t in tables]


def _widened(given: pa.Table, names: set[str]) -> pa.Table:
    for at, field in enumerate(given.schema):
        if field.name in names and field.type == Messages:
            column = pa.array(given.column(at).to_pylist(), ToolMessages)
            given = given.set_column(at, pa.field(field.name, ToolMessages), column)
    return given


def conform(given: pa.Table, kind: str) -> pa.Table:
    """Cast a table to its kind: schema columns first and in order, missing nullable columns as nulls, extras after.

    Raises:
        UserError: a column has a type that can't be cast, or `id` is missing.
    """
    schema = DATASETS[kind]
    if "id" not in given.column_names:
        raise UserError(f"a {kind} table needs an `id` column; it has {given.column_names}")
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in schema:
        if field.name not in given.column_names:
            columns.append(pa.nulls(len(given), field.type))
            continue
        column = given.column(field.name)
        try:
            fits = column.type == field.type or (field.type == Messages and column.type == ToolMessages)
            columns.append(column if fits else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"column `{field.name}` of a {kind} table has type {column.type}, expected {field.type}: {error}"
            ) from error
    extra = [name for name in given.column_names if name not in schema.names]
    own = [pa.field(field.name, column.type) for field, column in zip(schema, columns, strict=True)]
    fields = [*own, *(given.schema.field(name) for name in extra)]
    return pa.Table.from_arrays([*columns, *(given.column(n) for n in extra)], schema=pa.schema(fields))
