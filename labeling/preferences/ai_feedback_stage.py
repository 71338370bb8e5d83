"""`ai_feedback`: a judge's verdicts as rankings, so that a judge is one more annotator: of the kind `judge`.

It goes into `preferences` beside people's rankings, which never mixes the two unless the recipe says so, and tells the
judge's share, its agreement with people and its biases either way; or alone, for preferences without people (RLAIF).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.stage.stage import Stage, port
from engine.store.schema import DATASETS, row_id


class AiFeedback(Stage):
    """Turn verdicts of a `judge` stage into rankings by an annotator of the kind `judge`.

    Verdicts on pairs (`metric: pairwise`) make a ranking of two each; any other metric ranks all answers to a prompt by its
    value, equal values tied. Prompts with fewer than two judged answers are rejected as `not_judged`.
    """

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", many=True)}
    gives = "Ranking"
    phase = "people"

    metrics: tuple[str, ...] = Field(
        ("pairwise",), min_length=1, description="The verdicts' metrics; several that rate an answer are added up."
    )
    annotator: str | None = Field(None, description="The judge's name; what the verdicts say if not given.")

    def run(self, job: Job) -> None:
        columns = ["id", "prompt_id", "prompt", "completion"]
        rows = {row["id"]: row for a in job.all("candidates") for row in a.to_table(columns).to_pylist()}
        verdicts = [v for a in job.all("verdicts") for v in a.to_table().to_pylist() if v["metric"] in self.metrics]
        unknown = [v for v in verdicts if v["subject"] not in rows or not set(v["parents"]) <= rows.keys()]
        if not verdicts or unknown:
            known = sorted({v["metric"] for a in job.all("verdicts") for v in a.to_table(["metric"]).to_pylist()})
            raise UserError(
                f"{len(unknown)} verdicts are about candidates that are not among `candidates`, {unknown[0]['subject']}"
                " among them."
                if unknown
                else f"no verdict has a metric of {list(self.metrics)}; there are {known}."
            )
        made = list(self._rankings(rows, verdicts))
        judged = {row["prompt_id"] for row in made}
        silent = sorted({row["prompt_id"] for row in rows.values()} - judged)
        job.summary(prompts=len(judged), judges=sorted({row["annotator"] for row in made}))
        job.commit(
            part_name(0, sorted(rows)),
            pa.Table.from_pylist(sorted(made, key=lambda row: (row["prompt_id"], row["id"])), DATASETS["Ranking"]),
            pa.table({"id": silent, "reason": ["not_judged"] * len(silent)}) if silent else None,
            consumed=len(rows),
        )

    def _rankings(
        self, rows: dict[str, dict[str, Any]], verdicts: Sequence[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        pairs = [v for v in verdicts if len(v["parents"]) == 2]
        for verdict in sorted(pairs, key=lambda v: v["id"]):
            better, worse = verdict["parents"]
            ranks = (1, 1) if verdict["value"] == 0.5 else (1, 2) if verdict["value"] > 0.5 else (2, 1)
            yield self._row([rows[better], rows[worse]], ranks, self._judge(verdict), [verdict["id"]])
        total: dict[tuple[str, str], dict[str, float]] = {}
        sources: dict[tuple[str, str], list[str]] = {}
        for verdict in (v for v in verdicts if len(v["parents"]) < 2):
            about = self._judge(verdict), rows[verdict["subject"]]["prompt_id"]
            values = total.setdefault(about, {})
            values[verdict["subject"]] = values.get(verdict["subject"], 0.0) + verdict["value"]
            sources.setdefault(about, []).append(verdict["id"])
        for (judge, prompt_id), values in sorted(total.items()):
            if len(values) > 1:
                ids = sorted(values)
                ranks = [1 + sum(round(v - values[i], 9) > 0 for v in values.values()) for i in ids]
                yield self._row([rows[i] for i in ids], ranks, judge, sources[judge, prompt_id])

    def _judge(self, verdict: dict[str, Any]) -> str:
        if self.annotator:
            return self.annotator
        try:
            return str(json.loads(verdict["text"] or "{}").get("judge") or "judge")
        except (ValueError, AttributeError):  # a text that is no JSON object: somebody else's verdicts
            return "judge"

    def _row(
        self, candidates: Sequence[dict[str, Any]], ranks: Sequence[int], judge: str, sources: Sequence[str]
    ) -> dict[str, Any]:
        ids = [row["id"] for row in candidates]
        return {
            "id": row_id("Ranking", judge, *ids, json.dumps(list(ranks)), *sorted(sources)),
            "parents": [*ids, *sorted(sources)],
            "prompt_id": candidates[0]["prompt_id"],
            "prompt": candidates[0]["prompt"],
            "candidates": ids,
            "completions": [row["completion"][-1]["content"] for row in candidates],
            "ranks": list(ranks),
            "shown": None,
            "annotator": judge,
            "annotator_kind": "judge",
            "correction": None,
            "flags": [],
        }
