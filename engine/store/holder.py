"""Who makes an artifact, and what is said where somebody else does."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.errors import StageFailed
from engine.redaction import redacted
from engine.store.this_machine import this_machine
from engine.text.visible import visible


class Superseded(StageFailed):
    """Another process has taken over what this one was writing."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: of this turn, never used again.
        command: what a person called.
        since: local time, as `14:02`; never compared with anything.
        machine: this start of this machine, this set of process ids.
        born: when the process began, in ticks since then.
    """

    token: str
    command: str
    pid: int
    host: str
    since: str
    machine: str
    born: int

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since})"

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.machine == this_machine() != "" and _born(self.pid) != self.born

    @property
    def stopped(self) -> bool:
        """Whether it is known to stand still (SIGSTOP, Ctrl-Z)."""
        return self.machine == this_machine() != "" and _state(self.pid) == "T"


class Lease(Protocol):
    """The right to write one artifact. It can be pickled; a copy can check it."""

    @property
    def artifact(self) -> str: ...
    @property
    def descriptors(self) -> tuple[int, ...]:
        """What processes must inherit for the lease to live as long as they do."""
        ...

    def check(self) -> None:
        """
        Raises:
            Superseded: another has it.
        """
        ...

    def told(self) -> dict[str, Any]:
        """What another process needs to `take_part` in it."""
        ...

    def rest(self) -> None:
        """Another process keeps it from now on."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Other:
    """Another process that has the lease; its name is not there yet in the moment in which it takes it."""

    holder: Holder | None

    def __str__(self) -> str:
        return str(self.holder) if self.holder else "another run"

    @property
    def hint(self) -> str:
        if self.holder and self.holder.stopped:
            pid = self.holder.pid
            return f", which stands still: `kill -CONT {pid}` has it go on, `kill -9 {pid}` ends it"
        return ""


def me() -> Holder:
    told = visible(redacted(shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])), one_line=True)
    return Holder(
        uuid.uuid4().hex, told if len(told) <= 200 else told[:197] + "...", os.getpid(), socket.gethostname(),
        time.strftime("%H:%M"), this_machine(), _born(os.getpid()),
    )  # fmt: skip


def superseded(artifact: str, holder: Holder | None) -> str:
    by = f"{holder} has taken over" if holder else "another run has taken over, and may be done with it"
    return (
        f"this process lost its turn: {by} {artifact} while it stood still, or its lock was removed. What it was about to write "
        "was not written. Run it again: what is finished is taken from the store."
    )


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(pid: int) -> int:
    """When a process began, in ticks since the machine did; -1 if there is none (or only what is left of it)."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] != "Z" else -1


def _state(pid: int) -> str:
    return (_stat(pid) or ["?"])[0]
