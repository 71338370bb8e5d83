"""Near-duplicate detection by other tools, as their documentation shows it: run by `benchmarks.curation` in their own environment.

    python dedup.py TOOL TEXTS.parquet OUT.json THRESHOLD

Writes the pairs (removed, kept) each tool decides on. Word 5-grams by `str.split`, 128 permutations, threshold as given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pyarrow.parquet as pq

N = 5


def grams(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + N]) for i in range(max(len(words) - N + 1, 1))]


def datasketch(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    index: Any = MinHashLSH(threshold=threshold, num_perm=128)
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([gram.encode() for gram in grams(text)])
        if found := index.query(sketch):
            removed.append((i, min(found)))
        else:
            index.insert(i, sketch)
    return removed


def rensa(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportMissingImports]

    index: Any = RMinHashLSH(threshold=threshold, num_perm=128, num_bands=16)
    kept: dict[int, Any] = {}
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        sketch: Any = RMinHash(num_perm=128, seed=1)
        sketch.update(grams(text))
        found = [k for k in index.query(sketch) if sketch.jaccard(kept[k]) >= threshold]
        if found:
            removed.append((i, min(found)))
        else:
            index.insert(i, sketch)
            kept[i] = sketch
    return removed


def gaoya(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    from gaoya.minhash import MinHashStringIndex  # pyright: ignore[reportMissingImports]

    index: Any = MinHashStringIndex(
        hash_size=32, jaccard_threshold=threshold, num_bands=16, band_size=8, num_hashes=128, analyzer="word",
        lowercase=True, ngram_range=(N, N),
    )  # fmt: skip
    removed: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        if found := index.query(text):
            removed.append((i, min(found)))
        else:
            index.insert_document(i, text)
    return removed


TOOLS: dict[str, Callable[[list[str], float], list[tuple[int, int]]]] = {
    "datasketch": datasketch,
    "rensa": rensa,
    "gaoya": gaoya,
}


def main() -> None:
    tool, source, out, threshold = sys.argv[1:]
    texts: list[str] = pq.read_table(source, columns=["text"]).column("text").to_pylist()
    removed = TOOLS[tool](texts, float(threshold))
    with open(out, "w") as file:  # noqa: PTH123
        json.dump({"removed": removed, "version": version(tool)}, file)


if __name__ == "__main__":
    main()
