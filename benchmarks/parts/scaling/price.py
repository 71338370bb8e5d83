"""What Ray costs beside local processes, and what grows with the number of documents.

CPU is the machine's, with nothing else on it: the command, the stage's process, the workers, and what the cluster's own processes take while the
job runs. What the cluster took to start is told beside it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.scaling import texts
from benchmarks.parts.scaling.bench import Bench
from benchmarks.parts.scaling.clusters import cluster
from benchmarks.parts.scaling.cores import warm
from benchmarks.parts.scaling.recipes import curation, digests, job
from benchmarks.parts.scaling.usage import busy, peaks, spent

STAGES = ("clean", "unique", "shards")


def price(bench: Bench) -> None:
    """Read, filter, dedup and tokenize a gigabyte on two local processes, and on two nodes of one CPU each."""
    real, size = texts.real(bench.data, bench.size(1000, 16))
    recipe = curation(bench.folder, real, texts.tokenizer(bench.data, real))
    bench.number(texts=size, busy_before=busy())
    warm(bench, real)
    with bench.attempt("local"):
        local = {stage: _local_job(recipe, bench.folder / "local", stage) for stage in STAGES}
        bench.number(local=local)
        with bench.attempt("ray"):
            before = spent()
            with cluster(2) as address:
                bench.number(cluster_start_cpu_s=round(spent() - before, 1))
                ray = {stage: _on_ray(recipe, bench.folder / "ray", stage, address) for stage in STAGES}
            bench.number(ray=ray)
            local_s, ray_s = (sum(told["cpu_s"] for told in one.values()) for one in (local, ray))
            bench.claim(
                "ray_cpu_over_local", round(ray_s / local_s, 3), cpu_s=[round(local_s, 1), round(ray_s, 1)],
                by_stage={stage: round(ray[stage]["cpu_s"] / local[stage]["cpu_s"], 2) for stage in STAGES},
                wall=round(sum(t["wall_s"] for t in ray.values()) / sum(t["wall_s"] for t in local.values()), 2),
                same_bytes=digests(bench.folder / "local") == digests(bench.folder / "ray"),
            )  # fmt: skip


def _local_job(recipe: Path, store: Path, stage: str) -> dict[str, Any]:
    before = spent()
    told = job(recipe, store, stage, "--workers", "2")
    return {**told, "cpu_s": round(spent() - before, 2)}


def _on_ray(recipe: Path, store: Path, stage: str, address: str) -> dict[str, Any]:
    """A job whose `cpu_s` is the machine's meanwhile: the cluster's, its workers' and the command's."""
    before = spent()
    with peaks(os.getpid()) as memory:
        told = job(recipe, store, stage, "--executor", "ray", "--address", address)
        time.sleep(1)  # workers that end with the job are waited for by their node
    return {**told, "cpu_s": round(spent() - before, 2), "memory_mb": memory}


def short(bench: Bench) -> None:
    """Short documents in growing number, on two local processes and on two nodes: memory, rows/s, and whether all are there."""
    counts = [1_000, 10_000] if bench.quick else [100_000, 1_000_000, 10_000_000]
    bench.number(busy_before=busy())
    job(_recipe(bench, 1_000), bench.folder / "warm", "unique")
    bench.number(texts=texts.short(bench.data, counts[-1])[1])
    found: dict[str, dict[int, dict[str, Any]]] = {"local": {}, "ray": {}}
    with bench.attempt("local"):
        for count in counts:
            found["local"][count] = _local(_recipe(bench, count), _store(bench, "local", count))
            _tell(bench, found)
    with bench.attempt("ray"), cluster(2) as address:
        for count in counts:
            told = found["ray"][count] = _on_two_nodes(_recipe(bench, count), _store(bench, "ray", count), address)
            _tell(bench, found)
            if count == counts[-1]:
                one, two = (digests(_store(bench, name, count)) for name in found)
                same, rows = bool(one) and one == two, {stage: one["rows"] for stage, one in told["stages"].items()}
                bench.claim("short_on_ray", same and rows["read"] == count, same_bytes=same, rows=rows)


def _recipe(bench: Bench, count: int) -> Path:
    return curation(bench.folder, texts.short(bench.data, count)[0], short=True)


def _store(bench: Bench, name: str, count: int) -> Path:
    return bench.folder / f"{name}-{count}"


def _local(recipe: Path, store: Path) -> dict[str, Any]:
    return _both([_local_job(recipe, store, stage) for stage in ("clean", "unique")])


def _on_two_nodes(recipe: Path, store: Path, address: str) -> dict[str, Any]:
    return _both([_on_ray(recipe, store, stage, address) for stage in ("clean", "unique")])


def _both(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Read and filter, then dedup, as one: their wall and CPU seconds together, and the most memory of either."""
    roles = sorted({role for one in told for role in one["memory_mb"]})
    return {
        "wall_s": round(sum(one["wall_s"] for one in told), 2),
        "cpu_s": round(sum(one["cpu_s"] for one in told), 2),
        "memory_mb": {role: max(one["memory_mb"].get(role, 0) for one in told) for role in roles},
        "stages": {name: stage for one in told for name, stage in one["stages"].items()},
    }


def _tell(bench: Bench, found: dict[str, dict[int, dict[str, Any]]]) -> None:
    for name, by_count in found.items():
        if not by_count:
            continue
        few, many = min(by_count), max(by_count)
        rate = {count: round(count / told["wall_s"]) for count, told in by_count.items()}
        bench.number(**{name: by_count, f"{name}_rows_per_s": rate})
        flat = {
            role: round(by_count[many]["memory_mb"].get(role, 0) / max(by_count[few]["memory_mb"].get(role, 0), 1), 2)
            for role in ("driver", "together")
        }
        which = "driver_memory_flat" if name == "ray" else "local_memory_flat"
        bench.claim(which, flat, documents=[few, many])
    if found["ray"]:
        rates = bench.numbers["ray_rows_per_s"]
        bench.claim("rate_slope", round(rates[max(rates)] / rates[min(rates)], 2), rows_per_s=rates)
