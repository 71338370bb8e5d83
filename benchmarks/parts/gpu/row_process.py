"""The process of one row of `benchmarks.gpu`: it imports what it can ahead, waits for the word to begin (a line on its standard input),
and writes down at once whatever it finds, so that of a row that fails or is cut there is what it had.

    python -m benchmarks.parts.gpu.row_process ROW OUT FOLDER DATA [--tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.parts.gpu.rows import ROWS, Row, Skipped


@dataclass
class Account:
    """What a row has told, in a file.

    Attributes:
        tiny: whether these numbers mean anything.
    """

    file: Path
    tiny: bool
    numbers: dict[str, Any] = field(default_factory=lambda: {})
    problem: str = ""
    done: bool = False

    def tell(self, **numbers: Any) -> None:
        self.numbers |= numbers
        self.write()

    def write(self) -> None:
        partial = self.file.with_suffix(".partial")
        facts = {"tiny": self.tiny, "done": self.done, "problem": self.problem, "numbers": self.numbers}
        partial.write_text(json.dumps(facts))
        partial.replace(self.file)


def work_of(row: Row) -> Callable[..., None]:
    """The function that a row names.

    Raises:
        Skipped: something that it imports is not installed.
    """
    module, _, name = row.work.partition(":")
    try:
        return getattr(importlib.import_module(f"benchmarks.parts.gpu.{module}"), name)
    except ModuleNotFoundError as error:
        raise Skipped(lacking(error.name or str(error))) from error


def lacking(name: str) -> str:
    return f"`{name.partition('.')[0]}` is not installed here; `python -m benchmarks.parts.gpu_wheels` brings it"


def prepare_vllm() -> None:
    """Set what vLLM reads as it is imported."""
    if importlib.util.find_spec("flashinfer") is None:
        # vLLM 0.24 takes for granted that its sampler of top-k and top-p is there, which nobody asks for here.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    with contextlib.suppress(ImportError):
        from generators.backends.vllm.options import ENVIRONMENT

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def import_ahead(row: Row) -> None:
    """What can be had; what can't is told when the row needs it."""
    prepare_vllm()
    for module in row.ahead:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with contextlib.suppress(Skipped):
        work_of(row)


def carry_out(row: Row, account: Account, folder: Path, data: Path) -> None:
    """Do what a row says, here and now; what goes wrong is told in words."""
    started = time.monotonic()
    try:
        work = work_of(row)
        from benchmarks.parts.gpu.scene import Scene

        work(Scene(folder, data, account.tiny, account.tell), **row.given)
    except Skipped as error:
        account.problem = f"skipped: {error}"
    except ModuleNotFoundError as error:
        account.problem = f"skipped: {lacking(error.name or str(error))}"
    except Exception as error:
        words = f"{type(error).__name__}: {str(error)[-1500:]}"
        ours = type(error).__name__ == "UserError"  # says what is missing, and what to do
        account.problem = f"skipped: {error}" if ours else f"failed: {words}"
        if not ours:
            import traceback

            traceback.print_exc()
    account.done = True
    account.tell(seconds=round(time.monotonic() - started, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=list(ROWS))
    for name in ("out", "folder", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    row = ROWS[given.row]
    import_ahead(row)
    if not sys.stdin.readline():  # whoever asked for this row is gone, or needs it no more
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    given.data.mkdir(parents=True, exist_ok=True)
    carry_out(row, Account(given.out, given.tiny), given.folder, given.data)
    # An engine or a compiler may have left threads or processes behind that would keep this one waiting.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
