"""The work of `corpus`."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.store.schema import DATASETS, row_id
from generators.backends.in_flight import in_flight
from generators.backends.open import open_backend
from generators.backends.protocol import REFUSED, Answer, Failure, Sampling
from generators.corpus.stage import Corpus
from generators.corpus.styles import REPHRASED
from generators.drafts.content import PREAMBLE, fault
from generators.text.templates import Template, Unrenderable, compiled, template, variables

ATTEMPTS = 8  # draws for one document before it is given up
Draw = Callable[[int, int], dict[str, Any]]  # number of the document, number of the attempt -> what to ask or say
USELESS = ("empty", "no_content", "loop")  # not kept: the next run asks again
WITHOUT_MODEL = 5_000  # documents a partition when nothing is generated


def grid(stage: Corpus) -> list[tuple[str, str | None, str | None]]:
    """The cells: style, audience, persona."""
    cells = list[tuple[str, str | None, str | None]]()
    for style in dict.fromkeys(stage.styles):
        plain = style.startswith(REPHRASED)
        audiences, personas = ([None] if plain else own or [None] for own in (stage.audiences, stage.personas))
        cells += [(style, audience, persona) for audience, persona in itertools.product(audiences, personas)]
    return cells


def make(stage: Corpus, job: Job) -> None:
    """Commit the documents asked for.

    Raises:
        UserError: too few records came in, nobody writes in the styles, or a template uses a name that no record has.
    """
    records = [row for a in job.all("records") for row in a.to_table(["id", "text", "metadata"]).to_pylist()]
    if len(records) < stage.records:
        raise UserError(f"`records: {stage.records}` for each document, but only {len(records)} records came in.")
    if stage.styles:
        if not (job.maybe("model") or stage.server):
            raise UserError("`styles` are what a model writes: give it a model (`from: {model: ...}`) or a `server:`.")
        return _written(stage, job, _styled(stage, job, records))
    templates = compiled(stage.templates, "templates")
    values = [variables(row) for row in records]
    known = {name for row in values for name in row}
    for one in templates:
        one.require(known)
    ids = [row["id"] for row in records]

    def draw(number: int, attempt: int) -> dict[str, Any]:
        generator = seeds.generator(job.seed, "corpus", number, attempt)
        chosen = generator.choice(len(records), stage.records, replace=False)
        styles = [templates[i] for i in generator.integers(len(templates), size=stage.records)]
        text = stage.separator.join(style.render(values[i]) for style, i in zip(styles, chosen.tolist(), strict=True))
        return {"text": text, "parents": [ids[i] for i in chosen.tolist()], "templates": styles}

    if job.maybe("model") or stage.server:
        _written(stage, job, draw)
    else:
        _rendered(stage, job, draw)


def _styled(stage: Corpus, job: Job, records: list[dict[str, Any]]) -> Draw:
    """Document i: records and cells in orders of the seed's, each record with another cell in every lap."""
    cells = seeds.shuffled(grid(stage), job.seed, "corpus", "cells")
    order = seeds.shuffled(range(len(records)), job.seed, "corpus", "records")
    # Cells follow each other; one is skipped whenever every record would meet the same ones again.
    own = stage.style_templates(job.base)
    period = len(cells) // math.gcd(len(cells), len(records))

    def draw(number: int, attempt: int) -> dict[str, Any]:
        lap, place = divmod(number, len(records))
        row = records[order[place]]
        style, audience, persona = cells[(number + lap // period) % len(cells)]
        used = own.get(style) or template(f"corpus/{style}")
        facts = {name: value for name, value in variables(row).items() if name != "text"}
        text = row["text"] or "\n".join(f"{name}: {value}" for name, value in facts.items())
        asked = used.render({"text": text, "audience": audience, "persona": persona})
        cell = {"style": style, "audience": audience, "persona": persona}
        return {"text": asked, "parents": [row["id"]], "templates": [used], "cell": cell}

    return draw


def _rendered(stage: Corpus, job: Job, draw: Draw) -> None:
    delivered = 0
    for name, numbers, is_done in _partitions(stage, job, WITHOUT_MODEL):
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
        job.progress(delivered, stage.documents, "documents")


def _partitions(stage: Corpus, job: Job, size: int) -> Iterator[tuple[str, range, bool]]:
    done = job.committed()
    for index, start in enumerate(range(0, stage.documents, size)):
        numbers = range(start, min(start + size, stage.documents))
        name = part_name(index, map(str, numbers))
        yield name, numbers, name in done


def _written(stage: Corpus, job: Job, draw: Draw) -> None:
    sampling = Sampling(stage.temperature, stage.top_p, max_tokens=stage.max_tokens, logprobs=False)
    backend, model = open_backend(job, stage.server, stage.engine, replicas=stage.replicas, dtype="auto")
    facts = {"model": model, "temperature": stage.temperature, "top_p": stage.top_p, "max_tokens": stage.max_tokens}

    def write(part: tuple[str, range]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        _, numbers = part
        documents, last = dict[int, dict[str, Any]](), dict[int, Failure]()
        # What came out empty is drawn anew, so that the number asked for is the number delivered.
        for attempt in range(ATTEMPTS):
            draws = list[tuple[int, dict[str, Any]]]()
            for number in (n for n in numbers if n not in documents):
                try:
                    draws.append((number, draw(number, attempt)))
                except Unrenderable as error:
                    last[number] = Failure("unrenderable", str(error))
            own = [job.derive("corpus", number, attempt, "sample") for number, _ in draws]
            prompts = [[{"role": "user", "content": drawn["text"]}] for _, drawn in draws]
            answers, useless = backend.complete(prompts, sampling, own), list[Answer]()
            for (number, drawn), seed, answer in zip(draws, own, answers, strict=True):
                text = _text(answer, drawn)
                if isinstance(text, Failure):
                    last[number] = text
                    if isinstance(answer, Answer) and text.reason in USELESS:
                        useless.append(answer)
                else:
                    documents[number] = _document(number, text, drawn, {**facts, "seed": seed})
            backend.forget(useless)
        rejected = [_rejected(n, last[n].reason, last[n].detail) for n in numbers if n not in documents]
        return [documents[n] for n in numbers if n in documents], rejected

    parts = list(_partitions(stage, job, stage.partition))
    written = sum(len(numbers) for _, numbers, is_done in parts if is_done)
    todo = [(name, numbers) for name, numbers, is_done in parts if not is_done]
    with contextlib.closing(backend):
        for (name, numbers), (kept, rejected) in in_flight(todo, backend.width, write):
            commit(job, name, kept, rejected)
            written += len(numbers)
            job.progress(written, stage.documents, "documents")


def _text(answer: Answer | Failure, drawn: dict[str, Any]) -> str | Failure:
    """The document that an answer is, or why it is none."""
    if isinstance(answer, Failure):
        return answer
    if refused := answer.refused:
        return refused
    text = answer.text
    if cell := drawn.get("cell"):
        if answer.finish_reason == "length" and cell["style"].startswith(REPHRASED):
            return Failure("cut_off", f"not all of it was said in {answer.tokens_out} tokens")
        text = PREAMBLE.sub("", text)
    if not text:
        return Failure("empty", "the model wrote nothing")
    return Failure(*found) if (found := fault(text)) else text


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
        "failed": reason not in REFUSED,
    }


def commit(job: Job, name: str, kept: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    """Commit rows as this job's kind."""
    job.commit(
        name,
        pa.Table.from_pylist(kept, DATASETS[job.gives]),
        pa.Table.from_pylist(rejected) if rejected else None,
    )
