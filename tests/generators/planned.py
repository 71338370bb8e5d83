"""A backend that says what a function says: what a method makes of it can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from generators.backends.protocol import Answer, Failure, Sampling


class Planned:
    """`reply(text of the last message, seed)` gives the answer, its text alone, a Failure, or an exception to raise.

    Attributes:
        asked: everything that was asked, in order.
        forgotten: texts of the answers that were no use.
    """

    width = 1

    def __init__(self, reply: Callable[[str, int], Any]) -> None:
        self.reply = reply
        self.asked = list[str]()
        self.batches = list[int]()
        self.forgotten = list[str]()

    def complete(
        self, conversations: Sequence[list[dict[str, str]]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]:
        self.batches.append(len(conversations))
        answers = list[Answer | Failure]()
        for messages, seed in zip(conversations, seeds, strict=True):
            self.asked.append(messages[-1]["content"])
            said = self.reply(messages[-1]["content"], seed)
            if isinstance(said, Exception):
                raise said
            answers.append(said if isinstance(said, Failure | Answer) else Answer(said, "stop", None, None, None, 1, 1))
        return answers

    def forget(self, answers: Iterable[Answer]) -> None:
        self.forgotten += [answer.text for answer in answers]

    def close(self) -> None: ...
