"""The provider's batch API (files and batches of the OpenAI protocol): cheaper, and answered within a day.

Requests go out as one file; what comes back is matched by the digest of each request, and looked at as other answers are. The id of a batch is noted before
it is waited for, and a batch that was made but not noted is found by its metadata: a killed run waits on, it does
not submit again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, cast

import openai

from engine.errors import StageFailed, UserError
from engine.store.digest import digest_json
from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server import bounded_http
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.chat_completions import EMPTY, request_of
from generators.backends.server.checked_answer import BadAnswer, Notice, answer_of, in_words, parsed
from generators.backends.server.delivery import LARGEST_TOKEN, check_budget, lasting, named, refusal
from generators.backends.server.settings import ServerSettings, client_of
from generators.text.prompts import Message

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one input file, as the API documents them
LONGEST_POLL = 60.0  # seconds between two looks at a batch
WINDOW = 25 * 3600.0  # seconds that a batch is waited for: the provider promises a day
MOST_BATCHES = 1000  # that are looked through for one that was made and not noted
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
# What the client raises, and what goes wrong where an answer is none.
FAULTS = (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


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
        self._cache = AnswersCache(answers, payer, say)
        self._say, self._usage, self._poll_s = say, usage, poll_s
        self._told, self._names = set[str](), set[str]()
        self._client: Any = None
        self.retries = 0

    @property
    def usage(self) -> Usage:
        tokens_in, tokens_out = self._cache.spent()
        cost = (tokens_in * self.server.price_in + tokens_out * self.server.price_out) / 1e6
        return Usage(tokens_in, tokens_out, cost, self.retries, named(self._names))

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
                self._names.add(known.model)
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
            told = getattr(getattr(batch, "errors", None), "data", None)
            reason = "; ".join(str(getattr(error, "message", "")) for error in (told if isinstance(told, list) else []))
            raise StageFailed(f"the provider did not take batch {batch.id}: {in_words(reason) or 'it gives no reason'}")
        came, paid = dict[str, Answer | Failure](), dict[str, Failure]()
        stray, twice = 0, set[str]()
        for entry in self._lines(batch, requests):
            digest = entry.get("custom_id")
            if not isinstance(digest, str) or digest not in requests:
                stray += 1
                continue
            try:
                result = read(entry, requests[digest], self._notice)
            except BadAnswer as fault:
                paid[f"{digest} {len(paid)}"] = Failure("", "", *fault.spent)
                problems[digest] = f"the answer is malformed: {fault}"
                continue
            if isinstance(result, str):
                problems[digest] = result
            elif came.setdefault(digest, result) != result:
                twice.add(digest)
                paid[f"{digest} {len(paid)}"] = Failure("", "", result.tokens_in, result.tokens_out)
        for digest in twice:  # which of them is meant is not known
            answer, problems[digest] = came.pop(digest), "the batch has two answers to it"
            paid[f"{digest} {len(paid)}"] = Failure("", "", answer.tokens_in, answer.tokens_out)
        if stray:
            self._say(
                f"Batch {in_words(batch.id)}: {stray:,} lines are no answer to what was asked; they are left out."
            )
        put = self._cache.put_all({**came, **paid}, name, batch.id)
        results |= {digest: put[digest] for digest in came}
        self._names |= {result.model for result in came.values() if isinstance(result, Answer)}
        self._usage(self.usage)

    def _notice(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            self._say(text)

    def _submitted(self, name: str, requests: dict[str, dict[str, Any]]) -> Any:
        """The batch of these requests: the one that is under way, or a new one."""
        client = self._connect()
        try:
            if known := self._cache.batch(name):
                return checked_batch(client.batches.retrieve(known))
            for batch in islice(client.batches.list(limit=100), MOST_BATCHES):  # made, but not noted
                labels = getattr(batch, "metadata", None)
                ours = isinstance(labels, dict) and labels.get("flywheel") == name and batch.status not in ENDED[1:]
                if ours and not self._cache.has_read(checked_batch(batch).id):
                    self._cache.put_batch(name, batch.id)
                    return batch
            lines = (
                json.dumps({"custom_id": digest, "method": "POST", "url": ENDPOINT, "body": request}) + "\n"
                for digest, request in requests.items()
            )
            data = io.BytesIO("".join(lines).encode())
            file = client.files.create(file=("flywheel.jsonl", data), purpose="batch")
            made = client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"flywheel": name}
            )
            batch = checked_batch(made)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"the server refuses the key in ${self.server.key}: {in_words(error)}") from None
        except openai.NotFoundError as error:
            raise UserError(f"the server has no batch API, or `url` lacks its `/v1`: {in_words(error)}") from None
        except FAULTS as error:
            raise StageFailed(f"the batch could not be handed in: {in_words(error)}") from None
        self._cache.put_batch(name, batch.id)
        self._say(f"Batch {batch.id}: {len(requests):,} requests handed in.")
        return batch

    def _wait(self, batch: Any) -> Any:
        pause, silent, began = self._poll_s, 0, time.monotonic()
        while batch.status not in ENDED:
            if time.monotonic() - began > WINDOW:
                raise StageFailed(
                    f"batch {batch.id} is `{in_words(batch.status)}` after {lasting(WINDOW)}, and the provider promised a day. "
                    "Run again to go on waiting, or cancel it at the provider: what was answered is taken then."
                )
            time.sleep(pause)
            pause = min(LONGEST_POLL, pause * 1.5)
            try:
                batch, silent = checked_batch(self._connect().batches.retrieve(batch.id)), 0
            except FAULTS as error:
                silent += 1
                if silent >= self.server.attempts:
                    raise StageFailed(
                        f"batch {batch.id} is under way, but the server does not say how it is: {in_words(error)}. Run "
                        "again to go on waiting."
                    ) from None
        return batch

    def _lines(self, batch: Any, requests: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The objects of a batch's output; a line that is none is left out: its request is missing then, and asked again.

        Raises:
            StageFailed: the server does not give the output.
        """
        tokens = sum(int(request.get("max_tokens") or 0) for request in requests.values())
        for file in (getattr(batch, "output_file_id", None), getattr(batch, "error_file_id", None)):
            if not isinstance(file, str) or not file:
                continue
            bounded_http.expected.set(bounded_http.PLAIN * (1 + len(requests) // 100) + LARGEST_TOKEN * tokens)
            try:
                content = self._connect().files.content(file).content
            except FAULTS as error:
                raise StageFailed(
                    f"batch {batch.id} is done, but its output can't be read: {in_words(error)}. Run again to try once more."
                ) from None
            finally:
                bounded_http.expected.set(bounded_http.PLAIN)
            for line in content.split(b"\n"):  # no other character ends a line of JSON
                if line.strip():
                    with suppress(BadAnswer):
                        yield parsed(line)

    def _connect(self) -> Any:
        if not self._client:
            key, url = client_of(self.server)
            # The client's own retries: they honour Retry-After and draw a jitter.
            self._client = openai.OpenAI(
                api_key=key, base_url=url, max_retries=self.server.attempts, timeout=self.server.timeout_s,
                default_headers=bounded_http.HEADERS,
                http_client=openai.DefaultHttpxClient(event_hooks=bounded_http.WAITING),
            )  # fmt: skip
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


def checked_batch(batch: Any) -> Any:
    """What a server says of a batch, if it is that.

    Raises:
        ValueError: it has no id, or no status.
    """
    identity, status = getattr(batch, "id", None), getattr(batch, "status", None)
    if not isinstance(identity, str) or not identity or not isinstance(status, str):
        raise ValueError(f"expected a batch with `id` and `status`, found {in_words(repr(batch))}")
    return batch


def read(
    entry: dict[str, Any], request: dict[str, Any], notice: Notice = lambda about, text: None
) -> Answer | Failure | str:
    """One line of a batch's output: an answer, a failure, or (a text) what may pass when it is asked again.

    Raises:
        BadAnswer: the answer is not as the API documents it.
    """
    response: Any = entry.get("response")
    told = cast(dict[str, Any], response) if isinstance(response, dict) else {}
    status = told.get("status_code")
    code = status if type(status) is int else 0
    if code == 200:
        if not isinstance(told.get("body"), dict):
            raise BadAnswer("it has no body")
        return answer_of(told["body"], request, notice)
    reason = f"{code or 'no answer'}: {in_words(json.dumps(entry.get('error') or told.get('body')))}"
    if 400 <= code < 500 and code not in (408, 409, 429):
        return Failure(refusal(reason), reason)
    return reason
