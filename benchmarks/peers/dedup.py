"""Near-duplicate detection by other tools, as their documentation shows it: run by `benchmarks.curation` in their own environment.

    python dedup.py TOOL TEXTS.parquet OUT.json THRESHOLD

The whole job, as ours: read the file, find, write the kept rows (`OUT.parquet`, zstd) and the pairs (removed, kept) that
each tool decides on. Word 5-grams by `str.split`, 128 permutations, threshold as given. Each tool reads in the way that is
fastest for it: Daft keeps the texts to itself, the others take Python strings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

N = 5


def read(source: str) -> list[str]:
    return pq.read_table(source, columns=["text"]).column("text").to_pylist()


def grams(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + N]) for i in range(max(len(words) - N + 1, 1))]


def datasketch(source: str, threshold: float) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    index: Any = MinHashLSH(threshold=threshold, num_perm=128)
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(read(source)):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([gram.encode() for gram in grams(text)])
        if found := index.query(sketch):
            removed.append((i, min(found)))
        else:
            index.insert(i, sketch)
    return removed


def rensa(source: str, threshold: float) -> list[tuple[int, int]]:
    from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportMissingImports]

    index: Any = RMinHashLSH(threshold=threshold, num_perm=128, num_bands=16)
    kept: dict[int, Any] = {}
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(read(source)):
        sketch: Any = RMinHash(num_perm=128, seed=1)
        sketch.update(grams(text))
        found = [k for k in index.query(sketch) if sketch.jaccard(kept[k]) >= threshold]
        if found:
            removed.append((i, min(found)))
        else:
            index.insert(i, sketch)
            kept[i] = sketch
    return removed


def gaoya(source: str, threshold: float) -> list[tuple[int, int]]:
    from gaoya.minhash import MinHashStringIndex  # pyright: ignore[reportMissingImports]

    index: Any = MinHashStringIndex(
        hash_size=32, jaccard_threshold=threshold, num_bands=16, band_size=8, num_hashes=128, analyzer="word",
        lowercase=True, ngram_range=(N, N),
    )  # fmt: skip
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(read(source)):
        if found := index.query(text):
            removed.append((i, min(found)))
        else:
            index.insert_document(i, text)
    return removed


def daft(source: str, threshold: float) -> list[tuple[int, int]]:
    """Its MinHash, with a plain LSH of 16 bands of 8 rows."""
    import daft  # pyright: ignore[reportMissingImports]
    import numpy as np

    text: Any = daft.col("text")
    hashes: Any = text.lower().minhash(num_hashes=128, ngram_size=N, seed=1, hash_function="xxhash")  # its fastest
    hashed: Any = daft.read_parquet(source).select(hashes).to_arrow()
    sketches: Any = np.asarray(hashed.column(0).combine_chunks().flatten()).reshape(-1, 128)
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(16)]
    removed: list[tuple[int, int]] = []
    for i in range(len(sketches)):
        keys = [sketches[i, 8 * band : 8 * band + 8].tobytes() for band in range(16)]
        met = {k for band, key in enumerate(keys) for k in buckets[band].get(key, ())}
        found = [k for k in met if (sketches[i] == sketches[k]).mean() >= threshold]
        if found:
            removed.append((i, min(found)))
        else:
            for band, key in enumerate(keys):
                buckets[band].setdefault(key, []).append(i)
    return removed


def datatrove(source: str, threshold: float) -> list[tuple[int, int]]:
    """Its four steps in one process each; it does not tell which row is kept."""
    import gzip
    import tempfile
    from pathlib import Path

    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]

    home = Path(tempfile.mkdtemp())
    (home / "in").mkdir()
    with (home / "in" / "texts.jsonl").open("w") as file:
        for i, text in enumerate(read(source)):
            file.write(json.dumps({"id": str(i), "text": text}) + "\n")
    config: Any = MinhashConfig(n_grams=N, num_buckets=14, hashes_per_bucket=8)
    reader: Any = JsonlReader(str(home / "in"))
    steps: list[tuple[list[Any], int]] = [
        ([reader, MinhashDedupSignature(output_folder=str(home / "sigs"), config=config)], 1),
        ([MinhashDedupBuckets(str(home / "sigs"), str(home / "buckets"), config=config)], 14),
        ([MinhashDedupCluster(str(home / "buckets"), str(home / "remove"), config=config)], 1),
        (
            [
                reader,
                MinhashDedupFilter(str(home / "remove"), exclusion_writer=JsonlWriter(str(home / "removed"))),
                JsonlWriter(str(home / "kept")),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(home / f"logs{number}")).run()
    removed: list[tuple[int, int]] = []
    for packed in sorted((home / "removed").glob("*.jsonl.gz")):
        with gzip.open(packed, "rt") as rows:
            removed += [(int(json.loads(row)["id"]), -1) for row in rows]
    return removed


TOOLS: dict[str, Callable[[str, float], list[tuple[int, int]]]] = {
    "datasketch": datasketch,
    "rensa": rensa,
    "gaoya": gaoya,
    "daft": daft,
    "datatrove": datatrove,
}


def main() -> None:
    tool, source, out, threshold = sys.argv[1:]
    removed = TOOLS[tool](source, float(threshold))
    rows = pq.read_table(source)
    gone = {i for i, _ in removed}
    kept = rows.filter(pa.array([i not in gone for i in range(len(rows))]))
    pq.write_table(kept, f"{out}.parquet", compression="zstd")
    with open(out, "w") as file:  # noqa: PTH123
        json.dump({"removed": removed, "version": version(tool)}, file)


if __name__ == "__main__":
    main()
