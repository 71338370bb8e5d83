"""How many requests to have under way: as many as the server bears, found out by asking.

While it is only faster that a doubling makes it, the pace doubles (slow start); the first doubling that brings less than
a sixth more answers a second is the last for a while, and what it put in the server's queue covers for requests that
stall. Refusals halve the pace, as in TCP (Chiu and Jain, 1989), but on their share, not on each: a lone 429 costs its own request a wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count

GAIN = 7 / 6  # a doubling that brings less is the last for a while
REST = 10  # rounds until the next one is tried
TOO_MANY = 0.25  # share of refusals among the last answers at which the pace is halved


class Pace:
    """Lets at most `limit` bodies run at once, in the order in which they came, and adapts `limit`.

    Args:
        most: `limit` never exceeds this.
        start: what to begin with.
    """

    def __init__(self, most: int, start: int = 16) -> None:
        self.most = most
        self.limit = min(start, most)
        self.active = 0
        self._rate = 0.0  # answers a second in the best round so far
        self._answers = 0
        self._round_began: float | None = None
        self._rounds_to_rest = 0
        self._recent: deque[bool] = deque(maxlen=64)
        self._paused_until = 0.0
        self._timer: asyncio.TimerHandle | None = None  # set while there is a pause
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []  # a heap: who has been in before goes first
        self._numbers = count()
        self._alone = asyncio.Lock()
        self._empty: asyncio.Future[None] | None = None  # done when nobody is in and whoever wants to be alone may go

    @asynccontextmanager
    async def slot(self, again: bool = False) -> AsyncGenerator[None]:
        """Run a body once there is room. Those that come `again` go first: the job must not end by waiting for them."""
        place = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (not again, next(self._numbers), place))
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        """A body that runs while no other does."""
        async with self._alone:
            self._empty = asyncio.get_running_loop().create_future()
            try:
                if self.active:
                    await self._empty
                yield
            finally:
                self._empty = None
                self._admit()

    def _leave(self) -> None:
        self.active -= 1
        if self._empty and not self.active and not self._empty.done():
            self._empty.set_result(None)
        self._admit()

    def _admit(self) -> None:
        """Let in whoever may go now: one wake-up each, however many wait."""
        loop = asyncio.get_running_loop()
        if self._empty:
            return
        if (wait := self._paused_until - loop.time()) > 0:
            self._timer = self._timer or loop.call_later(wait, self._go_on)
            return
        while self._waiting and self.active < self.limit:
            place = heappop(self._waiting)[2]
            if not place.done():  # else it was given up
                self.active += 1
                place.set_result(None)

    def _go_on(self) -> None:
        self._timer = None
        self._admit()

    def answered(self) -> None:
        """An answer came. Every `limit` of them are a round; a round decides whether to go faster."""
        now = asyncio.get_running_loop().time()
        self._recent.append(False)
        if self._round_began is None:
            self._round_began = now
        self._answers += 1
        if self._answers <= self.limit or now <= self._round_began:
            return
        rate = self._answers / (now - self._round_began)
        self._answers, self._round_began = 0, now
        if self._rounds_to_rest:
            self._rounds_to_rest -= 1
            self._rate = rate
        elif rate > GAIN * self._rate:
            self._rate = rate
            self.limit = min(self.most, self.limit * 2)
        else:
            self._rounds_to_rest = REST

    def refused(self, wait: float) -> None:
        """The server said "too many", and to wait this many seconds."""
        self._recent.append(True)
        if len(self._recent) >= 32 and sum(self._recent) >= TOO_MANY * len(self._recent):
            self.limit = max(1, self.limit // 2)
            self._rounds_to_rest = REST
            self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + wait)
            self._recent.clear()
