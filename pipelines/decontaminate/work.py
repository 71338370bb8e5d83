"""Training rows against evaluation rows: removing those that overlap, and telling which evaluation rows were touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from engine.errors import StageFailed
from engine.stage.job import Job, Part
from engine.store.artifact import Artifact
from engine.store.parquet import encode
from engine.store.schema import row_id
from engine.text.normal_form import normal_form
from pipelines.decontaminate.overlap import Passages, Touch
from pipelines.decontaminate.stage import Contamination, Decontaminate

EXAMPLES = 20


def decontaminate(stage: Decontaminate, job: Job) -> None:
    against = Passages(rows_of(job.all("against")), stage.ngram, stage.min_words, stage.near)
    counts = job.scratch / "touched"
    counts.mkdir(exist_ok=True)
    for part in job.parts("documents"):
        touches = against.touches(row_texts(part.table))
        by_row = Counter(against.ids[touch.row] for row in touches for touch in row)
        with job.keep(counts / f"{part.name}.json") as kept:
            kept.write_text(json.dumps(by_row))
        _commit(part, touches, against)
    total = Counter[str]()
    for file in counts.glob("*.json"):
        total.update(json.loads(file.read_text()))
    job.summary(
        evaluation_rows=len(against),
        evaluation_rows_too_short=against.too_short,
        evaluation_rows_touched=len(total),
        most_touched=dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES]),
    )
    touched = pa.table({"id": pa.array(sorted(total), pa.string()), "rows": [total[i] for i in sorted(total)]})
    (job.output / "touched.parquet").write_bytes(encode(touched))


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


def contamination(stage: Contamination, job: Job) -> None:
    against = Passages(rows_of(job.all("against")), stage.ngram, stage.min_words, stage.near)
    answers = answers_of(job.all("against"))
    everywhere, answered = set[int](), set[int]()
    sets: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    sizes = {label: artifact.rows for label, artifact in job.inputs["training"].items()}
    seen = 0
    for index, (label, artifact) in enumerate(job.inputs["training"].items()):
        counts, first, rows = Counter[int](), dict[int, tuple[str, str]](), 0
        for batch in artifact.batches():
            table = pa.Table.from_batches([batch])
            texts = row_texts(table)
            for identity, text, touches in zip(table["id"].to_pylist(), texts, against.touches(texts), strict=True):
                rows += bool(touches)
                for touch in touches:
                    counts[touch.row] += 1
                    answer = answers.get(against.ids[touch.row])
                    if answer and answer in _form(text):
                        answered.add(touch.row)
                    first.setdefault(touch.row, (identity, evidence(touch, against).partition(": ")[2]))
            seen += len(table)
            job.progress(seen, sum(sizes.values()), "rows")
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
