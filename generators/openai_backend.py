"""Any OpenAI-compatible server as a backend, through the official client.

Every request ends in exactly one answer or one `Failure`. What may pass (429, 5xx, resets, stalls, malformed bodies) is
tried again, after what `Retry-After` says or an exponential wait with jitter; what can't (a wrong key, an unknown
model) ends the stage with a message. Answers are written down as they come, under a digest of the request: a run that
was killed does not pay for them twice.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine import seeds
from engine.errors import StageFailed, UserError
from engine.store import digest_json
from generators.backend import Answer, Failure, Sampling
from generators.pacing import Pace
from generators.prompting import Message

LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more


class Server(BaseModel):
    """Where to ask, and how much. Only `model` and `dialect` are part of a stage's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="The model's name on the server.")
    dialect: Literal["openai", "vllm"] = Field("openai", description="vllm: also sends top_k and min_tokens, gets ids.")
    url: str | None = Field(None, description="Base URL, e.g. http://127.0.0.1:8000/v1; $OPENAI_BASE_URL if left out.")
    key: str = Field("OPENAI_API_KEY", description="The environment variable that holds the key.")
    concurrency: int = Field(256, ge=1, description="The most requests under way; how many is found out by asking.")
    timeout_s: float = Field(300, gt=0, description="Longest wait for one answer.")
    attempts: int = Field(10, ge=1, description="Times one request is tried.")
    budget_tokens: int | None = Field(None, ge=1, description="Stop when this many tokens are spent, in and out.")
    price_in: float = Field(0, ge=0, description="Price of a million tokens in.")
    price_out: float = Field(0, ge=0, description="Price of a million tokens out.")
    budget: float | None = Field(
        None,
        gt=0,
        description="Stop when this much is spent, in the unit of the prices. What is under way then is still paid.",
    )

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "dialect": self.dialect}


class ServerBackend:
    """A `Backend` that asks a server.

    Args:
        answered: a file of answers by request digest; read at the start, added to as answers come.
        say: told, in one line each, what the person watching should know.
    """

    def __init__(self, server: Server, answered: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.server = server
        self._say = say
        self._answers = _read(answered)
        self._file = answered.open("a", encoding="utf-8")
        self.tokens_in = sum(answer.tokens_in for answer in self._answers.values())
        self.tokens_out = sum(answer.tokens_out for answer in self._answers.values())
        self.retries = 0
        self._loop = asyncio.new_event_loop()
        self._client: Any = None
        self._pace: Pace | None = None
        self._times: list[float] = []
        self._ended: Exception | None = None

    @property
    def cost(self) -> float:
        """What was spent, in the unit of the prices."""
        return (self.tokens_in * self.server.price_in + self.tokens_out * self.server.price_out) / 1e6

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]:
        """One result a conversation, in order.

        Raises:
            UserError: the server refuses the key, or has no such model.
            StageFailed: the budget is spent.
        """

        self._ended = None
        tasks = [self._one(messages, sampling, seed) for messages, seed in zip(conversations, seeds, strict=True)]
        results = self._loop.run_until_complete(_gather(tasks))
        # What is under way when one of them ends it all is paid for: it is waited for and kept, not cancelled.
        for error in [self._ended, *results]:
            if isinstance(error, BaseException):
                raise error
        return results

    def close(self) -> None:
        if self._client:
            self._loop.run_until_complete(self._client.close())
        self._loop.close()
        self._file.close()

    async def _one(self, messages: list[Message], sampling: Sampling, seed: int) -> Answer | Failure:
        if not any(message["content"].strip() for message in messages):
            return Failure("empty_prompt", "no message has any text")
        request = _request(self.server, messages, sampling, seed)
        digest = digest_json(request)
        if digest in self._answers:
            return self._answers[digest]
        self._connect()
        assert self._pace is not None
        problem = ""
        for attempt in range(self.server.attempts):
            async with self._pace:
                try:
                    self._check_budget()
                    result, wait = await self._try(request, attempt, seed)
                except Exception as error:
                    self._ended = self._ended or error
                    raise
            if isinstance(result, Answer):
                self._answers[digest] = result
                self._file.write(json.dumps({"request": digest, "answer": asdict(result)}) + "\n")
                self._file.flush()
                self.tokens_in += result.tokens_in
                self.tokens_out += result.tokens_out
                return result
            if wait is None:
                return result
            problem = result.detail
            self.retries += 1
            if attempt + 1 < self.server.attempts:
                await asyncio.sleep(wait)
        return Failure("server_failed", f"{self.server.attempts} attempts, the last one: {problem}")

    async def _try(self, request: dict[str, Any], attempt: int, seed: int) -> tuple[Answer | Failure, float | None]:
        """One attempt: an answer, or what went wrong and how long to wait (None: don't try again)."""
        import openai

        assert self._pace is not None
        # Full jitter: between nothing and twice the wait of the attempt before (Brooker, 2015).
        wait = min(LONGEST_WAIT, 0.25 * 2**attempt) * (seeds.derive("jitter", seed, attempt) / 2**63)
        started = self._loop.time()
        try:
            answer = _answer(await self._patiently(self._client.chat.completions.create(**request), attempt))
        except (openai.APITimeoutError, TimeoutError):
            return Failure("", "no answer in time"), wait
        except openai.APIConnectionError as error:
            return Failure("", f"the connection broke: {error.__cause__ or error}"), wait
        except openai.APIStatusError as error:
            return self._refused(error, wait)
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Failure("", f"the answer is malformed: {type(error).__name__}: {error}"), wait
        self._pace.answered()
        self._times.append(self._loop.time() - started)
        return answer, None

    def _refused(self, error: Any, wait: float) -> tuple[Failure, float | None]:
        assert self._pace is not None
        code, told = int(error.status_code), str(error)[:300]
        if code in (401, 403):
            raise UserError(f"the server refuses the key in ${self.server.key} ({code}): {told}")
        if code == 404:
            raise UserError(f"the server has no model `{self.server.model}`, or `url` lacks its `/v1` (404): {told}")
        if code == 429 or code == 503:
            asked = _retry_after(error.response.headers)
            wait = wait if asked is None else asked
            self._pace.refused(wait)
            return Failure("", f"{code}: {told}"), wait
        if code in (408, 409) or code >= 500:
            return Failure("", f"{code}: {told}"), wait
        reason = "too_long" if "context" in told and "length" in told else "refused"
        return Failure(reason, f"{code}: {told}"), None

    async def _patiently(self, request: Any, attempt: int) -> Any:
        """Wait for a request, but not for ever.

        The client's own timeout starts anew with every byte; a server that trickles is stalled all the same. A stall is
        three times what nineteen in twenty answers take, once that is known, and twice as long at every attempt, so
        that an answer that is only long gets its time.

        Raises:
            TimeoutError: it stalled.
        """
        task, started = asyncio.ensure_future(request), self._loop.time()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.5)
                recent = sorted(self._times[-200:])
                usual = recent[int(0.95 * len(recent))] if len(recent) >= 50 else self.server.timeout_s
                patience = min(self.server.timeout_s, max(1.0, 3 * usual * 2**attempt))
                if not task.done() and self._loop.time() - started > patience:
                    raise TimeoutError
            return task.result()
        finally:
            task.cancel()

    def _check_budget(self) -> None:
        if self._ended:
            raise self._ended
        spent = self.tokens_in + self.tokens_out
        over_tokens = self.server.budget_tokens is not None and spent >= self.server.budget_tokens
        if over_tokens or (self.server.budget is not None and self.cost >= self.server.budget):
            raise StageFailed(
                f"the budget is spent: {spent} tokens, {self.cost:.2f} in money. All {len(self._answers)} answers are "
                "kept; raise `budget_tokens` or `budget` and run again to go on."
            )

    def _connect(self) -> None:
        if self._client:
            return
        import openai

        key, url = os.environ.get(self.server.key), self.server.url or os.environ.get("OPENAI_BASE_URL")
        if not key and not url:
            raise UserError(f"no key: set ${self.server.key}, or `url` to a server that needs none.")
        # One retry loop, ours: it knows the pace and the budget.
        self._client = openai.AsyncOpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=None)
        self._pace = Pace(self.server.concurrency)


async def _gather(tasks: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def _request(server: Server, messages: list[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": server.model,
        "messages": messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
    }
    if sampling.logprobs:
        request["logprobs"] = True
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


def _answer(response: Any) -> Answer:
    """Read a response; anything that is not as the API documents it raises."""
    choice = response.choices[0]
    text = choice.message.content
    if not isinstance(text, str):
        raise TypeError(f"`content` should be text, found {text!r}")
    logprobs = [float(entry.logprob) for entry in choice.logprobs.content] if choice.logprobs else None
    usage = response.usage
    return Answer(
        text.strip(),
        "length" if choice.finish_reason == "length" else "stop",
        getattr(response, "prompt_token_ids", None),
        getattr(choice, "token_ids", None),
        logprobs,
        int(usage.prompt_tokens) if usage else 0,
        int(usage.completion_tokens) if usage else 0,
    )


def _retry_after(headers: Any) -> float | None:
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


def _read(file: Path) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        answers[entry["request"]] = Answer(**entry["answer"])
    return answers
