"""Two cores against one: whole jobs by the command line on a gigabyte of real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.parts.scaling import texts
from benchmarks.parts.scaling.bench import Bench
from benchmarks.parts.scaling.recipes import curation, digests, job
from benchmarks.parts.scaling.usage import busy

JOBS = {"read_filter": "clean", "dedup": "unique", "tokenize": "shards"}


def cores(bench: Bench) -> None:
    real, size = texts.real(bench.data, bench.size(1000, 16))
    recipe = curation(bench.folder, real, texts.tokenizer(bench.data, real))
    bench.number(texts=size, busy_before=busy())
    warm(bench, real)
    took: dict[str, dict[int, dict[str, Any]]] = {}
    stores = {workers: bench.folder / f"store-{workers}" for workers in (1, 2)}
    for name, stage in JOBS.items():
        with bench.attempt(name):
            took[name] = {
                workers: job(recipe, store, stage, "--workers", str(workers)) for workers, store in stores.items()
            }
            one, two = took[name][1], took[name][2]
            bench.number(
                **{name: {"one": one, "two": two, "mb_per_cpu_s": round(size["bytes"] / 1e6 / one["cpu_s"], 1)}}
            )
            bench.claim(
                f"{name}_two_over_one", round(two["wall_s"] / one["wall_s"], 3),
                stages_alone=round(_stages(two) / max(_stages(one), 1e-9), 3), cpu=round(two["cpu_s"] / one["cpu_s"], 3),
                wall_s=[one["wall_s"], two["wall_s"]],
            )  # fmt: skip
    one, two = (digests(store) for store in stores.values())
    bench.claim("cores_same_bytes", bool(one) and one == two, artifacts=len(one))


def _stages(told: dict[str, Any]) -> float:
    """Without the start of commands and workers."""
    return sum(stage["wall_s"] for stage in told["stages"].values())


def warm(bench: Bench, real: Path) -> None:
    """Have the compiled kernels made, byte code written, and the texts in the page cache, before anything is timed."""
    some, _ = texts.real(bench.data, 16)
    recipe = curation(bench.folder, some, texts.tokenizer(bench.data, real))
    for stage in JOBS.values():
        job(recipe, bench.folder / "store-warm", stage)
    for file in real.iterdir():
        file.read_bytes()
