"""Two workers of ours against two of datatrove's: the same files, the same machine, one after the other.

Ours are whole commands, reading included. Gopher's rules, which are only told, are measured on a part of the text (`MEGABYTES`): there
the start of our command counts for more.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.curation import peer_python
from benchmarks.parts.scaling import texts
from benchmarks.parts.scaling.bench import Bench
from benchmarks.parts.scaling.cores import warm
from benchmarks.parts.scaling.recipes import curation, job
from benchmarks.parts.scaling.usage import ROOT, busy, measured

MEGABYTES = {"near_duplicates": 1_000, "filter": 100}
STAGES = {"near_duplicates": "unique", "filter": "clean"}
PYTHONS = Path(tempfile.gettempdir()) / "flywheel-peers"


def peers(bench: Bench) -> None:
    python = peer_python(PYTHONS, ["datatrove"])
    bench.number(busy_before=busy())
    for name, megabytes in MEGABYTES.items():
        with bench.attempt(name):
            real, size = texts.real(bench.data, bench.size(megabytes, 2))
            if name == "near_duplicates":
                warm(bench, real)
            ours = job(curation(bench.folder, real), bench.folder / f"store-{name}", STAGES[name], "--workers", "2")
            theirs = datatrove(bench, python, name, real)
            ratio = round(theirs["wall_s"] / ours["wall_s"], 1)
            bench.number(
                **{name: {"megabytes": size["bytes"] / 1e6, "ours": ours, "datatrove": theirs, "ratio": ratio}}
            )
            if name == "near_duplicates":
                cpu = round(theirs["cpu_s"] / ours["cpu_s"], 1)
                bench.claim(
                    "near_duplicates_datatrove_over_ours", ratio, cpu=cpu, wall_s=[theirs["wall_s"], ours["wall_s"]]
                )


def datatrove(bench: Bench, python: str, name: str, real: Path, workers: int = 2) -> dict[str, Any]:
    out = bench.folder / f"datatrove-{name}"
    out.mkdir()
    script = str(ROOT / "benchmarks" / "peers" / "datatrove_jobs.py")
    told = measured([python, script, name, str(real), str(out), str(workers)])
    told |= json.loads((out / "told.json").read_text())
    shutil.rmtree(out)
    return told
