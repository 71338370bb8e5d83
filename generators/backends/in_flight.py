"""Several pieces of work under way at once, their results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_flight(pieces: Iterable[T], width: int, work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Do `work` on at most `width` pieces at once, in threads, and give each piece with its result as soon as it is there: one that
    takes long does not hold up the others.

    `pieces` is read in the calling thread, one ahead. When a piece fails, its exception is raised here once what is under way has
    ended.
    """
    under_way: dict[Future[R], T] = {}
    with ThreadPoolExecutor(width) as pool:

        def ended() -> Iterator[tuple[T, R]]:
            """At least one; those that failed last."""
            some = sorted(
                wait(under_way, return_when=FIRST_COMPLETED).done, key=lambda one: one.exception() is not None
            )
            for future in some:
                yield under_way.pop(future), future.result()

        try:
            for piece in pieces:
                under_way[pool.submit(work, piece)] = piece
                if len(under_way) > width:
                    yield from ended()
            while under_way:
                yield from ended()
        finally:
            for future in under_way:
                future.cancel()
