"""Parsers written in C work in a process of their own: a file that crashes one, or wants all memory or time, loses only itself.

    for item in apart("engine.reader.columnar:batches", file, ...):    # what that generator yields: JSON values and record batches

The process lives on for the next file. What a file may take there: `memory` bytes, and `SECONDS` of CPU from one item to the next.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

MEMORY = 1 << 30  # bytes; what is imported there takes 150 MB more
SECONDS = 10  # of CPU for a page, or for a thousand rows: honest ones take a hundredth
HEAD = struct.Struct("<cQ")
WORDS = {
    signal.SIGKILL: "its reader was killed, as systems without memory do",
    signal.SIGSEGV: "it crashes its reader (SIGSEGV)",
    signal.SIGABRT: "it makes its reader give up (SIGABRT)",
}

Process = subprocess.Popen[bytes]
_idle: list[tuple[int, Process]] = []  # with the process that started it: a fork has none


class Unreadable(Exception):
    """Why a file, or the rest of it, can't be read."""


def apart(function: str, *args: Any, memory: int = MEMORY) -> Iterator[Any]:
    """What a generator `module:function` yields for these arguments, in another process.

    Raises:
        Unreadable: it raised something, or its process died of the file.
    """
    process = _start()
    whole = False
    try:
        assert process.stdin and process.stdout
        body = pickle.dumps((function, args, memory, SECONDS))
        with contextlib.suppress(BrokenPipeError):  # what it died of is told below
            process.stdin.write(struct.pack("<Q", len(body)) + body)
            process.stdin.flush()
        while True:
            kind, data = _frame(process.stdout)
            match kind:
                case b"j":
                    yield json.loads(data)
                case b"b":
                    yield _batch(data)
                case b"x":
                    whole = True
                    raise Unreadable(data.decode())
                case b"e":
                    whole = True
                    return
                case _:
                    raise Unreadable(_death(process))
    finally:
        if whole:
            _idle.append((os.getpid(), process))
        else:
            _end(process)


def _start() -> Process:
    while _idle:
        owner, process = _idle.pop()
        if owner == os.getpid() and process.poll() is None:
            return process
    command = [sys.executable, "-P", "-c", "from engine.reader.apart import serve; serve()"]
    quiet = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **quiet}
    )


def _end(process: Process) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


@atexit.register
def _end_idle() -> None:
    while _idle:
        owner, process = _idle.pop()
        if owner == os.getpid():
            _end(process)


def _death(process: Process) -> str:
    code = process.wait()
    if code < 0:
        if code == -signal.SIGXCPU:
            return f"it takes more than {SECONDS} s of CPU"
        return WORDS.get(signal.Signals(-code), f"its reader died of {signal.Signals(-code).name}")
    return f"its reader ended with {code}"


def _frame(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    """A kind and what came with it; no kind where the process is gone."""
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return b"", b""
    kind, size = HEAD.unpack(head)
    data = pipe.read(size)
    return (kind, data) if len(data) == size else (b"", b"")


def _batch(data: bytes) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


# -- the other process ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Carry out what stdin asks for, until it ends."""
    answers, requests = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # whatever a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side ends this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = MEMORY
    while head := requests.read(8):
        try:
            function, args, memory, seconds = pickle.loads(requests.read(struct.unpack("<Q", head)[0]))
            module, _, name = function.partition(":")
            work = getattr(importlib.import_module(module), name)
            _limit(memory, seconds)
            for item in work(*args):
                _answer(answers, *_packed(item))
                _limit(memory, seconds)
            _answer(answers, b"e", b"")
        except BrokenPipeError:
            return
        except MemoryError:
            _answer(answers, b"x", f"it takes more than {memory >> 20:,} MB of memory".encode())
        except Exception as error:  # the other side has words for it
            told = f"{type(error).__name__}: {error}".strip()
            _answer(answers, b"x", told.encode("utf-8", "backslashreplace"))


def _limit(memory: int, seconds: int) -> None:
    """From now on: so much memory more than an empty process of this kind has, and so much CPU for the next item."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory + (200 << 20), resource.RLIM_INFINITY))
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, resource.RLIM_INFINITY))


def _packed(item: Any) -> tuple[bytes, bytes]:
    import pyarrow as pa

    if not isinstance(item, pa.RecordBatch):
        return b"j", json.dumps(item).encode()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, item.schema) as writer:
        writer.write_batch(item)
    return b"b", sink.getvalue()


def _answer(answers: IO[bytes], kind: bytes, data: bytes) -> None:
    answers.write(HEAD.pack(kind, len(data)))
    answers.write(data)
    answers.flush()
