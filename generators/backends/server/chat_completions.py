"""Any OpenAI-compatible server as a backend, through the official client, one request at a time (`batch.py`: many)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from generators.backends.protocol import Answer, Failure, Listener, Sampling, Usage
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.checked_answer import answer_of, parsed
from generators.backends.server.delivery import Delivery
from generators.backends.server.settings import ServerSettings
from generators.text.prompts import Message
from generators.text.tools import sent, tools_of


class ServerBackend:
    """A `Backend` that asks a server.

    Args:
        answers: the file of the answers cache.
        payer: who asks, for what it has spent.
        usage: told, now and then, what was spent.
        say: told what is odd about the server, in one line each.
        listener: told of each request.
    """

    width = 4  # a partition that waits for its last answers doesn't hold up the next ones

    def __init__(
        self,
        server: ServerSettings,
        answers: Path,
        payer: str = "",
        usage: Callable[[Usage], None] = lambda usage: None,
        say: Callable[[str], None] = lambda text: None,
        listener: Listener | None = None,
    ) -> None:
        self.server, self._listener = server, listener
        self._delivery = Delivery(server, AnswersCache(answers, payer, say), _send, answer_of, usage, say=say)

    @property
    def usage(self) -> Usage:
        return self._delivery.usage

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]:
        """One result a conversation, in order.

        Raises:
            UserError: the server refuses the key, or has no such model.
            StageFailed: the budget is spent.
        """
        results: list[Answer | Failure] = [EMPTY] * len(conversations)
        asked = [i for i, messages in enumerate(conversations) if any(m["content"].strip() for m in messages)]
        requests = [request_of(self.server, conversations[i], sampling, seeds[i]) for i in asked]
        delivered = self._delivery.deliver(requests, [seeds[i] for i in asked])
        for i, request, result in zip(asked, requests, delivered, strict=True):
            results[i] = result
            if self._listener:
                self._listener(request, result)
        return results

    def forget(self, answers: Iterable[Answer]) -> None:
        self._delivery.cache.forget(answers)

    def close(self) -> None:
        self._delivery.close()


EMPTY = Failure("empty_prompt", "no message has any text")


async def _send(client: Any, request: dict[str, Any]) -> Any:
    return parsed((await client.chat.completions.with_raw_response.create(**request)).content)


def request_of(server: ServerSettings, messages: list[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
    """The keyword arguments of `chat.completions.create`."""
    request: dict[str, Any] = {
        "model": server.model,
        "messages": [sent(message) for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
    }
    if sampling.logprobs:
        request["logprobs"] = True
    if sampling.tools:
        request["tools"] = tools_of(sampling.tools)
    if sampling.json_schema:
        schema = {"name": "answer", "schema": json.loads(sampling.json_schema)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    if server.dialect == "vllm":
        request["extra_body"] = {
            "top_k": sampling.top_k or -1,
            "min_tokens": sampling.min_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "return_token_ids": True,
        }
    return request
