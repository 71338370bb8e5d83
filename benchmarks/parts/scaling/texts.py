"""What the parts work on: real text as JSON lines, a tokenizer for it, and short documents in any number.

All of it is made once in a folder, and found there again by its name.
"""

from __future__ import annotations

import itertools
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.parts.near_duplicates import text_files
from engine.store.whole_file import whole_file

FILE_BYTES = 32_000_000
SHORT_ROWS = 1_000_000  # of a file
SYSTEM = ("/usr/share", "/usr/include", "/usr/lib")


def real(folder: Path, megabytes: int) -> tuple[Path, dict[str, int]]:
    """A folder of `*.jsonl` with the text files of what is installed here, until there are so many megabytes; and how much that is:
    the standard library's, the packages', then the system's.
    """
    home = folder / f"real-{megabytes}-mb"
    done = home / "size.json"
    if not done.exists():
        home.mkdir(parents=True, exist_ok=True)
        told = {"bytes": 0, "documents": 0, "files": 0}
        for texts in _bundles(megabytes * 1_000_000):
            lines = (
                json.dumps({"id": str(told["documents"] + number), "text": text}, ensure_ascii=False)
                for number, text in enumerate(texts)
            )
            (home / f"texts-{told['files']:05d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
            told["bytes"] += sum(len(text.encode()) for text in texts)
            told["documents"] += len(texts)
            told["files"] += 1
        done.write_text(json.dumps(told))
    return home, json.loads(done.read_text())


def _bundles(size: int) -> Iterator[list[str]]:
    """Texts of `size` bytes together, in eight files at least, so that two workers can have as many each."""
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *SYSTEM]
    each = min(FILE_BYTES, size // 8)
    held: list[str] = []
    room = each
    for text in itertools.chain.from_iterable(text_files(Path(root)) for root in roots):
        held.append(text)
        length = len(text.encode())
        room, size = room - length, size - length
        if room <= 0 or size <= 0:
            yield held
            held, room = [], each
        if size <= 0:
            return
    if held:
        yield held


def tokenizer(folder: Path, texts: Path) -> Path:
    """A byte-level BPE of 32,000 tokens, trained on a twentieth of the first file of these texts or a megabyte at least."""
    home = folder / "tokenizer"
    if not (home / "tokenizer.json").exists():
        from pipelines.tokenize.bpe import train_bpe
        from pipelines.tokenize.tokenizer_files import save

        rows: list[str] = []
        with sorted(texts.glob("*.jsonl"))[0].open() as lines:
            for line in itertools.islice(lines, 0, None, 5):
                rows.append(json.loads(line)["text"])
        save(train_bpe(iter([rows]), 32_000), home)
    return home


def short(folder: Path, count: int) -> tuple[Path, dict[str, int]]:
    """A folder of Parquet files with so many documents of six drawn words, an eighth of them copies of another one; and how much text
    that is.

    Words are drawn by Zipf's law from 50,000, so that bands meet by chance as they do in titles and messages.
    """
    home = folder / f"short-{count}"
    done = home / "size.json"
    if not done.exists():
        home.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        words = pa.array([f"w{number:x}" for number in range(50_000)])
        size = 0
        for at in range(0, count, SHORT_ROWS):
            rows = min(SHORT_ROWS, count - at)
            drawn = np.minimum(rng.zipf(1.2, 6 * rows), 50_000) - 1
            begins = pa.array(np.arange(0, 6 * rows + 1, 6), pa.int32())
            texts: Any = pc.call_function(
                "binary_join", [pa.ListArray.from_arrays(begins, words.take(pa.array(drawn))), " "]
            )
            source = np.where(rng.random(rows) < 1 / 8, rng.integers(0, rows, rows), np.arange(rows))
            table = pa.table({"text": texts.take(pa.array(source))})
            with whole_file(home / f"short-{at // SHORT_ROWS:03d}.parquet", lasting=False) as partial:
                pq.write_table(table, partial, compression="zstd", row_group_size=50_000)
            size += pc.call_function("sum", [pc.call_function("binary_length", [table["text"]])]).as_py()
        done.write_text(json.dumps({"bytes": size, "documents": count, "files": -(-count // SHORT_ROWS)}))
    return home, json.loads(done.read_text())
