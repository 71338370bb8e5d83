"""Every reader: the first byte of a case says which format the rest is read as."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.reader.sources import find
from engine.reader.text_files import Options, parse
from engine.reader.typed_rows import Findings, Reading, form_of, tables

NAMES = (
    "a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.html", "a.pdf", "a.txt", "a.md", "a.py", "a.c", "a.jsonl.gz", "a.csv.zst", "a.txt.xz",
    "a.json.bz2", "a.tsv",
)  # fmt: skip
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>endobj\n"
    b"4 0 obj<</Length 35>>stream\nBT /F 9 Tf 9 9 Td (hello) Tj ET     \nendstream endobj\n"
    b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n"
)


def seeds() -> list[bytes]:
    rows = [{"text": f"a text {i}", "id": i, "nested": {"a": [i, None]}, "label": "x"} for i in range(20)]
    table = pa.Table.from_pylist(rows)
    columns, stream, dictionary = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, columns, row_group_size=7)
    pq.write_table(table.select(["text"]), dictionary, compression="zstd")
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made: list[tuple[str, bytes]] = [
        ("a.jsonl", lines), ("a.json", json.dumps(rows).encode()), ("a.csv", b'text,id\n"a, ""b""",1\nc,2\n'), ("a.parquet", columns.getvalue()),
        ("a.parquet", dictionary.getvalue()), ("a.arrow", stream.getvalue()), ("a.pdf", PDF), ("a.py", b'def f():\n    """' + b"doc " * 80 + b'"""\n'),
        ("a.html", b"<html><head><title>t</title></head><body><main><p>a<div>b</div></main></body></html>"), ("a.txt", "one é\r\ntwo".encode()),
        ("a.jsonl.gz", gzip.compress(lines)), ("a.csv.zst", pa.compress(b"text\na\n", codec="zstd", asbytes=True)), ("a.tsv", b"text\tb\n1\t2\n"),
        ("a.txt", "UTF-16 ä".encode("utf-16")),
    ]  # fmt: skip
    return [bytes([NAMES.index(name)]) + data for name, data in made]


def attempt(data: bytes, folder: Path) -> None:
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    (folder / name).write_bytes(data[1:])
    (file,) = find([name], folder)
    render: Callable[[dict[str, object]], str] = lambda row: str(row["text"])  # noqa: E731
    options = Options(render, frozenset(["text"]), frozenset(["text"]), 1_000_000, 20, "detect", 16 << 20)
    for _ in parse(file, form_of(file), options):
        pass
    for kind in ("Document", "Prompt"):
        reading = Reading(
            kind, {"extra": "{{ row }}"} if kind == "Prompt" else {}, max_bytes=1_000_000, max_file_bytes=16 << 20
        )
        for _ in tables([file], reading, Findings()):
            pass
    (folder / name).unlink()
