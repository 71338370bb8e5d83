"""Candidates to rankings: push them to Argilla, let people (or scripted stand-ins) rank them, pull what they said."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine import seeds
from engine.errors import UserError, Waiting
from engine.job import Job, encode
from engine.schema import messages_digest, row_id
from engine.stage import NotIdentity, Stage, port

if TYPE_CHECKING:
    from labeling.annotators import ScriptedAnnotator
    from labeling.argilla import Argilla, Dataset
    from labeling.ranking_task import RankingRecord, RankingResponse

LOOK_AGAIN = 5.0  # seconds between looks at how far people are


class Scripted(BaseModel):
    """A scripted annotator: reads the verdicts, with these faults. Never to be taken for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    noise: float = Field(0.0, ge=0, description="Scale of the Gumbel noise on every utility.")
    position_bias: float = Field(0.0, description="What the first answer shown gains over the last.")
    length_bias: float = Field(0.0, description="What an answer gains by being twice as long as the mean.")
    tie_margin: float = Field(0.0, ge=0, description="Answers closer than this are called equal.")


class Label(Stage):
    """Have answers ranked in Argilla, by people or by scripted annotators.

    The local Argilla is started if no `ARGILLA_API_URL` names a remote one. Each prompt's answers are shown in an order of
    their own; ranks are mapped back. With people, the stage waits until every record has been judged `per_record` times.
    """

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", optional=True)}
    gives = "Ranking"
    random = True

    dataset: str = Field("rankings", description="Start of the dataset's name in Argilla.")
    workspace: str = "flywheel"
    answers: int = Field(4, ge=2, le=26, description="How many different answers to a prompt to show at most.")
    per_record: int = Field(1, ge=1, description="How many annotators judge each prompt.")
    people: tuple[str, ...] = Field((), description="User names of annotators, made if they don't exist.")
    scripted: tuple[Scripted, ...] | None = Field(None, description="Stand-ins for people; they need `verdicts`.")
    metric: str = Field("utility", description="The verdicts' metric that scripted annotators perceive.")
    guidelines: str | None = None
    correction: bool = Field(False, description="Ask for a better answer, too.")
    flags: tuple[str, ...] = Field((), description="Things an annotator may tick, e.g. unsafe.")
    patience: Annotated[float, NotIdentity] = Field(
        120.0, description="Seconds to go on trying when the server is away."
    )

    @model_validator(mode="after")
    def _enough_annotators(self) -> Label:
        if self.scripted is not None and len(self.scripted) < self.per_record:
            raise ValueError(
                f"per_record is {self.per_record}, but there are only {len(self.scripted)} scripted annotators"
            )
        return self

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None

    def run(self, job: Job) -> None:
        shown, rejected = self._shown(job)
        sizes = sorted({len(record.candidates) for record in shown})
        if not shown:
            raise UserError("no prompt has two different answers: there is nothing to rank. Sample more, or hotter.")
        client = self._connect(job)
        try:
            rankings = [
                row
                for size in sizes
                for row in self._rank(job, client, size, [r for r in shown if len(r.candidates) == size])
            ]
        finally:
            client.close()
        # What the clock says differs from run to run, so it is kept beside the rows, not in them.
        times = pa.table({key: [row[key] for row in rankings] for key in ("id", "inserted_at", "updated_at")})
        job.store.put(encode(times), "artifacts", job.artifact, "logs", "times.parquet")
        rows = sorted(
            ({k: v for k, v in row.items() if k not in ("inserted_at", "updated_at")} for row in rankings),
            key=lambda row: (row["prompt_id"], row["annotator"]),
        )
        job.summary(
            prompts=len(shown),
            annotators={
                name: sum(r["annotator"] == name for r in rows) for name in sorted({r["annotator"] for r in rows})
            },
            scripted=self.scripted is not None,
        )
        job.commit("00000-rankings", pa.Table.from_pylist(rows), pa.Table.from_pylist(rejected) if rejected else None)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _shown(self, job: Job) -> tuple[list[_Shown], list[dict[str, Any]]]:
        """Up to `answers` different answers to every prompt, in an order derived from the seed."""
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for artifact in job.all("candidates"):
            columns = ["id", "prompt_id", "prompt", "completion"]
            for row in artifact.to_table(columns).to_pylist():
                by_prompt.setdefault(row["prompt_id"], []).append(row)
        worth = self._utilities(job)
        shown: list[_Shown] = []
        rejected: list[dict[str, Any]] = []
        for prompt_id, rows in sorted(by_prompt.items()):
            different = {
                row["completion"][-1]["content"]: row for row in sorted(rows, key=lambda r: r["id"], reverse=True)
            }
            picked = seeds.shuffled(sorted(different.values(), key=lambda r: r["id"]), job.seed, "shown", prompt_id)
            picked = picked[: self.answers]
            if len(picked) < 2:
                rejected.append(
                    {"id": prompt_id, "reason": "one_answer", "detail": f"{len(rows)} samples, all the same"}
                )
                continue
            shown.append(
                _Shown(
                    row_id("Shown", prompt_id, *(row["id"] for row in picked)),
                    prompt_id,
                    picked[0]["prompt"],
                    picked,
                    [worth.get(row["id"]) for row in picked],
                )
            )
        return shown, rejected

    def _utilities(self, job: Job) -> dict[str, float]:
        if self.scripted is None:
            return {}
        verdicts = job.maybe("verdicts")
        if verdicts is None:
            raise UserError(
                "scripted annotators need `verdicts` (a `judge` stage) that tell them what an answer is worth."
            )
        table = verdicts.to_polars().filter(metric=self.metric)
        if table.is_empty():
            raise UserError(f"the verdicts have no metric `{self.metric}` (`metric` of this stage).")
        return dict(zip(table["subject"], table["value"], strict=True))

    # -- Argilla -----------------------------------------------------------------------------------------------------

    def _connect(self, job: Job) -> Argilla:
        import os

        from labeling import server
        from labeling.argilla import connect

        if not os.environ.get("ARGILLA_API_URL"):
            running = server.up(on_step=job.say)
            job.say(f"Argilla: {running.url}  user {running.username}, password in {running.password_file}")
        return connect(patience=self.patience)

    def _rank(self, job: Job, client: Argilla, size: int, shown: list[_Shown]) -> list[dict[str, Any]]:
        from labeling import annotators
        from labeling.ranking_task import GUIDELINES, RankingRecord, RankingTask

        task = RankingTask(
            name=f"{self.dataset}-{job.artifact.rpartition('-')[2][:8]}-of-{size}",
            answers=size,
            workspace=self.workspace,
            correction=self.correction,
            flags=self.flags,
            guidelines=self.guidelines or GUIDELINES,
            min_submitted=self.per_record,
        )
        dataset = client.ensure_dataset(task)
        records: list[RankingRecord] = [RankingRecord(s.key, s.prompt, s.texts) for s in shown]
        pushed = client.push(dataset, records)
        job.say(f"pushed {pushed.new} prompts with {size} answers each ({pushed.present} were there): {dataset.url}")
        if self.people:
            client.ensure_users(self.people, self.workspace)
        if self.scripted is not None:
            stand_ins = self._stand_ins(job, shown)
            done, total = 0, len(records) * self.per_record

            def count(more: int) -> None:
                nonlocal done
                done += more
                job.progress(done, total, "rankings")

            annotators.run(client, dataset, stand_ins, per_record=self.per_record, on_progress=count)
        else:
            self._await_people(job, client, dataset)
        by_key = {s.key: s for s in shown}
        return [
            self._row(by_key[response.external_id], response)
            for response in client.pull(dataset)
            if response.status == "submitted" and response.external_id in by_key
        ]

    def _stand_ins(self, job: Job, shown: Sequence[_Shown]) -> list[ScriptedAnnotator]:
        from labeling.annotators import ScriptedAnnotator

        worth: dict[tuple[str, str], float] = {}
        for s in shown:
            for text, value in zip(s.texts, s.utilities, strict=True):
                if value is None:
                    raise UserError(f"an answer to prompt {s.prompt_id} has no verdict of metric `{self.metric}`.")
                worth[messages_digest(s.prompt), text] = value

        def utility(prompt: Any, answer: str) -> float:
            return worth[messages_digest(prompt), answer]

        return [
            ScriptedAnnotator(
                s.name,
                utility,
                s.noise,
                s.position_bias,
                s.length_bias,
                s.tie_margin,
                seed=seeds.derive(job.seed, s.name),
            )
            for s in self.scripted or ()
        ]

    def _await_people(self, job: Job, client: Argilla, dataset: Dataset) -> None:
        while True:
            progress = client.progress(dataset)
            job.progress(progress.completed, progress.total, "prompts")
            if progress.completed >= progress.total:
                return
            if not job.options.get("wait"):
                raise Waiting(
                    f"{progress.completed} of {progress.total} prompts are ranked. Rank the others at {dataset.url}, "
                    "then run again; or run with --wait."
                )
            time.sleep(LOOK_AGAIN)

    def _row(self, shown: _Shown, response: RankingResponse) -> dict[str, Any]:
        """One Ranking, its candidates in the order of their ids whatever the order they were shown in."""
        order = sorted(range(len(shown.candidates)), key=lambda i: shown.candidates[i]["id"])
        ids = [shown.candidates[i]["id"] for i in order]
        ranks = [response.ranks[i] for i in order]
        return {
            "id": row_id("Ranking", shown.key, response.user, json.dumps(ranks), response.correction, *response.flags),
            "parents": ids,
            "prompt_id": shown.prompt_id,
            "prompt": shown.prompt,
            "candidates": ids,
            "completions": [shown.texts[i] for i in order],
            "ranks": ranks,
            "shown": order,
            "annotator": response.user,
            "annotator_kind": "scripted" if self.scripted is not None else "person",
            "correction": response.correction,
            "flags": list(response.flags),
            "inserted_at": response.inserted_at,
            "updated_at": response.updated_at,
        }


class _Shown:
    """The answers to one prompt, in the order in which annotators see them."""

    def __init__(
        self,
        key: str,
        prompt_id: str,
        prompt: list[dict[str, str]],
        candidates: list[dict[str, Any]],
        utilities: list[float | None],
    ) -> None:
        self.key = key
        self.prompt_id = prompt_id
        self.prompt = prompt
        self.candidates = candidates
        self.texts: list[str] = [row["completion"][-1]["content"] for row in candidates]
        self.utilities = utilities
