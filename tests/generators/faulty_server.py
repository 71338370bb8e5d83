"""A local OpenAI-compatible server that fails on purpose, for tests and the benchmark.

What it answers is a function of the request alone, so that every row can be checked; which attempts fail is drawn from
the request and the number of the attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

FAULTS = ("429", "500", "reset", "stall", "malformed")


def said(messages: list[dict[str, str]], seed: int) -> str:
    return f"{messages[-1]['content']} -> {seed}"


class FaultyServer:
    """Use as a context manager; `url` is its base URL.

    Args:
        share: of attempts that fail, each kind alike.
        capacity: requests served at once; the others queue.
        seconds: time to serve one.
        answer: what it says to messages and a seed: a text, or the whole choice (`{"finish_reason": ..., "message": {...}}`).
        models: the names of its models; a GET is answered with them.
        key: what it wants as a key, if it wants one.
        garble: what it sends instead of an answer, status, headers and body, for the body of a request; None: an answer.
        stall: seconds after which a stalled connection is closed.
        before: called with the number of different requests answered, the present one included, before its answer is sent.
    """

    def __init__(
        self,
        share: float = 0.3,
        capacity: int = 32,
        seconds: float = 0.002,
        stall: float = 30,
        answer: Callable[[list[dict[str, str]], int], str | dict[str, Any]] = said,
        before: Callable[[int], None] = lambda count: None,
        models: tuple[str, ...] = ("m", "judge"),
        key: str | None = None,
        garble: Callable[[dict[str, Any]], tuple[int, str, bytes] | None] = lambda body: None,
    ) -> None:
        self.share, self.capacity, self.seconds, self.stall = share, capacity, seconds, stall
        self.answer, self.before = answer, before
        self.models, self.key, self.garble = models, key, garble
        self.url = ""
        self.faults: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.status: int | None = None  # answer everything with this
        self._attempts: Counter[str] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._slots: asyncio.Semaphore
        self._stop: asyncio.Event

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._slots, self._stop = asyncio.Semaphore(self.capacity), asyncio.Event()
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            self._ready.set()
            await self._stop.wait()
            server.close()

        asyncio.run(serve())  # cancels the connections that are still open

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:  # one request after another, as HTTP/1.1 keeps connections
                sent = (await reader.readuntil(b"\r\n\r\n")).decode()
                head = sent.lower()
                if head.startswith("get "):
                    if not await self._list(sent, writer):
                        break
                    continue
                size = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                if not await self._serve(body, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _list(self, head: str, writer: asyncio.StreamWriter) -> bool:
        if self.status:
            return await send(writer, self.status, b'{"error": {"message": "told so"}}')
        if self.key and f"Bearer {self.key}\r" not in head:
            return await send(writer, 401, b'{"error": {"message": "no such key"}}')
        if head.split()[1] != "/v1/models":
            return await send(writer, 404, b'{"error": {"message": "no such page"}}')
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        return await send(writer, 200, json.dumps(listed).encode())

    async def _serve(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if self.status:
            return await send(writer, self.status, b'{"error": {"message": "told so"}}')
        if garbled := self.garble(body):
            status, headers, data = garbled
            return await send(writer, status, data, headers)
        seed = body.get("seed") or 0
        key = json.dumps([body["messages"], seed])
        self._attempts[key] += 1
        draw = hashlib.sha256(f"{key}{self._attempts[key]}".encode()).digest()
        if draw[0] / 256 < self.share:
            fault = FAULTS[draw[1] % len(FAULTS)]
            self.faults[fault] += 1
            if fault == "429":
                return await send(writer, 429, b'{"error": {"message": "slow down"}}', "retry-after: 0.05\r\n")
            if fault == "500":
                return await send(writer, 500, b"<html>oops</html>")
            if fault == "reset":
                writer.transport.abort()
                return False
            if fault == "stall":
                await asyncio.sleep(self.stall)
                return False
            return await send(
                writer, 200, b'{"choices": [{"message": {"content"' if draw[2] % 2 else b'{"choices": []}'
            )
        async with self._slots:
            await asyncio.sleep(self.seconds)
        self.served[key] += 1
        self.before(len(self.served))
        choice = self.answer(body["messages"], seed)
        if isinstance(choice, str):
            choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": choice}}
        answer = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, **choice}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }  # fmt: skip
        return await send(writer, 200, json.dumps(answer).encode())


async def send(writer: asyncio.StreamWriter, status: int, body: bytes, headers: str = "") -> bool:
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode()
        + body
    )
    await writer.drain()
    return True


if __name__ == "__main__":  # a server without faults in a process of its own: SECONDS CAPACITY
    with FaultyServer(share=0, seconds=float(sys.argv[1]), capacity=int(sys.argv[2])) as alone:
        print(alone.url, flush=True)
        sys.stdin.read()
