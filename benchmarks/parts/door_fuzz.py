"""Files of every kind, column, type, format and encoding, thrown at the door: no traceback, and no row that is nowhere.

A file has a few good rows of a kind and one row a value: every column of the kind (and of the shapes it is told by) takes
every JSON and Arrow type in turn. What comes out is counted against what went in.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import random
import tempfile
import traceback
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.plan.inputs import resolve
from engine.store.store import Store

Row = dict[str, Any]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
GOOD: dict[str, Row] = {
    "Document": {"text": "a text"},
    "Prompt": {"prompt": "q", "reference": "r"},
    "Conversation": {"messages": TURNS},
    "Candidate": {"prompt": "q", "completion": "a"},
    "Ranking": {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "annotator": "x"},
    "Preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "Verdict": {"subject": "s", "metric": "m", "value": 1.0},
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "Document": ("text", "content", "source", "offset", "metadata"),
    "Prompt": ("prompt", "question", "instruction", "reference", "answer", "messages", "system", "metadata"),
    "Conversation": ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history", "reference"),
    "Candidate": (
        "prompt", "completion", "prompt_id", "prompt_token_ids", "token_ids", "logprobs", "finish_reason", "model", "sampling", "seed",
        "sample", "label",
    ),
    "Ranking": ("prompt", "prompt_id", "candidates", "completions", "ranks", "shown", "annotator", "annotator_kind", "correction", "flags"),
    "Preference": ("prompt", "chosen", "rejected", "chosen_id", "rejected_id", "margin", "agreement", "annotators", "split"),
    "Verdict": ("subject", "model", "metric", "value", "text"),
}  # fmt: skip
COMMON = ("id", "parents", "tools", "split", "extra")

DEEP: Any = json.loads("[" * 200 + "1" + "]" * 200)
VALUES: list[Any] = [
    None, True, False, 0, -1, 7, 2**31, 2**63, 2**70, 1.5, 1e308, "", " ", "text", "007", "a\0b", "\ud800", "\ufeff", "null", "[", "{}",
    "[1]", '[{"role": "user", "content": "q"}]', [], [None], [1], ["a"], [[["a"]]], {}, {"a": 1}, {"a": {"b": [None]}}, DEEP,
    TURNS, [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], [{"role": "user"}], [{"role": None, "content": "x"}],
    [{"role": "assistant", "content": None}], [{"role": 5, "content": 6}], [{"role": "user", "content": [{"type": "image"}]}],
    [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": "assistant", "tool_calls": "x"}], [{"role": "assistant", "tool_calls": [None]}], [{"content": "x", "weight": 0}],
    {"role": ["user", "assistant"], "content": ["q", "a"]}, "\n\nHuman: q\n\nAssistant: a",
]  # fmt: skip
NOW = datetime.datetime(2024, 2, 29, 12, 30)
ARROW: list[pa.Array] = [
    pa.array([True, None]), *(pa.array([1, None], t) for t in (pa.int8(), pa.uint64(), pa.int64(), pa.float32(), pa.float64())),
    pa.array([float("nan"), float("inf")]), pa.array([2**64 - 1, 0], pa.uint64()),
    pa.array([Decimal("1.50"), None], pa.decimal128(20, 2)), pa.array([Decimal(10) ** 50, None], pa.decimal256(60, 0)),
    *(pa.array(["a", None], t) for t in (pa.string(), pa.large_string(), pa.string_view())), pa.array(["a", "b"]).dictionary_encode(),
    *(pa.array([b"\xff", b"a"], t) for t in (pa.binary(), pa.large_binary())), pa.array([b"ab", None], pa.binary(2)),
    pa.array([NOW.date(), None]), pa.array([NOW.time(), None]), pa.array([datetime.timedelta(days=1), None]),
    pa.array([NOW, None], pa.timestamp("us")), pa.array([NOW, None], pa.timestamp("ns", "UTC")), pa.array([2**62, 1], pa.timestamp("s")),
    pa.array([["a"], None]), pa.array([[1], []], pa.large_list(pa.int64())), pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
    pa.array([{"a": 1}, None]), pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), pa.array([TURNS, TURNS[:1]]),
    pa.nulls(2),
]  # fmt: skip
CODECS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1")


def trials() -> Iterator[tuple[str, str, Any]]:
    """(kind, column, value or Arrow array) for every column of every kind and every type."""
    for kind, columns in COLUMNS.items():
        for column in (*columns, *COMMON):
            for value in itertools.chain(VALUES, ARROW):
                yield kind, column, value


def files(seed: int, count: int | None = None) -> Iterator[tuple[str, str, bytes, int]]:
    """(kind, name, bytes, how many rows) of files, two trials a file; all trials, and a sample of `count` files where given."""
    draw = random.Random(seed)
    every = list(trials())
    draw.shuffle(every)
    for number, (kind, column, value) in enumerate(every if count is None else every[:count]):
        good = dict(GOOD[kind])
        if isinstance(value, pa.Array):
            yield kind, *_arrow(good, column, value, number)
            continue
        rows = [good, {**good, column: value}, {column: value}, good]
        codec = draw.choice(CODECS)
        form = draw.choice(("jsonl", "json", "csv", "tsv"))
        yield kind, *_text(rows, form, codec)


def _arrow(good: Row, column: str, value: pa.Array, number: int) -> tuple[str, bytes, int]:
    table = pa.Table.from_pylist([{k: v for k, v in good.items() if k != column}] * len(value))
    if len(table.column_names) == 0:
        table = pa.table({"n": list(range(len(value)))})
    table = table.append_column(column, value)
    sink = io.BytesIO()
    if number % 2:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return "a.arrow", sink.getvalue(), len(table)
    try:
        pq.write_table(table, sink)
    except (pa.ArrowException, NotImplementedError):  # Parquet has no such type
        return _arrow(good, column, value, number + 1)
    return "a.parquet", sink.getvalue(), len(table)


def _text(rows: list[Row], form: str, codec: str) -> tuple[str, bytes, int]:
    if form in ("csv", "tsv"):
        out = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(out, names, delimiter="\t" if form == "tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
        text = out.getvalue()
    elif form == "json":
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    return f"a.{form}", text.encode(codec, "backslashreplace"), len(rows)


def fuzz(count: int | None = None, seed: int = 7) -> dict[str, Any]:
    """Bring every file in, and count.

    Returns:
        files, rows, kept, rejected; `refused` (files of which no row could be taken), `lost` and `tracebacks`: what should be empty.
    """
    told: dict[str, Any] = {"files": 0, "rows": 0, "kept": 0, "rejected": 0, "refused": 0, "lost": [], "tracebacks": []}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        for number, (kind, name, data, rows) in enumerate(files(seed, count)):
            place = Path(folder) / str(number)
            place.mkdir()
            (place / name).write_bytes(data)
            told["files"] += 1
            told["rows"] += rows
            try:
                made = resolve(f"./{name}", place, (kind,), store).adopt(store)
            except UserError as error:
                told["refused"] += 1
                told["rejected"] += rows
                if "can be read as" not in str(error):
                    told["lost"].append(f"{kind} {name} {data[:200]!r}: {error}")
                continue
            except Exception:
                told["tracebacks"].append(f"{kind} {name} {data[:300]!r}: {traceback.format_exc(limit=-2)}")
                continue
            kept, rejected = made.to_table(), made.rejected()
            aside = 0 if rejected is None else len(rejected)
            told["kept"] += len(kept)
            told["rejected"] += aside
            if len(kept) + aside != rows or len(kept) != made.rows or len(set(kept["id"].to_pylist())) != len(kept):
                told["lost"].append(f"{kind} {name} {data[:300]!r}: {len(kept)} + {aside} of {rows}")
    return told
