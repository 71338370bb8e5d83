"""Our annotation schema in Argilla's terms, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from engine.errors import UserError
from labeling.tool.pushed_records import as_json, fitting
from labeling.tool.ranks import TIE, better_of_pair, ranks_of_pair, ranks_of_ratings, ranks_of_top, ranks_to_top
from labeling.tool.task import (
    RATINGS,
    Prompt,
    RankingRecord,
    RankingResponse,
    RankingTask,
    RecordView,
    Submission,
)


def dataset_settings(task: RankingTask) -> dict[str, list[dict[str, Any]]]:
    """The task in Argilla's terms. Fields are plain text: see `as_text`."""
    prompt_type = "chat" if task.chat else "text"
    fields: list[dict[str, Any]] = [
        {"name": "prompt", "title": "Prompt", "settings": {"type": prompt_type, "use_markdown": False}}
    ]
    fields += [
        {
            "name": label,
            "title": f"Answer {label.upper()}",
            "settings": {"type": "text", "use_markdown": False},
        }
        for label in task.labels
    ]
    questions = _judgement(task)
    if task.correction:
        questions.append(
            {
                "name": "correction",
                "title": "Write a better answer (optional)",
                "required": False,
                "settings": {"type": "text", "use_markdown": False},
            }
        )
    if task.flags:
        flags = [{"value": flag, "text": flag} for flag in task.flags]
        questions.append(
            {
                "name": "flags",
                "title": "Anything wrong? (optional)",
                "required": False,
                "settings": {"type": "multi_label_selection", "options": flags},
            }
        )
    return {
        "fields": [{**item, "required": True} for item in fields],
        "questions": questions,
        "metadata-properties": [
            # Hidden from annotators: metadata may tell where an answer came from.
            {"name": name, "title": name, "settings": {"type": kind}, "visible_for_annotators": False}
            for name, kind in task.metadata.items()
        ],
        "vectors-settings": [
            {"name": name, "title": name, "dimensions": dimensions} for name, dimensions in task.vectors.items()
        ],
    }


def _judgement(task: RankingTask) -> list[dict[str, Any]]:
    """The questions that a judgement needs an answer to."""
    questions: list[dict[str, Any]] = []
    if task.asked == "ranking":
        title = "Rank the answers, best first"
        if task.top is not None:
            title = f"Rank the best {task.top}, and give all the others rank {task.top + 1}"
        options = [{"value": label, "text": f"Answer {label.upper()}"} for label in task.labels]
        questions.append({"name": "ranking", "title": title, "settings": {"type": "ranking", "options": options}})
    if task.asked == "pairwise":
        options = [{"value": label, "text": f"Answer {label.upper()} is better"} for label in task.labels]
        options.append({"value": TIE, "text": "Equally good"})
        settings = {"type": "label_selection", "options": options, "visible_options": None}
        questions.append({"name": "ranking", "title": "Which answer is better?", "settings": settings})
    scale = [{"value": value} for value in RATINGS]
    questions += [
        {
            "name": _rating(aspect, label),
            "title": f"Answer {label.upper()}: {aspect.replace('_', ' ')}, {RATINGS[0]} (bad) to {RATINGS[-1]} (good)",
            "settings": {"type": "rating", "options": scale},
        }
        for label in task.labels
        for aspect in task.aspects
    ]
    return [{**question, "required": True} for question in questions]


def _rating(aspect: str, label: str) -> str:
    return f"{aspect}-{label}"


def refuse_other_questions(
    task: RankingTask,
    present: Mapping[str, list[dict[str, Any]]],
    wanted: Mapping[str, list[dict[str, Any]]],
    *,
    complete: bool,
) -> None:
    """Raise UserError when fields or questions on the server are not the task's. Titles may differ."""
    differences: list[str] = []
    for part, one in (("fields", "field"), ("questions", "question")):
        ours = {item["name"]: _essence(item) for item in wanted[part]}
        theirs = {item["name"]: _essence(item) for item in present[part]}
        differences += [f"{one} {name!r} is not ours" for name in theirs if name not in ours]
        if complete:
            differences += [f"{one} {name!r} is missing" for name in ours if name not in theirs]
        differences += [
            f"{one} {name!r} is {theirs[name]}, expected {ours[name]}"
            for name in ours
            if name in theirs and ours[name] != theirs[name]
        ]
    if differences:
        raise UserError(
            f"Dataset {task.name!r} in workspace {task.workspace!r} asks something else than this task:\n"
            + "\n".join(f"  - {difference}" for difference in differences)
            + "\nIt is left as it is. Choose another dataset name, or delete that one in Argilla's settings."
        )


def _essence(item: dict[str, Any]) -> str:
    settings = item["settings"]
    options = ", ".join(str(option["value"]) for option in settings.get("options", []))
    return f"{settings['type']}({options})" if options else settings["type"]


def write_records(
    task: RankingTask, records: Sequence[RankingRecord], question_id: str | None = None
) -> list[tuple[str, bytes]]:
    """Every record as (external id, JSON), or UserError for the first that can't be pushed.

    `question_id` is of the ranking, for records with suggested ranks.
    """
    items: dict[str, bytes] = {}
    for record in fitting(task, records):
        prompt: Any = [{"role": as_text(m["role"]), "content": as_text(m["content"])} for m in record.prompt]
        if not task.chat:
            prompt = "\n\n".join(m["content"] for m in prompt)
        item: dict[str, Any] = {
            "external_id": record.external_id,
            "fields": {"prompt": prompt, **dict(zip(task.labels, map(as_text, record.answers), strict=True))},
            **({"metadata": dict(record.metadata)} if record.metadata else {}),
            **({"vectors": {k: list(v) for k, v in record.vectors.items()}} if record.vectors else {}),
        }
        if record.suggested is not None:
            suggested = write_submission(task, Submission(record.external_id, record.suggested))["values"]["ranking"]
            item["suggestions"] = [{"question_id": question_id, "type": "model", **suggested}]
        items[record.external_id] = as_json(record, item)
    return list(items.items())


def read_response(
    task: RankingTask, record: dict[str, Any], response: dict[str, Any], name: Callable[[str], str]
) -> RankingResponse:
    values = {name: answer["value"] for name, answer in (response["values"] or {}).items()}
    ratings = {aspect: tuple(values.get(_rating(aspect, label)) for label in task.labels) for aspect in task.aspects}
    return RankingResponse(
        id=response["id"],
        record_id=record["id"],
        external_id=record["external_id"],
        user=name(response["user_id"]),
        status=response["status"],
        ranks=_ranks(task, values.get("ranking"), ratings),
        correction=values.get("correction"),
        flags=tuple(values.get("flags", [])),
        inserted_at=as_utc(response["inserted_at"]),
        updated_at=as_utc(response["updated_at"]),
        ratings=ratings,
    )


def _ranks(task: RankingTask, value: Any, ratings: Mapping[str, Sequence[int | None]]) -> tuple[int | None, ...]:
    if task.asked == "pairwise":
        return ranks_of_pair(value)
    if task.asked == "rating":
        return ranks_of_ratings(ratings)
    ranked: dict[str, int | None] = {item["value"]: item.get("rank") for item in value or []}
    return ranks_of_top(task, tuple(ranked.get(label) for label in task.labels))


def read_task(
    name: str,
    workspace: str,
    about: dict[str, Any],
    fields: Sequence[dict[str, Any]],
    questions: Sequence[dict[str, Any]],
) -> RankingTask | None:
    """The task behind a dataset on the server; None if it is not one of ours.

    What only says how a ranking was asked for (`top`) is not on the server.
    """
    asked = {question["name"]: question["settings"] for question in questions}
    shown = {field["name"]: field["settings"]["type"] for field in fields}
    labels = sorted(name for name in shown if len(name) == 1)
    ranking = asked.get("ranking", {}).get("type")
    aspects = tuple(dict.fromkeys(name[:-2] for name in asked if name[-2:-1] == "-"))
    if "prompt" not in shown or len(labels) < 2 or not (ranking or aspects):
        return None
    task = RankingTask(
        name,
        len(labels),
        workspace,
        asked={"ranking": "ranking", "label_selection": "pairwise"}.get(ranking or "", "rating"),  # pyright: ignore
        aspects=aspects,
        chat=shown["prompt"] == "chat",
        correction="correction" in asked,
        flags=tuple(option["value"] for option in asked.get("flags", {}).get("options", [])),
        guidelines=about["guidelines"] or "",
        min_submitted=about["distribution"]["min_submitted"],
    )
    wanted = dataset_settings(task)
    ours = all({item["name"] for item in wanted[part]} == set(there) for part, there in
               (("fields", shown), ("questions", asked)))  # fmt: skip
    return task if ours else None


def search_url(dataset_url: str, prompt: str) -> str:
    """Where an annotator who judged a record finds it in Argilla's UI: its first words, among the submitted ones.

    The UI decodes what it finds in its address twice; what is searched is what is stored, escaped.
    """
    words = as_text(" ".join(prompt.replace('"', " ").split()[:12]))
    search = quote(quote(f'"{words}"', safe=""), safe="")
    return f"{dataset_url}?status=submitted&search={search}"


def as_utc(stamp: str) -> datetime:
    """Argilla's times are UTC and do not say so."""
    return datetime.fromisoformat(stamp.removesuffix("Z").removesuffix("+00:00") + "+00:00")


def as_text(text: str) -> str:
    """Text that Argilla's UI shows as it is.

    The UI puts fields into the page as HTML, also without Markdown: a `<b>` is rendered and an `onerror` in a
    chat message is run, with the rights of whoever reads it. What models write must not do that.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_written(shown: str) -> str:
    """The inverse of `as_text`."""
    return shown.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")


def prompt_as_written(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return as_written(prompt)
    return [{"role": as_written(m["role"]), "content": as_written(m["content"])} for m in prompt]


def read_record(task: RankingTask, record: dict[str, Any]) -> RecordView:
    fields = record["fields"]
    return RecordView(
        id=record["id"],
        external_id=record["external_id"],
        prompt=prompt_as_written(fields["prompt"]),
        answers=tuple(as_written(fields[label]) for label in task.labels),
        answered=bool(record.get("responses")),
        metadata=record.get("metadata") or {},
    )


def write_submission(task: RankingTask, submission: Submission) -> dict[str, Any]:
    for what, entries in (
        ("ranks", submission.ranks),
        *((f"ratings of {k}", v) for k, v in submission.ratings.items()),
    ):
        if len(entries) != task.answers:
            raise UserError(f"Record {submission.record_id}: {len(entries)} {what} for {task.answers} answers.")
    values: dict[str, Any] = {
        _rating(aspect, label): {"value": rating}
        for aspect in task.aspects
        for label, rating in zip(task.labels, submission.ratings.get(aspect, [None] * task.answers), strict=True)
        if rating is not None
    }
    if task.asked == "pairwise" and (better := better_of_pair(task, submission.ranks)) is not None:
        values["ranking"] = {"value": better}
    if task.asked == "ranking":
        ranks = ranks_to_top(task, submission.ranks) if submission.status == "submitted" else submission.ranks
        ranking = [
            {"value": label, "rank": rank} for label, rank in zip(task.labels, ranks, strict=True) if rank is not None
        ]
        values |= {"ranking": {"value": ranking}} if ranking else {}
    if submission.correction:
        values["correction"] = {"value": submission.correction}
    if submission.flags:
        values["flags"] = {"value": list(submission.flags)}
    return {"record_id": submission.record_id, "status": submission.status, "values": values or None}
