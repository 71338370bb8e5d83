"""`corpus`: documents made from records.

A record is a Document whose metadata holds columns (`{"country": "France", "capital": "Paris"}`). Every document draws
some records and, for each, one of the templates; without a model what they render to is the document, with a model it
is what the model is asked, and the answer is the document. Document number i depends on the seed and i alone, so the
corpus is the same however the work is cut.

Instead of templates there are styles, for text to start from (records with `text`):
- `textbook`, `story`, `wiki`, `dialogue`: new text on the subject, for every audience and by every persona of a grid, as in
  Cosmopedia (Ben Allal et al., 2024);
- `wrap_*`: the four rephrasings of WRAP (Maini et al., 2024, arXiv:2401.16380);
- `nemotron_*`: those of Nemotron-CC (Su et al., 2024, arXiv:2412.02595): Wikipedia-like for poor text, the others for good.
No record meets the same cell of the grid twice before it has met all, and all cells get their share.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.stage.stage import Stage, port
from engine.store.schema import DATASETS, row_id
from generators.backends.protocol import Engine, Failure, Sampling, open_backend
from generators.backends.server.chat_completions import Server
from generators.drafts.drafts import template
from generators.text.templates import Template, Unrenderable, checked, compiled, variables

Style = Literal[
    "textbook", "story", "wiki", "dialogue", "wrap_easy", "wrap_medium", "wrap_hard", "wrap_qa", "nemotron_wikipedia",
    "nemotron_diverse_qa", "nemotron_distill", "nemotron_extract", "nemotron_list",
]  # fmt: skip
REPHRASED = ("wrap_", "nemotron_")  # styles that say what the record says: no audience, no persona, and nothing cut off
PREAMBLE = re.compile(r"^(sure|certainly|of course)?\W*here('s| is| are)\b[^\n:]{0,120}:\s+", re.I)
ATTEMPTS = 8  # draws for one document before it is given up
Draw = Callable[[int, int], dict[str, Any]]  # number of the document, number of the attempt -> what to ask or say
WITHOUT_MODEL = 5_000  # documents a partition when nothing is generated


class Corpus(Stage):
    """Make documents from records and templates, written out by a model if there is one."""

    takes = {"records": port("Document", many=True), "model": port("Model", optional=True)}
    gives = "Document"
    phase = "generation"
    random = True

    documents: int = Field(ge=1, description="How many documents to make.")
    records: int = Field(1, ge=1, description="Records drawn for a document, each at most once.")
    templates: list[str] = Field([], description="Jinja; one is drawn for each record. Sees its metadata and `text`.")
    separator: str = Field("\n", description="Stands between the rendered records of a document.")
    styles: list[Style] = Field([], description="Instead of templates: what a model makes of the records' texts.")
    audiences: list[str] = Field([], description="Whom to write for, e.g. `college students`; each with every style.")
    personas: list[str] = Field([], description="Who writes, e.g. `a nurse in a village`; each for every audience.")
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1, description="Longest document a model writes, in tokens.")
    engine: Engine = Field("vllm", description="What runs the model: vllm, or transformers: slow, but runs anywhere.")
    server: Server | None = Field(None, description="An OpenAI-compatible server that writes instead of a model.")
    partition: int = Field(256, ge=1, description="Documents a partition, with a model.")

    @field_validator("templates")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        return checked(value, "templates") if value else value

    @model_validator(mode="after")
    def _check_styles(self) -> Corpus:
        if bool(self.templates) == bool(self.styles):
            raise ValueError("documents are made from `templates` (at least one template is needed) or from `styles`")
        if self.styles and self.records != 1:
            raise ValueError(f"a document in a style is made from one record, not from `records: {self.records}`")
        if (self.audiences or self.personas) and all(style.startswith(REPHRASED) for style in self.styles):
            raise ValueError("`audiences` and `personas` are for the styles textbook, story, wiki and dialogue")
        return self

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        dropped = ("templates", "separator", "records") if self.styles else ("styles", "audiences", "personas")
        return {name: value for name, value in identity.items() if name not in dropped}

    def grid(self) -> list[tuple[str, str | None, str | None]]:
        """The cells: style, audience, persona."""
        cells = list[tuple[str, str | None, str | None]]()
        for style in dict.fromkeys(self.styles):
            plain = style.startswith(REPHRASED)
            audiences, personas = ([None] if plain else own or [None] for own in (self.audiences, self.personas))
            cells += [(style, audience, persona) for audience, persona in itertools.product(audiences, personas)]
        return cells

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.documents

    def run(self, job: Job) -> None:
        records = [row for a in job.all("records") for row in a.to_table(["id", "text", "metadata"]).to_pylist()]
        if len(records) < self.records:
            raise UserError(f"`records: {self.records}` for each document, but only {len(records)} records came in.")
        if self.styles:
            if not (job.maybe("model") or self.server):
                raise UserError(
                    "`styles` are what a model writes: give it a model (`from: {model: ...}`) or a `server:`."
                )
            return self._written(job, self._styled(job, records))
        templates = compiled(self.templates, "templates")
        values = [variables(row) for row in records]
        known = {name for row in values for name in row}
        for one in templates:
            one.require(known)
        ids = [row["id"] for row in records]

        def draw(number: int, attempt: int) -> dict[str, Any]:
            generator = seeds.generator(job.seed, "corpus", number, attempt)
            chosen = generator.choice(len(records), self.records, replace=False)
            styles = [templates[i] for i in generator.integers(len(templates), size=self.records)]
            text = self.separator.join(
                style.render(values[i]) for style, i in zip(styles, chosen.tolist(), strict=True)
            )
            return {"text": text, "parents": [ids[i] for i in chosen.tolist()], "templates": styles}

        if job.maybe("model") or self.server:
            self._written(job, draw)
        else:
            self._rendered(job, draw)

    def _styled(self, job: Job, records: list[dict[str, Any]]) -> Draw:
        """Document i: records and cells in orders of the seed's, each record with another cell in every lap."""
        cells = seeds.shuffled(self.grid(), job.seed, "corpus", "cells")
        order = seeds.shuffled(range(len(records)), job.seed, "corpus", "records")
        # Cells follow each other; one is skipped whenever every record would meet the same ones again.
        period = len(cells) // math.gcd(len(cells), len(records))

        def draw(number: int, attempt: int) -> dict[str, Any]:
            lap, place = divmod(number, len(records))
            row = records[order[place]]
            style, audience, persona = cells[(number + lap // period) % len(cells)]
            used = template(f"corpus/{style}")
            facts = {name: value for name, value in variables(row).items() if name != "text"}
            text = row["text"] or "\n".join(f"{name}: {value}" for name, value in facts.items())
            asked = used.render({"text": text, "audience": audience, "persona": persona})
            cell = {"style": style, "audience": audience, "persona": persona}
            return {"text": asked, "parents": [row["id"]], "templates": [used], "cell": cell}

        return draw

    def _rendered(self, job: Job, draw: Draw) -> None:
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

    def _written(self, job: Job, draw: Draw) -> None:
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens, logprobs=False)
        backend, model = open_backend(job, self.server, self.engine, dtype="auto")
        facts = {"model": model, "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        with contextlib.closing(backend):
            for name, numbers, is_done in self._partitions(job, self.partition):
                if not is_done:
                    kept, last = dict[int, dict[str, Any]](), dict[int, Failure]()
                    # What came out empty is drawn anew, so that the number asked for is the number delivered.
                    for attempt in range(ATTEMPTS):
                        asked = list[tuple[int, dict[str, Any]]]()
                        for number in (n for n in numbers if n not in kept):
                            try:
                                asked.append((number, draw(number, attempt)))
                            except Unrenderable as error:
                                last[number] = Failure("unrenderable", str(error))
                        own = [job.derive("corpus", number, attempt, "sample") for number, _ in asked]
                        prompts = [[{"role": "user", "content": made["text"]}] for _, made in asked]
                        for (number, made), seed, answer in zip(
                            asked, own, backend.complete(prompts, sampling, own), strict=True
                        ):
                            if isinstance(answer, Failure):
                                last[number] = answer
                            elif (
                                "cell" in made
                                and answer.finish_reason == "length"
                                and made["cell"]["style"].startswith(REPHRASED)
                            ):
                                last[number] = Failure(
                                    "cut_off", f"not all of it was said in {answer.tokens_out} tokens"
                                )
                            elif text := PREAMBLE.sub("", answer.text) if "cell" in made else answer.text:
                                kept[number] = _document(number, text, made, {**facts, "seed": seed})
                            else:
                                last[number] = Failure("empty", "the model wrote nothing")
                    rejected = [_rejected(n, last[n].reason, last[n].detail) for n in numbers if n not in kept]
                    commit(job, name, [kept[n] for n in numbers if n in kept], rejected)
                job.progress(numbers[-1] + 1, self.documents, "documents")


def _document(number: int, text: str, made: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    styles: list[Template] = made["templates"]
    metadata = {"templates": sorted({style.digest for style in styles}), **facts, **made.get("cell", {})}
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
