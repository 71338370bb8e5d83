"""What can go wrong, by whose turn it is to act. The command line maps each class to an exit code."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

from engine.redaction import redacted


class FlywheelError(Exception):
    """Anything raised in our own words: printed as a message, never as a traceback, and without secrets."""

    exit_code = 1

    def __str__(self) -> str:
        return redacted(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UserError(FlywheelError):
    """The user's input is wrong: say what was found, where, what was expected, what to do. Exit code 2."""

    exit_code = 2


class StageFailed(FlywheelError):
    """A stage could not finish. What it committed stays; running again goes on from there. Exit code 1."""

    exit_code = 1


class Waiting(FlywheelError):
    """A stage waits for people. Running again goes on when they are done. Exit code 3."""

    exit_code = 3


class Busy(FlywheelError):
    """Another run makes the same artifact right now, and this one was told not to wait for it. Exit code 1."""

    exit_code = 1


class Damaged(FlywheelError):
    """A file of a store is not what was recorded of it: name it, and what heals it. Exit code 1."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known spelling, or the empty string."""
    several = list(itertools.islice(known, 2000))  # a file may have a million columns
    match = difflib.get_close_matches(word[:200], several, n=1, cutoff=0.5)
    return f" Did you mean `{match[0]}`?" if match else ""
