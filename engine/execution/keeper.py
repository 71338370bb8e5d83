"""Between a run and its worker: whatever ends, no process that the worker started lives on.

`python -P -m engine.execution.keeper PARENT SPEC AHEAD...` forks before it imports anything. The child becomes the worker; this process waits
for it, and for the end of the run (`PR_SET_PDEATHSIG`, which works for `kill -9`, too). Then it kills whatever is left below it: a process
whose parent is gone becomes its child (`PR_SET_CHILD_SUBREAPER`), in whatever group or session it may be. What is meant to
outlive a run (a server of this machine) is started with `$FLYWHEEL_OUTLIVES`.

SIGTERM is passed on to the worker, which then has a few seconds to close what is open. See prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

OUTLIVES = "FLYWHEEL_OUTLIVES"
GRACE_S, LAST_WORDS_S = 5, 1
PDEATHSIG, SUBREAPER = 1, 36  # of prctl
_adopts = False


def main() -> None:
    parent, spec, ahead = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal tells all of us; the run decides
    if sys.platform != "linux":
        _work(spec, ahead)
    waits_for = {signal.SIGTERM, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waits_for)
    libc = ctypes.CDLL(None)
    adopt_orphans()
    libc.prctl(PDEATHSIG, int(signal.SIGTERM))
    me = os.getpid()
    worker = os.fork()
    if worker == 0:
        libc.prctl(PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != me:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _work(spec, ahead)
    os.close(int(os.environ["FLYWHEEL_EVENTS"]))  # the worker's alone: its end is the end of events
    status = _attend(parent, worker, waits_for)
    end_children()
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one of these is enough
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waits_for)
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(me, number)
    os._exit(os.waitstatus_to_exitcode(status))


def _work(spec: str, ahead: list[str]) -> NoReturn:
    from engine.execution import stops

    stops.listen(signal.SIGTERM)
    stops.begin()
    try:
        from engine.execution.worker import await_word, work

        code = work(spec) if await_word(ahead) else 0
    except BaseException as error:  # before it could say anything itself
        code = stops.exit_code(signal.SIGTERM) if stops.received() else _tell(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk
            stream.flush()
    os._exit(code)  # engines leave threads behind that would hold the process


def _tell(error: BaseException) -> int:
    from engine.shortage import shortage

    with contextlib.suppress(OSError):
        traceback.print_exception(error)  # to the log
    words = shortage(error)
    told = {"event": "failed", "text": words or f"{type(error).__name__}: {error}", "unexpected": words is None}
    with contextlib.suppress(OSError):
        os.write(int(os.environ["FLYWHEEL_EVENTS"]), json.dumps(told).encode() + b"\n")
    return 1


def _attend(parent: int, worker: int, waits_for: set[signal.Signals]) -> int:
    """Wait for the worker's end, and bring it about where the run asks for it or is gone. Gives the worker's status."""
    until: float | None = None
    while True:
        while os.getppid() == parent:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == worker:
                return status
            if pid == 0:
                break
        if os.getppid() != parent or (until and time.monotonic() > until):
            os.kill(worker, signal.SIGKILL)
            return os.waitpid(worker, 0)[1]
        told = signal.sigtimedwait(waits_for, 0.1 if until else 3600)
        if told and told.si_signo == signal.SIGTERM and until is None and os.getppid() == parent:
            until = time.monotonic() + GRACE_S
            os.kill(worker, signal.SIGTERM)


def adopt_orphans() -> None:
    """Have processes below this one become its children when their parent ends (Linux)."""
    global _adopts
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
        _adopts = True


def end_orphans(ours: set[int]) -> None:
    """After a keeper was killed: end what it kept, in a process that adopts orphans. (A notebook does not; it has children of its own.)

    Args:
        ours: children that are none: the keepers of other stages.
    """
    if _adopts:
        end_children(ours)


def end_children(but: set[int] | None = None) -> None:
    """End the children of this process that are left, and theirs. Some end by themselves (a tracker that removes shared memory): they
    have a moment for that.

    Args:
        but: children that stay.
    """
    until = time.monotonic() + LAST_WORDS_S
    while left := [child for child in _children() if child not in (but or ()) and not _outlives(child)]:
        late = time.monotonic() > until
        for child in left:
            if late:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0 if late else os.WNOHANG)  # its own children are ours now
        if not late:
            time.sleep(0.02)


def _children() -> list[int]:
    lists = [task / "children" for task in Path("/proc/self/task").iterdir()]
    if all(children.exists() for children in lists):
        return [int(pid) for children in lists for pid in children.read_text().split()]
    me = os.getpid()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry) == me]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _outlives(pid: int) -> bool:
    try:
        return f"{OUTLIVES}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    main()
