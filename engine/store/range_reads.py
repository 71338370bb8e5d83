"""Files of stores elsewhere in ranges: several at once for a large one, as many as are asked for else. Memory is bounded: a process holds
at most `AT_ONCE` ranges of `RANGE` bytes, whichever files they are of."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from engine.store.files import StoreFiles

RANGE = 8 << 20  # bytes
AT_ONCE = 8
_room = threading.BoundedSemaphore(AT_ONCE)  # ranges that are on their way, or wait to be taken


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "ranges")


def chunks(store: StoreFiles, size: int, *parts: str) -> Iterator[bytes]:
    """The bytes of a file in order, and one more where it is longer than `size`.

    Raises:
        FileNotFoundError: it is not there. OSError: it can't be read, or is shorter.
    """
    if size < RANGE:
        yield store.read(*parts)
        return
    begins, waiting = deque(range(0, size, RANGE)), deque[Future[bytes]]()

    def read(begin: int) -> bytes:
        return store.read_range(begin, begin + RANGE if begin + RANGE < size else size + 1, *parts)

    try:
        while begins or waiting:
            # Whoever holds a place holds one for the range that it needs first, so that all get on.
            while begins and _room.acquire(blocking=not waiting):
                waiting.append(_readers().submit(read, begins.popleft()))
            data = waiting[0].result()
            waiting.popleft()
            _room.release()
            yield data
    finally:
        for one in waiting:
            one.cancel()
            _room.release()


class RangeFile(io.RawIOBase):
    """A file of a store elsewhere, opened to read some of it: each `read` is a request."""

    def __init__(self, store: StoreFiles, size: int, *parts: str) -> None:
        super().__init__()
        self._store, self._size, self._parts, self._at = store, size, parts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        data = self._store.read_range(self._at, end, *self._parts)
        self._at += len(data)
        return data
