"""`instructions`: conversations, from templates over records or from a model by a published method.

Without `method`, questions and answers are templates over a record's metadata; which ones a record gets is drawn by its own seed. A
record's split is its rank by a digest of its id among all records that came in, so the counts are exact, and stages
that take different splits of the same records never share one, whatever their seeds, templates and numbers.

With `method`, a model makes them; each method is a file in `generators/methods/`, and `synthesis.py` is the loop that
they share: what is new is kept, until the number asked for is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.schema import DATASETS, messages_digest, row_id
from generators.backends.protocol import Engine
from generators.backends.server.chat_completions import Server
from generators.instructions.methods.backtranslation import Backtranslation
from generators.instructions.methods.code import Code
from generators.instructions.methods.constitutional import Constitutional
from generators.instructions.methods.evol_instruct import EvolInstruct
from generators.instructions.methods.magpie import Magpie
from generators.instructions.methods.mathematics import Mathematics
from generators.instructions.methods.multi_turn import MultiTurn
from generators.instructions.methods.personas import Personas
from generators.instructions.methods.self_instruct import SelfInstruct
from generators.instructions.methods.tool_calls import ToolCalls
from generators.instructions.novelty import Novelty
from generators.instructions.rounds import synthesize
from generators.rules.rule import EQUALITY
from generators.text.templates import Template, Unrenderable, checked, compiled, variables

Method = Annotated[
    SelfInstruct | EvolInstruct | Magpie | Personas | Backtranslation | MultiTurn | ToolCalls | Code | Mathematics
    | Constitutional,
    Field(discriminator="name"),
]  # fmt: skip
# What belongs to templates, and what to a method. Neither is part of the other's identity.
TEMPLATES = ("questions", "answers", "reference", "system", "per_record", "split", "take")
SYNTHESIS = ("count", "novelty", "tries", "temperature", "top_p", "max_tokens", "partition", "engine", "server")


class Instructions(Stage):
    """Make conversations: from records by templates, or with a model by a published method."""

    takes = {
        "records": port("Document", many=True, optional=True),
        "seeds": port("Conversation", "Prompt", "Candidate", many=True, optional=True),
        "known": port("Conversation", "Prompt", many=True, optional=True),
        "model": port("Model", optional=True),
    }
    gives = "Conversation"
    phase = "generation"
    random = True

    questions: list[str] = Field([], description="Jinja; what the user says. Sees the record's metadata and `text`.")
    answers: list[str] = Field([], description="Jinja; what the assistant says. Without any, only questions are made.")
    reference: str | None = Field(None, description="Jinja; the known right answer, for rules and evaluation.")
    system: str | None = Field(None, description="Jinja; a system message before the question.")
    per_record: int = Field(1, ge=1, description="Conversations a record, each another question and answer.")
    split: dict[str, float] = Field({"all": 1.0}, description="Share of the records in each split; they add up to 1.")
    take: str | None = Field(None, description="The split to make conversations of; all records if left out.")

    method: Method | None = Field(
        None, description="Have a model make them: `{name: self_instruct}`, and its settings."
    )
    count: int | None = Field(None, ge=1, description="Conversations to deliver; where inputs end, all they give.")
    novelty: Novelty | None = Field(
        None,
        description="What is new enough to keep; if left out, ROUGE-L below 0.7 (for what goes on from the seeds: no copies).",
    )
    tries: float = Field(20, gt=0, description="Most drafts, as a multiple of `count`.")
    temperature: float = Field(0.7, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1, description="Longest thing the model says in one step, in tokens.")
    partition: int = Field(128, ge=1, description="Most drafts in one round: one batch of the engine, one file.")
    engine: Engine = Field("vllm", description="What runs the model: vllm, or transformers: slow, but runs anywhere.")
    server: Server | None = Field(None, description="An OpenAI-compatible server instead of a model.")

    @field_validator("questions", "answers")
    @classmethod
    def _compile(cls, value: list[str], info: Any) -> list[str]:
        return checked(value, info.field_name) if value else value

    @field_validator("reference", "system")
    @classmethod
    def _compile_one(cls, value: str | None, info: Any) -> str | None:
        return checked([value], info.field_name)[0] if value is not None else None

    @model_validator(mode="after")
    def _check_split(self) -> Instructions:
        fields = type(self).model_fields
        others = SYNTHESIS if self.method is None else TEMPLATES
        foreign = [name for name in others if getattr(self, name) != fields[name].get_default()]
        if foreign and self.method is None:
            raise ValueError(f"`{foreign[0]}` needs a `method`: templates ask no model")
        if foreign:
            raise ValueError(f"`{foreign[0]}` is for templates, not for `method: {self.method.name}`")  # pyright: ignore
        if self.method is not None:
            return self
        if not self.questions:
            raise ValueError("nothing to make: at least one template in `questions` is needed, or a `method`")
        if any(share <= 0 for share in self.split.values()) or not math.isclose(sum(self.split.values()), 1):
            raise ValueError(f"`split` needs shares above 0 that add up to 1, found {self.split}")
        if self.take is not None and self.take not in self.split:
            raise ValueError(f"`take: {self.take}` is not in `split`, which has {', '.join(self.split)}")
        pairs = len(self.questions) * max(1, len(self.answers))
        if self.per_record > pairs:
            raise ValueError(f"`per_record: {self.per_record}` asks for more than the {pairs} pairs of templates")
        return self

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        dropped = [*SYNTHESIS, "method"] if self.method is None else TEMPLATES
        if self.server:
            identity["server"] = self.server.identity()
        if isinstance(self.method, Mathematics):  # its votes are counted by which answers are equal
            identity["equality"] = EQUALITY
        return {name: value for name, value in identity.items() if name not in dropped}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.count if self.method else None

    def run(self, job: Job) -> None:
        if self.method is not None:
            return synthesize(job, self.method, self)
        if not job.all("records"):
            raise UserError("templates need records to render: `from: {records: ...}`.")
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
