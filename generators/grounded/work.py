"""The work of `grounded`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pyarrow as pa

from engine.stage.job import Job, Part
from engine.store.schema import row_id, table
from engine.text.normal_form import normal_form
from generators.backends.in_flight import in_flight
from generators.backends.open import open_backend
from generators.backends.protocol import Failure, Sampling
from generators.candidates.dealing import read_prompts, repeated_ids
from generators.grounded.attribution import attribution
from generators.grounded.citations import citations, numbers_cited
from generators.grounded.retrieval import IndexedPassages, Passage, Retriever, open_index
from generators.grounded.stage import Grounded
from generators.text.templates import Unrenderable, template

# Beside a Candidate's columns: passages as `document:character`, in the order shown, and their texts (a judge needs them);
# those cited; citations of passages that were not shown; whether a passage has the reference in it (null without one): what
# retrieval could give at best; whether it says that the passages don't hold it; of its statements, the share that follows from what
# they cite, found out by reading (null for a refusal).
TEXTS = pa.list_(pa.string())
EXTRA = (
    ("retrieved", TEXTS), ("passages", TEXTS), ("cited", TEXTS), ("bad_citations", pa.int32()), ("found", pa.bool_()),
    ("refused", pa.bool_()), ("supported", pa.float64()),
)  # fmt: skip


def answer(stage: Grounded, job: Job) -> None:
    """Commit answers to the questions, with what was shown for each and what it cites."""
    retriever = _retriever(stage, job)
    repeated = repeated_ids(job)
    sampling = Sampling(stage.temperature, stage.top_p, max_tokens=stage.max_tokens, logprobs=False)
    backend, model = open_backend(job, stage.server, stage.engine, replicas=stage.replicas, dtype="auto")
    used = stage.templates(job.base).get("answer") or template("grounded")
    settings = json.dumps({
        "temperature": stage.temperature, "top_p": stage.top_p, "max_tokens": stage.max_tokens, "k": stage.k,
        **_cut(stage, job), "template": used.digest,
    })  # fmt: skip

    def ask(part: Part) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        asked, rejected = read_prompts(part, stage.partition, repeated)
        conversations, shown, own = list[list[dict[str, str]]](), list[list[Passage]](), list[int]()
        rows, asked = asked, list[dict[str, Any]]()
        for row in rows:
            *before, last = row["prompt"] or [{"role": "user", "content": ""}]
            found = [passage for passage, _ in retriever.search(last["content"], stage.k)]
            try:
                content = used.render({"question": last["content"], "passages": [one.text for one in found]})
            except Unrenderable as error:  # a template of the recipe's own may ask for what a question has not
                rejected.append({**row, "reason": "unrenderable", "detail": str(error), "failed": True})
                continue
            asked.append(row)
            conversation = [*before, {"role": "user", "content": content if last["content"].strip() else ""}]
            conversations += [conversation] * stage.n
            shown.append(found)
            own += [job.derive("grounded", row["id"], sample) for sample in range(stage.n)]
        kept = list[dict[str, Any]]()
        for i, reply in enumerate(backend.complete(conversations, sampling, own)):
            row, found, sample = asked[i // stage.n], shown[i // stage.n], i % stage.n
            if isinstance(reply, Failure):
                lost = {**row, "reason": reply.reason, "detail": reply.detail, "failed": True}
                if not (rejected and rejected[-1] == lost):  # the samples of a prompt fail together
                    rejected.append(lost)
                continue
            cited = citations(reply.text, len(found))
            worth = attribution(reply.text, [passage.text for passage in found])
            documents = list(dict.fromkeys(passage.document for passage in found))
            kept.append({
                "id": row_id("Candidate", row["id"], model, settings, own[i], sample, reply.text, *documents),
                "parents": [row["id"], *documents],
                "prompt_id": row["id"],
                "prompt": row["prompt"],
                "completion": [{"role": "assistant", "content": reply.text}],
                "prompt_token_ids": reply.prompt_token_ids,
                "token_ids": reply.token_ids,
                "logprobs": None,
                "finish_reason": reply.finish_reason,
                "model": f"{model}+grounded",
                "sampling": settings,
                "seed": own[i],
                "sample": sample,
                "reference": row["reference"],
                "retrieved": [f"{passage.document}:{passage.start}" for passage in found],
                "passages": [passage.text for passage in found],
                "cited": [f"{found[c - 1].document}:{found[c - 1].start}" for c in cited if c <= len(found)],
                "bad_citations": sum(c > len(found) or c < 1 for c in numbers_cited(reply.text)),
                "found": _has(found, row["reference"]),
                "refused": worth.refused,
                "supported": worth.recall,
            })  # fmt: skip
        return kept, rejected

    with contextlib.closing(backend):
        for part, (kept, rejected) in in_flight(job.parts("prompts", rows=stage.partition), backend.width, ask):
            part.commit(table("Candidate", kept, EXTRA), pa.Table.from_pylist(rejected) if rejected else None)
    job.summary(model=model, asked=stage.n * job.rows("prompts"), passages=retriever.count, **_totals(job))


def _retriever(stage: Grounded, job: Job) -> Retriever:
    """Where the passages come from: an index among the inputs, or one of this stage's own over the documents."""
    stage.require_passages(len(job.all("documents")), len(job.all("index")))
    indexed = job.maybe("index")
    return IndexedPassages(indexed) if indexed else open_index(job, "documents", stage.words, stage.overlap)


def _cut(stage: Grounded, job: Job) -> dict[str, Any]:
    """How the documents became passages, for the rows' `sampling`."""
    indexed = job.maybe("index")
    return {"index": indexed.digest} if indexed else {"words": stage.words, "overlap": stage.overlap}


def _has(found: list[Passage], reference: str | None) -> bool | None:
    if not reference:
        return None
    wanted = normal_form(reference)
    return any(wanted in normal_form(passage.text) for passage in found)


def _totals(job: Job) -> dict[str, Any]:
    """Shares over all answers: that cite something, that cite something not shown, and of questions with the reference found."""
    tables = [
        job.read_part(name, ["cited", "bad_citations", "found", "refused", "supported"])
        for name in sorted(job.committed())
    ]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    known = [row["found"] for row in rows if row["found"] is not None]
    facts: dict[str, Any] = {"delivered": len(rows)}
    if rows:
        facts["cites"] = round(sum(bool(row["cited"]) for row in rows) / len(rows), 6)
        facts["cites_what_was_not_shown"] = round(sum(row["bad_citations"] > 0 for row in rows) / len(rows), 6)
        facts["refused"] = round(sum(row["refused"] for row in rows) / len(rows), 6)
    judged = [row["supported"] for row in rows if row["supported"] is not None]
    if judged:
        facts["statements_supported"] = round(sum(judged) / len(judged), 6)
    if known:
        facts["reference_retrieved"] = round(sum(known) / len(known), 6)
    return facts
