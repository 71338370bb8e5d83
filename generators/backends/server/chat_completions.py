"""Any OpenAI-compatible server as a backend, through the official client, one request at a time (`batch.py`: many)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server.answers_cache import AnswersCache
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
    """

    width = 4  # a partition that waits for its last answers doesn't hold up the next ones

    def __init__(
        self,
        server: ServerSettings,
        answers: Path,
        payer: str = "",
        usage: Callable[[Usage], None] = lambda usage: None,
    ) -> None:
        self.server = server
        self._delivery = Delivery(server, AnswersCache(answers, payer), _send, answer_of, usage)

    @property
    def usage(self) -> Usage:
        delivery = self._delivery
        return Usage(delivery.tokens_in, delivery.tokens_out, delivery.cost, delivery.retries)

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
        for i, result in zip(asked, self._delivery.deliver(requests, [seeds[i] for i in asked]), strict=True):
            results[i] = result
        return results

    def close(self) -> None:
        self._delivery.close()


EMPTY = Failure("empty_prompt", "no message has any text")


async def _send(client: Any, request: dict[str, Any]) -> Any:
    return await client.chat.completions.create(**request)


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


def answer_of(response: Any) -> Answer | Failure:
    """Read a response; anything that is not as the API documents it raises."""
    choice = response.choices[0]
    if choice.finish_reason == "content_filter":
        return Failure("filtered", "the server's content filter held the answer back")
    calls = called(choice.message)
    text = choice.message.content or ("" if calls else choice.message.content)
    if not isinstance(text, str):
        raise TypeError(f"`content` should be text, found {text!r}")
    logprobs = [float(entry.logprob) for entry in choice.logprobs.content or ()] if choice.logprobs else None
    usage = response.usage
    return Answer(
        text.strip(),
        "length" if choice.finish_reason == "length" else "stop",
        getattr(response, "prompt_token_ids", None),
        getattr(choice, "token_ids", None),
        logprobs,
        int(usage.prompt_tokens) if usage else 0,
        int(usage.completion_tokens) if usage else 0,
        thought=getattr(choice.message, "reasoning_content", None) or "",
        calls=calls,
    )


def called(message: Any) -> str:
    """The calls of tools in an answer, as JSON; empty if there are none."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in message.tool_calls or []
    ]
    return json.dumps(calls, ensure_ascii=False) if calls else ""
