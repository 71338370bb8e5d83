"""The work of `grounded_qa`: drafts in rounds, each committed whole, until there are as many rows as were asked for.

A row keeps where every passage it shows came from: the document, the bytes of its text, the file, and where in the file the text starts.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from typing import Any

import pyarrow as pa

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.schema import messages_digest, row_id, table
from engine.text.words import words
from generators.backends.open import open_backend
from generators.drafts.drafts import Rejected
from generators.drafts.lockstep import Line, carry
from generators.grounded.qa_drafts import GroundedMade, KnownQuestion, QaWorld
from generators.grounded.qa_stage import GroundedQa
from generators.grounded.retrieval import Passage, open_index
from generators.text.prompts import prompt_of
from generators.text.templates import template

TEXTS = pa.list_(pa.string())
# Beside the columns of the kind, as `grounded` has them: the passages shown as `document:character`, their texts, and which hold the answer.
EXTRA = (("retrieved", TEXTS), ("passages", TEXTS), ("gold", TEXTS))
KIND = {"conversations": "Conversation", "preferences": "Preference", "prompts": "Prompt"}


class _Nobody:
    """Who is asked where no model is needed."""

    width = 1

    def complete(self, conversations: Any, sampling: Any, seeds: Any) -> list[Any]:
        assert not conversations
        return []

    def forget(self, answers: Any) -> None: ...

    def close(self) -> None: ...


def make(stage: GroundedQa, job: Job) -> None:
    """Commit rows made from the documents, or say why there are fewer.

    Raises:
        UserError: no document has any text; nobody is there to write.
    """
    asks = stage.require({port: len(given) for port, given in job.inputs.items()})
    own = stage.templates(job.base)
    world = QaWorld(
        stage, open_index(job, "documents", stage.words, stage.overlap), _questions(job), job.seed,
        own.get("grounded_qa/shown") or template("grounded"), own.get("grounded_qa/reply") or template("grounded_qa/reply"),
    )  # fmt: skip
    if job.all("questions") and not world.questions:
        raise UserError("none of the `questions` has an answer: expected a last turn of the assistant, or a reference.")
    places = _Places(job)
    backend, model = open_backend(job, stage.server, stage.engine, dtype="auto") if asks else (_Nobody(), "")
    count = min(stage.count or len(world.questions), len(world.questions) or math.inf)
    most = len(world.questions) or math.ceil(stage.tries * count)
    number, delivered, there, reasons = 0, 0, set[tuple[str, ...]](), Counter[str]()
    finished = {int(name.split("-")[0]): name for name in job.committed()}
    with contextlib.closing(backend):
        for index in range(most):
            if delivered >= count or number >= most:
                break
            size = min(stage.partition, most - number)
            name = finished.get(index, f"{index:05d}-{number}-{size}")
            if index not in finished:
                drafts = [(n, world.draft(n)) for n in range(number, number + size)]
                lines = carry(backend, drafts, job.derive, own)  # pyright: ignore[reportArgumentType]
                kept, lost = _rows(stage, lines, places, model, count - delivered, there)
                rejected = pa.Table.from_pylist(lost) if lost else None
                job.commit(name, table(KIND[stage.give], kept, (*EXTRA, *_MORE[stage.give])), rejected)
            made = job.read_part(name)
            delivered += len(made)
            there |= {_key(one) for one in made["question"].to_pylist()}
            number += size
            job.progress(delivered, int(count), "rows", drafts=number)
    for name in sorted(job.writer.rejected_parts()):
        reasons.update(job.writer.read_rejected(name, ["reason"])["reason"].to_pylist())
    _summarize(stage, job, model, int(count), delivered, number, reasons)


# `metadata` is JSON: the form, the seed, and of each passage where it stands. `question` is what is asked first.
_MORE: dict[str, tuple[tuple[str, pa.DataType], ...]] = {
    "conversations": (("question", pa.string()),),
    "preferences": (("question", pa.string()), ("metadata", pa.string())),
    "prompts": (("question", pa.string()),),
}


def _rows(
    stage: GroundedQa, lines: list[Line], places: _Places, model: str, missing: float, there: set[tuple[str, ...]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a round, and the drafts that came to nothing."""
    kept, lost, seen = list[dict[str, Any]](), list[dict[str, Any]](), set(there)
    for line in lines:
        seed = line.seeds[0] if line.seeds else None
        facts: dict[str, Any] = {
            "method": "grounded_qa", "draft": line.path[0], "seed": seed, "templates": line.templates, "tokens_in": line.tokens[0],
            "tokens_out": line.tokens[1],
        }  # fmt: skip
        if model:
            facts["model"] = model
        result = line.result
        if isinstance(result, GroundedMade):
            if _key(result.key) in seen:
                result = Rejected("not_novel", f"was asked before: {result.key[:200]}")
            elif len(kept) >= missing:
                result = Rejected("surplus", "the number asked for was there")
        if not isinstance(result, GroundedMade):
            assert isinstance(result, Rejected)
            one = row_id(KIND[stage.give], stage.give, str(line.path), str(seed), result.reason, result.detail)
            lost.append({
                "id": one, "parents": [], "metadata": json.dumps(facts, sort_keys=True), "reason": result.reason,
                "detail": result.detail[:500], "failed": result.failed,
            })  # fmt: skip
            continue
        seen.add(_key(result.key))
        kept.append(_row(stage, result, places, {**facts, **result.metadata}))
    return kept, lost


def _row(stage: GroundedQa, made: GroundedMade, places: _Places, facts: dict[str, Any]) -> dict[str, Any]:
    facts["passages"] = [{**places.of(one), "gold": one in made.gold} for one in made.shown]
    *before, last = made.messages
    told = messages_digest(made.messages)
    common = {
        "parents": made.parents, "metadata": json.dumps(facts, sort_keys=True, ensure_ascii=False), "question": made.key,
        "retrieved": [_name(one) for one in made.shown], "passages": [one.text for one in made.shown],
        "gold": [_name(one) for one in made.gold],
    }  # fmt: skip
    if stage.give == "conversations":
        return {
            **common,
            "id": row_id("Conversation", told, *made.parents),
            "messages": made.messages,
            "reference": made.reference,
        }
    if stage.give == "prompts":
        return {**common, "id": row_id("Prompt", told, *made.parents), "prompt": before, "reference": made.reference}
    ids = [row_id("Candidate", told, which) for which in ("chosen", "rejected")]
    return {
        **common, "id": row_id("Preference", told, str(made.worse), *made.parents),
        "prompt_id": row_id("Prompt", messages_digest(before)), "prompt": before, "chosen": [last],
        "rejected": [{"role": "assistant", "content": made.worse}], "chosen_id": ids[0], "rejected_id": ids[1],
    }  # fmt: skip


class _Places:
    """Where passages stand in their files."""

    def __init__(self, job: Job) -> None:
        columns = ["id", "text", "source", "offset"]
        tables = [artifact.to_table(columns) for artifact in job.all("documents")]
        self._documents = {row["id"]: row for one in tables for row in one.to_pylist()}

    def of(self, passage: Passage) -> dict[str, Any]:
        """Document, file, and bytes: `start` and `end` of the passage in the document's UTF-8, `offset` of the document in the file."""
        document = self._documents[passage.document]
        start = len(document["text"][: passage.start].encode("utf-8", "surrogatepass"))
        end = start + len(passage.text.encode("utf-8", "surrogatepass"))
        return {
            "document": passage.document,
            "start": start,
            "end": end,
            "source": document["source"],
            "offset": document["offset"],
        }


def _questions(job: Job) -> list[KnownQuestion]:
    """Questions with known answers, each once."""
    found: dict[str, KnownQuestion] = {}
    for artifact in job.all("questions"):
        for row in artifact.to_table().to_pylist():
            messages, _ = prompt_of(row)
            said = (row.get("messages") or [])[len(messages) :]
            answer = said[0]["content"] if said else row.get("reference")
            if messages and answer:
                found.setdefault(
                    row["id"],
                    KnownQuestion(row["id"], messages[:-1], messages[-1]["content"], answer, row.get("reference")),
                )
    return list(found.values())


def _name(passage: Passage) -> str:
    return f"{passage.document}:{passage.start}"


def _key(question: str) -> tuple[str, ...]:
    return tuple(words(question))


def _summarize(
    stage: GroundedQa, job: Job, model: str, count: int, delivered: int, drafts: int, reasons: Counter[str]
) -> None:
    made = [job.read_part(name, ["metadata"])["metadata"].to_pylist() for name in sorted(job.committed())]
    told = [json.loads(one) for part in made for one in part]
    facts: dict[str, Any] = {
        "asked": count, "delivered": delivered, "drafts": drafts, "reasons": dict(sorted(reasons.items())),
        "forms": dict(sorted(Counter(one["form"] for one in told).items())),
        "answerable": sum(one["answerable"] for one in told),
        "tokens_in": sum(one["tokens_in"] for one in told), "tokens_out": sum(one["tokens_out"] for one in told),
    }  # fmt: skip
    if model:
        facts["model"] = model
    if delivered < count:
        causes = ", ".join(f"{times} {reason}" for reason, times in reasons.most_common()) or "none was rejected"
        facts["shortfall"] = f"{count - delivered} of {count} are missing after {drafts} drafts ({causes})."
        job.say(facts["shortfall"])
    job.summary(**facts)
