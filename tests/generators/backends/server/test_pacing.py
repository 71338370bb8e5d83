"""The pace finds what a server bears, on a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

from generators.backends.server.pacing import Pace


def run(job: Callable[[], Any]) -> Any:
    """Run on an event loop whose clock jumps to the next timer: no test waits, none depends on the machine."""
    loop = asyncio.new_event_loop()
    now = [0.0]
    loop.time = lambda: now[0]  # type: ignore[method-assign]
    select = loop._selector.select  # type: ignore[attr-defined]

    def jump(timeout: float | None = None) -> Any:
        if timeout:
            now[0] = max(now[0], heapq.nsmallest(1, loop._scheduled)[0].when())  # type: ignore[attr-defined]
        return select(0)

    loop._selector.select = jump  # type: ignore[attr-defined]
    try:
        return loop.run_until_complete(job())
    finally:
        loop.close()


def pace_for(capacity: int, requests: int, most: int = 256, refuses_beyond: int | None = None) -> tuple[Pace, float]:
    """Ask a server that serves `capacity` at once, 1 s each; the pace in the end, and the seconds it took."""

    async def job() -> tuple[Pace, float]:
        pace, slots, refused = Pace(most), asyncio.Semaphore(capacity), [0]

        async def one() -> None:
            while True:
                async with pace.slot():
                    assert pace.active <= most
                    if refuses_beyond is not None and pace.active > refuses_beyond:
                        await asyncio.sleep(0.01)
                        pace.refused(1.0)
                        refused[0] += 1
                        continue
                    async with slots:
                        await asyncio.sleep(1)
                    pace.answered()
                    return

        await asyncio.gather(*(one() for _ in range(requests)))
        return pace, asyncio.get_running_loop().time()

    return run(job)


def test_it_grows_to_the_servers_capacity_and_one_doubling_further() -> None:
    pace, seconds = pace_for(capacity=40, requests=4000)
    assert 40 <= pace.limit <= 160
    assert seconds < 1.1 * 4000 / 40


def test_it_never_exceeds_what_it_was_given() -> None:
    pace, seconds = pace_for(capacity=1000, requests=2000, most=50)
    assert pace.limit == 50 and seconds < 1.15 * 2000 / 50


def test_refusals_slow_it_down_until_they_are_rare() -> None:
    pace, seconds = pace_for(capacity=1000, requests=2000, refuses_beyond=30)
    assert pace.limit < 120
    assert seconds < 3 * 2000 / 30


def test_who_comes_again_goes_first_and_who_gives_up_leaves_no_hole() -> None:
    async def job() -> tuple[list[str], int]:
        pace, order = Pace(1), list[str]()

        async def one(name: str, again: bool = False) -> None:
            async with pace.slot(again):
                order.append(name)
                await asyncio.sleep(1)

        tasks = [asyncio.create_task(one(name, name == "retry")) for name in ("a", "b", "gone", "c", "retry")]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order, pace.active

    assert run(job) == (["a", "retry", "b", "c"], 0)


def test_alone_is_alone() -> None:
    async def job() -> list[tuple[str, int]]:
        pace, seen = Pace(4), list[tuple[str, int]]()

        async def one() -> None:
            async with pace.slot():
                await asyncio.sleep(1)
                seen.append(("one", pace.active))

        async def alone() -> None:
            async with pace.alone():
                seen.append(("alone", pace.active))
                await asyncio.sleep(1)

        running = [asyncio.create_task(one()) for _ in range(2)]
        await asyncio.sleep(0.5)
        await asyncio.gather(alone(), *(one() for _ in range(2)), alone(), *running)
        return seen

    assert run(job) == [("one", 2), ("one", 1), ("alone", 0), ("one", 2), ("one", 1), ("alone", 0)]
