"""Candidates to rankings: push them to Argilla, let people (or scripted stand-ins) rank them, pull what they said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine import seeds
from engine.errors import UserError, Waiting
from engine.stage.job import Job
from engine.stage.stage import NotIdentity, Stage, Switch, port
from engine.store.parquet import encode
from engine.store.schema import messages_digest, row_id
from labeling.argilla.oversight import Judged, agreement_over_time, tables
from labeling.label.presentation import Shown, attention_checks, to_show

if TYPE_CHECKING:
    from labeling.argilla.client import Argilla, Dataset
    from labeling.argilla.task import RankingResponse, RankingTask
    from labeling.label.scripted import ScriptedAnnotator

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
    """Have answers judged in Argilla, by people or by scripted annotators.

    The local Argilla is started if no `ARGILLA_API_URL` names a remote one. Each prompt's answers are shown in an order of
    their own; ranks are mapped back. With people, the stage waits until every record has been judged `per_record` times.

    Rows carry two more columns where they are asked for: `ratings` (by aspect, in the order of the candidates), and
    `planted`, the candidate of an attention check that answers another prompt. Rejected: prompts with `one_answer`, and
    what annotators `discarded` or left as a `draft`.
    """

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", optional=True)}
    gives = "Ranking"
    phase = "people"
    switches = {"people": Switch("People rank in the Argilla UI, not scripted annotators.", {"scripted": "null"})}
    random = True

    dataset: str = Field("rankings", description="Start of the dataset's name in Argilla.")
    workspace: str = "flywheel"
    answers: int = Field(4, ge=2, le=26, description="How many different answers to a prompt to show at most.")
    per_record: int = Field(1, ge=1, description="How many annotators judge each prompt.")
    people: tuple[str, ...] = Field((), description="User names of annotators, made if they don't exist.")
    scripted: tuple[Scripted, ...] | None = Field(None, description="Stand-ins for people; they need `verdicts`.")
    metric: str = Field("utility", description="The verdicts' metric that scripted annotators perceive.")
    asked: Literal["ranking", "pairwise", "rating"] = Field(
        "ranking", description="Rank the answers, say which of two is better, or rate each by `aspects` from 1 to 5."
    )
    aspects: tuple[str, ...] = Field((), description="Rate every answer by these, e.g. accuracy, helpfulness, safety.")
    top: int | None = Field(None, ge=1, description="Have the best this many ranked; the others share the last rank.")
    orders: Literal["prompt", "annotator"] = Field(
        "prompt",
        description="Shuffle the answers once a prompt, or anew for each annotator: each then has a workspace and a "
        "dataset of their own, and records are dealt out instead of going to whoever comes first.",
    )
    attention: float = Field(0.0, ge=0, le=0.5, description="Attention checks, as a share of the prompts.")
    suggest: bool = Field(False, description="Fill the form with the verdicts' ranking. It anchors people.")
    guidelines: str | None = None
    correction: bool = Field(False, description="Ask for a better answer, too.")
    flags: tuple[str, ...] = Field((), description="Things an annotator may tick, two or more: [unsafe, wrong].")
    patience: Annotated[float, NotIdentity] = Field(
        120.0, description="Seconds to go on trying when the server is away."
    )

    @model_validator(mode="after")
    def _check(self) -> Label:
        if self.scripted is not None and len(self.scripted) < self.per_record:
            raise ValueError(
                f"per_record is {self.per_record}, but there are only {len(self.scripted)} scripted annotators"
            )
        if self.asked == "pairwise" and self.answers != 2:
            raise ValueError(f"`asked: pairwise` compares two answers: set `answers: 2` (it is {self.answers})")
        if self.asked == "rating" and not self.aspects:
            raise ValueError("`asked: rating` needs `aspects`, e.g. [accuracy, helpfulness, safety]")
        if self.top is not None and (self.asked != "ranking" or self.top >= self.answers):
            raise ValueError(f"`top` goes with rankings of more answers than it; here {self.asked} of {self.answers}")
        if self.orders == "annotator" and self.scripted is None and len(self.people) < self.per_record:
            raise ValueError(
                f"`orders: annotator` deals records out, each to {self.per_record}: name that many `people` or more"
            )
        if len(self.flags) == 1:
            raise ValueError("Argilla asks for two `flags` or more, or none")
        if self.suggest and self.asked == "rating":
            raise ValueError("`suggest` goes with rankings and pairs; ratings can't be suggested")
        return self

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None

    def run(self, job: Job) -> None:
        columns = ["id", "prompt_id", "prompt", "completion", "reference"]
        rows = [row for artifact in job.all("candidates") for row in artifact.to_table(columns).to_pylist()]
        shown, rejected = to_show(rows, self.answers, job.seed, self._utilities(job))
        if not shown:
            raise UserError("no prompt has two different answers: there is nothing to rank. Sample more, or hotter.")
        checks = attention_checks(shown, self.attention, job.seed)
        if self.suggest:
            shown = [replace(s, suggested=_ranks_of(s.worth, self.top)) for s in shown]
        client = self._connect(job)
        try:
            rankings, unsubmitted = self._rank(job, client, [*shown, *checks])
        finally:
            client.close()
        rejected += unsubmitted
        # What the clock says differs from run to run, so it is kept beside the rows, not in them.
        keys = ("id", "annotator", "inserted_at", "updated_at", "url")
        times = pa.table({key: [row[key] for row in rankings] for key in keys})
        job.store.put(encode(times), "artifacts", job.artifact, "logs", "times.parquet")
        judged = [
            Judged(
                row["prompt_id"],
                row["annotator"],
                row["ranks"],
                row["updated_at"],
                row["prompt"][-1]["content"],
                row["url"],
            )
            for row in rankings
            if row["planted"] is None
        ]
        told = json.dumps([table.as_json() for table in tables(judged)]).encode()
        job.store.put(told, "artifacts", job.artifact, "logs", "tables.json")
        for step, share in agreement_over_time(judged):
            job.metric(step, agreement=share)
        kept = sorted(
            ({k: v for k, v in row.items() if k not in keys[2:]} for row in rankings),
            key=lambda row: (row["prompt_id"], row["planted"] or "", row["annotator"]),
        )
        if not checks:
            kept = [{k: v for k, v in row.items() if k != "planted"} for row in kept]
        annotators = sorted({row["annotator"] for row in kept})
        job.summary(
            prompts=len(shown),
            annotators={name: sum(r["annotator"] == name for r in kept) for name in annotators},
            scripted=self.scripted is not None,
            **({"attention_checks": len(checks)} if checks else {}),
        )
        job.commit("00000-rankings", pa.Table.from_pylist(kept), pa.Table.from_pylist(rejected) if rejected else None)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _utilities(self, job: Job) -> dict[str, float]:
        if self.scripted is None and not self.suggest:
            return {}
        verdicts = job.maybe("verdicts")
        if verdicts is None:
            who = "suggestions" if self.scripted is None else "scripted annotators"
            raise UserError(f"{who} need `verdicts` (a `judge` stage) that tell what an answer is worth.")
        table = verdicts.to_polars().filter(metric=self.metric)
        if table.is_empty():
            raise UserError(f"the verdicts have no metric `{self.metric}` (`metric` of this stage).")
        return dict(zip(table["subject"], table["value"], strict=True))

    # -- Argilla -----------------------------------------------------------------------------------------------------

    def _connect(self, job: Job) -> Argilla:
        import os

        from labeling.argilla import server
        from labeling.argilla.client import connect

        if not os.environ.get("ARGILLA_API_URL"):
            running = server.up(on_step=job.say)
            job.say(f"Argilla: {running.url}  user {running.username}, password in {running.password_file}")
        return connect(patience=self.patience)

    def _rank(self, job: Job, client: Argilla, shown: list[Shown]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of what was submitted, and of the drafts and discarded records, as rejected rows."""
        from labeling.label import scripted as annotators

        rounds: list[tuple[_Round, Dataset]] = []
        for part in self._rounds(job, shown):
            dataset = client.ensure_dataset(part.task)
            pushed = client.push(dataset, [s.record() for s in part.shown])
            job.say(
                f"pushed {pushed.new} prompts with {part.task.answers} answers each ({pushed.present} were there):"
                f" {dataset.url}"
            )
            if part.people:
                client.ensure_users(part.people, part.task.workspace)
            rounds.append((part, dataset))
        if self.scripted is None:
            self._await_people(job, client, [dataset for _, dataset in rounds])
        done, total = 0, len(shown) * self.per_record

        def count(more: int) -> None:
            nonlocal done
            done += more
            job.progress(done, total, "rankings")

        rows: list[dict[str, Any]] = []
        aside: list[dict[str, Any]] = []
        for part, dataset in rounds:
            if part.scripted:
                stand_ins = self._stand_ins(job, part)
                annotators.run(client, dataset, stand_ins, per_record=part.task.min_submitted, on_progress=count)
            by_key = {s.key: s for s in part.shown}
            for response in client.pull(dataset):
                if response.external_id not in by_key:
                    continue
                row = self._row(by_key[response.external_id], response, dataset.url)
                if response.status == "submitted":
                    rows.append(row)
                    continue
                told = "; ".join([f"by {response.user}", *response.flags])
                aside.append({"id": row["id"], "reason": response.status, "detail": told})
        return rows, sorted(aside, key=lambda row: row["id"])

    def _rounds(self, job: Job, shown: list[Shown]) -> Iterator[_Round]:
        """The datasets to make: one for each number of answers and, where all have orders of their own, annotator."""
        from labeling.argilla.task import RankingTask
        from labeling.label.scripted import PREFIX, assigned

        scripted = self.scripted or ()
        for size in sorted({len(s.candidates) for s in shown}):
            part = [s for s in shown if len(s.candidates) == size]
            task = RankingTask(
                name=f"{self.dataset}-{job.artifact.rpartition('-')[2][:8]}-of-{size}",
                answers=size,
                workspace=self.workspace,
                asked=self.asked,
                aspects=self.aspects,
                top=self.top if self.top is not None and self.top < size else None,
                correction=self.correction,
                flags=self.flags,
                guidelines=self.guidelines or "",
                min_submitted=self.per_record,
            )
            # The queue's order is the user's own (by record), so checks do not stand out at its end.
            if self.orders == "prompt":
                yield _Round(task, part, self.people, scripted)
                continue
            names = [s.name if s.name.startswith(PREFIX) else PREFIX + s.name for s in scripted] or list(self.people)
            for place, name in enumerate(names):
                own = [s.for_annotator(name, job.seed) for s in part if name in assigned(names, s.key, self.per_record)]
                if own:
                    alone = replace(task, workspace=f"{self.workspace}-{name}", min_submitted=1)
                    yield _Round(alone, own, () if scripted else (name,), scripted[place : place + 1])

    def _stand_ins(self, job: Job, part: _Round) -> list[ScriptedAnnotator]:
        from labeling.label.scripted import ScriptedAnnotator

        worth: dict[tuple[str, str], float] = {}
        for s in part.shown:
            for text, value in zip(s.texts, s.worth, strict=True):
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
            for s in part.scripted
        ]

    def _await_people(self, job: Job, client: Argilla, datasets: Sequence[Dataset]) -> None:
        while True:
            progress = [client.progress(dataset) for dataset in datasets]
            done, total = sum(p.completed for p in progress), sum(p.total for p in progress)
            job.progress(done, total, "prompts")
            if done >= total:
                return
            if not job.options.get("wait"):
                left = [d.url for d, p in zip(datasets, progress, strict=True) if p.completed < p.total]
                raise Waiting(
                    f"{done} of {total} prompts are ranked. Rank the others at {', '.join(left)}, "
                    "then run again; or run with --wait."
                )
            time.sleep(LOOK_AGAIN)

    def _row(self, shown: Shown, response: RankingResponse, url: str) -> dict[str, Any]:
        """One Ranking, its candidates in the order of their ids whatever the order they were shown in."""
        order = sorted(range(len(shown.candidates)), key=lambda i: shown.candidates[i]["id"])
        ids, texts = [shown.candidates[i]["id"] for i in order], shown.texts
        ranks = [response.ranks[i] for i in order]
        ratings = {aspect: [given[i] for i in order] for aspect, given in response.ratings.items()}
        told = [json.dumps(ratings)] if ratings else []
        return {
            "id": row_id(
                "Ranking", shown.key, response.user, json.dumps(ranks), response.correction, *response.flags, *told
            ),
            "parents": ids,
            "prompt_id": shown.prompt_id,
            "prompt": shown.prompt,
            "candidates": ids,
            "completions": [texts[i] for i in order],
            "ranks": ranks,
            "shown": order,
            "annotator": response.user,
            "annotator_kind": "scripted" if self.scripted is not None else "person",
            "correction": response.correction,
            "flags": list(response.flags),
            **({"ratings": ratings} if ratings else {}),
            "planted": shown.planted,
            "inserted_at": response.inserted_at,
            "updated_at": response.updated_at,
            "url": url,
        }


@dataclass(frozen=True)
class _Round:
    """One dataset to make, what it shows, and who works on it."""

    task: RankingTask
    shown: list[Shown]
    people: tuple[str, ...]
    scripted: tuple[Scripted, ...]


def _ranks_of(worth: Sequence[float | None], top: int | None) -> list[int] | None:
    """Ranks by worth, for a suggestion; None where one is not known."""
    known = [w for w in worth if w is not None]
    if len(known) < len(worth):
        return None
    ranks = [1 + sum(other > w for other in known) for w in known]
    return [min(rank, top + 1) for rank in ranks] if top is not None else ranks
