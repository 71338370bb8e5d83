"""`decontaminate`: training rows -> those that share no long passage with what a model will be evaluated on.

A row is removed if it has `ngram` words in a row in common with a row of an evaluation set (Brown et al. 2020, GPT-3,
appendix C, which used 13; words as in `pipelines.shingles`). An evaluation row of fewer words counts as one passage,
its whole sequence of words, if it has at least `min_words`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from engine.job import Job
from engine.stage import Port, Stage, port
from pipelines.shingles import words

ROWS = ("Document", "Prompt", "Conversation", "Preference")
Passage = tuple[str, ...]


class Decontaminate(Stage):
    """Remove training rows that overlap with evaluation rows; each names the evaluation row it touched and the passage."""

    takes: ClassVar[dict[str, Port]] = {
        "documents": port(*ROWS, many=True),
        "against": port(*ROWS, many=True),
    }

    ngram: int = Field(13, ge=1, description="Words in a row that make an overlap.")
    min_words: int = Field(5, ge=1, description="Evaluation rows of fewer words are not looked for.")

    def output(self, given: dict[str, list[str]]) -> str:
        """The kind of the training rows."""
        kinds = given.get("documents") or ["Document"]
        return kinds[0]

    def run(self, job: Job) -> None:
        passages, rows, skipped = self._passages(job)
        for part in job.parts("documents"):
            hits = [self._first_hit(text, passages) for text in texts(part.table)]
            gone = [hit is not None for hit in hits]
            rejected = part.table.filter(pa.array(gone))
            found = [hit for hit in hits if hit is not None]
            for name, values in (
                ("touched", [identity for identity, _ in found]),
                ("reason", ["contaminated"] * len(found)),
                ("detail", [f"{identity}: {' '.join(passage)}" for identity, passage in found]),
            ):
                rejected = rejected.append_column(name, pa.array(values, pa.string()))
            part.commit(part.table.filter(pa.array([not g for g in gone])), rejected)
        job.summary(evaluation_rows=rows, evaluation_rows_too_short=skipped, passages=sum(map(len, passages.values())))

    def _passages(self, job: Job) -> tuple[dict[int, dict[Passage, str]], int, int]:
        """Length in words -> passage -> the first evaluation row that has it; and how many rows were read and skipped."""
        passages: dict[int, dict[Passage, str]] = {}
        rows = skipped = 0
        for artifact in job.all("against"):
            for batch in artifact.batches():
                table = pa.Table.from_batches([batch])
                for identity, text in zip(table.column("id").to_pylist(), texts(table), strict=True):
                    rows += 1
                    found = words(text)
                    if len(found) < self.min_words:
                        skipped += 1
                        continue
                    width = min(self.ngram, len(found))
                    known = passages.setdefault(width, {})
                    for start in range(len(found) - width + 1):
                        known.setdefault(tuple(found[start : start + width]), identity)
        return passages, rows, skipped

    def _first_hit(self, text: str, passages: dict[int, dict[Passage, str]]) -> tuple[str, Passage] | None:
        found = words(text)
        for width in sorted(passages, reverse=True):
            known = passages[width]
            for start in range(len(found) - width + 1):
                passage = tuple(found[start : start + width])
                if passage in known:
                    return known[passage], passage
        return None


def texts(table: pa.Table) -> list[str]:
    """All text of each row, whatever its kind: the document, or the messages of all its columns."""
    if "text" in table.column_names:
        return [text or "" for text in table.column("text").to_pylist()]
    names = [n for n in ("prompt", "messages", "chosen", "rejected") if n in table.column_names]
    columns: list[list[Any]] = [table.column(name).to_pylist() for name in names]
    return ["\n".join(m["content"] or "" for cell in row for m in cell or []) for row in zip(*columns, strict=True)]
