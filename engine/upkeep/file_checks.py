"""What a file must be inside, whatever its digest says: Parquet and Arrow of its kind's columns, safetensors, JSON, SQLite."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa

from engine.store.parquet import open_parquet
from engine.store.schema import DATASETS, REJECTED, Messages, ToolMessages

LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
LARGEST_JSON = 1 << 30
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
          "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


@dataclass
class Examined:
    """What a look inside found: a `fault` in words, rows, and rejected rows by reason."""

    fault: str | None = None
    rows: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=lambda: Counter())


def examine_stored(name: str, kind: str, file: Any) -> Examined:
    """Look into a file of a finished artifact.

    Args:
        kind: of the artifact.
        file: opened to read and seek.
    """
    found = Examined()
    try:
        if name.startswith("data/") and kind in DATASETS:
            found.rows, columns = _table(name, file)
            found.fault = _columns(columns, kind)
        elif name.startswith("rejected/"):
            with open_parquet(file) as parquet:
                if missing := [one for one in REJECTED.names if one not in parquet.schema_arrow.names]:
                    found.fault = f"rejected rows without {', '.join(missing)}"
                else:
                    table = parquet.read(columns=["reason", "failed"], use_threads=False)
                    found.reasons.update(table.column("reason").to_pylist())
                    found.failed = sum(map(bool, table.column("failed").to_pylist()))
        else:
            found.fault = fault_inside(name, file)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        found.fault = f"it can't be read: {_words(error)}"
    return found


def fault_inside(name: str, file: Any) -> str | None:
    """What is wrong inside a file whose name tells what it is, in words; None of others, and where nothing is.

    Args:
        file: opened to read and seek.
    """
    for suffixes, look in _LOOKS:
        if name.endswith(suffixes):
            try:
                return look(file)
            except (pa.ArrowException, OSError, ValueError, KeyError, zipfile.BadZipFile, RecursionError) as error:
                return f"it can't be read: {_words(error)}"
    return None


def fault_of_database(file: Path) -> str | None:
    """What SQLite finds wrong in one of its files. Nothing is written: where there is a journal, which SQLite would play in as it
    opens, that is done to a copy."""
    journal = file.with_name(f"{file.name}-wal")
    with contextlib.ExitStack() as opened:
        if journal.exists() and journal.stat().st_size:
            folder = Path(opened.enter_context(TemporaryDirectory()))
            for one in (file, journal):
                shutil.copyfile(one, folder / one.name)
            address = str(folder / file.name)
        else:
            address = f"{file.absolute().as_uri()}?immutable=1"
        try:
            database = opened.enter_context(contextlib.closing(sqlite3.connect(address, uri=True)))
            told = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
        except sqlite3.Error as error:
            return f"it is no database any more: {error}"
    return None if told == "ok" else f"SQLite finds it damaged: {told.splitlines()[0]}"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _table(name: str, file: Any) -> tuple[int, pa.Schema]:
    if name.endswith(".arrow"):
        reader = pa.ipc.open_file(file)
        return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches)), reader.schema
    with open_parquet(file) as parquet:
        return parquet.metadata.num_rows, parquet.schema_arrow


def _columns(found: pa.Schema, kind: str) -> str | None:
    """The kind's columns come first and in order; messages may have the wider form."""
    for at, field_ in enumerate(DATASETS[kind]):
        if at >= len(found.names) or found.field(at).name != field_.name:
            return f"column {at + 1} of a {kind} is `{field_.name}`, found {found.names[at : at + 1] or 'none'}"
        is_type = found.field(at).type
        if kind == "TokenBlock":  # as narrow as its vocabulary, as long as its blocks
            continue
        if is_type != field_.type and not (field_.type == Messages and is_type == ToolMessages):
            return f"`{field_.name}` of a {kind} has type {field_.type}, found {is_type}"
    return None


def _json(file: Any) -> str | None:
    data = file.read(LARGEST_JSON)
    json.loads(data)
    return None


def _json_lines(file: Any) -> str | None:
    """A last line that a kill cut short is no fault: who reads these files knows it."""
    lines = file.read(LARGEST_JSON).splitlines()
    for at, line in enumerate(lines[:-1], 1):
        try:
            json.loads(line)
        except ValueError as error:
            return f"line {at} is no JSON: {error}"
    return None


def _safetensors(file: Any) -> str | None:
    """https://github.com/huggingface/safetensors: eight bytes of length, a header in JSON, tensors one after the other."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(LARGEST_HEADER, size - 8):
        return f"its header would be {length:,} bytes long, and the file has {size:,}"
    header: Any = json.loads(file.read(length))
    if not isinstance(header, dict):
        return "its header is no table of tensors"
    tensors = {name: facts for name, facts in cast(dict[str, Any], header).items() if name != "__metadata__"}
    at = 0
    for name, facts in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = facts["data_offsets"]
        count = 1
        for dimension in facts["shape"]:
            count *= dimension
        if begin != at or (facts["dtype"] in WIDTHS and end - begin != count * WIDTHS[facts["dtype"]]):
            return f"the tensor {name} does not lie where its shape and its neighbours leave room for it"
        at = end
    return None if at == size - 8 - length else f"its tensors end at byte {at + 8 + length:,} of {size:,}"


def _parquet(file: Any) -> str | None:
    with open_parquet(file) as parquet:
        for _ in parquet.iter_batches(50_000, use_threads=False):
            pass
    return None


def _arrow(file: Any) -> str | None:
    pa.ipc.open_file(file).read_all().validate()
    return None


def _archive(file: Any) -> str | None:
    """What torch saves is a zip archive with a checksum for each tensor."""
    with zipfile.ZipFile(file) as opened:
        bad = opened.testzip()
    return f"{bad} in it is damaged" if bad else None


_LOOKS: tuple[tuple[tuple[str, ...], Callable[[Any], str | None]], ...] = (
    ((".json",), _json),
    ((".jsonl",), _json_lines),
    ((".safetensors",), _safetensors),
    ((".parquet",), _parquet),
    ((".arrow",), _arrow),
    ((".pt", ".pth", ".npz"), _archive),
)
