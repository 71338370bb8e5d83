"""Finding the passages that a question is about: in an artifact of `index`, as it is best searched, or in documents, by BM25
(`engine.retrieval.full_text`) over a kept index of their words.

The kept one is a folder of its own in the store's working files, under a digest of what went into it, so that another stage
or run over the same documents opens it instead of building it.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.errors import UserError
from engine.retrieval.full_text import FullText, Postings, postings
from engine.retrieval.retrieval_index import RetrievalIndex
from engine.stage.job import Job
from engine.store.artifact import Artifact
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


class Retriever(Protocol):
    @property
    def count(self) -> int:
        """Passages."""
        ...

    def search(self, question: str, k: int) -> list[tuple[Passage, float]]:
        """The k best passages with their scores, best first."""
        ...


class IndexedPassages:
    """The passages of an artifact of `index`. Several threads may ask."""

    def __init__(self, artifact: Artifact) -> None:
        self._index = RetrievalIndex(artifact)
        self._one_at_a_time = threading.Lock()  # a tokenizer of an embedding model can't be used by two

    @property
    def count(self) -> int:
        return self._index.full_text.count

    def search(self, question: str, k: int) -> list[tuple[Passage, float]]:
        with self._one_at_a_time:
            hits = self._index.search(question, k)
        return [(Passage(hit.document, hit.start, hit.text), hit.score) for hit in hits]


class PassageIndex:
    """Passages, and which words stand in them."""

    def __init__(self, folder: Path) -> None:
        self.passages = [Passage(**json.loads(line)) for line in (folder / "passages.jsonl").open(encoding="utf-8")]
        self._full_text = FullText([Postings.from_arrays(load_file(folder / "postings.safetensors"))])

    @property
    def count(self) -> int:
        return len(self.passages)

    def search(self, question: str, k: int) -> list[tuple[Passage, float]]:
        """The k best passages with their scores, best first; only such as share a word with the question."""
        scores = self._full_text.scores(words(question))
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
    made_of = ["postings of words of UAX #29", [artifact.digest for artifact in job.all(port)], size, overlap]
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
    save_file(postings([words(passage.text) for passage in passages]).arrays(), folder / "postings.safetensors")
    with (folder / "passages.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(passage), ensure_ascii=False) + "\n" for passage in passages)
