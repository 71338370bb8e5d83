"""The provider's batch API (files and batches of the OpenAI protocol): cheaper, and answered within a day.

Requests go out as one file; what comes back is matched by the digest of each request. The id of a batch is noted before
it is waited for, and a batch that was made but not noted is found by its metadata: a killed run waits on, it does
not submit again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from engine.errors import StageFailed, UserError
from engine.store.digest import digest_json
from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.chat_completions import EMPTY, answer_of, request_of
from generators.backends.server.delivery import check_budget, refusal
from generators.backends.server.settings import ServerSettings, client_of
from generators.text.prompts import Message

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one input file, as the API documents them
LONGEST_POLL = 60.0  # seconds between two looks at a batch
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


class BatchBackend:
    """A `Backend` that hands its requests in as a batch and waits.

    Args:
        as for `ServerBackend`.
        say: told about batches, in one line each.
    """

    width = 1

    def __init__(
        self,
        server: ServerSettings,
        answers: Path,
        payer: str = "",
        say: Callable[[str], None] = lambda text: None,
        usage: Callable[[Usage], None] = lambda usage: None,
        poll_s: float = 1.0,
    ) -> None:
        self.server = server
        self._cache = AnswersCache(answers, payer)
        self._say, self._usage, self._poll_s = say, usage, poll_s
        self._client: Any = None
        self.retries = 0

    @property
    def usage(self) -> Usage:
        tokens_in, tokens_out = self._cache.spent()
        cost = (tokens_in * self.server.price_in + tokens_out * self.server.price_out) / 1e6
        return Usage(tokens_in, tokens_out, cost, self.retries)

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Answer | Failure]:
        """One result a conversation, in order.

        Raises:
            UserError: the server refuses the key, or knows no batches.
            StageFailed: the budget is spent.
        """
        requests: dict[str, dict[str, Any]] = {}
        digests = list[str | None]()
        for messages, seed in zip(conversations, seeds, strict=True):
            if not any(message["content"].strip() for message in messages):
                digests.append(None)
                continue
            request = request_of(self.server, messages, sampling, seed)
            digests.append(digest := digest_json(request))
            extra = request.pop("extra_body", {})
            requests[digest] = {**request, **extra}
        results: dict[str, Answer | Failure] = {}
        for digest in requests:
            if known := self._cache.get(digest):
                results[digest] = known
        problems: dict[str, str] = {}
        for attempt in range(self.server.attempts):
            missing = {digest: request for digest, request in requests.items() if digest not in results}
            if not missing:
                break
            for some in cut(missing):
                self._ask(some, attempt, results, problems)
            self.retries += sum(digest not in results for digest in missing)
        else:
            for digest in requests:
                reason = f"{self.server.attempts} batches, the last one: {problems.get(digest, 'no answer')}"
                results.setdefault(digest, Failure("server_failed", reason))
        return [EMPTY if digest is None else results[digest] for digest in digests]

    def forget(self, answers: Iterable[Answer]) -> None:
        self._cache.forget(answers)

    def close(self) -> None:
        self._usage(self.usage)
        if self._client:
            self._client.close()
        self._cache.close()

    def _ask(
        self,
        requests: dict[str, dict[str, Any]],
        attempt: int,
        results: dict[str, Answer | Failure],
        problems: dict[str, str],
    ) -> None:
        """One batch: put its answers into `results`, and what may pass into `problems`."""
        name = digest_json([attempt, *sorted(requests)])
        usage = self.usage
        check_budget(self.server, usage.tokens_in, usage.tokens_out)
        batch = self._wait(self._submitted(name, requests))
        if batch.status == "failed":
            self._cache.put_batch(name, None)
            reason = "; ".join(error.message or "" for error in (batch.errors and batch.errors.data) or [])
            raise StageFailed(f"the provider did not take batch {batch.id}: {reason or 'it gives no reason'}")
        came = dict[str, Answer | Failure]()
        for entry in self._lines(batch):
            digest = entry.get("custom_id")
            if digest not in requests:
                continue
            result = read(entry)
            if isinstance(result, str):
                problems[digest] = result
            else:
                came[digest] = result
        results |= self._cache.put_all(came, name, batch.id)
        self._usage(self.usage)

    def _submitted(self, name: str, requests: dict[str, dict[str, Any]]) -> Any:
        """The batch of these requests: the one that is under way, or a new one."""
        client = self._connect()
        try:
            if known := self._cache.batch(name):
                return client.batches.retrieve(known)
            for batch in client.batches.list(limit=100):  # made, but not noted
                ours = (batch.metadata or {}).get("flywheel") == name and batch.status not in ENDED[1:]
                if ours and not self._cache.has_read(batch.id):
                    self._cache.put_batch(name, batch.id)
                    return batch
            lines = (
                json.dumps({"custom_id": digest, "method": "POST", "url": ENDPOINT, "body": request}) + "\n"
                for digest, request in requests.items()
            )
            data = io.BytesIO("".join(lines).encode())
            file = client.files.create(file=("flywheel.jsonl", data), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"flywheel": name}
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"the server refuses the key in ${self.server.key}: {error}") from None
        except openai.NotFoundError as error:
            raise UserError(f"the server has no batch API, or `url` lacks its `/v1`: {error}") from None
        except openai.OpenAIError as error:
            raise StageFailed(f"the batch could not be handed in: {error}") from None
        self._cache.put_batch(name, batch.id)
        self._say(f"Batch {batch.id}: {len(requests):,} requests handed in.")
        return batch

    def _wait(self, batch: Any) -> Any:
        pause, silent = self._poll_s, 0
        while batch.status not in ENDED:
            time.sleep(pause)
            pause = min(LONGEST_POLL, pause * 1.5)
            try:
                batch, silent = self._connect().batches.retrieve(batch.id), 0
            except openai.OpenAIError as error:
                silent += 1
                if silent >= self.server.attempts:
                    raise StageFailed(
                        f"batch {batch.id} is under way, but the server does not say how it is: {error}. Run again to "
                        "go on waiting."
                    ) from None
        return batch

    def _lines(self, batch: Any) -> Iterator[dict[str, Any]]:
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            for line in self._connect().files.content(file).text.splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue  # its request is missing then, and asked again

    def _connect(self) -> Any:
        if not self._client:
            key, url = client_of(self.server)
            # The client's own retries: they honour Retry-After and draw a jitter.
            self._client = openai.OpenAI(
                api_key=key, base_url=url, max_retries=self.server.attempts, timeout=self.server.timeout_s
            )
        return self._client


def cut(requests: dict[str, dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """Requests in files' worths."""
    some, size = dict[str, dict[str, Any]](), 0
    for digest, request in requests.items():
        length = len(json.dumps(request)) + 200
        if some and (len(some) >= MOST_REQUESTS or size + length > MOST_BYTES):
            yield some
            some, size = dict[str, dict[str, Any]](), 0
        some[digest] = request
        size += length
    if some:
        yield some


def read(entry: dict[str, Any]) -> Answer | Failure | str:
    """One line of a batch's output: an answer, a failure, or (a text) what may pass when it is asked again."""
    response = entry.get("response") or {}
    code = int(response.get("status_code") or 0)
    if code == 200:
        try:
            return answer_of(ChatCompletion.model_validate(response["body"]))
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            return f"the answer is malformed: {type(error).__name__}: {error}"
    reason = f"{code or 'no answer'}: {json.dumps(entry.get('error') or response.get('body'))[:300]}"
    if 400 <= code < 500 and code not in (408, 409, 429):
        return Failure(refusal(reason), reason)
    return reason
