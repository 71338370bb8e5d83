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
from types import TracebackType

GAIN = 7 / 6  # a doubling that brings less is the last for a while
REST = 10  # rounds until the next one is tried
TOO_MANY = 0.25  # share of refusals among the last answers at which the pace is halved


class Pace:
    """An asynchronous context manager that lets at most `limit` bodies run at once, and adapts `limit`.

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
        self._shut = False
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: self.active < self.limit and not self._shut)
                if (wait := self._paused_until - loop.time()) <= 0:
                    break
                self._changed.release()
                try:
                    await asyncio.sleep(wait)
                finally:
                    await self._changed.acquire()
            self.active += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._changed:
            self.active -= 1
            self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        """A body that runs while no other does."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._shut)
            self._shut = True
            await self._changed.wait_for(lambda: not self.active)
        try:
            yield
        finally:
            async with self._changed:
                self._shut = False
                self._changed.notify_all()

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
