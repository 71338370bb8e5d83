"""Weights on this machine as a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from generators.backends.protocol import Answer, Failure, Listener, Sampling, TokenEngine, Usage
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import Message, decode_all


class Local:
    """A token engine with its tokenizer: tokenises every conversation once, and nothing that was sampled.

    Args:
        usage: told after each batch what was spent.
        before: what was spent by a run that was killed.
        listener: told of each request: `prompt` is the text of its token ids, control tokens and all.
    """

    def __init__(
        self,
        engine: TokenEngine,
        tokenizer: Any,
        width: int = 2,
        usage: Callable[[Usage], None] = lambda usage: None,
        before: Usage | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.width = width  # one batch in the engine, another that is tokenised or written
        self._usage, self._listener = usage, listener
        self._tokens_in, self._tokens_out = (before.tokens_in, before.tokens_out) if before else (0, 0)
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
                encoded[id(messages)] = self.encode(messages, sampling.tools)
        prompts = [encoded[id(messages)] for messages in conversations]
        asked = [(ids, seed) for ids, seed in zip(prompts, seeds, strict=True) if not isinstance(ids, Failure)]
        made = iter(self.sample([ids for ids, _ in asked], sampling, [seed for _, seed in asked]))
        return [ids if isinstance(ids, Failure) else next(made) for ids in prompts]

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Answer | Failure]:
        """One result for every prompt that is token ids already."""
        stops = {*sampling.stop_token_ids, *self.template.stop_ids(tools=bool(sampling.tools))}
        sampling = replace(sampling, stop_token_ids=tuple(sorted(stops)))
        made = self.engine.generate(prompts, sampling, seeds) if prompts else []
        texts = decode_all(self.tokenizer, [[] if isinstance(one, Failure) else one.token_ids for one in made])
        with self._counting:
            self._tokens_in += sum(map(len, prompts))
            self._tokens_out += sum(len(one.token_ids) for one in made if not isinstance(one, Failure))
            self._usage(self.usage)
        answers: list[Answer | Failure] = []
        for prompt, one, text in zip(prompts, made, texts, strict=True):
            if isinstance(one, Failure):
                answers.append(one)
                continue
            ids = one.token_ids
            thought, said = self.template.apart(ids, text)
            answers.append(Answer(said, one.finish_reason, prompt, ids, one.logprobs, len(prompt), len(ids), thought))
        if self._listener:
            for prompt, answer in zip(prompts, answers, strict=True):
                self._listener({"prompt": self.tokenizer.decode(prompt, skip_special_tokens=False)}, answer)
        return answers

    def encode(self, messages: list[Message], tools: str | None = None) -> list[int] | Failure:
        """The ids of a prompt, or why it can't be asked."""
        if not any(message["content"].strip() for message in messages):
            return Failure("empty_prompt", "no message has any text")
        try:
            ids = self.template.prompt(messages, tools)
        except Unusable as fault:
            return Failure(fault.reason, fault.detail)
        room = self.engine.max_model_len
        if len(ids) >= room:
            return Failure("too_long", f"a prompt of {len(ids)} tokens leaves no room in a context of {room}")
        return ids

    def forget(self, answers: Iterable[Answer]) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        self.engine.close()
