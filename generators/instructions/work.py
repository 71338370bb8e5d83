"""Conversations from templates over records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job
from engine.store.schema import DATASETS, messages_digest, row_id
from generators.instructions.rounds import synthesize
from generators.instructions.stage import NO_RECORDS, Instructions
from generators.text.templates import Template, Unrenderable, variables


def make(stage: Instructions, job: Job) -> None:
    """Conversations by a method if there is one, else from templates."""
    if stage.method is not None:
        synthesize(stage, job, stage.method)
    else:
        render(stage, job)


def render(stage: Instructions, job: Job) -> None:
    """Conversations from templates, for the records of the split.

    Raises:
        UserError: there are no records, or none in the split; or a template uses a name that no record has.
    """
    if not job.all("records"):
        raise UserError(NO_RECORDS)
    records = list[tuple[str, dict[str, Any]]]()
    for artifact in job.all("records"):
        for row in artifact.to_table(["id", "text", "metadata"]).to_pylist():
            records.append((row["id"], variables(row)))
    templates = stage.record_templates()
    known = {name for _, values in records for name in values}
    for template in (one for group in templates.values() for one in group):
        template.require(known)
    split = assign([record for record, _ in records], stage.split)
    wanted = {record for record, name in split.items() if stage.take in (None, name)}
    if not wanted:
        raise UserError(f"`take: {stage.take}` is empty: {len(split)} records, split {stage.split}.")

    for part in job.parts("records"):
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        for row in part.table.select(["id", "text", "metadata"]).to_pylist():
            if row["id"] in wanted:
                rows, bad = _conversations(stage, job, row["id"], variables(row), templates, split[row["id"]])
                kept += rows
                rejected += bad
        part.commit(
            pa.Table.from_pylist(kept, DATASETS["Conversation"]),
            pa.Table.from_pylist(rejected) if rejected else None,
        )
    job.summary(records=len(wanted), split={name: list(split.values()).count(name) for name in stage.split})


def _conversations(
    stage: Instructions, job: Job, record: str, values: dict[str, Any], templates: dict[str, list[Template]], split: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    questions, answers = templates["question"], templates["answer"]
    pairs = [(q, a) for q in questions for a in (answers or [None])]
    drawn = seeds.shuffled(pairs, job.seed, "instructions", record)[: stage.per_record]
    kept, rejected = dict[str, dict[str, Any]](), list[dict[str, Any]]()
    for question, answer in drawn:
        roles = [("system", one) for one in templates["system"]] + [("user", question)]
        roles += [("assistant", answer)] if answer else []
        failure = {"id": row_id("Conversation", record, question.digest, answer.digest if answer else None),
                   "parents": [record], "failed": True}  # fmt: skip
        try:
            messages = [{"role": role, "content": template.render(values)} for role, template in roles]
            reference = [template.render(values) for template in templates["reference"]]
        except Unrenderable as error:
            rejected.append({**failure, "reason": "unrenderable", "detail": str(error)})
            continue
        if empty := [m["role"] for m in messages if not m["content"]]:
            rejected.append({**failure, "reason": "empty", "detail": f"the {empty[0]}'s turn is empty"})
            continue
        row = row_id("Conversation", messages_digest(messages), record)
        if row in kept:
            rejected.append({**failure, "reason": "duplicate", "detail": "two pairs of templates say the same",
                             "failed": False})  # fmt: skip
            continue
        used = [question.digest, *([answer.digest] if answer else [])]
        kept[row] = {
            "id": row,
            "parents": [record],
            "messages": messages,
            "reference": reference[0] if reference else None,
            "metadata": json.dumps({"split": split, "templates": used}),
        }
    return list(kept.values()), rejected


def assign(ids: Sequence[str], split: dict[str, float]) -> dict[str, str]:
    """Assign each id to one split: rank by a digest of the id, cut at the cumulative shares, rounded.

    The digest knows no seed: two stages with seeds of their own agree on who is in which split.
    """
    ranked = sorted(set(ids), key=lambda one: (seeds.derive("split", one), one))
    assigned, start, share = dict[str, str](), 0, 0.0
    for name, part in split.items():
        share += part
        end = round(share * len(ranked))
        assigned.update(dict.fromkeys(ranked[start:end], name))
        start = end
    return assigned
