"""`dialogue`: a model talks with a simulated user for several turns.

Token-exact: what was sampled stays as it was sampled. The next turn is asked with the ids of all that came before, plus
the ids of what stands between two answers (the end of the turn, the user's message, the assistant's header), which are
tokenised once, when they are made. So the ids of a row are, one for one, those that the model saw and gave.

The user is played by a model, too: it sees the conversation with the roles exchanged, and a word on whom to play.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from engine.stage.job import Job, Part
from engine.stage.stage import Stage, port
from engine.store.digest import digest_json
from engine.store.schema import DATASETS, row_id
from generators.backends.in_flight import in_flight
from generators.backends.protocol import (
    Backend,
    Engine,
    Failure,
    Local,
    Sampling,
    open_backend,
    open_model,
    open_server,
)
from generators.backends.server.chat_completions import Server
from generators.candidates.stage import read_prompts, repeated_ids
from generators.text.prompts import Message, between

PLAY = (
    "You play a person who talks with an assistant. Write the person's next message and nothing else: react to what the "
    "assistant said, ask what is still open, and stay with the subject. Begin."
)


class Dialogue(Stage):
    """Have a model talk with a simulated user, several turns, with the ids of every turn as they were sampled."""

    takes = {
        "model": port("Model", "Adapter", optional=True),
        "user": port("Model", "Adapter", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
    }
    gives = "Candidate"
    phase = "generation"
    random = True

    turns: int = Field(3, ge=1, description="Answers of the model in one conversation.")
    n: int = Field(1, ge=1, description="Conversations a prompt.")
    play: str = Field(PLAY, min_length=1, description="What the simulated user is told.")
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    user_temperature: float = Field(1.0, ge=0, le=10)
    user_max_tokens: int = Field(128, ge=1, description="Longest message of the user, in tokens.")
    logprobs: bool = Field(True, description="Keep the log-probability of every sampled token.")
    partition: int = Field(64, ge=1, description="Prompts a partition.")
    engine: Engine = Field("vllm", description="What runs the models: vllm, serve or transformers.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = Field(None, ge=2, description="Longest conversation, in tokens.")
    server: Server | None = Field(None, description="An OpenAI-compatible server that answers instead of a model.")
    user_server: Server | None = Field(None, description="One that plays the user. Without: the model itself does.")

    def identity(self) -> dict[str, Any]:
        servers = {name: getattr(self, name) for name in ("server", "user_server")}
        return {**super().identity(), **{name: one.identity() if one else None for name, one in servers.items()}}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.n * rows["prompts"]

    def run(self, job: Job) -> None:
        options: dict[str, Any] = {"dtype": self.dtype, "max_model_len": self.max_model_len}
        repeated = repeated_ids(job)
        with contextlib.ExitStack() as stack:
            model, name = open_backend(job, self.server, self.engine, **options)
            stack.enter_context(contextlib.closing(model))
            user, player = model, name
            if self.user_server is not None:
                user, player = open_server(job, self.user_server), self.user_server.model
            elif given := job.maybe("user"):
                user, player = open_model(job, given, self.engine, **options), given.id
            if user is not model:
                stack.enter_context(contextlib.closing(user))

            def ask(part: Part) -> tuple[list[Thread], list[dict[str, Any]]]:
                asked, rejected = read_prompts(part, self.partition, repeated)
                threads = [
                    Thread(row, sample, job.derive("dialogue", row["id"], sample))
                    for row in asked
                    for sample in range(self.n)
                ]
                self._talk(job, threads, model, user)
                return threads, rejected

            for part, (threads, rejected) in in_flight(job.parts("prompts", self.partition), model.width, ask):
                failed = [{**t.prompt, "reason": t.failure.reason, "detail": t.failure.detail, "failed": True}
                          for t in threads if t.failure]  # fmt: skip
                rejected += failed
                kept = self._rows([thread for thread in threads if not thread.failure], name, player)
                part.commit(kept, pa.Table.from_pylist(rejected) if rejected else None)
        job.summary(model=name, user=player, asked=self.n * job.rows("prompts"))

    def _talk(self, job: Job, threads: list[Thread], model: Backend, user: Backend) -> None:
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens, logprobs=self.logprobs)
        playing = Sampling(self.user_temperature, max_tokens=self.user_max_tokens, logprobs=False)
        for turn in range(self.turns):
            speaking = [t for t in threads if not t.ended]
            answer(model, speaking, sampling, [job.derive("answer", t.seed, turn) for t in speaking])
            speaking = [t for t in speaking if not t.ended]
            if not speaking or turn + 1 == self.turns:
                break
            told = user.complete(
                [exchanged(self.play, t.messages) for t in speaking],
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

    def _rows(self, threads: list[Thread], model: str, player: str) -> pa.Table:
        parameters = {
            "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "turns": self.turns,
            "user": {"model": player, "play": digest_json(self.play)[:16], "temperature": self.user_temperature},
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
                "logprobs": t.logprobs if exact and self.logprobs else None, "finish_reason": t.finish_reason,
                "model": model, "sampling": sampling, "seed": t.seed, "sample": t.sample,
                "reference": t.prompt["reference"], "sampled": t.sampled if exact else None,
            })  # fmt: skip
        schema = DATASETS["Candidate"].append(pa.field("sampled", pa.list_(pa.bool_())))
        return pa.Table.from_pylist(rows, schema)


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
        thread.messages.append({"role": "assistant", "content": made.text})
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
    added = between(backend.tokenizer, thread.ids[-1:], thread.messages[-1]["content"])
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
