"""Our annotation schema in Argilla's terms, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.errors import UserError
from labeling.ranking_task import Prompt, RankingRecord, RankingResponse, RankingTask, ShownRecord, Submission

MAX_RECORD_BYTES = 1_000_000


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
    options = [{"value": label, "text": f"Answer {label.upper()}"} for label in task.labels]
    questions: list[dict[str, Any]] = [
        {
            "name": "ranking",
            "title": "Rank the answers, best first",
            "required": True,
            "settings": {"type": "ranking", "options": options},
        }
    ]
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


def write_records(task: RankingTask, records: Sequence[RankingRecord]) -> list[tuple[str, bytes]]:
    """Every record as (external id, JSON), or UserError for the first that can't be pushed."""
    items: dict[str, bytes] = {}
    for record in records:
        if record.external_id in items:
            raise UserError(f"Record {record.external_id!r} is given twice: ids must be unique in a push.")
        if len(record.answers) != task.answers:
            raise UserError(
                f"Record {record.external_id!r} has {len(record.answers)} answers, and dataset"
                f" {task.name!r} ranks {task.answers}. Push records with another number of answers"
                f" to a dataset of their own."
            )
        prompt: Any = [{"role": m["role"], "content": as_text(m["content"])} for m in record.prompt]
        if not task.chat:
            prompt = "\n\n".join(m["content"] for m in prompt)
        item = {
            "external_id": record.external_id,
            "fields": {"prompt": prompt, **dict(zip(task.labels, map(as_text, record.answers), strict=True))},
            **({"metadata": dict(record.metadata)} if record.metadata else {}),
            **({"vectors": {k: list(v) for k, v in record.vectors.items()}} if record.vectors else {}),
        }
        try:
            encoded = json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # a lone surrogate, or NaN
            raise UserError(f"Record {record.external_id!r} can't be written as JSON: {error}.") from error
        if len(encoded) > MAX_RECORD_BYTES:
            raise UserError(
                f"Record {record.external_id!r} is {len(encoded):,} bytes long; at most"
                f" {MAX_RECORD_BYTES:,} can be shown to people. Nothing was pushed. Filter such"
                f" records out before labelling."
            )
        items[record.external_id] = encoded
    return list(items.items())


def read_response(
    task: RankingTask, record: dict[str, Any], response: dict[str, Any], name: Callable[[str], str]
) -> RankingResponse:
    values = response["values"] or {}
    ranked = {item["value"]: item.get("rank") for item in values.get("ranking", {}).get("value", [])}
    return RankingResponse(
        id=response["id"],
        record_id=record["id"],
        external_id=record["external_id"],
        user=name(response["user_id"]),
        status=response["status"],
        ranks=tuple(ranked.get(label) for label in task.labels),
        correction=values.get("correction", {}).get("value"),
        flags=tuple(values.get("flags", {}).get("value", [])),
        inserted_at=_utc(response["inserted_at"]),
        updated_at=_utc(response["updated_at"]),
    )


def _utc(stamp: str) -> datetime:
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


def _prompt_as_written(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return as_written(prompt)
    return [{"role": m["role"], "content": as_written(m["content"])} for m in prompt]


def read_record(task: RankingTask, record: dict[str, Any]) -> ShownRecord:
    fields = record["fields"]
    return ShownRecord(
        id=record["id"],
        external_id=record["external_id"],
        prompt=_prompt_as_written(fields["prompt"]),
        answers=tuple(as_written(fields[label]) for label in task.labels),
        answered=bool(record.get("responses")),
    )


def write_submission(task: RankingTask, submission: Submission) -> dict[str, Any]:
    if len(submission.ranks) != task.answers:
        raise UserError(f"Record {submission.record_id}: {len(submission.ranks)} ranks for {task.answers} answers.")
    ranking = [
        {"value": label, "rank": rank}
        for label, rank in zip(task.labels, submission.ranks, strict=True)
        if rank is not None
    ]
    values: dict[str, Any] = {"ranking": {"value": ranking}} if ranking else {}
    if submission.correction:
        values["correction"] = {"value": submission.correction}
    if submission.flags:
        values["flags"] = {"value": list(submission.flags)}
    return {"record_id": submission.record_id, "status": submission.status, "values": values or None}
