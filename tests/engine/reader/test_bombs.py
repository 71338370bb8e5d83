"""Small files that would take the machine: each ends as a rejected row, in bounded memory and time."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from engine.reader.records import RecordOptions, records
from engine.reader.sources import find

MB = 1 << 20


def zipped(size: int, start: bytes = b"", fill: bytes = b" ", end: bytes = b"") -> bytes:
    """`size` MB in gzip, at a thousandth of it."""
    packer, out = zlib.compressobj(9, zlib.DEFLATED, 31), io.BytesIO()
    out.write(packer.compress(start))
    for _ in range(size):
        out.write(packer.compress(fill * (MB // len(fill))))
    out.write(packer.compress(end) + packer.flush())
    return out.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def repeated(rows: int, text: str) -> pa.Table:
    return pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])})


def lying_offsets() -> bytes:
    """An Arrow stream whose one text ends a terabyte behind its beginning."""
    return stream(pa.table({"text": pa.array(["abcd", "efgh"])})).replace(
        b"\x04\0\0\0\x08\0\0\0", b"\x04\0\0\0\xff\xff\xff\x7f"
    )


def nulls() -> bytes:
    column, schema, out = pa.nulls(1_000_000), pa.schema([("text", pa.null())]), io.BytesIO()
    with pq.ParquetWriter(out, schema) as writer:
        for _ in range(40):
            writer.write_table(pa.Table.from_arrays([column], schema=schema), row_group_size=1_000_000)
    return out.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a.pdf.gz": lambda: zipped(6, b"%PDF-1.4\n"),
    "a.html.gz": lambda: zipped(6, b"<p>"),
    "a.txt.gz": lambda: zipped(6),
    "a.csv.gz": lambda: zipped(6, b"text\n", b"a"),
    "rows.csv.gz": lambda: zipped(6, b"text\n", b"\n"),
    "a.json.gz": lambda: zipped(48, b"[", b" ", b"]"),
    "lists.json.gz": lambda: zipped(12, b'{"a":[[]', b",[]   ", b"]}"),
    "objects.json.gz": lambda: zipped(12, b'[{"text":"a"},{"a":[[]', b",[]   ", b"]}]"),
    "a.jsonl.gz": lambda: zipped(6, b'{"text": "', b"a", b'"}'),
    "lists.jsonl.gz": lambda: zipped(12, b'{"text": [[]', b",[]   ", b"]}"),
    "a.jsonl.bz2": lambda: bz2.compress(b"a" * (6 * MB), 9),
    "a.txt.xz": lambda: lzma.compress(b"a" * (6 * MB), preset=0),
    "a.txt.zst": lambda: pa.compress(b"a" * (6 * MB), codec="zstd", asbytes=True),
    "twice.txt.gz": lambda: gzip.compress(zipped(6)),
    "runs.parquet": lambda: parquet(repeated(200_000, "a" * 1000)),
    "wide.parquet": lambda: parquet(repeated(4000, "a" * 900_000)),
    "nulls.parquet": nulls,
    "wide.arrow": lambda: stream(repeated(4000, "a" * 900_000)),
    "nested.arrow": lambda: stream(pa.table({"text": pa.ListArray.from_arrays(pa.array([0, 2000]), repeated(2000, "a" * 900_000)["text"].chunk(0))})),
    "lying.arrow": lying_offsets,
    "div.html": lambda: b"<div>" * 300_000,
    "tables.html": lambda: b"<table><tr><td>" * 100_000,
    "deep.json": lambda: b"[" * 100_000,
    "deep.jsonl": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n" + b"[" * 100_000,
    "digits.jsonl": lambda: b'{"text": ' + b"9" * 1_000_000 + b"}\n",
    "surrogates.jsonl": lambda: b'{"text": "\\ud800"}\n{"text": "a", "text": "b"}\n{"text": NaN}\n{"text": "a\\u0000b"}',
    "quote.csv": lambda: b'text\n"' + b"a,\n" * 1_000_000,
    "columns.csv": lambda: b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n1\n",
    "cell.csv": lambda: b"text\n" + b"a" * (30 * MB),
    "long.jsonl": lambda: b'{"text": "' + b"a" * (40 * MB),
    "brackets.py": lambda: b"(" * 100_000,
    "minus.py": lambda: b"x = " + b"-" * 200_000 + b"1",
    "plus.py": lambda: b"x = " + b"1+" * 200_000 + b"1",
}  # fmt: skip

CHILD = """
import json, resource, sys, time
from engine.reader.sources import find
from engine.reader.text_files import Options, Text, parse
from engine.reader.typed_rows import Reading, Findings, form_of, tables
import engine.reader.apart as apart
apart.SECONDS = 1  # instead of ten
told = {}
for file in find([sys.argv[1]], "."):
    begin, kept, bad = time.process_time(), 0, []
    for item in parse(file, form_of(file), Options(lambda row: str(row["text"]), frozenset(["text"]), frozenset(["text"]), 5_000_000, 200, "utf-8", 4 << 20)):
        if isinstance(item, Text):
            kept += 1
        elif len(bad) < 3:
            bad.append([item.reason, item.detail])
    told[file.name] = [kept, bad, time.process_time() - begin]
    print(file.name, told[file.name], file=sys.stderr)
apart._end_idle()
# Its own from /proc: `ru_maxrss` begins with what the process had that started this one.
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
peaks = [own >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]
print(json.dumps([told, peaks]))
"""


def test_bombs_of_every_format_are_rejected_rows_in_bounded_memory_and_time(tmp_path: Path) -> None:
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told, peaks = json.loads(done.stdout)
    assert set(told) == set(BOMBS)
    assert sum(peaks) < 2048
    for name, (_, bad, seconds) in told.items():
        assert bad and all(detail for _, detail in bad), name
        assert seconds < 60, name


def test_a_large_array_is_read_a_row_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.reader.records.WHOLE", 1 << 20)
    rows = [{"text": f"{i} é ,]}} " + "x" * 50, "n": [1, {"a": 2.5}]} for i in range(40_000)]
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
        (file,) = find([str(tmp_path / "a.json")], ".")
        assert [item.row for item in records(file, "json", RecordOptions())] == rows  # pyright: ignore
    whole = json.dumps(rows)
    for broken, kept in (
        (whole[:-1], 40_000),
        (whole[:-30], 39_999),
        (whole.replace('"n"', "n", 30_001)[:-1], 0),
        (whole + "x", 40_000),
    ):
        (tmp_path / "a.json").write_text(broken)
        (file,) = find([str(tmp_path / "a.json")], ".")
        found = list(records(file, "json", RecordOptions()))
        good = [item for item in found if hasattr(item, "row")]
        assert len(good) == kept and (len(found) == kept + 1 or broken.endswith("x")), broken[-20:]


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, told in (("pipe.jsonl", "named pipe"), ("/dev/zero", "device")):
        with pytest.raises(UserError, match=told) as error:
            find([name], tmp_path)
        assert "Did you mean" not in str(error.value)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.jsonl"))
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "again").symlink_to(tmp_path)
    with (tmp_path / "sparse.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "good.jsonl").write_text('{"text": "a"}')
    said: list[str] = []
    assert [file.name for file in find(["**/*.jsonl"], tmp_path, say=said.append)] == ["good.jsonl"]
    assert all(
        any(word in line for line in said) for word in ("named pipe", "socket", "link to nothing", "holds it", "sparse")
    )


def test_names_that_are_not_utf8_are_readable_and_stable(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    for name in (b"caf\xe9.jsonl", b"caf\\xe9.jsonl", b"line\nbreak.jsonl"):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(b'{"text": "a"}\n')
    names = [file.name for file in find([str(tmp_path)], ".")]
    assert sorted(names) == ["caf\\xe9.jsonl", "caf\\xe9.jsonl#2", "line\nbreak.jsonl"]
    assert names == [file.name for file in find([str(tmp_path)], ".")]
    assert all(len(list(records(file, "jsonl", RecordOptions()))) == 1 for file in find([str(tmp_path)], "."))


def test_folders_a_thousand_deep_are_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_DIRECTORY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    assert [file.name for file in find([str(tmp_path)], ".")] == ["a.jsonl"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_file_that_ends_its_reader_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    from engine.reader.apart import Unreadable, apart

    for function, arguments, told in (("os:abort", [], "SIGABRT"), ("ctypes:string_at", [1], "SIGSEGV")):
        with pytest.raises(Unreadable, match=told):
            list(apart(function, *arguments))
    assert next(iter(apart("engine.reader.pages:html", "<p>a</p>")))[0].strip() == "a"
