"""Curation of 10^10 documents on paper: bytes, shuffles, memory, tasks, hours and cost of each stage, from measured rates.

    python -m benchmarks.parts.scale_on_paper [--from SCALE.json] [--documents 1e10] [--tokens 1e12] [--cores 1000] [--price 0.04]

`SCALE.json` is the last line of `python -m benchmarks.scale --json --only cores,short,components`; else the numbers of `MEASURED` are used.
Two corpora were measured, a gigabyte of long documents and ten million short ones, so that what a stage takes can be taken apart:
seconds = a * gigabytes of text + b * million documents. Everything beyond what was measured is multiplication, and says nothing about
networks, stragglers, or machines that fail.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.stage.slices import Piece, Slice

# Bytes that dedup leaves for each document (pipelines/dedup/signatures.py): its key, preference and number; a key and number a band; counts
# and preference; a signature.
BANDS, PERMUTATIONS = 15, 120  # at a threshold of .8 and a recall of .99
KEYS, BAND, FACTS, SIGNATURE = 32, 12, 16, 4 * PERMUTATIONS
SORTED = 40  # bytes in memory for each band's key while a range is sorted (pipelines/dedup/work.py)
NODE = 29  # bytes in memory for each document while components are found (pipelines/dedup/components.py)
GROUP_ROWS, READ_BYTES, SLICE_ROWS = 100_000, 256e6, 10_000
PUT, GET = 5e-6, 4e-7  # dollars a request: S3's list prices
SAMPLE = 100_000


@dataclass(frozen=True)
class Corpus:
    """What was measured on one: its text, and for each stage the CPU seconds and the bytes written."""

    gigabytes: float
    millions: float
    cpu_s: dict[str, float]
    written_gb: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """
    Attributes:
        long, short: of files, and of lines.
        edges_per_s: of finding components.
    """

    long: Corpus
    short: Corpus
    edges_per_s: float
    machine: str

    def cost(self, stage: str, what: Callable[[Corpus], dict[str, float]]) -> tuple[float, float]:
        """(a, b): of a gigabyte, and of a million documents. A stage that was measured on long documents alone costs by the byte."""
        one, two = self.long, self.short
        if stage not in what(two):
            return what(one)[stage] / one.gigabytes, 0.0
        x, y = what(one)[stage], what(two)[stage]
        determinant = one.gigabytes * two.millions - two.gigabytes * one.millions
        a = (x * two.millions - y * one.millions) / determinant
        b = (y * one.gigabytes - x * two.gigabytes) / determinant
        return max(a, 0.0), max(b, 0.0)


@dataclass(frozen=True)
class World:
    """What is asked about.

    Attributes:
        exact, near: shares of the documents that are copies, and that share a bucket with another one.
        memory: bytes for each worker.
        price: dollars a core-hour.
        packing: bytes on disk of a byte of text: prose by zstd; the text of programs took .14.
        network: bytes/s for each core: 10 Gbit/s for 16 of them.
    """

    documents: float
    tokens: float
    cores: float
    price: float
    bytes_per_token: float = 4.4
    exact: float = 0.1
    near: float = 0.2
    packing: float = 0.35
    memory: float = 4e9
    network: float = 1.25e9 / 16

    @property
    def text(self) -> float:
        return self.tokens * self.bytes_per_token

    @property
    def groups(self) -> float:
        return self.documents / GROUP_ROWS

    @property
    def ranges(self) -> float:
        return self.documents * BANDS * SORTED / (0.4 * self.memory)


@dataclass(frozen=True)
class Line:
    """Bytes, tasks, core-hours of a stage or phase."""

    name: str
    read: float
    written: float
    shuffled: float
    memory: float
    tasks: float
    core_hours: float | None


def table(world: World, measured: Measured) -> list[Line]:
    gb, millions = world.text / 1e9, world.documents / 1e6

    def hours(stage: str) -> float:
        a, b = measured.cost(stage, lambda corpus: corpus.cpu_s)
        return (a * gb + b * millions) / 3600

    def written(stage: str) -> float:
        _, b = measured.cost(stage, lambda corpus: corpus.written_gb)
        return world.text * world.packing + b * millions * 1e9

    n, packed = world.documents, written("read")
    signed = n * (KEYS + BANDS * BAND + FACTS + SIGNATURE)
    keys = n * (KEYS + BANDS * BAND)
    edges = n * world.near * BANDS * 0.5
    left = edges * 16 + n * world.exact * 32
    candidates = n * world.near
    words = world.tokens / n * 0.75
    sets = candidates * (8 * words + SIGNATURE + 24)
    kept = 1 - world.exact - world.near / 2
    return [
        Line("read", world.text, packed, 0, 500e6, world.text / READ_BYTES, hours("read")),
        Line("filter", packed, written("filter"), 0, 300e6, n / SLICE_ROWS, hours("filter")),
        Line("dedup: sign", packed, signed, 0, world.memory, world.groups, None),
        Line("dedup: bucket", keys, left, keys, world.memory, world.ranges, None),
        Line("dedup: connect", left, candidates * 12, left, n * NODE, 1, edges / measured.edges_per_s / 3600),
        Line("dedup: make sets", packed + candidates * SIGNATURE, sets, 0, world.memory, world.groups, None),
        Line("dedup: resolve", sets, candidates * 40, sets, world.memory, sets / 32e6, None),
        Line("dedup: name, write", 1.3 * packed, kept * packed, candidates * 40, world.memory, 2 * world.groups, None),
        Line("dedup, all phases", 3.3 * packed + keys + left + sets, kept * packed, keys + left + sets, 0, 0, hours("dedup")),
        Line("tokenize", packed, 2 * world.tokens, 2 * world.tokens, 500e6, n / SLICE_ROWS, hours("tokenize")),
    ]  # fmt: skip


def shown(world: World, measured: Measured) -> str:
    """The table in Markdown."""
    rows = ["| | read | written | shuffled | memory a task | tasks | core-hours | hours | dollars |", f"|{'---|' * 9}"]
    spent = wall = 0.0
    for line in table(world, measured):
        sizes = [_bytes(size) for size in (line.read, line.written, line.shuffled, line.memory)]
        cores = 1 if line.tasks == 1 else world.cores
        moved = (line.read + line.written) / (cores * world.network) / 3600
        work = ["", _hours(moved), ""]
        if line.core_hours is not None:
            work = [
                _hours(line.core_hours),
                _hours(max(line.core_hours / cores, moved)),
                f"{line.core_hours * world.price:,.0f}",
            ]
            spent, wall = spent + line.core_hours, wall + max(line.core_hours / cores, moved)
        rows.append(f"| {line.name} | {' | '.join(sizes)} | {_count(line.tasks)} | {' | '.join(work)} |")
    rows.append(f"| together | | | | | | {_hours(spent)} | {_hours(wall)} | {spent * world.price:,.0f} |")
    return "\n".join(rows)


def limits(world: World) -> dict[str, str]:
    """What breaks first: sizes that grow with the number of documents and lie in one place, or with its square. What a slice, an entry
    of a manifest and an id take in memory is measured here."""
    parts = world.documents / SLICE_ROWS
    names = [f"data/{number:05d}-{number:016x}.parquet" for number in range(SAMPLE)]
    piece = taken(lambda: [Slice("documents", i, i, (Piece(0, name, 0, 1),), 1 << 20) for i, name in enumerate(names)])
    manifest = json.dumps({name: {"bytes": 1 << 20, "sha256": f"{i:064x}"} for i, name in enumerate(names)}, indent=1)
    entry = taken(lambda: json.loads(manifest))
    signed, bucketed = parsed(int(world.ranges), 4), parsed(int(world.groups), 4)
    in_set = taken(lambda: {f"{number:032x}" for number in range(SAMPLE)})
    pairs = world.groups * world.ranges
    return {
        "memory of the components task": _bytes(world.documents * NODE),
        "slices that the driver lists": f"{_count(parts)}, {_bytes(parts * piece)}",
        "manifest of a stage": f"{_count(parts)} files, {_bytes(parts * len(manifest) / SAMPLE)}, {_bytes(parts * entry)} in memory",
        "parts of the exchange: groups x ranges": f"{_count(world.groups)} x {_count(world.ranges)} = {_count(pairs)}",
        "requests for them on S3": f"{_count(2 * pairs)} GET, {2 * pairs * GET:,.0f} dollars",
        "index of a group's file": f"{_bytes(signed[0])}, parsed by each range: {_hours(pairs * signed[1] / 3600)} core-hours",
        "index of a range's file": f"{_bytes(bucketed[0])}, parsed for each group, twice, by the components task alone: "
        f"{_hours(2 * pairs * bucketed[1] / 3600)} hours",
        "requests to write a stage's parts": f"{_count(parts)} PUT, {parts * PUT:,.0f} dollars; to list them {_count(parts / 1000)}",
        "ids in one set": _bytes(world.documents * in_set),
        "signatures against texts": f"{SIGNATURE + BANDS * BAND + KEYS + FACTS} bytes a document, its text has {world.text / world.documents:.0f}",
    }  # fmt: skip


def parsed(parts: int, lists: int) -> tuple[int, float]:
    """Bytes of a file's index, and the seconds to parse it: where its parts begin, and where their rows are cut, of two tables."""
    index = json.dumps([[10**9] * parts] * lists)
    started = time.process_time()
    json.loads(index)
    return len(index), time.process_time() - started


def taken(make: Callable[[], Any]) -> float:
    """Bytes of memory for each of `SAMPLE` things."""
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[0] / SAMPLE if made else 0
    finally:
        tracemalloc.stop()


def measured_by(told: dict[str, Any]) -> Measured:
    """From what `benchmarks.scale` printed.

    Raises:
        KeyError: a part of it is missing.
    """
    numbers = told["numbers"]
    one = {
        name: stage
        for job in ("read_filter", "dedup", "tokenize")
        for name, stage in numbers["cores"][job]["one"]["stages"].items()
    }
    local = numbers["short"]["local"]
    two = local[max(local, key=int)]["stages"]
    components = numbers["components"]
    return Measured(
        _corpus(numbers["cores"]["texts"], one), _corpus(numbers["short"]["texts"], two),
        components["edges"] / components["ours_s"], told["machine"],
    )  # fmt: skip


def _corpus(texts: dict[str, float], stages: dict[str, Any]) -> Corpus:
    return Corpus(
        texts["bytes"] / 1e9, texts["documents"] / 1e6, {name: stage["cpu_s"] for name, stage in stages.items()},
        {name: stage["written_bytes"] / 1e9 for name, stage in stages.items()},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="what benchmarks.scale printed")
    for name, value in (("documents", 1e10), ("tokens", 1e12), ("cores", 1000), ("price", 0.04)):
        parser.add_argument(f"--{name}", type=float, default=value)
    given = parser.parse_args()
    measured = measured_by(json.loads(given.source.read_text().splitlines()[-1])) if given.source else MEASURED
    world = World(given.documents, given.tokens, given.cores, given.price)
    print(shown(world, measured), end="\n\n")
    print("\n".join(f"| {what} | {size} |" for what, size in limits(world).items()))
    print(f"\nRates of {measured.machine}. Seconds a GB of text, and a million documents:")
    for stage in measured.long.cpu_s:
        print(stage, "{:.1f}, {:.1f}".format(*measured.cost(stage, lambda corpus: corpus.cpu_s)))


def _bytes(size: float) -> str:
    if not size:
        return ""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2g} {unit}" if size < 99.5 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _count(number: float) -> str:
    if not number:
        return ""
    return f"{number:,.0f}" if number < 1e6 else f"{number:.1e}".replace("e+0", "e")


# 2026-12-01, alone on two cores: CPU seconds of each stage with one worker, of a gigabyte of the text files of an installed environment and of
# ten million documents of six words (`python -m benchmarks.scale --json --only cores,short,components`).
MEASURED = Measured(
    Corpus(
        1.0, 0.0917,
        {"read": 6.43, "filter": 8.79, "dedup": 8.18, "tokenize": 11.97},
        {"read": 0.198, "filter": 0.200, "dedup": 0.202, "tokenize": 0.666},
    ),
    Corpus(
        0.2285, 10.0,
        {"read": 60.4, "filter": 13.1, "dedup": 57.8},
        {"read": 0.305, "filter": 0.305, "dedup": 0.369},
    ),
    2.0e7, "x86_64, 2 cores, 23 GiB",
)  # fmt: skip


if __name__ == "__main__":
    main()
