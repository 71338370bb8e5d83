"""A model behind an OpenAI-compatible server, as one side of a conversation: `http://127.0.0.1:8000/v1#MODEL`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai

from engine.errors import UserError
from engine.redaction import redacted
from generators.backends.server.settings import ServerSettings, client_of
from generators.text.prompts import Message

CHARACTERS = 24_000  # of a message, where nobody says how many tokens a model takes


@dataclass
class ServedTalker:
    """Its key is $OPENAI_API_KEY, where it wants one."""

    name: str
    messages: list[Message] = field(default_factory=lambda: list[Message]())

    def __post_init__(self) -> None:
        url, _, model = self.name.partition("#")
        if not model:
            raise UserError(f"the server `{redacted(url)}` is asked for no model; expected `URL#MODEL`.")
        if redacted(url) != url:
            raise UserError(
                f"found a secret in {redacted(url)}; expected the bare URL, and the key in $OPENAI_API_KEY."
            )
        key, base = client_of(ServerSettings.model_validate({"model": model, "url": url}))
        self._model, self._client = model, openai.OpenAI(api_key=key, base_url=base, timeout=300, max_retries=2)

    def answer(
        self,
        question: str,
        temperature: float,
        max_tokens: int,
        show: Callable[[str], Any] = lambda piece: None,
        shown: str | None = None,
    ) -> str:
        """As `Conversant.answer`.

        Raises:
            UserError: the server does not answer.
        """
        asked: list[Any] = [*self.messages, {"role": "user", "content": shown or question}]
        pieces: list[str] = []
        try:
            stream: Any = self._client.chat.completions.create(
                model=self._model, messages=asked, temperature=temperature, max_tokens=max_tokens, stream=True
            )
            for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    pieces.append(str(piece))
                    show(pieces[-1])
        except openai.OpenAIError as error:
            raise UserError(f"the server of {self.name} does not answer: {redacted(str(error))[:300]}") from None
        text = "".join(pieces)
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return text

    def fits(self, content: str, max_tokens: int) -> bool:
        return len(content) <= CHARACTERS
