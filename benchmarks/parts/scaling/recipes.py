"""The recipes that are measured, and running them by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.parts.scaling.usage import flywheel
from engine.store.store import Store


def curation(folder: Path, texts: Path, tokenizer: Path | None = None, short: bool = False) -> Path:
    """`texts` -> `clean` by Gopher's rules; `texts` -> `unique` without near-duplicates; `texts` -> `shards` of tokens.

    Side by side and not one after the other, so that each job has all of the text: Gopher's rules leave little of program code.

    Args:
        short: of documents too short for Gopher's rules, in Parquet.
    """
    rules = "min_words: 3" if short else "rules: [gopher_quality, gopher_repetition]"
    stages = [
        f'texts: {{kind: read, paths: ["{texts}/*.{"parquet" if short else "jsonl"}"]}}',
        f"clean: {{kind: filter, from: texts, {rules}}}",
        "unique: {kind: dedup, from: texts, threshold: 0.8}",
    ]
    if tokenizer:
        stages.append(f'shards: {{kind: tokenize, from: texts, tokenizer: "{tokenizer}", block: 1024}}')
    recipe = folder / f"curation-{texts.name}.yaml"
    recipe.write_text("name: curation\nseed: 7\nstages:\n" + "".join(f"  {stage}\n" for stage in stages))
    return recipe


def job(recipe: Path, store: Path, stage: str, *options: str, **environment: str) -> dict[str, Any]:
    """Run a stage and what it needs, as people do: what the command took, and `stage_s`, what each stage that ran says it took."""
    before = {artifact.id for artifact in Store(str(store)).artifacts()} if store.exists() else set[str]()
    told = flywheel("run", str(recipe), "--store", str(store), "--only", stage, *options, **environment)
    new = [artifact for artifact in Store(str(store)).artifacts() if artifact.id not in before]
    told["stages"] = {
        artifact.id.partition("-")[0]: {
            "wall_s": artifact.manifest["timings"]["wall_s"],
            "cpu_s": artifact.manifest["timings"]["cpu_s"],
            "rows": artifact.rows,
            "written_bytes": sum(file["bytes"] for file in artifact.manifest["files"].values()),
            "workers": len(artifact.manifest["timings"].get("workers", {})),
        }
        for artifact in new
    }
    return told


def digests(store: Path) -> dict[str, str]:
    """By artifact, which is named after its key, the digest of what it holds."""
    return {artifact.id: artifact.digest for artifact in Store(str(store)).artifacts()}
