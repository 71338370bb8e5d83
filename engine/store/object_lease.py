"""A lease in a store that can't lock: an object, `leases/ARTIFACT.json`, which its holder writes anew every third of `ttl_s`.

Whoever waits takes over once it has not changed for that long, by the clock of the one who waits, so that no two clocks are compared; at once
where the holder is a process of this machine that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from engine.store.artifact import MANIFEST
from engine.store.files import StoreFiles
from engine.store.holder import Holder, Other, Superseded, me, superseded
from engine.store.leased_writes import BAR, is_bar
from engine.store.versions import Version, put_version, read_version, safe

Say = Callable[[str], None]
TICK_S = 1.0  # of the clock by which an object was written


class ObjectLease:
    """An object that its holder keeps alive by writing it anew, from a thread."""

    def __init__(self, store: StoreFiles, artifact: str, holder: Holder, version: Version, ttl_s: float) -> None:
        self.artifact = artifact
        self._store, self._holder, self._version, self._ttl_s = store, holder, version, ttl_s
        self._beat = 0
        self._changing = threading.Lock()
        self._ends = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_changing", "_ends", "_store")}
        return {**kept, "_store": StoreFiles(self._store.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock(), _ends=threading.Event())

    @property
    def descriptors(self) -> tuple[int, ...]:
        return ()

    def check(self) -> None:
        there = _read_lease(self._store, self.artifact)
        if there is None or there.holder.token != self._holder.token:
            raise Superseded(superseded(self.artifact, there and there.holder))

    def told(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact, "holder": asdict(self._holder), "version": self._version, "ttl_s": self._ttl_s,
        }  # fmt: skip

    def keep(self) -> None:
        """Keep it alive from now on."""
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def _keep(self) -> None:
        while not self._ends.wait(self._ttl_s / 3):
            with contextlib.suppress(Exception):  # the network is away: the next time, or another takes over
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Write it anew; False if another has it."""
        with self._changing:
            for _ in range(3):
                self._beat += 1
                data = _lease_bytes(self._holder, self._ttl_s, f"{os.getpid()}.{self._beat}")
                if version := put_version(self._store, data, self._version, *_lease_place(self.artifact)):
                    self._version = version
                    return True
                there = _read_lease(self._store, self.artifact)
                if there is None or there.holder.token != self._holder.token:
                    return False
                self._version = there.version  # the one who works for us, or we for them, was faster
            return True

    def rest(self) -> None:
        self._ends.set()

    def release(self) -> None:
        self.rest()
        with contextlib.suppress(Exception):  # the network is away: it ends by itself
            there = _read_lease(self._store, self.artifact)
            if there and there.holder.token == self._holder.token:
                self._store.delete([_lease_place(self.artifact)])


@dataclass
class ObjectQueue:
    """Those who want the lease of an object store."""

    store: StoreFiles
    artifact: str
    say: Say
    seen: tuple[Version, float] | None = None  # the lease of another as it was seen first, and when

    def take(self) -> ObjectLease | Other:
        there = _read_lease(self.store, self.artifact)
        if there:
            now = time.monotonic()
            if self.seen is None or self.seen[0] != there.version:
                self.seen = there.version, now
            if not there.holder.gone and now - self.seen[1] <= there.ttl_s:
                return Other(there.holder)
        elif self.seen is None and not safe(self.store):
            self.say(
                f"the store {self.store.url} has no conditional writes: start one run at a time on it. Of two that make the same "
                "artifact the later goes on, the other is refused."
            )
        holder, ttl_s = me(), float(os.environ.get("FLYWHEEL_LEASE_S") or 30)
        data = _lease_bytes(holder, ttl_s, "0")
        version = put_version(self.store, data, there.version if there else None, *_lease_place(self.artifact))
        if version is None:  # another was faster, or it was ours whose answer got lost
            there = _read_lease(self.store, self.artifact)
            if there is None or there.holder.token != holder.token:
                return Other(there.holder if there else None)
            version = there.version
        if there and safe(self.store):
            _bar(self.store, self.artifact, holder.token)
        made = ObjectLease(self.store, self.artifact, holder, version, ttl_s)
        made.keep()
        return made


def is_held(store: StoreFiles, artifact: str) -> bool:
    """Whether somebody keeps the lease alive, by the server's clock alone. Looks, and leaves nothing."""
    there = _read_lease(store, artifact)
    return there is not None and not there.holder.gone and there.age_s <= there.ttl_s + TICK_S


def _bar(store: StoreFiles, artifact: str, token: str) -> None:
    """Have the manifest that the one before may be writing right now be refused: another version is there, and ours replaces it."""
    place = ("artifacts", artifact, MANIFEST)
    for _ in range(5):
        there = read_version(store, *place)
        if there and not is_bar(there.data):
            return  # it was finished
        if put_version(store, BAR + json.dumps(token).encode() + b"}", there.version if there else None, *place):
            return


@dataclass(frozen=True)
class _Stated:
    holder: Holder
    ttl_s: float
    version: Version
    age_s: float = 0.0  # since it was written


def _lease_place(artifact: str) -> tuple[str, str]:
    return "leases", f"{artifact}.json"


def _lease_bytes(holder: Holder, ttl_s: float, beat: str) -> bytes:
    return json.dumps({"holder": asdict(holder), "ttl_s": ttl_s, "beat": beat}).encode()


def _read_lease(store: StoreFiles, artifact: str) -> _Stated | None:
    found = read_version(store, *_lease_place(artifact))
    if found is None:
        return None
    data, version, age_s = found.data, found.version, found.age_s
    try:
        stated = cast(dict[str, Any], json.loads(data))
        return _Stated(Holder(**stated["holder"]), float(stated["ttl_s"]), version, age_s)
    except (ValueError, TypeError, KeyError):  # garbled: nobody keeps it alive, and it ends as any other
        return _Stated(Holder("", "an unreadable lease", 0, "?", "?", "", 0), 30, version, age_s)
