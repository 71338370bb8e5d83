"""The work of `label`: push answers to the tool, let people (or scripted stand-ins) rank them, pull what they said."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from engine import seeds
from engine.errors import UserError, Waiting
from engine.stage.job import Job
from engine.store.parquet import encode
from engine.store.schema import messages_digest, row_id
from labeling.argilla import client as argilla
from labeling.argilla import server
from labeling.label.lead_view import note_pushed
from labeling.label.presentation import Presentation, attention_checks, presentations
from labeling.label.scripted import ScriptedAnnotator, annotate, annotators_of, username_of
from labeling.label.stage import Label, ScriptedSettings
from labeling.label_studio import studio_client as label_studio
from labeling.tool.annotation_tool import AnnotationTool
from labeling.tool.oversight import RecordJudgement, agreement_over_time, tables
from labeling.tool.task import Dataset, RankingResponse, RankingTask, own_task

LOOK_AGAIN = 5.0  # seconds between looks at how far people are


@dataclass(frozen=True)
class AnnotationRound:
    """One dataset to make, what it shows, and who works on it."""

    task: RankingTask
    shown: list[Presentation]
    people: tuple[str, ...]
    scripted: tuple[ScriptedSettings, ...]


@dataclass(frozen=True)
class SubmittedRanking:
    """A row of the result, and what the tool says of it that no row holds."""

    row: dict[str, Any]
    response: RankingResponse
    url: str
    link: str


def collect_rankings(stage: Label, job: Job) -> None:
    columns = ["id", "prompt_id", "prompt", "completion", "reference"]
    candidates = [row for artifact in job.all("candidates") for row in artifact.to_table(columns).to_pylist()]
    shown, rejected = presentations(candidates, stage.answers, job.seed, _utilities(stage, job))
    if not shown:
        raise UserError("no prompt has two different answers: there is nothing to rank. Sample more, or hotter.")
    checks = attention_checks(shown, stage.attention, job.seed)
    if stage.suggest:
        shown = [replace(s, suggested=_ranks_of(s.worth, stage.top)) for s in shown]
    client = _connect(stage, job)
    try:
        rankings, unsubmitted = _rank(stage, job, client, [*shown, *checks])
    finally:
        client.close()
    _keep_oversight(job, rankings)
    rows = sorted((r.row for r in rankings), key=lambda r: (r["prompt_id"], r["planted"] or "", r["annotator"]))
    if not checks:
        rows = [{name: value for name, value in row.items() if name != "planted"} for row in rows]
    annotators = sorted({row["annotator"] for row in rows})
    job.summary(
        prompts=len(shown),
        annotators={name: sum(row["annotator"] == name for row in rows) for name in annotators},
        scripted=stage.scripted is not None,
        **({"attention_checks": len(checks)} if checks else {}),
    )
    rejected += unsubmitted
    job.commit("00000-rankings", pa.Table.from_pylist(rows), pa.Table.from_pylist(rejected) if rejected else None)


def _keep_oversight(job: Job, rankings: Sequence[SubmittedRanking]) -> None:
    """What the clock says differs from run to run, so it is kept beside the rows, not in them."""
    times = {
        **{name: [r.row[name] for r in rankings] for name in ("id", "annotator")},
        **{name: [getattr(r.response, name) for r in rankings] for name in ("inserted_at", "updated_at")},
        "url": [r.url for r in rankings],
    }
    job.write_log("times.parquet", encode(pa.table(times)))
    judgements = [
        RecordJudgement(
            r.row["prompt_id"],
            r.row["annotator"],
            r.row["ranks"],
            r.response.updated_at,
            r.row["prompt"][-1]["content"],
            r.link,
        )
        for r in rankings
        if r.row["planted"] is None
    ]
    job.write_log("tables.json", json.dumps([table.as_json() for table in tables(judgements)]).encode())
    for step, share in agreement_over_time(judgements):
        job.metric(step, agreement=share)


def _utilities(stage: Label, job: Job) -> dict[str, float]:
    """Candidate id -> what its verdict says it is worth; empty where nobody asks."""
    if stage.scripted is None and not stage.suggest:
        return {}
    verdicts = job.maybe("verdicts")
    if verdicts is None:
        who = "suggestions" if stage.scripted is None else "scripted annotators"
        raise UserError(f"{who} need `verdicts` (a `judge` stage) that tell what an answer is worth.")
    table = verdicts.to_polars().filter(metric=stage.metric)
    if table.is_empty():
        raise UserError(f"the verdicts have no metric `{stage.metric}` (`metric` of this stage).")
    return dict(zip(table["subject"], table["value"], strict=True))


def start_server() -> None:
    """Have the Argilla of this machine run, unless it is elsewhere."""
    if not os.environ.get("ARGILLA_API_URL"):
        server.up()


def _connect(stage: Label, job: Job) -> AnnotationTool:
    if stage.tool == "label_studio":
        return label_studio.connect(patience=stage.patience)
    if not os.environ.get("ARGILLA_API_URL"):
        running = server.up(on_step=job.say)
        job.say(f"Argilla: {running.url}  user {running.username}, password in {running.password_file}")
    return argilla.connect(patience=stage.patience)


def _rank(
    stage: Label, job: Job, client: AnnotationTool, shown: list[Presentation]
) -> tuple[list[SubmittedRanking], list[dict[str, Any]]]:
    """What was submitted, and the drafts and discarded records as rejected rows."""
    rounds: list[tuple[AnnotationRound, Dataset]] = []
    for part in _rounds(stage, job, shown):
        if client.holds_others(part.task, [s.key for s in part.shown]):  # of another run: they stay apart
            part = replace(
                part, task=replace(part.task, name=f"{part.task.name}-{job.artifact.rpartition('-')[2][:8]}")
            )
        dataset = client.ensure_dataset(part.task)
        pushed = client.push(dataset, [s.record() for s in part.shown])
        job.say(
            f"pushed {pushed.new} prompts with {part.task.answers} answers each ({pushed.present} were there):"
            f" {dataset.url}"
        )
        if part.people:
            client.ensure_users(part.people, part.task.workspace)
        rounds.append((part, dataset))
    note_pushed(job.scratch, stage.tool, [dataset for _, dataset in rounds])
    if stage.scripted is None:
        _await_people(job, client, [dataset for _, dataset in rounds])
    done, total = 0, len(shown) * stage.per_record

    def count(more: int) -> None:
        nonlocal done
        done += more
        job.progress(done, total, "rankings")

    rankings: list[SubmittedRanking] = []
    aside: list[dict[str, Any]] = []
    for part, dataset in rounds:
        if part.scripted:
            stand_ins = _stand_ins(stage, job, part)
            annotate(client, dataset, stand_ins, per_record=part.task.min_submitted, on_progress=count)
        by_key = {s.key: s for s in part.shown}
        for response in client.pull(dataset):
            if response.external_id not in by_key:
                continue
            row = _row(by_key[response.external_id], response, "person" if stage.scripted is None else "scripted")
            if response.status == "submitted":
                link = client.record_url(dataset, response.record_id, row["prompt"][-1]["content"])
                rankings.append(SubmittedRanking(row, response, dataset.url, link))
            else:
                detail = "; ".join([f"by {response.user}", *response.flags])
                aside.append({"id": row["id"], "reason": response.status, "detail": detail})
    return rankings, sorted(aside, key=lambda row: row["id"])


def _rounds(stage: Label, job: Job, shown: list[Presentation]) -> Iterator[AnnotationRound]:
    """The datasets to make: one for each number of answers and, where all have orders of their own, annotator."""
    scripted = stage.scripted or ()
    sizes = sorted({len(s.candidates) for s in shown})
    for size in sizes:
        part = [s for s in shown if len(s.candidates) == size]
        task = RankingTask(
            name=stage.dataset if len(sizes) == 1 else f"{stage.dataset}-of-{size}",
            answers=size,
            workspace=stage.workspace,
            asked=stage.asked,
            aspects=stage.aspects,
            top=stage.top if stage.top is not None and stage.top < size else None,
            correction=stage.correction,
            flags=stage.flags,
            guidelines=stage.guidelines or "",
            min_submitted=stage.per_record,
        )
        # The queue's order is the user's own (by record), so checks do not stand out at its end.
        if stage.orders == "prompt":
            yield AnnotationRound(task, part, stage.people, scripted)
            continue
        names = [username_of(s.name) for s in scripted] or list(stage.people)
        for place, name in enumerate(names):
            own = [
                s.for_annotator(name, job.seed) for s in part if name in annotators_of(names, s.key, stage.per_record)
            ]
            if own:
                yield AnnotationRound(
                    own_task(task, name), own, () if scripted else (name,), scripted[place : place + 1]
                )


def _stand_ins(stage: Label, job: Job, part: AnnotationRound) -> list[ScriptedAnnotator]:
    worth: dict[tuple[str, str], float] = {}
    for s in part.shown:
        for text, value in zip(s.texts, s.worth, strict=True):
            if value is None:
                raise UserError(f"an answer to prompt {s.prompt_id} has no verdict of metric `{stage.metric}`.")
            worth[messages_digest(s.prompt), text] = value

    def utility(prompt: Any, answer: str) -> float:
        return worth[messages_digest(prompt), answer]

    return [
        ScriptedAnnotator(utility=utility, seed=seeds.derive(job.seed, s.name), **s.model_dump()) for s in part.scripted
    ]


def _await_people(job: Job, client: AnnotationTool, datasets: Sequence[Dataset]) -> None:
    """
    Raises:
        Waiting: people are not done, and the job does not wait for them.
    """
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


def _row(shown: Presentation, response: RankingResponse, kind: str) -> dict[str, Any]:
    """One Ranking, its candidates in the order of their ids whatever the order they were shown in."""
    order = sorted(range(len(shown.candidates)), key=lambda i: shown.candidates[i]["id"])
    ids, texts = [shown.candidates[i]["id"] for i in order], shown.texts
    ranks = [response.ranks[i] for i in order]
    ratings = {aspect: [values[i] for i in order] for aspect, values in response.ratings.items()}
    rated = [json.dumps(ratings)] if ratings else []
    return {
        "id": row_id(
            "Ranking", shown.key, response.user, json.dumps(ranks), response.correction, *response.flags, *rated
        ),
        "parents": ids,
        "prompt_id": shown.prompt_id,
        "prompt": shown.prompt,
        "candidates": ids,
        "completions": [texts[i] for i in order],
        "ranks": ranks,
        "shown": order,
        "annotator": response.user,
        "annotator_kind": kind,
        "correction": response.correction,
        "flags": list(response.flags),
        **({"ratings": ratings} if ratings else {}),
        "planted": shown.planted,
    }


def _ranks_of(worth: Sequence[float | None], top: int | None) -> list[int] | None:
    """Ranks by worth, for a suggestion; None where one is not known."""
    known = [w for w in worth if w is not None]
    if len(known) < len(worth):
        return None
    ranks = [1 + sum(other > w for other in known) for w in known]
    return [min(rank, top + 1) for rank in ranks] if top is not None else ranks
