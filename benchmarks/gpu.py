"""What only an NVIDIA GPU can show: FLOPs utilisation of pretraining, fine-tuning and GRPO beside TRL, sampling beside vLLM alone.

    python -m benchmarks.gpu --json [--only mfu_1.3B,grpo] [--minutes 8] [--keep FOLDER] [--tiny]

Each row runs in a process of its own, the most valuable first, and writes down what it finds as it goes; the process of the next one
imports what it needs meanwhile. A row that fails, is cut when its time is over, or needs what is not installed leaves what it had, and its
words in `problems`. The last line is one JSON object, with a claim for each line that is to be shown.

`--keep` keeps what each row told (ROW.json, ROW.log): whatever ends this command, it is there, and the same command again goes on with the
rows that have not come to their end. `--tiny` is small, on whatever is here, to see that it runs. This file needs Python alone; what rows
need: docs/benchmarks.md, and `python -m benchmarks.parts.gpu_wheels` for a machine that reaches no registry.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.parts.gpu.rows import ROWS, claims

ROOT = Path(__file__).parents[1]
VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "vllm", "bitsandbytes")
LEAST_S = 20.0  # a row that would have less is not begun
NO_GPU = "there is no NVIDIA GPU here"


@dataclass
class Started:
    """The process of a row, which waits for the word to begin."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path
    log: Path

    def begin(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin
            self.process.stdin.write(b"begin\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """End it, and all that it has started."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # one that still waits goes by itself
        for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 60)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)


def start(name: str, keep: Path, home: Path, tiny: bool) -> Started:
    command = [
        sys.executable, "-m", "benchmarks.parts.gpu.row_process", name, str(keep / f"{name}.json"), str(home / name),
        str(home / "data"), *(["--tiny"] if tiny else []),
    ]  # fmt: skip
    log = keep / f"{name}.log"
    with log.open("w") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=printed, stderr=printed, start_new_session=True
        )
    return Started(name, process, keep / f"{name}.json", log)


def told(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"numbers": {}, "problem": "", "done": False}


def run(row: Started, seconds: float) -> str:
    """Let a row do its work, for so long at most. What went wrong, in words; empty if nothing did."""
    row.begin()
    try:
        code = row.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"cut after {seconds:.0f} s"
    finally:
        row.end()
    found = told(row.out)
    if not found["done"]:
        return f"failed: it ended with {code}: {row.log.read_text(errors='replace')[-600:]}"
    return found["problem"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line (always done)")
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, by commas: {', '.join(ROWS)}")
    parser.add_argument("--minutes", type=float, default=8, help="for all of them together")
    parser.add_argument("--keep", type=Path, help="a folder for what each row tells")
    parser.add_argument("--tiny", action="store_true", help="on any machine; proves nothing but that it runs")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    if unknown := [name for name in wanted if name not in ROWS]:
        raise SystemExit(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}.")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # what was found so far is told all the same
        signal.signal(number, _stop)
    with tempfile.TemporaryDirectory(prefix="flywheel-gpu-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        keep = given.keep or home / "kept"
        keep.mkdir(parents=True, exist_ok=True)
        problems = run_all(wanted, keep.resolve(), home, given.minutes * 60, given.tiny)
        print(json.dumps(summary(wanted, keep, problems, given.tiny)))


def run_all(wanted: list[str], keep: Path, home: Path, seconds: float, tiny: bool) -> dict[str, str]:
    """Run these rows, one after the other. What went wrong, in words, by row."""
    deadline = time.monotonic() + seconds
    problems: dict[str, str] = {}
    left: list[str] = []
    for name in wanted:
        found = told(keep / f"{name}.json")
        if found["done"] and not found["problem"] and found["tiny"] == tiny:
            print(f"{name}: as {keep / name}.json has it", file=sys.stderr, flush=True)
        else:
            (keep / f"{name}.json").unlink(missing_ok=True)
            left.append(name)
    following: Started | None = None
    under_way: Started | None = None
    try:
        for place, name in enumerate(left):
            under_way = following or start(name, keep, home, tiny)
            following = start(left[place + 1], keep, home, tiny) if place + 1 < len(left) else None
            remaining = deadline - time.monotonic()
            if remaining < LEAST_S and place:
                problems |= dict.fromkeys(left[place:], "no time was left for it")
                break
            print(f"{name} ...", file=sys.stderr, flush=True)
            words = run(under_way, min(remaining, 60 * ROWS[name].minutes))
            if words:
                problems[name] = words
            print(
                json.dumps({"row": name, **told(under_way.out)["numbers"], "problem": words}),
                file=sys.stderr,
                flush=True,
            )
            if NO_GPU in words:
                problems |= dict.fromkeys(left[place:], words)
                break
            shutil.rmtree(home / name, ignore_errors=True)
    except KeyboardInterrupt:
        problems |= {name: "stopped from outside" for name in left if not told(keep / f"{name}.json")["done"]}
    finally:
        for one in (under_way, following):
            if one:
                one.end()
    return problems


def summary(wanted: list[str], keep: Path, problems: dict[str, str], tiny: bool) -> dict[str, Any]:
    numbers = {name: told(keep / f"{name}.json")["numbers"] for name in wanted}
    skipped = {name: words for name, words in problems.items() if words.startswith("skipped: ")}
    rows = {
        name: {**numbers[name], **({"skipped": skipped[name].removeprefix("skipped: ")} if name in skipped else {})}
        for name in wanted
    }
    devices = [row["device"] for row in numbers.values() if "device" in row]
    return {
        "device": devices[0] if devices else None, "python": platform.python_version(),
        "versions": {name: found for name in VERSIONS if (found := _version(name))}, "tiny": tiny, "rows": rows,
        "problems": problems, "claims": claims(numbers, problems, wanted),
    }  # fmt: skip


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
