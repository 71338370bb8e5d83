"""The same bytes wherever a recipe runs: one process, two, nodes of a Ray cluster, and clusters that lose nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.parts import chained_duplicates
from benchmarks.parts.scaling.bench import Bench, borrowed
from benchmarks.parts.scaling.recipes import digests
from benchmarks.parts.scaling.usage import hashed
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


def prepare(folder: Path, documents: int, engine: str = "transformers") -> tuple[list[Path], chained_duplicates.Truth]:
    """Recipes that differ in their block size alone, beside the documents, prompts and model that they take; what is known of these."""
    from tests.generators.conftest import build_model

    truth = chained_duplicates.write(folder / "chained", documents)
    build_model(folder / "model")
    prompts = (json.dumps({"prompt": f"What is the capital of country {number}?"}) for number in range(PROMPTS))
    (folder / "prompts.jsonl").write_text("".join(f"{prompt}\n" for prompt in prompts))
    recipes: list[Path] = []
    for memory_gb in BLOCKS:
        recipes.append(folder / f"nodes-{memory_gb}.yaml")
        recipes[-1].write_text(RECIPE.format(memory_gb=memory_gb, engine=engine))
    return recipes, truth


def nodes(bench: Bench) -> None:
    recipes, truth_of = prepare(bench.folder, bench.size(DOCUMENTS, 1200))
    counts = [1, 2] if bench.quick else [1, 2, 4, 7]
    found: dict[str, dict[str, str]] = {}
    rows: dict[str, bool] = {}

    def compare() -> None:
        """As far as it went: a part that is cut leaves what it had."""
        truth = next(iter(found.values()), {})
        other = {name: sorted(id for id in truth if one.get(id) != truth[id]) for name, one in found.items()}
        bench.number(others_digests=other, artifacts=len(truth), documents=vars(truth_of))
        wanted = len(HASH_SEEDS) + len(counts)
        same = len(found) == wanted and bool(truth) and not any(other.values())
        bench.claim("nodes_same_bytes", same, runs=len(found), wanted=wanted)

    for turn, (workers, seed) in enumerate(zip((1, 2, 2), HASH_SEEDS, strict=True)):
        recipe = recipes[turn % len(recipes)]
        with bench.attempt(f"local, {workers}, {seed}"):
            store = bench.folder / f"store-{turn}"
            hashed(seed, "run", str(recipe), "--store", str(store), "--workers", str(workers))
            found[f"local, {workers} workers, {recipe.stem}, hash seed {seed}"] = digests(store)
            rows |= {f"{turn}: {name}": once for name, once in accounted(Store(str(store))).items()}
            bench.claim("nodes_rows_accounted_for", all(rows.values()), stages=rows)
        compare()
    for turn, count in enumerate(counts):
        recipe = recipes[turn % len(recipes)]
        with bench.attempt(f"ray, {count} nodes"):
            run = borrowed("benchmarks.parts.ray_nodes", "digests")
            found[f"ray, {count} nodes, {recipe.stem}, shuffled {turn}"] = run([count], recipe, shuffle=turn)
        compare()


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
    told: list[dict[str, Any]] = []
    for one in rounds(wanted, 0):  # a part that is cut leaves what it had
        told.append(one)
        problems = [one for one in told if not one["same"] or one.get("problem")]
        bench.number(rounds=len(told), phases=sorted({str(one["phase"]) for one in told}), failed=problems[:10])
        bench.claim("kills_same_bytes", len(told) == wanted and not problems, kills=len(told))
