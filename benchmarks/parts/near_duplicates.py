"""Texts to curate: what is installed here, documents with edited copies, and the truth about which are near-duplicates."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.texts.shingles import jaccard

SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt", ".html", ".json", ".h", ".hpp", ".js", ".css", ".c", ".cpp", ".yaml")
THRESHOLD = 0.8


def text_files(root: Path) -> Iterator[str]:
    """What the text files below a folder hold, in order of their paths."""
    for file in sorted(root.rglob("*")):
        try:
            if file.suffix not in SUFFIXES or not file.is_file() or file.stat().st_size < 100:
                continue
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if "\0" not in text:
            yield text


def installed_texts(limit: int) -> list[str]:
    """Text files of the standard library and the installed packages, in order of their paths, up to so many bytes."""
    texts: list[str] = []
    size = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for text in text_files(Path(root)):
            texts.append(text)
            size += len(text.encode())
            if size >= limit:
                return texts
    return texts


def planted(texts: list[str], distinct: int, copies: int) -> tuple[list[str], list[int]]:
    """Documents of 100-300 words and edited copies of some; returns them with the number of each one's original (or -1)."""
    rng = random.Random(0)
    words = [word for text in texts[:: max(len(texts) // 2000, 1)] for word in text.split()][: 200 * distinct + 1000]
    made: list[str] = []
    origin: list[int] = []
    at = 0
    for _ in range(distinct):
        size = rng.randint(100, 300)
        at = (at + size) % max(len(words) - 400, 1)
        document = words[at : at + size]
        rng.shuffle(document)  # so that documents are unlike each other, whatever they were cut from
        made.append(" ".join(document))
        origin.append(-1)
    for _ in range(copies):
        source = rng.randrange(distinct)
        copy = made[source].split(" ")
        for _ in range(rng.randint(0, max(len(copy) // 12, 1))):
            if rng.random() < 0.7:
                copy[rng.randrange(len(copy))] = rng.choice(words)
            else:
                spot = rng.randrange(len(copy))
                copy[spot : spot + 1] = [rng.choice(words) for _ in range(rng.randint(0, 3))]
        made.append(" ".join(copy))
        origin.append(source)
    return made, origin


def write(texts: list[str], file: Path) -> None:
    ids = [f"{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), file, compression="zstd", row_group_size=10_000)


class Judge:
    """Recall and precision by exact Jaccard of plain Python sets.

    Recall is over copies that are at the threshold or above it with their original: the share of pairs of which one
    went. Precision is the share of removals that are at the threshold with the very row named as kept.
    """

    def __init__(self, texts: list[str], origin: list[int]) -> None:
        self.texts = texts
        self.origin = origin
        self.known: dict[tuple[int, int], float] = {}
        self.due = [i for i, o in enumerate(origin) if o >= 0 and self.jaccard(i, o) >= THRESHOLD]

    def jaccard(self, i: int, k: int) -> float:
        pair = (min(i, k), max(i, k))
        if pair not in self.known:
            self.known[pair] = jaccard(self.texts[i], self.texts[k], 5)
        return self.known[pair]

    def __call__(self, removed: list[tuple[int, int]]) -> dict[str, Any]:
        gone = {i for i, _ in removed}
        found = sum(i in gone or self.origin[i] in gone for i in self.due)
        named = [(i, k) for i, k in removed if k >= 0]
        right = sum(self.jaccard(i, k) >= THRESHOLD for i, k in named)
        return {
            "due": len(self.due),
            "removed": len(removed),
            "recall": round(found / max(len(self.due), 1), 4),
            "precision": round(right / len(named), 4) if named else None,
        }
