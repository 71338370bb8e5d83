"""What runs on a node of a cluster: a process that has a stage's work, and does one task after the other.

What goes out and in is pickled here, so that it is the same as between processes of one machine: arrays can be written to, and an error
is the one that was raised.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from dataclasses import dataclass

from engine.errors import StageFailed, UserError
from engine.stage.executor import Opened, Work
from engine.store.known_digests import Told, take_part

REACH = "reach"  # a file that whoever gives the tasks writes, and whoever does them must find


@dataclass(frozen=True)
class Raised:
    """An error instead of an answer.

    Attributes:
        trace: where it was raised.
    """

    error: BaseException
    trace: str

    def again(self) -> BaseException:
        self.error.add_note(self.trace)  # for the log; words for people leave it out
        return self.error


class TaskWorker:
    """A process that takes part. All answers are pickled; `Raised` where there was an error."""

    def __init__(self, digests: Told | None) -> None:
        take_part(digests)
        self._opened: Opened | None = None
        self._place = _place()

    def place(self) -> bytes:
        return pickle.dumps(self._place)

    def open(self, data: bytes, token: bytes) -> bytes:
        """Take on the work of a phase, as `Work.dumps` gave it.

        Args:
            token: what is in the file `REACH`.
        """
        try:
            self._opened = None
            work = Work.loads(data)
            self._look(work, token)
            self._opened = Opened(work, self._place)
            return pickle.dumps(None)
        except Exception as error:
            return _pickled(error)

    def do(self, task: bytes) -> bytes:
        assert self._opened is not None
        try:
            return pickle.dumps(self._opened.do(pickle.loads(task)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return _pickled(error)

    def rest(self) -> None:
        """Let go of the work."""
        self._opened = None

    def _look(self, work: Work, token: bytes) -> None:
        """
        Raises:
            UserError: this node does not see the store that the tasks are about.
        """
        store = work.job.store
        try:
            there = store.read("work", work.job.artifact, REACH)
        except Exception as error:  # of whatever kind of storage
            there, why = b"", f" ({error})"
        else:
            why = ""
        if there == token:
            return
        place = store.root if store.local else store.url
        advice = (
            "A local store must lie on a file system that all nodes have under the same path; else take one in a bucket (s3://...)."
            if store.local
            else "Every node needs the way to it and the credentials in its own environment."
        )
        raise UserError(f"the node {self._place.rpartition(':')[0]} can't see the store {place}{why}. {advice}")


def _place() -> str:
    """`node:process`; a machine may have several nodes."""
    node, ray = "", sys.modules.get("ray")
    if ray and ray.is_initialized():
        node = f"/{ray.get_runtime_context().get_node_id()[:6]}"
    return f"{socket.gethostname()}{node}:{os.getpid()}"


def _pickled(error: Exception) -> bytes:
    trace = traceback.format_exc()
    try:
        data = pickle.dumps(Raised(error, trace))
        pickle.loads(data)
        return data
    except Exception:  # some can't be taken apart and put together again
        return pickle.dumps(Raised(StageFailed(f"{type(error).__name__}: {error}"), trace))
