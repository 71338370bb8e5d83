"""The same bytes wherever a recipe runs: one process, two, nodes of a Ray cluster, and clusters that lose nodes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.parts import chained_duplicates
from benchmarks.parts.scaling.bench import Bench, borrowed
from benchmarks.parts.scaling.recipes import digests
from benchmarks.parts.scaling.usage import flywheel
from engine.store.store import Store

DOCUMENTS = 24_000  # 20 MB of text, three slices and more of every stage
PROMPTS = 48
RECIPE = """\
name: nodes
seed: 7
stages:
  texts: {{kind: read, paths: ["chained/*.jsonl"]}}
  clean: {{kind: filter, from: texts, rules: [gopher_quality], bounds: {{gopher_stop_words: [1, null]}}}}
  unique: {{kind: dedup, from: clean, threshold: 0.8, memory_gb: {memory_gb}}}
  shards: {{kind: tokenize, from: unique, vocab_size: 1000, block: 256}}
  answers:
    kind: candidates
    from: {{model: ./model, prompts: ./prompts.jsonl}}
    n: 4
    max_tokens: 16
    partition: 8
    engine: {engine}
  verdicts: {{kind: judge, from: answers, rules: {{longer: "length"}}}}
  rankings: {{kind: ai_feedback, from: {{candidates: answers, verdicts: verdicts}}, metrics: [longer]}}
  preferences: {{kind: preferences, from: rankings, validation: 0.2}}
"""
# What dedup may hold in memory, and so how it cuts what is to be compared: the whole in one block, or in many.
BLOCKS = (1.0, 0.004)
HASH_SEEDS = (0, 1, 4711)


def prepare(folder: Path, documents: int, engine: str = "transformers") -> list[Path]:
    """Recipes that differ in their block size alone, beside the documents, prompts and model that they take."""
    from tests.generators.conftest import build_model

    chained_duplicates.write(folder / "chained", documents)
    build_model(folder / "model")
    prompts = (json.dumps({"prompt": f"What is the capital of country {number}?"}) for number in range(PROMPTS))
    (folder / "prompts.jsonl").write_text("".join(f"{prompt}\n" for prompt in prompts))
    recipes: list[Path] = []
    for memory_gb in BLOCKS:
        recipes.append(folder / f"nodes-{memory_gb}.yaml")
        recipes[-1].write_text(RECIPE.format(memory_gb=memory_gb, engine=engine))
    return recipes


def nodes(bench: Bench) -> None:
    recipes = prepare(bench.folder, bench.size(DOCUMENTS, 1200))
    found: dict[str, dict[str, str]] = {}
    for workers, recipe, seed in ((1, recipes[0], HASH_SEEDS[0]), (2, recipes[1], HASH_SEEDS[1])):
        with bench.attempt(f"local, {workers}"):
            store = bench.folder / f"store-{workers}"
            flywheel("run", str(recipe), "--store", str(store), "--workers", str(workers), PYTHONHASHSEED=str(seed))
            found[f"local, {workers} workers, block {recipe.stem}, hash seed {seed}"] = digests(store)
            told = accounted(Store(str(store)))
            bench.claim("nodes_rows_accounted_for", all(told.values()), stages=told)
    counts = [1, 2] if bench.quick else [1, 2, 4, 7]
    for turn, count in enumerate(counts):
        recipe, seed = recipes[turn % len(recipes)], HASH_SEEDS[turn % len(HASH_SEEDS)]
        with bench.attempt(f"ray, {count} nodes"):
            name = f"ray, {count} nodes, block {recipe.stem}, hash seed {seed}, shuffled {turn}"
            found[name] = on_ray(recipe, count, seed, shuffle=turn)
    truth = next(iter(found.values()), {})
    same = {name: one == truth for name, one in found.items()}
    bench.number(
        runs=same, artifacts=len(truth), documents=chained_duplicates.documents(bench.size(DOCUMENTS, 1200))[1].__dict__
    )
    whole = len(found) == 2 + len(counts)
    bench.claim(
        "nodes_same_bytes", whole and bool(truth) and all(same.values()), runs=len(found), wanted=2 + len(counts)
    )


def on_ray(recipe: Path, count: int, seed: int, shuffle: int) -> dict[str, str]:
    """Digests by artifact of a recipe that ran on a cluster of so many nodes, with its tasks handed out in a drawn order."""
    run = borrowed("benchmarks.parts.ray_nodes", "digests")
    known = inspect.signature(run).parameters
    given = {"recipe": recipe, "shuffle": shuffle, "hash_seed": seed}
    made: Any = run(nodes=[count], **{name: value for name, value in given.items() if name in known})
    return made


def accounted(store: Store) -> dict[str, bool]:
    """For each stage that keeps or rejects rows: whether every row of its input is there once."""
    found: dict[str, bool] = {}
    for artifact in store.artifacts():
        ports = artifact.manifest["inputs"]
        if artifact.manifest["stage"]["kind"] not in ("filter", "dedup"):
            continue
        (given,) = [store.get(one["artifact"]) for one in ports["documents"]]
        assert given is not None
        kept = _ids(artifact, "data")
        rejected = _ids(artifact, "rejected")
        found[artifact.id] = sorted([*kept, *rejected]) == sorted(_ids(given, "data")) and len(set(kept)) == len(kept)
    return found


def _ids(artifact: Any, folder: str) -> list[str]:
    return [
        row
        for name in sorted((artifact.path / folder).glob("*.parquet"))
        for row in pq.read_table(name, columns=["id"]).column("id").to_pylist()
    ]


def kills(bench: Bench) -> None:
    rounds = borrowed("benchmarks.parts.ray_kills", "rounds")
    wanted = bench.size(30, 2)
    told: list[dict[str, Any]] = rounds(wanted, 0)
    problems = [one for one in told if not one["same"] or one.get("problem")]
    bench.number(rounds=len(told), phases=sorted({str(one["phase"]) for one in told}), failed=problems[:10])
    bench.claim("kills_same_bytes", len(told) == wanted and not problems, kills=len(told))
