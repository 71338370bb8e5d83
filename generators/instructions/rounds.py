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
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from engine import seeds
from engine.errors import UserError
from engine.stage.job import Job
from engine.store.parquet import read_parquet
from engine.store.schema import DATASETS, messages_digest, row_id
from generators.backends.protocol import Engine, Local, Sampling, open_backend
from generators.backends.server.chat_completions import Server
from generators.drafts.drafts import Draft, Made, Rejected, carry
from generators.instructions.novelty import Known, Novelty
from generators.text.prompts import Message, prompt_of

LEAST_YIELD = 0.1  # a round is not made larger than the rows that are missing at this share of drafts kept


@dataclass(frozen=True)
class Seed:
    """A row that came in: a task, a persona, a document.

    Attributes:
        text: what the user asks; of a document, its text.
        answer: what the assistant says, or a known right answer, or "".
        values: metadata (of a document: its columns).
    """

    id: str
    text: str
    answer: str
    messages: list[Message]
    values: dict[str, Any]


@dataclass
class World:
    """What a draft may look at. Nothing in it changes during a round.

    Attributes:
        seeds: rows of the `seeds` port, or where a method needs seeds and has none, of `records`.
        records: rows of the `records` port.
        made: rows that earlier rounds made, in order (`id`, `messages`, `reference`, `metadata` as a mapping).
        latest: the last of them by the `lineage` in their metadata.
        known: everything a new row must differ from.
        sampling: as the recipe has it.
        tokenizer: of the model, if it runs on this machine.
    """

    seeds: list[Seed]
    records: list[Seed]
    known: Known
    sampling: Sampling
    seed: int
    tokenizer: Any = None
    made: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())
    latest: dict[str, dict[str, Any]] = field(default_factory=lambda: dict[str, dict[str, Any]]())
    _orders: dict[Any, list[int]] = field(default_factory=lambda: dict[Any, list[int]]())

    def remember(self, row: dict[str, Any]) -> None:
        """Take in a row of a round that was committed."""
        row = {**row, "metadata": json.loads(row["metadata"])}
        self.made.append(row)
        if lineage := row["metadata"].get("lineage"):
            self.latest[lineage] = row

    def random(self, number: int, *parts: str | int) -> np.random.Generator:
        """The generator of draft `number`."""
        return seeds.generator(self.seed, "synthesis", number, *parts)

    def nth(self, rows: list[Seed], number: int, *parts: str) -> Seed:
        """The row for draft `number`: all of them in an order of the seed's, then all in another, and so on."""
        lap, place = divmod(number, len(rows))
        key = (lap, len(rows), *parts)
        if key not in self._orders:
            self._orders[key] = seeds.shuffled(range(len(rows)), self.seed, "lap", lap, *parts)
        return rows[self._orders[key][place]]


class Method(BaseModel):
    """How instructions are made. A subclass is one procedure, in a file of its own in `generators/methods/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[tuple[str, ...]] = ()  # the ports that must be given; seeds that are Documents are `records`
    weights: ClassVar[bool] = False  # needs the model on this machine, not behind a server
    fresh: ClassVar[bool] = True  # a row must also be unlike the seeds; else it is one of them, gone on from

    def draft(self, world: World, number: int) -> Draft:
        """Begin draft `number`."""
        raise NotImplementedError

    def drafts(self, world: World) -> int | None:
        """How many drafts there are to make; None if there is no end to them."""
        return None

    def round(self, world: World) -> int | None:
        """The most drafts that may not see each other's results; None if it does not matter."""
        return None


class Settings(Protocol):
    """What the loop reads of the stage."""

    @property
    def count(self) -> int | None: ...
    @property
    def novelty(self) -> Novelty | None: ...
    @property
    def tries(self) -> float: ...
    @property
    def partition(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def server(self) -> Server | None: ...
    @property
    def engine(self) -> Engine: ...


def synthesize(job: Job, method: Method, settings: Settings) -> None:
    """Make `settings.count` conversations by a method, or say why there are fewer."""
    for name in method.needs:
        if not (job.all(name) or (name == "seeds" and job.all("records"))):
            raise UserError(
                f"this method makes instructions from `{name}`: say which, `from: {{{name}: ..., model: ...}}`."
            )
    if method.weights and settings.server:
        raise UserError(
            "this method needs the model itself (`from: {model: ...}`); a `server:` hides its chat template."
        )
    # Answers to what is there already are alike by nature: only copies are not new.
    rule = settings.novelty or Novelty.model_validate({} if method.fresh else {"rouge_l": None})
    world = World(
        seeds=_rows(job, "seeds" if job.all("seeds") or "seeds" not in method.needs else "records"),
        records=_rows(job, "records"), known=Known(rule), seed=job.seed,
        sampling=Sampling(settings.temperature, settings.top_p, max_tokens=settings.max_tokens, logprobs=False),
    )  # fmt: skip
    for row in [*(world.seeds if method.fresh else ()), *_rows(job, "known")]:
        world.known.add(row.text, row.id)
    finished = _finished(job)
    for name, _, _ in finished:
        _remember(job, world, name)
    backend, model = open_backend(job, settings.server, settings.engine, dtype="auto")
    with contextlib.closing(backend):
        world.tokenizer = backend.tokenizer if isinstance(backend, Local) else None
        count = settings.count if settings.count is not None else method.drafts(world)
        if count is None:
            raise UserError("how many? This method has no end of its own: give `count`.")
        made, stopped = _rounds(job, method, settings, count, world, backend, model, finished)
    _tell(job, settings, count, world, made, stopped)


def _rounds(
    job: Job, method: Method, settings: Settings, count: int, world: World, backend: Any, model: str,
    finished: list[tuple[str, int, int]],
) -> tuple[int, str]:  # fmt: skip
    """Round after round; how many drafts were made in all, and why it ended."""
    number = finished[-1][1] + finished[-1][2] if finished else 0
    there_are, most = method.drafts(world), math.ceil(settings.tries * count)
    facts = {"method": method.model_dump()["name"], "model": model, "temperature": settings.temperature,
             "top_p": settings.top_p, "max_tokens": settings.max_tokens}  # fmt: skip
    tokens, began = (0, 0), time.monotonic()
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
        size = min(settings.partition, math.ceil(missing / share), most - number, method.round(world) or most)
        size = size if there_are is None else min(size, there_are - number)
        drafts = [(n, method.draft(world, n)) for n in range(number, number + size)]
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        for line in carry(backend, drafts, job.derive):
            spent = {"tokens_in": line.tokens[0], "tokens_out": line.tokens[1]}
            one = {"draft": line.path[0], "templates": line.templates, "seed": line.seeds[0] if line.seeds else None}
            row = _row(job, line.path, line.result, {**facts, **one, **spent})
            tokens = tokens[0] + line.tokens[0], tokens[1] + line.tokens[1]
            if "reason" not in row and isinstance(line.result, Made):
                alike = world.known.like(line.result.key)
                if len(kept) == missing:
                    row = _refused(row, "surplus", "the number asked for was there", failed=False)
                elif alike:
                    row = _refused(row, "not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}", failed=False)
                else:
                    world.known.add(line.result.key, row["id"])
            (rejected if "reason" in row else kept).append(row)
        rate = round(tokens[1] / (time.monotonic() - began))
        job.emit({"event": "tokens", "in": tokens[0], "out": tokens[1], "out_per_s": rate})
        name = f"{index:05d}-{number}-{size}"
        job.commit(
            name,
            pa.Table.from_pylist(kept, DATASETS["Conversation"]),
            pa.Table.from_pylist(rejected) if rejected else None,
        )
        for row in kept:
            world.remember(row)
        number += size
    raise AssertionError("the rounds have no end")


def _row(job: Job, path: tuple[int, ...], result: Any, facts: dict[str, Any]) -> dict[str, Any]:
    if isinstance(result, Rejected):
        one = row_id("Conversation", job.seed, str(path), result.reason, result.detail)
        row = {"id": one, "parents": [], "metadata": json.dumps(facts, sort_keys=True)}
        return _refused(row, result.reason, result.detail, result.failed)
    assert isinstance(result, Made)
    return {
        "id": row_id("Conversation", messages_digest(result.messages), *result.parents, str(facts["seed"])),
        "parents": result.parents,
        "messages": result.messages,
        "reference": result.reference,
        "metadata": json.dumps({**facts, "key": result.key, **result.metadata}, sort_keys=True),
    }


def _refused(row: dict[str, Any], reason: str, detail: str, failed: bool) -> dict[str, Any]:
    return {**{"messages": None}, **row, "reason": reason, "detail": detail[:500], "failed": failed}


def _rows(job: Job, port: str) -> list[Seed]:
    """All rows of a port, whatever their kind."""
    found = list[Seed]()
    for artifact in job.all(port):
        for row in artifact.to_table().to_pylist():
            values = json.loads(row["metadata"]) if row.get("metadata") else {}
            if "text" in row and "source" in row:  # a Document
                text = str(values.get("instruction") or row["text"] or "")
                found.append(Seed(row["id"], text, str(values.get("output") or ""), [], values))
                continue
            if row.get("completion"):
                messages, answer = row["prompt"], row["completion"][-1]["content"]
            else:
                messages, answer = prompt_of(row)
                values = {**values, "reference": row.get("reference")}
            asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            found.append(Seed(row["id"], asked, answer or "", messages, values))
    return found


def _finished(job: Job) -> list[tuple[str, int, int]]:
    """The rounds on disk, in order: name, first draft, how many."""
    rounds = [(name, *(int(part) for part in name.split("-")[1:])) for name in sorted(job.committed())]
    return rounds  # pyright: ignore[reportReturnType]


def _remember(job: Job, world: World, name: str) -> None:
    """Take a committed round into the world."""
    with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
        rows = read_parquet(file).to_pylist()
    for row in rows:
        world.remember(row)
        world.known.add(world.made[-1]["metadata"]["key"], row["id"])


def _tell(job: Job, settings: Settings, count: int, world: World, made: int, stopped: str) -> None:
    """The summary; and, where rows are missing, what became of the drafts."""
    reasons: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    told = [row["metadata"] for row in world.made]
    for name in job.store.list("artifacts", job.artifact, "rejected"):
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "rejected", name), "rb") as file:
            table = read_parquet(file, ["reason", "metadata"])
        reasons.update(table["reason"].to_pylist())
        told += map(json.loads, table["metadata"].to_pylist())
    for facts_of in told:
        spent.update({which: facts_of[which] for which in ("tokens_in", "tokens_out")})
    delivered = len(world.made)
    facts: dict[str, Any] = {"asked": count, "delivered": delivered, "drafts": made, **spent,
                             "reasons": dict(sorted(reasons.items()))}  # fmt: skip
    if delivered < count:
        told = ", ".join(f"{times} {reason}" for reason, times in reasons.most_common()) or "none was rejected"
        why = {
            "exhausted": "every input was used",
            "tries": f"`tries: {settings.tries:g}` allows no more drafts",
        }[stopped]
        facts["shortfall"] = f"{count - delivered} of {count} are missing: {why} after {made} drafts ({told})."
        job.say(facts["shortfall"])
    job.summary(**facts)
