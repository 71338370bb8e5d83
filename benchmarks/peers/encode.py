"""CPU seconds to encode texts by one encoder, in a process of its own.

    python encode.py ENCODER TEXTS.parquet tokenizer.json OUT.json [FOLDER OF FLYWHEEL]

`flywheel` (a checkout's, so that a version of before can be measured), `tokenizers`, `gigatoken`. Cold: all texts, with nothing in memory but what
is imported, loaded and compiled. Warm: the same texts once more, the least of three times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def flywheel(texts: pa.Array, model: str) -> Callable[[], Callable[[], Any]]:
    from pipelines.texts.columns import texts_of
    from pipelines.tokenize.encoder import Encoder

    column = texts_of(texts)
    parts = json.loads(model)
    eos = next(token["id"] for token in parts["added_tokens"])
    size = len(parts["model"]["vocab"]) + 1
    Encoder(model, eos, size).encode(texts_of(texts.slice(0, 1)))  # compiles

    def new() -> Callable[[], Any]:
        encoder: Any = Encoder(model, eos, size)
        return lambda: encoder.encode(column)

    return new


def tokenizers(texts: pa.Array, model: str) -> Callable[[], Callable[[], Any]]:
    from tokenizers import Tokenizer

    strings = texts.to_pylist()

    def new() -> Callable[[], Any]:
        made: Any = Tokenizer.from_str(model)
        made.encode_special_tokens = True
        return lambda: [
            made.encode_batch_fast(strings[i : i + 500], add_special_tokens=False) for i in range(0, len(strings), 500)
        ]

    return new


def gigatoken(texts: pa.Array, model: str) -> Callable[[], Callable[[], Any]]:
    import gigatoken as library  # pyright: ignore[reportMissingImports]

    strings = texts.to_pylist()

    def new() -> Callable[[], Any]:
        made: Any = library.Tokenizer.from_json(model)
        return lambda: made.encode_batch(strings, parallel=False)

    return new


def main() -> None:
    name, source, model, out, *root = sys.argv[1:]
    sys.path[:0] = root
    texts = pq.read_table(source, columns=["text"]).column("text").combine_chunks()
    new = globals()[name](texts, Path(model).read_text())
    before = time.process_time()
    encode = new()
    load = time.process_time() - before
    size = texts.nbytes / 1e6
    times: list[float] = []
    for _ in range(4):
        before = time.process_time()
        encode()
        times.append(time.process_time() - before)
    told = {"megabytes": round(size, 1), "load_s": load, "cold_s": times[0], "warm_s": min(times[1:])}
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
