"""Several pieces of work under way at once, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_flight(pieces: Iterable[T], width: int, work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Do `work` on at most `width` pieces at once, in threads, and give each piece with its result, in order.

    `pieces` is read in the calling thread, no further than needed. When a piece fails, its exception is raised here once
    what is under way has ended.
    """
    under_way: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(width) as pool:
        try:
            for piece in pieces:
                under_way.append((piece, pool.submit(work, piece)))
                if len(under_way) > width:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()
        finally:
            for _, future in under_way:
                future.cancel()
