"""The judge, held to judgements that are known: AlpacaEval's, replayed through a local OpenAI-compatible server.

    python -m benchmarks.judge --json            # all 28,995 judgements
    python -m benchmarks.judge --json --quick    # those of four models

The server answers every request with what GPT-4 Turbo said of that pair, so that whatever the stage reports beyond it is
the stage's doing. Win rates are then computed from the preferences file alone, and compared.
Needs alpaca_eval/preferences.parquet and outputs.parquet below $FLYWHEEL_DATA (default: ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS, row_id
from engine.store.store import Store
from generators.judge.stage import Judge

SHOWN = 200  # characters of each output: what is replayed does not depend on them
NAMED = re.compile(r"\[Answer A\]\n<(.*?)>.*\n\n\[Answer B\]\n<(.*?)>", re.DOTALL)


class Answers(Stage):
    """Commits the outputs as Candidate rows; `reverse` turns the order of every prompt's answers round."""

    gives = "Candidate"
    folder: str
    models: list[str]
    reverse: bool = False

    def run(self, job: Any) -> None:
        chosen = load(Path(self.folder), self.models)
        baseline = chosen["model_1"][0]
        texts = {(i, m): o for i, m, o in outputs(Path(self.folder)).iter_rows()}
        rows = list[dict[str, Any]]()
        for (instruction,), group in chosen.group_by("instruction", maintain_order=True):
            names = [baseline, *group["model_2"].to_list()]
            for name in reversed(names) if self.reverse else names:
                said = f"<{name}> {(texts.get((instruction, name)) or '')[:SHOWN]}"
                rows.append({
                    "id": row_id("Candidate", instruction, name), "parents": [], "prompt_id": row_id("Prompt", instruction),
                    "prompt": [{"role": "user", "content": instruction}], "model": name, "sample": 0,
                    "completion": [{"role": "assistant", "content": said}],
                })  # fmt: skip
        import pyarrow as pa

        job.commit("00000", pa.Table.from_pylist(rows, DATASETS["Candidate"]))


def data() -> Path | None:
    """The folder of the data, if it is there."""
    root = os.environ.get("FLYWHEEL_DATA") or str(Path(__file__).parents[2] / "shared" / "data")
    folder = Path(root) / "alpaca_eval"
    return folder if (folder / "preferences.parquet").exists() else None


def load(folder: Path, models: list[str]) -> pl.DataFrame:
    """Judgements of these models, or of all."""
    frame = pl.read_parquet(folder / "preferences.parquet").sort("instruction", "model_2")
    return frame.filter(pl.col("model_2").is_in(models)) if models else frame


def outputs(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "outputs.parquet", columns=["instruction", "model", "output"])


def replay(chosen: pl.DataFrame, graded: bool, lean: float = 0.0) -> Any:
    """What the judge said, by the names in the request; `lean` is added for whichever answer is shown first."""
    said = {(i, m): p - 1 for i, m, p in chosen.select("instruction", "model_2", "preference").iter_rows()}

    def answer(messages: list[dict[str, str]], seed: int) -> str:
        text = messages[-1]["content"]
        instruction = text.split("[Conversation]\nuser: ", 1)[1].split("\n\n[Answer A]\n<", 1)[0]
        found = NAMED.search(text)
        assert found
        first, second = found.groups()
        grade = said[instruction, first] if (instruction, first) in said else 1 - said[instruction, second]
        grade = min(1.0, grade + lean) if lean else grade
        if graded:
            return json.dumps({"preference": grade})
        return json.dumps({"winner": "A" if grade > 0.5 else "B" if grade < 0.5 else "tie"})

    return answer


def judged(store: Store, candidates: Artifact, answer: Any, baseline: str, graded: bool, name: str) -> dict[str, Any]:
    """The stage's summary, with rows, seconds and requests."""
    from tests.generators.faulty_server import FaultyServer

    with FaultyServer(share=0, capacity=64, seconds=0, answer=answer) as server:
        started, cpu = time.perf_counter(), time.process_time()
        made = carry_out(
            store, "judge",
            Judge.model_validate({
                "pairwise": True, "graded": graded, "against": baseline, "seed": 0, "partition": 16, "max_failed": 0,
                "server": {"model": name, "url": server.url, "concurrency": 64},
            }),
            {"candidates": {"answers": candidates}},
        )  # fmt: skip
        served = sum(server.served.values())
        return {
            **made.manifest["summary"], "rows": made.rows, "requests": served,
            "seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
        }  # fmt: skip


def rates(summary: dict[str, Any]) -> dict[str, float]:
    return {model: rate["value"] for model, rate in summary["win_rates"].items()}


def furthest(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference between two tables of win rates; infinite if they name different models."""
    return max(abs(one[m] - other[m]) for m in one) if one.keys() == other.keys() else float("inf")


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    everything = load(folder, [])
    names = sorted(everything["model_2"].unique())
    few = names[:: max(1, len(names) // (4 if quick else 10))]
    baseline = str(everything["model_1"][0])
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        store = Store(place)

        def answers(models: list[str], reverse: bool = False) -> Artifact:
            stage = Answers.model_validate({"folder": str(folder), "models": models, "reverse": reverse})
            return carry_out(store, "answers", stage, {})

        chosen = load(folder, few if quick else [])
        graded = judged(store, answers(few if quick else []), replay(chosen, True), baseline, True, "graded")
        direct = dict(chosen.group_by("model_2").agg(pl.col("preference").mean() - 1).iter_rows())
        some = load(folder, few)
        winner = pl.when(pl.col("preference") > 1.5).then(1.0).when(pl.col("preference") < 1.5).then(0.0).otherwise(0.5)
        won = dict(some.group_by("model_2").agg(winner.mean()).iter_rows())
        there = judged(store, answers(few), replay(some, False), baseline, False, "winner")
        back = judged(store, answers(few, reverse=True), replay(some, False), baseline, False, "winner, swapped")
        lean = 0.3
        leaning = [
            judged(store, answers(few, reverse), replay(some, True, lean), baseline, True, f"leaning {reverse}")
            for reverse in (False, True)
        ]
    result["judgements"] = {"all": len(chosen), "of_few_models": len(some)}
    result["graded"] = {k: v for k, v in graded.items() if k != "win_rates"}
    result["graded"]["microseconds_per_request"] = round(graded["cpu_seconds"] / graded["requests"] * 1e6)
    result["winner"] = {k: v for k, v in there.items() if k != "win_rates"}
    result["leaning"] = {"lean": lean, "order_decided": leaning[0]["order_decided"]}
    result["win_rates"] = {m: round(v, 4) for m, v in sorted(rates(graded).items(), key=lambda item: -item[1])[:10]}
    off_graded, off_winner = furthest(rates(graded), direct), furthest(rates(there), won)
    swapped = furthest(rates(there), rates(back))
    leaned = furthest(rates(leaning[0]), rates(leaning[1]))
    delivered = graded["rows"] / (2 * len(chosen))
    result["claims"] = [
        claim("judge.win_rates_equal_the_file", off_graded, "<= 1e-9", off_graded <= 1e-9),
        claim("judge.winner_rates_equal_the_file", off_winner, "<= 1e-9", off_winner <= 1e-9),
        claim("judge.swapped_order_changes_nothing", swapped, "== 0", swapped == 0),
        claim("judge.swapped_order_of_a_leaning_judge_changes_nothing", leaned, "<= 1e-9", leaned <= 1e-9),
        claim("judge.verdicts_delivered", delivered, "== 1", delivered == 1),
    ]
    return result


def claim(name: str, value: float | None, bar: str, holds: bool, why: str = "") -> dict[str, Any]:
    return {"id": name, "value": value, "bar": bar, "holds": holds, **({"why": why} if why else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="four models instead of all")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "quick": options.quick,
    }  # fmt: skip
    folder = data()
    if folder is None:
        why = "alpaca_eval/preferences.parquet is not there: set FLYWHEEL_DATA"
        result["claims"] = [claim("judge.win_rates_equal_the_file", None, "<= 1e-9", False, why)]
    else:
        result |= measure(folder, options.quick)
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
