"""Training rows against evaluation rows: removing those that overlap, and telling which evaluation rows were touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from engine.errors import StageFailed
from engine.stage.job import Job, Part
from engine.stage.slices import SLICE_BYTES, Slice
from engine.store.artifact import Artifact
from engine.store.parquet import encode
from engine.store.schema import row_id
from engine.text.normal_form import normal_form
from pipelines.decontaminate.overlap import Passages, Touch
from pipelines.decontaminate.stage import Contamination, Decontaminate

EXAMPLES = 20


def decontaminate(stage: Decontaminate, job: Job) -> None:
    against = Passages(rows_of(job.all("against")), stage.ngram, stage.min_words, stage.near)
    against.put(job.exchange)
    done, rows = 0, job.rows("documents")
    for looked_at in job.spread(Remover, job.slices("documents", size=SLICE_BYTES), against):
        done += looked_at
        job.progress(done, rows, "rows")
    total = Counter[str]()
    for name in job.exchange.names("touched"):
        total.update(json.loads(job.exchange.get(name)))
    job.summary(
        evaluation_rows=len(against),
        evaluation_rows_too_short=against.too_short,
        evaluation_rows_touched=len(total),
        most_touched=dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES]),
    )
    touched = pa.table({"id": pa.array(sorted(total), pa.string()), "rows": [total[i] for i in sorted(total)]})
    (job.output / "touched.parquet").write_bytes(encode(touched))


class Remover:
    """Removes the rows of slices that touch an evaluation row; gives the slices' numbers of rows."""

    def __init__(self, job: Job, against: Passages) -> None:
        self.job, self.against = job, against.open(job.exchange)

    def __call__(self, piece: Slice) -> int:
        if part := self.job.part(piece):
            touches = self.against.touches(row_texts(part.table))
            by_row = Counter(self.against.ids[touch.row] for row in touches for touch in row)
            # Beside the part and before it, so that a run that was killed and goes on still counts all of them.
            self.job.exchange.put(f"touched/{part.name}.json", json.dumps(by_row).encode())
            _commit(part, touches, self.against)
        return piece.rows


def _commit(part: Part, touches: list[list[Touch]], against: Passages) -> None:
    gone = [bool(row) for row in touches]
    first = [row[0] for row in touches if row]
    rejected = part.table.filter(pa.array(gone, pa.bool_()))
    for name, values in (
        ("touched", [against.ids[touch.row] for touch in first]),
        ("reason", ["contaminated" if touch.similarity is None else "nearly_contaminated" for touch in first]),
        ("detail", [evidence(touch, against) for touch in first]),
    ):
        rejected = rejected.append_column(name, pa.array(values, pa.string()))
    part.commit(part.table.filter(pa.array([not g for g in gone], pa.bool_())), rejected)


@dataclass
class Touched:
    """What some training rows have in common with evaluation rows.

    Attributes:
        rows: how many of them touch any.
        counts: evaluation row -> how many touch it.
        first: evaluation row -> the first that does, and what they share.
        answered: evaluation rows whose known answer stands in one that touches them.
    """

    rows: int = 0
    counts: Counter[int] = field(default_factory=Counter[int])
    first: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    answered: set[int] = field(default_factory=set[int])

    def add(self, later: Touched) -> None:
        self.rows += later.rows
        self.counts.update(later.counts)
        for row, what in later.first.items():
            self.first.setdefault(row, what)
        self.answered |= later.answered


class Overlaps:
    """Looks for evaluation rows, and their answers, in slices of the training rows.

    Args:
        answers: id of an evaluation row -> its known answer.
    """

    def __init__(self, job: Job, against: Passages, answers: dict[str, str]) -> None:
        self.job, self.against, self.answers = job, against.open(job.exchange), answers

    def __call__(self, piece: Slice) -> Touched:
        found, against, table = Touched(), self.against, self.job.table(piece)
        texts = row_texts(table)
        for identity, text, touches in zip(table["id"].to_pylist(), texts, against.touches(texts), strict=True):
            found.rows += bool(touches)
            for touch in touches:
                found.counts[touch.row] += 1
                answer = self.answers.get(against.ids[touch.row])
                if answer and answer in _form(text):
                    found.answered.add(touch.row)
                found.first.setdefault(touch.row, (identity, evidence(touch, against).partition(": ")[2]))
        return found


def contamination(stage: Contamination, job: Job) -> None:
    against = Passages(rows_of(job.all("against")), stage.ngram, stage.min_words, stage.near)
    against.put(job.exchange)
    answers = answers_of(job.all("against"))
    everywhere, answered = set[int](), set[int]()
    sets: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    touched = {label: Touched() for label in job.inputs["training"]}
    slices = [(label, piece) for label in touched for piece in job.slices("training", label=label, size=SLICE_BYTES)]
    compared = job.spread(Overlaps, (piece for _, piece in slices), against, answers)
    seen = 0
    for (label, piece), found in zip(slices, compared, strict=True):
        touched[label].add(found)
        seen += piece.rows
        job.progress(seen, job.rows("training"), "rows")
    for index, (label, artifact) in enumerate(job.inputs["training"].items()):
        counts, first, rows = touched[label].counts, touched[label].first, touched[label].rows
        answered |= touched[label].answered
        everywhere |= counts.keys()
        sets[label] = {"rows": artifact.rows, "rows_that_touch": rows, "evaluation_rows_touched": len(counts)}
        for row in sorted(first)[:EXAMPLES]:
            by, shared = first[row]
            examples.append({"training": label, "row": by, "evaluation_row": against.ids[row], "shared": shared})
        job.commit(f"{index:05d}-{label}", _verdicts(against, label, artifact, counts, first))
    share = len(everywhere) / max(1, len(against))
    worst = [
        f"{label} touches {s['evaluation_rows_touched']}" for label, s in sets.items() if s["evaluation_rows_touched"]
    ]
    headline = (
        f"{len(everywhere)} of {len(against)} evaluation rows stand in training data: {', '.join(worst)}."
        if everywhere
        else f"None of {len(against)} evaluation rows was found in the training data of {', '.join(sets)}."
    )
    if everywhere & {row for row, identity in enumerate(against.ids) if identity in answers}:
        headline += f" Their known answer stands beside {len(answered) or 'none'} of them."
    if against.too_short:
        headline += f" {against.too_short} are too short to tell (fewer than {stage.min_words} words)."
    job.say(headline)
    job.summary(
        headline=headline,
        evaluation_rows=len(against),
        evaluation_rows_too_short=against.too_short,
        evaluation_rows_touched=len(everywhere),
        evaluation_rows_answered=len(answered),
        training=sets,
        examples=examples,
    )
    if share > stage.max_touched:
        raise StageFailed(f"{headline} That is more than `max_touched` ({stage.max_touched:.0%}).")


def _verdicts(
    against: Passages, label: str, artifact: Artifact, counts: Counter[int], first: dict[int, tuple[str, str]]
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, identity in enumerate(against.ids):
        by, shared = first.get(number, (None, None))
        rows.append({
            "id": row_id("Verdict", "contamination", label, artifact.key, identity),
            "parents": [identity, by] if by else [identity],
            "subject": identity, "model": label, "metric": "contamination", "value": float(counts[number]),
            "text": f"{by}: {shared}" if by else None,
        })  # fmt: skip
    return pa.Table.from_pylist(rows)


def rows_of(artifacts: list[Artifact]) -> Iterator[tuple[str, str]]:
    """(id, what is asked) of all evaluation rows: a document's text, else the messages before the answer."""
    for artifact in artifacts:
        for batch in artifact.batches():
            table = pa.Table.from_batches([batch])
            if artifact.kind == "Document":
                asked = row_texts(table)
            elif artifact.kind == "Conversation":
                talks: list[list[dict[str, str]]] = table["messages"].to_pylist()
                asked = [
                    dialogue_text(talk[:-1] if talk and talk[-1]["role"] == "assistant" else talk) for talk in talks
                ]
            else:
                asked = [dialogue_text(prompt) for prompt in table["prompt"].to_pylist()]
            yield from zip(table["id"].to_pylist(), asked, strict=True)


def answers_of(artifacts: list[Artifact]) -> dict[str, str]:
    """Id -> known answer (`reference`, its form) of the evaluation rows that have one which their question does not hold."""
    answers: dict[str, str] = {}
    for artifact in artifacts:
        asked = dict(rows_of([artifact]))
        for batch in artifact.batches():
            if "reference" in batch.schema.names:
                for identity, answer in zip(batch["id"].to_pylist(), batch["reference"].to_pylist(), strict=True):
                    if answer and (form := _form(answer)) not in _form(asked[identity]):
                        answers[identity] = form
    return answers


def _form(text: str) -> str:
    """The normal form, white space collapsed."""
    return " ".join(normal_form(text).split())


def dialogue_text(messages: list[dict[str, str]] | None) -> str:
    return "\n".join(message["content"] or "" for message in messages or [])


def evidence(touch: Touch, against: Passages) -> str:
    """The evaluation row and the passage it shares, or how like it the training row is."""
    what = touch.passage if touch.similarity is None else f"{touch.similarity:.2f} like it"
    return f"{against.ids[touch.row]}: {what}"


def row_texts(table: pa.Table) -> list[str]:
    """All text of each row, whatever its kind: the document, or the messages of all its columns."""
    if "text" in table.column_names:
        return [text or "" for text in table.column("text").to_pylist()]
    names = [n for n in ("prompt", "messages", "chosen", "rejected") if n in table.column_names]
    columns: list[list[Any]] = [table.column(name).to_pylist() for name in names]
    return ["\n".join(map(dialogue_text, row)) for row in zip(*columns, strict=True)]
