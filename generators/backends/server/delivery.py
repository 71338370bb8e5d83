"""Requests to a server: each ends in exactly one answer or one `Failure`, whatever the server does.

What may pass (429, 5xx, resets, stalls, malformed bodies) is tried again, after what `Retry-After` says (ten minutes at most) or an
exponential wait with jitter; what can't (a wrong key, an unknown model, a server that sends on to another) ends the stage with a
message. Answers are looked at (`checked_answer.py`), then written down as they come (`answers_cache.py`).
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from engine import seeds
from engine.errors import StageFailed, UserError
from engine.store.digest import digest_json
from generators.backends.protocol import Answer, Failure, Usage
from generators.backends.server import bounded_http
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.checked_answer import BadAnswer, Notice, in_words
from generators.backends.server.pacing import Pace
from generators.backends.server.settings import ServerSettings, client_of

LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds that a server may ask to wait
LARGEST_TOKEN = 1000  # bytes of an answer for a token: its text, escaped, and its log-probability
NOTICES = 20  # what is told of one server at most
STALLED = "no answer in time"
KILLS = 2  # deaths of the server that a request may have been part of before it is asked alone


class Delivery:
    """Delivers requests to one server, from any number of threads.

    Args:
        send: one request to the client, e.g. `client.chat.completions.create(**request)`.
        read: its response as the answer to a request; raises `BadAnswer` where it is not as the API documents it.
        usage: told every half second what was spent, and in the end.
        revive: called when a connection breaks: brings the server back, and tells how often it has died so far.
        say: told what is odd about the server, each thing once.
        key: instead of what the environment has.
    """

    def __init__(
        self,
        server: ServerSettings,
        cache: AnswersCache,
        send: Callable[[Any, dict[str, Any]], Coroutine[Any, Any, Any]],
        read: Callable[[Any, dict[str, Any], Notice], Answer | Failure],
        usage: Callable[[Usage], None] = lambda usage: None,
        revive: Callable[[], int] | None = None,
        say: Callable[[str], None] = lambda text: None,
        key: str | None = None,
    ) -> None:
        self.server, self.cache = server, cache
        self.retries = 0
        self.tokens_in, self.tokens_out = cache.spent()
        self._send, self._read, self._usage, self._revive = send, read, usage, revive
        self._say, self._told, self._key = say, set[str](), key
        self._names: set[str] = set()  # that answers came under
        self._reported = 0.0
        self._client: Any = None
        self._pace: Pace | None = None
        self._times: list[float] = []
        self._ended: Exception | None = None
        self._batches = 0  # calls of `deliver` under way
        self._under_way: set[str] = set()
        self._died = 0  # times the server did
        self._deaths: Counter[str] = Counter()  # of them, those at which a request was under way
        self._lock = threading.Lock()
        self._unwritten: list[tuple[str, Answer | Failure, asyncio.Future[Answer | Failure]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()

    @property
    def cost(self) -> float:
        """What was spent, in the unit of the prices."""
        return (self.tokens_in * self.server.price_in + self.tokens_out * self.server.price_out) / 1e6

    def deliver(self, requests: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Answer | Failure]:
        """One result a request, in order.

        Raises:
            UserError: the server refuses the key, or has no such model.
            StageFailed: the budget is spent.
        """
        with self._lock:
            if not self._batches:
                self._ended = None
            self._batches += 1
        future = asyncio.run_coroutine_threadsafe(self._all(requests, seeds), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()
            with self._lock:
                self._batches -= 1

    def close(self) -> None:
        async def end() -> None:
            if self._client:
                await self._client.close()

        self._usage(self.usage)
        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._writer.shutdown()
        self.cache.close()

    async def _all(self, requests: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Answer | Failure]:
        tasks = [self._one(request, seed) for request, seed in zip(requests, seeds, strict=True)]
        # What is under way when one of them ends it all is paid for: it is waited for and kept, not cancelled.
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        for error in [self._ended, *results]:
            if isinstance(error, BaseException):
                raise error
        for i, result in enumerate(results):
            if result is None:  # it was there each time the server died
                results[i] = await self._alone(requests[i], seeds[i])
        return results

    async def _one(self, request: dict[str, Any], seed: int) -> Answer | Failure | None:
        """The result of one request; None if it is under suspicion of killing the server."""
        digest = digest_json(request)
        if known := self.cache.get(digest):
            self._names.add(known.model)
            return known
        self._connect()
        assert self._pace is not None
        problem, attempt, stalls = "", 0, 0
        while attempt < self.server.attempts:
            async with self._pace.slot(again=bool(attempt)):
                self._under_way.add(digest)
                try:
                    self._check_budget()
                    result, wait, died = await self._try(request, attempt, seed, stalls)
                except Exception as error:
                    self._ended = self._ended or error
                    raise
                finally:
                    self._under_way.discard(digest)
                if wait is None:
                    self._deaths.pop(digest, None)
                    # In its place still: a kill costs no more answers than were asked for at once.
                    return await self._keep(digest, result)
            if self._deaths[digest] >= KILLS:
                return None
            assert isinstance(result, Failure)
            problem = result.detail
            stalls += problem == STALLED
            self.retries += 1
            attempt += not died  # a death is not this request's doing until it is shown to be
            if attempt < self.server.attempts:
                await self._rest(wait)
        return Failure("server_failed", f"{self.server.attempts} attempts, the last one: {problem}")

    async def _alone(self, request: dict[str, Any], seed: int) -> Answer | Failure:
        """Ask while nothing else is asked: a server that dies now dies of this."""
        assert self._pace is not None
        async with self._pace.alone():
            result, wait, died = await self._try(request, 0, seed)
        if died:
            return Failure("engine_died", "the server dies on this request")
        self._deaths.pop(digest := digest_json(request), None)
        again = await self._one(request, seed) if wait is not None else await self._keep(digest, result)
        return again or Failure("engine_died", "the server dies on this request")

    async def _try(
        self, request: dict[str, Any], attempt: int, seed: int, stalls: int = 0
    ) -> tuple[Answer | Failure, float | None, bool]:
        """One attempt: an answer, or what went wrong; how long to wait (None: don't try again); whether the server died."""
        assert self._pace is not None
        # Full jitter: between nothing and twice the wait of the attempt before (Brooker, 2015).
        wait = min(LONGEST_WAIT, 0.25 * 2**attempt) * (seeds.derive("jitter", seed, attempt) / 2**63)
        started, deaths = self._loop.time(), self._died
        bounded_http.expected.set(bounded_http.PLAIN + LARGEST_TOKEN * int(request.get("max_tokens") or 0))
        try:
            answer = self._read(await self._patiently(self._send(self._client, request), stalls), request, self._notice)
        except (openai.APITimeoutError, TimeoutError):
            return Failure("", STALLED), wait, False
        except openai.APIConnectionError as error:
            await self._back()
            return Failure("", f"the connection broke: {in_words(error.__cause__ or error)}"), wait, self._died > deaths
        except openai.APIStatusError as error:
            return *self._refused(error, wait), False
        except BadAnswer as error:
            await self._keep("", Failure("", "", *error.spent))  # which is paid for, too
            return Failure("", f"the answer is malformed: {error}"), wait, False
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            return Failure("", f"the answer is malformed: {type(error).__name__}: {in_words(error)}"), wait, False
        self._pace.answered()
        self._times.append(self._loop.time() - started)
        return answer, None, False

    async def _back(self) -> None:
        """Have a server of our own brought back, and note what was under way if it had died."""
        if self._revive is None:
            return
        suspects = set(self._under_way)
        died = await asyncio.to_thread(self._revive)
        if died > self._died:
            self._died = died
            self._deaths.update(suspects)

    def _refused(self, error: Any, wait: float) -> tuple[Failure, float | None]:
        assert self._pace is not None
        code, message = int(error.status_code), in_words(error)
        if code in (401, 403):
            raise UserError(f"the server refuses the key in ${self.server.key} ({code}): {message}")
        if code == 404:
            raise UserError(f"the server has no model `{self.server.model}`, or `url` lacks its `/v1` (404): {message}")
        if code == 429 or code == 503:
            asked = retry_after(error.response.headers)
            wait = wait if asked is None else min(asked, LONGEST_ASKED)
            if asked and asked > LONGEST_WAIT:
                self._notice(
                    "wait",
                    f"The server asks to wait {lasting(asked)} ({code}); it is asked again after {lasting(wait)}.",
                )
            self._pace.refused(wait)
            return Failure("", f"{code}: {message}"), wait
        if code in (408, 409) or code < 400 or code >= 500:
            return Failure("", f"{code}: {message}"), wait
        return Failure(refusal(message), f"{code}: {message}"), None

    async def _patiently(self, request: Any, stalls: int) -> Any:
        """Wait for a request, but not for ever.

        The client's own timeout starts anew with every byte; a server that trickles is stalled all the same. A stall is
        three times what nineteen in twenty answers take, once that is known, and twice as long after every stall, so
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
                patience = min(self.server.timeout_s, max(1.0, 3 * usual * 2**stalls))
                if not task.done() and self._loop.time() - started > patience:
                    raise TimeoutError
            return task.result()
        finally:
            task.cancel()

    async def _rest(self, wait: float) -> None:
        """Wait to try again; not for long once the stage is to end."""
        until = self._loop.time() + wait
        while not self._ended and (left := until - self._loop.time()) > 0:
            await asyncio.sleep(min(left, 1.0))

    def _notice(self, about: str, text: str) -> None:
        if about not in self._told and len(self._told) < NOTICES:
            self._told.add(about)
            self._say(text)

    async def _keep(self, digest: str, result: Answer | Failure) -> Answer | Failure:
        """Count what came of a request, and write it down."""
        if not isinstance(result, Answer) and not result.tokens_out:
            return result
        self._names.add(result.model if isinstance(result, Answer) else "")
        self.tokens_in += result.tokens_in
        self.tokens_out += result.tokens_out
        self._tell()
        written = self._loop.create_future()
        self._unwritten.append((digest, result, written))
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write())
        return await written

    async def _write(self) -> None:
        """Write down all that has come meanwhile, at once, again and again: a disk takes milliseconds for each time."""
        while self._unwritten:
            some, self._unwritten = self._unwritten, []
            try:
                put = [(digest, result) for digest, result, _ in some]
                kept = await self._loop.run_in_executor(self._writer, self.cache.put_several, put)
            except Exception as error:
                self._ended = self._ended or error
                kept = [error] * len(some)
            for (_, _, written), result in zip(some, kept, strict=True):
                if not written.done():  # else nobody waits any more
                    written.set_exception(result) if isinstance(result, Exception) else written.set_result(result)

    def _check_budget(self) -> None:
        if self._ended:
            raise self._ended
        check_budget(self.server, self.tokens_in, self.tokens_out)

    @property
    def usage(self) -> Usage:
        return Usage(self.tokens_in, self.tokens_out, self.cost, self.retries, named(self._names))

    def _tell(self) -> None:
        if time.monotonic() - self._reported > 0.5:
            self._reported = time.monotonic()
            self._usage(self.usage)

    def _connect(self) -> None:
        if self._client:
            return
        key, url = client_of(self.server)
        # One retry loop, ours: it knows the pace and the budget.
        self._client = openai.AsyncOpenAI(
            api_key=self._key or key, base_url=url, max_retries=0, timeout=None, default_headers=bounded_http.HEADERS,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=bounded_http.AWAITING, timeout=None),
        )  # fmt: skip
        self._pace = Pace(self.server.concurrency)


def check_budget(server: ServerSettings, tokens_in: int, tokens_out: int) -> None:
    """Stop before more is spent than was allowed.

    Raises:
        StageFailed: it is spent.
    """
    spent, cost = tokens_in + tokens_out, (tokens_in * server.price_in + tokens_out * server.price_out) / 1e6
    over_tokens = server.budget_tokens is not None and spent >= server.budget_tokens
    if over_tokens or (server.budget is not None and cost >= server.budget):
        raise StageFailed(
            f"the budget is spent: {spent:,} tokens, {cost:.2f} in money. All answers are kept; raise `budget_tokens` "
            "or `budget` and run again to go on."
        )


def refusal(message: str) -> str:
    """The reason code of a request that the server will not take."""
    return "too_long" if "context" in message and "length" in message else "refused"


def named(names: set[str]) -> str:
    """The first names of those that answers came under."""
    return ", ".join(sorted(names - {""})[:5])


def lasting(seconds: float) -> str:
    """A wait in words."""
    if seconds == math.inf:
        return "for ever"
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def retry_after(headers: Any) -> float | None:
    """Seconds to wait, as the server asks: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return None if math.isnan(wait) else max(0.0, wait)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None
