"""`instructions`: conversations made from records, split so that no record is seen twice.

Questions and answers are templates over a record's metadata; which ones a record gets is drawn by its own seed. A
record's split is its rank by a digest of its id among all records that came in, so the counts are exact, and stages
that take different splits of the same records never share one, whatever their seeds, templates and numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine import seeds
from engine.errors import UserError
from engine.job import Job
from engine.schema import DATASETS, messages_digest, row_id
from engine.stage import Stage, port
from generators.rendering import Template, Unrenderable, checked, compiled, variables


class Instructions(Stage):
    """Make conversations from records and templates of questions and answers."""

    takes = {"records": port("Document", many=True)}
    gives = "Conversation"
    random = True

    questions: list[str] = Field(description="Jinja; what the user says. Sees the record's metadata and `text`.")
    answers: list[str] = Field([], description="Jinja; what the assistant says. Without any, only questions are made.")
    reference: str | None = Field(None, description="Jinja; the known right answer, for rules and evaluation.")
    system: str | None = Field(None, description="Jinja; a system message before the question.")
    per_record: int = Field(1, ge=1, description="Conversations a record, each another question and answer.")
    split: dict[str, float] = Field({"all": 1.0}, description="Share of the records in each split; they add up to 1.")
    take: str | None = Field(None, description="The split to make conversations of; all records if left out.")

    @field_validator("questions", "answers")
    @classmethod
    def _compile(cls, value: list[str], info: Any) -> list[str]:
        return checked(value, info.field_name) if value or info.field_name == "questions" else value

    @field_validator("reference", "system")
    @classmethod
    def _compile_one(cls, value: str | None, info: Any) -> str | None:
        return checked([value], info.field_name)[0] if value is not None else None

    @model_validator(mode="after")
    def _check_split(self) -> Instructions:
        if any(share <= 0 for share in self.split.values()) or not math.isclose(sum(self.split.values()), 1):
            raise ValueError(f"`split` needs shares above 0 that add up to 1, found {self.split}")
        if self.take is not None and self.take not in self.split:
            raise ValueError(f"`take: {self.take}` is not in `split`, which has {', '.join(self.split)}")
        pairs = len(self.questions) * max(1, len(self.answers))
        if self.per_record > pairs:
            raise ValueError(f"`per_record: {self.per_record}` asks for more than the {pairs} pairs of templates")
        return self

    def run(self, job: Job) -> None:
        records = list[tuple[str, dict[str, Any]]]()
        for artifact in job.all("records"):
            for row in artifact.to_table(["id", "text", "metadata"]).to_pylist():
                records.append((row["id"], variables(row)))
        templates = {
            "question": compiled(self.questions, "questions"),
            "answer": compiled(self.answers, "answers"),
            "reference": compiled([self.reference] if self.reference is not None else [], "reference"),
            "system": compiled([self.system] if self.system is not None else [], "system"),
        }
        known = {name for _, values in records for name in values}
        for template in (one for group in templates.values() for one in group):
            template.require(known)
        split = assign([record for record, _ in records], self.split)
        wanted = {record for record, name in split.items() if self.take in (None, name)}
        if not wanted:
            raise UserError(f"`take: {self.take}` is empty: {len(split)} records, split {self.split}.")

        for part in job.parts("records"):
            kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
            for row in part.table.select(["id", "text", "metadata"]).to_pylist():
                if row["id"] in wanted:
                    made, bad = self._conversations(job, row["id"], variables(row), templates, split[row["id"]])
                    kept += made
                    rejected += bad
            part.commit(
                pa.Table.from_pylist(kept, DATASETS["Conversation"]),
                pa.Table.from_pylist(rejected) if rejected else None,
            )
        job.summary(records=len(wanted), split={name: list(split.values()).count(name) for name in self.split})

    def _conversations(
        self, job: Job, record: str, values: dict[str, Any], templates: dict[str, list[Template]], split: str
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        questions, answers = templates["question"], templates["answer"]
        pairs = [(q, a) for q in questions for a in (answers or [None])]
        drawn = seeds.shuffled(pairs, job.seed, "instructions", record)[: self.per_record]
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
