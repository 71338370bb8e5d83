"""What a part of `benchmarks.scale` is given, and where it tells what it found."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim


@dataclass(frozen=True)
class Bar:
    """A line that is to be shown: by which part, in words, and whether a value reaches it. None: told, there is no bar."""

    part: str
    words: str
    holds: Callable[[Any], bool] | None = None


class Missing(Exception):
    """Something that a part needs is not here; the words say what."""


@dataclass
class Bench:
    """Everything told is written down at once, so that of a part that fails or is cut there is what it had.

    Attributes:
        out: the file that holds what was told.
        data: a folder that is kept between runs: texts that take minutes to make.
        folder: for this part alone; goes with it.
        quick: small, to see that it runs; the numbers mean nothing.
    """

    out: Path
    data: Path
    folder: Path
    quick: bool
    bars: dict[str, Bar]
    claims: dict[str, Claim] = field(default_factory=lambda: {})
    numbers: dict[str, Any] = field(default_factory=lambda: {})
    problems: list[str] = field(default_factory=lambda: [])

    def claim(self, id: str, value: Any, **more: Any) -> None:
        bar = self.bars[id]
        holds = bar.holds is None or (value is not None and bar.holds(value))
        self.claims[id] = claim(id, value, bar.words, holds, **more)
        self._write()

    def number(self, **values: Any) -> None:
        self.numbers |= values
        self._write()

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self._write()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """What fails inside is a problem in words, and the part goes on after it. How long it took is a number."""
        started = time.monotonic()
        try:
            yield
        except Missing as error:
            self.problem(f"{what}: skipped, {error}")
        except Exception as error:
            self.problem(f"{what}: {type(error).__name__}: {str(error)[-1500:]}")
        took = self.numbers.setdefault("seconds", {})
        took[what] = round(time.monotonic() - started, 1)
        self._write()

    def size(self, whole: int, quick: int) -> int:
        return quick if self.quick else whole

    def _write(self) -> None:
        told = {"claims": list(self.claims.values()), "numbers": self.numbers, "problems": self.problems}
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps(told))
        partial.replace(self.out)


def borrowed(module: str, name: str) -> Any:
    """A function of another benchmark.

    Raises:
        Missing: it is not here.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise Missing(f"`{error.name}` is not installed or not here") from None
    except AttributeError:
        raise Missing(f"{module} has no `{name}`") from None


def environment(**more: str) -> dict[str, str]:
    """For a command of ours. Byte code is compiled once, as it is for whoever has installed a tool, whatever this one says."""
    given = {**os.environ, **more}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given
