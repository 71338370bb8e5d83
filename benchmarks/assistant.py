"""From a folder of documents to an assistant: the recipe `assistant` on 100 pages of Python's own documentation, with SmolLM2-135M.

    python -m benchmarks.assistant --json [--keep FOLDER] [--set STAGE.FIELD=VALUE ...]

Wants the weights of `make weights` (a copy of the published ones in four bits), and starts Argilla. The annotators are scripted, and no people.
What is claimed is by a rule that nobody ranked by: more words in common with the known answer, on pages that nothing was made from.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from benchmarks.rag_or_finetune import HUB
from benchmarks.real import MODEL, flywheel, gguf_file
from engine.store.store import Store

BUDGET = 40 * 60  # seconds


def measure(folder: Path, settings: list[str]) -> dict[str, Any]:
    """The recipe in a folder; its table, what each stage made and lost, and the seconds it took."""
    started = time.monotonic()
    if not (folder / MODEL).exists():
        (folder / MODEL).symlink_to(gguf_file())
    recipe = folder / "assistant.yaml"
    if not recipe.exists():
        flywheel(folder, "new", "assistant")
    recipe.write_text(recipe.read_text().replace(HUB, f"./{MODEL}"))
    flywheel(folder, "run", recipe.name, *(word for one in settings for word in ("--set", one)))
    store = Store(str(folder / "store"))
    stages = ("documents", "questions", "exam", "answers", "rankings", "preferences")
    made = {name: store.find(f"assistant/{name}") for name in stages}
    return {
        "seconds": round(time.monotonic() - started, 1),
        "table": store.find("assistant/results").manifest["summary"]["table"],
        "rows": {name: {"kept": one.rows, "rejected": one.manifest["rejected"]} for name, one in made.items()},
    }


def claims(found: dict[str, Any]) -> list[Claim]:
    dpo = found["table"]["dpo"]
    rate = {end: dpo[f"gold_win_rate{end}"] for end in ("", "_low", "_high")}
    cites = {model: line["cites"] for model, line in found["table"].items()}
    return [
        claim("DPO preferred to instruct by the held-out rule", rate, "low > 0.5", rate["_low"] > 0.5),
        claim("share that cites", cites, "told", True),
        claim("seconds", found["seconds"], f"< {BUDGET}", found["seconds"] < BUDGET),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line (always done)")
    parser.add_argument("--keep", type=Path, help="work here, and leave everything; run again, and it goes on")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a field of a stage, as of `run`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (args.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, args.settings)
    told = {"benchmark": "assistant", "annotators": "scripted", "settings": args.settings, **found}
    print(json.dumps({**told, "claims": claims(found)}))


if __name__ == "__main__":
    main()
