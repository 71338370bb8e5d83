"""`flywheel ui` over ten million rows: how long a page, a filter and an order take, and how much memory the server has.

    python -m benchmarks.window --json [--rows 10000000] [--keep FOLDER]
    python -m benchmarks.window --only sweep --json [--keep FOLDER]     a sweep over the quickstart's DPO (`parts/dpo_sweep.py`)
    python -m benchmarks.window --only walk --json [--keep FOLDER] [--pictures FOLDER]    a browser over the quickstart (`parts/window/`)
    python -m benchmarks.window --only reports --json [--keep FOLDER] [--pictures FOLDER] three runs' reports (`parts/window/reports.py`)

The real command serves a store with one artifact in parts of 10,000 rows (as stages commit them), and is asked over HTTP, one request after the
other, each query for the first time. What is found is compared with what was planted. Memory is the peak of the server's process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.dpo_sweep import dpo_sweep
from benchmarks.parts.window.reports import reports
from benchmarks.parts.window.walk import walked
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import Stage
from engine.store.store import Store

PART = 10_000
WORDS = [
    "the",
    "wheel",
    "turns",
    "and",
    "stores",
    "its",
    "turning",
    "for",
    "later",
    "use",
    "of",
    "river",
    "lima",
    "callao",
    "sea",
    "old",
    "town",
    "pump",
    "gear",
    "belt",
    "motor",
    "energy",
    "flow",
]
COMMAND = [sys.executable, "-c", "from flywheel.commandline import main; main()"]


def identity(number: int) -> str:
    """An id whose first eight digits, which a page shows, are a row's own."""
    return f"{number:08x}" + 24 * "0"


class Planted(Stage):
    """Documents of fourteen words and their number; `score` is that number over all rows' number."""

    gives = "Document"
    rows: int

    def run(self, job: Job) -> None:
        drawn, words = np.random.default_rng(0), np.array(WORDS)
        for first in range(0, self.rows, PART):
            numbers = range(first, first + PART)
            texts = [
                f"{' '.join(row)} {i}"
                for i, row in zip(numbers, words[drawn.integers(0, len(words), (PART, 14))], strict=True)
            ]
            job.commit(
                f"{first // PART:05d}",
                pa.table({
                    "id": [identity(i) for i in numbers], "parents": pa.array([[]] * PART, pa.list_(pa.string())), "text": texts,
                    "source": [f"file{first // PART % 7}.txt"] * PART, "offset": np.arange(first, first + PART),
                    "score": np.arange(first, first + PART) / self.rows,
                }),
            )  # fmt: skip


def ask(client: httpx.Client, place: str, **query: str) -> tuple[float, list[str]]:
    """Seconds until a page is there, and the ids on it."""
    began = time.perf_counter()
    page = client.get(place, params=query)
    took = time.perf_counter() - began
    page.raise_for_status()
    return took, re.findall(r'<td><a href="/artifact/[^"]+/row/\d+">([0-9a-f]{8})</a>', page.text)


def measure(store: Store, artifact: str, rows: int) -> dict[str, Any]:
    server = subprocess.Popen([*COMMAND, "ui", "--store", store.url, "--no-open"], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        link = server.stdout.readline().strip()
        place = f"/artifact/{artifact}"
        last, middle = rows - 3, rows // 2
        asked: dict[str, tuple[dict[str, str], list[int]]] = {
            "first_page": ({}, list(range(50))),
            "page_in_the_middle": ({"start": str(middle)}, list(range(middle, middle + 50))),
            "search_one_row": ({"q": f"{last}"}, [last]),
            "filter_by_number": ({"where": f"score > {(rows - 3.5) / rows}"}, [rows - 3, rows - 2, rows - 1]),
            "filter_by_text_and_number": ({"where": f"text LIKE '% {last}' AND score > 0.5"}, [last]),
            "order_by_number": ({"sort": "score", "order": "down"}, list(range(rows - 1, rows - 51, -1))),
        }
        told: dict[str, Any] = {}
        with httpx.Client(base_url=link.partition("/?")[0], follow_redirects=True, timeout=300) as client:
            client.get(link)
            for name, (query, wanted) in asked.items():
                took, found = ask(client, place, **query)
                ids = [identity(i)[:8] for i in wanted]
                told[name] = {"seconds": round(took, 3), "right": found == ids}
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
            told["server_peak_mb"] = round(int(peak[1]) / 1024) if peak else None
    finally:
        server.terminate()
        server.wait(30)
    return told


def rows_asked_for(folder: Path, rows: int) -> tuple[dict[str, Any], list[Claim]]:
    store = Store(str(folder / "store"))
    made = next(store.artifacts(), None) or carry_out(store, "planted", Planted.model_validate({"rows": rows}), {})
    told = measure(store, made.id, made.rows)
    filters = ("search_one_row", "filter_by_number", "filter_by_text_and_number")
    first, slowest = told["first_page"]["seconds"], max(told[name]["seconds"] for name in filters)
    right = all(one["right"] for one in told.values() if isinstance(one, dict))
    memory = told["server_peak_mb"]
    return {"rows": made.rows, **told}, [
        claim("window.first_page_s", first, "< 1", first < 1),
        claim("window.filter_s", slowest, "< 3", slowest < 3),
        claim("window.memory_mb", memory, "< 500", (memory or 1e9) < 500),
        claim("window.what_is_found_is_right", right, "all", right),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("rows", "sweep", "walk", "reports"), default="rows")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, help="a folder in which the store stays for another time")
    parser.add_argument("--pictures", type=Path, help="of the walk and the reports: a folder for screenshots")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (options.keep or Path(temporary)).resolve()
        told: dict[str, Any] = {}
        if options.only == "sweep":
            claims = dpo_sweep(folder, told)
        elif options.only == "walk":
            claims = walked(folder, told, options.pictures)
        elif options.only == "reports":
            claims = reports(folder, told, options.pictures)
        else:
            told, claims = rows_asked_for(folder, options.rows)
    print(json.dumps({"benchmark": "window", "machine": platform.machine(), **told, "claims": claims}))


if __name__ == "__main__":
    main()
