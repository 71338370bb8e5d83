"""Signals that stop a command: SIGINT (Ctrl-C), SIGTERM (Slurm, systemd, docker), SIGHUP (a closed terminal).

The first is raised as `Stopped` where the main thread stands, so that what is open is closed and children end; a second ends the
process at once. Imports only what every Python has imported already: who listens does so before anything else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 20  # a library may swallow what is raised in it
_received: signal.Signals | None = None
_busy = False
_words: Callable[[str], str] | None = None


class Stopped(KeyboardInterrupt):
    """The process was told to stop."""


def listen(*numbers: signal.Signals) -> None:
    """Take these signals, or all three. One that the process was started to ignore (`nohup`) stays ignored."""
    for number in numbers or SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, _take):
            signal.signal(number, _take)
    sys.unraisablehook = _unraisable


def begin(words: Callable[[str], str] | None = None) -> None:
    """From now on there is something to close: a signal is raised, and does not end the process where it stands.

    Args:
        words: what is to be said of a signal, by its name, where closing takes too long or a second signal comes.
    """
    global _busy, _received, _words
    _busy, _received, _words = True, None, words


def spoken() -> None:
    """What is to be said of a signal has been said."""
    global _words
    _words = None


def received() -> signal.Signals | None:
    """What the process was told to stop by, if it was."""
    return _received


def exit_code(number: signal.Signals) -> int:
    """As a shell has it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


def _take(number: int, _: FrameType | None) -> None:
    global _received
    first = _received is None
    _received = _received or signal.Signals(number)
    if first and _busy:
        signal.signal(signal.SIGALRM, _take)
        signal.alarm(PATIENCE_S)
        raise Stopped
    words = _words(_received.name) if _words else f"stopped by {_received.name}." if first else ""
    try:
        if os.isatty(2) and not first:
            os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
        if words:
            os.write(2, f"flywheel: {words}\n".encode())
    except OSError:
        pass
    os._exit(exit_code(_received))  # children die with their parent


def _unraisable(hook: Any) -> None:
    """What is raised where nobody can catch it (a destructor) would be printed; who was stopped says it in a line."""
    if _received is None:
        sys.__unraisablehook__(hook)


def open_streams() -> None:
    """Have a closed standard stream (`>&-`) lead nowhere: else the next file to be opened would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def unheard() -> None:
    """Nobody reads what this process prints (`| head`, a closed terminal): from now on it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        try:
            if os.fstat(number).st_rdev != os.fstat(nowhere).st_rdev and _broken(number):
                os.dup2(nowhere, number)
        except OSError:
            os.dup2(nowhere, number)
    os.close(nowhere)


def _broken(number: int) -> bool:
    """A pipe without a reader, or a terminal that is gone."""
    import select

    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
