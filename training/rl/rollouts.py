"""Questions and sampled answers, and which questions an iteration asks.

That depends on its number alone, so that a continued run asks what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import UserError
from engine.seeds import shuffled
from engine.stage.job import Job
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import Message, load_tokenizer, prompt_of
from training.models.answers import EncodedAnswer
from training.models.splits import check_split
from training.preference.pairs import set_aside


@dataclass(frozen=True)
class Question:
    """A prompt as rows have it and as the model reads it.

    Attributes:
        tools: JSON text of the tools that the model may call.
    """

    id: str
    messages: list[Message]
    reference: str | None
    token_ids: list[int]
    tools: str | None = None

    @property
    def said(self) -> str:
        """The last thing the user said."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Rollout:
    """A sampled answer. Where `finish_reason` is "stop", its last token is the one that ended it.

    Attributes:
        logprobs: one a token, as the sampler had them; none where nobody kept them.
    """

    question: Question
    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[float] = field(default_factory=lambda: [])

    @property
    def ended(self) -> bool:
        return self.finish_reason == "stop"

    @property
    def answer(self) -> EncodedAnswer:
        return EncodedAnswer(self.question.token_ids, self.token_ids)


def load_questions(job: Job, tokenizer: Any, port: str = "prompts", rejected_as: str = "") -> list[Question]:
    """The prompts of all artifacts of a port, in order, as token ids. Those that the model, or the reward model that is to read
    the answers, can't be shown are rejected rows.

    Args:
        rejected_as: the name for those; the port's if empty.

    Raises:
        UserError: there is none.
    """
    template, questions, rejected = ChatTemplate(tokenizer), list[Question](), list[dict[str, Any]]()
    reward = job.maybe("reward")
    readers = [ChatTemplate(load_tokenizer(reward.location))] if reward else []
    for artifact in job.all(port):
        for row in artifact.to_table().to_pylist():
            messages, reference = prompt_of(row)
            tools = row.get("tools")
            try:
                if port == "prompts":  # not those that it is measured by
                    check_split(row)
                if not messages:
                    raise Unusable("empty_prompt", "there is nothing to answer")
                for reader in readers:
                    reader.prompt(messages, tools)
                questions.append(Question(row["id"], messages, reference, template.prompt(messages, tools), tools))
            except Unusable as fault:
                rejected.append({**row, "reason": fault.reason, "detail": fault.detail, "failed": False})
    set_aside(job, rejected_as or port, rejected)
    if rejected:
        first = f"The first: {rejected[0]['detail']}."
        job.say(f"{len(rejected)} of {len(rejected) + len(questions)} prompts can't be shown to the model. {first}")
    if not questions:
        raise UserError(
            "there are no prompts to sample answers to."
            + (f" All {len(rejected)} were set aside; the first: {rejected[0]['detail']}." if rejected else "")
        )
    return questions


def check_room(questions: Sequence[Question], max_tokens: int, config: Any) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        UserError: prompt and answer together are longer than the model's context.
    """
    room = getattr(config, "max_position_embeddings", None)
    for question in questions:
        if room is not None and len(question.token_ids) + max_tokens > room:
            raise UserError(
                f"prompt {question.id} has {len(question.token_ids)} tokens; with `max_tokens` {max_tokens} that is more "
                f"than the model's context of {room}. Leave out longer prompts or lower `max_tokens`."
            )


def draw(prompts: int, count: int, iteration: int, seed: int) -> list[int]:
    """The prompts of an iteration: the next `count` of an endless row of shuffled passes over all prompts."""
    first = iteration * count
    passes = {
        p: shuffled(range(prompts), seed, "prompts", p)
        for p in range(first // prompts, (first + count - 1) // prompts + 1)
    }
    return [passes[i // prompts][i % prompts] for i in range(first, first + count)]
