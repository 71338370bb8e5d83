"""Kills at a moment of the work: imported by every Python process whose `PYTHONPATH` begins with this folder.

What a process does to the store's files (open, list, rename, remove, ...) is a touch. Python tells of each before it is done
(PEP 578); it is noted in `trace`, which all processes of a run share, by one byte:

    r  a rename, by which work becomes lasting (`Store.put`, checkpoints)
    .  any other touch
    s  an attempt starts (written by `Moments.arm`)
    k  a kill

A moment is so many renames since the first attempt, and then so many other touches, or the next rename if that comes before. As
long as it asks for fewer renames than the work needs, no attempt can end before it comes, on any machine.

vLLM touches no file while it answers: its process is killed by fuses. `fuse-B` holds the step of batch B (both from 0) before which
the process that has the batch dies, once; `batches` has a byte for each batch that was answered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

FOLDER, COMMAND = "FLYWHEEL_MOMENTS", "FLYWHEEL_MOMENTS_COMMAND"
TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.link", "os.truncate",
           "sqlite3.connect"}  # fmt: skip


class Watch:
    """Notes this process's touches of the store, and kills when the moment has come."""

    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, "moment.json")) as file:  # noqa: PTH118, PTH123  # every process pays for imports
            told = json.load(file)
        self.store: str = told["store"].rstrip("/") + "/"
        self.moment: tuple[int, int] | None = told["moment"]
        self.attempt: int = told["attempt"]  # who outlives it is spared
        self.victims: str = told["victims"]
        # The first process is the command; those below it find its id here.
        self.command = int(os.environ.setdefault(COMMAND, str(os.getpid())))
        self.trace = os.open(os.path.join(folder, "trace"), os.O_RDWR | os.O_CREAT | os.O_APPEND)  # noqa: PTH118
        self.seen = self.renames = self.touches = self.attempts = 0
        self.killed = False
        self.lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.lock = threading.Lock()  # another thread of the parent may have held it

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TOUCHES:
            return
        paths = [str(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike))]
        if not any(path.startswith(self.store) for path in paths):
            return
        rename = event == "os.rename" and paths[-1].startswith(self.store)
        with self.lock:
            if self.moment and self._comes(self.moment[0], self.moment[1], rename):
                os.write(self.trace, b"k")
                self._kill()
            os.write(self.trace, b"r" if rename else b".")

    def _comes(self, renames: int, touches: int, rename: bool) -> bool:
        while new := os.pread(self.trace, 1 << 16, self.seen):
            self.seen += len(new)
            for mark in new.decode():
                self.renames += mark == "r"
                self.attempts += mark == "s"
                self.touches = self.touches + 1 if mark == "." else 0
                self.killed = mark == "k" or (self.killed and mark != "s")
        if self.killed or self.attempts != self.attempt:
            return False
        return self.renames >= renames and (rename or self.touches >= touches)

    def _kill(self) -> None:
        me, command = os.getpid(), self.command
        if self.victims == "command" and me != command:
            os.kill(command, signal.SIGKILL)
            return  # whoever is left has to notice
        if self.victims != "stage" and me != command:
            os.kill(command, signal.SIGKILL)
        if self.victims == "group" and os.getpgrp() == command:
            os.killpg(command, signal.SIGKILL)
        os.kill(me, signal.SIGKILL)


def watch(folder: str) -> None:
    """Watch this process and, by its environment, those it starts."""
    os.environ[FOLDER] = folder
    sys.addaudithook(Watch(folder))


def burn_fuses(folder: str) -> None:
    """Watch this process's steps, if it holds a vLLM engine."""
    from pathlib import Path

    import generators.backends.vllm.engine as backend

    kind: Any = backend.VllmEngine
    generate = kind.generate

    def fused(self: Any, *batch: Any) -> Any:
        with Path(folder, "batches").open("ab") as batches:
            fuse, engine = Path(folder, f"fuse-{batches.tell()}"), self._llm.llm_engine
            if fuse.exists():
                step, left = engine.step, int(fuse.read_text())

                def counted() -> Any:
                    nonlocal left
                    if not left:
                        fuse.unlink()
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return step()

                engine.step = counted
            answers = generate(self, *batch)
            batches.write(b".")
        return answers

    kind.generate = fused


if FOLDER in os.environ:
    watch(os.environ[FOLDER])
    if "generators.backends.process.child" in sys.orig_argv:
        burn_fuses(os.environ[FOLDER])
