"""Bodies that a server of models answers with."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def seeds() -> list[bytes]:
    choice = {
        "index": 0, "finish_reason": "stop", "token_ids": [1, 2], "message": {"role": "assistant", "content": "a", "tool_calls": []},
        "logprobs": {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
    }  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return [json.dumps(body).encode(), json.dumps({"error": {"message": "no", "code": 400}}).encode()]


def attempt(data: bytes, folder: Path) -> None:
    from generators.backends.server.checked_answer import BadAnswer, answer_of, parsed

    request = {"model": "m", "messages": [{"role": "user", "content": "q"}], "max_tokens": 10, "logprobs": True}
    with contextlib.suppress(BadAnswer):
        answer_of(parsed(data), request)
