"""The work of `dialogue`: conversations under way, turn by turn."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from engine.stage.job import Job, Part
from engine.store.digest import digest_json
from engine.store.schema import row_id, table
from generators.backends.in_flight import in_flight
from generators.backends.local_model import Local
from generators.backends.open import open_backend, open_model, open_server
from generators.backends.protocol import Backend, Failure, Sampling
from generators.candidates.dealing import read_prompts, repeated_ids
from generators.candidates.dialogue_stage import Dialogue
from generators.text.chat_template import Unusable
from generators.text.prompts import Message


def converse(stage: Dialogue, job: Job) -> None:
    """Commit a conversation for every prompt and sample."""
    options: dict[str, Any] = {"dtype": stage.dtype, "max_model_len": stage.max_model_len, "replicas": stage.replicas}
    repeated = repeated_ids(job)
    with contextlib.ExitStack() as stack:
        model, name = open_backend(job, stage.server, stage.engine, **options)
        stack.enter_context(contextlib.closing(model))
        user, player = model, name
        if stage.user_server is not None:
            user, player = open_server(job, stage.user_server, "user"), stage.user_server.model
        elif given := job.maybe("user"):
            user, player = open_model(job, given, stage.engine, part="user", **options), given.name
        if user is not model:
            stack.enter_context(contextlib.closing(user))

        def ask(part: Part) -> tuple[list[Thread], list[dict[str, Any]]]:
            asked, rejected = read_prompts(part, stage.partition, repeated)
            why = {"reason": "tool_calls", "detail": "nobody answers for tools in a dialogue", "failed": False}
            rejected += [{**row, **why} for row in asked if row.get("tools")]
            asked = [row for row in asked if not row.get("tools")]
            threads = [
                Thread(row, sample, job.derive("dialogue", row["id"], sample))
                for row in asked
                for sample in range(stage.n)
            ]
            _talk(stage, job, threads, model, user)
            return threads, rejected

        for part, (threads, rejected) in in_flight(job.parts("prompts", stage.partition), model.width, ask):
            failed = [{**t.prompt, "reason": t.failure.reason, "detail": t.failure.detail, "failed": True}
                      for t in threads if t.failure]  # fmt: skip
            rejected += failed
            kept = _rows(stage, [thread for thread in threads if not thread.failure], name, player)
            part.commit(kept, pa.Table.from_pylist(rejected) if rejected else None)
    job.summary(model=name, user=player, asked=stage.n * job.rows("prompts"))


def _talk(stage: Dialogue, job: Job, threads: list[Thread], model: Backend, user: Backend) -> None:
    sampling = Sampling(stage.temperature, stage.top_p, max_tokens=stage.max_tokens, logprobs=stage.logprobs)
    playing = Sampling(stage.user_temperature, max_tokens=stage.user_max_tokens, logprobs=False)
    for turn in range(stage.turns):
        speaking = [t for t in threads if not t.ended]
        answer(model, speaking, sampling, [job.derive("answer", t.seed, turn) for t in speaking])
        speaking = [t for t in speaking if not t.ended]
        if not speaking or turn + 1 == stage.turns:
            break
        told = user.complete(
            [exchanged(stage.play, t.messages) for t in speaking],
            playing,
            [job.derive("user", t.seed, turn) for t in speaking],
        )
        for thread, said in zip(speaking, told, strict=True):
            if isinstance(said, Failure):
                thread.fail(Failure(f"user_{said.reason}", said.detail))
            elif not said.text:
                thread.ended = True  # the user has nothing left to say
            else:
                thread.messages.append({"role": "user", "content": said.text})


def _rows(stage: Dialogue, threads: list[Thread], model: str, player: str) -> pa.Table:
    parameters = {
        "temperature": stage.temperature, "top_p": stage.top_p, "max_tokens": stage.max_tokens, "turns": stage.turns,
        "user": {"model": player, "play": digest_json(stage.play)[:16], "temperature": stage.user_temperature},
    }  # fmt: skip
    sampling = json.dumps(parameters)
    rows = list[dict[str, Any]]()
    for t in threads:
        asked = len(t.prompt["prompt"])
        # The conversation ends with an answer: a user who waits for one is not part of it.
        said = t.messages[asked:] if t.messages[-1]["role"] == "assistant" else t.messages[asked:-1]
        whole = repr(t.ids) if t.ids is not None else json.dumps(said)
        exact = t.ids is not None
        rows.append({
            "id": row_id("Candidate", t.prompt["id"], model, sampling, t.seed, t.sample, whole),
            "parents": [t.prompt["id"]], "prompt_id": t.prompt["id"], "prompt": t.prompt["prompt"],
            "completion": said, "prompt_token_ids": t.prompt_ids, "token_ids": t.ids,
            "logprobs": t.logprobs if exact and stage.logprobs else None, "finish_reason": t.finish_reason,
            "model": model, "sampling": sampling, "seed": t.seed, "sample": t.sample,
            "reference": t.prompt["reference"], "sampled": t.sampled if exact else None,
        })  # fmt: skip
    return table("Candidate", rows, [("sampled", pa.list_(pa.bool_()))])


@dataclass
class Thread:
    """One conversation under way.

    Attributes:
        ids: everything after the prompt's ids, as the model saw or gave it; None if its backend tells no ids.
        sampled: for each of them, whether the model gave it.
        logprobs: of those the model gave; None for the others.
    """

    prompt: dict[str, Any]
    sample: int
    seed: int
    messages: list[Message] = field(default_factory=lambda: [])
    prompt_ids: list[int] | None = None
    ids: list[int] | None = None
    sampled: list[bool] = field(default_factory=lambda: [])
    logprobs: list[float | None] = field(default_factory=lambda: [])
    finish_reason: str = ""
    failure: Failure | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        self.messages = list(self.prompt["prompt"])

    def fail(self, failure: Failure) -> None:
        self.failure, self.ended = failure, True


def answer(backend: Backend, threads: list[Thread], sampling: Sampling, seeds: list[int]) -> None:
    """The model's next answer in every conversation."""
    if not isinstance(backend, Local):
        for thread, made in zip(threads, backend.complete([t.messages for t in threads], sampling, seeds), strict=True):
            if isinstance(made, Failure):
                thread.fail(made)
            else:
                thread.messages.append({"role": "assistant", "content": made.text})
                thread.finish_reason = made.finish_reason
        return
    for thread in threads:
        extend(backend, thread)
    asked = [(t, seed) for t, seed in zip(threads, seeds, strict=True) if not t.ended]
    prompts = [[*(t.prompt_ids or []), *(t.ids or [])] for t, _ in asked]
    for (thread, _), made in zip(asked, backend.sample(prompts, sampling, [seed for _, seed in asked]), strict=True):
        if isinstance(made, Failure):
            thread.fail(made)
            continue
        assert made.token_ids is not None
        thread.ids = [*(thread.ids or []), *made.token_ids]
        thread.sampled += [True] * len(made.token_ids)
        thread.logprobs += made.logprobs or [None] * len(made.token_ids)
        thought = {"reasoning_content": made.thought} if made.thought else {}
        thread.messages.append({"role": "assistant", "content": made.text, **thought})
        thread.finish_reason = made.finish_reason


def extend(backend: Local, thread: Thread) -> None:
    """Tokenise what was said since the model last spoke, and nothing else."""
    if thread.ids is None:
        encoded = backend.encode(thread.messages)
        if isinstance(encoded, Failure):
            thread.fail(encoded)
            return
        thread.prompt_ids, thread.ids = encoded, []
        return
    try:
        added = backend.template.between(thread.ids[-1:], thread.messages[-1]["content"])
    except Unusable as fault:
        thread.fail(Failure(fault.reason, fault.detail))
        return
    assert thread.prompt_ids is not None
    if len(thread.prompt_ids) + len(thread.ids) + len(added) >= backend.engine.max_model_len:
        thread.ended = True  # the context is full: the conversation ends with the answer before
        thread.finish_reason = "length"
        return
    thread.ids += added
    thread.sampled += [False] * len(added)
    thread.logprobs += [None] * len(added)


def exchanged(play: str, messages: list[Message]) -> list[Message]:
    """The conversation as the simulated user sees it: what it said itself is the assistant's."""
    other = {"user": "assistant", "assistant": "user"}
    said = [{"role": other[m["role"]], "content": m["content"]} for m in messages if m["role"] in other]
    return [{"role": "user", "content": play}, *said]
