"""Who answers: one small interface, whatever is behind it.

    Backend      conversations in, answers out         what stages use
      Local      a TokenEngine and its tokenizer       weights on this machine
      ...        see `openai_backend.py`               a server that tokenises by itself
    TokenEngine  token ids in, token ids out           vLLM, transformers; in this process or in a watched one

A request that can't be answered comes back as a `Failure` in its place: never an exception for the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from engine.errors import UserError
from generators.text.prompts import Message, decode_all, encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.store.artifact import Artifact
    from generators.backends.server.chat_completions import Server


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus in (0, 1]; 1 keeps everything.
        top_k: 0 keeps everything.
        max_tokens: the longest completion.
        stop_token_ids: ids that end a completion, besides the model's own end-of-sequence ids.
        min_tokens: no completion ends before it has this many tokens.
        logprobs: keep the log-probability of every sampled token.
        json_schema: a JSON Schema, as JSON, that the completion must follow (guided decoding).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: bool = True
    json_schema: str | None = None


@dataclass(frozen=True)
class Completion:
    """What was sampled.

    Attributes:
        token_ids: as sampled; when `finish_reason` is "stop" the last one is the id that ended it.
        logprobs: one a token, natural logarithm; None if they were not asked for.
        finish_reason: "stop", or "length" when `max_tokens` or the context was full.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: str


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer: a short code (`too_long`) and the particulars."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Answer:
    """An answer with its text. A server that does not tell ids gives None for both lists of them."""

    text: str
    finish_reason: str
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Usage:
    """What a backend has spent for one stage. `cost` is in the unit of the prices; 0 where nothing is paid."""

    tokens_in: int
    tokens_out: int
    cost: float = 0.0
    retries: int = 0


class TokenEngine(Protocol):
    """One model. `generate` gives one result a prompt, in order, each from its own seed."""

    @property
    def max_model_len(self) -> int: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Completion | Failure]: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Answers conversations, one result each, in order. `complete` may be called from several threads.

    Attributes:
        width: batches worth having under way at once.
    """

    width: int

    @property
    def usage(self) -> Usage: ...

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]: ...

    def close(self) -> None: ...


class Local:
    """A token engine with its tokenizer: tokenises every conversation once, and nothing that was sampled."""

    def __init__(self, engine: TokenEngine, tokenizer: Any, width: int = 2) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.width = width  # one batch in the engine, another that is tokenised or written
        self._tokens_in = self._tokens_out = 0
        self._counting = threading.Lock()

    @property
    def usage(self) -> Usage:
        return Usage(self._tokens_in, self._tokens_out)

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]:
        encoded: dict[int, list[int] | Failure] = {}
        for messages in conversations:  # the n samples of a prompt are the same list
            if id(messages) not in encoded:
                encoded[id(messages)] = self.encode(messages)
        prompts = [encoded[id(messages)] for messages in conversations]
        asked = [(ids, seed) for ids, seed in zip(prompts, seeds, strict=True) if not isinstance(ids, Failure)]
        made = iter(self.sample([ids for ids, _ in asked], sampling, [seed for _, seed in asked]))
        return [ids if isinstance(ids, Failure) else next(made) for ids in prompts]

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Answer | Failure]:
        """One result for every prompt that is token ids already."""
        made = self.engine.generate(prompts, sampling, seeds) if prompts else []
        texts = decode_all(self.tokenizer, [[] if isinstance(one, Failure) else one.token_ids for one in made])
        with self._counting:
            self._tokens_in += sum(map(len, prompts))
            self._tokens_out += sum(len(one.token_ids) for one in made if not isinstance(one, Failure))
        return [
            one
            if isinstance(one, Failure)
            else Answer(text, one.finish_reason, prompt, one.token_ids, one.logprobs, len(prompt), len(one.token_ids))
            for prompt, one, text in zip(prompts, made, texts, strict=True)
        ]

    def encode(self, messages: list[Message]) -> list[int] | Failure:
        """The ids of a prompt, or why it can't be asked."""
        if not any(message["content"].strip() for message in messages):
            return Failure("empty_prompt", "no message has any text")
        ids = encode_prompt(self.tokenizer, messages)
        room = self.engine.max_model_len
        if len(ids) >= room:
            return Failure("too_long", f"a prompt of {len(ids)} tokens leaves no room in a context of {room}")
        return ids

    def close(self) -> None:
        self.engine.close()


Engine = Literal["vllm", "serve", "transformers"]


def open_backend(job: Job, server: Server | None, engine: Engine = "vllm", **options: Any) -> tuple[Backend, str]:
    """Who answers for a stage, and the name that goes into its rows.

    Args:
        server: answers if it is set; else the model in the stage's `model` port does, in a watched process.
        options: as for `open_model`.

    Raises:
        UserError: the recipe names both, or neither.
    """
    model = job.maybe("model")
    if (model is None) == (server is None):
        raise UserError(
            "who answers? Expected either a model among the inputs (`from: {model: ...}`) or a `server:`, "
            f"found {'neither' if model is None else 'both'}."
        )
    if server is not None:
        return open_server(job, server), server.model
    assert model is not None
    return open_model(job, model, engine, **options), model.id


def open_server(job: Job, server: Server) -> Backend:
    """A server as a backend, with the answers that it gave before."""
    answered = job.store.scratch("answers") / "answers.sqlite"
    tell = partial(told, job)
    if server.batch:
        from generators.backends.server.batch import BatchBackend

        return BatchBackend(server, answered, job.artifact, job.say, tell)
    from generators.backends.server.chat_completions import ServerBackend

    return ServerBackend(server, answered, job.artifact, tell)


def open_model(
    job: Job,
    model: Artifact,
    engine: Engine = "vllm",
    replicas: int = 1,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> Local:
    """A model of the store as a backend: in watched processes, or behind a `vllm serve` of its own.

    Args:
        model: a model, or an adapter, which is served unmerged on its base.
        replicas: engines that share the batches; on a machine with GPUs each gets its share of them.
        options: of the engine, as it calls them itself.
        more: of the engine, in our words (`dtype`, `max_model_len`); None is left to the engine.
    """  # fmt: skip
    from generators.backends.adapters import base_of

    given = {**{name: value for name, value in more.items() if value is not None}, **(options or {})}
    location = model.location
    if model.kind == "Adapter":
        given["adapter"], location = location, base_of(location, job.store)
    tokenizer = load_tokenizer(model.location)
    if engine == "serve":
        from generators.backends.vllm.server_process import ServedEngine

        return Local(ServedEngine(location, job.scratch, job.say, **given), tokenizer, width=4)
    from generators.backends.process.watched import WatchedEngine
    from generators.backends.replicas import Replicas, devices_of

    if engine == "vllm":
        given.setdefault("gpu_memory_utilization", 0.9)  # nobody trains beside it
    engines = [WatchedEngine(engine, location, job.say, devices=d, **given) for d in devices_of(replicas)]
    return Local(engines[0] if replicas == 1 else Replicas(engines), tokenizer, width=2 * replicas)


def told(job: Job, usage: Usage) -> None:
    """Tell whoever watches what was spent so far."""
    event = {"event": "tokens", "in": usage.tokens_in, "out": usage.tokens_out}
    job.emit({**event, "cost": round(usage.cost, 4)} if usage.cost else event)
