"""What is taken of a server: so many bytes of an answer, unpacked piece by piece, and from nobody but the server that was named.

Hooks for clients of httpx, and of httpx2, which has the same: `WAITING` for those that block, `AWAITING` for the others. Proxies
and certificates stay what the environment says.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

from engine.errors import UserError

HEADERS = {"accept-encoding": "gzip, deflate"}  # what is unpacked here
PLAIN = 4_000_000  # bytes of an answer from which nothing is known
PIECE = 1 << 20
expected: ContextVar[int] = ContextVar("expected", default=PLAIN)  # bytes that the answer to come may have


class UnreadableAnswer(ValueError):
    """An answer that is larger than it may be, or packed in a way that was not offered."""


class _Body:
    """The bytes of an answer, unpacked and counted as they come."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream, self._most, self._read = stream, expected.get(), 0
        self._unpack = zlib.decompressobj(47) if encoding in ("gzip", "x-gzip", "deflate") else None
        if encoding and encoding != "identity" and not self._unpack:
            raise UnreadableAnswer(f"the answer is packed as `{encoding[:40]}`, expected gzip, deflate or nothing")

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield from self._pieces(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            for piece in self._pieces(chunk):
                yield piece

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            try:
                piece = self._unpack.decompress(chunk, PIECE) if self._unpack else chunk
            except zlib.error as error:
                raise UnreadableAnswer(f"the answer can't be unpacked: {error}") from None
            chunk = self._unpack.unconsumed_tail if self._unpack else b""
            self._read += len(piece)
            if self._read > self._most:
                raise UnreadableAnswer(f"the answer has more than {self._most:,} bytes")
            yield piece


def _take(response: Any) -> None:
    _check_place(response)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    # httpx wants its own kind of stream, of which there is one in each of its versions.
    kinds = tuple(
        kind for kind in type(response.stream).__mro__ if kind.__name__ in ("AsyncByteStream", "SyncByteStream")
    )
    response.stream = type("Body", (_Body, *kinds), {})(response.stream, encoding)
    for header in ("content-encoding", "content-length"):
        response.headers.pop(header, None)


async def _take_async(response: Any) -> None:
    _take(response)


WAITING: dict[str, list[Any]] = {"response": [_take]}
AWAITING: dict[str, list[Any]] = {"response": [_take_async]}


def _check_place(response: Any) -> None:
    """Prompts and keys go to the server that the recipe names, and don't follow it elsewhere.

    Raises:
        UserError: it sends them on to another host or port, or from https to http.
    """
    if not response.has_redirect_location:
        return
    here = response.url
    try:
        there = here.join(response.headers["location"])
        host, port = there.host, _port(there)
    except Exception:  # either version's InvalidURL, which is no ValueError: the client tells it when it goes there
        return
    upgrade = (here.scheme, there.scheme) == ("http", "https") and _port(here) == 80 and port == 443
    if host == here.host and (upgrade or (port == _port(here) and there.scheme == here.scheme)):
        return
    raise UserError(
        f"{here.scheme}://{here.netloc.decode()} sends requests on to {there.scheme}://{there.netloc.decode()} "
        f"({response.status_code}). Prompts and keys go to no server but the one that is named; if that one is meant, write it as `url`."
    )


def _port(url: Any) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
