"""Who answers: one small interface, whatever is behind it.

    Backend         conversations in, answers out      what stages use
      Local         a TokenEngine and its tokenizer    weights on this machine
      ServerBackend, BatchBackend                      a server that tokenises by itself
    TokenEngine     token ids in, token ids out        vLLM, transformers; in this process or in a watched one

`open.py` opens all of them.

A request that can't be answered comes back as a `Failure` in its place: never an exception for the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from generators.text.prompts import Message

EngineName = Literal["vllm", "serve", "transformers"]
# The field `top_p` of every stage that samples.
NucleusShare = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Nucleus sampling: the likeliest tokens with this much probability together; 1 keeps all.",
    ),
]


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
        tools: the tools that the model may call, as JSON; it is shown them where its chat template has a place for them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: bool = True
    json_schema: str | None = None
    tools: str | None = None


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
    """Why a request has no answer: a short code (`too_long`) and the particulars; what it took all the same, in tokens."""

    reason: str
    detail: str
    tokens_in: int = 0
    tokens_out: int = 0


# How an answer ends that a server would not give, or not all of: the model refused, or a filter held it back.
REFUSED = ("refusal", "content_filter")


@dataclass(frozen=True)
class Answer:
    """An answer with its text. Both lists of ids are None where a server keeps them to itself.

    Attributes:
        finish_reason: as of a `Completion`, or one of `REFUSED`.
        thought: what was written before the answer; `text` is without it.
        calls: of tools, as JSON, where a server has read them out of the answer.
        request: what the answer is kept under, where answers are kept.
        model: the name that a server answers under, where it is another than was asked for.
    """

    text: str
    finish_reason: str
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    tokens_in: int
    tokens_out: int
    thought: str = ""
    calls: str = ""
    request: str | None = None
    model: str = ""

    @property
    def refused(self) -> Failure | None:
        """The refusal as a failure, for those who can't use one; None if this is none."""
        return Failure(self.finish_reason, self.text) if self.finish_reason in REFUSED else None


# Told of each request as it was sent (the body, or the text that became token ids) and of what came back: in a preview.
Listener = Callable[[dict[str, Any], Answer | Failure], None]


@dataclass(frozen=True)
class Usage:
    """What a backend has spent for one stage.

    Attributes:
        cost: in the unit of the prices; 0 where nothing is paid.
        answered_as: the names that a server answered under, where they are others than was asked for.
    """

    tokens_in: int
    tokens_out: int
    cost: float = 0.0
    retries: int = 0
    answered_as: str = ""


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

    def forget(self, answers: Iterable[Answer]) -> None:
        """Keep these no longer, where answers are kept: they were no use, and the next run asks again."""
        ...

    def close(self) -> None: ...
