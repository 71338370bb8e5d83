"""Retrieval or fine-tuning, on SmolLM2-135M: the recipe `rag_or_finetune` from its start, one seed after another.

    python -m benchmarks.rag_or_finetune --json [--seeds 7 8 9] [--facts 147] [--keep FOLDER]

Wants the weights of `make weights` (a copy of the published ones in four bits: the numbers are that copy's). Told for the four ways, before and
after the facts change: facts right and style kept, with 95 % intervals over questions; differences between ways, question by question; and
what following the change costs, in CPU seconds. Nothing is a bar but the time: the answer is told as it comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from benchmarks.real import MODEL, flywheel, gguf_file
from engine.statistics import bootstrap
from engine.store.artifact import Artifact
from engine.store.store import Store

NAME = "rag_or_finetune"
BUDGET = 25 * 60  # seconds, one seed
HUB = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
# What has to be done anew when the facts change, by way; reading and indexing the new pages is in the answers' own time.
FOLLOWS = {
    "retrieved": ["handbook_2027"],
    "both": ["handbook_2027"],
    "finetuned_anew": ["changed", "chats_2027", "tuned_2027"],
}
DIFFERENCES = {
    "results_2026": [("retrieved", "finetuned"), ("both", "retrieved"), ("both", "finetuned"), ("finetuned", "as_it_is")],
    "results_2027": [("retrieved", "finetuned_before"), ("retrieved", "finetuned_anew"), ("both", "retrieved"), ("finetuned_anew", "finetuned_before")],
}  # fmt: skip


def run(folder: Path, seed: int, facts: int) -> dict[str, Any]:
    """The recipe in a folder, with a seed; its two tables, differences, costs and seconds."""
    started = time.monotonic()
    if not (folder / MODEL).exists():
        (folder / MODEL).symlink_to(gguf_file())
    recipe = folder / f"{NAME}.yaml"
    if not recipe.exists():
        flywheel(folder, "new", NAME)
    recipe.write_text(re.sub(r"^seed: \d+", f"seed: {seed}", recipe.read_text().replace(HUB, f"./{MODEL}"), flags=re.M))
    flywheel(folder, "run", recipe.name, "--set", f"facts.limit={facts}")
    seconds = round(time.monotonic() - started, 1)
    return {"seed": seed, "seconds": seconds, **told(Store(str(folder / "store")), seed)}


def told(store: Store, seed: int) -> dict[str, Any]:
    """What a finished run tells."""
    results = {name: store.find(f"{NAME}/{name}") for name in DIFFERENCES}
    return {
        "tables": {name: shown(one.manifest["summary"]["table"]) for name, one in results.items()},
        "differences": {name: differences(one, DIFFERENCES[name], seed) for name, one in results.items()},
        "following": {
            way: {stage: store.find(f"{NAME}/{stage}").manifest["timings"].get("cpu_s") for stage in stages}
            for way, stages in FOLLOWS.items()
        },
    }


def shown(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = [f"{metric}{end}" for metric in ("right", "style") for end in ("", "_low", "_high")]
    return {way: {name: line[name] for name in names} | {"n": line["n"]} for way, line in table.items()}


def differences(results: Artifact, pairs: list[tuple[str, str]], seed: int) -> dict[str, dict[str, float]]:
    """How many more facts one way gets right than another, question by question."""
    rows = results.to_polars().filter(metric="right")
    right: dict[str, dict[str, float]] = {}
    for subject, model, value in rows.select("subject", "model", "value").iter_rows():
        right.setdefault(model, {})[subject] = value
    found: dict[str, dict[str, float]] = {}
    for one, other in pairs:
        asked = sorted(right[one])
        interval = bootstrap.mean([right[one][q] - right[other][q] for q in asked], asked, seed, one, other)
        found[f"{one} - {other}"] = {
            "value": round(interval.value, 4),
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
        }
    return found


def claims(found: list[dict[str, Any]]) -> list[Claim]:
    slowest = max(one["seconds"] for one in found)
    made = [claim("seconds, one seed", slowest, f"< {BUDGET}", slowest < BUDGET)]
    for year in ("results_2026", "results_2027"):
        lines = {f"seed {one['seed']}": one["tables"][year] for one in found}
        made.append(claim(f"facts right and style kept, {year[-4:]}", lines, "told", True))
        made.append(
            claim(f"differences in facts right, {year[-4:]}", [one["differences"][year] for one in found], "told", True)
        )
    made.append(claim("CPU seconds to follow the change", [one["following"] for one in found], "told", True))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line (always done)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--facts", type=int, default=147, help="the first so many; all are 147")
    parser.add_argument("--keep", type=Path, help="work here, and leave everything; run again, and it goes on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (args.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = [run(folder, seed, args.facts) for seed in args.seeds]
    print(json.dumps({
        "benchmark": NAME, "machine": {"cores": os.cpu_count()}, "facts": args.facts, "seeds": args.seeds, "runs": found,
        "model": "SmolLM2-135M-Instruct, a copy of the published weights in four bits", "claims": claims(found),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
