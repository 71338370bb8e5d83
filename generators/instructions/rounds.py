"""The loop behind the instruction-making methods: draft, check, keep what is new, until the number asked for is there.

Work is cut into rounds. A round's drafts see what the rounds before it made and nothing else; it is committed whole, so
a run that was killed goes on at the round it was in and ends with the same bytes. If the number can't be reached, the
summary says why: how many drafts were made, and for what reasons they came to nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from typing import Any

import pyarrow as pa

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.schema import messages_digest, row_id, stored, table
from generators.backends.local_model import Local
from generators.backends.open import open_backend
from generators.backends.protocol import Backend, Sampling
from generators.drafts.drafts import Made, Rejected
from generators.drafts.lockstep import carry
from generators.instructions.advice import advice
from generators.instructions.method import Method, Seed, World
from generators.instructions.novelty import EarlierTexts
from generators.instructions.novelty_rule import Novelty
from generators.instructions.stage import Instructions
from generators.text.prompts import prompt_of

LEAST_YIELD = 0.1  # a round is not made larger than the rows that are missing at this share of drafts kept


def synthesize(stage: Instructions, job: Job, method: Method) -> None:
    """Make `count` conversations by a method, or say why there are fewer."""
    method.require({port for port, given in job.inputs.items() if given}, stage.server is not None)
    # Answers to what is there already are alike by nature: only copies are not new.
    rule = stage.novelty or Novelty.model_validate({} if method.fresh else {"rouge_l": None})
    world = World(
        seeds=_rows(job, "seeds" if job.all("seeds") or "seeds" not in method.needs else "records"),
        records=_rows(job, "records"), known=EarlierTexts(rule), seed=job.seed,
        sampling=Sampling(stage.temperature, stage.top_p, max_tokens=stage.max_tokens, logprobs=False),
    )  # fmt: skip
    for row in [*(world.seeds if method.fresh else ()), *_rows(job, "known")]:
        world.known.add(row.text, row.id)
    finished = _finished(job)
    for name, _, _ in finished:
        _remember(job, world, name)
    backend, model = open_backend(job, stage.server, stage.engine, dtype="auto")
    with contextlib.closing(backend):
        world.tokenizer = backend.tokenizer if isinstance(backend, Local) else None
        count = stage.count if stage.count is not None else method.drafts(world)
        if count is None:
            raise UserError("how many? This method has no end of its own: give `count`.")
        made, stopped = _rounds(stage, job, method, count, world, backend, model, finished)
    _summarize(job, stage, method, count, world, made, stopped)


def _rounds(
    stage: Instructions, job: Job, method: Method, count: int, world: World, backend: Backend, model: str,
    finished: list[tuple[str, int, int]],
) -> tuple[int, str]:  # fmt: skip
    """Round after round; how many drafts were made in all, and why it ended."""
    number = finished[-1][1] + finished[-1][2] if finished else 0
    there_are, most = method.drafts(world), math.ceil(stage.tries * count)
    facts = {"method": method.model_dump()["name"], "model": model, "temperature": stage.temperature,
             "top_p": stage.top_p, "max_tokens": stage.max_tokens}  # fmt: skip
    own = stage.prompt_templates(job.base)
    for index in itertools.count(len(finished)):
        missing = count - len(world.made)
        job.progress(len(world.made), count, "conversations", drafts=number)
        if missing <= 0:
            return number, "delivered"
        if there_are is not None and number >= there_are:
            return number, "exhausted"
        if number >= most:
            return number, "tries"
        share = max(LEAST_YIELD, len(world.made) / number) if number else 1.0
        size = min(stage.partition, math.ceil(missing / share), most - number, method.round(world) or most)
        size = size if there_are is None else min(size, there_are - number)
        drafts = [(n, method.draft(world, n)) for n in range(number, number + size)]
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        for line in carry(backend, drafts, job.derive, own):
            spent = {"tokens_in": line.tokens[0], "tokens_out": line.tokens[1]}
            one = {"draft": line.path[0], "templates": line.templates, "seed": line.seeds[0] if line.seeds else None}
            row = _row(job, line.path, line.result, {**facts, **one, **spent})
            if "reason" not in row and isinstance(line.result, Made):
                alike = world.known.like(line.result.key)
                if len(kept) == missing:
                    row = _refused(row, "surplus", "the number asked for was there", failed=False)
                elif alike:
                    row = _refused(row, "not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}", failed=False)
                else:
                    world.known.add(line.result.key, row["id"])
            (rejected if "reason" in row else kept).append(row)
        name = f"{index:05d}-{number}-{size}"
        job.commit(
            name,
            table("Conversation", kept, [("tools", pa.string())] if any("tools" in row for row in kept) else ()),
            pa.Table.from_pylist(rejected) if rejected else None,
        )
        for row in kept:
            world.remember(row)
        number += size
    raise AssertionError("the rounds have no end")


def _row(job: Job, path: tuple[int, ...], result: Any, facts: dict[str, Any]) -> dict[str, Any]:
    if isinstance(result, Rejected):
        one = row_id("Conversation", job.seed, str(path), result.reason, result.detail)
        row = {"id": one, "parents": [], "metadata": json.dumps({**facts, **result.facts}, sort_keys=True)}
        return _refused(row, result.reason, result.detail, result.failed)
    assert isinstance(result, Made)
    messages = stored(result.messages)
    tools = {"tools": json.dumps(result.tools, ensure_ascii=False)} if result.tools else {}
    return {
        "id": row_id("Conversation", messages_digest(messages), *result.parents, str(facts["seed"])),
        "parents": result.parents,
        "messages": messages,
        **tools,
        "reference": result.reference,
        "metadata": json.dumps({**facts, "key": result.key, **result.metadata}, sort_keys=True),
    }


def _refused(row: dict[str, Any], reason: str, detail: str, failed: bool) -> dict[str, Any]:
    return {**{"messages": None}, **row, "reason": reason, "detail": detail[:500], "failed": failed}


def _rows(job: Job, port: str) -> list[Seed]:
    """All rows of a port, whatever their kind."""
    rows = list[Seed]()
    for artifact in job.all(port):
        for row in artifact.to_table().to_pylist():
            values = json.loads(row["metadata"]) if row.get("metadata") else {}
            if "text" in row and "source" in row:  # a Document
                text = str(values.get("instruction") or row["text"] or "")
                rows.append(Seed(row["id"], text, str(values.get("output") or ""), [], values))
                continue
            if row.get("completion"):
                messages, answer = row["prompt"], row["completion"][-1]["content"]
            else:
                messages, answer = prompt_of(row)
                if answer is None and len(row.get("messages") or []) > len(messages):
                    answer = row["messages"][len(messages)][
                        "content"
                    ]  # a model's: no reference, but what to go on from
                values = {**values, "reference": row.get("reference")}
            asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            rows.append(Seed(row["id"], asked, answer or "", messages, values))
    return rows


def _finished(job: Job) -> list[tuple[str, int, int]]:
    """The rounds on disk, in order: name, first draft, how many."""
    rounds = [(name, *(int(part) for part in name.split("-")[1:])) for name in sorted(job.committed())]
    return rounds  # pyright: ignore[reportReturnType]


def _remember(job: Job, world: World, name: str) -> None:
    """Take a committed round into the world."""
    for row in job.read_part(name).to_pylist():
        world.remember(row)
        world.known.add(world.made[-1]["metadata"]["key"], row["id"])


def _summarize(
    job: Job, stage: Instructions, method: Method, count: int, world: World, made: int, stopped: str
) -> None:
    """The summary; and, where rows are missing, what became of the drafts and what to change."""
    reasons: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    drafts = [row["metadata"] for row in world.made]
    for name in sorted(job.writer.rejected_parts()):
        refused = job.writer.read_rejected(name, ["reason", "metadata"])
        reasons.update(refused["reason"].to_pylist())
        drafts += map(json.loads, refused["metadata"].to_pylist())
    for one in drafts:
        spent.update({which: one[which] for which in ("tokens_in", "tokens_out")})
    delivered = len(world.made)
    facts: dict[str, Any] = {"asked": count, "delivered": delivered, "drafts": made, **spent,
                             "reasons": dict(sorted(reasons.items()))}  # fmt: skip
    scores = Counter[int](one["score"] for one in drafts if "score" in one)
    if scores:
        facts["scores"] = {str(score): times for score, times in sorted(scores.items())}
    if delivered < count:
        causes = ", ".join(f"{times} {reason}" for reason, times in reasons.most_common()) or "none was rejected"
        why = {
            "exhausted": "every input was used",
            "tries": f"`tries: {stage.tries:g}` allows no more drafts",
        }[stopped]
        facts["shortfall"] = (
            f"{count - delivered} of {count} are missing: {why} after {made} drafts ({causes}). "
            f"{advice(reasons, scores, getattr(method, 'threshold', None))}"
        ).strip()
        job.say(facts["shortfall"])
    job.summary(**facts)
