"""An index of passages, opened: which of them a question is about, by full text, by meaning, or by both.

What an index is on disk, and how it is built, is `pipelines/index/`; this is how rooms that don't know each other search it.

Hybrid: `m * (cosine + 1) / (best cosine + 1) + (1 - m) * bm25 / best bm25` (Bruch, Gai and Ingber, 2023, arXiv:2210.11934: a convex
combination after theoretical min-max normalisation, found better than reciprocal ranks there and here; docs/benchmarks.md).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load
from threadpoolctl import ThreadpoolController

from engine.errors import UserError, nearest
from engine.retrieval.embedding import STATIC, EmbeddingModel, digest_of_model, open_embedding
from engine.retrieval.full_text import FullText, Postings
from engine.retrieval.terms import Terms
from engine.store.artifact import Artifact
from engine.text.scripts import scripts

SEGMENTS, FACTS = "segments", "index.json"
# How much the cosine counts beside BM25: of a table, of a model (chosen on half of the questions of both kinds in benchmarks/grounding.py: what is
# best for paraphrases alone loses questions that name words of a passage).
MEANING_OF_TABLE, MEANING_OF_MODEL = 0.4, 0.5
PRECISION = 6  # digits of a score that count: the last bits are not the same in every order of summing
Method = Literal["full_text", "vectors", "hybrid"]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: of its row in the index.
        document: the id of its document's row.
        source: the file that the document was read from.
        heading: the headings it stands under (`Leave › Sick days`).
        start, end: characters of the document's text.
        byte: of the document's text in UTF-8, at which it begins; of a text file in UTF-8 that of the file.
        line: of the document's text, from 1.
        score: higher is better; comparable within one answer alone.
    """

    id: str
    document: str
    source: str
    heading: str
    start: int
    end: int
    byte: int
    line: int
    text: str
    metadata: str | None
    score: float


class RetrievalIndex:
    """An artifact of `index`, to be searched.

    Raises:
        UserError: it is no index, or its embedding model is not what it was.
    """

    def __init__(self, artifact: Artifact) -> None:
        names = artifact.files(f"{SEGMENTS}/")
        if artifact.kind != "Passage" or not names:
            raise UserError(f"{artifact.id} is no index ({artifact.kind}): make one with `flywheel stage index`.")
        self.artifact = artifact
        self.facts: dict[str, Any] = artifact.read_json(FACTS)
        kept = [load(artifact.read_file(name)) for name in names]
        self.full_text = FullText([Postings.from_arrays(arrays) for arrays in kept])
        self._vectors = [arrays["vectors"].astype(np.float32) for arrays in kept if "vectors" in arrays]
        self._terms = Terms(self.facts["language"])

    @cached_property
    def passages(self) -> pa.Table:
        """All rows, in the order of the segments."""
        return self.artifact.to_table()

    @property
    def methods(self) -> tuple[Method, ...]:
        """How it can be searched, the best way first."""
        return ("hybrid", "vectors", "full_text") if self.facts["embedding"] else ("full_text",)

    @property
    def across_languages(self) -> bool:
        """Whether meaning is found by a model, which may know other languages and scripts than the documents'."""
        return self._embedding_name not in (None, STATIC)

    def search(
        self, question: str, k: int, method: Method | None = None, where: Mapping[str, str] | None = None
    ) -> list[Hit]:
        """The k best passages, best first; with full text alone only such as share a term with the question.

        Args:
            method: hybrid where the index has vectors, else full text.
            where: `source` or a field of the documents' `metadata` -> what it is, `*` standing for anything.

        Raises:
            UserError: the index has no vectors, or its embedding model is not there.
        """
        method = method or self.methods[0]
        if method not in self.methods:
            raise UserError(
                f"{self.artifact.id} has no vectors: make the index with `embedding`, or search by full_text."
            )
        scores = np.round(self.scores(question, method), PRECISION)
        if where:
            scores[~self._fits(where)] = -np.inf
        if method == "full_text":
            scores[scores <= 0] = -np.inf
        found = self._best(scores, k)
        rows = self.passages.take(pa.array(found, pa.int64())).to_pylist()
        names = [name for name in Hit.__dataclass_fields__ if name != "score"]
        return [
            Hit(**{name: row[name] for name in names}, score=float(scores[at]))
            for at, row in zip(found, rows, strict=True)
        ]

    def scores(self, question: str, method: Method) -> Scores:
        """(passages,) how well each fits."""
        if method == "full_text":
            return self.full_text.scores(self._terms(question))
        asked = self._embedding.question(question)
        with self._threads.limit(limits=1):  # a second thread waits for memory as the first does
            cosine = np.concatenate([vectors @ asked for vectors in self._vectors]).astype(np.float64)
        if method == "vectors":
            return cosine
        bm25 = self.full_text.scores(self._terms(question))
        near, most = cosine.max(initial=-1.0) + 1, bm25.max(initial=0.0)
        meaning = MEANING_OF_TABLE if self._embedding_name == STATIC else MEANING_OF_MODEL
        return meaning * (cosine + 1) / (near or 1.0) + (1 - meaning) * bm25 / (most or 1.0)

    def terms(self, text: str) -> list[str]:
        """What full text looks for (`engine.retrieval.terms`)."""
        return self._terms(text)

    def coverage(self, text: str, passages: Sequence[str]) -> float:
        """Which share of a text's terms, weighted by how rare they are, stands in these passages; 0 to 1."""
        said = set(self._terms(text))
        there = {term for passage in passages for term in self._terms(passage)}
        weights = {term: self.full_text.weight(term) for term in sorted(said)}
        return sum(weights[term] for term in sorted(said & there)) / (sum(weights.values()) or 1.0)

    @cached_property
    def scripts(self) -> set[str]:
        """The scripts that its words are written in, as `engine.text.scripts` names them."""
        return {script for one in self.full_text.segments for script in scripts("".join(one.vocabulary))}

    def _best(self, scores: Scores, k: int) -> list[int]:
        """Numbers of the k highest scores; of equal ones those whose ids come first, in whatever order passages are kept."""
        at = np.flatnonzero(np.isfinite(scores))
        if len(at) > k:
            least = np.partition(scores[at], len(at) - k)[len(at) - k]
            at = at[scores[at] >= least]
        ids = self.passages.column("id").take(pa.array(at)).to_pylist()
        order = sorted(range(len(at)), key=lambda i: (-scores[at[i]], ids[i]))
        return [int(at[i]) for i in order[:k]]

    def _fits(self, where: Mapping[str, str]) -> NDArray[np.bool_]:
        sources = self.passages.column("source").to_pylist()
        columns: dict[str, list[Any]] = {"source": sources}
        if set(where) - {"source"}:
            told = [json.loads(text) if text else {} for text in self.passages.column("metadata").to_pylist()]
            known = sorted({name for facts in told for name in facts})
            for name in where:
                if name != "source" and name not in known:
                    raise UserError(
                        f"no document has `{name}` in its metadata.{nearest(name, ['source', *known])} "
                        f"There is: {', '.join(['source', *known])}."
                    )
                columns.setdefault(name, [facts.get(name) for facts in told])
        fits = np.ones(len(sources), bool)
        for name, pattern in where.items():
            fits &= [fnmatch.fnmatchcase(str(value), pattern) for value in columns[name]]
        return fits

    @cached_property
    def _threads(self) -> ThreadpoolController:
        return ThreadpoolController()

    @property
    def _embedding_name(self) -> str | None:
        return self.artifact.manifest["stage"]["config"]["embedding"]

    @cached_property
    def _embedding(self) -> EmbeddingModel:
        name = self._embedding_name
        assert name is not None
        base = self.artifact.manifest.get("base", ".")
        if (now := digest_of_model(name, base)) != self.facts["embedding"]:
            raise UserError(
                f"the vectors of {self.artifact.id} were made by another embedding model than `{name}` is now ({now[:12]}, then "
                f"{self.facts['embedding'][:12]}); vectors of two models can't be compared. Make the index anew."
            )
        return open_embedding(name, base)
