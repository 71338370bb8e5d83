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

TOKENS = 8192  # that a model takes, where nobody says
CHARACTERS_A_TOKEN = 3


@dataclass
class ServedTalker:
    """
    Attributes:
        name: what to call it.
        url, model: of the server, and the model's name there.
        key: what the server wants; $OPENAI_API_KEY if None.
        tokens: that a prompt and its answer may have together.
    """

    name: str
    url: str
    model: str
    key: str | None = None
    tokens: int = TOKENS
    messages: list[Message] = field(default_factory=lambda: list[Message]())

    def __post_init__(self) -> None:
        key, base = client_of(ServerSettings.model_validate({"model": self.model, "url": self.url}))
        self._client = openai.OpenAI(api_key=self.key or key, base_url=base, timeout=300, max_retries=2)

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
                model=self.model, messages=asked, temperature=temperature, max_tokens=max_tokens, stream=True
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
        return len(content) / CHARACTERS_A_TOKEN + max_tokens <= self.tokens


def talker_at(name: str) -> ServedTalker:
    """The model that `URL#MODEL` names.

    Raises:
        UserError: it names none, or has a secret in it.
    """
    url, _, model = name.partition("#")
    if not model:
        raise UserError(f"the server {redacted(url)} is asked for no model; expected `URL#MODEL`.")
    if redacted(url) != url:
        raise UserError(f"found a secret in {redacted(url)}; expected the bare URL, and the key in $OPENAI_API_KEY.")
    return ServedTalker(name, url, model)
