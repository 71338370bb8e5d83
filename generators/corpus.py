"""`corpus`: documents made from records.

A record is a Document whose metadata holds columns (`{"country": "France", "capital": "Paris"}`). Every document draws
some records and, for each, one of the templates; without a model what they render to is the document, with a model it
is what the model is asked, and the answer is the document. Document number i depends on the seed and i alone, so the
corpus is the same however the work is cut.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from engine import seeds
from engine.errors import UserError
from engine.job import Job, part_name
from engine.schema import DATASETS, row_id
from engine.stage import Stage, port
from generators.rendering import Template, Unrenderable, checked, compiled, variables
from generators.vllm_backend import Sampling

ATTEMPTS = 8  # draws for one document before it is given up
WITHOUT_MODEL = 5_000  # documents a partition when nothing is generated


class Corpus(Stage):
    """Make documents from records and templates, written out by a model if there is one."""

    takes = {"records": port("Document", many=True), "model": port("Model", optional=True)}
    gives = "Document"
    random = True

    documents: int = Field(ge=1, description="How many documents to make.")
    records: int = Field(1, ge=1, description="Records drawn for a document, each at most once.")
    templates: list[str] = Field(description="Jinja; one is drawn for each record. Sees its metadata and `text`.")
    separator: str = Field("\n", description="Stands between the rendered records of a document.")
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1, description="Longest document a model writes, in tokens.")
    partition: int = Field(256, ge=1, description="Documents a partition, with a model.")

    @field_validator("templates")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        return checked(value, "templates")

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.documents

    def run(self, job: Job) -> None:
        records = [row for a in job.all("records") for row in a.to_table(["id", "text", "metadata"]).to_pylist()]
        if len(records) < self.records:
            raise UserError(f"`records: {self.records}` for each document, but only {len(records)} records came in.")
        templates = compiled(self.templates, "templates")
        values = [variables(row) for row in records]
        known = {name for row in values for name in row}
        for template in templates:
            template.require(known)
        ids = [row["id"] for row in records]

        def draw(number: int, attempt: int) -> dict[str, Any]:
            generator = seeds.generator(job.seed, "corpus", number, attempt)
            chosen = generator.choice(len(records), self.records, replace=False)
            styles = [templates[i] for i in generator.integers(len(templates), size=self.records)]
            text = self.separator.join(
                style.render(values[i]) for style, i in zip(styles, chosen.tolist(), strict=True)
            )
            return {"text": text, "parents": [ids[i] for i in chosen.tolist()], "templates": styles}

        if job.maybe("model"):
            self._written(job, draw)
        else:
            self._rendered(job, draw)

    def _rendered(self, job: Job, draw: Any) -> None:
        delivered = 0
        for name, numbers, is_done in self._partitions(job, WITHOUT_MODEL):
            if not is_done:
                kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
                for number in numbers:
                    reason = ""
                    for attempt in range(ATTEMPTS):
                        try:
                            made = draw(number, attempt)
                        except Unrenderable as error:
                            reason = str(error)
                            continue
                        if made["text"].strip():
                            kept.append(_document(number, made["text"], made, {}))
                            break
                    else:
                        rejected.append(_rejected(number, "empty" if not reason else "unrenderable", reason))
                commit(job, name, kept, rejected)
            delivered += len(numbers)
            job.progress(delivered, self.documents, "documents")

    def _partitions(self, job: Job, size: int) -> Iterator[tuple[str, range, bool]]:
        done = job.committed()
        for index, start in enumerate(range(0, self.documents, size)):
            numbers = range(start, min(start + size, self.documents))
            name = part_name(index, map(str, numbers))
            yield name, numbers, name in done

    def _written(self, job: Job, draw: Any) -> None:
        from generators.prompting import decode, encode_prompt, load_tokenizer
        from generators.vllm_backend import VllmEngine

        model = job.input("model")
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens, logprobs=False)
        facts = {"model": model.id, "temperature": self.temperature, "top_p": self.top_p}
        tokenizer = load_tokenizer(model.location)
        engine: VllmEngine | None = None
        with contextlib.ExitStack() as stack:
            for name, numbers, is_done in self._partitions(job, self.partition):
                if not is_done:
                    engine = engine or stack.enter_context(VllmEngine(model.location))
                    kept, last = dict[int, dict[str, Any]](), dict[int, tuple[str, str]]()
                    # A document that came out empty is drawn anew, so that the number asked for is the number delivered.
                    for attempt in range(ATTEMPTS):
                        asked, prompts = list[tuple[int, dict[str, Any]]](), list[list[int]]()
                        for number in numbers:
                            if number in kept:
                                continue
                            try:
                                made = draw(number, attempt)
                            except Unrenderable as error:
                                last[number] = ("unrenderable", str(error))
                                continue
                            prompt = encode_prompt(tokenizer, [{"role": "user", "content": made["text"]}])
                            room = engine.max_model_len
                            if len(prompt) >= room:
                                last[number] = ("too_long", f"a prompt of {len(prompt)} tokens in a context of {room}")
                                continue
                            asked.append((number, made))
                            prompts.append(prompt)
                        own = [job.derive("corpus", number, attempt, "sample") for number, _ in asked]
                        for (number, made), seed, answer in zip(
                            asked, own, engine.generate(prompts, sampling, own), strict=True
                        ):
                            text = decode(tokenizer, answer.token_ids)
                            if text:
                                kept[number] = _document(number, text, made, {**facts, "seed": seed})
                            else:
                                last[number] = ("empty", "the model wrote nothing")
                    rejected = [_rejected(n, *last[n]) for n in numbers if n not in kept]
                    commit(job, name, [kept[n] for n in numbers if n in kept], rejected)
                job.progress(numbers[-1] + 1, self.documents, "documents")


def _document(number: int, text: str, made: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    styles: list[Template] = made["templates"]
    metadata = {"templates": sorted({style.digest for style in styles}), **facts}
    return {
        "id": row_id("Document", "corpus", number, text, *made["parents"]),
        "parents": made["parents"],
        "text": text,
        "source": "corpus",
        "offset": number,
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _rejected(number: int, reason: str, detail: str) -> dict[str, Any]:
    return {
        "id": row_id("Document", "corpus", number),
        "offset": number,
        "reason": reason,
        "detail": detail,
        "failed": True,
    }


def commit(job: Job, name: str, kept: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    """Commit rows as this job's kind."""
    job.commit(
        name,
        pa.Table.from_pylist(kept, DATASETS[job.gives]),
        pa.Table.from_pylist(rejected) if rejected else None,
    )
