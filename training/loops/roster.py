"""What the processes that torchrun started tell each other, by way of the store that its agents keep: who is there, what a stage has
each of them do, who was lost, and that the run is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from engine.errors import StageFailed
from training.loops.launch import Launch

BEAT_S, SILENCE_S = 1, 60
LOOK_S = 0.3
PATIENCE_S = 10  # with one that ends by itself
TRY_S = 5  # to reach the store
GO_ON = "What is done is kept: start the same command again on all nodes, and it goes on from there."


class Roster:
    """One process's connection. Each stage that is shared has a number, from 1."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        tcp = _reached(launch)
        self._store = PrefixStore(f"flywheel/{launch.attempt}", tcp)
        self._beats = 0
        self._heard: dict[int, tuple[bytes, float]] = {}  # by rank: what it said last, and when that was new

    # -- who is there ------------------------------------------------------------------------------------------------

    @contextmanager
    def alive(self) -> Generator[None]:
        """Within this, the others hear from this process."""
        over = threading.Event()

        def beat() -> None:
            with contextlib.suppress(dist.DistError):  # the agent is gone, and the run will be
                while not over.wait(BEAT_S):
                    self.beat()

        self._put(f"host/{self.launch.rank}", socket.gethostname())
        self.beat()
        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def beat(self) -> None:
        self._beats += 1
        self._put(f"alive/{self.launch.rank}", str(self._beats))

    def silent(self, rank: int, seconds: float = SILENCE_S) -> bool:
        """Whether nothing was heard of a process for so long; one that was never heard is given time to start."""
        said, now = self._get(f"alive/{rank}") or b"", time.monotonic()
        if rank not in self._heard or self._heard[rank][0] != said:
            self._heard[rank] = said, now
        return bool(said) and now - self._heard[rank][1] > seconds

    def name(self, rank: int) -> str:
        host = self._get(f"host/{rank}")
        return f"process {rank} of {self.launch.world}" + (f", on {host.decode()}," if host else "")

    # -- what is to be done ------------------------------------------------------------------------------------------

    def announce(self, count: int, order: bytes) -> int:
        """Have the others below `count` do what `order` says. Gives the stage's number."""
        number = self._store.add("stages", 1)
        self._put(f"order/{number}", order)
        self._put(f"count/{number}", str(count))  # last: it is there as a whole
        return number

    def count(self, number: int) -> int | None:
        """How many share a stage; None: it was not announced yet."""
        found = self._get(f"count/{number}")
        return int(found) if found else None

    def order(self, number: int) -> bytes:
        return self._store.get(f"order/{number}")

    def group(self, number: int) -> Store:
        """Where those who share a stage find each other."""
        return PrefixStore(f"group/{number}", self._store)

    # -- what went wrong ---------------------------------------------------------------------------------------------

    def lose(self, number: int, words: str) -> None:
        """This process can't go on with a stage; what was said first stays."""
        if not self._get(f"lost/{number}/{self.launch.rank}"):
            self._put(f"lost/{number}/{self.launch.rank}", words)

    def cancel(self, number: int) -> None:
        """What the others do of a stage leads nowhere."""
        with contextlib.suppress(dist.DistError):
            self._put(f"cancelled/{number}", "1")

    def cancelled(self, number: int) -> bool:
        return self._store.check([f"cancelled/{number}"])

    def lost(self, number: int, count: int, silence_s: float = SILENCE_S) -> str:
        """Who of those who share a stage can't go on with it, and why, in words."""
        for rank in range(1, count):
            if words := self._get(f"lost/{number}/{rank}"):
                return f"{self.name(rank)} {words.decode()}"
        for rank in range(1, count):
            if self.silent(rank, silence_s):
                return f"{self.name(rank)} is gone: nothing was heard of it any more. {GO_ON}"
        return ""

    # -- the end -----------------------------------------------------------------------------------------------------

    def dismiss(self, code: int) -> None:
        """The run has ended so: the others may leave, which they do while there is a store to hear it from."""
        with contextlib.suppress(dist.DistError):
            self._put("ended", str(code))
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until and not all(
                self._get(f"left/{rank}") for rank in range(1, self.launch.world)
            ):
                time.sleep(LOOK_S)

    def ended(self) -> int | None:
        found = self._get("ended")
        return int(found) if found else None

    def leave(self) -> None:
        with contextlib.suppress(dist.DistError):
            self._put(f"left/{self.launch.rank}", "1")

    def _put(self, key: str, value: str | bytes) -> None:
        self._store.set(key, value)  # pyright: ignore[reportArgumentType]

    def _get(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None


def _reached(launch: Launch) -> Store:
    """The store of torchrun's agents, which is there before the processes that they start. A try is short, since no signal is heard in it."""
    until = time.monotonic() + SILENCE_S
    while True:
        try:
            store = TCPStore(launch.address, launch.port, is_master=False, timeout=timedelta(seconds=TRY_S))
        except dist.DistError as error:
            if time.monotonic() < until:
                continue
            raise StageFailed(
                f"torchrun's store at {launch.address}:{launch.port} can't be reached from {socket.gethostname()}: the first node "
                "is gone, or that address is none of its own (`--master-addr`, `--local-addr`)."
            ) from error
        store.set_timeout(timedelta(minutes=30))
        return store


def cut_off(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


class Attendance:
    """Looks, while a stage is shared, whether all who share it are there; ends this process in words where its own work waits for one that is
    gone."""

    def __init__(self, roster: Roster, number: int, count: int, emit: Callable[[dict[str, Any]], None]) -> None:
        self._roster, self._number, self._count, self._emit = roster, number, count, emit
        self._over, self._found = threading.Event(), threading.Event()
        self._words = ""
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._words = self._roster.lost(self._number, self._count)
            except dist.DistError:
                at = f"{self._roster.launch.address}:{self._roster.launch.port}"
                self._words = f"torchrun's store at {at} is gone, and with it the other processes. {GO_ON}"
            if self._words:
                self._found.set()
                if not self._over.wait(PATIENCE_S):
                    self._emit({"event": "failed", "text": self._words})
                    os._exit(StageFailed.exit_code)
                return

    def why(self) -> str:
        """In words, after the connection to another process broke."""
        if not self._found.wait(PATIENCE_S / 2):
            self._words = self._roster.lost(self._number, self._count, PATIENCE_S / 2)
        return self._words or f"the connection to one of the other processes broke. {GO_ON}"

    def close(self) -> None:
        self._over.set()
