"""Finding the passages of documents that a question is about: BM25 (Robertson and Zaragoza, 2009) over a kept index.

The index is a folder of its own in the store's working files, under a digest of what went into it, so that another stage
or run over the same documents opens it instead of building it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.digest import digest_json
from engine.text.words import token_spans, words


@dataclass(frozen=True)
class Passage:
    """A stretch of a document.

    Attributes:
        document: the id of its row.
        start: the character of the document at which it begins.
    """

    document: str
    start: int
    text: str


class PassageIndex:
    """Passages and their BM25 weights (k1 = 1.2, b = 0.75, Lucene's inverse document frequency)."""

    def __init__(self, folder: Path) -> None:
        self.passages = [Passage(**json.loads(line)) for line in (folder / "passages.jsonl").open(encoding="utf-8")]
        self._weights: Any = bm25s.BM25.load(str(folder / "bm25"), mmap=True)

    def search(self, question: str, k: int) -> list[tuple[Passage, float]]:
        """The k best passages with their scores, best first; only such as share a word with the question."""
        terms = [term for term in words(question) if term in self._weights.vocab_dict]
        if not terms:
            return []
        scores = np.asarray(self._weights.get_scores(terms))
        best = np.lexsort((np.arange(len(scores)), -scores))[:k]  # ties by place: the same every time
        return [(self.passages[i], float(scores[i])) for i in best.tolist() if scores[i] > 0]


def passages_of(document: str, text: str, size: int, overlap: int) -> list[Passage]:
    """A document in passages of `size` tokens, each beginning with the last `overlap` tokens of the one before."""
    spans = token_spans(text)
    found, start = list[Passage](), 0
    while start < len(spans):
        end = min(start + size, len(spans))
        found.append(Passage(document, spans[start][0], text[spans[start][0] : spans[end - 1][1]]))
        if end == len(spans):
            break
        start = end - overlap
    return found


def open_index(job: Job, port: str, size: int, overlap: int) -> PassageIndex:
    """The index over the documents of a port, built if it is not there.

    Raises:
        UserError: there is no text.
    """
    made_of = ["bm25 over words of UAX #29", [artifact.digest for artifact in job.all(port)], size, overlap]
    folder = job.store.scratch(f"index-{digest_json(made_of)[:16]}") / "index"
    if not folder.exists():
        job.say(f"indexing {job.rows(port):,} documents")
        partial = folder.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        cut = list[Passage]()
        for artifact in job.all(port):
            for row in artifact.to_table(["id", "text"]).to_pylist():
                cut += passages_of(row["id"], row["text"] or "", size, overlap)
        if not cut:
            raise UserError("there is nothing to retrieve from: no document has any text.")
        build(cut, partial)
        partial.rename(folder)
    return PassageIndex(folder)


def build(passages: Sequence[Passage], folder: Path) -> None:
    """Write an index of these passages."""
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(passage.text)] for passage in passages]
    weights = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    weights.index((ids, vocabulary), show_progress=False)
    weights.save(str(folder / "bm25"))
    with (folder / "passages.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(passage), ensure_ascii=False) + "\n" for passage in passages)
