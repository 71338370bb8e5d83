"""How many requests to have under way: as many as the server bears, found out by asking.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), as TCP does it, on the share of answers that say
"too many" rather than on each one: a lone 429 costs its own request a wait, a quarter of them halves the pace.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

TOO_MANY = 0.25  # share of refusals among the last answers at which the pace is halved


class Pace:
    """An asynchronous context manager that lets at most `limit` bodies run at once, and adapts `limit`.

    Args:
        most: `limit` never exceeds this.
        start: what to begin with; grows by one an answer until the first refusals, then by one a round.
    """

    def __init__(self, most: int, start: int = 16) -> None:
        self.most = most
        self.limit = float(min(start, most))
        self.active = 0
        self._grows_fast = True
        self._recent: deque[bool] = deque(maxlen=16)
        self._paused_until = 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: self.active < int(self.limit))
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

    def answered(self) -> None:
        """An answer came: a little faster."""
        self._recent.append(False)
        self.limit = min(float(self.most), self.limit + (1 if self._grows_fast else 1 / self.limit))

    def refused(self, wait: float) -> None:
        """The server said "too many", and to wait this many seconds."""
        self._recent.append(True)
        if len(self._recent) >= 8 and sum(self._recent) >= TOO_MANY * len(self._recent):
            self._grows_fast = False
            self.limit = max(1.0, self.limit / 2)
            self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + wait)
            self._recent.clear()
