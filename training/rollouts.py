"""Prompts to be answered, and answers that a model gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError
from engine.job import Job
from training.answers import Answer, Message


@dataclass(frozen=True)
class Question:
    """A prompt as rows have it and as the model reads it."""

    id: str
    messages: list[Message]
    reference: str | None
    token_ids: list[int]

    @property
    def said(self) -> str:
        """The last thing the user said."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Rollout:
    """A sampled answer. Where `finish_reason` is "stop", its last token is the one that ended it."""

    question: Question
    token_ids: list[int]
    text: str
    finish_reason: str

    @property
    def ended(self) -> bool:
        return self.finish_reason == "stop"

    @property
    def answer(self) -> Answer:
        return Answer(self.question.token_ids, self.token_ids)


def load_questions(job: Job, tokenizer: Any) -> list[Question]:
    """The prompts of all artifacts of the port `prompts`, in order, as token ids.

    Raises:
        UserError: there is none, or one is empty.
    """
    from generators.prompting import encode_prompt, prompt_of

    questions: list[Question] = []
    for artifact in job.all("prompts"):
        for row in artifact.to_table().to_pylist():
            messages, reference = prompt_of(row)
            if not messages:
                raise UserError(f"prompt {row['id']} is empty: there is nothing to answer.")
            questions.append(Question(row["id"], messages, reference, encode_prompt(tokenizer, messages)))
    if not questions:
        raise UserError("there are no prompts to sample answers to.")
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
